package lab_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgsteer/pgsteer/pkg/lab"
	"github.com/pgsteer/pgsteer/pkg/lab/load"
	"github.com/pgsteer/pgsteer/pkg/lb"
)

// TestLabRouted has clients and poolers beyond routers, in networks that the
// balancers are not on.
func TestLabRouted(t *testing.T) {
	o := quickOptions("r")
	o.Routed = true
	l := raise(t, o)
	for _, step := range []struct {
		name string
		run  func(*testing.T, *lab.Lab)
	}{
		{"psql", testRemotePsql},
		{"pgbench", testRemotePgbench},
		{"path MTU", testPathMTU},
		{"gateway replaced", func(t *testing.T, l *lab.Lab) { testRouterReplaced(t, l, lab.Gateway) }},
		{"router replaced", func(t *testing.T, l *lab.Lab) { testRouterReplaced(t, l, lab.Router) }},
		{"pooler killed behind a replaced gateway", testToldThroughTwin},
		{"active killed", testRemoteActiveKilled},
	} {
		if ok := t.Run(step.name, func(t *testing.T) { step.run(t, l) }); !ok {
			showLogs(t, l)
		}
		if _, err := lab.Up(t.Context(), o); err != nil {
			t.Fatalf("bringing the lab back after %q: %v", step.name, err)
		}
	}
}

// remoteConnector returns a function that connects a client beyond the gateway
// to the VIP of a service.
func remoteConnector(t *testing.T, l *lab.Lab, service string) func(context.Context) (*pgx.Conn, error) {
	t.Helper()
	cfg, err := l.ClientConfigOf(service)
	if err != nil {
		t.Fatal(err)
	}
	cfg.DialFunc = l.DialContext(lab.Remote)
	return func(ctx context.Context) (*pgx.Conn, error) { return pgx.ConnectConfig(ctx, cfg) }
}

func testRemotePsql(t *testing.T, l *lab.Lab) {
	// The client on the LAN is served as well.
	for _, host := range []string{lab.Remote, lab.Client} {
		for _, address := range []string{vip, vip6} {
			if got := command(t, l, host, "psql", "-h", address, "-XAtc", "select current_user"); got != "bench\n" {
				t.Errorf("psql on %s at %s printed %q", host, address, got)
			}
		}
	}
	beyond := map[string]string{lab.ServiceName: "192.168.3.5", lab.ServiceName6: "fd00:3::5"}
	for service, addr := range beyond {
		backends, err := l.BackendsOf(active(t, l), service)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range backends {
			if b.Addr.Addr() != netip.MustParseAddr(addr) {
				t.Errorf("%s of %s is at %v, which is not beyond the router", b.Name, service, b.Addr)
			}
		}
	}
	// Nobody takes a short cut: what passes the routers is what comes and goes.
	for _, c := range []struct{ host, to, from, want string }{
		{lab.Remote, vip, "192.168.2.50", "via 192.168.2.1"},
		{lab.Remote, vip6, "fd00:2::50", "via fd00:2::1"},
		{lab.Pooler, vip, "192.168.3.5", "via 192.168.3.1"},
		{lab.Pooler, vip6, "fd00:3::5", "via fd00:3::1"},
		{lab.LB1, "192.168.3.5", "192.168.1.10", "via 192.168.1.2"},
		{lab.LB1, "fd00:3::5", "fd00:1::10", "via fd00:1::2"},
	} {
		if out := command(t, l, c.host, "ip", "route", "get", c.to, "from", c.from); !strings.Contains(out, c.want) {
			t.Errorf("%s reaches %s by %q, want %q", c.host, c.to, out, c.want)
		}
	}
}

func testRemotePgbench(t *testing.T, l *lab.Lab) {
	command(t, l, lab.Remote, "pgbench", "-i", "-q", "-s", "10")
	bench := load.Pgbench{Script: load.TPCB, Protocol: load.Prepared, Clients: 32, Duration: 5 * time.Second}
	cmd, err := l.Command(within(t, bench.Duration+time.Minute), lab.Remote, bench.Args()...)
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	r, err := load.ParsePgbench(string(out))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%.0f tps, %v", r.TPS, r.Latency)
	if r.Failed != 0 || r.Aborted != 0 || r.Transactions == 0 {
		t.Errorf("of %d transactions %d failed, and %d clients aborted:\n%s", r.Transactions, r.Failed, r.Aborted, out)
	}
	quietEverywhere(t, l)
}

