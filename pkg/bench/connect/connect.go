// Package connect measures how many short sessions a second a balancer takes:
// connect, log in, one query, close. It runs in the lab, with real poolers and
// a real PostgreSQL, through the virtual address and, alternating with it,
// through HAProxy to the same poolers.
package connect

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/pgsteer/pgsteer/pkg/bench"
	"github.com/pgsteer/pgsteer/pkg/lab"
	"github.com/pgsteer/pgsteer/pkg/lab/load"
)

const connectRate = "datapath.connect_rate"

// Options say how much is measured.
type Options struct {
	Rounds int           // in each, both balancers are loaded once
	Slice  time.Duration // of each balancer in a round
	// Sustained is for how long each is then loaded without a pause.
	Sustained time.Duration
	Workers   int    // sessions at a time
	BinDir    string // where the lab's programs are; default: beside this program
}

// DefaultOptions take about five minutes.
//
// Slices are short because whoever else uses the machine comes and goes: two of
// them side by side find it in the same mood. Ports rest for a minute after use,
// on every machine that a session passes by; who runs out of them does so only
// under a load that lasts longer, so that there is one at the end.
var DefaultOptions = Options{Rounds: 12, Slice: 5 * time.Second, Sustained: 75 * time.Second, Workers: 32}

// Check says what cannot be measured, by the names of pgsteer-bench's options.
func (o Options) Check() error {
	switch {
	case o.Rounds < 1:
		return fmt.Errorf("-connect-rounds is %d, and must be 1 at least", o.Rounds)
	case o.Slice <= 0:
		return fmt.Errorf("-connect-slice is %v, and must be above 0", o.Slice)
	case o.Sustained <= 0:
		return fmt.Errorf("-connect-sustained is %v, and must be above 0", o.Sustained)
	case o.Workers < 1:
		return fmt.Errorf("-connect-workers is %d, and must be 1 at least", o.Workers)
	}
	return nil
}

const (
	// sourceCount addresses of the client make 900,000 connections a minute
	// before they run out of ports themselves.
	sourceCount = 32
	// warmUp lets the poolers open their connections to the database.
	warmUp = 2 * time.Second
	// downTimeout bounds the lab's removal.
	downTimeout = time.Minute
)

// Suite returns the row. It needs root, PostgreSQL and HAProxy.
func Suite(o Options) bench.Suite {
	return bench.Suite{
		Names: []string{connectRate},
		Run: func(ctx context.Context, _ []string, log bench.Log, emit func(bench.Result)) error {
			r, err := run(ctx, o, log)
			if err != nil {
				return fmt.Errorf("%s: %w", connectRate, err)
			}
			emit(r)
			return nil
		},
	}
}

// side is one of the two balancers and what was measured of it.
type side struct {
	name    string
	address string
	cpu     func() (time.Duration, error) // the balancer's, so far

	rates   []float64 // of the slices, as all that follows
	p50     []float64 // milliseconds
	p99     []float64 // milliseconds
	done    int
	used    time.Duration // by the balancer
	machine time.Duration // by everything

	sustained load.ConnectsResult
	failed    int // in slices and under the sustained load
}

func run(ctx context.Context, o Options, log bench.Log) (result bench.Result, err error) {
	l, err := lab.Up(ctx, lab.Options{
		Name: fmt.Sprintf("bench%d", os.Getpid()), BinDir: o.BinDir,
		Progress: func(step string) { log("lab: %s", step) },
	})
	if err != nil {
		return result, err
	}
	defer func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), downTimeout)
		defer cancel()
		err = errors.Join(err, l.Down(clean, false))
	}()
	dir, err := os.MkdirTemp("", "pgsteer-bench-")
	if err != nil {
		return result, fmt.Errorf("making a directory: %w", err)
	}
	defer os.RemoveAll(dir)
	peer, err := startHAProxy(ctx, l, dir)
	if err != nil {
		return result, err
	}
	defer peer.stop()
	meter, err := newMeter(l)
	if err != nil {
		return result, err
	}
	defer meter.Close()
	ours := &side{name: "pgsteer", address: lab.Service, cpu: meter.time}
	theirs := &side{
		name: "haproxy", address: peer.address.String(),
		cpu: func() (time.Duration, error) { return processTime(peer.pid()) },
	}
	if err := measure(ctx, l, o, log, ours, theirs); err != nil {
		return result, err
	}
	return compare(ours, theirs), nil
}

