package flowsync

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// place is where a table keeps a flow: there is one of a client at a service.
type place struct{ client, service netip.AddrPort }

func placeOf(f *lb.FlowRecord) place { return place{f.Client, f.Service} }

// memTable is a flow table in memory. Flows of leased addresses are the node's
// own, all others are replicas.
type memTable struct {
	mu      sync.Mutex
	leased  map[netip.Addr]bool
	flows   map[place]lb.FlowRecord
	err     error           // of all methods, if set
	removed func(lb.FlowID) // told of each replica that is removed; may be nil
}

func newMemTable(leased ...netip.Addr) *memTable {
	t := &memTable{leased: make(map[netip.Addr]bool), flows: make(map[place]lb.FlowRecord)}
	for _, a := range leased {
		t.leased[a] = true
	}
	return t
}

func (t *memTable) Each(own bool, fn func(*lb.FlowRecord) bool) error {
	t.mu.Lock()
	places, err := slices.Collect(maps.Keys(t.flows)), t.err
	t.mu.Unlock()
	for _, p := range places {
		t.mu.Lock()
		f, ok := t.flows[p]
		ok = ok && t.leased[p.service.Addr()] == own
		t.mu.Unlock()
		if ok && !fn(&f) {
			break
		}
	}
	return err
}

func (t *memTable) Store(records []lb.FlowRecord) (refused int, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err != nil {
		return 0, t.err
	}
	for _, f := range records {
		if t.leased[f.Service.Addr()] {
			refused++
			continue
		}
		t.flows[placeOf(&f)] = f
	}
	return refused, nil
}

func (t *memTable) Remove(ids []lb.FlowID) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, id := range ids {
		p := place{id.Client, id.Service}
		if f, ok := t.flows[p]; ok && f.ID() == id && !t.leased[id.Service.Addr()] {
			delete(t.flows, p)
			if t.removed != nil {
				t.removed(id)
			}
		}
	}
	return t.err
}

// put changes a flow of the node itself.
func (t *memTable) put(f lb.FlowRecord) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.flows[placeOf(&f)] = f
}

func (t *memTable) drop(f lb.FlowRecord) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.flows, placeOf(&f))
}

func (t *memTable) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.flows)
}

// fail sets the error of all methods.
func (t *memTable) fail(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.err = err
}

// lease changes who serves an address.
func (t *memTable) lease(a netip.Addr, held bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.leased[a] = held
}

// equal reports whether two tables have the same flows.
func (t *memTable) equal(o *memTable) bool {
	t.mu.Lock()
	flows := maps.Clone(t.flows)
	t.mu.Unlock()
	o.mu.Lock()
	defer o.mu.Unlock()
	return maps.Equal(flows, o.flows)
}

// state is the node's State.
func (t *memTable) state() State {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := RouterState{Name: "test", State: "active", Leased: true}
	for a, leased := range t.leased {
		if leased {
			r.Addresses = append(r.Addresses, a)
		}
	}
	slices.SortFunc(r.Addresses, netip.Addr.Compare)
	return State{Routers: []RouterState{r}}
}

// testVIP returns a virtual address; odd ones are IPv6.
func testVIP(n int) netip.Addr {
	if n%2 == 1 {
		return netip.MustParseAddr(fmt.Sprintf("fd00::%x", 0x100+n))
	}
	return netip.AddrFrom4([4]byte{192, 168, 1, byte(100 + n)})
}

// testServices returns services with three backends each.
func testServices(n int) []lb.Service {
	var out []lb.Service
	for i := range n {
		s := lb.Service{Name: fmt.Sprintf("service%d", i), Addr: netip.AddrPortFrom(testVIP(i), 5432)}
		for b := range 3 {
			s.Backends = append(s.Backends, lb.Backend{Name: fmt.Sprintf("pooler%d", b), Addr: netip.AddrPortFrom(testHost(i, 0, 5), uint16(6432+b))})
		}
		out = append(out, s)
	}
	return out
}

// testHost returns an address of the family of the VIP.
func testHost(vip, net, host int) netip.Addr {
	if vip%2 == 1 {
		return netip.MustParseAddr(fmt.Sprintf("fd00:%x::%x", net+1, host+1))
	}
	return netip.AddrFrom4([4]byte{10, byte(net), byte(host >> 8), byte(host)})
}

// testFlow returns a flow of one of testServices.
func testFlow(vip, client, life int) lb.FlowRecord {
	return lb.FlowRecord{
		Client:  netip.AddrPortFrom(testHost(vip, 1, client), uint16(40000+client%20000)),
		Service: netip.AddrPortFrom(testVIP(vip), 5432),
		SNAT:    netip.AddrPortFrom(testVIP(vip), uint16(10000+life%50000)),
		Backend: netip.AddrPortFrom(testHost(vip, 0, 5), uint16(6432+client%3)),
		State:   lb.FlowAccepted | lb.FlowEstablished, ClientMAC: [6]byte{2, 0, 0, 0, byte(client >> 8), byte(client)},
		ClientAck: uint32(client), BackendAck: uint32(life), Age: time.Duration(client) * time.Millisecond,
		PacketsIn: 10, BytesIn: 1000, PacketsOut: 12, BytesOut: 5000,
	}
}
