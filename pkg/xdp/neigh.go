package xdp

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// routeCheck is how often next hops are looked up anew, whatever happens: not
// everything that makes the kernel choose another route, such as a rule, is
// told to those who watch routes.
const routeCheck = 5 * time.Second

// routePause is how long a change of routes may wait for others: a routing
// daemon makes thousands at a time.
const routePause = 50 * time.Millisecond

// usable are the neighbour states in which the kernel itself would send.
const usable = netlink.NUD_REACHABLE | netlink.NUD_STALE | netlink.NUD_DELAY | netlink.NUD_PROBE |
	netlink.NUD_PERMANENT | netlink.NUD_NOARP

// watchNeighbours keeps the backends' MAC addresses as the kernel knows them.
// A lookup in the program would cost 100 ns a packet, more than all the rest
// (measured), and could not resolve a missing address. Nothing needs to be
// provoked here: the health checks talk to the backends from this host, through
// the same gateway if there is one, and so keep the kernel's entries alive.
func (b *Balancer) watchNeighbours(ctx context.Context) error {
	done := make(chan struct{})
	defer close(done)
	ns, err := b.foreignNamespace()
	if err != nil {
		return err
	}
	neighbours, failed, err := subscribeNeighbours(ns, done)
	if err != nil {
		return err
	}
	routes, err := b.subscribeRoutes(ns, done)
	if err != nil {
		return err
	}
	tick := time.NewTicker(routeCheck)
	defer tick.Stop()
	var routed <-chan time.Time // when routes have changed
	for {
		select {
		case <-ctx.Done():
			return nil
		case u, ok := <-neighbours:
			if !ok {
				select {
				case err := <-failed:
					return fmt.Errorf("watching neighbours: %w", err)
				case <-ctx.Done():
					return nil
				}
			}
			if !b.noteNeighbour(u) {
				continue
			}
		case _, ok := <-routes:
			if !ok {
				// Too many at once. A later look finds what was missed.
				if routes, err = b.subscribeRoutes(ns, done); err != nil {
					return err
				}
			}
			if routed == nil {
				routed = time.After(routePause)
			}
			continue
		case <-routed:
			routed = nil
		case <-tick.C:
		}
		b.mu.Lock()
		err := b.refreshNextHops()
		b.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

func subscribeNeighbours(ns *netns.NsHandle, done <-chan struct{}) (<-chan netlink.NeighUpdate, <-chan error, error) {
	updates := make(chan netlink.NeighUpdate, 64)
	failed := make(chan error, 1)
	err := netlink.NeighSubscribeWithOptions(updates, done, netlink.NeighSubscribeOptions{
		Namespace:    ns,
		ListExisting: true,
		ErrorCallback: func(err error) {
			select {
			case failed <- err:
			default:
			}
		},
	})
	if err != nil {
		return nil, nil, fmt.Errorf("subscribing to neighbours: %w", err)
	}
	return updates, failed, nil
}

// subscribeRoutes returns a channel that is closed when updates were lost.
func (b *Balancer) subscribeRoutes(ns *netns.NsHandle, done <-chan struct{}) (<-chan netlink.RouteUpdate, error) {
	updates := make(chan netlink.RouteUpdate, 64)
	err := netlink.RouteSubscribeWithOptions(updates, done, netlink.RouteSubscribeOptions{
		Namespace:     ns,
		ErrorCallback: func(err error) { b.log.Debug("watching routes", "error", err) },
	})
	if err != nil {
		return nil, fmt.Errorf("subscribing to routes: %w", err)
	}
	return updates, nil
}

// foreignNamespace returns the namespace that Open was called in, or nil when
// this thread is in it, as all threads of the daemon are: entering even one's
// own takes CAP_SYS_ADMIN, which the daemon does not have.
func (b *Balancer) foreignNamespace() (*netns.NsHandle, error) {
	here, err := netns.Get()
	if err != nil {
		return nil, fmt.Errorf("opening the network namespace: %w", err)
	}
	defer here.Close()
	if here.Equal(b.ns) {
		return nil, nil
	}
	return &b.ns, nil
}

// noteNeighbour says whether anything changed that concerns us.
func (b *Balancer) noteNeighbour(u netlink.NeighUpdate) bool {
	ip, ok := netip.AddrFromSlice(u.IP)
	if !ok || u.LinkIndex != b.iface.Attrs().Index {
		return false
	}
	ip = ip.Unmap()
	b.mu.Lock()
	defer b.mu.Unlock()
	old, had := b.neighbours[ip]
	if u.Type == unix.RTM_NEWNEIGH && u.State&usable != 0 && len(u.HardwareAddr) == 6 {
		mac := macAddr(u.HardwareAddr)
		b.neighbours[ip] = mac
		return !had || mac != old
	}
	delete(b.neighbours, ip)
	return had
}

// refreshNextHops writes each backend's MAC address, and whether it has one.
// One that has lost it keeps the old for the flows it has and takes no new
// ones. The caller holds mu.
func (b *Balancer) refreshNextHops() error {
	trouble := make(map[netip.AddrPort]string)
	for _, p := range b.placed {
		mac, known, why := b.nextHop(p.addr.Addr())
		if why != "" {
			trouble[p.addr] = why
			if b.trouble[p.addr] != why {
				b.log.Warn("a backend cannot be reached from the interface that the program is on: it gets no new connections",
					"service", p.service, "backend", p.name, "addr", p.addr, "interface", b.cfg.Interface, "reason", why)
			}
		}
		if known {
			if err := b.writeMAC(p, mac); err != nil {
				return err
			}
		}
		err := b.changeSlot(p.id, p.slot, func(s *slotRow) { s.setFlag(balancerSlotFlagSLOT_REACHABLE, known) })
		if err != nil {
			return err
		}
	}
	b.trouble = trouble
	return nil
}

func (b *Balancer) writeMAC(p placedBackend, mac macAddr) error {
	f, err := b.tables.of(p.addr.Addr())
	if err != nil {
		return err
	}
	row, err := f.backend(p.index())
	if err != nil || row.mac == mac {
		return err
	}
	b.log.Info("next hop", "service", p.service, "backend", p.name, "mac", net.HardwareAddr(mac[:]).String())
	row.mac = mac
	return f.putBackend(p.index(), row)
}

// nextHopMAC is that of the backend itself, or of the gateway to it.
func (b *Balancer) nextHopMAC(addr netip.Addr) (macAddr, bool) {
	mac, known, _ := b.nextHop(addr)
	return mac, known
}

// nextHop also says why there can be none: the program sends only where it
// receives. Without that reason the kernel does not know the MAC address yet.
func (b *Balancer) nextHop(addr netip.Addr) (mac macAddr, known bool, why string) {
	routes, err := b.nl.RouteGet(addr.AsSlice())
	switch {
	case err != nil:
		return mac, false, "no route: " + err.Error()
	case len(routes) == 0:
		return mac, false, "no route"
	case routes[0].LinkIndex != b.iface.Attrs().Index:
		return mac, false, "the route to it leads over " + b.interfaceName(routes[0].LinkIndex)
	}
	hop := addr
	switch via := routes[0].Via.(type) {
	case *netlink.Via: // a gateway of the other family
		if gw, ok := netip.AddrFromSlice(via.Addr); ok {
			hop = gw.Unmap()
		}
	default:
		if gw, ok := netip.AddrFromSlice(routes[0].Gw); ok {
			hop = gw.Unmap()
		}
	}
	mac, known = b.neighbours[hop]
	return mac, known, ""
}

func (b *Balancer) interfaceName(index int) string {
	iface, err := b.nl.LinkByIndex(index)
	if err != nil {
		return fmt.Sprintf("interface number %d", index)
	}
	return iface.Attrs().Name
}
