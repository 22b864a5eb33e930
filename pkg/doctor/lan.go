package doctor

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/pkg/vrrp"
)

// neighbourhood listens for VRRP, and asks who has the virtual addresses.
func (e *examination) neighbourhood(ctx context.Context) {
	local := e.local()
	heard := e.routersHeard(ctx)
	var wg sync.WaitGroup
	var mu sync.Mutex
	for _, r := range e.Routers {
		for _, addr := range r.Addresses {
			if !addr.Is4() {
				continue // IPv6 has its own detection, which the kernel does when the address is added
			}
			wg.Go(func() {
				holders, err := vrrp.Holders(ctx, e.Interface, addr, time.Second)
				mu.Lock()
				defer mu.Unlock()
				e.vip(r, addr, local[addr], heard, holders, err)
			})
		}
	}
	wg.Wait()
}

// local are the addresses of the interface.
func (e *examination) local() map[netip.Addr]bool {
	has := map[netip.Addr]bool{}
	ifi, err := net.InterfaceByName(e.Interface)
	if err != nil {
		return has
	}
	addrs, err := ifi.Addrs()
	if err != nil {
		return has
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			has[p.Addr()] = true
		}
	}
	return has
}

// routersHeard listens once for each family, and judges who was heard.
func (e *examination) routersHeard(ctx context.Context) []vrrp.Speaker {
	var all []vrrp.Speaker
	seen := map[bool]bool{}
	for _, r := range e.Routers {
		if seen[r.Source.Is6()] {
			continue
		}
		seen[r.Source.Is6()] = true
		speakers, err := vrrp.Overhear(ctx, e.Interface, r.Source, e.Listen)
		if err != nil {
			e.add("vrrp", Info, e.Interface, "", "it cannot be listened for: %v", err)
			continue
		}
		all = append(all, speakers...)
	}
	for _, s := range all {
		e.speaker(s)
	}
	if len(all) == 0 && len(seen) > 0 {
		e.add("vrrp", OK, e.Interface, "", "nobody else was heard for %v", e.Listen)
	}
	return all
}

// speaker judges one other router.
func (e *examination) speaker(s vrrp.Speaker) {
	for _, r := range e.Routers {
		if r.VRID != s.VRID || r.Source.Is6() != s.Source.Is6() {
			continue
		}
		switch {
		case slices.Contains(r.Peers, s.Source):
			e.add("vrrp", OK, s.Source.String(), "", "the peer of %s advertises, with priority %d and version %d", r.Name, s.Priority, s.Version)
		case len(r.Peers) == 0:
			e.add("vrrp", Info, s.Source.String(), "", "it advertises as virtual router %d (%s), with priority %d and version %d: if it is not the other node, choose another vrid",
				s.VRID, r.Name, s.Priority, s.Version)
		default:
			e.add("vrrp", Warning, s.Source.String(), "choose another vrid, on both nodes",
				"somebody who is no peer advertises as virtual router %d, the number of %s; unicast does not heed him", s.VRID, r.Name)
		}
		return
	}
	e.add("vrrp", Info, s.Source.String(), "", "it advertises as virtual router %d, which is none of ours", s.VRID)
}

// vip judges who has a virtual address.
func (e *examination) vip(r Router, addr netip.Addr, ours bool, heard []vrrp.Speaker, holders []net.HardwareAddr, err error) {
	var macs []string
	for _, h := range holders {
		macs = append(macs, h.String())
	}
	who := strings.Join(macs, ", ")
	advertised := slices.ContainsFunc(heard, func(s vrrp.Speaker) bool {
		return s.VRID == r.VRID && (len(r.Peers) == 0 || slices.Contains(r.Peers, s.Source))
	})
	switch {
	case err != nil:
		e.add("vip", Info, addr.String(), "", "it cannot be asked for: %v", err)
	case len(holders) > 1 || ours && len(holders) > 0:
		e.add("vip", Error, addr.String(), "take it off the host with that hardware address", "more than one host has it: %s%s", who, map[bool]string{true: " and this one"}[ours])
	case ours:
		e.add("vip", OK, addr.String(), "", "this node has it, and nobody else")
	case len(holders) == 0:
		e.add("vip", OK, addr.String(), "", "nobody has it")
	case advertised:
		e.add("vip", OK, addr.String(), "", "the other node has it (%s)", who)
	default:
		e.add("vip", Error, addr.String(), "take it off that host, or choose another virtual address", "%s answers for it, and no peer of %s advertises it", who, r.Name)
	}
}

// backends checks each pooler once, all at a time.
func (e *examination) backends(ctx context.Context) {
	errs := make([]error, len(e.Backends))
	var wg sync.WaitGroup
	for i, b := range e.Backends {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, b.Timeout)
			defer cancel()
			errs[i] = b.Check(ctx, b.Addr)
		})
	}
	wg.Wait()
	local := e.local()
	working := map[string]int{}
	var services []string
	for i, b := range e.Backends {
		if !slices.Contains(services, b.Service) {
			services = append(services, b.Service)
		}
		name := b.Service + "/" + b.Name
		if errs[i] != nil {
			e.add("backend", Warning, name, "", "%v: %v", b.Addr, errs[i])
		} else {
			working[b.Service]++
			e.add("backend", OK, name, "", "%v works", b.Addr)
		}
		if from := routeTo(b.Addr); from.IsValid() && !local[from] {
			e.add("route", Error, name, "give it an address that is reached through "+e.Interface, "%v is reached from %v, which is not an address of %s", b.Addr, from, e.Interface)
		}
	}
	for _, s := range services {
		if working[s] == 0 {
			e.add("service", Error, s, "", "none of its poolers works")
		} else {
			e.add("service", OK, s, "", "%d poolers work", working[s])
		}
	}
}

// routeTo is the address that this node would speak to a backend from. Connecting
// a datagram socket sends nothing.
func routeTo(addr netip.AddrPort) netip.Addr {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(addr))
	if err != nil {
		return netip.Addr{}
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap().WithZone("")
}

// peer tries the way to the other node's replication.
func (e *examination) peer(ctx context.Context) {
	if e.Sync == nil {
		return
	}
	at := e.Sync.Peer.String()
	d := net.Dialer{Timeout: 2 * time.Second}
	c, err := d.DialContext(ctx, "tcp", at)
	switch {
	case err == nil:
		_ = c.Close() // nothing was said
		e.add("peer", OK, at, "", "the other node listens")
	case errors.Is(err, unix.ECONNREFUSED):
		e.add("peer", Info, at, "start pgsteerd there", "the way is open, and nobody listens")
	default:
		e.add("peer", Warning, at, "let TCP through between the nodes, both ways", "the other node is out of reach: %v", err)
	}
}
