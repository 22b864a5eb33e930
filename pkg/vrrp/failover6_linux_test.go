package vrrp

import (
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/ndp"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

var vip6Prefix = netip.PrefixFrom(vip6, 128)

// capture6 listens to Neighbor Discovery on a host.
func capture6(h *host) *ndp.Conn {
	h.t.Helper()
	var conn *ndp.Conn
	within(h.t, h.ns, func() {
		ifi, err := net.InterfaceByName("eth0")
		must(h.t, "finding eth0", err)
		conn, _, err = ndp.Listen(ifi, ndp.Unspecified)
		must(h.t, "opening an NDP socket", err)
		must(h.t, "asking for more", conn.SetControlMessage(ipv6.FlagDst|ipv6.FlagHopLimit, true))
	})
	h.t.Cleanup(func() { conn.Close() })
	return conn
}

// unsolicitedFrom reads until an unsolicited advertisement of the address has
// come from mac, and holds it against RFC 9568 section 6.4.1.
func unsolicitedFrom(t *testing.T, conn *ndp.Conn, mac string, addr netip.Addr) {
	t.Helper()
	must(t, "setting a deadline", conn.SetReadDeadline(time.Now().Add(2*time.Second)))
	for {
		m, cm, _, err := conn.ReadFrom()
		if err != nil {
			t.Fatalf("waiting for a neighbor advertisement of %v by %s: %v", addr, mac, err)
		}
		na, ok := m.(*ndp.NeighborAdvertisement)
		if !ok || na.Solicited || na.TargetAddress != addr || len(na.Options) != 1 {
			continue
		}
		lla, ok := na.Options[0].(*ndp.LinkLayerAddress)
		if !ok || lla.Addr.String() != mac {
			continue
		}
		if !na.Router || !na.Override || lla.Direction != ndp.Target || cm.HopLimit != 255 || cm.Dst.String() != allNodes.String() {
			t.Errorf("neighbor advertisement %+v with hop limit %d to %v", na, cm.HopLimit, cm.Dst)
		}
		return
	}
}

// TestNetnsFailoverIPv6 is TestNetnsFailover in the other family, with the
// sources that RFC 9568 and operators use.
func TestNetnsFailoverIPv6(t *testing.T) {
	for _, tc := range []struct {
		name             string
		addresses        []netip.Prefix
		source1, source2 netip.Addr
		multicast        bool
	}{
		{"unicast link-local", []netip.Prefix{netip.PrefixFrom(localVIP, 64), vip6Prefix}, local1, local2, false},
		{"unicast global", []netip.Prefix{vip6Prefix}, global1, global2, false},
		{"multicast", []netip.Prefix{netip.PrefixFrom(localVIP, 128), vip6Prefix}, local1, local2, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			hosts := newLAN(t, global1, global2, globalClient)
			h1, h2, client := hosts[0], hosts[1], hosts[2]
			c1, c2 := h1.config(101), h2.config(100)
			c1.Source, c2.Source = netip.Addr{}, netip.Addr{} // found by itself
			c1.Addresses, c2.Addresses = tc.addresses, tc.addresses
			if !tc.multicast {
				c1.Peers, c2.Peers = []netip.Addr{tc.source2}, []netip.Addr{tc.source1}
			}
			wire := capture6(client)
			r1 := h1.route(c1)
			eventually(t, 2*time.Second, "node 1 owns the address", h1.hasVIP)
			for _, p := range tc.addresses {
				unsolicitedFrom(t, wire, h1.mac(), p.Addr())
			}
			r2 := h2.route(c2)
			eventually(t, time.Second, "node 2 hears node 1", func() bool { return r2.Snapshot().Received > 3 })
			client.connect()
			eventually(t, time.Second, "the client reaches node 1", func() bool { return client.neighbour() == h1.mac() })

			began := time.Now()
			r1.stop()
			eventually(t, takeoverLimit, "the client reaches node 2", func() bool { return client.neighbour() == h2.mac() })
			t.Logf("resignation to the client's new entry: %v", time.Since(began))
			if h1.hasVIP() || !h2.hasVIP() {
				t.Error("the address is not on node 2 alone")
			}
			for _, p := range tc.addresses {
				unsolicitedFrom(t, wire, h2.mac(), p.Addr())
			}
			// A better node that preempts, and then a contender.
			c1.Preempt = true
			r1 = h1.route(c1)
			eventually(t, 2*time.Second, "the client reaches node 1 again", func() bool { return client.neighbour() == h1.mac() })
			eventually(t, time.Second, "node 2 has given the address up", func() bool { return !h2.hasVIP() })
			for _, s := range []Snapshot{r1.Snapshot(), r2.Snapshot()} {
				if s.Source != tc.source1 && s.Source != tc.source2 {
					t.Errorf("the source %v was chosen", s.Source)
				}
				if s.SendErrors+s.UnsolicitedNAErrors+s.AddressMismatches+s.Restored != 0 || s.GratuitousARP != 0 {
					t.Errorf("%s: %+v", s.Source, s)
				}
				for _, c := range s.Refused {
					if c.Count != 0 {
						t.Errorf("%s: %d packets refused: %s", s.Source, c.Count, c.Reason)
					}
				}
			}
		})
	}
}

