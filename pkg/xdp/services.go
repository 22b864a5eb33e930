package xdp

import (
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// errNoSuchBackend is returned for a name that SetServices was not given.
var errNoSuchBackend = errors.New("no such backend")

// SetServices implements lb.Datapath. A backend keeps its slot, and with it
// its flows and counts, as long as its service's address and its own address
// stay. The flows of one that goes are forgotten: their next segment is
// answered by a reset.
func (b *Balancer) SetServices(want []lb.Service) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(want) > lb.MaxServices {
		return fmt.Errorf("%d services, at most %d are possible", len(want), lb.MaxServices)
	}
	have, err := b.tables.services4()
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
	return b.refreshNextHops()
}

// removeServices drops the services that are no longer wanted from the tables
// and from have.
func (b *Balancer) removeServices(have map[netip.AddrPort]balancerService, want []lb.Service) error {
	for addr, service := range have {
		if slices.ContainsFunc(want, func(s lb.Service) bool { return s.Addr == addr }) {
			continue
		}
		// The way in first, so that nothing new arrives meanwhile.
		if err := b.objs.Services.Delete(serviceKey(addr)); err != nil {
			return fmt.Errorf("removing service %s: %w", nameOf(service.Name), err)
		}
		for slot := range uint32(lb.MaxBackends) {
			if err := b.freeSlot(service.Id, slot); err != nil {
				return err
			}
		}
		delete(have, addr)
	}
	return nil
}

// setService writes one service and returns where its backends are.
func (b *Balancer) setService(s lb.Service, have map[netip.AddrPort]balancerService) ([]placedBackend, error) {
	if !s.Addr.Addr().Is4() || len(s.Name) > lb.MaxNameLen || len(s.Backends) > lb.MaxBackends {
		return nil, errors.New("address not IPv4, name too long or too many backends")
	}
	row, known := have[s.Addr]
	if !known {
		row.Id = freeID(have)
	}
	row.Name = nameBytes(s.Name)
	have[s.Addr] = row

	slots, err := b.placeBackends(row.Id, s.Backends)
	if err != nil {
		return nil, err
	}
	schedule := balancerSchedule{Scheduler: uint32(s.Scheduler)}
	var placed []placedBackend
	for i, backend := range s.Backends {
		p := placedBackend{service: s.Name, name: backend.Name, addr: backend.Addr, id: row.Id, slot: slots[i]}
		if err := b.writeBackend(p); err != nil {
			return nil, err
		}
		schedule.Slots[p.slot] = balancerSlot{Weight: backend.Weight, State: uint8(backend.State)}
		if _, known := b.nextHopMAC(backend.Addr.Addr()); known {
			schedule.Slots[p.slot].Reachable = 1
		}
		// The scheduler walks a ring of a power of two slots.
		schedule.Mask = max(schedule.Mask, 1<<bits.Len32(p.slot)-1)
		placed = append(placed, p)
	}
	if err := b.objs.Schedules.Put(row.Id, schedule); err != nil {
		return nil, fmt.Errorf("writing the schedule: %w", err)
	}
	if err := b.objs.Services.Put(serviceKey(s.Addr), row); err != nil {
		return nil, fmt.Errorf("writing the service: %w", err)
	}
	return placed, nil
}

