package config

import (
	"net/netip"
	"strconv"
)

// A validator checks the rules that tie several values together. The nodes
// tell it where a value stands.
type validator struct {
	c        *Config
	root     section
	services []node
	routers  []node
}

// first remembers where a value was first seen and refuses it the second time.
type first[T comparable] map[T]node

func (f first[T]) unique(v T, n node, what string) {
	if before, ok := f[v]; ok {
		n.fail("%s %v is used twice; first in line %d (%s)", what, v, before.Line, before.path)
		return
	}
	f[v] = n
}

// child returns the value under key of a mapping that was read before, or the
// mapping itself where the key is absent.
func (n node) child(key string) node {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.d.resolve(n.Content[i+1], n.path+"."+key)
		}
	}
	return n
}

// index returns the i-th value of the list under key.
func (n node) index(key string, i int) node {
	l := n.child(key)
	return n.d.resolve(l.Content[i], l.path+"["+strconv.Itoa(i)+"]")
}

func (v *validator) validate() {
	vips := v.checkRouters()
	v.checkServices(vips)
	v.checkPorts()
}

// checkRouters returns the virtual addresses and where each stands.
func (v *validator) checkRouters() first[netip.Addr] {
	names, vrids, vips := first[string]{}, first[uint8]{}, first[netip.Addr]{}
	for i, r := range v.c.VirtualRouters {
		n := v.routers[i]
		names.unique(r.Name, n.child("name"), "name")
		vrids.unique(r.VRID, n.child("vrid"), "vrid")
		for j, p := range r.Addresses {
			vips.unique(p.Addr(), n.index("addresses", j), "address")
		}
	}
	for i, r := range v.c.VirtualRouters {
		n, peers := v.routers[i], first[netip.Addr]{}
		if at, ok := vips[r.Source]; ok {
			n.child("source").fail("%s is a virtual address (%s); adverts come from the node's own", r.Source, at.path)
		}
		for j, p := range r.Peers {
			at := n.index("peers", j)
			peers.unique(p, at, "peer")
			if p == r.Source {
				at.fail("%s is this node's own address (source); a node is no peer of itself", p)
			}
			if vip, ok := vips[p]; ok {
				at.fail("%s is a virtual address (%s); a peer is a node", p, vip.path)
			}
		}
	}
	return vips
}

func (v *validator) checkServices(vips first[netip.Addr]) {
	names, addrs, backends := first[string]{}, first[netip.AddrPort]{}, first[netip.AddrPort]{}
	own := map[netip.Addr]string{}
	for i, r := range v.c.VirtualRouters {
		own[r.Source] = v.routers[i].child("source").path
	}
	for i, s := range v.c.Services {
		n := v.services[i]
		names.unique(s.Name, n.child("name"), "name")
		addrs.unique(s.Addr, n.child("address"), "address")
		if _, ok := vips[s.Addr.Addr()]; !ok {
			n.child("address").fail("%s is not an address of a virtual router; add it to virtual_routers[].addresses", s.Addr.Addr())
		}
		inService := first[string]{}
		for j, b := range s.Backends {
			at := n.index("backends", j)
			inService.unique(b.Name, at.child("name"), "name")
			backends.unique(b.Addr, at.child("address"), "address")
			if vip, ok := vips[b.Addr.Addr()]; ok {
				at.child("address").fail("%s is a virtual address (%s); a backend behind it would be a loop", b.Addr.Addr(), vip.path)
			}
			if path, ok := own[b.Addr.Addr()]; ok {
				at.child("address").fail("%s is this node's own address (%s); a backend must be another host, because packets to it leave by the interface",
					b.Addr.Addr(), path)
			}
		}
	}
}

// checkPorts keeps the ports towards the backends apart from those on which
// the virtual address itself is spoken to.
func (v *validator) checkPorts() {
	snat := portRange{v.c.XDP.SNATLow, v.c.XDP.SNATHigh}
	for i, s := range v.c.Services {
		if snat.contains(s.Addr.Port()) {
			v.services[i].child("address").fail("port %d lies in xdp.snat_ports (%d-%d), which are for the connections to the backends",
				s.Addr.Port(), snat.low, snat.high)
		}
	}
	if port := v.c.Stats.Port; snat.contains(port) {
		v.root.sub("stats", "listen").at("listen").fail("port %d lies in xdp.snat_ports (%d-%d), which are for the connections to the backends",
			port, snat.low, snat.high)
	}
}
