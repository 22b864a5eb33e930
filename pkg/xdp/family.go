package xdp

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// familyTables are the tables of one address family, to those who speak of
// addresses only. Addresses given must be of the family.
type familyTables interface {
	vips() (map[netip.Addr]vipRow, error)
	putVIP(netip.Addr, vipRow) error
	deleteVIP(netip.Addr) error
	setHints() error
	lease(index uint32) (uint64, error)
	setLease(index uint32, until uint64) error

	services() (map[netip.AddrPort]serviceHead, error)
	putService(netip.AddrPort, serviceHead) error
	deleteService(netip.AddrPort) error
	setAllowed(service uint32, networks []netip.Prefix) error

	backend(index uint32) (backendHead, error)
	putBackend(index uint32, row backendHead) error

	eachHalf(fn func(*half) bool) error
	eachFlow(match func(*half) bool, fn func(forward, reverse *half) bool) error
	sweep(judge, func(*half)) (reaped int, err error)
	forward(from, to netip.AddrPort) (half, bool)
	reverse(*half) (half, bool)
	reap([]half) (int, error)
	eachRecord(own func(vip uint16) bool, clock clock, fn func(*lb.FlowRecord) bool) error
	replicate(r *lb.FlowRecord, at location, clock clock, gone bool) (balancerReplicaAnswer, error)
	capacity() int
	copier(old *ebpf.Map, from, to tableDescription, adder *adder) (flowCopier, error)
	Close() error
}

// serviceHead is a serviceRow without its family.
type serviceHead struct {
	id    uint32
	flags balancerServiceFlag
	nat   []natAddr // the VIP first
	name  string
}

// natAddr is a source address towards backends.
type natAddr struct {
	addr netip.Addr
	vip  uint32 // its index into the leases
}

// backendHead is a backendRow without its family. Its address is invalid when
// the place is free.
type backendHead struct {
	addr netip.AddrPort
	mac  macAddr
	name string
}

// half is an entry of the flow table without its family, but for what it takes
// to find it again.
type half struct {
	flags   balancerFlowFlag
	backend uint32
	vip     uint32
	created uint32
	seen    uint32
	ack     uint32
	packets uint64
	bytes   uint64

	from, to       netip.AddrPort // as received
	newFrom, newTo netip.AddrPort // as sent
}

func (h *half) has(flags balancerFlowFlag) bool { return h.flags&flags == flags }

// fate is what becomes of a flow.
type fate int

const (
	keep fate = iota
	over      // it is removed, unless something was seen of it meanwhile
	idle      // its ends have to be asked
)

// judge decides by what the flow table says; notAfter is the time that over
// means.
type judge func(flags balancerFlowFlag, backend, vip uint16, seen uint32) (f fate, notAfter uint32)

// family implements familyTables. The daemon has all of it, a Reader no program.
type family[A address] struct {
	vipMap, leases, hints, serviceMap, backendMap, backendIDs, flows, allowed *ebpf.Map

	reapProg, replicateProg *ebpf.Program
	scan                    *flowScan[A]
}

// familyMaps names the maps of a family; those of IPv6 end in 6.
func (f *family[A]) byName() map[string]**ebpf.Map {
	suffix := ""
	if _, v6 := any(f).(*family[addr6]); v6 {
		suffix = "6"
	}
	return map[string]**ebpf.Map{
		"vips" + suffix:        &f.vipMap,
		"leases" + suffix:      &f.leases,
		"vip_hints" + suffix:   &f.hints,
		"services" + suffix:    &f.serviceMap,
		"backends" + suffix:    &f.backendMap,
		"backend_ids" + suffix: &f.backendIDs,
		"flows" + suffix:       &f.flows,
		"allowed" + suffix:     &f.allowed,
	}
}

// Close lets go of what Close of the tables does not know.
func (f *family[A]) Close() error {
	if f.scan == nil {
		return nil
	}
	return f.scan.Close()
}

func (f *family[A]) capacity() int { return int(f.flows.MaxEntries()) }

func (f *family[A]) vips() (map[netip.Addr]vipRow, error) {
	all := make(map[netip.Addr]vipRow)
	var key A
	var row vipRow
	it := f.vipMap.Iterate()
	for it.Next(&key, &row) {
		all[fromAddr(key)] = row
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("listing virtual addresses: %w", err)
	}
	return all, nil
}

func (f *family[A]) putVIP(addr netip.Addr, row vipRow) error {
	if err := f.vipMap.Put(toAddr[A](addr), row); err != nil {
		return fmt.Errorf("storing virtual address %s: %w", addr, err)
	}
	return nil
}

func (f *family[A]) deleteVIP(addr netip.Addr) error {
	if err := f.vipMap.Delete(toAddr[A](addr)); err != nil {
		return fmt.Errorf("removing virtual address %s: %w", addr, err)
	}
	return nil
}

