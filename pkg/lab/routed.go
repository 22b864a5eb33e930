package lab

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// The hosts of a routed lab, beside those of the picture: clients that come
// from another network, and poolers that are in another. A router leads to
// each.
//
//	remote ── gateway ── LAN ── router ── pooler's second interface
const (
	Remote  = "remote"  // a client that is not on the LAN
	Gateway = "gateway" // the router between it and the LAN
	Router  = "router"  // the router between the LAN and the poolers
)

// routedHosts are those of them that are on the LAN.
var routedHosts = []host{
	{name: Gateway, addr: netip.MustParseAddr("192.168.1.1"), addr6: netip.MustParseAddr("fd00:1::1")},
	{name: Router, addr: netip.MustParseAddr("192.168.1.2"), addr6: netip.MustParseAddr("fd00:1::2")},
}

// remoteHost has no interface on the LAN, and no port there.
var remoteHost = host{name: Remote, addr: netip.MustParseAddr("192.168.2.50"), addr6: netip.MustParseAddr("fd00:2::50")}

// cable is a network beyond the LAN: a router's eth1, and one host.
type cable struct {
	router, host, link string          // the link is the host's
	near, far          [2]netip.Prefix // the router's addresses and the host's, IPv4 and IPv6
}

var (
	remoteCable = cable{
		router: Gateway, host: Remote, link: hostLink,
		near: prefixes("192.168.2.1/24", "fd00:2::1/64"),
		far:  [2]netip.Prefix{netip.PrefixFrom(remoteHost.addr, lanBits), netip.PrefixFrom(remoteHost.addr6, lanBits6)},
	}
	poolerCable = cable{
		router: Router, host: Pooler, link: routedLink,
		near: prefixes("192.168.3.1/24", "fd00:3::1/64"), far: prefixes("192.168.3.5/24", "fd00:3::5/64"),
	}
	cables = []cable{remoteCable, poolerCable}
)

const (
	// routedLink is the second interface of a host.
	routedLink = "eth1"
	// routedTable is the routing table of what the poolers send from their
	// addresses beyond the LAN: it goes back through the router, although the
	// balancers are on the pooler's own network too.
	routedTable = 3
)

func prefixes(v4, v6 string) [2]netip.Prefix {
	return [2]netip.Prefix{netip.MustParsePrefix(v4), netip.MustParsePrefix(v6)}
}

var (
	routerSysctls = map[string]string{
		"net/ipv4/conf/all/forwarding": "1",
		"net/ipv6/conf/all/forwarding": "1",
		// A changed hardware address is announced, as routers do that take
		// over from another.
		"net/ipv4/conf/all/arp_notify":   "1",
		"net/ipv6/conf/all/ndisc_notify": "1",
	}
	// What comes to a pooler through the router has a source on its LAN.
	asymmetricSysctls = map[string]string{
		"net/ipv4/conf/all/rp_filter":     "0",
		"net/ipv4/conf/default/rp_filter": "0",
	}
)

// buildRoutes makes the networks beyond the LAN. The hosts on the LAN are there.
func (l *Lab) buildRoutes() error {
	if err := createNamespace(l.namespace(Remote)); err != nil {
		return err
	}
	if err := setSysctls(l.namespace(Remote), hostSysctls); err != nil {
		return err
	}
	for _, h := range routedHosts {
		if err := setSysctls(l.namespace(h.name), routerSysctls); err != nil {
			return err
		}
	}
	if err := setSysctls(l.namespace(Pooler), asymmetricSysctls); err != nil {
		return err
	}
	for _, c := range cables {
		if err := l.lay(c); err != nil {
			return fmt.Errorf("connecting %s to %s: %w", c.host, c.router, err)
		}
	}
	for _, balancer := range Balancers() {
		if err := l.routeBalancer(balancer); err != nil {
			return fmt.Errorf("routing on %s: %w", balancer, err)
		}
	}
	return nil
}

