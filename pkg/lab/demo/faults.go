package demo

import (
	"context"
	"fmt"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lab"
	"github.com/pgsteer/pgsteer/pkg/lab/load"
	"github.com/pgsteer/pgsteer/pkg/lb"
)

// poolerDies kills a pooler under load and brings it back.
func (s *show) poolerDies(ctx context.Context) error {
	const victim = "pooler2"
	s.caption("Killing %s with -9, while %d connections are held (half of them busy) and a client logs in every %v", victim, heldConns, loginEvery)
	held, finish, err := s.hold(ctx)
	if err != nil {
		return err
	}
	defer held.Close()
	var down, up time.Duration
	prober := &load.Prober{Try: s.login, Every: loginEvery, Timeout: loginBudget}
	outage, err := s.probe(ctx, prober,
		func() error { return s.lab.Kill(victim) },
		func(ctx context.Context) error {
			killed := time.Now()
			if err := s.lab.WaitBackends(ctx, lb.Down, victim); err != nil {
				return err
			}
			down = time.Since(killed)
			s.say(fmt.Sprintf("marked down after %.1f s", down.Seconds()))
			if err := rest(ctx, settleTime); err != nil {
				return err
			}
			if err := s.lab.Start(ctx, victim); err != nil {
				return err
			}
			started := time.Now()
			if err := s.lab.WaitBackends(ctx, lb.Up, victim); err != nil {
				return err
			}
			up = time.Since(started)
			s.say(fmt.Sprintf("started again, marked up after %.1f s", up.Seconds()))
			return nil
		})
	lost := finish()
	if err != nil {
		return fmt.Errorf("killing %s: %w", victim, err)
	}
	logins := fmt.Sprintf("%d of %d", outage.Failed, outage.Attempts)
	if outage.Failed > 0 {
		logins += fmt.Sprintf(", until %.1f s", outage.Lasted.Seconds())
	}
	s.say(fmt.Sprintf("held connections broken: %d of %d; logins failed: %s", lost, held.Len(), logins))
	s.add(victim+" killed -9: held connections broken", "%d of %d", lost, held.Len())
	s.add(victim+" killed -9: logins failed", "%s", logins)
	s.add(victim+" killed -9: marked down, up", "after %.1f s, after %.1f s", down.Seconds(), up.Seconds())
	if third := held.Len() / lab.PoolerCount; lost > third {
		return fmt.Errorf("%d held connections broke when %s died, which had %d of them", lost, victim, third)
	}
	return nil
}

// balancerDies kills the active balancer's daemon. The other one knows its
// connections.
func (s *show) balancerDies(ctx context.Context) error {
	victim, err := s.lab.WaitActive(ctx)
	if err != nil {
		return err
	}
	s.caption("Killing the daemon of the active balancer, %s, with -9, while the VIP is probed every %v", victim, probeEvery)
	held, finish, err := s.hold(ctx)
	if err != nil {
		return err
	}
	defer held.Close()
	var heir string
	prober := &load.Prober{
		Try:   load.Answer(s.lab.DialContext(lab.Client), lab.Service, lab.Database, lab.Database),
		Every: probeEvery, Timeout: load.AttemptTimeout,
	}
	outage, err := s.probe(ctx, prober,
		func() error { return s.lab.Kill(victim) },
		func(ctx context.Context) (err error) {
			heir, err = s.lab.WaitActive(ctx, other(victim))
			return err
		})
	lost := finish()
	if err != nil {
		return fmt.Errorf("killing the daemon of %s: %w", victim, err)
	}
	ms := float64(outage.Lasted) / float64(time.Millisecond)
	s.say(fmt.Sprintf("%s is active; the VIP answers again after %.0f ms; %d of %d probes failed; %d of %d held connections broke",
		heir, ms, outage.Failed, outage.Attempts, lost, held.Len()))
	s.add("daemon of "+victim+" killed -9: VIP answers again", "after %.0f ms, from %s (%d of %d probes failed)", ms, heir, outage.Failed, outage.Attempts)
	s.add("daemon of "+victim+" killed -9: held connections broken", "%d of %d", lost, held.Len())
	if lost > 0 {
		s.fail(fmt.Errorf("%d held connections broke when the daemon of %s died", lost, victim))
	}
	if err := s.lab.Start(ctx, victim); err != nil {
		return err
	}
	if err := s.lab.WaitBackends(ctx, lb.Up, lab.Poolers()...); err != nil {
		return fmt.Errorf("bringing %s back: %w", victim, err)
	}
	owner, err := s.lab.WaitActive(ctx)
	if err != nil {
		return fmt.Errorf("bringing %s back: %w", victim, err)
	}
	s.say(fmt.Sprintf("%s is back; %s stays active", victim, owner))
	if owner != heir {
		return fmt.Errorf("%s took the VIP back from %s, against its configuration", owner, heir)
	}
	return nil
}

func other(balancer string) string {
	for _, name := range lab.Balancers() {
		if name != balancer {
			return name
		}
	}
	return ""
}

// hold opens the held connections and keeps half of them busy until finish is
// called, which returns how many broke.
func (s *show) hold(ctx context.Context) (held *load.Held, finish func() int, err error) {
	opening, cancel := context.WithTimeout(ctx, faultLimit)
	defer cancel()
	held, err = load.Hold(opening, heldConns, s.connect)
	if err != nil {
		return nil, nil, err
	}
	busy, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		held.Run(busy)
	}()
	return held, func() int {
		stop()
		<-done
		return held.Lost(ctx)
	}, nil
}

// login is what an application does that has no connection yet.
func (s *show) login(ctx context.Context) error {
	conn, err := s.connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var one int
	return conn.QueryRow(ctx, "select 1").Scan(&one)
}
