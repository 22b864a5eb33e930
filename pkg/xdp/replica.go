package xdp

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// Flows that another node serves are kept here as well, so that this one can go
// on with them: they are in the same table, counted in the same active counts,
// and only the lease says whose they are. What a packet would have done to them
// the program `replicate` does.

// states pairs what goes to another node with what the program has.
var states = []struct {
	state lb.FlowState
	flag  balancerFlowFlag
}{
	{lb.FlowAccepted, balancerFlowFlagFLOW_SYN_ACK},
	{lb.FlowEstablished, balancerFlowFlagFLOW_ESTABLISHED},
	{lb.FlowFinClient, balancerFlowFlagFLOW_FIN_CLIENT},
	{lb.FlowFinBackend, balancerFlowFlagFLOW_FIN_BACKEND},
	{lb.FlowReset, balancerFlowFlagFLOW_RESET},
	{lb.FlowClosed, balancerFlowFlagFLOW_CLOSED},
	{lb.FlowTimeWait, balancerFlowFlagFLOW_TIME_WAIT},
}

func stateOf(flags balancerFlowFlag) (s lb.FlowState) {
	for _, p := range states {
		if flags&p.flag != 0 {
			s |= p.state
		}
	}
	return s
}

func flagsOf(s lb.FlowState) (flags balancerFlowFlag) {
	for _, p := range states {
		if s&p.state != 0 {
			flags |= p.flag
		}
	}
	return flags
}

// isReplicated says whether a flow is one that the other node is told of and
// that only packets end: those half-open, and those that are over, end by their
// age everywhere.
func isReplicated(flags balancerFlowFlag) bool {
	return flags&balancerFlowFlagFLOW_SYN_ACK != 0 && flags&balancerFlowFlagFLOW_CLOSED == 0
}

// standing is what this node has to do with one of the addresses.
type standing struct {
	own   bool   // it answers for it
	since uint32 // it took it over then, age units; only if moved
	moved bool
}

