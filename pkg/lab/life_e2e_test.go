package lab_test

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lab"
)

// testUpAgain: up brings back what has died or was stopped or cut off, and
// keeps the rest.
func testUpAgain(t *testing.T, l *lab.Lab) {
	pid := func(process string) int {
		s, err := lab.GetStatus(l.Name())
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(s.Processes, func(p lab.ProcessStatus) bool { return p.Name == process })
		return s.Processes[i].PID
	}
	database, pooler := pid(lab.Postgres), pid("pooler1")
	command(t, l, lab.Client, "psql", "-XAtc", "create table kept (i int)")
	if err := errors.Join(l.Kill("pooler1"), l.Stop("pooler3"), l.Cut(lab.LB2)); err != nil {
		t.Fatal(err)
	}
	if s, err := lab.GetStatus(l.Name()); err != nil || s.Healthy() {
		t.Errorf("a broken lab is healthy, %v", err)
	}
	// A new build is run, too.
	now := time.Now()
	if err := os.Chtimes(filepath.Join(binDir, "pgsteerd"), now, now); err != nil {
		t.Fatal(err)
	}
	daemon := pid(lab.Daemon(lab.LB1))
	if _, err := lab.Up(t.Context(), quickOptions("")); err != nil {
		t.Fatal(err)
	}
	if pid(lab.Daemon(lab.LB1)) == daemon {
		t.Error("up did not start the daemon that was built anew")
	}
	if s, err := lab.GetStatus(l.Name()); err != nil || !s.Healthy() {
		t.Errorf("after up the lab is not healthy: %+v, %v", s, err)
	}
	if pid(lab.Postgres) != database || pid("pooler1") == pooler {
		t.Error("up did not start the dead process, or not only that")
	}
	if got := command(t, l, lab.Client, "psql", "-XAtc", "select count(*) from kept"); got != "0\n" {
		t.Errorf("the table is gone: %q", got)
	}
}

// testAnotherLab raises a second lab beside the first one, breaks off raising
// it in both ways, and removes it, none of which the first one notices.
func testAnotherLab(t *testing.T, l *lab.Lab) {
	first := command(t, l, lab.Client, "psql", "-XAtc", "select system_identifier from pg_control_system()")
	o := quickOptions("b")
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := lab.Down(ctx, o.Name, false); err != nil {
			t.Error(err)
		}
	})

	interruptUp(t, o.Name, "network:", syscall.SIGKILL, func() {}) // while initdb runs
	interruptUp(t, o.Name, "PostgreSQL answers", syscall.SIGINT, func() {
		if err := lab.Down(t.Context(), o.Name, false); !errors.Is(err, lab.ErrBusy) {
			t.Errorf("taking down a lab that is being raised: got %v", err)
		}
	})
	if left := leftovers(o.Name); len(left) > 0 {
		t.Errorf("an interrupted up has left behind: %v", left)
	}
	interruptUp(t, o.Name, "poolers answer", syscall.SIGKILL, func() {})
	left := leftovers(o.Name)
	if !slices.ContainsFunc(left, func(s string) bool { return strings.Contains(s, "/run/netns/") }) ||
		!slices.ContainsFunc(left, func(s string) bool { return strings.HasPrefix(s, "mount ") }) ||
		!slices.ContainsFunc(left, func(s string) bool { return strings.HasPrefix(s, "process ") }) {
		t.Errorf("a killed up has left too little behind for the test to be one: %v", left)
	}
	if _, err := lab.Open(o.Name); !errors.Is(err, lab.ErrNotUp) {
		t.Errorf("opening a lab that was not completed: got %v", err)
	}

	second := raise(t, o)
	if got := command(t, second, lab.Client, "psql", "-XAtc", "select system_identifier from pg_control_system()"); got == first {
		t.Error("both labs have the same database")
	}
	if got := command(t, l, lab.Client, "psql", "-XAtc", "select system_identifier from pg_control_system()"); got != first {
		t.Errorf("the first lab's database changed to %s", got)
	}
	if err := second.Kill(active(t, second)); err != nil {
		t.Fatal(err)
	}
	if s, err := lab.GetStatus(l.Name()); err != nil || !s.Healthy() {
		t.Errorf("the first lab is not healthy any more: %+v, %v", s, err)
	}
	// Somebody's shell on a host goes with the lab.
	sleep, err := second.Command(t.Context(), lab.Client, "sleep", "1000")
	if err != nil {
		t.Fatal(err)
	}
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	if err := second.Down(within(t, time.Minute), true); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := sleep.Wait(); !errors.As(err, &exit) {
		t.Errorf("a program on a host of the removed lab ended with %v", err)
	}
	kept, err := filepath.Glob("/run/pgsteer-lab/" + o.Name + "/*")
	if err != nil || len(kept) != 1 || filepath.Base(kept[0]) != "logs" {
		t.Errorf("asked to keep the logs, down has kept %v, %v", kept, err)
	}
}

