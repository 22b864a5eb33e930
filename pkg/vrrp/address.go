package vrrp

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// netlinkTimeout bounds one exchange with the kernel, which can take long while
// others hold the rtnetlink lock.
const netlinkTimeout = 5 * time.Second

// kernel manages the addresses of one interface and one family by rtnetlink.
// Its sockets belong to the network namespace in which it was opened, whatever
// thread uses them later.
type kernel struct {
	handle *netlink.Handle
	link   netlink.Link
	ipv6   bool              // the family
	events *nl.NetlinkSocket // addresses of the family coming and going
	// lifetime is how long an address that was added stays when it is not added
	// again, seconds; 0: for ever.
	lifetime int
}

func openKernel(device string, ipv6 bool) (*kernel, error) {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("opening rtnetlink: %w", err)
	}
	if err := handle.SetSocketTimeout(netlinkTimeout); err != nil {
		handle.Close()
		return nil, fmt.Errorf("setting the timeout of rtnetlink: %w", err)
	}
	link, err := handle.LinkByName(device)
	if err != nil {
		handle.Close()
		return nil, fmt.Errorf("looking up interface %s: %w", device, err)
	}
	group := uint(unix.RTNLGRP_IPV4_IFADDR)
	if ipv6 {
		group = unix.RTNLGRP_IPV6_IFADDR
	}
	events, err := nl.Subscribe(unix.NETLINK_ROUTE, group)
	if err != nil {
		handle.Close()
		return nil, fmt.Errorf("subscribing to address changes: %w", err)
	}
	return &kernel{handle: handle, link: link, ipv6: ipv6, events: events}, nil
}

// close may be called twice.
func (k *kernel) close() {
	k.handle.Close()
	k.events.Close()
}

// index of the interface.
func (k *kernel) index() int { return k.link.Attrs().Index }

// list returns the family's addresses of the interface.
func (k *kernel) list() ([]netip.Prefix, error) {
	addrs, err := k.listAddrs(k.link)
	if err != nil {
		return nil, err
	}
	prefixes := make([]netip.Prefix, 0, len(addrs))
	for _, a := range addrs {
		if p, ok := toPrefix(a.IPNet); ok {
			prefixes = append(prefixes, p)
		}
	}
	return prefixes, nil
}

// listAddrs lists the addresses of link, or of all interfaces when it is nil,
// again when another's change made the answer inconsistent.
func (k *kernel) listAddrs(link netlink.Link) (addrs []netlink.Addr, err error) {
	family := netlink.FAMILY_V4
	if k.ipv6 {
		family = netlink.FAMILY_V6
	}
	for range 5 {
		addrs, err = k.handle.AddrList(link, family)
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("listing addresses: %w", err)
	}
	return addrs, nil
}

// elsewhere returns the name of another interface that has the address, or "".
// A link-local address means another host on each link.
func (k *kernel) elsewhere(a netip.Addr) (string, error) {
	if a.Is6() && a.IsLinkLocalUnicast() {
		return "", nil
	}
	addrs, err := k.listAddrs(nil)
	if err != nil {
		return "", err
	}
	for _, other := range addrs {
		p, ok := toPrefix(other.IPNet)
		if !ok || p.Addr() != a || other.LinkIndex == k.index() {
			continue
		}
		link, err := k.handle.LinkByIndex(other.LinkIndex)
		if err != nil {
			return "", fmt.Errorf("looking up interface %d: %w", other.LinkIndex, err)
		}
		return link.Attrs().Name, nil
	}
	return "", nil
}

// add puts an address on the interface, or makes one that is there stay longer.
// It brings no route: the LAN's comes from the node's own address, and a second
// one could become the preferred source of the node's own traffic.
//
// The address has a lifetime, so that the kernel takes it off when this process
// has died or is frozen. Renewing it in time changes nothing else.
//
// An IPv6 address skips duplicate address detection, which would keep it
// unusable for a second or more, and would give it up when the node that had it
// until now still answers; who owns it is for the election to say. And it is
// deprecated from the start (preferred for no time): it answers whoever asks for
// it, but as the source of the node's own traffic any other address goes before
// it (RFC 6724 section 5, rule 3). Otherwise a long prefix length would make it
// the first choice (rule 8).
func (k *kernel) add(p netip.Prefix) error {
	addr := &netlink.Addr{
		IPNet: toIPNet(p), Scope: int(netlink.SCOPE_UNIVERSE), Flags: unix.IFA_F_NOPREFIXROUTE,
		ValidLft: k.lifetime, PreferedLft: k.lifetime,
	}
	if k.ipv6 {
		addr.Flags |= unix.IFA_F_NODAD
		addr.PreferedLft = 0
		if k.lifetime == 0 {
			addr.ValidLft = math.MaxUint32 // seconds; the greatest number is for ever
		}
	}
	if err := k.handle.AddrReplace(k.link, addr); err != nil {
		return fmt.Errorf("adding %v to %s: %w", p, k.link.Attrs().Name, err)
	}
	return nil
}

// remove takes an address off the interface, whatever its prefix length there,
// and reports whether it was there.
func (k *kernel) remove(a netip.Addr) (bool, error) {
	addrs, err := k.listAddrs(k.link)
	if err != nil {
		return false, err
	}
	found := false
	for i := range addrs {
		if p, ok := toPrefix(addrs[i].IPNet); !ok || p.Addr() != a {
			continue
		}
		err := k.handle.AddrDel(k.link, &netlink.Addr{IPNet: addrs[i].IPNet})
		if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return found, fmt.Errorf("removing %v from %s: %w", a, k.link.Attrs().Name, err)
		}
		found = true
	}
	return found, nil
}

// hardware returns the interface's present hardware address, which a bond's
// failover can change.
func (k *kernel) hardware() (net.HardwareAddr, error) {
	link, err := k.handle.LinkByIndex(k.index())
	if err != nil {
		return nil, fmt.Errorf("looking up interface %s: %w", k.link.Attrs().Name, err)
	}
	return link.Attrs().HardwareAddr, nil
}

// watch puts a token in wake whenever an address goes anywhere, until ctx is
// cancelled. Those that come are of no interest, and our own renewals among them.
func (k *kernel) watch(ctx context.Context, wake chan<- struct{}) error {
	stop := context.AfterFunc(ctx, k.events.Close)
	defer stop()
	for {
		messages, _, err := k.events.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, os.ErrClosed):
			return fmt.Errorf("watching address changes: %w", err)
		case err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EAGAIN):
			// An overflow (ENOBUFS) lost events, and so is one itself.
			return fmt.Errorf("watching address changes: %w", err)
		case err == nil && !slices.ContainsFunc(messages, isRemoval):
			continue
		}
		select {
		case wake <- struct{}{}:
		default:
		}
	}
}

func isRemoval(m syscall.NetlinkMessage) bool { return m.Header.Type == unix.RTM_DELADDR }

func toIPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func toPrefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), ones), ok
}
