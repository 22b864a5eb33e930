package xdp

import (
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"time"

	"github.com/cilium/ebpf"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// errNoSuchBackend is returned for a name that SetServices was not given.
var errNoSuchBackend = errors.New("no such backend")

// SetServices implements lb.Datapath. A backend keeps its slot, and with it
// its flows and counts, as long as its service's address and its own address
// stay. The flows of one that goes are forgotten: their next segment is
// answered by a reset. The addresses of services and their NATAddrs must be
// known from SetVIPs.
func (b *Balancer) SetServices(want []lb.Service) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(want) > lb.MaxServices {
		return fmt.Errorf("%d services, at most %d are possible", len(want), lb.MaxServices)
	}
	have, err := b.tables.allServices()
	if err != nil {
		return err
	}
	if err := b.removeServices(have, want); err != nil {
		return err
	}
	var placed []placedBackend
	for _, s := range want {
		p, err := b.setService(s, have)
		if err != nil {
			return fmt.Errorf("service %s: %w", s.Name, err)
		}
		placed = append(placed, p...)
	}
	b.placed = placed
	for _, f := range b.tables.families() {
		if err := f.setHints(); err != nil {
			return err
		}
	}
	return b.refreshNextHops()
}

// removeServices drops the services that are no longer wanted from the tables
// and from have.
func (b *Balancer) removeServices(have map[netip.AddrPort]serviceHead, want []lb.Service) error {
	for addr, service := range have {
		if slices.ContainsFunc(want, func(s lb.Service) bool { return s.Addr == addr }) {
			continue
		}
		f, err := b.tables.of(addr.Addr())
		if err != nil {
			return err
		}
		// The way in first, so that nothing new arrives meanwhile.
		if err := errors.Join(f.deleteService(addr), f.setHints()); err != nil {
			return err
		}
		if err := f.setAllowed(service.id, nil); err != nil {
			return err
		}
		for slot := range uint32(lb.MaxBackends) {
			if err := b.freeSlot(f, service.id, slot); err != nil {
				return err
			}
		}
		delete(have, addr)
	}
	return nil
}

// checkService finds what no table could hold.
func checkService(s lb.Service) error {
	if len(s.Name) > lb.MaxNameLen || len(s.Backends) > lb.MaxBackends || len(s.NATAddrs) > lb.MaxNATAddrs {
		return errors.New("name too long, or too many backends or NAT addresses")
	}
	family := s.Addr.Addr().Is4()
	for _, backend := range s.Backends {
		if backend.Addr.Addr().Is4() != family || backend.Addr.Port() == 0 || len(backend.Name) > lb.MaxNameLen {
			return fmt.Errorf("backend %s: address %s is of another family or without a port, or the name is too long", backend.Name, backend.Addr)
		}
	}
	for _, n := range s.Allow {
		if n.Addr().Is4() != family {
			return fmt.Errorf("network %s is of another family", n)
		}
	}
	return nil
}

// setService writes one service and returns where its backends are.
func (b *Balancer) setService(s lb.Service, have map[netip.AddrPort]serviceHead) ([]placedBackend, error) {
	if err := checkService(s); err != nil {
		return nil, err
	}
	f, err := b.tables.of(s.Addr.Addr())
	if err != nil {
		return nil, err
	}
	head, known := have[s.Addr]
	if !known {
		head.id = freeID(have)
	}
	head.name = s.Name
	head.flags = serviceFlags(s)
	if head.nat, err = natAddrs(f, s); err != nil {
		return nil, err
	}
	have[s.Addr] = head
	// Networks before the service, so that it is never open to all.
	if err := f.setAllowed(head.id, s.Allow); err != nil {
		return nil, err
	}

	slots, err := b.placeBackends(f, head.id, s.Backends)
	if err != nil {
		return nil, err
	}
	schedule := scheduleRow{Scheduler: uint32(s.Scheduler)}
	var placed []placedBackend
	for i, backend := range s.Backends {
		p := placedBackend{
			service: s.Name, vip: s.Addr, name: backend.Name, addr: backend.Addr,
			id: head.id, slot: slots[i], weight: max(backend.Weight, 1), slowStart: s.SlowStart,
		}
		if old := b.placedAt(p.index()); old != nil && old.addr == p.addr {
			p.slowUntil = old.slowUntil
		}
		if err := b.writeBackend(f, p); err != nil {
			return nil, err
		}
		slot := &schedule.Slots[p.slot]
		slot.configure(backend, p.share(time.Now()))
		_, reachable := b.nextHopMAC(backend.Addr.Addr())
		slot.setFlag(balancerSlotFlagSLOT_REACHABLE, reachable)
		// The scheduler walks a ring of a power of two slots.
		schedule.Mask = max(schedule.Mask, 1<<bits.Len32(p.slot)-1)
		placed = append(placed, p)
	}
	if err := b.tables.schedules.Put(head.id, schedule); err != nil {
		return nil, fmt.Errorf("writing the schedule: %w", err)
	}
	return placed, f.putService(s.Addr, head)
}

