package lab_test

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mdlayher/ndp"
	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/pkg/lab"
	"github.com/pgsteer/pgsteer/pkg/lab/load"
	"github.com/pgsteer/pgsteer/pkg/lb"
)

// vip6 is the virtual address of Service6.
const vip6 = "fd00:1::100"

// services are those of both families.
var services = []string{lab.ServiceName, lab.ServiceName6}

// TestLabIPv6 is what the service for IPv6 adds to TestLab, beside that of
// IPv4. The subtests run in order.
func TestLabIPv6(t *testing.T) {
	o := quickOptions("v6")
	l := raise(t, o)
	for _, step := range []struct {
		name string
		run  func(*testing.T, *lab.Lab)
	}{
		{"psql", testPsql6},
		{"both families at once", testBothFamilies},
		{"pooler killed", testPoolerKilled6},
		{"active killed", testActiveKilled6},
		{"active resigns", func(t *testing.T, l *lab.Lab) { outages(t, l, l.Terminate) }},
		{"active frozen", testActiveFrozen6},
	} {
		if ok := t.Run(step.name, func(t *testing.T) { step.run(t, l) }); !ok {
			showLogs(t, l)
		}
		if _, err := lab.Up(t.Context(), o); err != nil {
			t.Fatalf("bringing the lab back after %q: %v", step.name, err)
		}
	}
}

// testLAN6: every host has its IPv6 address and nobody else does, and the
// poolers answer at theirs.
func testLAN6(t *testing.T, l *lab.Lab) {
	for _, host := range lab.Hosts() {
		if host == lab.Client {
			continue // who asks
		}
		addr, err := lab.Address6(host)
		if err != nil {
			t.Fatal(err)
		}
		onlyAnswers(t, l, addr.String(), host)
	}
	for _, port := range []string{"6432", "6433", "6434"} {
		got := command(t, l, lab.Client, "psql", "-h", "fd00:1::5", "-p", port, "-XAtc", "select current_user")
		if got != "bench\n" {
			t.Errorf("the pooler at port %s printed %q", port, got)
		}
	}
}

func testPsql6(t *testing.T, l *lab.Lab) {
	got := command(t, l, lab.Client, "psql", "-h", vip6, "-XAtc", "select current_user || '@' || current_database()")
	if got != "bench@bench\n" {
		t.Errorf("psql printed %q", got)
	}
	owners, err := l.OwnersOf(lab.ServiceName6)
	if err != nil || len(owners) != 1 {
		t.Fatalf("the VIP of IPv6 is held by %v, %v", owners, err)
	}
	for object, want := range map[string]string{
		"service": lab.Service6, "backend": "[fd00:1::5]:6433", "vip": vip6,
	} {
		out := command(t, l, owners[0], "pgsteer", "-j", object, "show")
		if !json.Valid([]byte(out)) || !strings.Contains(out, want) {
			t.Errorf("pgsteer -j %s show printed no JSON with %q: %s", object, want, out)
		}
	}
	if out := command(t, l, lab.Client, "ip", "-6", "neighbour", "show", vip6); !strings.Contains(out, "lladdr") {
		t.Errorf("the client reached the VIP without its hardware address: %q", out)
	}
}

// spread returns the open connections of each pooler for one service.
func spread(l *lab.Lab, balancer, service string) ([]int64, error) {
	backends, err := l.BackendsOf(balancer, service)
	if err != nil {
		return nil, err
	}
	var n []int64
	for _, b := range backends {
		n = append(n, b.Active)
	}
	if len(n) != lab.PoolerCount {
		return n, fmt.Errorf("%s has %d backends for %s", balancer, len(n), service)
	}
	return n, nil
}

// quietBoth waits until no connection of either family is counted and the flow
// table is empty.
func quietBoth(t *testing.T, l *lab.Lab, balancer string) {
	t.Helper()
	eventually(t, 20*time.Second, func() error {
		n, err := spread(l, balancer, lab.ServiceName6)
		if err == nil && (slices.Max(n) != 0 || slices.Min(n) != 0) {
			err = fmt.Errorf("%s counts %v connections of %s", balancer, n, lab.ServiceName6)
		}
		return err
	})
	quiet(t, l, balancer)
}