// setHints has the hints say what the tables of virtual addresses and services
// do. An address that is not hinted at is a stranger's: it has to be called
// after one is added and before one is removed for good.
func (f *family[A]) setHints() error {
	vips, err := f.vips()
	if err != nil {
		return err
	}
	services, err := f.services()
	if err != nil {
		return err
	}
	var want [256]hintRow[A]
	ports := make(map[netip.Addr][]uint16)
	for addr := range services {
		ports[addr.Addr()] = append(ports[addr.Addr()], addr.Port())
	}
	for addr, row := range vips {
		hint := &want[lastByte(addr)]
		if hint.Count++; hint.Count > 1 || len(ports[addr]) != 1 {
			*hint = hintRow[A]{Count: hint.Count}
			continue
		}
		hint.Index, hint.Addr, hint.Port = row.Index, toAddr[A](addr), toPort(ports[addr][0])
	}
	for last := range uint32(len(want)) {
		if err := f.hints.Put(last, want[last]); err != nil {
			return fmt.Errorf("writing a hint at virtual addresses: %w", err)
		}
	}
	return nil
}

func (f *family[A]) lease(index uint32) (until uint64, err error) {
	if err := f.leases.Lookup(index, &until); err != nil {
		return 0, fmt.Errorf("reading a lease: %w", err)
	}
	return until, nil
}

func (f *family[A]) setLease(index uint32, until uint64) error {
	if err := f.leases.Put(index, until); err != nil {
		return fmt.Errorf("writing a lease: %w", err)
	}
	return nil
}

func (f *family[A]) services() (map[netip.AddrPort]serviceHead, error) {
	all := make(map[netip.AddrPort]serviceHead)
	var key serviceKey[A]
	var row serviceRow[A]
	it := f.serviceMap.Iterate()
	for it.Next(&key, &row) {
		head := serviceHead{id: row.ID, flags: balancerServiceFlag(row.Flags), name: row.Name.String()}
		for i := range min(row.NATCount, maxNATAddrs) {
			head.nat = append(head.nat, natAddr{fromAddr(row.NAT[i]), uint32(row.NATVIPs[i])})
		}
		all[key.addrPort()] = head
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("listing services: %w", err)
	}
	return all, nil
}

func (f *family[A]) serviceKey(addr netip.AddrPort) serviceKey[A] {
	return serviceKey[A]{Addr: toAddr[A](addr.Addr()), Port: toPort(addr.Port()), Proto: unix.IPPROTO_TCP}
}

func (f *family[A]) putService(addr netip.AddrPort, head serviceHead) error {
	row := serviceRow[A]{ID: head.id, Flags: uint16(head.flags), NATCount: uint16(len(head.nat)), Name: nameBytes(head.name)}
	for i, n := range head.nat {
		row.NAT[i], row.NATVIPs[i] = toAddr[A](n.addr), uint16(n.vip)
	}
	if err := f.serviceMap.Put(f.serviceKey(addr), row); err != nil {
		return fmt.Errorf("writing the service: %w", err)
	}
	return nil
}

func (f *family[A]) deleteService(addr netip.AddrPort) error {
	if err := f.serviceMap.Delete(f.serviceKey(addr)); err != nil {
		return fmt.Errorf("removing service %s: %w", addr, err)
	}
	return nil
}

// setAllowed replaces the networks of one service. New ones are added before
// old ones go, so that nobody is shut out in between.
func (f *family[A]) setAllowed(service uint32, networks []netip.Prefix) error {
	keep := make(map[networkKey[A]]bool)
	key := networkKey[A]{Service: [4]byte{byte(service >> 24), byte(service >> 16), byte(service >> 8), byte(service)}}
	for _, n := range networks {
		key.Bits, key.Addr = 32+uint32(n.Bits()), toAddr[A](n.Masked().Addr())
		keep[key] = true
		if err := f.allowed.Put(key, uint32(1)); err != nil {
			return fmt.Errorf("allowing %s: %w", n, err)
		}
	}
	var have networkKey[A]
	var value uint32
	var stale []networkKey[A]
	it := f.allowed.Iterate()
	for it.Next(&have, &value) {
		if have.Service == key.Service && !keep[have] {
			stale = append(stale, have)
		}
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("listing allowed networks: %w", err)
	}
	for _, k := range stale {
		if err := f.allowed.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("withdrawing an allowed network: %w", err)
		}
	}
	return nil
}

func (f *family[A]) backend(index uint32) (backendHead, error) {
	var row backendRow[A]
	if err := f.backendMap.Lookup(index, &row); err != nil {
		return backendHead{}, fmt.Errorf("reading backend %d: %w", index, err)
	}
	if row.free() {
		return backendHead{}, nil
	}
	return backendHead{addr: row.addrPort(), mac: row.MAC, name: row.Name.String()}, nil
}

