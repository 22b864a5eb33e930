package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pgsteer/pgsteer/pkg/config"
	"github.com/pgsteer/pgsteer/pkg/flowsync"
	"github.com/pgsteer/pgsteer/pkg/health"
	"github.com/pgsteer/pgsteer/pkg/lb"
	"github.com/pgsteer/pgsteer/pkg/vrrp"
)

// replicated is what replication needs of the datapath.
type replicated interface {
	flowsync.Table
	// Changes calls fn with what becomes of flows, and lost when it does not know,
	// until ctx ends.
	Changes(ctx context.Context, fn func([]lb.FlowChange), lost func()) error
}

// A replication tells the other node what becomes of the flows that this one
// serves, and keeps those of the other one. What the nodes say to each other
// beside that is evidence for the virtual routers.
type replication struct {
	link     *flowsync.Link
	datapath replicated
	checks   func() []health.TargetStatus
	nudge    func(service, backend string)
	log      *slog.Logger
	routers  []*vrrp.Router         // set before it runs
	said     func() json.RawMessage // what people were told; set before it runs; nil: they are not told

	life uint64 // see flowsync.RouterState.Run

	mu     sync.Mutex
	moves  peerMoves
	copied bool   // this node has a copy of the other node's connections
	blind  string // a backend that the other node finds to be up, and this one does not; "": none
}

// openSync opens the link, or does nothing when there is no other node.
func (d *balancerDaemon) openSync() error {
	c := d.cfg.Sync
	if c == nil {
		return nil
	}
	key, err := flowsync.LoadKey(c.KeyFile)
	if err != nil {
		return err
	}
	r := &replication{life: rand.Uint64(), datapath: d.balancer, checks: d.checker.Snapshot, nudge: d.checker.Nudge, log: d.log}
	r.link, err = flowsync.Open(flowsync.Config{
		Listen: c.Listen, Peer: c.Peer, Key: key, Node: d.cfg.Node, Services: services(d.cfg), Heartbeat: c.Heartbeat,
		Table: d.balancer, State: r.state, OnSynced: r.synced, Log: d.log,
	})
	if err != nil {
		return err
	}
	d.closers = append(d.closers, r.link)
	d.sync = r
	return nil
}

// run serves until ctx ends.
func (r *replication) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return r.link.Run(ctx) })
	g.Go(func() error { return r.datapath.Changes(ctx, r.publish, r.link.Lost) })
	g.Go(func() error { return r.watch(ctx) })
	return g.Wait()
}

// stale is how old a change may be that is told. A daemon that was frozen finds
// what happened before that, and the other node knows better by now.
const stale = 500 * time.Millisecond

// publish is called with what the ring has, in order.
func (r *replication) publish(changes []lb.FlowChange) {
	for i := range changes {
		if !changes[i].Gone && changes[i].Record.Idle > stale {
			r.link.Lost()
			return
		}
	}
	r.link.Publish(changes)
}

// lookInterval is how often it is looked what the other node says of the
// backends: as often as it says something.
const lookInterval = 100 * time.Millisecond

// watch has a backend checked at once that the other node finds to be down.
func (r *replication) watch(ctx context.Context) error {
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	var said doubts
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			peer, ago, ok := r.link.Peer()
			if ok {
				r.note(peer, time.Now().Add(-ago))
			}
			if !ok || ago > stale {
				r.sees("")
				continue
			}
			r.sees(blindTo(peer.Backends, r.checks()))
			for _, b := range said.news(peer.Backends, r.checks()) {
				r.log.Debug("the other node finds a backend to be down; checking it", "service", b.Service, "backend", b.Backend, "reason", b.Reason)
				r.nudge(b.Service, b.Backend)
			}
		}
	}
}

// doubts are the backends that the other node has down.
type doubts map[[2]string]bool

// news returns those that it has found to be down since, and this node has up:
// its clients would be the first to notice.
func (d *doubts) news(theirs []flowsync.BackendState, ours []health.TargetStatus) (news []flowsync.BackendState) {
	up := make(map[[2]string]bool)
	for _, t := range ours {
		up[[2]string{t.Service, t.Backend}] = t.Up
	}
	now := make(doubts)
	for _, b := range theirs {
		key := [2]string{b.Service, b.Backend}
		if !b.Known || b.Up {
			continue
		}
		if now[key] = true; !(*d)[key] && up[key] {
			news = append(news, b)
		}
	}
	*d = now
	return news
}

