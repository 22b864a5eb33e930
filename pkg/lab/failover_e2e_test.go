package lab_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/flowsync"
	"github.com/pgsteer/pgsteer/pkg/lab"
	"github.com/pgsteer/pgsteer/pkg/lb"
)

// TestLabFailover: whatever becomes of the active balancer, nobody loses a
// connection, and at no moment two are active. Each subtest begins and ends with
// lb1, which takes the addresses back when it can.
func TestLabFailover(t *testing.T) {
	o := quickOptions("fo")
	o.Balancer.Preempt = true
	o.Balancer.Established = 2 * time.Second // so that the idle ones are asked across each fault
	l := raise(t, o)
	command(t, l, lab.Client, "pgbench", "-i", "-q", "-s", "10")
	start := func() error { return l.Start(within(t, 20*time.Second), lab.LB1) }
	for _, step := range []struct {
		name string
		run  func(*testing.T, *lab.Lab)
	}{
		{"killed", fault{
			strike: func() error { return l.Kill(lab.LB1) }, gap: 2 * time.Second, mend: start,
		}.test},
		{"cut off", fault{
			strike: func() error { return l.Cut(lab.LB1) }, gap: 2 * time.Second, mend: func() error { return l.Heal(lab.LB1) },
			dark: true,
		}.test},
		{"frozen", fault{
			strike: func() error { return l.Stop(lab.LB1) }, gap: 2 * time.Second, mend: func() error { return l.Cont(lab.LB1) },
		}.test},
		{"resigns", fault{
			strike: func() error { return l.Terminate(lab.LB1) }, gap: time.Second, mend: start,
		}.test},
		{"returns", testReturns},
		{"VRRP cut", testVRRPCut},
		{"wrong key", testWrongKey},
	} {
		if ok := t.Run(step.name, func(t *testing.T) { step.run(t, l) }); !ok {
			showLogs(t, l)
		}
		if _, err := lab.Up(t.Context(), o); err != nil {
			t.Fatalf("bringing the lab back after %q: %v", step.name, err)
		}
	}
	for _, balancer := range lab.Balancers() {
		quietBoth(t, l, balancer)
	}
}

// planned bounds for how long new clients get no answer when both balancers are
// well, whether the addresses move or not: some ten milliseconds, and more on a
// busy machine.
const planned = time.Second

// A fault strikes lb1, until it is mended.
type fault struct {
	strike, mend func() error
	gap          time.Duration // for how long new clients may get no answer
	// dark says that nobody can reach lb1. Until it has noticed that, it holds the
	// addresses as well.
	dark bool
}

func (f fault) test(t *testing.T, l *lab.Lab) {
	whole(t, l)
	c := work(t, l, lab.LB1)
	var w *leases
	if !f.dark {
		w = watch(t, l)
	}
	c.through("the fault", f.gap, f.strike, func() { takenBy(t, l, lab.LB2) })
	c.counted(lab.LB2)
	audited(t, l, lab.LB1)
	if f.dark {
		stepsDown(t, l, lab.LB1)
		w = watch(t, l)
	}
	c.through("the return", planned, f.mend, func() { whole(t, l) })
	c.counted(lab.LB1)
	c.counted(lab.LB2)
	w.end()
	c.unharmed()
}

// testReturns: a balancer that was away while clients connected takes over, and
// knows them.
func testReturns(t *testing.T, l *lab.Lab) {
	whole(t, l)
	if err := l.Terminate(lab.LB1); err != nil {
		t.Fatal(err)
	}
	takenBy(t, l, lab.LB2)
	c := work(t, l, lab.LB2)
	w := watch(t, l)
	c.through("the return", planned, func() error { return l.Start(within(t, 20*time.Second), lab.LB1) }, func() { whole(t, l) })
	c.counted(lab.LB1)
	c.counted(lab.LB2)
	w.end()
	c.unharmed()
}

// testVRRPCut: a backup that hears nobody by VRRP knows from the replication
// that the other one is active, and stays where it is.
func testVRRPCut(t *testing.T, l *lab.Lab) {
	whole(t, l)
	c := work(t, l, lab.LB1)
	w := watch(t, l)
	var unmute func() error
	since := logged(t, l, lab.LB2)
	c.through("the cut", planned, func() error { unmute = muteVRRP(t, l); return nil }, func() {
		for _, router := range []string{"main", "main6"} {
			says(t, l, lab.LB2, since, `msg="not becoming active" router=`+router+" ", "active by its own account")
		}
	})
	c.counted(lab.LB1)
	c.counted(lab.LB2)
	c.through("the end of the cut", planned, unmute, func() { whole(t, l) })
	w.end()
	if w.held[lab.LB2] > 0 {
		t.Errorf("%s was active in %d of %d looks", lab.LB2, w.held[lab.LB2], w.looks)
	}
	c.unharmed()
}