// TestNetnsYoungEntryIPv6 sends one announcement to a client whose entry is
// milliseconds old: Linux ignores some forms of gratuitous ARP then.
func TestNetnsYoungEntryIPv6(t *testing.T) {
	hosts := newLAN(t, global1, global2, globalClient)
	h1, h2, client := hosts[0], hosts[1], hosts[2]
	must(t, "adding the address", h1.nl.AddrAdd(h1.eth0, &netlink.Addr{IPNet: toIPNet(vip6Prefix), Flags: unix.IFA_F_NODAD}))
	var a *advertiser
	within(t, h2.ns, func() {
		var err error
		a, err = openAdvertiser("eth0", local2, nil)
		must(t, "opening an advertiser", err)
	})
	defer a.close()
	client.connect()
	// The first solicitation can be lost while the links come up; the next
	// follows after a second.
	eventually(t, 3*time.Second, "the client reaches node 1", func() bool { return client.neighbour() == h1.mac() })
	sent, err := a.announce(h2.eth0.Attrs().HardwareAddr, vip6)
	if sent != 1 || err != nil {
		t.Fatalf("announce: %d, %v", sent, err)
	}
	eventually(t, 500*ms, "the client reaches node 2", func() bool { return client.neighbour() == h2.mac() })
}

// TestNetnsWireIPv6 looks at what is sent, bit by bit, and at what the kernel
// was told of the address.
func TestNetnsWireIPv6(t *testing.T) {
	hosts := newLAN(t, global1, global2)
	h1, h2 := hosts[0], hosts[1]
	var c2 *conn
	within(t, h2.ns, func() {
		var err error
		c2, err = listen("eth0", h2.eth0.Attrs().Index, local2, true)
		must(t, "listening", err)
	})
	defer c2.close()
	c := h1.config(101, local2)
	c.Source, c.Addresses = local1, []netip.Prefix{netip.PrefixFrom(localVIP, 128), vip6Prefix}
	r := h1.route(c)
	var packets [][]byte
	eventually(t, 2*time.Second, "an advertisement arrives", func() bool {
		var err error
		packets, _, err = c2.take()
		must(t, "receiving", err)
		return len(packets) > 0
	})
	want := packetOf(local1, local2, 255, unhex(t, "31336502 000a6e82 fe800000000000000000000000000100 fd000001000000000000000000000100"))
	if !slices.Equal(packets[0], want) {
		t.Errorf("packet %x, want %x", packets[0], want)
	}
	eventually(t, time.Second, "the address is there", h1.hasVIP)
	addrs, err := h1.nl.AddrList(h1.eth0, netlink.FAMILY_V6)
	must(t, "listing addresses", err)
	const flags = unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE | unix.IFA_F_DEPRECATED
	for _, a := range addrs {
		if p, ok := toPrefix(a.IPNet); ok && (p.Addr() == vip6 || p.Addr() == localVIP) && (a.Flags != flags || a.PreferedLft != 0 || a.ValidLft > 4) {
			t.Errorf("%v has flags %#x, want %#x; it is preferred for %d s and valid for %d s", p, a.Flags, flags, a.PreferedLft, a.ValidLft)
		}
	}
	// It is not chosen as a source, though its prefix is the longest match.
	within(t, h1.ns, func() {
		c, err := net.Dial("udp6", "[fd00:1::101]:9")
		must(t, "connecting", err)
		defer c.Close()
		if got := c.LocalAddr().(*net.UDPAddr).IP.String(); got != global1.String() {
			t.Errorf("the node's own traffic comes from %s", got)
		}
	})
	// Nor by another router of the node, which has to find its own source.
	other := h1.config(101, local2)
	other.VRID, other.Source, other.Addresses = 52, netip.Addr{}, []netip.Prefix{netip.MustParsePrefix("fd00:1::101/128")}
	if got := h1.route(other).Snapshot().Source; got != local1 {
		t.Errorf("another router chose %v as its source", got)
	}
	must(t, "removing the address", h1.nl.AddrDel(h1.eth0, &netlink.Addr{IPNet: toIPNet(vip6Prefix)}))
	eventually(t, auditInterval/2, "the address is back", h1.hasVIP)
	eventually(t, time.Second, "it is counted", func() bool { return r.Snapshot().Restored == 1 })
}