// lay lays a cable and has its end answer through it.
func (l *Lab) lay(c cable) error {
	router, err := openHandle(l.namespace(c.router))
	if err != nil {
		return err
	}
	defer router.Close()
	end, err := openHandle(l.namespace(c.host))
	if err != nil {
		return err
	}
	defer end.Close()
	ns, err := netns.GetFromName(l.namespace(c.host))
	if err != nil {
		return fmt.Errorf("opening network namespace: %w", err)
	}
	defer ns.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = routedLink, lanMTU
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: c.link, PeerNamespace: netlink.NsFd(ns), PeerMTU: lanMTU}
	if err := router.LinkAdd(veth); err != nil {
		return fmt.Errorf("adding veth pair %s: %w", routedLink, err)
	}
	if err := linkUp(end, "lo"); err != nil {
		return err
	}
	if _, err := addressLink(router, routedLink, c.near[:]); err != nil {
		return err
	}
	link, err := addressLink(end, c.link, c.far[:])
	if err != nil {
		return err
	}
	for i := range c.near {
		if err := c.answer(end, link, i); err != nil {
			return err
		}
	}
	return nil
}

// answer makes the router the way back to everybody. A host that is on the LAN
// too takes it for what it sends from its address here.
func (c cable) answer(end *netlink.Handle, link netlink.Link, family int) error {
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: c.near[family].Addr().AsSlice()}
	if c.link == routedLink {
		route.Table = routedTable
		rule := netlink.NewRule()
		own := c.far[family].Addr()
		rule.Src = &net.IPNet{IP: own.AsSlice(), Mask: net.CIDRMask(own.BitLen(), own.BitLen())}
		rule.Family = []int{unix.AF_INET, unix.AF_INET6}[family]
		rule.Table = routedTable
		if err := end.RuleAdd(rule); err != nil {
			return fmt.Errorf("adding a rule for what comes from %v: %w", own, err)
		}
	}
	if err := end.RouteAdd(route); err != nil {
		return fmt.Errorf("adding a route through %v: %w", c.near[family].Addr(), err)
	}
	return nil
}

// routeBalancer tells a balancer the way to the networks beyond the LAN.
func (l *Lab) routeBalancer(balancer string) error {
	h, err := openHandle(l.namespace(balancer))
	if err != nil {
		return err
	}
	defer h.Close()
	eth, err := h.LinkByName(hostLink)
	if err != nil {
		return fmt.Errorf("finding %s: %w", hostLink, err)
	}
	for _, c := range cables {
		via := mustRouted(c.router)
		for i, gw := range []netip.Addr{via.addr, via.addr6} {
			to := c.near[i].Masked()
			err := h.RouteAdd(&netlink.Route{
				LinkIndex: eth.Attrs().Index, Gw: gw.AsSlice(),
				Dst: &net.IPNet{IP: to.Addr().AsSlice(), Mask: net.CIDRMask(to.Bits(), to.Addr().BitLen())},
			})
			if err != nil {
				return fmt.Errorf("adding a route to %v through %v: %w", to, gw, err)
			}
		}
	}
	return nil
}

func mustRouted(name string) host {
	for _, h := range routedHosts {
		if h.name == name {
			return h
		}
	}
	panic("no such router: " + name) // only called with the constants above
}

// addressLink brings an interface up and gives it addresses.
func addressLink(h *netlink.Handle, name string, addresses []netip.Prefix) (netlink.Link, error) {
	if err := linkUp(h, name); err != nil {
		return nil, err
	}
	link, err := h.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("finding %s: %w", name, err)
	}
	for _, p := range addresses {
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
		if err := h.AddrAdd(link, addr); err != nil {
			return nil, fmt.Errorf("adding address %s: %w", p, err)
		}
	}
	return link, nil
}

// SetHardwareAddr gives a host another MAC address on the LAN, as when the twin
// of a router takes its place. A router announces it.
func (l *Lab) SetHardwareAddr(name string, mac net.HardwareAddr) error {
	if _, err := findHost(name); err != nil {
		return err
	}
	return l.change(func(*state) error {
		h, err := openHandle(l.namespace(name))
		if err != nil {
			return err
		}
		defer h.Close()
		eth, err := h.LinkByName(hostLink)
		if err != nil {
			return fmt.Errorf("finding %s of %s: %w", hostLink, name, err)
		}
		if err := h.LinkSetHardwareAddr(eth, mac); err != nil {
			return fmt.Errorf("changing the hardware address of %s: %w", name, err)
		}
		return nil
	})
}
