package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/admin"
	"github.com/pgsteer/pgsteer/pkg/lb"
	"github.com/pgsteer/pgsteer/pkg/xdp"
)

var update = flag.Bool("update", false, "write the golden files")

// A fixture is a reader with fixed contents.
type fixture struct {
	stats    lb.DatapathStats
	flows    []lb.Flow
	statsErr error
	flowsErr error // after the flows
	closed   int

	audits   []lb.AuditReport // one after the other, the last for ever
	auditErr error            // of the audit after the last
	audited  int
}

func (f *fixture) Stats() (lb.DatapathStats, error) { return f.stats, f.statsErr }

func (f *fixture) Flows(fn func(lb.Flow) bool) error {
	for _, flow := range f.flows {
		if !fn(flow) {
			return nil
		}
	}
	return f.flowsErr
}

func (f *fixture) Audit() (lb.AuditReport, error) {
	if f.auditErr != nil && f.audited == len(f.audits) {
		return lb.AuditReport{}, f.auditErr
	}
	if len(f.audits) == 0 {
		return lb.AuditReport{}, nil
	}
	f.audited++
	return f.audits[min(f.audited, len(f.audits))-1], nil
}

func (f *fixture) Close() error {
	f.closed++
	return nil
}

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func sample() *fixture {
	backend := func(i int, state lb.State, active int64, total uint64) lb.BackendStats {
		return lb.BackendStats{
			Limit: uint32(i-1) * 4000, Backup: i == 3, Closed: total - uint64(active), Redispatched: total / 500, Resets: total / 100, Evicted: total / 2000,
			ConnectTime: [lb.ConnectTimeBuckets]uint64{7: total / 2, 8: total / 3, 11: total / 50, 23: total / 20000},
			Name:        fmt.Sprintf("pooler%d", i), Addr: netip.AddrPortFrom(netip.MustParseAddr("192.168.1.5"), uint16(6431+i)),
			State: state, Weight: 1, Reachable: true, MAC: "02:00:00:00:01:05", Active: active, Total: total, Refused: total / 1000,
			PacketsIn: total * 12, BytesIn: total * 2345, PacketsOut: total * 10, BytesOut: total * 98765,
		}
	}
	f := &fixture{stats: lb.DatapathStats{
		Interface: "eth0",
		Services: []lb.ServiceStats{
			{Name: "postgres", Addr: ap("192.168.1.100:5432"), Backends: []lb.BackendStats{
				backend(1, lb.Up, 22, 41003), backend(2, lb.Up, 21, 41002), backend(3, lb.Down, 0, 7),
			}},
			{Name: "reports", Addr: ap("192.168.1.101:5432"), Backends: []lb.BackendStats{
				{Name: "r1", Addr: ap("192.168.1.7:6432"), State: lb.Draining, Weight: 256},
			}},
			{Name: "six", Addr: ap("[2001:db8::100]:5432"), Scheduler: lb.RandomTwo, Backends: []lb.BackendStats{
				{Name: "p6", Addr: ap("[2001:db8::5]:6432"), State: lb.Up, Weight: 1},
			}},
		},
		VIPs: []lb.VIPStats{
			{Addr: netip.MustParseAddr("192.168.1.100"), Router: "main", VRID: 51, Priority: 101, State: "active", Since: 26*time.Hour + 3*time.Second + 5, Lease: 287 * time.Millisecond},
			{Addr: netip.MustParseAddr("192.168.1.101"), Router: "second", VRID: 52, Priority: 100, State: "backup", Since: 12340 * time.Millisecond, Lease: -time.Second},
		},
		Verdicts: []lb.VerdictCount{{Name: "pass_arp", Action: "pass", Count: 12}, {Name: "tx_forward", Action: "tx", Count: 18446744073709551615}, {Name: "drop_ttl", Action: "drop"}},
	}}
	f.flows = []lb.Flow{
		{
			Client: ap("192.168.1.50:40000"), Service: ap("192.168.1.100:5432"), SNAT: ap("192.168.1.100:10240"), Backend: ap("192.168.1.5:6432"),
			State: "established", Age: 90 * time.Second, Idle: 12 * time.Millisecond, PacketsIn: 17, BytesIn: 2048, PacketsOut: 16, BytesOut: 4096,
		},
		{
			Client: ap("255.255.255.254:65535"), Service: ap("192.168.1.100:5432"), SNAT: ap("192.168.1.100:65535"), Backend: ap("192.168.1.5:6433"),
			State: "syn_received", Age: 3 * time.Second, Idle: 3 * time.Second, PacketsIn: 1, BytesIn: 60, PacketsOut: 1, BytesOut: 60,
		},
		{
			Client: ap("[2001:db8:1234:5678:9abc:def0:1234:5678]:65535"), Service: ap("[2001:db8::100]:5432"), SNAT: ap("[2001:db8::100]:10240"), Backend: ap("[2001:db8::5]:6432"),
			State: "time_wait", Age: 49 * time.Hour, Idle: 20 * time.Second, PacketsIn: 9, BytesIn: 900, PacketsOut: 9, BytesOut: 9000,
		},
	}
	f.audits = []lb.AuditReport{{
		Backends: []lb.BackendAudit{
			{Service: "postgres", Name: "pooler1", Active: 22, Counted: 22},
			{Service: "postgres", Name: "pooler2", Active: 21, Counted: 21},
		},
		Flows: 44, Capacity: 524288, Memory: 123_456_789,
	}}
	return f
}

