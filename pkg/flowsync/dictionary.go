package flowsync

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// pair is a service and one of its backends. The addresses are what a flow is
// made of; names are for people.
type pair struct{ service, backend netip.AddrPort }

// book is a node's dictionary: what its services and backends are.
type book struct {
	services []service
	pairs    []pair
	index    map[pair]int // place in pairs, from 1 on
}

type service struct {
	name     string
	addr     netip.AddrPort
	backends []backend
}

type backend struct {
	name string
	addr netip.AddrPort
}

// newBook takes the dictionary from a configuration.
func newBook(services []lb.Service) *book {
	b := &book{}
	for _, s := range services {
		entry := service{name: s.Name, addr: s.Addr}
		for _, be := range s.Backends {
			entry.backends = append(entry.backends, backend{be.Name, be.Addr})
		}
		b.services = append(b.services, entry)
	}
	b.number()
	return b
}

// number fills pairs and index.
func (b *book) number() {
	b.index = make(map[pair]int)
	for _, s := range b.services {
		for _, be := range s.backends {
			p := pair{s.addr, be.addr}
			b.pairs = append(b.pairs, p)
			if b.index[p] == 0 {
				b.index[p] = len(b.pairs)
			}
		}
	}
}

// has reports whether there is such a backend.
func (b *book) has(p pair) bool { return b.index[p] != 0 }

// appendBook appends the frame of a dictionary.
func appendBook(dst []byte, b *book) []byte {
	f := beginFrame(dst, kindDictionary)
	f = binary.AppendUvarint(f, uint64(len(b.services)))
	for _, s := range b.services {
		f = appendEntry(f, s.name, s.addr)
		f = binary.AppendUvarint(f, uint64(len(s.backends)))
		for _, be := range s.backends {
			f = appendEntry(f, be.name, be.addr)
		}
	}
	return endFrame(f, len(dst))
}

func appendEntry(dst []byte, name string, addr netip.AddrPort) []byte {
	dst = appendText(dst, name, lb.MaxNameLen)
	dst = appendAnyAddr(dst, addr.Addr())
	return binary.BigEndian.AppendUint16(dst, addr.Port())
}

func (c *cursor) entry() (name string, addr netip.AddrPort) {
	name = c.text(lb.MaxNameLen)
	a := c.anyAddr()
	return name, netip.AddrPortFrom(a, c.u16())
}

// parseBook is the inverse of appendBook.
func parseBook(body []byte) (*book, error) {
	c, b := cursor{b: body}, &book{}
	services := c.uvarint()
	if services > lb.MaxServices {
		return nil, malformed("a dictionary of %d services", services)
	}
	for range services {
		var s service
		s.name, s.addr = c.entry()
		backends := c.uvarint()
		if backends > lb.MaxBackends {
			return nil, malformed("a service of %d backends", backends)
		}
		for range backends {
			var be backend
			be.name, be.addr = c.entry()
			if be.addr.Addr().BitLen() != s.addr.Addr().BitLen() {
				return nil, malformed("a backend that is not of its service's family")
			}
			s.backends = append(s.backends, be)
		}
		b.services = append(b.services, s)
	}
	if err := c.done("a dictionary"); err != nil {
		return nil, err
	}
	b.number()
	return b, nil
}

// differences says, a sentence each, where the peer's configuration is not
// ours, as far as flows are concerned.
func differences(ours, theirs *book, peer string) []string {
	var out []string
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	for _, s := range ours.services {
		t := theirs.find(s.name)
		switch {
		case t == nil:
			say("service %s (%v) is not configured on %s", s.name, s.addr, peer)
			continue
		case t.addr != s.addr:
			say("service %s is at %v here and at %v on %s", s.name, s.addr, t.addr, peer)
		}
		for _, be := range s.backends {
			switch u := t.find(be.name); {
			case u == nil:
				say("backend %s/%s (%v) is not configured on %s", s.name, be.name, be.addr, peer)
			case u.addr != be.addr:
				say("backend %s/%s is at %v here and at %v on %s", s.name, be.name, be.addr, u.addr, peer)
			}
		}
		for _, u := range t.backends {
			if s.find(u.name) == nil {
				say("backend %s/%s (%v) is configured on %s only", s.name, u.name, u.addr, peer)
			}
		}
	}
	for _, t := range theirs.services {
		if ours.find(t.name) == nil {
			say("service %s (%v) is configured on %s only", t.name, t.addr, peer)
		}
	}
	return out
}

func (b *book) find(name string) *service {
	for i := range b.services {
		if b.services[i].name == name {
			return &b.services[i]
		}
	}
	return nil
}

func (s *service) find(name string) *backend {
	for i := range s.backends {
		if s.backends[i].name == name {
			return &s.backends[i]
		}
	}
	return nil
}
