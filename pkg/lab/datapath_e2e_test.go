package lab_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgsteer/pgsteer/pkg/lab"
	"github.com/pgsteer/pgsteer/pkg/lab/load"
	"github.com/pgsteer/pgsteer/pkg/lb"
)

// long tells whether the tests take 12,000 connections and a minute of flood;
// without it they take 3000 and 10 s.
var long = os.Getenv("PGSTEER_LONG") == "1"

// TestLabDatapath is what is expected of the datapath beside TestLab, with both
// families. The subtests run in order.
func TestLabDatapath(t *testing.T) {
	o := quickOptions("dp")
	o.Pooler.MaxClients = 4200 // 4000 held ones, pgbench's and the health checks
	// Two cores that flood themselves make some 100,000 SYNs a second: far more than
	// is allowed, as an attacker's network would be beyond a larger machine. There
	// is room for a second's worth and more, because that may come at once, and a
	// client's handshake must not give way before it is complete.
	o.Balancer.HalfOpenFlows, o.Balancer.SYNTotal = 16_384, 10_000
	// Nothing here is about failover, which a busy machine could cause by itself.
	o.Balancer.AdvertInterval = time.Second
	l := raise(t, o)
	command(t, l, lab.Client, "pgbench", "-i", "-q", "-s", "10")
	for _, step := range []struct {
		name string
		run  func(*testing.T, *lab.Lab)
	}{
		{"client address", testClientAddress},
		{"drain", testDrain},
		{"drain with a deadline", testDrainDeadline},
		{"pooler killed under connects", testKilledUnderConnects},
		{"crowd", testCrowd},
		{"SYN flood", testFlood},
		{"daemon restarted", testDaemonRestarted},
	} {
		if ok := t.Run(step.name, func(t *testing.T) { step.run(t, l) }); !ok {
			showLogs(t, l)
		}
		if _, err := lab.Up(t.Context(), o); err != nil {
			t.Fatalf("bringing the lab back after %q: %v", step.name, err)
		}
	}
}

// connectorOf is connector for any of the services.
func connectorOf(t *testing.T, l *lab.Lab, service string) func(context.Context) (*pgx.Conn, error) {
	t.Helper()
	cfg, err := l.ClientConfigOf(service)
	if err != nil {
		t.Fatal(err)
	}
	return func(ctx context.Context) (*pgx.Conn, error) { return pgx.ConnectConfig(ctx, cfg) }
}

// verdicts returns what a balancer has done with packets.
func verdicts(t *testing.T, l *lab.Lab, balancer string) map[string]uint64 {
	t.Helper()
	stats, err := l.Datapath(balancer)
	if err != nil {
		t.Fatal(err)
	}
	counts := make(map[string]uint64)
	for _, v := range stats.Verdicts {
		counts[v.Name] = v.Count
	}
	return counts
}

// audited asks pgsteer to count a balancer's flows again; it fails on drift.
func audited(t *testing.T, l *lab.Lab, balancer string) {
	t.Helper()
	var report struct {
		Drift   *int64 `json:"drift"`
		Orphans int    `json:"orphans"`
		Flows   int    `json:"flows"`
	}
	out := command(t, l, balancer, "pgsteer", "-j", "audit")
	if err := json.Unmarshal([]byte(out), &report); err != nil || report.Drift == nil {
		t.Fatalf("pgsteer -j audit: %v:\n%s", err, out)
	}
	if *report.Drift != 0 || report.Orphans != 0 {
		t.Errorf("the audit of %s found a drift of %d and %d orphans", balancer, *report.Drift, report.Orphans)
	}
	t.Logf("audit of %s: %d flows, drift %d", balancer, report.Flows, *report.Drift)
}

// running is a pgbench that runs beside what else a test does.
type running struct {
	t    *testing.T
	cmd  *lab.Cmd
	out  bytes.Buffer
	err  error
	done chan struct{}
}

// background starts pgbench on the client, with args added to bench's.
func background(t *testing.T, l *lab.Lab, bench load.Pgbench, args ...string) *running {
	t.Helper()
	cmd, err := l.Command(within(t, bench.Duration+time.Minute), lab.Client, slices.Concat(bench.Args(), args)...)
	if err != nil {
		t.Fatal(err)
	}
	r := &running{t: t, cmd: cmd, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &r.out, &r.out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(r.done)
		r.err = cmd.Wait()
	}()
	return r
}

// end has pgbench end before its time: by the alarm that it has set itself.
func (r *running) end() {
	r.t.Helper()
	if err := r.cmd.Process.Signal(syscall.SIGALRM); err != nil {
		r.t.Error(err)
	}
}

