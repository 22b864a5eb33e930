package vrrp

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// keepalived starts the real thing on a host, with what counts of a router's
// configuration. Without peers it is multicast.
func (h *host) keepalived(state string, c Config) *exec.Cmd {
	h.t.Helper()
	unicast, addresses := "", ""
	if len(c.Peers) > 0 {
		unicast = fmt.Sprintf("unicast_src_ip %v\n unicast_peer { %v }", c.Source, c.Peers[0])
		if c.ipv6() {
			unicast += "\n unicast_ttl 255" // it sends with hop limit 64 otherwise
		}
	}
	version, authentication := 3, ""
	if c.Version == 2 {
		version = 2
	}
	if c.Auth != "" {
		authentication = "authentication {\n auth_type PASS\n auth_pass " + string(c.Auth) + "\n }"
	}
	for _, p := range c.Addresses {
		addresses += p.String() + "\n  "
	}
	dir := h.t.TempDir()
	file := filepath.Join(dir, "keepalived.conf")
	must(h.t, "writing keepalived's configuration", os.WriteFile(file, []byte(fmt.Sprintf(`
global_defs {
 vrrp_version %d
}
vrrp_instance main {
 interface eth0
 state %s
 virtual_router_id 51
 priority %d
 advert_int %g
 %s
 %s
 virtual_ipaddress {
  %s
 }
}
`, version, state, c.Priority, c.AdvertInterval.Seconds(), authentication, unicast, addresses)), 0o600))
	return h.start(exec.Command("keepalived", "--vrrp", "--dont-fork", "--log-console", "--use-file", file,
		"--pid", filepath.Join(dir, "pid"), "--vrrp_pid", filepath.Join(dir, "vrrp_pid")))
}

// TestNetnsKeepalived takes turns with keepalived, both ways round, without a
// setting on either side that would be for the other's sake.
func TestNetnsKeepalived(t *testing.T) {
	if _, err := exec.LookPath("keepalived"); err != nil {
		t.Skip("needs keepalived")
	}
	ipv4 := []netip.Prefix{vipPrefix}
	global := []netip.Prefix{netip.PrefixFrom(vip6, 128)}
	both := []netip.Prefix{netip.PrefixFrom(localVIP, 128), netip.PrefixFrom(vip6, 128)}
	for _, tc := range []struct {
		name             string
		addresses        []netip.Prefix
		ours, theirs     netip.Addr // of the hosts, IPv6: global
		source1, source2 netip.Addr
		multicast        bool
		version          uint8
		auth             Secret
	}{
		{"unicast", ipv4, node1, node2, node1, node2, false, 3, ""},
		{"multicast", ipv4, node1, node2, node1, node2, true, 3, ""},
		{"version 2 unicast", ipv4, node1, node2, node1, node2, false, 2, ""},
		{"version 2 multicast with a password", ipv4, node1, node2, node1, node2, true, 2, "1111"},
		{"IPv6 unicast link-local", both, global1, global2, local1, local2, false, 3, ""},
		{"IPv6 unicast global", global, global1, global2, global1, global2, false, 3, ""},
		{"IPv6 multicast", both, global1, global2, local1, local2, true, 3, ""},
		{"IPv6 multicast, no link-local address", global, global1, global2, local1, local2, true, 3, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel() // they wait most of the time
			client := clientAddr
			if tc.ours.Is6() {
				client = globalClient
			}
			keepalivedTurns(t, newLAN(t, tc.ours, tc.theirs, client), func(c *Config) {
				c.Addresses = tc.addresses
				from, to := tc.source1, tc.source2
				if c.Source == tc.theirs {
					from, to = to, from
				}
				c.Source, c.Peers = from, nil
				c.Version, c.Auth = tc.version, tc.auth
				if tc.version == 2 {
					c.AdvertInterval = time.Second
				}
				if !tc.multicast {
					c.Peers = []netip.Addr{to}
				}
			})
		})
	}
}