// testBothFamilies has pgbench run through both VIPs, with the same poolers and
// the same flow table behind them.
func testBothFamilies(t *testing.T, l *lab.Lab) {
	command(t, l, lab.Client, "pgbench", "-h", vip6, "-i", "-q", "-s", "10")
	bench := load.Pgbench{Script: load.TPCB, Protocol: load.Prepared, Clients: 32, Duration: 10 * time.Second}
	var running sync.WaitGroup
	outputs, errs := make([][]byte, 2), make([]error, 2)
	for i, host := range []string{vip, vip6} {
		args := slices.Concat(bench.Args()[:1], []string{"-h", host}, bench.Args()[1:])
		cmd, err := l.Command(within(t, bench.Duration+time.Minute), lab.Client, args...)
		if err != nil {
			t.Fatal(err)
		}
		running.Go(func() { outputs[i], errs[i] = cmd.CombinedOutput() })
	}
	// While they run, each family's connections are spread evenly.
	eventually(t, bench.Duration, func() error {
		for _, service := range services {
			owners, err := l.OwnersOf(service)
			if err != nil || len(owners) != 1 {
				return fmt.Errorf("%s is served by %v, %w", service, owners, err)
			}
			n, err := spread(l, owners[0], service)
			if err != nil {
				return err
			}
			if n[0]+n[1]+n[2] != int64(bench.Clients) || slices.Max(n)-slices.Min(n) > 1 {
				return fmt.Errorf("%d connections of %s are spread as %v", bench.Clients, service, n)
			}
		}
		return nil
	})
	running.Wait()
	for i, service := range services {
		if errs[i] != nil {
			t.Fatalf("%s: %v\n%s", service, errs[i], outputs[i])
		}
		r, err := load.ParsePgbench(string(outputs[i]))
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %.0f tps, %v", service, r.TPS, r.Latency)
		if r.Failed != 0 || r.Aborted != 0 || r.Transactions == 0 {
			t.Errorf("%s: of %d transactions %d failed, and %d clients aborted:\n%s", service, r.Transactions, r.Failed, r.Aborted, outputs[i])
		}
	}
	for _, balancer := range lab.Balancers() {
		quietBoth(t, l, balancer)
	}
}

// testPoolerKilled6: a pooler that dies is marked down for both families.
func testPoolerKilled6(t *testing.T, l *lab.Lab) {
	const victim = "pooler2"
	if err := l.Kill(victim); err != nil {
		t.Fatal(err)
	}
	if err := l.WaitBackends(within(t, 10*time.Second), lb.Down, victim); err != nil {
		t.Fatal(err)
	}
	for range 6 {
		command(t, l, lab.Client, "psql", "-h", vip6, "-XAtc", "select 1")
	}
	if err := l.Start(within(t, 20*time.Second), victim); err != nil {
		t.Fatal(err)
	}
	if err := l.WaitBackends(within(t, 10*time.Second), lb.Up, victim); err != nil {
		t.Fatal(err)
	}
}

// outages measures what a fault of the balancer that has both VIPs does to
// either service, and waits until the other one has both. Who is connected may
// not notice.
func outages(t *testing.T, l *lab.Lab, fault func(victim string) error) (victim string) {
	t.Helper()
	victim = active(t, l)
	if _, err := l.WaitActive(within(t, 5*time.Second), victim); err != nil {
		t.Fatalf("the VIPs are not on one balancer: %v", err)
	}
	bothSynced(t, l)
	held, err := load.Hold(within(t, time.Minute), 30, connectorOf(t, l, lab.ServiceName6))
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	seen := probed(t, l, func() error { return fault(victim) }, func() {
		if _, err := l.WaitActive(within(t, 10*time.Second), other(victim)); err != nil {
			t.Fatal(err)
		}
	}, lab.Service, lab.Service6)
	for i, o := range seen {
		// 3 advertisements and a skew are 361 ms; the rest is for a busy machine.
		if o.Lasted > 2*time.Second {
			t.Errorf("%s did not answer for %v", services[i], o.Lasted)
		}
	}
	if lost := held.Lost(t.Context()); lost != 0 {
		t.Errorf("%d of 30 connections are lost", lost)
	}
	return victim
}

