package vrrp

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pgsteer/pgsteer/internal/mute"
)

// transport carries VRRP messages; conn is the one for the network.
type transport interface {
	send(payload []byte, dst netip.Addr) error
	ready() <-chan struct{}
	take() (packets [][]byte, dropped int, err error)
	serve(ctx context.Context) error
}

// Router is one virtual router on this node.
type Router struct {
	config  Config
	log     *slog.Logger
	machine *machine // Run's goroutine only
	filter  filter
	forms   map[netip.Addr]ChecksumForm // of each peer, or of the group
	now     clock
	net     transport
	owner   *owner
	faults  chan string
	lease   atomic.Int64 // end of the lease on the clock now; 0: none
	closers []func() error
	watch   func(context.Context, chan<- struct{}) error // nil: nobody tells of changes
	// sniff tells of others who answer for the addresses. nil: nobody does.
	sniff     func(context.Context, func() (net.HardwareAddr, error), func(string)) error
	conflicts chan string // capacity 1

	mute         [numRefusals]mute.Limiter // Run's goroutine only, as the next eight
	muteSend     mute.Limiter
	muteInterval mute.Limiter
	muteAddress  mute.Limiter
	muteChecksum mute.Limiter
	muteContend  mute.Limiter
	muteBarred   mute.Limiter
	move         chan error // who waits for what comes of a planned move; nil: nobody
	takeover     bool       // move is a Takeover

	inputs inputs

	mu      sync.Mutex
	state   Snapshot // what Snapshot returns, but for the owner's counters
	seen    time.Duration
	history []Change // the last ones, oldest first
}

// newRouter puts the parts together.
func newRouter(c Config, t transport, book addressBook, h herald, now clock) *Router {
	log := c.Log.With("router", c.Name)
	r := &Router{
		config: c, log: log, now: now, net: t,
		machine: newMachine(params{
			priority: c.Priority, interval: c.AdvertInterval, preempt: c.Preempt, source: c.Source,
			version2: c.Version == version2, preemptDelay: c.PreemptDelay, syncGate: c.SyncGate, lone: c.Lone,
		}),
		filter: filter{
			version: c.Version, vrid: c.VRID, source: c.Source, peers: c.Peers,
			auth: c.Auth, interval: c.AdvertInterval,
		},
		forms:  map[netip.Addr]ChecksumForm{},
		faults: make(chan string, 1),
	}
	mode := ""
	if c.HMAC != nil {
		mode = c.HMAC.Mode.String()
		r.filter.hmac = newAuthenticator(*c.HMAC, c.AdvertInterval, now, time.Now)
	}
	r.owner = &owner{
		addresses: c.Addresses, book: book, herald: h, now: now, log: log,
		leased: r.leased, faults: r.faults,
		changed: make(chan struct{}, 1), wake: make(chan struct{}, 1),
	}
	if c.Witness != nil {
		r.machine.witness = c.WitnessTimeout
	}
	r.inputs.wake, r.conflicts = make(chan struct{}, 1), make(chan string, 1)
	r.state = Snapshot{
		Version: c.Version, HMAC: mode,
		Name: c.Name, Interface: c.Interface, VRID: c.VRID, Priority: c.Priority, Preempt: c.Preempt,
		Addresses: slices.Clone(c.Addresses), Source: c.Source, Peers: slices.Clone(c.Peers),
		AdvertInterval: c.AdvertInterval, Since: time.Now(),
	}
	r.publish()
	return r
}

// leased reports whether the lease still runs.
func (r *Router) leased() bool { return int64(r.now()) < r.lease.Load() }

