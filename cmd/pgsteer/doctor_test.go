package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pgsteer/pgsteer/pkg/admin"
	"github.com/pgsteer/pgsteer/pkg/config"
	"github.com/pgsteer/pgsteer/pkg/doctor"
)

// consult runs the doctor's command; the findings are given, and the node that
// was looked at is returned.
func consult(findings []doctor.Finding, d daemon, args ...string) (res result, n doctor.Node) {
	var stdout, stderr bytes.Buffer
	t := tool{
		stdout: &stdout, stderr: &stderr,
		getenv: func(string) string { return "" },
		dial:   func(string) daemon { return d },
		examine: func(_ context.Context, of doctor.Node, _ doctor.Options) []doctor.Finding {
			n = of
			return findings
		},
	}
	res.status = t.run(context.Background(), append([]string{"doctor"}, args...))
	res.stdout, res.stderr = stdout.String(), stderr.String()
	return res, n
}

func TestDoctor(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pgsteerd.yaml")
	if err := os.WriteFile(file, []byte(config.Minimal), 0o600); err != nil {
		t.Fatal(err)
	}
	well := []doctor.Finding{
		{Code: "kernel", Severity: doctor.OK, What: "6.1.0-28-amd64 takes XDP programs"},
		{Code: "rp_filter", Severity: doctor.Info, Subject: "eth0", What: "strict"},
	}
	lro := doctor.Finding{Code: "lro", Severity: doctor.Warning, Subject: "eth0", What: "large receive offload is on", Mend: "ethtool -K eth0 lro off"}
	bad := doctor.Finding{Code: "vip", Severity: doctor.Error, Subject: "192.168.1.100", What: "02:00:00:00:00:07 answers for it, and no peer of main advertises it", Mend: "take it off that host"}
	absent := &fakeDaemon{err: admin.ErrNotRunning}
	for _, tt := range []struct {
		name     string
		findings []doctor.Finding
		status   int
		said     string
	}{
		{"well", well, exitOK, ""},
		{"warning", append(slices.Clone(well), lro), exitWarning, "0 errors, 1 warning"},
		{"error", append(slices.Clone(well), lro, bad), exitFailure, "1 error, 1 warning"},
	} {
		res, n := consult(tt.findings, absent, "run", file)
		if res.status != tt.status || !strings.Contains(res.stderr, tt.said) || tt.said == "" && res.stderr != "" {
			t.Errorf("%s: status %d, stderr %q", tt.name, res.status, res.stderr)
		}
		if n.Running || n.Interface != "eth0" || len(n.Backends) != 1 || len(n.Routers) != 1 || !slices.Equal(n.Families, []int{4}) {
			t.Errorf("looked at %+v", n)
		}
		if tt.name == "error" {
			golden(t, "doctor-plain", res.stdout)
		}
	}
	res, n := consult(append(slices.Clone(well), bad), &fakeDaemon{}, "-j", "run", file)
	var back []doctor.Finding
	if err := json.Unmarshal([]byte(res.stdout), &back); err != nil || len(back) != 3 || back[2] != bad {
		t.Errorf("%v: %s", err, res.stdout)
	}
	golden(t, "doctor-json", res.stdout)
	if !n.Running || !strings.HasPrefix(res.stderr, `{"error":"doctor: 1 error, 0 warnings"}`) {
		t.Errorf("running %v, stderr %q", n.Running, res.stderr)
	}
}

func TestDoctorSubjects(t *testing.T) {
	broken := filepath.Join(t.TempDir(), "broken.yaml")
	if err := os.WriteFile(broken, []byte("node: [\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args   []string
		status int
		said   string
	}{
		{[]string{"run", "lo"}, exitOK, ""},
		{[]string{"run", "no-such-device"}, exitFailure, "no-such-device is neither a file nor a network interface"},
		{[]string{"run", broken}, exitFailure, "broken.yaml:"},
		{[]string{"run", ""}, exitUsage, "empty"},
		{[]string{"run", "a", "b"}, exitUsage, `"b"`},
		{[]string{"explain", "nothing"}, exitUsage, `no check "nothing"`},
		{[]string{"explain", "vip", "lro"}, exitUsage, `"lro"`},
	} {
		res, _ := consult(nil, &fakeDaemon{err: admin.ErrNotRunning}, tt.args...)
		if res.status != tt.status || !strings.Contains(res.stderr, tt.said) {
			t.Errorf("%q: status %d, stderr %q", tt.args, res.status, res.stderr)
		}
	}
	if _, err := os.Stat(defaultConfig); err != nil {
		res, _ := consult(nil, &fakeDaemon{err: admin.ErrNotRunning})
		if res.status != exitFailure || !strings.Contains(res.stderr, "pgsteer doctor run eth0") {
			t.Errorf("status %d, stderr %q", res.status, res.stderr)
		}
	}
	res, _ := consult(nil, &fakeDaemon{}, "explain")
	golden(t, "doctor-explain", res.stdout)
	res, _ = consult(nil, &fakeDaemon{}, "explain", "vip", "-j")
	if !strings.Contains(res.stdout, `"code":"vip"`) {
		t.Errorf("%s", res.stdout)
	}
}
