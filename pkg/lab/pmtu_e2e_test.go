package lab_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lab"
)

// narrow is the MTU of a link that nobody at either end of a connection sees.
const narrow = 1400

// narrowLinks are the routes of the two routers, towards the network beyond and
// towards the LAN. A router that has a route with an MTU does as one does before
// a link with that MTU: it drops what is larger and says so to its sender
// (RFC 1191 section 3, RFC 8201 section 3).
var narrowLinks = map[string][]string{
	lab.Gateway: {
		"192.168.2.0/24 dev eth1 proto kernel scope link src 192.168.2.1",
		"192.168.1.0/24 dev eth0 proto kernel scope link src 192.168.1.1",
		"fd00:2::/64 dev eth1 proto kernel metric 256",
		"fd00:1::/64 dev eth0 proto kernel metric 256",
	},
	lab.Router: {
		"192.168.3.0/24 dev eth1 proto kernel scope link src 192.168.3.1",
		"192.168.1.0/24 dev eth0 proto kernel scope link src 192.168.1.2",
		"fd00:3::/64 dev eth1 proto kernel metric 256",
		"fd00:1::/64 dev eth0 proto kernel metric 256",
	},
}

// testPathMTU: with a narrow link before a client and before a pooler, errors of
// the routers reach whom they are about, and megabytes pass in both directions.
func testPathMTU(t *testing.T, l *lab.Lab) {
	const size = 4 << 20
	owner := active(t, l)
	for _, c := range []struct {
		router, host string // whose path is narrow
	}{{lab.Gateway, lab.Remote}, {lab.Router, lab.Pooler}} {
		t.Run("before "+c.host, func(t *testing.T) {
			setNarrow(t, l, c.router, true)
			defer setNarrow(t, l, c.router, false)
			for i, service := range services {
				before := verdicts(t, l, owner)["tx_icmp"]
				conn, err := remoteConnector(t, l, service)(within(t, 5*time.Second))
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close(context.WithoutCancel(t.Context()))
				begin := time.Now()
				var came string
				sent := strings.Repeat("pgsteer ", size/8)
				if err := conn.QueryRow(within(t, 30*time.Second), "select $1::text", sent).Scan(&came); err != nil {
					t.Fatalf("%s: sending and receiving %d bytes: %v", service, size, err)
				}
				if came != sent {
					t.Errorf("%s: %d bytes came back, not the %d that were sent", service, len(came), size)
				}
				moved := verdicts(t, l, owner)["tx_icmp"] - before
				t.Logf("%s: %d bytes each way in %v, %d errors sent on", service, size, time.Since(begin), moved)
				if moved == 0 {
					t.Errorf("%s: the balancer has sent no ICMP error on", service)
				}
				to := []string{vip, vip6}[i]
				// Who sends into the narrow link has learned from an error that the
				// balancer sent on; the other end, from its router directly.
				for _, end := range []struct{ host, from string }{
					{lab.Remote, []string{"192.168.2.50", "fd00:2::50"}[i]},
					{lab.Pooler, []string{"192.168.3.5", "fd00:3::5"}[i]},
				} {
					out := command(t, l, end.host, "ip", "route", "get", to, "from", end.from)
					if !strings.Contains(out, fmt.Sprintf("mtu %d", narrow)) {
						t.Errorf("%s: %s does not know of the narrow link: %s", service, end.host, out)
					}
				}
			}
			forgetPathMTU(t, l)
		})
	}
	quietEverywhere(t, l)
}

// forgetPathMTU has both ends forget what they have learned. For IPv6 that goes
// only with the route; who knows of a narrow link asks for small segments at
// once, and the other end would learn nothing.
func forgetPathMTU(t *testing.T, l *lab.Lab) {
	t.Helper()
	for _, end := range []struct{ host, route string }{
		{lab.Remote, "default via fd00:2::1 dev eth0"},
		{lab.Pooler, "default via fd00:3::1 dev eth1 table 3"},
	} {
		command(t, l, end.host, "ip", "route", "flush", "cache")
		command(t, l, end.host, append([]string{"ip", "-6", "route", "replace"}, strings.Fields(end.route)...)...)
	}
}

// setNarrow makes the links of a router narrow, or as they were.
func setNarrow(t *testing.T, l *lab.Lab, router string, on bool) {
	t.Helper()
	for _, route := range narrowLinks[router] {
		argv := append([]string{"ip", "route", "change"}, strings.Fields(route)...)
		if on {
			argv = append(argv, "mtu", "lock", fmt.Sprint(narrow))
		}
		command(t, l, router, argv...)
	}
}