func quietEverywhere(t *testing.T, l *lab.Lab) {
	t.Helper()
	for _, balancer := range lab.Balancers() {
		quietBoth(t, l, balancer)
	}
}

// testRouterReplaced: a router's twin takes its place, with its addresses but
// another hardware address. Connections go on, and new ones can be made.
func testRouterReplaced(t *testing.T, l *lab.Lab, router string) {
	held := map[string]*load.Held{}
	for _, service := range services {
		h, err := load.Hold(within(t, time.Minute), 15, remoteConnector(t, l, service))
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		held[service] = h
	}
	original, err := lab.HardwareAddr(router)
	if err != nil {
		t.Fatal(err)
	}
	for _, mac := range []net.HardwareAddr{{0x02, 0, 0, 0, 0, 0x77}, original} {
		if err := l.SetHardwareAddr(router, mac); err != nil {
			t.Fatal(err)
		}
		if out := command(t, l, router, "ip", "link", "show", "dev", "eth0"); !strings.Contains(out, mac.String()) {
			t.Fatalf("the hardware address of %s is not %v: %s", router, mac, out)
		}
		for _, service := range services {
			began := time.Now()
			if lost := held[service].Lost(t.Context()); lost != 0 {
				t.Errorf("%d of 15 connections of %s are lost with %s at %v", lost, service, router, mac)
			}
			t.Logf("15 connections of %s answered in %v", service, time.Since(began))
			conn, err := remoteConnector(t, l, service)(within(t, 5*time.Second))
			if err != nil {
				t.Fatalf("connecting to %s with %s at %v: %v", service, router, mac, err)
			}
			if err := conn.Close(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if err := l.WaitBackends(within(t, 10*time.Second), lb.Up, lab.Poolers()...); err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range held {
		h.Close()
	}
	quietEverywhere(t, l)
}

// testToldThroughTwin: clients that say nothing are told that their pooler died,
// although the gateway has been replaced since they were last heard.
func testToldThroughTwin(t *testing.T, l *lab.Lab) {
	const victim = "pooler2"
	var conns []*pgx.Conn
	for _, service := range services {
		for range 15 {
			conn, err := remoteConnector(t, l, service)(within(t, 5*time.Second))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close(context.WithoutCancel(t.Context()))
			conns = append(conns, conn)
		}
	}
	original, err := lab.HardwareAddr(lab.Gateway)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.SetHardwareAddr(lab.Gateway, net.HardwareAddr{0x02, 0, 0, 0, 0, 0x77}); err != nil {
		t.Fatal(err)
	}
	if err := l.Kill(victim); err != nil {
		t.Fatal(err)
	}
	var told atomic.Int32
	var reading sync.WaitGroup
	deadline := time.Now().Add(5 * time.Second)
	for _, conn := range conns {
		reading.Go(func() {
			c := conn.PgConn().Conn()
			if err := c.SetReadDeadline(deadline); err != nil {
				t.Error(err)
			}
			if _, err := c.Read(make([]byte, 1)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				told.Add(1)
			}
		})
	}
	reading.Wait()
	if told.Load() != 10 {
		t.Errorf("%d of 30 clients were told of an end, want the 10 of %s", told.Load(), victim)
	}
	if err := l.SetHardwareAddr(lab.Gateway, original); err != nil {
		t.Fatal(err)
	}
	if err := l.Start(within(t, 20*time.Second), victim); err != nil {
		t.Fatal(err)
	}
	if err := l.WaitBackends(within(t, 10*time.Second), lb.Up, victim); err != nil {
		t.Fatal(err)
	}
}

// testRemoteActiveKilled: the gateway learns who has the VIP now, like any
// client on the LAN, and connections go on.
func testRemoteActiveKilled(t *testing.T, l *lab.Lab) {
	victim := active(t, l)
	bothSynced(t, l)
	held := map[string]*load.Held{}
	for _, service := range services {
		h, err := load.Hold(within(t, time.Minute), 15, remoteConnector(t, l, service))
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		held[service] = h
	}
	if err := l.Kill(victim); err != nil {
		t.Fatal(err)
	}
	if _, err := l.WaitActive(within(t, 10*time.Second), other(victim)); err != nil {
		t.Fatal(err)
	}
	for _, service := range services {
		conn, err := remoteConnector(t, l, service)(within(t, 5*time.Second))
		if err != nil {
			t.Fatalf("connecting to %s through %s: %v", service, other(victim), err)
		}
		if err := conn.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if lost := held[service].Lost(t.Context()); lost != 0 {
			t.Errorf("%d of 15 connections of %s are lost", lost, service)
		}
	}
}