// placeBackends finds a slot for each backend: its old one, else a free one.
// Slots of backends that are gone are freed first.
func (b *Balancer) placeBackends(id uint32, backends []lb.Backend) ([]uint32, error) {
	var used [lb.MaxBackends]bool
	slots := make([]uint32, len(backends))
	found := make([]bool, len(backends))
	for slot := range uint32(lb.MaxBackends) {
		var row balancerBackend
		if err := b.objs.Backends.Lookup(id*lb.MaxBackends+slot, &row); err != nil {
			return nil, fmt.Errorf("reading slot %d: %w", slot, err)
		}
		if row.Addr == 0 {
			continue
		}
		addr := addrPortOf(row.Addr, row.Port)
		i := slices.IndexFunc(backends, func(b lb.Backend) bool { return b.Addr == addr })
		if i < 0 {
			if err := b.freeSlot(id, slot); err != nil {
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
func (b *Balancer) writeBackend(p placedBackend) error {
	var row balancerBackend
	if err := b.objs.Backends.Lookup(p.index(), &row); err != nil {
		return fmt.Errorf("reading backend %s: %w", p.name, err)
	}
	row.Addr, row.Port, row.Name = be32(p.addr.Addr()), be16(p.addr.Port()), nameBytes(p.name)
	if err := b.objs.Backends.Put(p.index(), row); err != nil {
		return fmt.Errorf("writing backend %s: %w", p.name, err)
	}
	key := balancerBackendKey{Addr: row.Addr, Port: row.Port}
	if err := b.objs.BackendIds.Put(key, p.index()); err != nil {
		return fmt.Errorf("writing the address of backend %s: %w", p.name, err)
	}
	return nil
}

// freeSlot empties a slot: no new flows, no old ones, no counts. It is no
// error when the slot is empty.
func (b *Balancer) freeSlot(id, slot uint32) error {
	index := id*lb.MaxBackends + slot
	var row balancerBackend
	if err := b.objs.Backends.Lookup(index, &row); err != nil {
		return fmt.Errorf("reading slot %d: %w", slot, err)
	}
	if row.Addr == 0 {
		return nil
	}
	if err := b.changeSlot(id, slot, func(s *balancerSlot) { *s = balancerSlot{} }); err != nil {
		return err
	}
	_, err := b.reapWhere(func(_ *balancerFlowKey, f *balancerFlow) bool { return uint32(f.Backend) == index })
	if err != nil {
		return err
	}
	if err := b.clearSlot(id, slot); err != nil {
		return err
	}
	key := balancerBackendKey{Addr: row.Addr, Port: row.Port}
	if err := b.objs.BackendIds.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("removing the address of backend %s: %w", nameOf(row.Name), err)
	}
	if err := b.objs.Backends.Put(index, balancerBackend{}); err != nil {
		return fmt.Errorf("emptying slot %d: %w", slot, err)
	}
	zero := make([]balancerTraffic, ebpf.MustPossibleCPU())
	if err := b.objs.Traffics.Put(index, zero); err != nil {
		return fmt.Errorf("clearing the traffic of slot %d: %w", slot, err)
	}
	return nil
}

// SetBackend implements lb.Datapath.
func (b *Balancer) SetBackend(service string, backend lb.Backend) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range b.placed {
		if p.service == service && p.name == backend.Name && p.addr == backend.Addr {
			return b.changeSlot(p.id, p.slot, func(row *balancerSlot) {
				row.State, row.Weight = uint8(backend.State), backend.Weight
			})
		}
	}
	return fmt.Errorf("%w: %s/%s", errNoSuchBackend, service, backend.Name)
}

// changeSlot rewrites one slot of a schedule. Only Go writes schedules, and
// the caller holds mu; the program reads a slot as one word.
func (b *Balancer) changeSlot(id, slot uint32, change func(*balancerSlot)) error {
	var row balancerSchedule
	if err := b.objs.Schedules.Lookup(id, &row); err != nil {
		return fmt.Errorf("reading the schedule: %w", err)
	}
	old := row.Slots[slot]
	if change(&row.Slots[slot]); row.Slots[slot] == old {
		return nil
	}
	if err := b.objs.Schedules.Put(id, row); err != nil {
		return fmt.Errorf("writing the schedule: %w", err)
	}
	return nil
}

func serviceKey(addr netip.AddrPort) balancerServiceKey {
	return balancerServiceKey{Addr: be32(addr.Addr()), Port: be16(addr.Port()), Proto: unix.IPPROTO_TCP}
}

func freeID(have map[netip.AddrPort]balancerService) uint32 {
	var used [lb.MaxServices]bool
	for _, s := range have {
		used[s.Id] = true
	}
	// There is one: have grows to at most the number wanted.
	return uint32(slices.Index(used[:], false))
}
