package lab_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lab"
	"github.com/pgsteer/pgsteer/pkg/lab/load"
	"github.com/pgsteer/pgsteer/pkg/lb"
)

// testPoolerKilled: a dead pooler is marked down after three failed checks,
// takes nobody else along, and comes back.
func testPoolerKilled(t *testing.T, l *lab.Lab) {
	const victim = "pooler2"
	owner := active(t, l)
	held, err := load.Hold(within(t, time.Minute), 30, connector(t, l))
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if err := l.Kill(victim); err != nil {
		t.Fatal(err)
	}
	killed := time.Now()
	// Nobody knows yet. It has the fewest connections and is asked first, but
	// whoever it refuses is taken to another without noticing.
	early, err := load.Hold(within(t, time.Minute), 20, connector(t, l))
	if err != nil {
		t.Fatalf("connecting just after %s died: %v", victim, err)
	}
	early.Close()
	redispatched(t, l, owner)
	if err := l.WaitBackends(within(t, 10*time.Second), lb.Down, victim); err != nil {
		t.Fatal(err)
	}
	t.Logf("marked down after %v", time.Since(killed))
	// Three checks 500 ms apart: the first may come at once, the others take
	// their time. Anything much sooner would be rash.
	if d := time.Since(killed); d < 900*time.Millisecond {
		t.Errorf("marked down after %v already", d)
	}
	if lost := held.Lost(t.Context()); lost != 10 {
		t.Errorf("%d of 30 connections are lost, want the 10 of %s", lost, victim)
	}
	// Who goes is counted until the pooler has closed, too: a slow one's place
	// would be given to somebody else's.
	eventually(t, 10*time.Second, func() error {
		n, err := counts(l, owner)
		if err == nil && !slices.Equal(n, []int64{10, 0, 10}) {
			err = fmt.Errorf("%s counts %v connections", owner, n)
		}
		return err
	})
	more, err := load.Hold(within(t, time.Minute), 20, connector(t, l))
	if err != nil {
		t.Fatalf("connecting while %s is down: %v", victim, err)
	}
	defer more.Close()
	n, err := counts(l, owner)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(n, []int64{20, 0, 20}) {
		t.Errorf("with %s down connections are spread as %v", victim, n)
	}
	if err := l.Start(within(t, 20*time.Second), victim); err != nil {
		t.Fatal(err)
	}
	if err := l.WaitBackends(within(t, 10*time.Second), lb.Up, victim); err != nil {
		t.Fatal(err)
	}
	more.Close()
	held.Close()
	quiet(t, l, owner)
}

// redispatched looks in the counters for connections that were taken from a
// backend that refused them, each at the first attempt.
func redispatched(t *testing.T, l *lab.Lab, balancer string) {
	t.Helper()
	stats, err := l.Datapath(balancer)
	if err != nil {
		t.Fatal(err)
	}
	counts := make(map[string]uint64)
	for _, v := range stats.Verdicts {
		counts[v.Name] = v.Count
	}
	if counts["tx_redispatch_refused"] == 0 || counts["drop_reply"] != 0 {
		t.Errorf("%d connections were moved, %d could not be", counts["tx_redispatch_refused"], counts["drop_reply"])
	}
}

// testPoolerFrozen: a pooler that hangs keeps its connections and answers
// nobody. Its clients are told as soon as it is marked down, and need not wait
// for their own time-outs.
func testPoolerFrozen(t *testing.T, l *lab.Lab) {
	const victim = "pooler3"
	owner := active(t, l)
	held, err := load.Hold(within(t, time.Minute), 30, connector(t, l))
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if err := l.Stop(victim); err != nil {
		t.Fatal(err)
	}
	frozen := time.Now()
	lost := held.Lost(t.Context()) // each asks, and waits for 5 s at most
	told := time.Since(frozen)
	if lost != 10 || told > 4500*time.Millisecond {
		t.Errorf("%d of 30 connections are lost, want the 10 of %s; they were told after %v", lost, victim, told)
	}
	t.Logf("told after %v", told)
	// The driver sends cancel requests for what it lost, which take a moment.
	eventually(t, 10*time.Second, func() error {
		n, err := counts(l, owner)
		if err == nil && !slices.Equal(n, []int64{10, 10, 0}) {
			err = fmt.Errorf("with %s frozen connections are spread as %v", victim, n)
		}
		return err
	})
	if err := l.Cont(victim); err != nil {
		t.Fatal(err)
	}
	if err := l.WaitBackends(within(t, 10*time.Second), lb.Up, victim); err != nil {
		t.Fatal(err)
	}
	held.Close()
	quiet(t, l, owner)
}

