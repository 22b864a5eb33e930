package failover

import (
	"context"
	"fmt"
	"time"

	"github.com/pgsteer/pgsteer/pkg/bench"
	"github.com/pgsteer/pgsteer/pkg/lab/load"
)

// repeat brings a fault upon the stack once, under load, and makes good for it.
func (s *side) repeat(ctx context.Context, f fault, log bench.Log) (outcome, error) {
	var o outcome
	if err := s.whole(ctx); err != nil {
		return o, err
	}
	if f.prepare != nil {
		if err := f.prepare(s, ctx); err != nil {
			return o, err
		}
	}
	opening, cancel := context.WithTimeout(ctx, startLimit)
	held, err := s.hold(opening)
	cancel()
	if err != nil {
		return o, fmt.Errorf("%s: %w", s.name(), err)
	}
	defer held.Close()
	busy, err := startPgbench(ctx, s.lab, s, s.clients, s.dir)
	if err != nil {
		return o, fmt.Errorf("%s: %w", s.name(), err)
	}
	defer busy.kill()
	w := startWatch(s.holds)
	o.gap, err = s.suffer(ctx, f, held, log)
	both, werr := w.end()
	if err != nil {
		return o, err
	}
	if werr != nil {
		return o, werr
	}
	o.both = both
	o.idle = held.Lost(ctx)
	if o.busy, err = busy.lost(ctx); err != nil {
		return o, err
	}
	return o, s.heal(ctx)
}

// suffer goes through the steps of a fault and returns the longest time that new
// clients got no answer in any of them. Between two steps those who hold a
// connection use it.
func (s *side) suffer(ctx context.Context, f fault, held *load.Held, log bench.Log) (time.Duration, error) {
	p := &load.Prober{Try: s.try, Every: probeEvery, Timeout: load.AttemptTimeout}
	probing, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	begin := time.Now()
	go func() {
		defer close(done)
		p.Run(probing)
	}()
	defer func() {
		stop()
		<-done
	}()
	if err := s.answered(ctx, p, begin); err != nil {
		return 0, fmt.Errorf("%s: before the fault: %w", s.name(), err)
	}
	var gap time.Duration
	for i, step := range f.steps {
		if i > 0 {
			held.Lost(ctx)
		}
		from := time.Now()
		if err := s.strike(ctx, step, p, from, log); err != nil {
			return 0, err
		}
		gap = max(gap, longestGap(p.Attempts(), from, time.Now()))
	}
	return gap, nil
}

// strike goes through one step, until new clients are served again and all
// attempts have ended that have begun before. That they are not is no error but a
// result, and a bad one.
func (s *side) strike(ctx context.Context, step step, p *load.Prober, from time.Time, log bench.Log) error {
	if err := step.strike(s, ctx); err != nil {
		return fmt.Errorf("%s: %w", s.name(), err)
	}
	if step.done != nil {
		limited, cancel := context.WithTimeoutCause(ctx, faultLimit, fmt.Errorf("not within %v", faultLimit))
		err := step.done(s, limited)
		cancel()
		if err != nil {
			log("failover: %s: %v", s.name(), err)
		}
	}
	if err := s.answered(ctx, p, time.Now().Add(load.AttemptTimeout)); err != nil {
		log("failover: %s: %v", s.name(), err)
	}
	rest := time.NewTimer(time.Until(from.Add(step.lasts)))
	defer rest.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-rest.C:
	}
	return nil
}

// answered waits for an answer to an attempt that began after t.
func (s *side) answered(ctx context.Context, p *load.Prober, t time.Time) error {
	ctx, cancel := context.WithTimeoutCause(ctx, faultLimit, fmt.Errorf("not within %v", faultLimit))
	defer cancel()
	err := p.AwaitSuccess(ctx, t)
	if all := p.Attempts(); err != nil && len(all) > 0 {
		err = fmt.Errorf("%w; the last of %d attempts: %v", err, len(all), all[len(all)-1].Err)
	}
	return err
}
