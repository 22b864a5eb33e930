package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/pgsteer/pgsteer/pkg/vrrp"
)

// vipTable is what a fence needs of the datapath.
type vipTable interface {
	RenewLease(addr netip.Addr, d time.Duration) error
	RevokeLease(addr netip.Addr) error
	SetVIPState(addr netip.Addr, state string, priority uint8) error
	FlushFlows(addr netip.Addr) (int, error)
	HoldResets(d time.Duration) error
}

// A fence couples one virtual router to the datapath: the router's lease is
// the right of the XDP program to answer for the router's addresses.
type fence struct {
	table vipTable
	addrs []netip.Addr
	log   *slog.Logger
	// replicated says that the other node's flows are kept here, and ours there:
	// who served them last is of no concern then.
	replicated bool
	moved      func() // after each change of state; may be nil

	// mu keeps a flush and the start of a lease apart: what is flushed must
	// never be a connection that this node has just accepted. A flush of the
	// largest table takes some tens of milliseconds, and a lease never begins
	// that soon after another node was heard.
	mu     sync.Mutex
	leased bool
	// flushed says that the flow table holds nothing that another node may
	// have taken over since. It is false at first: pinned flows of an earlier
	// life may be in the table.
	flushed bool
}

var _ vrrp.Fence = (*fence)(nil)

func newFence(table vipTable, addresses []netip.Prefix, replicated bool, moved func(), log *slog.Logger) *fence {
	f := &fence{table: table, log: log, replicated: replicated, moved: moved}
	for _, p := range addresses {
		f.addrs = append(f.addrs, p.Addr())
	}
	return f
}

// each calls fn for every address, also when it fails for one of them.
func (f *fence) each(fn func(netip.Addr) error) error {
	var errs []error
	for _, a := range f.addrs {
		if err := fn(a); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// lateFlows is how long the last flows of the node that gave way may be on their
// way: some milliseconds, or more on a busy machine, and less than it takes a
// peer to send its segment again.
const lateFlows = 150 * time.Millisecond

// Renew implements vrrp.Fence.
func (f *fence) Renew(d time.Duration) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.leased && f.replicated {
		if err := f.table.HoldResets(lateFlows); err != nil {
			f.log.Warn("connections that come late from the other node may be reset", "error", err)
		}
	}
	f.leased, f.flushed = true, false
	return f.each(func(a netip.Addr) error { return f.table.RenewLease(a, d) })
}

// Revoke implements vrrp.Fence.
func (f *fence) Revoke() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.leased = false
	return f.each(f.table.RevokeLease)
}

// transition records the router's state for the tools that read the maps.
func (f *fence) transition(t vrrp.Transition) {
	err := f.each(func(a netip.Addr) error { return f.table.SetVIPState(a, t.To.String(), t.Priority) })
	if err != nil {
		f.log.Error("failed to record the state of a virtual router", "router", t.Router, "error", err)
	}
	if f.moved != nil {
		f.moved()
	}
}

// observe looks at the router now and then, and forgets the flows when another
// node serves the addresses: packets of these connections now reach that node,
// so that here they could only go on being counted as active. As long as no
// other node is heard they are kept, through a restart of the daemon too:
// nobody else has touched them.
func (f *fence) observe(s vrrp.Snapshot, now time.Time) {
	p := s.Peer
	heard := p.Address.IsValid() && p.Priority > 0 && p.Ago < now.Sub(s.Since)
	if s.State != vrrp.Backup || !heard || f.replicated {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.leased || f.flushed {
		return
	}
	flows := 0
	err := f.each(func(a netip.Addr) error {
		n, err := f.table.FlushFlows(a)
		flows += n
		if err != nil {
			return fmt.Errorf("flushing the flows of %s: %w", a, err)
		}
		return nil
	})
	if err != nil {
		// It is tried again at the next look.
		f.log.Error("failed to forget the connections that another node serves now", "router", s.Name, "error", err)
		return
	}
	f.flushed = true
	if flows > 0 {
		f.log.Info("forgot the connections that another node serves now", "router", s.Name, "owner", p.Address, "flows", flows)
	}
}