// testDatabaseKilled: when the database dies and returns, so does the service.
func testDatabaseKilled(t *testing.T, l *lab.Lab) {
	if err := l.Kill(lab.Postgres); err != nil {
		t.Fatal(err)
	}
	if running, err := l.Running(lab.Postgres); err != nil || running {
		t.Fatalf("a killed database runs: %v, %v", running, err)
	}
	if err := l.Start(within(t, 30*time.Second), lab.Postgres); err != nil {
		t.Fatal(err)
	}
	connect := connector(t, l)
	eventually(t, 20*time.Second, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		conn, err := connect(ctx)
		if err != nil {
			return err
		}
		return conn.Close(ctx)
	})
}

// failover measures what a fault of the active balancer does to the service,
// and watches that the VIPs never have two owners.
func failover(t *testing.T, l *lab.Lab, fault func(victim string) error) (victim string, o load.Outage) {
	t.Helper()
	w := watch(t, l)
	defer w.end()
	return outage(t, l, fault)
}

// outage measures what a fault of the active balancer does to the service. Who
// is connected may not notice.
func outage(t *testing.T, l *lab.Lab, fault func(victim string) error) (victim string, o load.Outage) {
	t.Helper()
	victim = active(t, l)
	bothSynced(t, l)
	held, err := load.Hold(within(t, time.Minute), 30, connector(t, l))
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	at := time.Now()
	o = probed(t, l, func() error { return fault(victim) }, func() {
		eventually(t, 10*time.Second, func() error {
			owners, err := l.Owners()
			if err == nil && !slices.Contains(owners, other(victim)) {
				err = fmt.Errorf("the VIP is held by %v", owners)
			}
			return err
		})
		t.Logf("%s took over within %v of the fault", other(victim), time.Since(at))
	}, lab.Service)[0]
	eventually(t, 10*time.Second, func() error {
		n, err := counts(l, other(victim))
		if err == nil && !slices.Equal(n, []int64{10, 10, 10}) {
			err = fmt.Errorf("%s counts 30 connections as %v", other(victim), n)
		}
		return err
	})
	if lost := held.Lost(t.Context()); lost != 0 {
		t.Errorf("%d of 30 connections are lost", lost)
	}
	return victim, o
}

// probed has new clients come to each address while something changes, until
// settled returns and a moment longer, and returns what they have seen of it.
func probed(t *testing.T, l *lab.Lab, change func() error, settled func(), addresses ...string) (seen []load.Outage) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer func() { cancel(); running.Wait() }()
	var probers []*load.Prober
	begin := time.Now()
	for _, address := range addresses {
		p := &load.Prober{
			Try:   load.Answer(l.DialContext(lab.Client), address, lab.Database, lab.Database),
			Every: 10 * time.Millisecond, Timeout: load.AttemptTimeout,
		}
		running.Go(func() { p.Run(ctx) })
		if err := p.AwaitSuccess(within(t, 10*time.Second), begin); err != nil {
			t.Fatal(err)
		}
		probers = append(probers, p)
	}
	at := time.Now()
	if err := change(); err != nil {
		t.Fatal(err)
	}
	settled()
	after := time.Now()
	for i, p := range probers {
		// Attempts that were made before this and lost have failed by then.
		if err := p.AwaitSuccess(within(t, 10*time.Second), after.Add(load.AttemptTimeout)); err != nil {
			t.Fatal(err)
		}
		o, err := load.OutageSince(p.Attempts(), at)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: no answer for %v; %d of %d attempts failed, the last within %v", addresses[i], o.Gap, o.Failed, o.Attempts, o.Lasted)
		seen = append(seen, o)
	}
	return seen
}

