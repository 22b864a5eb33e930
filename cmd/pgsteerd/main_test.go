package main

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pgsteer/pgsteer/pkg/config"
	"github.com/pgsteer/pgsteer/pkg/doctor"
)

func writeConfig(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "lb1.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRun(t *testing.T) {
	good := writeConfig(t, config.Minimal)
	bad := writeConfig(t, strings.Replace(config.Minimal, "vrid: 51", "vrid: 0", 1))
	tests := []struct {
		name           string
		args           []string
		status         int
		stdout, stderr string
	}{
		{"help", []string{"-h"}, exitOK, usageText, ""},
		{"version", []string{"-version"}, exitOK, "pgsteerd " + version() + "\n", ""},
		{"check", []string{"-config", good, "-check"}, exitOK, good + ": configuration is valid\n", ""},
		{"check bad", []string{"-check", "-config", bad}, exitUsage, "", "pgsteerd: " + bad + ":9: virtual_routers[0].vrid: 0 is out of range; want 1 to 255\n"},
		{"bad", []string{"-config", bad}, exitUsage, "", "pgsteerd: " + bad + ":9: virtual_routers[0].vrid: 0 is out of range; want 1 to 255\n"},
		{"detach bad", []string{"-config", bad, "-detach"}, exitUsage, "", "pgsteerd: " + bad + ":9: virtual_routers[0].vrid: 0 is out of range; want 1 to 255\n"},
		{"absent", []string{"-config", "/nonexistent"}, exitUsage, "", "pgsteerd: reading the configuration: open /nonexistent: no such file or directory\n"},
		{"no config", nil, exitUsage, "", "pgsteerd: no configuration given; see pgsteerd -help\n"},
		{"argument", []string{"-config", good, "start"}, exitUsage, "", "pgsteerd: unexpected argument \"start\"; see pgsteerd -help\n"},
		{"flag", []string{"-daemon"}, exitUsage, "", "pgsteerd: flag provided but not defined: -daemon\n"},
		{"both", []string{"-config", good, "-check", "-detach"}, exitUsage, "", "pgsteerd: -check and -detach exclude each other\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			status := run(tt.args, &stdout, &stderr)
			if status != tt.status || stdout.String() != tt.stdout || stderr.String() != tt.stderr {
				t.Errorf("status %d\nstdout %q\nstderr %q", status, stdout.String(), stderr.String())
			}
		})
	}
}

// TestRunRefuses checks that the daemon ends before it touches anything when
// it cannot work: without privilege for want of capabilities, with it for want
// of the interface.
func TestRunRefuses(t *testing.T) {
	path := writeConfig(t, strings.Replace(config.Minimal, "eth0", "no-such-device", 1))
	want := "missing the capabilit"
	if doctor.Capabilities() == nil {
		want = "interface no-such-device does not exist; this node has "
	}
	var stdout, stderr bytes.Buffer
	if status := run([]string{"-config", path}, &stdout, &stderr); status != exitFailure {
		t.Errorf("status %d", status)
	}
	if !strings.Contains(stderr.String(), want) || strings.Count(stderr.String(), "\n") != 1 {
		t.Errorf("stderr %q, want one line with %q", stderr.String(), want)
	}
}

// TestInterface uses the loopback interface, the one that is everywhere, whose
// address the configuration would refuse as a source.
func TestInterface(t *testing.T) {
	cfg, err := config.Parse("x", []byte(strings.Replace(config.Minimal, "eth0", "lo", 1)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := net.InterfaceByName("lo"); err != nil {
		t.Skip("no loopback interface here")
	}
	err = doctor.Interface(cfg.Interface, sources(cfg))
	if err == nil || !strings.HasPrefix(err.Error(), "virtual router main: its source 192.168.1.10 is not an address of lo, which has ") {
		t.Errorf("got %v", err)
	}
}

func TestLockPins(t *testing.T) {
	dir := t.TempDir()
	if f, err := lockPins(filepath.Join(dir, "none")); f != nil || err != nil {
		t.Errorf("absent directory: %v, %v", f, err)
	}
	first, err := lockPins(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockPins(dir); err == nil || err.Error() != "another pgsteerd is running with the pin directory "+dir {
		t.Errorf("second lock: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := lockPins(dir)
	if err != nil {
		t.Fatalf("lock is not free: %v", err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

func TestLogger(t *testing.T) {
	for _, tt := range []struct {
		log  config.Log
		want string
	}{
		{config.Log{Level: "info", Format: "text"}, `msg="a b" k=1`},
		{config.Log{Level: "info", Format: "json"}, `"msg":"a b","k":1}`},
		{config.Log{Level: "warn", Format: "text"}, ""},
		{config.Log{Level: "error", Format: "json"}, ""},
		{config.Log{Level: "debug", Format: "text"}, `msg="a b" k=1`},
	} {
		var b bytes.Buffer
		newLogger(tt.log, &b).Info("a b", "k", 1)
		if !strings.Contains(b.String(), tt.want) || tt.want == "" && b.Len() > 0 {
			t.Errorf("%+v: %q", tt.log, b.String())
		}
	}
}