// testWrongKey: a balancer that cannot learn of the connections does not take
// the addresses back, and says why.
func testWrongKey(t *testing.T, l *lab.Lab) {
	whole(t, l)
	if err := l.Terminate(lab.LB1); err != nil {
		t.Fatal(err)
	}
	takenBy(t, l, lab.LB2)
	c := work(t, l, lab.LB2)
	restore := otherKey(t, l, lab.LB1)
	w := watch(t, l)
	since := logged(t, l, lab.LB1)
	c.through("the return with a wrong key", planned, func() error { return l.Start(within(t, 20*time.Second), lab.LB1) }, func() {
		says(t, l, lab.LB1, since, `msg="no link with the peer"`, "the peer has another key")
		if err := l.WaitBackends(within(t, 10*time.Second), lb.Up, lab.Poolers()...); err != nil {
			t.Fatal(err)
		}
	})
	w.end()
	if w.held[lab.LB1] > 0 {
		t.Errorf("%s was active in %d of %d looks", lab.LB1, w.held[lab.LB1], w.looks)
	}
	c.counted(lab.LB2)
	// It is the key that kept it from that.
	again := func() error {
		return errors.Join(l.Terminate(lab.LB1), restore(), l.Start(within(t, 20*time.Second), lab.LB1))
	}
	c.through("the return with the right key", planned, again, func() { whole(t, l) })
	c.counted(lab.LB1)
	c.unharmed()
}

// otherKey gives a balancer a key of its own, until the function that it returns
// is called.
func otherKey(t *testing.T, l *lab.Lab, balancer string) (restore func() error) {
	t.Helper()
	key, err := flowsync.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	keyFile := filepath.Join(t.TempDir(), "other.key")
	if err := os.WriteFile(keyFile, key, 0o600); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join("/run/pgsteer-lab", l.Name(), "conf")
	path := filepath.Join(dir, balancer+".yaml")
	config, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	changed := bytes.Replace(config, []byte(filepath.Join(dir, "sync.key")), []byte(keyFile), 1)
	if bytes.Equal(changed, config) {
		t.Fatalf("%s names no key: %s", path, config)
	}
	restore = func() error { return os.WriteFile(path, config, 0o644) }
	t.Cleanup(func() {
		if err := restore(); err != nil {
			t.Error(err)
		}
	})
	if err := os.WriteFile(path, changed, 0o644); err != nil {
		t.Fatal(err)
	}
	return restore
}

// whole waits until lb1 is active and both balancers could be.
func whole(t *testing.T, l *lab.Lab) {
	t.Helper()
	if _, err := l.WaitActive(within(t, 20*time.Second), lab.LB1); err != nil {
		t.Fatal(err)
	}
	if err := l.WaitBackends(within(t, 10*time.Second), lb.Up, lab.Poolers()...); err != nil {
		t.Fatal(err)
	}
	bothSynced(t, l)
}

// bothSynced waits until each balancer could go on with the other one's
// connections.
func bothSynced(t *testing.T, l *lab.Lab) {
	t.Helper()
	for _, balancer := range lab.Balancers() {
		eventually(t, 10*time.Second, func() error {
			if !synced(t, l, balancer) {
				return fmt.Errorf("%s has no copy of the other one's connections", balancer)
			}
			return nil
		})
	}
}

// takenBy waits until a balancer has both VIPs, whatever the other one has.
func takenBy(t *testing.T, l *lab.Lab, balancer string) {
	t.Helper()
	eventually(t, 10*time.Second, func() error { return owns(l, balancer, true) })
}

// stepsDown waits until a balancer that is cut off has neither VIP. It allows
// itself 3 s without any sign.
func stepsDown(t *testing.T, l *lab.Lab, balancer string) {
	t.Helper()
	eventually(t, 6*time.Second, func() error { return owns(l, balancer, false) })
}

func owns(l *lab.Lab, balancer string, want bool) error {
	for _, service := range services {
		owners, err := l.OwnersOf(service)
		if err != nil {
			return err
		}
		if slices.Contains(owners, balancer) != want {
			return fmt.Errorf("the VIP of %s is held by %v", service, owners)
		}
	}
	return nil
}

// logged returns how much a balancer has logged.
func logged(t *testing.T, l *lab.Lab, balancer string) int {
	t.Helper()
	return len(logOf(t, l, balancer))
}

func logOf(t *testing.T, l *lab.Lab, balancer string) string {
	t.Helper()
	path, err := l.LogFile(balancer)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// says waits for a line with all of the words in a balancer's log, after what it
// had at an earlier time.
func says(t *testing.T, l *lab.Lab, balancer string, since int, words ...string) {
	t.Helper()
	eventually(t, 10*time.Second, func() error {
		for line := range strings.Lines(logOf(t, l, balancer)[since:]) {
			if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
				return nil
			}
		}
		return fmt.Errorf("%s has not said %q", balancer, words)
	})
}

// synced tells by a balancer's log whether it has a copy of the other one's
// connections now.
func synced(t *testing.T, l *lab.Lab, balancer string) (yes bool) {
	t.Helper()
	for line := range strings.Lines(logOf(t, l, balancer)) {
		switch {
		case strings.Contains(line, "msg=started"), strings.Contains(line, `msg="lost the link with the peer"`):
			yes = false
		case strings.Contains(line, `msg="the full copy of the peer's flows is over"`):
			yes = strings.Contains(line, "synced=true")
		}
	}
	return yes
}
