package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pgsteer/pgsteer/pkg/config/bouncer"
)

// TestLogFile: lines go to the file too, which is opened anew by a reload; one
// that cannot be opened changes nothing.
func TestLogFile(t *testing.T) {
	var stderr bytes.Buffer
	l := &logs{stderr: &stderr}
	log := l.logger()
	path := filepath.Join(t.TempDir(), "log")
	c := bouncer.Config{LogFile: path}
	configure := func() {
		t.Helper()
		if err := l.configure(&c); err != nil {
			t.Fatal(err)
		}
	}
	log.Info("zero")
	configure()
	log.Info("one")
	log.Debug("unseen")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	c.Verbose = 1
	configure()
	log.Debug("two")
	c.LogFile = filepath.Join(path, "x")
	if err := l.configure(&c); err == nil {
		t.Error("a file below a file was opened")
	}
	log.Info("three")
	c.LogFile = ""
	configure()
	log.Info("four")
	for file, want := range map[string]string{path + ".1": "one", path: "two three"} {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got := messages(string(data)); got != want {
			t.Errorf("%s has %q, want %q", file, got, want)
		}
	}
	if got := messages(stderr.String()); got != "zero one two three four" {
		t.Errorf("standard error has %q", got)
	}
}

// messages returns the words behind msg=.
func messages(text string) string {
	var list []string
	for line := range strings.Lines(text) {
		_, msg, _ := strings.Cut(strings.TrimSpace(line), "msg=")
		list = append(list, msg)
	}
	return strings.Join(list, " ")
}

// TestPIDFile: a stale file is replaced, one of a living process is not.
func TestPIDFile(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	path := filepath.Join(t.TempDir(), "pid")
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Skip(err)
	}
	for _, stale := range []string{fmt.Sprintf("%d\n", cmd.Process.Pid), "nonsense"} {
		if err := os.WriteFile(path, []byte(stale), 0o644); err != nil {
			t.Fatal(err)
		}
		remove, err := writePID(path, false, log)
		if err != nil {
			t.Fatal(err)
		}
		if data, _ := os.ReadFile(path); string(data) != fmt.Sprintf("%d\n", os.Getpid()) {
			t.Errorf("file has %q", data)
		}
		remove()
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("it is there still: %v", err)
		}
	}
	if err := os.WriteFile(path, []byte("1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := writePID(path, false, log); err == nil || !strings.Contains(err.Error(), "another instance running?") {
		t.Errorf("init's file: %v", err)
	}
}

// TestBecome changes the user in a process of its own.
func TestBecome(t *testing.T) {
	if os.Getenv("POOLER_TEST_USER") != "" {
		fmt.Println(become(os.Getenv("POOLER_TEST_USER")), os.Getuid())
		return
	}
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	for name, want := range map[string]string{"nobody": "<nil> 65534", "root": "<nil> 0", "no-such-user": "unknown user"} {
		cmd := exec.Command(os.Args[0], "-test.run", "^TestBecome$")
		cmd.Env = append(os.Environ(), "POOLER_TEST_USER="+name)
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%s: %v\n%s, want %s", name, err, out, want)
		}
	}
}