type result struct {
	status         int
	stdout, stderr string
	pinPath        string
	socket         string
}

func run(r *fixture, openErr error, env string, args ...string) result {
	return runWith(r, openErr, env, &fakeDaemon{err: admin.ErrNotRunning}, args...)
}

func runWith(r *fixture, openErr error, env string, d daemon, args ...string) result {
	var stdout, stderr bytes.Buffer
	var res result
	t := tool{
		stdout: &stdout, stderr: &stderr,
		getenv: func(key string) string {
			if key == "PGSTEER_PIN_PATH" || key == "PGSTEER_ADMIN_SOCKET" {
				return env
			}
			return ""
		},
		dial: func(socket string) daemon {
			res.socket = socket
			return d
		},
		open: func(pinPath string) (reader, error) {
			res.pinPath = pinPath
			if openErr != nil {
				return nil, openErr
			}
			return r, nil
		},
	}
	res.status = t.run(context.Background(), args)
	res.stdout, res.stderr = stdout.String(), stderr.String()
	return res
}

func TestGolden(t *testing.T) {
	for _, o := range objects() {
		words := []string{o.name}
		if o.commands[0].name != "" {
			words = append(words, o.commands[0].name)
		}
		for _, form := range []struct {
			name string
			args []string
		}{{"plain", nil}, {"json", []string{"-j"}}, {"pretty", []string{"-p"}}, {"help", []string{"-h"}}} {
			name := o.name + "-" + form.name
			if (o.ownOptions || o.name == "keygen" || o.name == "sync" || o.name == "notify" || o.name == "config" || o.name == "doctor") && form.name != "help" {
				continue // it has a test of its own
			}
			t.Run(name, func(t *testing.T) {
				f := sample()
				args := slices.Concat(form.args, words)
				if o.ownOptions {
					args = []string{o.name, "help"}
				}
				res := run(f, nil, "", args...)
				if res.status != exitOK || res.stderr != "" {
					t.Fatalf("status %d, stderr %q", res.status, res.stderr)
				}
				if form.name != "help" && f.closed != 1 {
					t.Errorf("the reader was closed %d times", f.closed)
				}
				golden(t, name, res.stdout)
				if form.name != "json" && form.name != "pretty" {
					return
				}
				var list []map[string]any
				var one map[string]any
				if json.Unmarshal([]byte(res.stdout), &one) != nil && json.Unmarshal([]byte(res.stdout), &list) != nil || len(list)+len(one) == 0 {
					t.Error("neither a JSON object nor an array of them with anything in it")
				}
			})
		}
	}
	t.Run("usage", func(t *testing.T) { golden(t, "usage", run(nil, nil, "", "help").stdout) })
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("\n got:\n%s\nwant:\n%s", got, want)
	}
}

