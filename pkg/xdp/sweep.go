package xdp

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// flowBatch is a buffer for reading the flow table in strides. 4096 entries a
// system call read 200,000 in 62 ms; one at a time takes ten times as long.
type flowBatch struct {
	keys []balancerFlowKey
	vals []balancerFlow
}

const batchSize = 4096

// each calls fn for every entry until it returns false. Entries that come or
// go meanwhile may be seen or missed.
func (fb *flowBatch) each(m *ebpf.Map, fn func(*balancerFlowKey, *balancerFlow) bool) error {
	if fb.keys == nil {
		fb.keys = make([]balancerFlowKey, batchSize)
		fb.vals = make([]balancerFlow, batchSize)
	}
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, fb.keys, fb.vals, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("reading the flow table: %w", err)
		}
		for i := range n {
			if !fn(&fb.keys[i], &fb.vals[i]) {
				return nil
			}
		}
		if err != nil { // ErrKeyNotExist: the end
			return nil
		}
	}
}

// lifetime is how long a flow may be idle in the state that it is in.
func (t *Timeouts) lifetime(flags balancerFlowFlag) time.Duration {
	switch {
	case flags&balancerFlowFlagFLOW_RESET != 0:
		return t.Reset
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

func (b *Balancer) sweepLoop(ctx context.Context) error {
	tick := time.NewTicker(b.cfg.SweepInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := b.sweep(); err != nil {
				return err
			}
		}
	}
}

// auditResult is an audit and when it was made.
type auditResult struct {
	lb.Audit
	at uint64
}

// sweep removes the flows whose time is up and recounts the others. What it
// reads may be out of date; the program looks again before it removes one.
func (b *Balancer) sweep() error {
	now := monotonic()
	result := auditResult{at: now}
	result.Capacity = int(b.objs.Flows.MaxEntries())
	live := make(map[uint16]int64)
	var requests []balancerReapRequest
	var halves int
	err := b.scratch.each(b.objs.Flows, func(key *balancerFlowKey, f *balancerFlow) bool {
		halves++
		flags := balancerFlowFlag(f.Flags)
		if flags&balancerFlowFlagFLOW_FORWARD == 0 {
			return true
		}
		result.Flows++
		if flags&balancerFlowFlagFLOW_CLOSED == 0 {
			live[f.Backend]++
			result.Live++
		}
		limit := b.cfg.Timeouts.lifetime(flags)
		if age(now, f.Seen) > limit {
			requests = append(requests, balancerReapRequest{Key: *key, Seen: now - uint64(limit)})
		}
		return true
	})
	if err != nil {
		return err
	}
	result.Orphans = max(halves-2*result.Flows, 0)
	if result.Drift, err = b.recount(live); err != nil {
		return err
	}
	if _, err := b.reap(requests); err != nil {
		return err
	}
	b.audit.Store(&result)
	return nil
}

// recount compares the program's active counts with the table. The two are
// read at different moments, so that only a difference that stays from one
// sweep to the next is drift.
func (b *Balancer) recount(live map[uint16]int64) (int64, error) {
	b.mu.Lock()
	placed := b.placed
	b.mu.Unlock()
	loads := make(map[uint32]*balancerLoad)
	differences := make(map[uint16]int64)
	var drift int64
	for _, p := range placed {
		load := loads[p.id]
		if load == nil {
			load = new(balancerLoad)
			if err := b.objs.Loads.Lookup(p.id, load); err != nil {
				return 0, fmt.Errorf("reading active counts: %w", err)
			}
			loads[p.id] = load
		}
		index := uint16(p.index())
		difference := load.Active[p.slot] - live[index]
		differences[index] = difference
		drift += lasting(b.drift[index], difference)
	}
	b.drift = differences
	return drift, nil
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
	want := be32(addr)
	return b.reapWhere(func(key *balancerFlowKey, _ *balancerFlow) bool { return key.Daddr == want })
}

// reapWhere removes the flows whose forward half matches.
func (b *Balancer) reapWhere(match func(*balancerFlowKey, *balancerFlow) bool) (int, error) {
	var requests []balancerReapRequest
	var batch flowBatch
	err := batch.each(b.objs.Flows, func(key *balancerFlowKey, f *balancerFlow) bool {
		if balancerFlowFlag(f.Flags)&balancerFlowFlagFLOW_FORWARD != 0 && match(key, f) {
			requests = append(requests, balancerReapRequest{Key: *key, Force: 1})
		}
		return true
	})
	if err != nil {
		return 0, err
	}
	return b.reap(requests)
}

// reapBatch is REAP_BATCH of bpf/types.h.
const reapBatch = 64

// reap has the program remove flows and returns how many it did remove.
func (b *Balancer) reap(requests []balancerReapRequest) (int, error) {
	reaped := 0
	for len(requests) > 0 {
		n := min(len(requests), reapBatch)
		out, err := control(b.objs.Reap, requests[:n])
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

func (b *Balancer) clearSlot(id, slot uint32) error {
	if _, err := control(b.objs.ClearSlot, []balancerClearRequest{{Service: id, Slot: slot}}); err != nil {
		return fmt.Errorf("clearing the counts of slot %d: %w", slot, err)
	}
	return nil
}

// control runs one of the program's entries for the daemon: the requests are
// the test packet, and the answers are what it became.
func control[T balancerReapRequest | balancerClearRequest](prog *ebpf.Program, requests []T) ([]T, error) {
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