// testActiveKilled: the daemon dies; its program stays, but its lease runs out
// before the peer takes over.
func testActiveKilled(t *testing.T, l *lab.Lab) {
	victim, o := failover(t, l, l.Kill)
	// 3 advertisements and a skew of 156/256 of one (RFC 9568 section 6.1)
	// are 361 ms; the rest is for a busy machine.
	if o.Lasted > 2*time.Second {
		t.Errorf("the VIP did not answer for %v", o.Lasted)
	}
	// The dead daemon's node still has the address on its interface. Its
	// program must keep the kernel from answering for it.
	answers := arpAnswers(t, l, vip)
	addr, err := lab.HardwareAddr(other(victim))
	if err != nil {
		t.Fatal(err)
	}
	if len(answers) != 1 || answers[0] != addr.String() {
		t.Errorf("asked by ARP who has the VIP, %v answered; want %v only", answers, addr)
	}
	if err := l.Start(within(t, 20*time.Second), victim); err != nil {
		t.Fatal(err)
	}
	quiet(t, l, other(victim))
	// It has been told of those that ended before it was back.
	quiet(t, l, victim)
	// The one that returns leaves the VIP where it is.
	if owner := active(t, l); owner != other(victim) {
		t.Errorf("%s took the VIP back", owner)
	}
}

// testActiveResigns: SIGTERM gives the VIP away at once.
func testActiveResigns(t *testing.T, l *lab.Lab) {
	_, o := failover(t, l, l.Terminate)
	if o.Lasted > time.Second {
		t.Errorf("the VIP did not answer for %v", o.Lasted)
	}
}

// testActiveFrozen: a daemon that hangs keeps its sockets and its address, and
// must not serve any more. When it goes on, it finds that it is not active.
func testActiveFrozen(t *testing.T, l *lab.Lab) {
	w := watch(t, l)
	victim, o := outage(t, l, l.Stop)
	if o.Lasted > 2*time.Second {
		t.Errorf("the VIP did not answer for %v", o.Lasted)
	}
	s, err := lab.GetStatus(l.Name())
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(s.Processes, func(p lab.ProcessStatus) bool { return p.Name == lab.Daemon(victim) })
	if s.Processes[i].State != "stopped" || s.Healthy() {
		t.Errorf("the frozen daemon is shown as %+v", s.Processes[i])
	}
	if err := l.Cont(victim); err != nil {
		t.Fatal(err)
	}
	// It has become the backup when it has given up the address.
	eventually(t, 10*time.Second, func() error {
		if out := command(t, l, victim, "ip", "-br", "address", "show", "dev", "eth0"); strings.Contains(out, vip+"/") {
			return fmt.Errorf("%s still has the address: %s", victim, out)
		}
		return nil
	})
	w.end()
	if owner := active(t, l); owner != other(victim) {
		t.Errorf("%s is active after it was woken up", owner)
	}
}

// testActiveCutOff: both balancers live, but the active one's cable is pulled.
func testActiveCutOff(t *testing.T, l *lab.Lab) {
	// It takes a moment to find that it is alone, so both hold the VIP for that
	// long, each on its side.
	victim, o := outage(t, l, l.Cut)
	if o.Lasted > 2*time.Second {
		t.Errorf("the VIP did not answer for %v", o.Lasted)
	}
	if err := l.Heal(victim); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, func() error {
		owners, err := l.Owners()
		if err != nil {
			return err
		}
		if len(owners) != 1 {
			return fmt.Errorf("%v answer for the VIP", owners)
		}
		return nil
	})
	// Whoever of the two goes on, it may have to find the poolers first.
	if err := l.WaitBackends(within(t, 10*time.Second), lb.Up, lab.Poolers()...); err != nil {
		t.Fatal(err)
	}
	conn, err := connector(t, l)(within(t, 10*time.Second))
	if err != nil {
		t.Fatalf("connecting after the cable was plugged in again: %v", err)
	}
	if err := conn.Close(t.Context()); err != nil {
		t.Error(err)
	}
}
