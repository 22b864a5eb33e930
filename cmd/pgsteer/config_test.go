package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pgsteer/pgsteer/pkg/config"
)

func TestConfigCheck(t *testing.T) {
	write := func(name, text string) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good, bad := write("good.yaml", config.Minimal), write("bad.yaml", strings.Replace(config.Minimal, "vrid: 51", "vrid: 0", 1))
	for _, tt := range []struct {
		args           []string
		status         int
		stdout, stderr string
	}{
		{[]string{"config", "check", good}, exitOK, good + ": configuration is valid\n", ""},
		{[]string{"config", "check", good, "-j"}, exitOK, `{"file":"` + good + `","node":"lb1","valid":true}` + "\n", ""},
		{[]string{"conf", "c", bad}, exitFailure, "", "pgsteer: " + bad + ":9: virtual_routers[0].vrid: 0 is out of range; want 1 to 255\n"},
		{[]string{"config", "check", "/nonexistent"}, exitFailure, "", "pgsteer: reading the configuration: open /nonexistent: no such file or directory\n"},
		{[]string{"config", "check", good, bad}, exitUsage, "", "pgsteer: config check: nothing may follow the file, but \"" + bad + "\" was given\n"},
		{[]string{"config", "check", ""}, exitUsage, "", "pgsteer: config check: the name of the file is empty\n"},
	} {
		res := run(nil, nil, "", tt.args...)
		if res.status != tt.status || res.stdout != tt.stdout || res.stderr != tt.stderr {
			t.Errorf("pgsteer %q: status %d\n%s%s", tt.args, res.status, res.stdout, res.stderr)
		}
	}
}
