package pooler

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// addressBook knows the addresses of hosts. The system's resolver does not tell
// how long an answer is good, so each is kept for dns_max_ttl.
type addressBook struct {
	// lookup asks the system's resolver. Changed is called when the addresses of
	// a host are not those of the answer before.
	lookup  func(ctx context.Context, host string) ([]netip.Addr, error)
	changed func(host string, addrs []netip.Addr)
	now     func() time.Time

	mu    sync.Mutex
	hosts map[string]*addresses
}

// addresses are an answer of the resolver.
type addresses struct {
	addrs []netip.Addr // sorted
	err   error        // the last lookup's
	until time.Time
	next  int // whose turn it is
}

func newAddressBook(changed func(host string, addrs []netip.Addr)) *addressBook {
	return &addressBook{
		lookup: func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		},
		changed: changed,
		now:     time.Now,
		hosts:   make(map[string]*addresses),
	}
}

// resolve returns the addresses of a host, beginning with the one whose turn it
// is.
func (b *addressBook) resolve(ctx context.Context, host string, ttl, negative time.Duration) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}, nil
	}
	b.mu.Lock()
	a := b.hosts[host]
	if a != nil && b.now().Before(a.until) {
		defer b.mu.Unlock()
		return a.turn()
	}
	b.mu.Unlock()
	a = b.refresh(ctx, host, ttl, negative)
	b.mu.Lock()
	defer b.mu.Unlock()
	return a.turn()
}

// turn returns the addresses in the order in which they are to be tried.
func (a *addresses) turn() ([]netip.Addr, error) {
	if len(a.addrs) == 0 {
		return nil, a.err
	}
	first := a.next % len(a.addrs)
	a.next = first + 1
	return slices.Concat(a.addrs[first:], a.addrs[:first]), nil
}

// refresh looks a host up. If nobody can tell, the addresses of the last answer
// stay; if it is said that there are none, they do not.
func (b *addressBook) refresh(ctx context.Context, host string, ttl, negative time.Duration) *addresses {
	addrs, err := b.lookup(ctx, host)
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	addrs = slices.Compact(addrs)
	if len(addrs) == 0 && err == nil {
		err = errors.New("no address")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	a := b.hosts[host]
	if a == nil {
		a = &addresses{}
		b.hosts[host] = a
	}
	a.err = err
	if err != nil {
		a.until = b.now().Add(negative)
		if dns, ok := errors.AsType[*net.DNSError](err); ok && dns.IsNotFound {
			a.addrs = nil
		}
		return a
	}
	a.until = b.now().Add(ttl)
	if len(a.addrs) > 0 && !slices.Equal(a.addrs, addrs) {
		b.changed(host, slices.Clone(addrs))
	}
	a.addrs = addrs
	return a
}

// due returns those of the hosts whose answer has become old.
func (b *addressBook) due(hosts []string) (old []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, host := range hosts {
		if a := b.hosts[host]; a != nil && !b.now().Before(a.until) {
			old = append(old, host)
		}
	}
	return old
}

// minRefresh is the least time between two rounds of looking names up that
// servers stand behind.
const minRefresh = time.Second

// tickAddresses looks names up again whose answer has become old, so that
// servers follow an address that changes though nobody dials. It runs in the
// loop.
func (p *Pooler) tickAddresses() {
	m := p.loop.m
	if p.refreshing || m.now-p.refreshedAt < minRefresh || m.stopping {
		return
	}
	p.refreshedAt = m.now
	var hosts []string
	for _, c := range m.slots {
		if c != nil && c.sv != nil && c.sv.byName && !slices.Contains(hosts, c.sv.host) {
			hosts = append(hosts, c.sv.host)
		}
	}
	old := p.addresses.due(hosts)
	if len(old) == 0 {
		return
	}
	p.refreshing = true
	p.wg.Go(func() {
		for _, host := range old {
			ctx, cancel := context.WithTimeout(p.ctx, p.conf().ServerConnectTimeout)
			p.addresses.refresh(ctx, host, p.conf().DNSMaxTTL, p.conf().DNSNotFoundTTL)
			cancel()
		}
		p.loop.post(func() { p.refreshing = false })
	})
}

// addressesChanged retires the servers at addresses that a host has no more.
func (p *Pooler) addressesChanged(host string, addrs []netip.Addr) {
	p.log.Info("addresses of host have changed", "host", host, "addresses", addrs)
	p.loop.post(func() { p.loop.m.retireAddresses(host, addrs) })
}

func (m *machine) retireAddresses(host string, addrs []netip.Addr) {
	m.retireWhere(func(sv *server) bool {
		at, err := netip.ParseAddrPort(sv.addr)
		return sv.byName && sv.host == host && err == nil && !slices.Contains(addrs, at.Addr().Unmap())
	})
}
