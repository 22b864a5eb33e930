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
// nil. The slice is overwritten after the call. fn must not wait, and is called
// from one goroutine for each family. It needs Config.Replicate.
func (b *Balancer) Changes(ctx context.Context, fn func([]lb.FlowChange)) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return readChanges[addr4](ctx, b, b.progs.Events, fn) })
	if b.cfg.IPv6 {
		g.Go(func() error { return readChanges[addr6](ctx, b, b.progs6.Events, fn) })
	}
	return g.Wait()
}

// LostChanges is how many changes found no room because they were not read in
// time. Who tells another node has to copy everything anew when it grows.
func (b *Balancer) LostChanges() (lost uint64, err error) {
	maps := []*ebpf.Map{b.progs.Lost}
	if b.cfg.IPv6 {
		maps = append(maps, b.progs6.Lost)
	}
	for _, m := range maps {
		var n uint64
		if err := m.Lookup(uint32(0), &n); err != nil {
			return 0, fmt.Errorf("reading how many changes were lost: %w", err)
		}
		lost += n
	}
	return lost, nil
}

// readChanges empties one ring until ctx ends.
func readChanges[A address](ctx context.Context, b *Balancer, ring *ebpf.Map, fn func([]lb.FlowChange)) error {
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
		change.Record.BackendAck = e.ReverseAck
		batch = append(batch, change)
		if raw.Remaining == 0 || len(batch) == changesBatch {
			fn(batch)
			batch = batch[:0]
		}
	}
	return nil
}
