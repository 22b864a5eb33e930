package lab_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lab"
)

// binDir holds programs built for these tests, apart from those in build/bin.
// It is empty when the tests that need a lab are skipped.
var binDir string

// skipReason says why they are.
var skipReason string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	switch {
	case testing.Short():
		skipReason = "a lab takes its time, which -short does not leave"
	case os.Geteuid() != 0:
		skipReason = "only root can raise a lab"
	default:
		dir, err := os.MkdirTemp("", "pgsteer-lab-test-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		// The directory is for root alone, as a clone in /root would be.
		build := exec.Command("go", "build", "-buildvcs=false", "-o", dir+"/",
			"./cmd/pgsteerd", "./cmd/pgsteer-pooler", "./cmd/pgsteer", "./cmd/pgsteer-lab")
		build.Dir = filepath.Join("..", "..")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "building the programs: %v\n%s", err, out)
			return 1
		}
		binDir = dir
	}
	return m.Run()
}

// labName makes a name that no lab of anybody else has.
func labName(suffix string) string { return fmt.Sprintf("test%d%s", os.Getpid(), suffix) }

// needLab skips tests that need a lab where there cannot be one.
func needLab(t *testing.T) {
	t.Helper()
	if skipReason != "" {
		t.Skip(skipReason)
	}
}

// quickOptions are those of a lab that ages flows fast. Health checks are
// quicker too, so that a pooler's death costs the tests 2 s and not 6.
//
// Idle connections are asked after 5 s and not a day: what ends while its daemon
// is dead and the lease still runs is not told to the other balancer, which
// counts it until then.
func quickOptions(suffix string) lab.Options {
	return lab.Options{
		Name: labName(suffix), BinDir: binDir,
		Balancer: lab.BalancerOptions{
			SYN: 2 * time.Second, Established: 5 * time.Second, TimeWait: 2 * time.Second, FIN: 5 * time.Second, Reset: time.Second,
			SweepInterval: 200 * time.Millisecond, CheckInterval: 500 * time.Millisecond,
			LogLevel: "debug",
		},
	}
}

// raise raises a lab that goes with the test. Its logs are shown when the test
// fails.
func raise(t *testing.T, o lab.Options) *lab.Lab {
	t.Helper()
	needLab(t)
	o.Progress = func(step string) { t.Log(step) }
	l, err := lab.Up(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			showLogs(t, l)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := l.Down(ctx, false); err != nil {
			t.Errorf("taking the lab down: %v", err)
		}
		if left := leftovers(o.Name); len(left) > 0 {
			t.Errorf("the lab has left behind: %v", left)
		}
	})
	return l
}

func showLogs(t *testing.T, l *lab.Lab) {
	for _, process := range append([]string{lab.Postgres, lab.LB1, lab.LB2}, lab.Poolers()...) {
		path, err := l.LogFile(process)
		if err != nil {
			t.Log(err)
			continue
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Log(err)
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		t.Logf("the end of %s:\n%s", path, strings.Join(lines[max(0, len(lines)-40):], "\n"))
	}
}

// leftovers lists what a lab of this name may have left on the machine.
func leftovers(name string) []string {
	var left []string
	for _, pattern := range []string{
		"/run/netns/" + name + "-*", "/run/pgsteer-lab/" + name + "*", "/var/lib/pgsteer-lab/" + name + "*",
	} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			left = append(left, err.Error())
		}
		left = append(left, found...)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		left = append(left, err.Error())
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, "/"+name) {
			left = append(left, "mount "+strings.TrimSpace(line))
		}
	}
	// Command lines of the daemons name the lab's directories. Those of
	// other programs may do so as well, this test's own among them.
	cmdlines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		left = append(left, err.Error())
	}
	for _, path := range cmdlines {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // ended meanwhile
		}
		if strings.Contains(string(b), "/pgsteer-lab/"+name+"/") {
			left = append(left, fmt.Sprintf("process %s: %q", filepath.Dir(path), b))
		}
	}
	return left
}

// within returns a context for one step of a test.
func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits until cond returns nil.
func eventually(t *testing.T, limit time.Duration, cond func() error) {
	t.Helper()
	ctx := within(t, limit)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := cond()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("not within %v: %v", limit, err)
		case <-tick.C:
		}
	}
}