// TestEmpty checks that nothing to show is still a table, or a JSON array.
func TestEmpty(t *testing.T) {
	for _, object := range []string{"service", "backend", "flow", "vip", "counter"} {
		if res := run(&fixture{}, nil, "", object, "-j"); res.stdout != "[]\n" || res.status != exitOK {
			t.Errorf("%s -j: status %d, %q", object, res.status, res.stdout)
		}
		if res := run(&fixture{}, nil, "", object, "-p"); res.stdout != "[]\n" || res.status != exitOK {
			t.Errorf("%s -p: status %d, %q", object, res.status, res.stdout)
		}
		res := run(&fixture{}, nil, "", object)
		first, rest, _ := strings.Cut(res.stdout, "\n")
		if first == "" || strings.ToUpper(first) != first || (rest != "" && rest != "Found 0 flows\n") || res.status != exitOK {
			t.Errorf("%s: status %d, %q", object, res.status, res.stdout)
		}
	}
}

func TestCommandLine(t *testing.T) {
	shows := func(object string) string {
		res := run(sample(), nil, "", object)
		if res.status != exitOK {
			t.Fatalf("%s: %s", object, res.stderr)
		}
		return res.stdout
	}
	tests := []struct{ args, same string }{
		{"backend show", "backend"},
		{"backend list", "backend"},
		{"b s", "backend"},
		{"ba li", "backend"},
		{"se", "service"},
		{"vi", "vip"},
		{"f l", "flow"},
		{"cou show", "counter"},
		{"--pin-path /x flow", "flow"},
		{"flow --pin-path=/x show", "flow"},
		{"flow show -pin-path /x", "flow"},
		{"au", "audit"},
		{"f s li 100", "flow"},
	}
	for _, tt := range tests {
		res := run(sample(), nil, "", strings.Fields(tt.args)...)
		if want := shows(tt.same); res.status != exitOK || res.stdout != want {
			t.Errorf("pgsteer %s: status %d, %s%s", tt.args, res.status, res.stdout, res.stderr)
		}
	}
	for _, args := range []string{"-j b s", "b -j s", "b s -j", "b s --json", "-json b"} {
		res := run(sample(), nil, "", strings.Fields(args)...)
		if want := run(sample(), nil, "", "-j", "backend"); res.stdout != want.stdout || res.status != exitOK {
			t.Errorf("pgsteer %s: status %d, %s%s", args, res.status, res.stdout, res.stderr)
		}
	}
	for _, args := range []string{"version", "-V", "--version", "-version", "ver"} {
		if res := run(nil, errors.New("must not open"), "", args); res.status != exitOK || !strings.HasPrefix(res.stdout, "pgsteer ") {
			t.Errorf("pgsteer %s: status %d, %s%s", args, res.status, res.stdout, res.stderr)
		}
	}
	if res := run(nil, nil, "", "version", "-j"); !strings.HasPrefix(res.stdout, `{"version":"`) {
		t.Errorf("version -j: %s", res.stdout)
	}
	for _, args := range []string{"help", "-h", "--help", "h"} {
		if res := run(nil, nil, "", args); res.status != exitOK || res.stdout != usage() {
			t.Errorf("pgsteer %s: status %d, %s%s", args, res.status, res.stdout, res.stderr)
		}
	}
	for _, args := range []string{"flow help", "f h", "flow -h", "flow show --help", "flow whois -h"} {
		if res := run(nil, nil, "", strings.Fields(args)...); res.status != exitOK || !strings.HasPrefix(res.stdout, "flow: ") {
			t.Errorf("pgsteer %s: status %d, %s%s", args, res.status, res.stdout, res.stderr)
		}
	}
}

func TestPinPath(t *testing.T) {
	tests := []struct{ env, args, want string }{
		{"", "vip", "/sys/fs/bpf/pgsteer"},
		{"/env", "vip", "/env"},
		{"/env", "vip --pin-path /option", "/option"},
		{"", "--pin-path=/option vip", "/option"},
	}
	for _, tt := range tests {
		if res := run(sample(), nil, tt.env, strings.Fields(tt.args)...); res.pinPath != tt.want {
			t.Errorf("env %q, %s: opened %q, want %q", tt.env, tt.args, res.pinPath, tt.want)
		}
	}
}

