package pooling

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/bench"
)

// TestSuite measures a row of each kind shortly. How the two compare is not asked.
func TestSuite(t *testing.T) {
	if testing.Short() || os.Getuid() != 0 {
		t.Skip("runs PostgreSQL and two poolers as another user, which needs root and half a minute")
	}
	for _, program := range []string{"/usr/sbin/pgbouncer", "/usr/bin/taskset"} {
		if _, err := os.Stat(program); err != nil {
			t.Skip(err)
		}
	}
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "pgsteer-pooler"), "github.com/pgsteer/pgsteer/cmd/pgsteer-pooler")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	s := Suite(Options{Rounds: 1, Slice: time.Second, Idle: 300, BinDir: dir})
	var got []bench.Result
	names := []string{"pooler.cpu.simple.8", "pooler.cpu.prepared.256", "pooler.cpu.stream", "pooler.connect_rate", "pooler.p99.4000", "pooler.rss.idle4000"}
	if err := s.Run(t.Context(), names, t.Logf, func(r bench.Result) { got = append(got, r) }); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if !slices.Contains(s.Names, name) {
			t.Errorf("there is no row %s", name)
		}
		i := slices.IndexFunc(got, func(r bench.Result) bool { return r.Name == name })
		if i < 0 || got[i].Runs != 1 || got[i].Ratio <= 0 {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestCheck(t *testing.T) {
	if err := DefaultOptions.Check(); err != nil {
		t.Error(err)
	}
	for _, o := range []Options{{0, time.Second, 4000, ""}, {1, time.Millisecond, 4000, ""}, {1, time.Second, 10, ""}, {1, time.Second, 5000, ""}} {
		if o.Check() == nil {
			t.Errorf("%+v was taken", o)
		}
	}
}
