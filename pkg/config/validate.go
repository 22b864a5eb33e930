package config

import (
	"net/netip"
	"slices"
	"strconv"

	"github.com/pgsteer/pgsteer/pkg/lb"
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
	v.checkSync(vips)
	v.checkPorts()
	v.checkSizes()
}

// checkRouters returns the virtual addresses and where each stands.
func (v *validator) checkRouters() first[netip.Addr] {
	type id struct {
		vrid uint8
		ipv6 bool
	}
	names, vrids, vips := first[string]{}, map[id]node{}, first[netip.Addr]{}
	for i, r := range v.c.VirtualRouters {
		n := v.routers[i]
		names.unique(r.Name, n.child("name"), "name")
		// Virtual routers of the two families are always separate instances
		// (RFC 9568, abstract), with the same id or not.
		key := id{r.VRID, r.Addresses[0].Addr().Is6()}
		if before, ok := vrids[key]; ok {
			n.child("vrid").fail("vrid %d is used twice; first in line %d (%s)", r.VRID, before.Line, before.path)
		} else {
			vrids[key] = n.child("vrid")
		}
		for j, p := range r.Addresses {
			vips.unique(p.Addr(), n.index("addresses", j), "address")
		}
	}
	for i, r := range v.c.VirtualRouters {
		v.checkFamily(r, v.routers[i])
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

// family names an address's family.
func family(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// checkFamily checks that a virtual router has one family (RFC 9568, abstract), and
// what depends on which.
func (v *validator) checkFamily(r VirtualRouter, n node) {
	is := r.Addresses[0].Addr()
	same := func(a netip.Addr, at node) {
		if a.Is4() != is.Is4() {
			at.fail("%s is %s, but the first address, %s, is %s; a virtual router has one family", a, family(a), is, family(is))
		}
	}
	for j, p := range r.Addresses[1:] {
		same(p.Addr(), n.index("addresses", j+1))
	}
	same(r.Source, n.child("source"))
	for j, p := range r.Peers {
		same(p, n.index("peers", j))
	}
	if is.Is4() {
		return
	}
	if len(r.Peers) == 0 && r.Source.Is6() && !r.Source.IsLinkLocalUnicast() {
		n.child("source").fail("%s is not link-local, as multicast over IPv6 needs it to be; or name peers", r.Source)
	}
	if r.Version == 2 {
		n.child("version").fail("version 2 is for IPv4 only")
	}
	if r.Checksum != "auto" {
		n.child("checksum").fail("has no meaning for IPv6, whose checksum covers the pseudo header anyway")
	}
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
		v.checkClients(s, n)
		v.checkNATAddrs(s, n)
		inService, inUse := first[string]{}, false
		for j, b := range s.Backends {
			at := n.index("backends", j)
			inUse = inUse || !b.Backup
			inService.unique(b.Name, at.child("name"), "name")
			backends.unique(b.Addr, at.child("address"), "address")
			ofService(s, b.Addr.Addr(), at.child("address"))
			if vip, ok := vips[b.Addr.Addr()]; ok {
				at.child("address").fail("%s is a virtual address (%s); a backend behind it would be a loop", b.Addr.Addr(), vip.path)
			}
			if path, ok := own[b.Addr.Addr()]; ok {
				at.child("address").fail("%s is this node's own address (%s); a backend must be another host, because packets to it leave by the interface",
					b.Addr.Addr(), path)
			}
		}
		if !inUse {
			n.child("backends").fail("all of them are backups; at least one must be none")
		}
	}
}

// ofService refuses an address that is not of the service's family.
func ofService(s Service, a netip.Addr, at node) {
	if a.Is4() != s.Addr.Addr().Is4() {
		at.fail("%s is %s, but the service's address, %s, is %s; a service has one family", a, family(a), s.Addr.Addr(), family(s.Addr.Addr()))
	}
}

// checkClients checks the networks that clients may come from.
func (v *validator) checkClients(s Service, n node) {
	networks := first[netip.Prefix]{}
	for j, p := range s.Allow {
		at := n.index("allow", j)
		networks.unique(p, at, "network")
		ofService(s, p.Addr(), at)
	}
}

// checkNATAddrs checks that the further source addresses move together with
// the service's own: a connection would not survive otherwise.
func (v *validator) checkNATAddrs(s Service, n node) {
	of := func(a netip.Addr) string { // the virtual router that has it
		for _, r := range v.c.VirtualRouters {
			if slices.ContainsFunc(r.Addresses, func(p netip.Prefix) bool { return p.Addr() == a }) {
				return r.Name
			}
		}
		return ""
	}
	router, addrs := of(s.Addr.Addr()), first[netip.Addr]{}
	for j, a := range s.NATAddrs {
		at := n.index("nat_addresses", j)
		addrs.unique(a, at, "address")
		switch {
		case a == s.Addr.Addr():
			at.fail("%s is the service's own address, which is used anyway", a)
		case router != "" && of(a) != router:
			at.fail("%s is not an address of the virtual router %s, which has the service's address; the two must move together", a, router)
		case a.Is6() && a.IsLinkLocalUnicast():
			at.fail("%s is a link-local address; connections need one that is unique beyond the link", a)
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

// checkSizes checks what the datapath's tables hold of each family.
func (v *validator) checkSizes() {
	addresses, networks := map[string]int{}, map[string]int{}
	for _, r := range v.c.VirtualRouters {
		addresses[family(r.Source)] += len(r.Addresses)
	}
	for _, s := range v.c.Services {
		networks[family(s.Addr.Addr())] += len(s.Allow)
	}
	for _, name := range []string{"IPv4", "IPv6"} {
		if n := addresses[name]; n > lb.MaxVIPs {
			v.root.at("virtual_routers").fail("they have %d %s addresses together; %d is the limit", n, name, lb.MaxVIPs)
		}
		if n := networks[name]; n > lb.MaxAllowed {
			v.root.at("services").fail("they allow %d %s networks together; %d is the limit", n, name, lb.MaxAllowed)
		}
	}
}