func TestNetnsOpenRefusesIPv6(t *testing.T) {
	hosts := newLAN(t, global1, global2)
	h, neighbour := hosts[0], hosts[1]
	// One address that another host has, and one that is looked at for ever.
	within(t, h.ns, func() {
		must(t, "slowing detection", os.WriteFile("/proc/sys/net/ipv6/conf/eth0/dad_transmits", []byte("1000"), 0))
	})
	tentative, duplicate := netip.MustParseAddr("fe80::20"), netip.MustParseAddr("fe80::21")
	must(t, "adding a duplicate", neighbour.nl.AddrAdd(neighbour.eth0, &netlink.Addr{
		IPNet: toIPNet(netip.PrefixFrom(duplicate, 64)), Flags: unix.IFA_F_NODAD,
	}))
	for _, a := range []netip.Addr{tentative, duplicate} {
		must(t, "adding an address", h.nl.AddrAdd(h.eth0, &netlink.Addr{IPNet: toIPNet(netip.PrefixFrom(a, 64))}))
	}
	eventually(t, 5*time.Second, "the duplicate is found", func() bool {
		addrs, err := h.nl.AddrList(h.eth0, netlink.FAMILY_V6)
		must(t, "listing addresses", err)
		return slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.Flags&unix.IFA_F_DADFAILED != 0 })
	})
	must(t, "adding an interface without an address", h.nl.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "ha-bare"}, PeerName: "ha-bare-peer",
	}))
	lo, err := h.nl.LinkByName("lo")
	must(t, "finding lo", err)
	for _, tc := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"tentative source", func(c *Config) { c.Source = tentative }, "source fe80::20 cannot be used yet: interface eth0 is still looking for duplicates of it"},
		{"duplicate source", func(c *Config) { c.Source = duplicate }, "source fe80::21 cannot be used: another host on the link of eth0 has it too"},
		{"foreign source", func(c *Config) { c.Source = local2 }, "source fe80::11 is not an address of interface eth0"},
		{"no link-local address", func(c *Config) { c.Interface, c.Source = "ha-bare", netip.Addr{} }, "interface ha-bare has no link-local IPv6 address"},
		{"no other address", func(c *Config) { c.Interface, c.Source, c.Peers = "ha-bare", netip.Addr{}, []netip.Addr{global2} }, "interface ha-bare has no IPv6 address beyond the link-local"},
		{"peer is ourselves", func(c *Config) { c.Source, c.Peers = netip.Addr{}, []netip.Addr{local1} }, "peer fe80::10 is this node's own source address"},
		{"address elsewhere", func(c *Config) {
			must(t, "adding the address to lo", h.nl.AddrAdd(lo, &netlink.Addr{IPNet: toIPNet(vip6Prefix)}))
		}, "virtual address fd00:1::100 is already on interface lo"},
	} {
		c := h.config(100)
		c.Source = local1
		tc.change(&c)
		within(t, h.ns, func() {
			r, err := Open(c)
			if err == nil {
				r.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.HasPrefix(err.Error(), "virtual router main: ") {
				t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
			}
		})
	}
	// Of several addresses one that is ready is found.
	c := h.config(100)
	c.Source, c.Addresses = netip.Addr{}, []netip.Prefix{netip.MustParsePrefix("fd00:1::101/128")}
	if got := h.route(c).Snapshot().Source; got != local1 {
		t.Errorf("chose %v as its source", got)
	}
}

