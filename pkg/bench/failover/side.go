package failover

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lab"
	"github.com/pgsteer/pgsteer/pkg/lab/load"
)

const (
	// probeEvery is how often a new client comes.
	probeEvery = 10 * time.Millisecond
	// faultLimit bounds the wait for what a fault brings about. When it is over,
	// the outage is as long as that.
	faultLimit = time.Minute
	// healLimit bounds the wait until all is as it was before.
	healLimit = time.Minute
	// steady is for how long it must be so.
	steady = time.Second
	// pollEvery is how often a condition is looked at.
	pollEvery = 10 * time.Millisecond
)

// stack is one of the two that are compared: two nodes, of which one holds the
// virtual address. Faults are those of the first, which is preferred.
type stack interface {
	name() string
	address() netip.AddrPort
	hosts() []string
	// holds tells whether a node, 0 or 1, would answer for the address now.
	holds(node int) (bool, error)
	kill(context.Context) error   // its programs, without warning
	freeze(context.Context) error // its programs, which go on when thawed
	thaw(context.Context) error
	resign(context.Context) error // who holds the address is asked to end
	halt(context.Context) error   // its programs are asked to end, the right way
	start(context.Context) error  // what does not run
	// ready waits until both nodes can do their work.
	ready(context.Context) error
}

// side is a stack with its clients.
type side struct {
	stack
	lab     *lab.Lab
	dir     string // for files
	clients int    // of pgbench
	idle    int    // connections held
	try     func(context.Context) error
	hold    func(context.Context) (*load.Held, error)

	dark  bool  // the first node's cable is pulled
	muted *mute // nil while the nodes hear each other

	outcomes []outcome
}

func newSide(l *lab.Lab, s stack, o Options, dir string) (*side, error) {
	client, err := l.ClientConfig()
	if err != nil {
		return nil, err
	}
	connect, err := l.Connector(s.address())
	if err != nil {
		return nil, err
	}
	return &side{
		stack: s, lab: l, dir: dir, clients: o.Clients, idle: o.Idle,
		hold: func(ctx context.Context) (*load.Held, error) { return load.Hold(ctx, o.Idle, connect) },
		try:  load.Session(l.DialContext(lab.Client), s.address().String(), client.User, client.Database, client.Password),
	}, nil
}

// powerOff pulls the first node's cable: nobody hears from it any more.
func (s *side) powerOff(context.Context) error {
	s.dark = true
	return s.lab.Cut(s.hosts()[0])
}

// standDown ends the first node's programs and waits until clients are served by
// the second.
func (s *side) standDown(ctx context.Context) error {
	if err := s.halt(ctx); err != nil {
		return err
	}
	if err := s.await(ctx, faultLimit, "the second node to take over", false, true); err != nil {
		return err
	}
	return s.served(ctx)
}

// part keeps the nodes from hearing each other.
func (s *side) part(context.Context) error {
	m, err := muteVRRP(s.lab, s.hosts())
	if err == nil {
		s.muted = m
	}
	return err
}

// join lets the nodes hear each other again, if they do not.
func (s *side) join(context.Context) error {
	if s.muted == nil {
		return nil
	}
	err := s.muted.Close()
	s.muted = nil
	return err
}

// taken waits until the second node holds the address, whatever the first does.
func (s *side) taken(ctx context.Context) error {
	return until(ctx, func(context.Context) error {
		if yes, err := s.holds(1); err != nil || !yes {
			return errors.Join(err, errors.New("the second node has not taken over"))
		}
		return nil
	})
}

// first waits until the first node holds the address, and it alone.
func (s *side) first(ctx context.Context) error {
	return s.await(ctx, faultLimit, "the first node to be active", true, false)
}

// await waits until each node holds the address or does not.
func (s *side) await(ctx context.Context, limit time.Duration, what string, want ...bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not within %v", limit))
	defer cancel()
	err := until(ctx, func(context.Context) error { return s.held(want) })
	if err != nil {
		return fmt.Errorf("%s: waiting for %s: %w", s.name(), what, err)
	}
	return nil
}

// held tells by an error that the nodes do not hold the address as they should.
func (s *side) held(want []bool) error {
	for node, w := range want {
		holds, err := s.holds(node)
		if err != nil {
			return err
		}
		if holds != w {
			return fmt.Errorf("node %d holds the address: %v", node+1, holds)
		}
	}
	return nil
}

// served waits until a new client is served.
func (s *side) served(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, healLimit, fmt.Errorf("not within %v", healLimit))
	defer cancel()
	err := until(ctx, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, load.AttemptTimeout)
		defer cancel()
		return s.try(ctx)
	})
	if err != nil {
		return fmt.Errorf("%s: waiting for service: %w", s.name(), err)
	}
	return nil
}

// heal makes good what a fault has done and waits until all is as it was.
func (s *side) heal(ctx context.Context) error {
	if err := s.join(ctx); err != nil {
		return err
	}
	if s.dark {
		// A machine that had no power starts anew. Ours pulled a cable only.
		if err := s.kill(ctx); err != nil {
			return err
		}
		if err := s.lab.Heal(s.hosts()[0]); err != nil {
			return err
		}
		s.dark = false
	}
	limited, cancel := context.WithTimeoutCause(ctx, healLimit, fmt.Errorf("not within %v", healLimit))
	defer cancel()
	if err := s.start(limited); err != nil {
		return err
	}
	return s.whole(ctx)
}

// whole waits until both nodes are well, the first holds the address and keeps it
// for a while, and clients are served.
func (s *side) whole(ctx context.Context) error {
	limited, cancel := context.WithTimeoutCause(ctx, healLimit, fmt.Errorf("not within %v", healLimit))
	defer cancel()
	if err := s.ready(limited); err != nil {
		return fmt.Errorf("%s: waiting for its nodes: %w", s.name(), err)
	}
	var since time.Time
	err := until(limited, func(context.Context) error {
		if err := s.held([]bool{true, false}); err != nil {
			since = time.Time{}
			return err
		}
		if since.IsZero() {
			since = time.Now()
		}
		if time.Since(since) < steady {
			return errors.New("the first node has only just taken the address")
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%s: waiting for its first node: %w", s.name(), err)
	}
	return s.served(ctx)
}

// until calls cond until it returns nil. When ctx ends first, it returns the
// reason together with cond's last error.
func until(ctx context.Context, cond func(context.Context) error) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		err := cond(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (%w)", err, context.Cause(ctx))
		case <-tick.C:
		}
	}
}
