package vrrp

import (
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// TestOverhear listens beside a router that sends to somebody else (and is not
// heard), to this host, and to the group.
func TestOverhear(t *testing.T) {
	for _, tt := range []struct {
		name  string
		hosts []string
		peers func(hosts []*host) []netip.Addr
		want  bool
	}{
		{"multicast", []string{"192.168.77.1", "192.168.77.2"}, func([]*host) []netip.Addr { return nil }, true},
		{"unicast", []string{"192.168.77.1", "192.168.77.2"}, func(h []*host) []netip.Addr { return []netip.Addr{h[1].addr} }, true},
		{"not to us", []string{"192.168.77.1", "192.168.77.2", "192.168.77.3"}, func(h []*host) []netip.Addr { return []netip.Addr{h[2].addr} }, false},
		{"ipv6", []string{"fd77::1", "fd77::2"}, func(h []*host) []netip.Addr { return nil }, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var addrs []netip.Addr
			for _, h := range tt.hosts {
				addrs = append(addrs, netip.MustParseAddr(h))
			}
			hosts := newLAN(t, addrs...)
			c := hosts[0].config(150, tt.peers(hosts)...)
			if c.Source.Is6() {
				c.Source = localOf(c.Source)
			}
			hosts[0].route(c)
			eventually(t, 10*time.Second, "active", hosts[0].hasVIP)
			source := hosts[1].addr
			if source.Is6() {
				source = localOf(source)
			}
			within(t, hosts[1].ns, func() {
				heard, err := Overhear(t.Context(), "eth0", source, time.Second)
				must(t, "listening", err)
				found := slices.ContainsFunc(heard, func(s Speaker) bool {
					return s.VRID == c.VRID && s.Priority == 150 && s.Version == 3 && s.Source != source
				})
				if found != tt.want {
					t.Errorf("heard %v", heard)
				}
			})
		})
	}
}

// TestHolders asks for an address that a router has, and for one that nobody
// has. No host's table may change by it.
func TestHolders(t *testing.T) {
	hosts := newLAN(t, netip.MustParseAddr("192.168.77.1"), netip.MustParseAddr("192.168.77.2"))
	hosts[0].route(hosts[0].config(150, hosts[1].addr))
	eventually(t, 10*time.Second, "active", hosts[0].hasVIP)
	within(t, hosts[1].ns, func() {
		holders, err := Holders(t.Context(), "eth0", vipPrefix.Addr(), 500*time.Millisecond)
		must(t, "asking", err)
		if len(holders) != 1 || holders[0].String() != hosts[0].mac() {
			t.Errorf("holders %v, want %s", holders, hosts[0].mac())
		}
		holders, err = Holders(t.Context(), "eth0", netip.MustParseAddr("192.168.77.99"), 300*time.Millisecond)
		must(t, "asking", err)
		if len(holders) != 0 {
			t.Errorf("%v have an address that nobody has", holders)
		}
	})
	within(t, hosts[0].ns, func() {
		holders, err := Holders(t.Context(), "eth0", vipPrefix.Addr(), 300*time.Millisecond)
		must(t, "asking", err)
		if len(holders) != 0 {
			t.Errorf("its own address is taken: %v", []net.HardwareAddr(holders))
		}
	})
}