// measure does the rounds. Who comes first changes from one to the next.
func measure(ctx context.Context, l *lab.Lab, o Options, log bench.Log, ours, theirs *side) error {
	client, err := l.ClientConfig()
	if err != nil {
		return err
	}
	sources, err := addSources(l)
	if err != nil {
		return err
	}
	spec := load.Connects{
		User: client.User, Database: client.Database, Password: client.Password,
		Workers: o.Workers, Sources: sources,
	}
	for _, s := range []*side{ours, theirs} {
		if _, err := s.load(ctx, l, spec, min(warmUp, o.Slice), log); err != nil {
			return err
		}
	}
	for round := range o.Rounds {
		first, second := ours, theirs
		if round%2 == 1 {
			first, second = theirs, ours
		}
		for _, s := range []*side{first, second} {
			if err := s.slice(ctx, l, spec, o.Slice, log); err != nil {
				return err
			}
		}
		last := len(ours.rates) - 1
		log("connect_rate: round %d of %d: %.0f and %.0f sessions a second", round+1, o.Rounds, ours.rates[last], theirs.rates[last])
	}
	for _, s := range []*side{ours, theirs} {
		if s.sustained, err = s.load(ctx, l, spec, o.Sustained, log); err != nil {
			return err
		}
		log("connect_rate: %s, sustained: %d sessions, %.0f a second", s.name, s.sustained.Done, s.sustained.Rate())
	}
	return logVerdicts(l, log)
}

// logVerdicts says what became of the balancers' packets: where sessions have
// failed, it tells why.
func logVerdicts(l *lab.Lab, log bench.Log) error {
	for _, host := range lab.Balancers() {
		stats, err := l.Datapath(host)
		if err != nil {
			return err
		}
		var counts []string
		for _, v := range stats.Verdicts {
			if v.Count > 0 {
				counts = append(counts, fmt.Sprintf("%s %d", v.Name, v.Count))
			}
		}
		log("connect_rate: verdicts of %s: %s", host, strings.Join(counts, ", "))
	}
	return nil
}

// load makes sessions through the balancer. That none succeeds is an error.
func (s *side) load(ctx context.Context, l *lab.Lab, spec load.Connects, d time.Duration, log bench.Log) (load.ConnectsResult, error) {
	spec.Address, spec.Duration = s.address, d
	r, err := generate(ctx, l, spec)
	if err != nil {
		return r, err
	}
	if r.Done == 0 {
		return r, fmt.Errorf("%s: not one session of %d: %s", s.name, r.Failed, r.Error)
	}
	if r.Failed > 0 {
		log("connect_rate: %s: %d sessions failed; one of them: %s", s.name, r.Failed, r.Error)
	}
	s.failed += r.Failed
	return r, nil
}

// slice loads the balancer for a while and notes what that took.
func (s *side) slice(ctx context.Context, l *lab.Lab, spec load.Connects, d time.Duration, log bench.Log) error {
	cpu, err := s.cpu()
	if err != nil {
		return err
	}
	machine, err := machineTime()
	if err != nil {
		return err
	}
	r, err := s.load(ctx, l, spec, d, log)
	if err != nil {
		return err
	}
	cpuAfter, err := s.cpu()
	if err != nil {
		return err
	}
	machineAfter, err := machineTime()
	if err != nil {
		return err
	}
	s.rates = append(s.rates, r.Rate())
	s.p50 = append(s.p50, milliseconds(r.P50))
	s.p99 = append(s.p99, milliseconds(r.P99))
	s.done += r.Done
	s.used += cpuAfter - cpu
	s.machine += machineAfter - machine
	return nil
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// perSession returns microseconds.
func (s *side) perSession(d time.Duration) float64 {
	return float64(d) / float64(time.Microsecond) / float64(s.done)
}

func compare(ours, theirs *side) bench.Result {
	r := bench.Compare(bench.Result{Name: connectRate, Unit: "1/s", Peer: "HAProxy"}, ours.rates, theirs.rates)
	r.Extra = map[string]float64{
		"failed": float64(ours.failed), "peer_failed": float64(theirs.failed),
		"p50_ms": bench.Quantile(ours.p50, 0.5), "peer_p50_ms": bench.Quantile(theirs.p50, 0.5),
		"p99_ms": bench.Quantile(ours.p99, 0.5), "peer_p99_ms": bench.Quantile(theirs.p99, 0.5),
		"balancer_cpu_us": ours.perSession(ours.used), "peer_balancer_cpu_us": theirs.perSession(theirs.used),
		"machine_cpu_us": ours.perSession(ours.machine), "peer_machine_cpu_us": theirs.perSession(theirs.machine),
		"sustained_rate": ours.sustained.Rate(), "peer_sustained_rate": theirs.sustained.Rate(),
		"sustained_s": ours.sustained.Took.Seconds(),
	}
	return r
}

// addSources gives the lab's client more addresses.
func addSources(l *lab.Lab) ([]netip.Addr, error) {
	var sources []netip.Addr
	addr := netip.MustParseAddr("192.168.1.128")
	for range sourceCount {
		sources = append(sources, addr)
		addr = addr.Next()
	}
	return sources, l.Do(lab.Client, func() error {
		card, err := netlink.LinkByName("eth0")
		if err != nil {
			return fmt.Errorf("finding the client's network card: %w", err)
		}
		for _, addr := range sources {
			a, err := netlink.ParseAddr(addr.String() + "/32")
			if err != nil {
				return fmt.Errorf("reading %s: %w", addr, err)
			}
			if err := netlink.AddrAdd(card, a); err != nil {
				return fmt.Errorf("adding address %s to the client: %w", addr, err)
			}
		}
		return nil
	})
}
