package load

import (
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// Dial connects, as net.Dialer.DialContext does.
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

// Attempt is one try of a prober.
type Attempt struct {
	Start time.Time
	Took  time.Duration
	Err   error // nil: the service answered
}

// Prober starts an attempt every so often, whatever has become of those
// before, and writes all of them down. So the time that a service does not
// answer is known as exactly as the interval is short, although each attempt
// may take much longer.
type Prober struct {
	Try     func(context.Context) error
	Every   time.Duration
	Timeout time.Duration // of one attempt

	mu       sync.Mutex
	attempts []Attempt
	changed  chan struct{} // closed and replaced when an attempt has ended
}

// Run makes attempts until ctx ends, and then waits for those under way.
func (p *Prober) Run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	tick := time.NewTicker(p.Every)
	defer tick.Stop()
	for {
		wg.Go(func() { p.once(ctx) })
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (p *Prober) once(ctx context.Context) {
	try, cancel := context.WithTimeout(ctx, p.Timeout)
	defer cancel()
	a := Attempt{Start: time.Now()}
	a.Err = p.Try(try)
	a.Took = time.Since(a.Start)
	if a.Err != nil && ctx.Err() != nil {
		return // ended by the end of the probing: says nothing
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.attempts = append(p.attempts, a)
	if p.changed != nil {
		close(p.changed)
		p.changed = nil
	}
}

// Attempts returns the attempts that have ended, by their start.
func (p *Prober) Attempts() []Attempt {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := slices.Clone(p.attempts)
	slices.SortFunc(all, func(a, b Attempt) int { return a.Start.Compare(b.Start) })
	return all
}

// AwaitSuccess waits until an attempt that began after t has succeeded.
func (p *Prober) AwaitSuccess(ctx context.Context, t time.Time) error {
	for {
		p.mu.Lock()
		if p.changed == nil {
			p.changed = make(chan struct{})
		}
		changed := p.changed
		found := slices.ContainsFunc(p.attempts, func(a Attempt) bool { return a.Err == nil && a.Start.After(t) })
		p.mu.Unlock()
		if found {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for an answer: %w", context.Cause(ctx))
		case <-changed:
		}
	}
}

// AttemptTimeout is a good timeout for attempts that measure an outage. It is
// below the second after which a lost SYN is repeated (RFC 6298 section 2.1),
// so an attempt succeeds only if the service answered when it was made.
const AttemptTimeout = 900 * time.Millisecond

// Outage is what a prober saw of a fault.
type Outage struct {
	// Lasted is the time from the fault to the first answer after which no
	// attempt failed any more; zero if none failed at all.
	Lasted time.Duration
	// Gap is the longest time between two answers, from the last one before the
	// fault on. Single failures, which a busy machine causes by itself, do not
	// count.
	Gap      time.Duration
	Attempts int // begun after the fault
	Failed   int // of all; those under way when it happened included
}

// OutageSince sums up what became of attempts around a fault at time t. It
// fails when no attempt succeeded after the last failure.
func OutageSince(attempts []Attempt, t time.Time) (Outage, error) {
	var o Outage
	var lastFailed time.Time
	for _, a := range attempts {
		if a.Start.After(t) {
			o.Attempts++
		}
		if a.Err != nil {
			o.Failed++
			if a.Start.After(lastFailed) {
				lastFailed = a.Start
			}
		}
	}
	answered := false
	for _, a := range attempts {
		if a.Err != nil || !a.Start.After(t) || !a.Start.After(lastFailed) {
			continue
		}
		if d := a.Start.Add(a.Took).Sub(t); !answered || d < o.Lasted {
			o.Lasted, answered = d, true
		}
	}
	if !answered {
		return o, fmt.Errorf("no answer after the fault: %d of %d attempts failed", o.Failed, len(attempts))
	}
	if o.Failed == 0 {
		o.Lasted = 0
	}
	o.Gap = gap(attempts, t)
	return o, nil
}

// gap returns the longest time between two answers, of which the second came
// after t. An attempt answers when it ends.
func gap(attempts []Attempt, t time.Time) (longest time.Duration) {
	var ends []time.Time
	for _, a := range attempts {
		if a.Err == nil {
			ends = append(ends, a.Start.Add(a.Took))
		}
	}
	slices.SortFunc(ends, time.Time.Compare)
	for i := 1; i < len(ends); i++ {
		if ends[i].After(t) {
			longest = max(longest, ends[i].Sub(ends[i-1]))
		}
	}
	return longest
}

// answerLimit is longer than any first answer of a server, in bytes.
const answerLimit = 8192

// Answer returns an attempt that succeeds when a server at address answers a
// PostgreSQL startup with a request to authenticate. It costs the server
// nothing else.
func Answer(dial Dial, address, user, database string) func(context.Context) error {
	hello := pgwire.AppendStartup(nil, pgwire.Protocol30, user, database, nil)
	return func(ctx context.Context) error {
		conn, err := dial(ctx, "tcp", address)
		if err != nil {
			return err
		}
		defer conn.Close()
		stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
		defer stop()
		if _, err := conn.Write(hello); err != nil {
			return err
		}
		typ, body, err := pgwire.ReadFrame(io.LimitReader(conn, answerLimit), answerLimit)
		if err != nil {
			return err
		}
		switch typ {
		case pgwire.MsgAuthentication:
			return nil // closing is a fine answer; Terminate would be logged as a wrong one
		case pgwire.MsgErrorResponse:
			e, err := pgwire.ParseError(body)
			if err != nil {
				return err
			}
			return e
		default:
			return fmt.Errorf("unexpected message %q", typ)
		}
	}
}
