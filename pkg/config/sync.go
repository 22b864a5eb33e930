package config

import (
	"net/netip"
	"time"
)

// Sync replicates the connections between the two nodes, so that they go on
// when the addresses move.
type Sync struct {
	// Listen is this node's own address and port for it, Peer the other node's;
	// there they stand the other way round. Keys: listen, peer. Required.
	Listen, Peer netip.AddrPort
	// KeyFile has what the two nodes know each other by, made by "pgsteer keygen"
	// and copied to both. Key: key_file; absolute. Required.
	KeyFile string
	// Heartbeat is the time between two signs of life; after three without one
	// the other node is taken for unreachable. Key: heartbeat; 10ms to 10s.
	// Default: 100ms.
	Heartbeat time.Duration
}

func parseSync(root section) *Sync {
	if !root.has("sync") {
		return nil
	}
	s := root.sub("sync", "listen", "peer", "key_file", "heartbeat")
	return &Sync{
		Listen:    need(s, "listen", addrPort),
		Peer:      need(s, "peer", addrPort),
		KeyFile:   need(s, "key_file", path),
		Heartbeat: get(s, "heartbeat", 100*time.Millisecond, duration(10*time.Millisecond, 10*time.Second)),
	}
}

// checkSync checks that the two ends are two, and no virtual addresses: these
// move.
func (v *validator) checkSync(vips first[netip.Addr]) {
	c := v.c.Sync
	if c == nil {
		return
	}
	s := v.root.sub("sync", "listen", "peer", "key_file", "heartbeat")
	for i, r := range v.c.VirtualRouters {
		if r.Lone {
			v.routers[i].child("lone").fail("there is another node (sync)")
		}
	}
	if c.Listen == c.Peer {
		s.at("peer").fail("%s is this node's own address (sync.listen)", c.Peer)
	}
	if c.Listen.Addr().Is4() != c.Peer.Addr().Is4() {
		s.at("peer").fail("%s is %s, but sync.listen, %s, is %s", c.Peer.Addr(), family(c.Peer.Addr()), c.Listen.Addr(), family(c.Listen.Addr()))
	}
	for _, end := range []struct {
		key  string
		addr netip.AddrPort
	}{{"listen", c.Listen}, {"peer", c.Peer}} {
		if vip, ok := vips[end.addr.Addr()]; ok {
			s.at(end.key).fail("%s is a virtual address (%s); the nodes speak to each other by their own", end.addr.Addr(), vip.path)
		}
	}
	snat := portRange{v.c.XDP.SNATLow, v.c.XDP.SNATHigh}
	if port := c.Listen.Port(); snat.contains(port) {
		s.at("listen").fail("port %d lies in xdp.snat_ports (%d-%d), which are for the connections to the backends", port, snat.low, snat.high)
	}
}
