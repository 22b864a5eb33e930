package lab_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/pkg/lab"
	"github.com/pgsteer/pgsteer/pkg/lab/load"
	"github.com/pgsteer/pgsteer/pkg/lb"
)

// attempt is one connection of a loop of them.
type attempt struct {
	begun, connected time.Time // connected is zero when the connection was not made
	err              error
}

// testKilledUnderConnects: a pooler dies while clients connect as fast as they
// can. All of them are connected, and who began after its death is served.
func testKilledUnderConnects(t *testing.T, l *lab.Lab) {
	const victim = "pooler2"
	owner := active(t, l)
	moved := func() uint64 { return verdicts(t, l, owner)["tx_redispatch_refused"] }
	before := moved()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var mu sync.Mutex
	attempts := make(map[string][]attempt)
	dial := l.DialContext(lab.Client)
	var working sync.WaitGroup
	for service, address := range map[string]string{lab.ServiceName: lab.Service, lab.ServiceName6: lab.Service6} {
		for range 4 {
			working.Go(func() {
				for ctx.Err() == nil {
					a := connectOnce(dial, address)
					mu.Lock()
					attempts[service] = append(attempts[service], a)
					mu.Unlock()
				}
			})
		}
	}
	made := func(service string, since time.Time) int {
		mu.Lock()
		defer mu.Unlock()
		n := 0
		for _, a := range attempts[service] {
			if a.begun.After(since) {
				n++
			}
		}
		return n
	}
	enough := func(since time.Time) {
		for _, service := range services {
			eventually(t, 20*time.Second, func() error {
				if n := made(service, since); n < 200 {
					return fmt.Errorf("%d connections of %s", n, service)
				}
				return nil
			})
		}
	}
	enough(time.Time{})
	dying := time.Now()
	if err := l.Kill(victim); err != nil {
		t.Fatal(err)
	}
	dead := time.Now()
	if err := l.WaitBackends(within(t, 10*time.Second), lb.Down, victim); err != nil {
		t.Fatal(err)
	}
	enough(time.Now())
	if err := l.Start(within(t, 20*time.Second), victim); err != nil {
		t.Fatal(err)
	}
	if err := l.WaitBackends(within(t, 10*time.Second), lb.Up, victim); err != nil {
		t.Fatal(err)
	}
	enough(time.Now())
	cancel()
	working.Wait()
	for _, service := range services {
		refused, lost := 0, 0
		for _, a := range attempts[service] {
			switch {
			case a.err == nil:
			case errors.Is(a.err, unix.ECONNRESET) && !a.begun.After(dead):
				// The pooler's kernel had accepted it, and nobody was there any
				// more to take it: a refusal would have another errno.
				lost++
			case a.connected.IsZero():
				refused++
				t.Errorf("%s: a connection %v after the kill: %v", service, a.begun.Sub(dying), a.err)
			case a.begun.After(dead):
				t.Errorf("%s: logging in, begun %v after the kill: %v", service, a.begun.Sub(dying), a.err)
			default:
				// Connected to the pooler before it was gone: nobody can save it.
				lost++
			}
		}
		t.Logf("%s: %d connections, %d failed; %d were connected to %s already when it died",
			service, len(attempts[service]), refused, lost, victim)
		if lost > 8 {
			t.Errorf("%s: 4 clients at a time have lost %d connections", service, lost)
		}
	}
	if moved() == before {
		t.Errorf("no connection was moved to another pooler: nothing is proved")
	}
	quietBoth(t, l, owner)
}

// connectOnce connects and has the server ask for the password.
func connectOnce(dial load.Dial, address string) attempt {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	a := attempt{begun: time.Now()}
	counting := func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		if conn, err = dial(ctx, network, address); err == nil {
			a.connected = time.Now()
		}
		return conn, err
	}
	a.err = load.Answer(counting, address, lab.Database, lab.Database)(ctx)
	return a
}

// testDaemonRestarted: without a node that takes over, connections outlive the
// daemon. Its program forwards them until the lease has run out, what is sent
// after that is sent again, and the next daemon adopts the tables. Beside a peer
// it is a failover: a daemon begins as backup and gives up the lease that its
// predecessor left.
func testDaemonRestarted(t *testing.T, l *lab.Lab) {
	owner := active(t, l)
	quietBoth(t, l, owner)
	if err := l.Terminate(other(owner)); err != nil {
		t.Fatal(err)
	}
	for _, end := range []struct {
		name string
		fn   func(string) error
	}{{"killed", l.Kill}, {"ended", l.Terminate}} {
		t.Run(end.name, func(t *testing.T) {
			bench := load.Pgbench{Script: load.TPCB, Protocol: load.Prepared, Clients: 16, Duration: 10 * time.Second}
			four := background(t, l, bench)
			six := background(t, l, bench, "-h", vip6)
			for _, service := range services {
				connected(t, l, owner, service, bench.Clients)
			}
			began := time.Now()
			if err := end.fn(owner); err != nil {
				t.Fatal(err)
			}
			gone := time.Since(began)
			if err := l.Start(within(t, 20*time.Second), owner); err != nil {
				t.Fatal(err)
			}
			ready := time.Since(began)
			// Nobody has ended: pgbench still waits, or works within the lease.
			for _, service := range services {
				n, err := spread(l, owner, service)
				if err != nil {
					t.Fatal(err)
				}
				if n[0]+n[1]+n[2] != int64(bench.Clients) || slices.Max(n)-slices.Min(n) > 1 {
					t.Errorf("after the restart %d connections of %s are counted as %v", bench.Clients, service, n)
				}
			}
			if _, err := l.WaitActive(within(t, 10*time.Second), owner); err != nil {
				t.Fatal(err)
			}
			t.Logf("the daemon was gone after %v, its successor ready after %v and active after %v", gone, ready, time.Since(began))
			four.faultless()
			six.faultless()
			audited(t, l, owner)
		})
	}
}
