// Package pooling measures pgsteer-pooler against Debian's PgBouncer: the CPU
// time of a transaction, the time of a login, the latency of many clients, the
// memory of idle ones.
//
// Both poolers have the same configuration, one core to themselves, and the
// same PostgreSQL, which shares the other core with the clients.
package pooling

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pgsteer/pgsteer/pkg/bench"
)

// Options say how much is measured.
type Options struct {
	Rounds int           // how often each row is measured, in turn with all others
	Slice  time.Duration // how long each pooler is loaded for a row in a round
	Idle   int           // clients of the rows with idle ones
	BinDir string        // directory of pgsteer-pooler; this program's own if empty
}

// DefaultOptions take about eight minutes.
var DefaultOptions = Options{Rounds: 5, Slice: 3 * time.Second, Idle: 4000}

// Check says what cannot be measured, by the names of pgsteer-bench's options.
func (o Options) Check() error {
	switch {
	case o.Rounds < 1:
		return fmt.Errorf("-pooler-rounds is %d, and must be 1 at least", o.Rounds)
	case o.Slice < time.Second:
		return fmt.Errorf("-pooler-slice is %v, and must be 1s at least", o.Slice)
	case o.Idle < active+1 || o.Idle > maxClients-10:
		return fmt.Errorf("-pooler-idle is %d, and must be %d to %d", o.Idle, active+1, maxClients-10)
	}
	return nil
}

const (
	// poolSize and maxClients are those of the classic stack, with some room.
	poolSize   = 70
	maxClients = 4100
	// active is how many clients of the p99 rows with idle ones are busy.
	active = 200
)

// The queries. Answers of one row are most of what an application's ORM sends.
const (
	oneRow  = "SELECT 1"
	rows    = "SELECT i, 'some text in the row', now() FROM generate_series(1, 1000) AS i"
	stream  = "SELECT repeat('x', 1000) FROM generate_series(1, 200000)"
	selfRow = "pooler.cpu.simple.256"
)

// row is one of the results.
type row struct {
	name string
	unit string
	load load
	// measure turns a run into a value; nil: CPU of a transaction.
	measure func(run) float64
	// idle clients are connected beside the load, or are all there is.
	idle  bool
	alone bool
	// self: PgBouncer 1.18 cannot do it; the peer is ours by the simple protocol.
	self bool

	values, peer []float64
}

func table(o Options) []*row {
	cpu := func(name string, m mode, clients int, query string) *row {
		return &row{name: "pooler.cpu." + name, unit: "us", load: load{mode: m, clients: clients, query: query, duration: o.Slice}}
	}
	list := []*row{
		cpu("simple.8", simple, 8, oneRow),
		cpu("simple.64", simple, 64, oneRow),
		cpu("simple.256", simple, 256, oneRow),
		cpu("simple.1000", simple, 1000, oneRow),
		cpu("extended.256", extended, 256, oneRow),
		cpu("prepared.256", prepared, 256, oneRow),
		cpu("rows1000", simple, 8, rows),
		cpu("stream", simple, 1, stream),
		{
			name: "pooler.connect_rate", unit: "1/s", load: load{mode: simple, clients: 8, query: oneRow, duration: o.Slice, connect: true},
			measure: func(r run) float64 { return float64(r.transactions) / r.took.Seconds() },
		},
		{name: "pooler.p99.256", unit: "ms", load: load{mode: simple, clients: 256, query: oneRow, duration: o.Slice, latencies: true}, measure: p99},
		{name: "pooler.p99.4000", unit: "ms", idle: true, load: load{mode: simple, clients: active, query: oneRow, duration: o.Slice, latencies: true}, measure: p99},
		{name: "pooler.rss.idle4000", unit: "MB", idle: true, alone: true, measure: func(r run) float64 { return float64(r.rss) / 1e6 }},
	}
	for _, r := range list {
		r.self = strings.HasPrefix(r.name, "pooler.cpu.prepared")
	}
	return list
}

func p99(r run) float64 { return bench.Quantile(r.latencies, 0.99) / 1000 }

// Suite returns the rows. It needs root, for the clusters' user and to pin.
func Suite(o Options) bench.Suite {
	var names []string
	for _, r := range table(o) {
		names = append(names, r.name)
	}
	return bench.Suite{Names: names, Run: func(ctx context.Context, names []string, log bench.Log, emit func(bench.Result)) error {
		return runAll(ctx, o, names, log, emit)
	}}
}

func runAll(ctx context.Context, o Options, names []string, log bench.Log, emit func(bench.Result)) (err error) {
	list := table(o)
	wanted := slices.DeleteFunc(slices.Clone(list), func(r *row) bool { return !slices.Contains(names, r.name) })
	s, err := open(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	log("pooler: PostgreSQL, pgsteer-pooler and PgBouncer answer")
	// Logins to PostgreSQL are no part of what is measured: the pools are filled.
	for _, p := range []*process{s.ours, s.theirs} {
		if _, err := s.run(ctx, p, load{mode: simple, clients: 4 * poolSize, query: oneRow, duration: 2 * time.Second}); err != nil {
			return fmt.Errorf("filling the pool of %s: %w", p.name, err)
		}
	}
	for round := range o.Rounds {
		for _, r := range wanted {
			if err := s.round(ctx, o, r, round%2 == 1); err != nil {
				return fmt.Errorf("%s: %w", r.name, err)
			}
			n := len(r.values) - 1
			log("pooler: round %d of %d: %s: %.2f and %.2f %s", round+1, o.Rounds, r.name, r.values[n], r.peer[n], r.unit)
		}
	}
	for _, r := range wanted {
		peer := "PgBouncer"
		if r.self {
			peer = selfRow
		}
		emit(bench.Compare(bench.Result{Name: r.name, Unit: r.unit, Peer: peer}, r.values, r.peer))
	}
	return nil
}

// round measures a row with both poolers, in either order.
func (s *stage) round(ctx context.Context, o Options, r *row, peerFirst bool) error {
	var ours, theirs float64
	parts := []func() error{
		func() (err error) { ours, err = s.measure(ctx, o, r, s.ours, r.load); return err },
		func() (err error) {
			if r.self {
				plain := r.load
				plain.mode = simple
				theirs, err = s.measure(ctx, o, r, s.ours, plain)
				return err
			}
			theirs, err = s.measure(ctx, o, r, s.theirs, r.load)
			return err
		},
	}
	if peerFirst {
		slices.Reverse(parts)
	}
	for _, part := range parts {
		if err := part(); err != nil {
			return err
		}
	}
	r.values, r.peer = append(r.values, ours), append(r.peer, theirs)
	return nil
}

func (s *stage) measure(ctx context.Context, o Options, r *row, p *process, l load) (value float64, err error) {
	if r.idle {
		n := o.Idle
		if !r.alone {
			n -= active
		}
		idle, err := s.hold(ctx, p, n)
		if err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, idle.part()) }()
		if r.alone {
			rss, err := p.rss()
			return r.measure(run{rss: rss}), err
		}
	}
	result, err := s.run(ctx, p, l)
	if err != nil {
		return 0, err
	}
	if r.measure == nil {
		return float64(result.cpu.Microseconds()) / float64(result.transactions), nil
	}
	return r.measure(result), nil
}

// files of the stage.
func (s *stage) path(name string) string { return filepath.Join(s.dir, name) }
