package xdp

import (
	"context"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sync/errgroup"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// changesBatch is how many changes are handed on at a time.
const changesBatch = 256

// Changes calls fn with what becomes of the flows that this node serves, in
// order for each flow, as soon as it happens, until ctx ends; it then returns
// nil. A record's Idle is the time since then. The slice is overwritten after
// the call. lost is called when there was no room for some, once those that came
// before have been handed over: whoever tells another node has to copy
// everything anew. Neither may wait, and both are called from one goroutine for
// each family. It needs Config.Replicate.
func (b *Balancer) Changes(ctx context.Context, fn func([]lb.FlowChange), lost func()) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return readChanges[addr4](ctx, b, b.progs.Events, b.progs.Lost, fn, lost) })
	if b.cfg.IPv6 {
		g.Go(func() error { return readChanges[addr6](ctx, b, b.progs6.Events, b.progs6.Lost, fn, lost) })
	}
	return g.Wait()
}

// lostCount reads how many changes found no room because they were not read in
// time.
func lostCount(m *ebpf.Map) (n uint64, err error) {
	if err := m.Lookup(uint32(0), &n); err != nil {
		return 0, fmt.Errorf("reading how many changes were lost: %w", err)
	}
	return n, nil
}

// readChanges empties one ring until ctx ends.
func readChanges[A address](ctx context.Context, b *Balancer, ring, losses *ebpf.Map, fn func([]lb.FlowChange), lost func()) error {
	reader, err := ringbuf.NewReader(ring)
	if err != nil {
		return fmt.Errorf("reading the ring of changes: %w", err)
	}
	defer reader.Close()
	stop := context.AfterFunc(ctx, func() {
		_ = reader.Flush() // fails only when it is closed
	})
	defer stop()
	var raw ringbuf.Record
	var clock clock
	known := uint64(0)
	batch := make([]lb.FlowChange, 0, changesBatch)
	for ctx.Err() == nil {
		err := reader.ReadInto(&raw)
		if errors.Is(err, ringbuf.ErrFlushed) {
			continue
		}
		if err != nil {
			return fmt.Errorf("reading the ring of changes: %w", err)
		}
		if len(batch) == 0 {
			if clock, err = b.tables.clock(); err != nil {
				return err
			}
		}
		e := fromBytes[eventRow[A]](raw.RawSample)
		change := lb.FlowChange{Record: record(&e.Key, &e.Forward, nil, clock), Gone: e.Gone != 0}
		change.Record.BackendAck, change.Record.Idle = e.ReverseAck, clock.since(e.At)
		batch = append(batch, change)
		if raw.Remaining == 0 || len(batch) == changesBatch {
			fn(batch)
			batch = batch[:0]
		}
		// The ring is full when one is lost, so that it is emptied after that.
		if raw.Remaining == 0 {
			n, err := lostCount(losses)
			if err != nil {
				return err
			}
			if n != known {
				known = n
				lost()
			}
		}
	}
	return nil
}