func TestErrors(t *testing.T) {
	pathErr := func(err error) error { return &fs.PathError{Op: "open", Path: "/p", Err: err} }
	broken := func(change func(*fixture)) *fixture {
		f := sample()
		change(f)
		return f
	}
	tests := []struct {
		name    string
		args    string
		reader  *fixture
		openErr error
		status  int
		stderr  string
	}{
		{"no words", "", nil, nil, exitUsage, "no object given; see pgsteer help"},
		{"object", "pool show", nil, nil, exitUsage, `unknown object "pool"; want one of service, backend, flow, vip, sync, notify, counter, audit, capture, doctor, config, keygen, help, version`},
		{"ambiguous", "v", nil, nil, exitUsage, `object "v" is ambiguous: vip or version`},
		{"empty object", "''", nil, nil, exitUsage, `unknown object ""; want one of service, backend, flow, vip, sync, notify, counter, audit, capture, doctor, config, keygen, help, version`},
		{"command", "flow dump", nil, nil, exitUsage, `unknown command "dump"; want one of help, show, list, whois`},
		{"argument", "vip show 1", nil, nil, exitUsage, `vip show: it takes no argument, but "1" was given`},
		{"option", "flow --jason", nil, nil, exitUsage, "unknown option --jason; see pgsteer help"},
		{"option value", "flow --json=yes", nil, nil, exitUsage, "option --json=yes takes no value"},
		{"pin path", "flow --pin-path", nil, nil, exitUsage, "option --pin-path needs a path"},
		{"empty pin path", "flow --pin-path=", nil, nil, exitUsage, "option --pin-path needs a path"},
		{
			"no pins", "flow", nil, fmt.Errorf("opening: %w", xdp.ErrNoPins), exitFailure,
			"no pinned maps in /sys/fs/bpf/pgsteer: either pgsteerd has never run on this node, or its xdp.pin_path is another (use --pin-path)",
		},
		{
			"permission", "flow", nil, pathErr(fs.ErrPermission), exitFailure,
			"no permission to read the pinned maps in /sys/fs/bpf/pgsteer: run as root or with CAP_BPF and CAP_DAC_READ_SEARCH",
		},
		{"open", "flow", nil, errors.New("odd"), exitFailure, "opening the pinned maps in /sys/fs/bpf/pgsteer: odd"},
		{"stats", "vip", broken(func(f *fixture) { f.statsErr = errors.New("odd") }), nil, exitFailure, "reading the pinned maps: odd"},
		{"socket", "--socket", nil, nil, exitUsage, "option --socket needs a path"},
		{"flows", "flow", broken(func(f *fixture) { f.flowsErr = errors.New("odd") }), nil, exitFailure, "reading the flow table: odd"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			args := strings.Fields(tt.args)
			for i, a := range args {
				args[i] = strings.Trim(a, "'")
			}
			res := run(tt.reader, tt.openErr, "", args...)
			if res.status != tt.status || res.stderr != "pgsteer: "+tt.stderr+"\n" {
				t.Errorf("status %d, stderr %q", res.status, res.stderr)
			}
			if tt.reader != nil && tt.reader.closed != 1 {
				t.Errorf("the reader was closed %d times", tt.reader.closed)
			}
			res = run(tt.reader, tt.openErr, "", append(args, "-j")...)
			var v map[string]string
			if err := json.Unmarshal([]byte(res.stderr), &v); err != nil || v["error"] != tt.stderr && tt.name != "no words" {
				t.Errorf("with -j: %q, %v", res.stderr, err)
			}
		})
	}
}

// TestBrokenFlowsJSON checks that an interrupted list cannot be taken for a
// complete one.
func TestBrokenFlowsJSON(t *testing.T) {
	f := sample()
	f.flowsErr = errors.New("table changed")
	res := run(f, nil, "", "flow", "-j")
	if res.status != exitFailure || json.Valid([]byte(res.stdout)) || !strings.HasPrefix(res.stdout, `[{"client":`) {
		t.Errorf("status %d, stdout %s", res.status, res.stdout)
	}
}

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errors.New("no space left on device") }

func TestWriteErrors(t *testing.T) {
	for _, args := range []string{"flow", "flow -j", "flow show sort age", "backend", "backend -j", "audit", "audit -j", "version", "help"} {
		var stderr bytes.Buffer
		tl := tool{
			stdout: fullDisk{}, stderr: &stderr,
			getenv: func(string) string { return "" },
			open:   func(string) (reader, error) { return sample(), nil },
		}
		if status := tl.run(t.Context(), strings.Fields(args)); status != exitFailure || !strings.Contains(stderr.String(), "no space left on device") {
			t.Errorf("pgsteer %s: status %d, stderr %q", args, status, stderr.String())
		}
	}
}