// putBackend writes a backend, or frees its place, together with the entry by
// which the program knows who is a backend.
func (f *family[A]) putBackend(index uint32, head backendHead) error {
	old, err := f.backend(index)
	if err != nil {
		return err
	}
	if old.addr.IsValid() && old.addr != head.addr {
		err := f.backendIDs.Delete(backendKey[A]{Addr: toAddr[A](old.addr.Addr()), Port: toPort(old.addr.Port())})
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("removing the address of backend %s: %w", old.name, err)
		}
	}
	var row backendRow[A]
	if head.addr.IsValid() {
		row = backendRow[A]{Addr: toAddr[A](head.addr.Addr()), Port: toPort(head.addr.Port()), MAC: head.mac, Name: nameBytes(head.name)}
	}
	if err := f.backendMap.Put(index, row); err != nil {
		return fmt.Errorf("writing backend %s: %w", head.name, err)
	}
	if !head.addr.IsValid() {
		return nil
	}
	if err := f.backendIDs.Put(backendKey[A]{Addr: row.Addr, Port: row.Port}, index); err != nil {
		return fmt.Errorf("writing the address of backend %s: %w", head.name, err)
	}
	return nil
}

func (f *family[A]) halfOf(key *flowKey[A], row *flowRow[A]) half {
	return half{
		flags: balancerFlowFlag(row.Flags), backend: uint32(row.Backend), vip: uint32(row.VIP),
		created: row.Created, seen: row.Seen, ack: row.Ack, packets: row.Packets, bytes: row.Bytes,
		from: key.source(), to: key.target(), newFrom: row.Rewritten.source(), newTo: row.Rewritten.target(),
	}
}

func (f *family[A]) keyOf(from, to netip.AddrPort) flowKey[A] {
	return flowKey[A]{
		Saddr: toAddr[A](from.Addr()), Daddr: toAddr[A](to.Addr()),
		Sport: toPort(from.Port()), Dport: toPort(to.Port()),
	}
}

// sweep shows every entry to the judge, removes the flows that are over and
// hands on those that are idle. It is eachHalf without turning a million
// entries into addresses.
func (f *family[A]) sweep(decide judge, ask func(*half)) (int, error) {
	var requests []reapRequest[A]
	err := f.scan.each(func(key *flowKey[A], row *flowRow[A]) bool {
		switch fate, notAfter := decide(balancerFlowFlag(row.Flags), row.Backend, row.VIP, row.Seen); fate {
		case over:
			requests = append(requests, reapRequest[A]{Key: *key, Seen: notAfter})
		case idle:
			h := f.halfOf(key, row)
			ask(&h)
		}
		return true
	})
	if err != nil {
		return 0, err
	}
	return f.run(requests)
}

// forward finds a client's flow to a service.
func (f *family[A]) forward(from, to netip.AddrPort) (half, bool) {
	key := f.keyOf(from, to)
	var row flowRow[A]
	if f.flows.Lookup(key, &row) != nil || !row.has(balancerFlowFlagFLOW_FORWARD) {
		return half{}, false
	}
	return f.halfOf(&key, &row), true
}

// reverse finds a forward half's other half, unless the flow is gone.
func (f *family[A]) reverse(h *half) (half, bool) {
	key := f.keyOf(h.newTo, h.newFrom)
	var row flowRow[A]
	if f.flows.Lookup(key, &row) != nil {
		return half{}, false
	}
	return f.halfOf(&key, &row), true
}

// reapBatch is REAP_BATCH of bpf/types.h.
const reapBatch = 64

// reap removes flows, given by their forward halves, whatever was seen of them,
// and returns how many were still there.
func (f *family[A]) reap(halves []half) (int, error) {
	requests := make([]reapRequest[A], len(halves))
	for i := range halves {
		requests[i] = reapRequest[A]{Key: f.keyOf(halves[i].from, halves[i].to), Force: 1}
	}
	return f.run(requests)
}

// run has the program remove flows: what was read may be out of date, and it
// looks again.
func (f *family[A]) run(requests []reapRequest[A]) (int, error) {
	reaped := 0
	for len(requests) > 0 {
		n := min(len(requests), reapBatch)
		out, err := control(f.reapProg, requests[:n])
		if err != nil {
			return reaped, fmt.Errorf("removing flows: %w", err)
		}
		for i := range out {
			reaped += int(out[i].Reaped)
		}
		requests = requests[n:]
	}
	return reaped, nil
}

// index is a backend's place in the tables that are not by family.
func index(service, slot uint32) uint32 { return service*lb.MaxBackends + slot }