// interruptUp runs `pgsteer-lab up`, and when it has printed a line with the
// given words, calls meanwhile and sends it a signal.
func interruptUp(t *testing.T, name, words string, sig syscall.Signal, meanwhile func()) {
	t.Helper()
	cmd := exec.CommandContext(within(t, time.Minute), filepath.Join(binDir, "pgsteer-lab"), "-name", name, "up")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var complaints strings.Builder
	cmd.Stderr = &complaints
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	seen := false
	for sc := bufio.NewScanner(out); sc.Scan(); {
		if !seen && strings.Contains(sc.Text(), words) {
			seen = true
			meanwhile()
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
		}
	}
	err = cmd.Wait()
	if !seen {
		t.Fatalf("up ended without a line %q: %v\n%s", words, err, complaints.String())
	}
	if sig == syscall.SIGINT && (cmd.ProcessState.ExitCode() != 1 || complaints.String() != "pgsteer-lab: interrupted\n") {
		t.Errorf("interrupted, up ended with %v and said %q", err, complaints.String())
	}
}

// TestRefusals are the mistakes that touch nothing.
func TestRefusals(t *testing.T) {
	needLab(t)
	name := labName("r")
	for _, c := range []struct {
		name, want string
		o          lab.Options
	}{
		{"a bad name", `"Lab 1" cannot be a lab's name: 1-31 lower-case letters, digits and hyphens, not beginning with a hyphen`, lab.Options{Name: "Lab 1"}},
		{"no programs", "there is no program /nowhere/pgsteerd (build it with `make build`)", lab.Options{Name: name, BinDir: "/nowhere"}},
	} {
		if _, err := lab.Up(t.Context(), c.o); err == nil || err.Error() != c.want {
			t.Errorf("%s: got %v, want %s", c.name, err, c.want)
		}
	}
	if _, err := lab.Open(name); !errors.Is(err, lab.ErrNotUp) {
		t.Errorf("opening a lab that is not there: got %v", err)
	}
	if err := lab.Down(t.Context(), name, false); err != nil {
		t.Errorf("taking down a lab that is not there: %v", err)
	}
	if left := leftovers(name); len(left) > 0 {
		t.Errorf("refusals have left behind: %v", left)
	}
}

// TestStrangers: a namespace of the same name that the lab has not made is
// none of its business.
func TestStrangers(t *testing.T) {
	needLab(t)
	name := labName("s")
	path := "/run/netns/" + name + "-db"
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(path)
	want := "network namespace " + name + "-db exists but no pgsteer-lab made it"
	if _, err := lab.Up(t.Context(), lab.Options{Name: name, BinDir: binDir}); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %s", err, want)
	}
	if err := lab.Down(t.Context(), name, false); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %s", err, want)
	}
	if left := leftovers(name); len(left) != 1 || left[0] != path {
		t.Errorf("left: %v, want only %s", left, path)
	}
}

// TestDeadDaemon: when a process does not come up, the error names it and
// shows what it said.
func TestDeadDaemon(t *testing.T) {
	needLab(t)
	dir := t.TempDir()
	for _, program := range []string{"pgsteerd", "pgsteer-pooler"} {
		script := "#!/bin/sh\necho this is " + program + " with no wish to live\nexit 3\n"
		if err := os.WriteFile(filepath.Join(dir, program), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	name := labName("d")
	_, err := lab.Up(t.Context(), lab.Options{Name: name, BinDir: dir})
	if err == nil {
		t.Fatal("a lab with dead poolers came up")
	}
	for _, want := range []string{"starting pooler", "the process has ended", "with no wish to live"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q: %v", want, err)
		}
	}
	if left := leftovers(name); len(left) > 0 {
		t.Errorf("a failed up has left behind: %v", left)
	}
}
