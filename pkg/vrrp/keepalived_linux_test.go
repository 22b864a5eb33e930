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
	for _, p := range c.Addresses {
		addresses += p.String() + "\n  "
	}
	dir := h.t.TempDir()
	file := filepath.Join(dir, "keepalived.conf")
	must(h.t, "writing keepalived's configuration", os.WriteFile(file, []byte(fmt.Sprintf(`
global_defs {
 vrrp_version 3
}
vrrp_instance main {
 interface eth0
 state %s
 virtual_router_id 51
 priority %d
 advert_int 0.1
 %s
 virtual_ipaddress {
  %s
 }
}
`, state, c.Priority, unicast, addresses)), 0o600))
	return h.start(exec.Command("keepalived", "--vrrp", "--dont-fork", "--log-console", "--use-file", file,
		"--pid", filepath.Join(dir, "pid"), "--vrrp_pid", filepath.Join(dir, "vrrp_pid")))
}

// TestNetnsKeepalived takes turns with keepalived, both ways round.
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
	}{
		{"unicast", ipv4, node1, node2, node1, node2, false},
		{"multicast", ipv4, node1, node2, node1, node2, true},
		{"IPv6 unicast link-local", both, global1, global2, local1, local2, false},
		{"IPv6 unicast global", global, global1, global2, global1, global2, false},
		{"IPv6 multicast", both, global1, global2, local1, local2, true},
		{"IPv6 multicast, no link-local address", global, global1, global2, local1, local2, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
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
	c.ChecksumPseudoHeader = true // it refuses the other form
	change(&c)
	change(&theirConfig)
	ours := h1.route(c)
	eventually(t, 2*time.Second, "ours owns the address", h1.hasVIP)
	theirs := h2.keepalived("BACKUP", theirConfig)
	client.connect()
	eventually(t, time.Second, "the client reaches ours", func() bool { return client.neighbour() == h1.mac() })
	// keepalived listens for its down interval before it acts, so it has
	// accepted our advertisements when it is still a backup after that.
	sent := ours.Snapshot().Sent
	eventually(t, 3*time.Second, "a second of advertisements", func() bool { return ours.Snapshot().Sent > sent+10 })
	if h2.hasVIP() {
		t.Fatal("keepalived does not heed our advertisements")
	}

	ours.stop()
	eventually(t, takeoverLimit, "the client reaches keepalived", func() bool { return client.neighbour() == h2.mac() })

	// Ours is better, but does not preempt.
	ours = h1.route(c)
	eventually(t, 2*time.Second, "ours hears keepalived", func() bool { return ours.Snapshot().Received > 8 })
	if s := ours.Snapshot(); s.State != Backup || h1.hasVIP() || s.Peer.Address != theirConfig.Source || s.Peer.Priority != 100 || s.Peer.Checksum != ChecksumPseudo ||
		s.Peer.AdvertInterval != 100*ms || s.AddressMismatches+s.IntervalMismatches != 0 {
		t.Errorf("as keepalived's backup: %+v", s)
	}
	must(t, "terminating keepalived", theirs.Process.Signal(syscall.SIGTERM))
	eventually(t, takeoverLimit, "the client reaches ours", func() bool { return client.neighbour() == h1.mac() })
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