// state is what the other node is told of this one.
func (r *replication) state() flowsync.State {
	var s flowsync.State
	for _, router := range r.routers {
		v := router.Snapshot()
		state := flowsync.RouterState{
			Name: v.Name, VRID: v.VRID, V6: v.Source.Is6(), State: v.State.String(), Leased: v.Lease > 0,
			Priority: v.EffectivePriority, Reason: v.Reason, Age: time.Since(v.Since),
			Run: r.life, Moves: lastMoves(&v, time.Now()),
		}
		for _, p := range v.Addresses {
			state.Addresses = append(state.Addresses, p.Addr())
		}
		s.Routers = append(s.Routers, state)
	}
	for _, t := range r.checks() {
		s.Backends = append(s.Backends, flowsync.BackendState{Service: t.Service, Backend: t.Backend, Up: t.Up, Known: t.Known, Reason: t.LastResult})
	}
	if r.said != nil {
		s.Said = r.said()
	}
	return s
}

// blindTo returns a backend that the other node finds to be up and this one does
// not: its clients would be told that it is down, as soon as this node took over.
func blindTo(theirs []flowsync.BackendState, ours []health.TargetStatus) string {
	up := make(map[[2]string]bool)
	for _, t := range ours {
		up[[2]string{t.Service, t.Backend}] = t.Up
	}
	for _, b := range theirs {
		if ours, configured := up[[2]string{b.Service, b.Backend}]; b.Known && b.Up && configured && !ours {
			return b.Service + "/" + b.Backend
		}
	}
	return ""
}

// synced notes whether there is a copy of the other node's connections.
func (r *replication) synced(yes bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.copied = yes
	r.tell()
}

// sees notes a backend that only the other node finds to be up.
func (r *replication) sees(blind string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if blind != r.blind {
		r.blind = blind
		r.tell()
	}
}

// tell tells the virtual routers whether this node can take over without
// ending connections.
func (r *replication) tell() {
	reason := ""
	switch {
	case !r.copied:
		reason = "no copy of the other node's connections"
	case r.blind != "":
		reason = "the other node finds " + r.blind + " to be up, this one does not"
	}
	for _, router := range r.routers {
		router.SetSynced(reason == "", reason)
	}
}

// heldByPeer reports whether the other node says that it serves the addresses of
// a virtual router, and is alive.
func (r *replication) heldByPeer(c config.VirtualRouter, limit time.Duration) bool {
	peer, ago, ok := r.link.Peer()
	if !ok || ago > limit || !r.link.Connected() {
		return false
	}
	router, ok := peer.Router(c.VRID, c.Source.Is6())
	return ok && router.Leased
}

// drainTimeout bounds how long a planned move waits for the other node to know
// all connections: it is on the same LAN, or it is not there.
const drainTimeout = 500 * time.Millisecond

// drain waits until the other node knows of everything. It is told so in vain
// when it is not there.
func (r *replication) drain(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	if err := r.link.Drain(ctx); err != nil {
		return fmt.Errorf("telling the other node of the last connections: %w", err)
	}
	return nil
}

// witness tells how long ago there was a sign that this node is not cut off:
// from the other node, or from any backend.
func (d *balancerDaemon) witness() (ago time.Duration, ok bool) {
	ago, ok = d.checker.Heard()
	if _, peer, heard := d.sync.link.Peer(); heard && (!ok || peer < ago) {
		return peer, true
	}
	return ago, ok
}

// witnessTimeout is how old such a sign may be: checks come at intervals, and
// one of them may fail.
func witnessTimeout(cfg *config.Config) time.Duration {
	return max(vrrp.DefaultWitnessTimeout, checkTime(cfg)+time.Second)
}

// checkTime is in what time a check is begun and answered, of the service that
// is checked most often.
func checkTime(cfg *config.Config) time.Duration {
	shortest := time.Duration(0)
	for _, s := range cfg.Services {
		if d := s.Check.Interval + s.Check.Timeout; shortest == 0 || d < shortest {
			shortest = d
		}
	}
	return shortest
}