func serviceFlags(s lb.Service) (flags balancerServiceFlag) {
	if len(s.Allow) > 0 {
		flags |= balancerServiceFlagSERVICE_RESTRICTED
	}
	if s.DropWhenFull {
		flags |= balancerServiceFlagSERVICE_DROP_WHEN_FULL
	}
	if s.ClientAddress {
		flags |= balancerServiceFlagSERVICE_CLIENT_ADDRESS
	}
	return flags
}

// natAddrs are the sources of a service's flows, with their leases.
func natAddrs(f familyTables, s lb.Service) ([]natAddr, error) {
	vips, err := f.vips()
	if err != nil {
		return nil, err
	}
	var all []natAddr
	for _, addr := range append([]netip.Addr{s.Addr.Addr()}, s.NATAddrs...) {
		row, ok := vips[addr]
		if !ok {
			return nil, fmt.Errorf("%s is no virtual address of this node", addr)
		}
		all = append(all, natAddr{addr, row.Index})
	}
	return all, nil
}

func (b *Balancer) placedAt(index uint32) *placedBackend {
	for i := range b.placed {
		if b.placed[i].index() == index {
			return &b.placed[i]
		}
	}
	return nil
}

// placeBackends finds a slot for each backend: its old one, else a free one.
// Slots of backends that are gone are freed first.
func (b *Balancer) placeBackends(f familyTables, id uint32, backends []lb.Backend) ([]uint32, error) {
	var used [lb.MaxBackends]bool
	slots := make([]uint32, len(backends))
	found := make([]bool, len(backends))
	for slot := range uint32(lb.MaxBackends) {
		row, err := f.backend(index(id, slot))
		if err != nil {
			return nil, err
		}
		if !row.addr.IsValid() {
			continue
		}
		i := slices.IndexFunc(backends, func(b lb.Backend) bool { return b.Addr == row.addr })
		if i < 0 {
			if err := b.freeSlot(f, id, slot); err != nil {
				return nil, err
			}
			continue
		}
		slots[i], found[i], used[slot] = slot, true, true
	}
	next := uint32(0)
	for i := range backends {
		if found[i] {
			continue
		}
		for used[next] {
			next++
		}
		slots[i], used[next] = next, true
	}
	return slots, nil
}

// writeBackend keeps the MAC address that is there: flows are using it.
func (b *Balancer) writeBackend(f familyTables, p placedBackend) error {
	row, err := f.backend(p.index())
	if err != nil {
		return err
	}
	row.addr, row.name = p.addr, p.name
	return f.putBackend(p.index(), row)
}

// freeSlot empties a slot: no new flows, no old ones, no counts. It is no
// error when the slot is empty.
func (b *Balancer) freeSlot(f familyTables, id, slot uint32) error {
	at := index(id, slot)
	row, err := f.backend(at)
	if err != nil || !row.addr.IsValid() {
		return err
	}
	if err := b.changeSlot(id, slot, func(s *slotRow) { *s = slotRow{} }); err != nil {
		return err
	}
	if _, err := reapWhere(f, func(h *half) bool { return h.backend == at }); err != nil {
		return err
	}
	if _, err := control(b.progs.ClearSlot, []clearRequest{{Service: id, Slot: slot}}); err != nil {
		return fmt.Errorf("clearing the counts of slot %d: %w", slot, err)
	}
	if err := f.putBackend(at, backendHead{}); err != nil {
		return err
	}
	zero := make([]trafficRow, ebpf.MustPossibleCPU())
	err = errors.Join(b.tables.traffics.Put(at, zero), b.tables.connectTimes.Put(at, connectTimeRow{}))
	if err != nil {
		return fmt.Errorf("clearing the traffic of slot %d: %w", slot, err)
	}
	return nil
}

// SetBackend implements lb.Datapath.
func (b *Balancer) SetBackend(service string, backend lb.Backend) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.placed {
		p := &b.placed[i]
		if p.service != service || p.name != backend.Name || p.addr != backend.Addr {
			continue
		}
		now := time.Now()
		p.weight = max(backend.Weight, 1)
		return b.changeSlot(p.id, p.slot, func(row *slotRow) {
			switch {
			case backend.State != lb.Up:
				p.slowUntil = time.Time{}
			case lb.State(row.State) != lb.Up && p.slowStart > 0:
				p.slowUntil = now.Add(p.slowStart)
			}
			row.configure(backend, p.share(now))
		})
	}
	return fmt.Errorf("%w: %s/%s", errNoSuchBackend, service, backend.Name)
}

func freeID(have map[netip.AddrPort]serviceHead) uint32 {
	var used [lb.MaxServices]bool
	for _, s := range have {
		used[s.id] = true
	}
	// There is one: have grows to at most the number wanted.
	return uint32(slices.Index(used[:], false))
}