// keepalivedTurns has ours on the first host and keepalived on the second. The
// configuration of either is what change makes of its host's.
func keepalivedTurns(t *testing.T, hosts []*host, change func(*Config)) {
	h1, h2, client := hosts[0], hosts[1], hosts[2]
	c, theirConfig := h1.config(101), h2.config(100)
	change(&c)
	change(&theirConfig)
	// Three intervals and a skew of nearly one more, and what a busy test
	// machine adds. A resignation leaves the skew only.
	down := 4*c.AdvertInterval + time.Second
	resigned := c.AdvertInterval + takeoverLimit
	ours := h1.route(c)
	eventually(t, down, "ours owns the address", h1.hasVIP)
	theirs := h2.keepalived("BACKUP", theirConfig)
	client.connect()
	eventually(t, time.Second, "the client reaches ours", func() bool { return client.neighbour() == h1.mac() })
	// keepalived listens for its down interval before it acts. Over IPv4 it
	// refuses the form of checksum that we begin with and speaks up, whereupon
	// we know.
	sent := ours.Snapshot().Sent
	began := time.Now()
	eventually(t, 2*down, "keepalived had its time", func() bool {
		return ours.Snapshot().Sent > sent+5 && time.Since(began) > 5*c.AdvertInterval
	})
	eventually(t, down, "keepalived heeds our advertisements", func() bool { return !h2.hasVIP() && h1.hasVIP() })
	if s := ours.Snapshot(); s.State != Active || s.BecameActive != 1 {
		t.Fatalf("beside keepalived as the backup: %+v", s)
	}
	eventually(t, time.Second, "the client reaches ours still", func() bool { return client.neighbour() == h1.mac() })

	began = time.Now()
	ours.stop()
	eventually(t, resigned, "the client reaches keepalived", func() bool { return client.neighbour() == h2.mac() })
	t.Logf("resignation to keepalived's take-over: %v", time.Since(began))

	// Ours is better, but does not preempt.
	ours = h1.route(c)
	eventually(t, 5*c.AdvertInterval+time.Second, "ours hears keepalived", func() bool { return ours.Snapshot().Received > 4 })
	form := ChecksumPseudo
	if c.Version == version2 {
		form = ChecksumUnknown // it has one only
	}
	if s := ours.Snapshot(); s.State != Backup || h1.hasVIP() || s.Peer.Address != theirConfig.Source || s.Peer.Priority != 100 || s.Peer.Checksum != form ||
		s.Peer.AdvertInterval != c.AdvertInterval || s.AddressMismatches+s.IntervalMismatches != 0 {
		t.Errorf("as keepalived's backup: %+v", s)
	}
	must(t, "terminating keepalived", theirs.Process.Signal(syscall.SIGTERM))
	eventually(t, resigned, "the client reaches ours", func() bool { return client.neighbour() == h1.mac() })
	// The owner can be faster than what tells of the change.
	eventually(t, time.Second, "ours says that it is active", func() bool { return ours.Snapshot().State == Active })
	if reason := ours.Snapshot().Reason; !strings.Contains(reason, "resigned") {
		t.Errorf("took over because %q, not because keepalived resigned", reason)
	}
	for _, r := range ours.Snapshot().Refused {
		if r.Count != 0 {
			t.Errorf("%d of keepalived's packets refused: %s", r.Count, r.Reason)
		}
	}
	must(t, "waiting for keepalived", theirs.Wait())
}

// TestNetnsTakeoverFromKeepalived moves the role by order. keepalived gives way
// without a word, so its lease, which it does not have, must be waited for.
func TestNetnsTakeoverFromKeepalived(t *testing.T) {
	if _, err := exec.LookPath("keepalived"); err != nil {
		t.Skip("needs keepalived")
	}
	hosts := newLAN(t, node1, node2)
	h1, h2 := hosts[0], hosts[1]
	h2.keepalived("MASTER", h2.config(150, node1))
	eventually(t, 5*time.Second, "keepalived owns the address", h2.hasVIP)
	ours := h1.route(h1.config(100, node2))
	eventually(t, 2*time.Second, "ours hears keepalived", func() bool { return ours.Snapshot().Received > 4 })
	began := time.Now()
	must(t, "taking over", ours.Takeover(t.Context(), "test"))
	t.Logf("taken over after %v", time.Since(began))
	eventually(t, time.Second, "the address has moved", func() bool { return h1.hasVIP() && !h2.hasVIP() })
	sent := ours.Snapshot().Sent
	eventually(t, 3*time.Second, "a second of advertisements", func() bool { return ours.Snapshot().Sent > sent+10 })
	if h2.hasVIP() || !h1.hasVIP() {
		t.Error("the role did not stay where it was moved")
	}
	began = time.Now()
	must(t, "resigning", ours.Resign(t.Context(), "test"))
	eventually(t, takeoverLimit, "keepalived owns the address", h2.hasVIP)
	t.Logf("keepalived took over %v after the resignation", time.Since(began))
}