// Run takes part in the election until ctx is cancelled, then resigns, takes
// the addresses off the interface, and returns nil. It returns an error when it
// can no longer receive; it has resigned then too. Run may be called once.
func (r *Router) Run(ctx context.Context) error {
	inner, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	parts := []func() error{
		func() error { return r.net.serve(inner) },
		func() error { return r.owner.run(inner) },
	}
	if r.watch != nil {
		parts = append(parts, func() error {
			if err := r.watch(inner, r.owner.changed); err != nil {
				// The owner looks by itself every second.
				r.log.Warn("address changes are noticed later from now on", "error", err)
			}
			return nil
		})
	}
	if r.sniff != nil {
		parts = append(parts, func() error {
			err := r.sniff(inner, r.owner.book.hardware, func(what string) {
				select {
				case r.conflicts <- what:
				default: // one is on its way already
				}
			})
			if err != nil {
				r.log.Warn("others who answer for the addresses are not noticed from now on", "error", err)
			}
			return nil
		})
	}
	failed := make(chan error, len(parts))
	var running sync.WaitGroup
	for _, part := range parts {
		running.Go(func() {
			if err := part(); err != nil {
				failed <- err
			}
		})
	}

	r.takeInputs()
	r.step(event{kind: evStart})
	err := r.loop(ctx, failed)
	reason := "shutting down"
	if err != nil {
		reason = err.Error()
	}
	r.step(event{kind: evStop, reason: reason})
	r.inputs.close()
	r.takeInputs()
	cancel()
	running.Wait()
	return err
}

// loop serves events until ctx is cancelled or something fails.
func (r *Router) loop(ctx context.Context, failed <-chan error) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if at, ok := r.machine.deadline(); ok {
			timer.Reset(max(0, at-r.now()))
		}
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case reason := <-r.faults:
			r.step(event{kind: evFault, reason: reason})
		case what := <-r.conflicts:
			r.step(event{kind: evConflict, reason: what})
		case <-r.inputs.wake:
			r.takeInputs()
		case <-r.net.ready():
			if err := r.receive(); err != nil {
				return err
			}
		case <-timer.C:
			// What the active router sent while we slept must be heard before
			// its silence is judged.
			if err := r.receive(); err != nil {
				return err
			}
			r.step(event{kind: evTimer})
		}
	}
}

// step feeds the machine and carries out its actions, and those that follow
// from them.
func (r *Router) step(e event) {
	actions := slices.Clone(r.feed(e))
	for len(actions) > 0 {
		a := actions[0]
		actions = actions[1:]
		for _, follow := range r.perform(a) {
			actions = append(actions, r.feed(follow)...)
		}
	}
	r.publish()
}

// feed gives the machine an event, with what is known from elsewhere.
func (r *Router) feed(e event) []action {
	if r.config.Witness != nil {
		e.seenAgo, e.seen = r.config.Witness()
	}
	if r.config.PeerActive != nil {
		e.peerActive = r.config.PeerActive()
	}
	return r.machine.step(e, r.now())
}

// perform carries out one action and returns the events that come of it.
func (r *Router) perform(a action) []event {
	switch a.kind {
	case actSend:
		return r.advertise(a)
	case actRenew:
		return r.renew(a.until)
	case actRevoke:
		r.lease.Store(0)
		if r.config.Fence != nil {
			if err := r.config.Fence.Revoke(); err != nil {
				// It runs out by itself, at the latest after three intervals.
				r.log.Error("failed to revoke the lease", "error", err)
			}
		}
	case actOwn:
		r.owner.own()
	case actDisown:
		r.owner.disown()
	case actAnnounce:
		r.owner.again()
	case actTransition:
		r.transition(a)
	case actContention:
		r.contention(a)
	case actBarred:
		r.barred(a)
	case actOutcome:
		if a.reason == "" && r.takeover && r.machine.state != Active {
			a.reason = "the role was left again at once" // no lease, say
		}
		r.settle(a.reason)
	}
	return nil
}

// renew extends the lease. The fence counts from when it is asked, so a freeze
// on the way to it would make the lease end late: that is seen afterwards.
func (r *Router) renew(until time.Duration) []event {
	left := until - r.now()
	if left <= 0 {
		return []event{{kind: evTimer}}
	}
	if r.config.Fence != nil {
		if err := r.config.Fence.Renew(left); err != nil {
			return []event{{kind: evFault, reason: fmt.Sprintf("failed to renew the lease: %v", err)}}
		}
	}
	if r.now() >= until {
		return append(r.perform(action{kind: actRevoke}), event{kind: evTimer})
	}
	r.lease.Store(int64(until))
	return nil
}
