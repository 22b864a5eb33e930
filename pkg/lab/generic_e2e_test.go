package lab_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lab"
	"github.com/pgsteer/pgsteer/pkg/lab/load"
)

// TestLabGeneric has the program behind the kernel's own receive path, as with a
// driver that has no XDP: packets come as socket buffers, from local senders with
// their checksums unfinished and several segments at once.
func TestLabGeneric(t *testing.T) {
	o := quickOptions("g")
	o.Balancer.XDPMode = "generic"
	o.Balancer.AdvertInterval = time.Second // a busy machine causes no failover
	l := raise(t, o)
	for _, step := range []struct {
		name string
		run  func(*testing.T, *lab.Lab)
	}{
		{"attached", testGenericAttached},
		{"client address", testClientAddress},
		{"pgbench", testGenericPgbench},
		{"300 at once", testThreeHundred},
		{"megabytes", testMegabytes},
	} {
		if ok := t.Run(step.name, func(t *testing.T) { step.run(t, l) }); !ok {
			showLogs(t, l)
		}
	}
}

// testGenericAttached: the mode is what was asked for.
func testGenericAttached(t *testing.T, l *lab.Lab) {
	for _, balancer := range lab.Balancers() {
		out := command(t, l, balancer, "ip", "link", "show", "dev", "eth0")
		if !strings.Contains(out, "xdpgeneric") {
			t.Errorf("%s has no generic XDP program: %s", balancer, out)
		}
	}
}

func testGenericPgbench(t *testing.T, l *lab.Lab) {
	command(t, l, lab.Client, "pgbench", "-i", "-q", "-s", "2")
	owner := active(t, l)
	bench := load.Pgbench{Script: load.TPCB, Protocol: load.Prepared, Clients: 32, Duration: 5 * time.Second}
	four, six := background(t, l, bench), background(t, l, bench, "-h", vip6)
	for _, service := range services {
		connected(t, l, owner, service, bench.Clients)
	}
	four.faultless()
	six.faultless()
	quietBoth(t, l, owner)
}

// testMegabytes sends what takes many full segments, and gets it back.
func testMegabytes(t *testing.T, l *lab.Lab) {
	sent := strings.Repeat("pgsteer ", 4<<20/8)
	for _, service := range services {
		conn, err := connectorOf(t, l, service)(within(t, 5*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.WithoutCancel(t.Context()))
		var came string
		if err := conn.QueryRow(within(t, 30*time.Second), "select $1::text", sent).Scan(&came); err != nil {
			t.Fatalf("%s: sending and receiving %d bytes: %v", service, len(sent), err)
		}
		if came != sent {
			t.Errorf("%s: %d bytes came back, not the %d that were sent", service, len(came), len(sent))
		}
	}
}