// neighborAnswers asks for an address by a Neighbor Solicitation and returns
// the hardware addresses of all who say that they have it.
func neighborAnswers(t *testing.T, l *lab.Lab, address string) []string {
	t.Helper()
	w := openWire(t, l, unix.ETH_P_IPV6)
	target, own := netip.MustParseAddr(address), netip.MustParseAddr("fd00:1::50")
	group, err := ndp.SolicitedNodeMulticast(target)
	if err != nil {
		t.Fatal(err)
	}
	solicitation := &ndp.NeighborSolicitation{
		TargetAddress: target, Options: []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: w.mac}},
	}
	message, err := ndp.MarshalMessageChecksum(solicitation, own, group)
	if err != nil {
		t.Fatal(err)
	}
	// RFC 8200 section 3, and hop limit 255 of RFC 4861 section 4.3.
	packet := []byte{0x60, 0, 0, 0}
	packet = binary.BigEndian.AppendUint16(packet, uint16(len(message)))
	packet = append(packet, unix.IPPROTO_ICMPV6, 255)
	packet = slices.Concat(packet, own.AsSlice(), group.AsSlice(), message)
	last := group.As16()
	// The group's own Ethernet address, RFC 2464 section 7.
	w.send(net.HardwareAddr{0x33, 0x33, last[12], last[13], last[14], last[15]}, unix.ETH_P_IPV6, packet)
	var answers []string
	for deadline := time.Now().Add(500 * time.Millisecond); ; {
		frame := w.receive(deadline)
		if frame == nil {
			return answers
		}
		if len(frame) < 54 || frame[20] != unix.IPPROTO_ICMPV6 || !slices.Equal(frame[:6], w.mac) {
			continue
		}
		m, err := ndp.ParseMessage(frame[54:])
		na, ok := m.(*ndp.NeighborAdvertisement)
		if err != nil || !ok || !na.Solicited || na.TargetAddress != target {
			continue
		}
		if from := net.HardwareAddr(frame[6:12]).String(); !slices.Contains(answers, from) {
			answers = append(answers, from)
		}
	}
}

// onlyAnswers checks that the host, and nobody else, says that it has an IPv6
// address.
func onlyAnswers(t *testing.T, l *lab.Lab, address, host string) {
	t.Helper()
	want, err := lab.HardwareAddr(host)
	if err != nil {
		t.Fatal(err)
	}
	if answers := neighborAnswers(t, l, address); len(answers) != 1 || answers[0] != want.String() {
		t.Errorf("asked by a Neighbor Solicitation who has %s, %v answered; want %v only", address, answers, want)
	}
}

// testActiveKilled6: both VIPs move when the daemon dies. Its node still has
// the addresses on its interface; its program must keep the kernel from
// answering for them.
func testActiveKilled6(t *testing.T, l *lab.Lab) {
	onlyAnswers(t, l, vip6, active(t, l))
	victim := outages(t, l, l.Kill)
	if out := command(t, l, victim, "ip", "-br", "address", "show", "dev", "eth0"); !strings.Contains(out, vip6+"/128") {
		t.Errorf("the killed daemon's node has no VIP that it could answer for: %s", out)
	}
	onlyAnswers(t, l, vip6, other(victim))
	if err := l.Start(within(t, 20*time.Second), victim); err != nil {
		t.Fatal(err)
	}
	for _, balancer := range lab.Balancers() {
		quietBoth(t, l, balancer)
	}
}

// testActiveFrozen6: a daemon that hangs must not serve any more.
func testActiveFrozen6(t *testing.T, l *lab.Lab) {
	victim := outages(t, l, l.Stop)
	onlyAnswers(t, l, vip6, other(victim))
	if err := l.Cont(victim); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, func() error {
		if out := command(t, l, victim, "ip", "-br", "address", "show", "dev", "eth0"); strings.Contains(out, vip6+"/") {
			return fmt.Errorf("%s still has the address: %s", victim, out)
		}
		return nil
	})
	onlyAnswers(t, l, vip6, other(victim))
}
