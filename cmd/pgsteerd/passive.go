package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/pgsteer/pgsteer/pkg/health"
	"github.com/pgsteer/pgsteer/pkg/lb"
)

const (
	// passiveInterval is how often the datapath's counters are looked at: as
	// often as a target can be checked for it.
	passiveInterval = 100 * time.Millisecond
	// passiveShare bounds what that costs, as the time between two looks in
	// terms of the time that a look takes: a twentieth of one CPU. Only tables
	// of thousands of backends take long enough to matter.
	passiveShare = 20
)

// passive has a backend checked at once when clients are refused by it, or get
// no answer.
type passive struct {
	stats  func() (lb.DatapathStats, error)
	nudge  func(service, backend string)
	log    *slog.Logger
	counts health.Passive
	failed bool // to read, the last time
}

func newPassive(stats func() (lb.DatapathStats, error), nudge func(service, backend string), log *slog.Logger) *passive {
	return &passive{stats: stats, nudge: nudge, log: log}
}

// run looks until ctx ends.
func (p *passive) run(ctx context.Context) error {
	timer := time.NewTimer(passiveInterval)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		start := time.Now()
		p.look()
		timer.Reset(max(passiveInterval, passiveShare*time.Since(start)))
	}
}

// look is one look at all backends. Without the counters there are still the
// checks of the usual interval.
func (p *passive) look() {
	s, err := p.stats()
	if err != nil {
		if !p.failed {
			p.log.Warn("failed to read how backends answer; refusals bring no checks forward", "error", err)
		}
		p.failed = true
		return
	}
	p.failed = false
	for _, service := range s.Services {
		for _, b := range service.Backends {
			// A SYN that is refused is counted as redispatched too; one that is
			// not answered only so.
			if p.counts.Observe(service.Name, b.Name, b.Refused+b.Redispatched) {
				p.log.Debug("a backend refuses clients or does not answer; checking it", "service", service.Name, "backend", b.Name)
				p.nudge(service.Name, b.Name)
			}
		}
	}
}
