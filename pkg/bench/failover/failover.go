// Package failover measures what clients see when the balancer that serves them
// fails: how long new ones get no answer, and how many of those who are connected
// lose their connection. It runs in the lab, with real poolers and a real
// PostgreSQL, and alternates between pgsteer and the classic stack, keepalived and
// HAProxy on two machines more, before the same poolers.
package failover

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/pgsteer/pgsteer/pkg/bench"
	"github.com/pgsteer/pgsteer/pkg/lab"
)

// Options say how much is measured.
type Options struct {
	Rounds  int    // in each, both stacks suffer the fault once
	Idle    int    // connections that are held and do nothing
	Clients int    // of pgbench, each with a connection
	BinDir  string // where the lab's programs are; default: beside this program
}

// DefaultOptions take about ten minutes a fault.
var DefaultOptions = Options{Rounds: 20, Idle: 300, Clients: 64}

// Check says what cannot be measured, by the names of pgsteer-bench's options.
func (o Options) Check() error {
	if o.Rounds < 1 {
		return fmt.Errorf("-failover-rounds is %d, and must be 1 at least", o.Rounds)
	}
	return nil
}

const (
	// maxClients is what the poolers take. Those who lose their balancer leave
	// connections behind, of which a pooler may not know for long. It fits the
	// open files that the lab makes sure of.
	maxClients = 12_000
	// downTimeout bounds the lab's removal.
	downTimeout = time.Minute
)

// Suites returns one for each fault, so that a row is written as soon as it is
// known. They need root, PostgreSQL with pgbench, HAProxy and keepalived.
func Suites(o Options) []bench.Suite {
	var suites []bench.Suite
	for _, f := range faults {
		suites = append(suites, bench.Suite{
			Names: names(f.name),
			Run: func(ctx context.Context, names []string, log bench.Log, emit func(bench.Result)) error {
				results, err := run(ctx, f, o, log)
				if err != nil {
					return fmt.Errorf("failover, %s: %w", f.name, err)
				}
				for _, r := range results {
					if slices.Contains(names, r.Name) {
						emit(r)
					}
				}
				return nil
			},
		})
	}
	return suites
}

// run raises a lab with both stacks and measures one fault.
func run(ctx context.Context, f fault, o Options, log bench.Log) (results []bench.Result, err error) {
	l, err := lab.Up(ctx, lab.Options{
		Name: fmt.Sprintf("bench%d", os.Getpid()), BinDir: o.BinDir, Spares: true,
		// Keepalived takes the address back when its node returns.
		Balancer: lab.BalancerOptions{Preempt: true},
		Pooler:   lab.PoolerOptions{MaxClients: maxClients},
		Progress: func(step string) { log("lab: %s", step) },
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), downTimeout)
		defer cancel()
		err = errors.Join(err, l.Down(clean, false))
	}()
	dir, err := os.MkdirTemp("", "pgsteer-bench-")
	if err != nil {
		return nil, fmt.Errorf("making a directory: %w", err)
	}
	defer os.RemoveAll(dir)
	theirs, err := startTheirs(ctx, l, dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, theirs.stop()) }()
	ours, err := openOurs(l)
	if err != nil {
		return nil, err
	}
	defer ours.close()
	if err := loadTables(ctx, l); err != nil {
		return nil, err
	}
	var sides []*side
	for _, s := range []stack{ours, theirs} {
		one, err := newSide(l, s, o, dir)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, one.join(ctx)) }() // they do hear each other, unless something went wrong
		sides = append(sides, one)
	}
	if err := measure(ctx, f, o.Rounds, sides, log); err != nil {
		return nil, err
	}
	return rows(f, sides[0].outcomes, sides[1].outcomes), nil
}

// measure does the rounds. Who comes first changes from one to the next.
func measure(ctx context.Context, f fault, rounds int, sides []*side, log bench.Log) error {
	for round := range rounds {
		order := slices.Clone(sides)
		if round%2 == 1 {
			slices.Reverse(order)
		}
		for _, s := range order {
			o, err := s.repeat(ctx, f, log)
			if err != nil {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				return err
			}
			s.outcomes = append(s.outcomes, o)
			log("failover: %s, round %d of %d: %s: %.0f ms without an answer, %d of %d connections lost, both active for %.0f ms",
				f.name, round+1, rounds, s.name(), milliseconds(o.gap), o.lost(), s.idle+s.clients, milliseconds(o.both))
		}
	}
	return nil
}
