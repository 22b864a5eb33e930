package connect

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/bench"
)

// TestMain is the load generator when it is called as one.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == GeneratorCommand {
		if err := Generate(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	flag.Parse()
	os.Exit(m.Run())
}

// TestSuite measures for two seconds. Which of the two is faster is not asked.
func TestSuite(t *testing.T) {
	if testing.Short() || os.Geteuid() != 0 {
		t.Skip("only root can raise a lab, and it takes its time, which -short does not leave")
	}
	bin := t.TempDir()
	build := exec.Command("go", "build", "-buildvcs=false", "-o", bin+"/", "./cmd/pgsteerd", "./cmd/pgsteer-pooler")
	build.Dir = filepath.Join("..", "..", "..")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the programs: %v\n%s", err, out)
	}
	s := Suite(Options{Rounds: 2, Slice: 400 * time.Millisecond, Sustained: 400 * time.Millisecond, Workers: 4, BinDir: bin})
	var got []bench.Result
	if err := s.Run(t.Context(), s.Names, t.Logf, func(r bench.Result) { got = append(got, r) }); err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 {
		t.Fatalf("%d rows", len(got))
	}
	r := got[0]
	if r.Name != connectRate || r.Runs != 2 || r.Value <= 0 || r.PeerValue <= 0 || r.Ratio <= 0 {
		t.Errorf("%+v", r)
	}
	if r.Extra["failed"] != 0 || r.Extra["peer_failed"] != 0 {
		t.Errorf("%v sessions failed, and %v through the peer", r.Extra["failed"], r.Extra["peer_failed"])
	}
	// A session through XDP costs its programs some microseconds; nothing at
	// all would mean that it went another way.
	if r.Extra["balancer_cpu_us"] <= 0 || r.Extra["machine_cpu_us"] <= r.Extra["balancer_cpu_us"] {
		t.Errorf("CPU a session: %v us of the balancer's, %v us of the machine's", r.Extra["balancer_cpu_us"], r.Extra["machine_cpu_us"])
	}
}

func TestTimes(t *testing.T) {
	for name, read := range map[string]func() (time.Duration, error){
		"process": func() (time.Duration, error) { return processTime(os.Getpid()) },
		"machine": machineTime,
	} {
		before, err := read()
		if err != nil {
			t.Fatal(err)
		}
		for begin := time.Now(); time.Since(begin) < 10*time.Second; {
			after, err := read()
			if err != nil {
				t.Fatal(err)
			}
			if after > before {
				before = -1
				break
			}
		}
		if before != -1 {
			t.Errorf("%s: no time went by while this test did nothing but look", name)
		}
	}
	if _, err := processTime(1 << 30); err == nil {
		t.Error("a process that does not exist has a CPU time")
	}
	if _, err := ticks([]byte("1"), []byte("x")); err == nil {
		t.Error("a letter passed for a number")
	}
}
