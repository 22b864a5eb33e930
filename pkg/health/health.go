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
	Timeout          time.Duration // at most Interval
	Fall, Rise       int           // at least 1
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
}

// watch is a target with its state.
type watch struct {
	Target
	mu      sync.Mutex
	machine Machine
	status  TargetStatus // the part that results change
}

// New returns a checker for the targets; Run starts it.
func New(targets []Target, log *slog.Logger) *Checker {
	c := &Checker{log: log, transitions: make(chan Transition)}
	for _, t := range targets {
		c.watches = append(c.watches, &watch{Target: t, machine: Machine{Fall: t.Fall, Rise: t.Rise}})
	}
	return c
}

// Transitions yields each change, in order for each target. A target's checks
// wait until its change has been taken.
func (c *Checker) Transitions() <-chan Transition { return c.transitions }

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
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		timer.Reset(w.Interval)
		start := time.Now()
		err := w.once(ctx)
		if ctx.Err() != nil {
			return // it was we who broke it off
		}
		t, changed := w.record(err, start, time.Now())
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

func (w *watch) once(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, w.Timeout)
	defer cancel()
	err := w.Check(ctx, w.Addr)
	if errors.Is(err, errNoAnswer) {
		return fmt.Errorf("no answer within %v", w.Timeout)
	}
	return err
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
