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

// routeCheck is how often next hops are looked up anew: a route may change
// without any neighbour changing.
const routeCheck = 5 * time.Second

// usable are the neighbour states in which the kernel itself would send.
const usable = netlink.NUD_REACHABLE | netlink.NUD_STALE | netlink.NUD_DELAY | netlink.NUD_PROBE |
	netlink.NUD_PERMANENT | netlink.NUD_NOARP

// watchNeighbours keeps the backends' MAC addresses as the kernel knows them.
// A lookup in the program would cost 100 ns a packet, more than all the rest
// (measured), and could not resolve a missing address. Nothing needs to be
// provoked here: the health checks talk to the backends from this host and so
// keep the kernel's entries alive.
func (b *Balancer) watchNeighbours(ctx context.Context) error {
	updates := make(chan netlink.NeighUpdate, 64)
	done := make(chan struct{})
	defer close(done)
	failed := make(chan error, 1)
	ns, err := b.foreignNamespace()
	if err != nil {
		return err
	}
	err = netlink.NeighSubscribeWithOptions(updates, done, netlink.NeighSubscribeOptions{
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
		return fmt.Errorf("subscribing to neighbours: %w", err)
	}
	tick := time.NewTicker(routeCheck)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case u, ok := <-updates:
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
	for _, p := range b.placed {
		mac, known := b.nextHopMAC(p.addr.Addr())
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

// nextHopMAC is unknown, too, when the route leads out of another interface:
// the program can send only where it receives.
func (b *Balancer) nextHopMAC(addr netip.Addr) (macAddr, bool) {
	routes, err := b.nl.RouteGet(addr.AsSlice())
	if err != nil || len(routes) == 0 || routes[0].LinkIndex != b.iface.Attrs().Index {
		return macAddr{}, false
	}
	hop := addr
	if gw, ok := netip.AddrFromSlice(routes[0].Gw); ok {
		hop = gw.Unmap()
	}
	mac, ok := b.neighbours[hop]
	return mac, ok
}
