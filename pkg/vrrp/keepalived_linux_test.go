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

// keepalived starts the real thing on a host.
func (h *host) keepalived(state string, priority int, peer netip.Addr) *exec.Cmd {
	h.t.Helper()
	unicast := ""
	if peer.IsValid() {
		unicast = fmt.Sprintf("unicast_src_ip %v\n unicast_peer { %v }", h.addr, peer)
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
 virtual_ipaddress { %v }
}
`, state, priority, unicast, vipPrefix)), 0o600))
	return h.start(exec.Command("keepalived", "--vrrp", "--dont-fork", "--log-console", "--use-file", file,
		"--pid", filepath.Join(dir, "pid"), "--vrrp_pid", filepath.Join(dir, "vrrp_pid")))
}

// TestNetnsKeepalived takes turns with keepalived, both ways round.
func TestNetnsKeepalived(t *testing.T) {
	if _, err := exec.LookPath("keepalived"); err != nil {
		t.Skip("needs keepalived")
	}
	for _, tc := range []struct {
		name      string
		multicast bool
	}{{"unicast", false}, {"multicast", true}} {
		t.Run(tc.name, func(t *testing.T) {
			hosts := newLAN(t, node1, node2, clientAddr)
			h1, h2, client := hosts[0], hosts[1], hosts[2]
			c := h1.config(101, node2)
			c.ChecksumPseudoHeader = true // it refuses the other form
			peer := node1
			if tc.multicast {
				c.Peers, peer = nil, netip.Addr{}
			}
			ours := h1.route(c)
			eventually(t, 2*time.Second, "ours owns the address", h1.hasVIP)
			theirs := h2.keepalived("BACKUP", 100, peer)
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
			if s := ours.Snapshot(); s.State != Backup || h1.hasVIP() || s.Peer.Address != node2 || s.Peer.Priority != 100 || s.Peer.Checksum != ChecksumPseudo ||
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
		})
	}
}
