// Package health watches backends: a check is a function, rise and fall are a
// pure machine, and a goroutine for each target joins the two.
package health

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// Target is one backend and how to check it.
type Target struct {
	Service, Backend string
	Addr             netip.AddrPort
	Check            Check
	CheckName        string        // for people: "postgres", "tcp"
	Interval         time.Duration // from the start of one check to that of the next
	// FastInterval takes the place of Interval once a doubt about the target has
	// been borne out, until fall or rise have decided. At most Interval.
	FastInterval time.Duration
	Timeout      time.Duration // at most Interval
	Fall, Rise   int           // at least 1
}

// Transition is a change of a target, or the first thing known of it.
type Transition struct {
	Service, Backend string
	Up               bool
	Reason           string // the result of the check that decided
	At               time.Time
}

// TargetStatus is what is known of a target.
type TargetStatus struct {
	Service      string         `json:"service"`
	Backend      string         `json:"backend"`
	Addr         netip.AddrPort `json:"address"`
	CheckName    string         `json:"check"`
	Interval     time.Duration  `json:"interval"`
	Timeout      time.Duration  `json:"timeout"`
	Fall         int            `json:"fall"`
	Rise         int            `json:"rise"`
	Up           bool           `json:"up"`
	Known        bool           `json:"known"`       // there was a check
	Consecutive  int            `json:"consecutive"` // results in a row that contradict Up
	LastResult   string         `json:"last_result"` // "ok", or what went wrong
	LastDuration time.Duration  `json:"last_duration"`
	LastAt       time.Time      `json:"last_at"` // end of the last check
	Checks       uint64         `json:"checks"`
	Failures     uint64         `json:"failures"`
}

// Checker checks targets until it is told to stop.
type Checker struct {
	log         *slog.Logger
	transitions chan Transition
	watches     []*watch
	heard       atomic.Pointer[time.Time] // of any target; nil: never
}

// watch is a target with its state.
type watch struct {
	Target
	nudged  chan struct{} // token
	mu      sync.Mutex
	machine Machine
	status  TargetStatus // the part that results change
}

// New returns a checker for the targets; Run starts it.
func New(targets []Target, log *slog.Logger) *Checker {
	c := &Checker{log: log, transitions: make(chan Transition)}
	for _, t := range targets {
		c.watches = append(c.watches, &watch{Target: t, nudged: make(chan struct{}, 1), machine: Machine{Fall: t.Fall, Rise: t.Rise}})
	}
	return c
}

// Transitions yields each change, in order for each target. A target's checks
// wait until its change has been taken.
func (c *Checker) Transitions() <-chan Transition { return c.transitions }

// Nudge has a target checked now instead of after its interval: somebody has
// reason to doubt it. A result that bears the doubt out is followed by checks
// after the fast interval, until fall or rise have decided; one that does not
// ends it. A target is checked ten times a second at the most. An unknown one is
// nobody's concern.
func (c *Checker) Nudge(service, backend string) {
	for _, w := range c.watches {
		if w.Service != service || w.Backend != backend {
			continue
		}
		select {
		case w.nudged <- struct{}{}:
		default:
		}
	}
}

// Run checks until ctx ends and then returns nil.
func (c *Checker) Run(ctx context.Context) error {
	var g errgroup.Group
	for i, w := range c.watches {
		// Spread over an interval, so that neither side sees bursts, but all
		// within a moment at first: nothing is up before its first check.
		first := time.Duration(i) * min(w.Interval, 100*time.Millisecond) / time.Duration(len(c.watches))
		g.Go(func() error {
			c.watch(ctx, w, first)
			return nil
		})
	}
	return g.Wait()
}

func (c *Checker) watch(ctx context.Context, w *watch, first time.Duration) {
	timer := time.NewTimer(first)
	defer timer.Stop()
	p := pace{interval: w.Interval, due: time.Now().Add(first)}
	doubted := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.nudged:
			gap := nudgeGap
			if w.undecided() {
				gap = w.FastInterval // there was such a result already
			}
			doubted = true
			p.hasten(time.Now(), gap)
			timer.Reset(time.Until(p.due))
			continue
		case <-timer.C:
		}
		start := time.Now()
		p.start(start)
		err, answered := w.once(ctx)
		if ctx.Err() != nil {
			return // it was we who broke it off
		}
		if answered {
			now := time.Now()
			c.heard.Store(&now)
		}
		t, changed := w.record(err, start, time.Now())
		if doubted = doubted && w.undecided(); doubted {
			p.hasten(time.Now(), w.FastInterval)
		}
		timer.Reset(time.Until(p.due))
		if !changed {
			continue
		}
		c.log.Debug("health changed", "service", t.Service, "backend", t.Backend, "up", t.Up, "reason", t.Reason)
		select {
		case <-ctx.Done():
			return
		case c.transitions <- t:
		}
	}
}

// once checks; heard says whether anything came from the target.
func (w *watch) once(ctx context.Context) (err error, heard bool) {
	ctx, cancel := context.WithTimeout(ctx, w.Timeout)
	defer cancel()
	err = w.Check(ctx, w.Addr)
	heard = answered(err)
	if errors.Is(err, errNoAnswer) {
		err = fmt.Errorf("no answer within %v", w.Timeout)
	}
	return err, heard
}

// Heard returns how long ago any target has answered a check, be it by a
// refusal: this node is not cut off then. ok is false if none ever did.
func (c *Checker) Heard() (ago time.Duration, ok bool) {
	at := c.heard.Load()
	if at == nil {
		return 0, false
	}
	return time.Since(*at), true
}

// record notes a result and says whether there is news: a change, or a first
// failure, which changes nothing but tells why the target is down.
func (w *watch) record(err error, start, end time.Time) (Transition, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.status.Checks++
	w.status.LastResult = "ok"
	if err != nil {
		w.status.Failures++
		w.status.LastResult = err.Error()
	}
	w.status.LastDuration, w.status.LastAt = end.Sub(start), end
	first := !w.machine.Known()
	changed := w.machine.Result(err == nil)
	return Transition{
		Service: w.Service, Backend: w.Backend, Up: w.machine.Up(), Reason: w.status.LastResult, At: end,
	}, changed || first
}

// undecided reports whether the last results contradict what is held of the
// target, but are too few yet.
func (w *watch) undecided() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.machine.Consecutive() > 0
}

// Snapshot returns the status of each target, in the order given to New.
func (c *Checker) Snapshot() []TargetStatus {
	all := make([]TargetStatus, len(c.watches))
	for i, w := range c.watches {
		w.mu.Lock()
		s := w.status
		s.Up, s.Known, s.Consecutive = w.machine.Up(), w.machine.Known(), w.machine.Consecutive()
		w.mu.Unlock()
		s.Service, s.Backend, s.Addr, s.CheckName = w.Service, w.Backend, w.Addr, w.CheckName
		s.Interval, s.Timeout, s.Fall, s.Rise = w.Interval, w.Timeout, w.Fall, w.Rise
		all[i] = s
	}
	return all
}
