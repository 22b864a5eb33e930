package xdp

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// lifetime is how long a flow may be idle in the state that it is in.
func (t *Timeouts) lifetime(flags balancerFlowFlag) time.Duration {
	switch {
	case flags&balancerFlowFlagFLOW_RESET != 0:
		return t.Reset
	case flags&balancerFlowFlagFLOW_CLOSED != 0 && flags&balancerFlowFlagFLOW_TIME_WAIT == 0:
		return t.Closed
	case flags&balancerFlowFlagFLOW_CLOSED != 0:
		return t.TimeWait
	case flags&balancerFlowFlagFLOW_ESTABLISHED == 0:
		return t.SYN
	case flags&(balancerFlowFlagFLOW_FIN_CLIENT|balancerFlowFlagFLOW_FIN_BACKEND) != 0:
		return t.FIN
	default:
		return t.Established
	}
}

// sweepShare bounds what sweeping may cost: after a pass the sweeper rests for
// that many times as long as it took. A pass over a million flows takes about
// 0.6 s (0.3 us an entry, measured), which is then a twentieth of one CPU.
const sweepShare = 19

func (b *Balancer) sweepLoop(ctx context.Context) error {
	for {
		began := time.Now()
		if err := b.sweep(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(max(b.cfg.SweepInterval, sweepShare*time.Since(began))):
		}
	}
}

// auditResult is an audit and when it was made.
type auditResult struct {
	lb.Audit
	at uint64
}

// sweep removes the flows whose time is up, asks after those that are idle,
// and recounts the others.
func (b *Balancer) sweep() error {
	clock, err := b.tables.clock()
	if err != nil {
		return err
	}
	count := newCount()
	for _, f := range b.tables.families() {
		vips, err := b.standings(f, clock)
		if err != nil {
			return err
		}
		_, err = f.sweep(func(flags balancerFlowFlag, backend, vip uint16, seen uint32) (fate, uint32) {
			if !count.see(flags, uint32(backend)) {
				return keep, 0
			}
			limit, at := b.cfg.Timeouts.lifetime(flags), &vips[vip%maxVIPs]
			switch {
			case b.cfg.Replicate && isIdle(flags) && at.isDoubtful(seen, clock):
				return idle, 0
			case clock.age(seen) <= limit:
				return keep, 0
			case b.cfg.Replicate && isReplicated(flags) && !at.own:
				return keep, 0 // its packets are seen by the other node
			case isIdle(flags):
				return idle, 0
			}
			count.unsee(flags, uint32(backend))
			return over, clock.before(limit)
		}, b.probes.note)
		if err != nil {
			return err
		}
		count.Capacity += f.capacity()
	}
	if err := b.probe(clock); err != nil {
		return err
	}
	result := auditResult{Audit: count.audit(), at: monotonic()}
	result.Memory = b.tables.memory()
	result.Probed, result.Dead = b.probes.probed, b.probes.dead
	if result.Drift, err = b.recount(count.live); err != nil {
		return err
	}
	b.audit.Store(&result)
	return nil
}

// flowCount counts what is in the flow tables.
type flowCount struct {
	lb.Audit
	halves int
	live   map[uint32]int64 // by backend
}

func newCount() *flowCount { return &flowCount{live: make(map[uint32]int64)} }

// see takes one entry and says whether it is a forward half.
func (c *flowCount) see(flags balancerFlowFlag, backend uint32) bool {
	c.halves++
	if flags&balancerFlowFlagFLOW_FORWARD == 0 {
		return false
	}
	c.Flows++
	if flags&balancerFlowFlagFLOW_CLOSED == 0 {
		c.live[backend]++
		c.Live++
	}
	return true
}

// unsee takes back a flow that is about to be removed: it is not in the active
// count that this one is compared with. Should it prove to be busy and stay, it
// is a difference for this once.
func (c *flowCount) unsee(flags balancerFlowFlag, backend uint32) {
	c.halves -= 2
	c.Flows--
	if flags&balancerFlowFlagFLOW_CLOSED == 0 {
		c.live[backend]--
		c.Live--
	}
}

func (c *flowCount) audit() lb.Audit {
	c.Orphans = max(c.halves-2*c.Flows, 0)
	return c.Audit
}

// recount compares the program's active counts with the tables. The two are
// read at different moments, so that only a difference that stays from one
// sweep to the next is drift.
func (b *Balancer) recount(live map[uint32]int64) (int64, error) {
	b.mu.Lock()
	placed := slices.Clone(b.placed)
	b.mu.Unlock()
	active, err := b.tables.activeCounts(placed)
	if err != nil {
		return 0, err
	}
	differences := make(map[uint32]int64)
	var drift int64
	for at, n := range active {
		differences[at] = n - live[at]
		drift += lasting(b.drift[at], differences[at])
	}
	b.drift = differences
	return drift, nil
}

// activeCounts reads what the program reckons, by backend.
func (t *tables) activeCounts(placed []placedBackend) (map[uint32]int64, error) {
	loads := make(map[uint32]*loadRow)
	active := make(map[uint32]int64)
	for _, p := range placed {
		load := loads[p.id]
		if load == nil {
			load = new(loadRow)
			if err := t.loads.Lookup(p.id, load); err != nil {
				return nil, fmt.Errorf("reading active counts: %w", err)
			}
			loads[p.id] = load
		}
		active[p.index()] = load.Active[p.slot]
	}
	return active, nil
}

// lasting is the size of the part that two differences have in common.
func lasting(before, now int64) int64 {
	switch {
	case before > 0 && now > 0:
		return min(before, now)
	case before < 0 && now < 0:
		return min(-before, -now)
	}
	return 0
}

// FlushFlows forgets all flows to a virtual address, whatever their state, and
// returns how many there were.
func (b *Balancer) FlushFlows(addr netip.Addr) (int, error) {
	f, err := b.tables.of(addr)
	if err != nil {
		return 0, err
	}
	return reapWhere(f, func(h *half) bool { return h.to.Addr() == addr })
}

// reapWhere removes the flows whose forward half matches.
func reapWhere(f familyTables, match func(*half) bool) (int, error) {
	var found []half
	err := f.eachHalf(func(h *half) bool {
		if h.has(balancerFlowFlagFLOW_FORWARD) && match(h) {
			found = append(found, *h)
		}
		return true
	})
	if err != nil {
		return 0, err
	}
	return f.reap(found)
}

// control runs one of the program's entries for the daemon: the requests are
// the test packet, and the answers are what it became.
func control[T any](prog *ebpf.Program, requests []T) ([]T, error) {
	size := len(requests) * int(unsafe.Sizeof(requests[0]))
	out := make([]T, len(requests))
	opts := ebpf.RunOptions{
		Data:    unsafe.Slice((*byte)(unsafe.Pointer(&requests[0])), size),
		DataOut: unsafe.Slice((*byte)(unsafe.Pointer(&out[0])), size),
	}
	verdict, err := prog.Run(&opts)
	if err != nil {
		return nil, err
	}
	if verdict != xdpPass || len(opts.DataOut) != size {
		return nil, fmt.Errorf("the program answered %d with %d bytes", verdict, len(opts.DataOut))
	}
	return out, nil
}

// xdpPass is XDP_PASS of linux/bpf.h.
const xdpPass = 2