// TestNetnsInterfaceDownIPv6 takes an active node's interface down and up, which
// makes the kernel drop all its IPv6 addresses. The node must be fit to take
// over again once it has its own ones back.
func TestNetnsInterfaceDownIPv6(t *testing.T) {
	for _, multicast := range []bool{false, true} {
		t.Run(map[bool]string{false: "unicast", true: "multicast"}[multicast], func(t *testing.T) {
			hosts := newLAN(t, global1, global2, globalClient)
			h1, h2, client := hosts[0], hosts[1], hosts[2]
			c1, c2 := h1.config(101, local2), h2.config(100, local1)
			c1.Source, c2.Source = local1, local2
			if multicast {
				c1.Peers, c2.Peers = nil, nil
			}
			r1 := h1.route(c1)
			eventually(t, 2*time.Second, "node 1 owns the address", h1.hasVIP)
			r2 := h2.route(c2)
			eventually(t, time.Second, "node 2 hears node 1", func() bool { return r2.Snapshot().Received > 3 })
			client.connect()
			eventually(t, 3*time.Second, "the client reaches node 1", func() bool { return client.neighbour() == h1.mac() })

			must(t, "taking the interface down", h1.nl.LinkSetDown(h1.eth0))
			eventually(t, takeoverLimit, "the client reaches node 2", func() bool { return client.neighbour() == h2.mac() })
			must(t, "bringing the interface up", h1.nl.LinkSetUp(h1.eth0))
			for _, a := range []netip.Addr{global1, local1} {
				err := h1.nl.AddrAdd(h1.eth0, &netlink.Addr{IPNet: toIPNet(netip.PrefixFrom(a, 64)), Flags: unix.IFA_F_NODAD})
				must(t, "addressing it again", err)
			}
			eventually(t, 3*time.Second, "one node remains, and both hear", func() bool {
				s1, s2 := r1.Snapshot(), r2.Snapshot()
				backup := s1
				if s1.State == Active {
					backup = s2
				}
				return (s1.State == Active) != (s2.State == Active) && h1.hasVIP() != h2.hasVIP() && backup.Peer.Ago < 200*ms && backup.Peer.Priority > 0
			})
			if r2.Snapshot().State == Active {
				r2.stop()
			}
			eventually(t, takeoverLimit, "the client reaches node 1", func() bool { return client.neighbour() == h1.mac() })
		})
	}
}

// TestNetnsManyAddressesIPv6 has advertisements that are longer than a frame.
func TestNetnsManyAddressesIPv6(t *testing.T) {
	hosts := newLAN(t, global1, global2)
	c1, c2 := hosts[0].config(101, local2), hosts[1].config(100, local1)
	c1.Source, c2.Source = local1, local2
	c1.Addresses = nil
	for a := netip.MustParseAddr("fd00:1::1000"); len(c1.Addresses) < 255; a = a.Next() {
		c1.Addresses = append(c1.Addresses, netip.PrefixFrom(a, 128))
	}
	c2.Addresses = c1.Addresses
	r1 := hosts[0].route(c1)
	eventually(t, 2*time.Second, "node 1 is active", func() bool { return r1.Snapshot().State == Active })
	r2 := hosts[1].route(c2)
	eventually(t, 2*time.Second, "node 2 hears node 1", func() bool { return r2.Snapshot().Received > 3 })
	s := r2.Snapshot()
	for _, c := range s.Refused {
		if c.Count != 0 {
			t.Errorf("%d packets refused: %s", c.Count, c.Reason)
		}
	}
	if s.AddressMismatches != 0 || s.State != Backup {
		t.Errorf("node 2: %+v", s)
	}
}
