package capture

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// childPins has the pin path in the environment of TestKilled's child.
const childPins = "PGSTEER_CAPTURE_TEST_PINS"

// tracing is how many programs of a capture are on a program: its entry and its
// exit.
const tracing = 2

// A capture that is killed leaves nothing on the program.
func TestKilled(t *testing.T) {
	f := newFixture(t)
	f.balance()
	c := f.open(Config{})
	program := c.Program()
	if n := f.tracers(program); n != tracing {
		t.Errorf("%d links on the program while a capture is open, want %d", n, tracing)
	}
	f.must(c.Close())
	f.until("a closed capture is gone", func() bool { return f.tracers(program) == 0 })

	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), childPins+"="+f.config.PinPath)
	stdout, err := child.StdoutPipe()
	f.must(err)
	f.must(child.Start())
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if n := f.tracers(program); n != tracing || err != nil || !strings.HasPrefix(line, "capturing") {
		t.Errorf("%d links on the program, want %d; the child says %q, %v", n, tracing, line, err)
	}
	f.must(child.Process.Kill())
	_ = child.Wait() // tells that it was killed
	f.until("a killed capture is gone", func() bool { return f.tracers(program) == 0 })
}

// TestMain captures until it is killed when it runs as the child.
func TestMain(m *testing.M) {
	pins := os.Getenv(childPins)
	if pins == "" {
		os.Exit(m.Run())
	}
	c, err := Open(Config{PinPath: pins})
	if err == nil {
		fmt.Println("capturing on", c.Interface())
		err = c.Run(context.Background(), &kept{})
	}
	fmt.Println("ended:", err)
	os.Exit(1)
}

// tracers counts the links of tracing programs on an XDP program.
func (f *fixture) tracers(program uint32) (n int) {
	f.t.Helper()
	// A link of anybody's that is being made cannot be looked at for a moment.
	f.until("all links can be looked at", func() bool {
		links := &link.Iterator{}
		defer links.Close()
		n = 0
		for links.Next() {
			info, err := links.Link.Info()
			f.must(err)
			if tracing := info.Tracing(); tracing != nil && tracing.TargetObjectId == program {
				n++
			}
		}
		if err := links.Err(); !errors.Is(err, unix.EAGAIN) {
			f.must(err)
			return true
		}
		return false
	})
	return n
}