// faultless waits for pgbench to end, which it must have done without an error.
func (r *running) faultless() load.PgbenchResult {
	r.t.Helper()
	<-r.done
	if r.err != nil {
		r.t.Fatalf("%v\n%s", r.err, &r.out)
	}
	result, err := load.ParsePgbench(r.out.String())
	if err != nil {
		r.t.Fatal(err)
	}
	if result.Failed != 0 || result.Aborted != 0 || result.Transactions == 0 {
		r.t.Errorf("of %d transactions %d failed, and %d clients aborted:\n%s", result.Transactions, result.Failed, result.Aborted, &r.out)
	}
	r.t.Logf("pgbench: %.0f tps, %v", result.TPS, result.Latency)
	return result
}

// connected waits until so many connections of a service are open.
func connected(t *testing.T, l *lab.Lab, balancer, service string, want int) {
	t.Helper()
	eventually(t, 10*time.Second, func() error {
		n, err := spread(l, balancer, service)
		if err == nil && n[0]+n[1]+n[2] != int64(want) {
			err = fmt.Errorf("%s counts %v connections of %s, want %d", balancer, n, service, want)
		}
		return err
	})
}

// testClientAddress: the pooler knows its clients by their own addresses, and
// pgsteer knows whose connection it is by the pooler's view of it.
func testClientAddress(t *testing.T, l *lab.Lab) {
	owner := active(t, l)
	for _, service := range services {
		conn, err := connectorOf(t, l, service)(within(t, 5*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.WithoutCancel(t.Context()))
		client := netip.MustParseAddrPort(conn.PgConn().Conn().LocalAddr().String())
		var flow lb.Flow
		err = l.Flows(owner, func(f lb.Flow) bool {
			if f.Client == client {
				flow = f
			}
			return flow.Client != client
		})
		if err != nil || flow.Client != client {
			t.Fatalf("%s has no flow of %v: %v", owner, client, err)
		}
		if flow.SNAT.Addr() != flow.Service.Addr() {
			t.Errorf("the pooler's peer is %v, not the balancer at %v", flow.SNAT, flow.Service)
		}
		if !showsClient(t, l, flow.Backend, client) {
			t.Errorf("SHOW CLIENTS at %v does not list %v", flow.Backend, client)
		}
		if showsClient(t, l, flow.Backend, flow.SNAT) {
			t.Errorf("SHOW CLIENTS at %v lists the balancer's %v", flow.Backend, flow.SNAT)
		}
		var found []lb.Flow
		out := command(t, l, owner, "pgsteer", "-j", "flow", "whois", flow.SNAT.String())
		if err := json.Unmarshal([]byte(out), &found); err != nil {
			t.Fatalf("pgsteer -j flow whois: %v:\n%s", err, out)
		}
		at := slices.IndexFunc(found, func(f lb.Flow) bool { return f.Backend == flow.Backend })
		if at < 0 || found[at].Client != client {
			t.Errorf("%v at %v is %v, but whois says %s", flow.SNAT, flow.Backend, client, out)
		}
	}
	// Who comes without a balancer is who he is.
	cfg, err := l.ClientConfig()
	if err != nil {
		t.Fatal(err)
	}
	cfg.Host, cfg.Port = "192.168.1.5", 6432
	conn, err := pgx.ConnectConfig(within(t, 5*time.Second), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	client := netip.MustParseAddrPort(conn.PgConn().Conn().LocalAddr().String())
	if !showsClient(t, l, netip.MustParseAddrPort("192.168.1.5:6432"), client) {
		t.Errorf("SHOW CLIENTS does not list %v, which connected directly", client)
	}
}

// showsClient asks a pooler's console whether it has a client.
func showsClient(t *testing.T, l *lab.Lab, pooler, client netip.AddrPort) bool {
	t.Helper()
	out := command(t, l, lab.Pooler, "psql", "-h", pooler.Addr().String(), "-p", strconv.Itoa(int(pooler.Port())),
		"-d", "pgbouncer", "-XAc", "show clients")
	lines := strings.Split(out, "\n")
	head := strings.Split(lines[0], "|")
	addr, port := slices.Index(head, "addr"), slices.Index(head, "port")
	if addr < 0 || port < 0 {
		t.Fatalf("SHOW CLIENTS has no addr and port: %s", lines[0])
	}
	return slices.ContainsFunc(lines[1:], func(line string) bool {
		row := strings.Split(line, "|")
		return len(row) == len(head) && row[addr] == client.Addr().String() && row[port] == strconv.Itoa(int(client.Port()))
	})
}

// testDrain: clients that come and go leave a draining pooler, none of them
// with an error.
func testDrain(t *testing.T, l *lab.Lab) {
	owner := active(t, l)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var working sync.WaitGroup
	results := make([]sessions, len(services))
	for i, service := range services {
		working.Go(func() { results[i] = sessionsUntil(ctx, 8, connectorOf(t, l, service)) })
	}
	for _, service := range services {
		eventually(t, 10*time.Second, func() error {
			n, err := spread(l, owner, service)
			if err == nil && n[1] == 0 {
				err = fmt.Errorf("pooler2 has no connection of %s: %v", service, n)
			}
			return err
		})
		command(t, l, owner, "pgsteer", "backend", "drain", service+"/pooler2")
	}
	for _, service := range services {
		eventually(t, 10*time.Second, func() error {
			n, err := spread(l, owner, service)
			if err == nil && (n[1] != 0 || n[0] == 0 && n[2] == 0) {
				err = fmt.Errorf("%s counts %v connections of %s", owner, n, service)
			}
			return err
		})
	}
	// It has no more of them although they go on coming.
	opened := func() (n uint64) {
		for _, service := range services {
			backends, err := l.BackendsOf(owner, service)
			if err != nil {
				t.Fatal(err)
			}
			n += backends[1].Total
		}
		return n
	}
	before := opened()
	for range 20 {
		command(t, l, lab.Client, "psql", "-XAtc", "select 1")
	}
	if after := opened(); after != before {
		t.Errorf("draining, pooler2 was given %d connections", after-before)
	}
	for _, service := range services {
		command(t, l, owner, "pgsteer", "backend", "undrain", service+"/pooler2")
	}
	eventually(t, 10*time.Second, func() error {
		if opened() == before {
			return errors.New("after draining pooler2 is given no connections")
		}
		return nil
	})
	cancel()
	working.Wait()
	for i, service := range services {
		r := results[i]
		t.Logf("%s: %d sessions, %d failed", service, r.done, len(r.errs))
		if len(r.errs) > 0 || r.done == 0 {
			t.Errorf("of %d sessions of %s these failed: %v", r.done, service, errors.Join(r.errs...))
		}
	}
	quietBoth(t, l, owner)
}

// sessions is what became of clients that came and went.
type sessions struct {
	done int
	errs []error
}

// sessionsUntil has so many workers connect, query for a moment, and close, until
// ctx ends. What has begun is let finish.
func sessionsUntil(ctx context.Context, workers int, connect func(context.Context) (*pgx.Conn, error)) (all sessions) {
	var mu sync.Mutex
	var working sync.WaitGroup
	one := func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		conn, err := connect(ctx)
		if err != nil {
			return err
		}
		_, err = conn.Exec(ctx, "select pg_sleep(0.05)")
		return errors.Join(err, conn.Close(ctx))
	}
	for range workers {
		working.Go(func() {
			for ctx.Err() == nil {
				err := one()
				mu.Lock()
				if all.done++; err != nil {
					all.errs = append(all.errs, err)
				}
				mu.Unlock()
			}
		})
	}
	working.Wait()
	return all
}

// testDrainDeadline: who is still there at the deadline is told so, and the
// others are not.
func testDrainDeadline(t *testing.T, l *lab.Lab) {
	owner := active(t, l)
	for _, service := range services {
		held, err := load.Hold(within(t, time.Minute), 30, connectorOf(t, l, service))
		if err != nil {
			t.Fatal(err)
		}
		defer held.Close()
		ordered := time.Now()
		command(t, l, owner, "pgsteer", "backend", "drain", service+"/pooler1", "deadline", "1s")
		eventually(t, 15*time.Second, func() error {
			n, err := spread(l, owner, service)
			if err == nil && !slices.Equal(n, []int64{0, 10, 10}) {
				err = fmt.Errorf("%s counts %v connections of %s", owner, n, service)
			}
			return err
		})
		took := time.Since(ordered)
		t.Logf("%s: pooler1 was empty after %v", service, took)
		if took < time.Second {
			t.Errorf("%s: the deadline of 1 s was over after %v", service, took)
		}
		if lost := held.Lost(t.Context()); lost != 10 {
			t.Errorf("%s: %d of 30 connections are lost, want the 10 of pooler1", service, lost)
		}
		command(t, l, owner, "pgsteer", "backend", "undrain", service+"/pooler1")
		held.Close()
	}
	quietBoth(t, l, owner)
}
