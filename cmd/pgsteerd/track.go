package main

import (
	"context"
	"fmt"
	"time"

	"github.com/pgsteer/pgsteer/pkg/config"
	"github.com/pgsteer/pgsteer/pkg/flowsync"
	"github.com/pgsteer/pgsteer/pkg/health"
	"github.com/pgsteer/pgsteer/pkg/vrrp"
)

const (
	// trackInterval is how often it is looked whether this node is fit: what is
	// asked is one question to the kernel, and what hangs on it is a failover.
	trackInterval = 100 * time.Millisecond
	// blindTime is how long the other node must see backends where this one sees
	// none before it gives the addresses up. Both find a dead backend down at
	// different times, seconds apart, and that is no reason to move.
	blindTime = 5 * time.Second
)

// What a node may have against itself, by the names that routers know it by.
const (
	trackCarrier  = "carrier"
	trackProgram  = "program"
	trackBackends = "backends"
)

// A tracker tells the virtual routers when this node is not fit to serve.
type tracker struct {
	fitness func() (carrier, attached bool, err error)
	checks  func() []health.TargetStatus
	peer    func() (flowsync.State, time.Duration, bool) // nil: there is no other node
	routers []trackedRouter
}

// trackedRouter is a virtual router with the services on its addresses.
type trackedRouter struct {
	track    func(name string, t vrrp.Track)
	services []string
	blind    time.Time // since then, for a service; zero: it is not
	said     map[string]vrrp.Track
}

// newTracker watches for all of the daemon's routers.
func (d *balancerDaemon) newTracker() *tracker {
	t := &tracker{fitness: d.balancer.Fitness, checks: d.checker.Snapshot}
	if d.sync != nil {
		t.peer = d.sync.link.Peer
	}
	for i, r := range d.routers {
		t.routers = append(t.routers, trackedRouter{track: r.Track, services: servicesOf(d.cfg, d.cfg.VirtualRouters[i])})
	}
	return t
}

// servicesOf names the services on a virtual router's addresses.
func servicesOf(cfg *config.Config, r config.VirtualRouter) (names []string) {
	for _, s := range cfg.Services {
		for _, p := range r.Addresses {
			if p.Addr() == s.Addr.Addr() {
				names = append(names, s.Name)
			}
		}
	}
	return names
}

// run looks until ctx ends.
func (t *tracker) run(ctx context.Context) error {
	tick := time.NewTicker(trackInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			t.look(now)
		}
	}
}

// look is one look at everything.
func (t *tracker) look(now time.Time) {
	carrier, attached, err := t.fitness()
	var link, program vrrp.Track
	switch {
	case err != nil:
		// The interface watch ends the daemon when it is gone.
		link = vrrp.Track{Fault: true, Reason: err.Error()}
	case !carrier:
		link = vrrp.Track{Fault: true, Reason: "the interface has no link"}
	case !attached:
		program = vrrp.Track{Fault: true, Reason: "the XDP program is not on the interface"}
	}
	var theirs map[string]int
	if t.peer != nil {
		if peer, ago, ok := t.peer(); ok && ago <= stale {
			theirs = make(map[string]int)
			for _, b := range peer.Backends {
				if b.Up {
					theirs[b.Service]++
				}
			}
		}
	}
	ours := make(map[string]int)
	for _, c := range t.checks() {
		if c.Up {
			ours[c.Service]++
		}
	}
	for i := range t.routers {
		r := &t.routers[i]
		r.say(trackCarrier, link)
		r.say(trackProgram, program)
		r.say(trackBackends, r.look(ours, theirs, now))
	}
}

// look finds a service of which only the other node sees backends. ours and
// theirs are how many of each service are up.
func (r *trackedRouter) look(ours, theirs map[string]int, now time.Time) vrrp.Track {
	for _, service := range r.services {
		if ours[service] > 0 || theirs[service] == 0 {
			continue
		}
		if r.blind.IsZero() {
			r.blind = now
		}
		if now.Sub(r.blind) < blindTime {
			return vrrp.Track{}
		}
		return vrrp.Track{Fault: true, Reason: fmt.Sprintf("no backend of %s is up from here, and the other node sees some", service)}
	}
	r.blind = time.Time{}
	return vrrp.Track{}
}

// say tells the router what is new.
func (r *trackedRouter) say(name string, t vrrp.Track) {
	if r.said[name] == t {
		return
	}
	if r.said == nil {
		r.said = make(map[string]vrrp.Track)
	}
	r.said[name] = t
	r.track(name, t)
}
