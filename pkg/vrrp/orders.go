package vrrp

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
)

// inputs are events from outside that wait for the router's goroutine.
type inputs struct {
	wake chan struct{} // token: there is one

	mu     sync.Mutex
	list   []input
	closed bool
}

// input is an event, and who waits for what comes of it.
type input struct {
	event  event
	done   chan error // capacity 1; nil: nobody waits
	cancel bool       // instead of event: done does not wait any more
}

// errEnded is what an order gets that comes too late.
var errEnded = errors.New("the virtual router is not running any more")

func (i *inputs) put(in input) {
	i.mu.Lock()
	closed := i.closed
	before := len(i.list)
	if in.cancel {
		i.list = slices.DeleteFunc(i.list, func(other input) bool { return other.done == in.done })
	}
	if !closed && len(i.list) == before {
		i.list = append(i.list, in)
	}
	i.mu.Unlock()
	if closed {
		if in.done != nil && !in.cancel {
			in.done <- errEnded
		}
		return
	}
	select {
	case i.wake <- struct{}{}:
	default:
	}
}

func (i *inputs) take() []input {
	i.mu.Lock()
	defer i.mu.Unlock()
	list := i.list
	i.list = nil
	return list
}

func (i *inputs) close() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.closed = true
}

// takeInputs feeds the machine with what waits.
func (r *Router) takeInputs() {
	for _, in := range r.inputs.take() {
		switch {
		case in.cancel && in.done != r.move:
			continue // it is through already
		case in.cancel:
			r.step(event{kind: evGiveUp})
			r.move = nil
			continue
		case in.done != nil && r.move != nil:
			// The machine has one move at a time; a new one replaces it.
			r.step(event{kind: evGiveUp})
			r.settle("another order came in between")
		}
		if in.done != nil {
			r.move, r.takeover = in.done, in.event.kind == evTakeover
		}
		r.step(in.event)
	}
}

// settle answers who waits for a move.
func (r *Router) settle(failure string) {
	if r.move == nil {
		return
	}
	var err error
	if failure != "" {
		err = errors.New(failure)
	}
	r.move <- err
	r.move = nil
}

// order has the machine make a move and waits for what comes of it.
func (r *Router) order(ctx context.Context, what string, e event) error {
	done := make(chan error, 1)
	r.inputs.put(input{event: e, done: done})
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		err = ctx.Err()
		r.inputs.put(input{done: done, cancel: true})
	}
	if err != nil {
		return fmt.Errorf("virtual router %s: failed to %s: %w", r.config.Name, what, err)
	}
	return nil
}

// Track tells what something outside, by that name, says about this node's
// fitness; the zero Track takes it back. It takes effect at once, and may be
// called from any goroutine and before Run.
func (r *Router) Track(name string, t Track) {
	r.inputs.put(input{event: event{kind: evTrack, name: name, track: t}})
}

// SetSynced tells whether this node has a copy of what the active one knows, and
// if not, why. With Config.SyncGate a node that has none stands back: it takes
// the addresses when nobody else does, but not from another. It may be called
// from any goroutine and before Run.
func (r *Router) SetSynced(synced bool, reason string) {
	r.inputs.put(input{event: event{kind: evSync, ok: synced, reason: reason}})
}

// Resign gives the role up: the lease ends, the others are told at once, and the
// addresses are taken off the interface. It returns nil when that is done. From
// then on this node stands back, whatever its priority, until it takes over
// because nobody else is there, or Takeover is called. A node that is not active
// just stands back.
//
// VRRP does not tell whether another node is there to take over. If none is,
// this one takes the addresses again after its down interval.
func (r *Router) Resign(ctx context.Context, reason string) error {
	if err := r.order(ctx, "resign", event{kind: evResign, reason: reason}); err != nil {
		return err
	}
	select {
	case <-r.owner.given():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("virtual router %s: failed to take the addresses off: %w", r.config.Name, ctx.Err())
	}
}

// Takeover takes the role from whoever has it, and returns nil when this node
// is active. It claims and then advertises with priority 254 until it leaves
// the role, so that no better node preempts it. It fails when the other node
// goes before even that: the owner of the addresses, or one that was told to
// take over too and has the greater address; and when this node is at fault or
// cut off. When ctx ends first the claim is withdrawn.
func (r *Router) Takeover(ctx context.Context, reason string) error {
	return r.order(ctx, "take over", event{kind: evTakeover, reason: reason})
}
