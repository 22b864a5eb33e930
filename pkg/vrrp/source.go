package vrrp

import (
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// ownAddress is an address that the interface has.
type ownAddress struct {
	addr  netip.Addr
	flags int // IFA_F_* of linux/if_addr.h
}

// own returns the family's addresses of the interface with their flags.
func (k *kernel) own() ([]ownAddress, error) {
	addrs, err := k.listAddrs(k.link)
	if err != nil {
		return nil, err
	}
	var own []ownAddress
	for _, a := range addrs {
		if p, ok := toPrefix(a.IPNet); ok {
			own = append(own, ownAddress{addr: p.Addr(), flags: a.Flags})
		}
	}
	return own, nil
}

// chooseSource checks that the source is an address of the interface, or takes
// the interface's first one.
func (c *Config) chooseSource(k *kernel) error {
	have, err := k.own()
	if err != nil {
		return err
	}
	for _, own := range have {
		if c.Source.IsValid() {
			if own.addr != c.Source {
				continue
			}
			if err := own.settled(c.Interface); err != nil {
				return err
			}
		} else if c.virtual(own.addr) || c.ipv6() && !c.suits(own) {
			continue
		}
		c.Source = own.addr
		if slices.Contains(c.Peers, c.Source) {
			return fmt.Errorf("peer %v is this node's own source address", c.Source)
		}
		return nil
	}
	switch {
	case c.Source.IsValid():
		return fmt.Errorf("source %v is not an address of interface %s", c.Source, c.Interface)
	case !c.ipv6():
		return fmt.Errorf("interface %s has no IPv4 address to send from", c.Interface)
	case c.linkLocal():
		return fmt.Errorf("interface %s has no link-local IPv6 address to send from that is ready for use", c.Interface)
	}
	return fmt.Errorf("interface %s has no IPv6 address beyond the link-local to send from that is ready for use", c.Interface)
}

// linkLocal reports whether a source that is not given is to be link-local, as
// RFC 9568 section 5.1.2.1 has it. Unicast peers that are known by other
// addresses expect one of those of us.
func (c *Config) linkLocal() bool { return len(c.Peers) == 0 || c.Peers[0].IsLinkLocalUnicast() }

// suits reports whether an IPv6 address can be taken for the source. One that
// is deprecated is another virtual router's, if not about to go, and one that
// is temporary (RFC 8981) will change.
func (c *Config) suits(own ownAddress) bool {
	const unfit = unix.IFA_F_DEPRECATED | unix.IFA_F_TEMPORARY
	return own.addr.IsLinkLocalUnicast() == c.linkLocal() && own.flags&unfit == 0 && own.settled(c.Interface) == nil
}

// settled returns an error while duplicate address detection (RFC 4862 section
// 5.4) forbids to send from the address, or has found another who has it.
func (o ownAddress) settled(device string) error {
	switch {
	case o.flags&unix.IFA_F_DADFAILED != 0:
		return fmt.Errorf("source %v cannot be used: another host on the link of %s has it too", o.addr, device)
	case o.flags&unix.IFA_F_TENTATIVE != 0 && o.flags&unix.IFA_F_OPTIMISTIC == 0:
		return fmt.Errorf("source %v cannot be used yet: interface %s is still looking for duplicates of it", o.addr, device)
	}
	return nil
}
