package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/pgsteer/pgsteer/pkg/vrrp"
)

const (
	// silentIntervals is how many advertisement intervals a virtual router
	// that works can go without sending or receiving: a backup waits for three
	// and a skew of at most one before it speaks up (RFC 9568, 6.1).
	silentIntervals = 4
	// silentMargin is added to that: a router that has just failed to take its
	// addresses rests for a second, and scheduling takes its time.
	silentMargin = 2 * time.Second
)

// A liveness tells by what a virtual router does, not by what it says, whether
// its loop still turns. It is pure: the caller brings snapshots and the time.
type liveness struct {
	progress uint64
	since    time.Time // of the last progress
}

// alive reports whether the router has done something recently enough.
func (l *liveness) alive(s vrrp.Snapshot, now time.Time) bool {
	if s.Fault != "" {
		l.since = now // it stays out by its own account, and says nothing
	}
	progress := s.Sent + s.SendErrors + s.Received + s.Transitions + s.Barred
	if progress != l.progress || l.since.IsZero() {
		l.progress, l.since = progress, now
	}
	// A backup follows the interval of the node that is active.
	limit := silentIntervals*max(s.AdvertInterval, s.Peer.AdvertInterval) + silentMargin
	return now.Sub(l.since) <= limit
}

// observeInterval is how often the virtual routers are looked at without a
// watchdog that asks for more.
const observeInterval = 500 * time.Millisecond

// A supervisor looks at the virtual routers, feeds systemd's watchdog while
// all of them are alive, and has the fences forget what others serve.
type supervisor struct {
	log      *slog.Logger
	routers  []func() vrrp.Snapshot
	fences   []*fence // of the routers, in the same order
	notify   func(state string)
	watchdog time.Duration // 0: nobody waits for a sign of life
	// What becomes of backends that are down when this node has taken over; nil:
	// nobody minds.
	isolated  func() bool
	checkAll  func()
	resetDown func()

	alive  []liveness
	took   []uint64 // how often each router has become active, as last seen
	settle settling
	ready  bool
	stuck  bool
	status string
}

// add puts a router and its fence under supervision.
func (s *supervisor) add(router func() vrrp.Snapshot, f *fence) {
	s.routers, s.fences, s.alive = append(s.routers, router), append(s.fences, f), append(s.alive, liveness{})
	s.took = append(s.took, 0)
}

// startInterval is how often it looks until the daemon is ready: systemd
// holds back what comes after us until then.
const startInterval = 50 * time.Millisecond

// run looks until ctx ends.
func (s *supervisor) run(ctx context.Context) error {
	interval := observeInterval
	if s.watchdog > 0 {
		// systemd recommends half of the time; a third allows for one loss.
		interval = min(interval, s.watchdog/3)
	}
	next := time.NewTimer(startInterval)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-next.C:
			if s.look(now); s.ready {
				next.Reset(interval)
			} else {
				next.Reset(startInterval)
			}
		}
	}
}

// look is one look at all routers. Once each of them takes part in its
// election the daemon is ready: whatever cannot run has failed by then.
func (s *supervisor) look(now time.Time) {
	var states, stuck []string
	ready, tookOver := true, false
	for i, router := range s.routers {
		snapshot := router()
		ready = ready && (snapshot.State != vrrp.Init || snapshot.Fault != "")
		if !s.alive[i].alive(snapshot, now) {
			stuck = append(stuck, snapshot.Name)
		}
		states = append(states, snapshot.Name+" "+snapshot.State.String())
		s.fences[i].observe(snapshot, now)
		tookOver = tookOver || snapshot.BecameActive != s.took[i]
		s.took[i] = snapshot.BecameActive
	}
	if s.isolated != nil {
		check, reset := s.settle.look(tookOver, s.isolated(), now)
		if check {
			s.checkAll()
		}
		if reset {
			s.resetDown()
		}
	}
	if len(stuck) > 0 != s.stuck {
		s.stuck = len(stuck) > 0
		if s.stuck {
			s.log.Error("virtual routers have stopped working; the watchdog is no longer fed", "routers", strings.Join(stuck, " "))
		} else {
			s.log.Info("all virtual routers work again")
		}
	}
	if ready && !s.ready {
		s.ready = true
		s.notify(daemon.SdNotifyReady)
	}
	if status := strings.Join(states, ", "); status != s.status {
		s.status = status
		s.notify("STATUS=" + status)
	}
	if s.watchdog > 0 && !s.stuck {
		s.notify(daemon.SdNotifyWatchdog)
	}
}

// newNotifier returns a function that tells systemd something. Without systemd
// it does nothing; a failure is worth a line, but no more.
func newNotifier(log *slog.Logger) func(string) {
	return func(state string) {
		if _, err := daemon.SdNotify(false, state); err != nil {
			log.Warn("failed to notify systemd", "state", state, "error", err)
		}
	}
}

// watchdogInterval is the time in which systemd wants a sign of life, 0 if it
// wants none.
func watchdogInterval() (time.Duration, error) {
	d, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return 0, fmt.Errorf("reading systemd's watchdog settings: %w", err)
	}
	return d, nil
}