// standings are those of all addresses, by their indexes.
func (b *Balancer) standings(f familyTables, clock clock) (all [maxVIPs]standing, err error) {
	vips, err := f.vips()
	if err != nil {
		return all, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for addr, row := range vips {
		until, err := f.lease(row.Index)
		if err != nil {
			return all, err
		}
		s := &all[row.Index]
		s.own = until > clock.now()
		s.since, s.moved = b.took[addr]
	}
	return all, nil
}

// settleTime is how long after a take-over flows are given to show that they
// live, before those that have not are asked.
const settleTime = 5 * time.Second

// isDoubtful says of a flow that was seen last then whether it may have ended
// unheard: the node that served it before may have forwarded packets that it
// could tell of no more.
func (s *standing) isDoubtful(seen uint32, clock clock) bool {
	return s.own && s.moved && clock.age(s.since) > settleTime && int32(seen-s.since) < 0
}

// record is a flow as another node gets it. reverse may be nil: that half is
// gone, or not at hand.
func record[A address](key *flowKey[A], forward, reverse *flowRow[A], clock clock) lb.FlowRecord {
	r := lb.FlowRecord{
		Client: key.source(), Service: key.target(),
		SNAT: forward.Rewritten.source(), Backend: forward.Rewritten.target(),
		ClientMAC: forward.ClientMAC, State: stateOf(balancerFlowFlag(forward.Flags)),
		ClientAck: forward.Ack, Age: clock.age(forward.Created), Idle: clock.age(forward.Seen),
		PacketsIn: forward.Packets, BytesIn: forward.Bytes,
	}
	if r.State&lb.FlowFinClient != 0 {
		r.FinAck = forward.Ticket
	}
	if reverse != nil {
		r.BackendAck = reverse.Ack
		r.Idle = min(r.Idle, clock.age(reverse.Seen))
		r.PacketsOut, r.BytesOut = reverse.Packets, reverse.Bytes
	}
	return r
}

func (f *family[A]) eachRecord(own func(vip uint16) bool, clock clock, fn func(*lb.FlowRecord) bool) error {
	return f.scan.eachPair(func(_ *flowKey[A], row *flowRow[A]) bool {
		return row.has(balancerFlowFlagFLOW_SYN_ACK) && own(row.VIP)
	}, func(key *flowKey[A], forward, reverse *flowRow[A]) bool {
		r := record(key, forward, reverse, clock)
		return fn(&r)
	})
}

// Each calls fn for the flows to addresses that this node serves (own), or for
// those that it keeps for another node, until it returns false. Half-open ones,
// which no backend has accepted, are left out: their clients begin again.
func (b *Balancer) Each(own bool, fn func(*lb.FlowRecord) bool) error {
	clock, err := b.tables.clock()
	if err != nil {
		return err
	}
	for _, f := range b.tables.families() {
		vips, err := b.standings(f, clock)
		if err != nil {
			return err
		}
		more := true
		err = f.eachRecord(func(vip uint16) bool { return vips[vip%maxVIPs].own == own }, clock, func(r *lb.FlowRecord) bool {
			more = fn(r)
			return more
		})
		if err != nil || !more {
			return err
		}
	}
	return nil
}

// HoldResets keeps the program for a while from answering unknown segments,
// whose flows may still be on their way from the node that served them before.
// They are sent again, after 200 ms at the soonest (RFC 6298 as Linux has it).
func (b *Balancer) HoldResets(d time.Duration) error {
	clock, err := b.tables.clock()
	if err != nil {
		return err
	}
	if err := b.progs.Buckets.Put(uint32(resetBucket), tokenBucket{Refilled: clock.after(d)}); err != nil {
		return fmt.Errorf("holding resets: %w", err)
	}
	return nil
}

// location is where a replica belongs in this node's tables.
type location struct{ backend, vip, natVIP uint32 }

// places finds out where replicas belong. It is made anew for each batch: what
// there is can change in between.
type places struct {
	backends map[[2]netip.AddrPort]uint32
	vips     map[netip.Addr]uint32
}

func (b *Balancer) places() (places, error) {
	p := places{backends: make(map[[2]netip.AddrPort]uint32), vips: make(map[netip.Addr]uint32)}
	b.mu.Lock()
	for _, at := range b.placed {
		p.backends[[2]netip.AddrPort{at.vip, at.addr}] = at.index()
	}
	b.mu.Unlock()
	for _, f := range b.tables.families() {
		all, err := f.vips()
		if err != nil {
			return p, err
		}
		for addr, row := range all {
			p.vips[addr] = row.Index
		}
	}
	return p, nil
}

func (p *places) of(r *lb.FlowRecord) (at location, ok bool) {
	var known [3]bool
	at.backend, known[0] = p.backends[[2]netip.AddrPort{r.Service, r.Backend}]
	at.vip, known[1] = p.vips[r.Service.Addr()]
	at.natVIP, known[2] = p.vips[r.SNAT.Addr()]
	return at, known == [3]bool{true, true, true}
}

func (f *family[A]) replicate(r *lb.FlowRecord, at location, clock clock, gone bool) (balancerReplicaAnswer, error) {
	row := replicaRow[A]{
		Key: f.keyOf(r.Client, r.Service),
		Forward: flowRow[A]{
			Rewritten: f.keyOf(r.SNAT, r.Backend), ClientMAC: r.ClientMAC,
			Backend: uint16(at.backend), VIP: uint16(at.vip), Flags: uint32(flagsOf(r.State)),
			Created: clock.before(min(r.Age, maxAge)), Seen: clock.before(min(r.Idle, maxAge)),
			Ack: r.ClientAck, Ticket: r.FinAck, Packets: r.PacketsIn, Bytes: r.BytesIn,
		},
		ReverseAck: r.BackendAck, ReverseVIP: uint16(at.natVIP),
		ReversePackets: r.PacketsOut, ReverseBytes: r.BytesOut,
	}
	if gone {
		row.Gone = 1
	}
	out, err := control(f.replicateProg, []replicaRow[A]{row})
	if err != nil {
		return 0, fmt.Errorf("storing a replica: %w", err)
	}
	return balancerReplicaAnswer(out[0].Answer), nil
}

// Store adds or updates flows that another node serves. Those that cannot be
// kept are counted: this node serves the address itself and knows the flow, has
// no such backend, or has no room. A flow to an address of its own that it does
// not know is taken: it was begun just before the other node gave way.
func (b *Balancer) Store(records []lb.FlowRecord) (refused int, err error) {
	err = b.replicas(records, false, func(answer balancerReplicaAnswer) {
		if answer != balancerReplicaAnswerREPLICA_STORED {
			refused++
		}
	})
	return refused, err
}

// Remove forgets flows of another node's. One that is unknown, or is of another
// identity at the same client address, is left alone.
func (b *Balancer) Remove(ids []lb.FlowID) error {
	records := make([]lb.FlowRecord, len(ids))
	for i, id := range ids {
		records[i] = lb.FlowRecord{Client: id.Client, Service: id.Service, SNAT: id.SNAT, Backend: id.Backend}
	}
	return b.replicas(records, true, func(balancerReplicaAnswer) {})
}

func (b *Balancer) replicas(records []lb.FlowRecord, gone bool, tell func(balancerReplicaAnswer)) error {
	clock, err := b.tables.clock()
	if err != nil {
		return err
	}
	places, err := b.places()
	if err != nil {
		return err
	}
	for i := range records {
		r := &records[i]
		at, ok := places.of(r)
		f, err := b.tables.of(r.Client.Addr())
		if !ok || err != nil || !sameFamily(r) {
			tell(balancerReplicaAnswerREPLICA_UNKNOWN)
			continue
		}
		answer, err := f.replicate(r, at, clock, gone)
		if err != nil {
			return err
		}
		tell(answer)
	}
	return nil
}

// sameFamily guards the tables, each of which is of one.
func sameFamily(r *lb.FlowRecord) bool {
	v4 := r.Client.Addr().Is4()
	return v4 == r.Service.Addr().Is4() && v4 == r.SNAT.Addr().Is4() && v4 == r.Backend.Addr().Is4()
}

// maxAge bounds an age that came from elsewhere: a flow's times are counted in
// 32 bits, of which one is for the sign.
const maxAge = 365 * 24 * time.Hour
