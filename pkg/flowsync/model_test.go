package flowsync

import (
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// setting reads a number from the environment: PGSTEER_SEEDS is how many seeds
// are tried, PGSTEER_SEED the only one.
func setting(t *testing.T, name string) (uint64, bool) {
	t.Helper()
	text, ok := os.LookupEnv(name)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n, true
}

// eachSeed runs a test for many seeds, or one.
func eachSeed(t *testing.T, run func(t *testing.T, seed uint64)) {
	if seed, ok := setting(t, "PGSTEER_SEED"); ok {
		run(t, seed)
		return
	}
	seeds, ok := setting(t, "PGSTEER_SEEDS")
	if !ok {
		if seeds = 2000; raceDetector {
			seeds = 200
		}
	}
	for seed := range seeds {
		if run(t, seed); t.Failed() {
			return
		}
	}
}

// TestModel has flows come and go while connections break, nodes restart,
// events are lost and addresses move, then lets all come to rest, and demands
// that each node has exactly the flows of the other.
func TestModel(t *testing.T) {
	var overflows, outdated, swept, lost, refused uint64
	var resyncs [numResyncs]uint64
	eachSeed(t, func(t *testing.T, seed uint64) {
		s := newSim(seed)
		_, s.traced = os.LookupEnv("PGSTEER_SEED")
		check := func(what string, err error) {
			if err != nil {
				t.Fatalf("PGSTEER_SEED=%d: %s: %v\n%s", seed, what, err, s.history())
			}
		}
		moves := seed%2 == 1
		for _, n := range s.nodes {
			n.table.removed = func(id lb.FlowID) {
				f, ok := n.peer().table.flows[place{id.Client, id.Service}]
				if !moves && ok && f.ID() == id {
					t.Fatalf("PGSTEER_SEED=%d: node %d forgets %v, which lives\n%s", seed, n.id, id, s.history())
				}
			}
		}
		check("running", s.run(800, mishaps{
			breaks: seed%3 != 0, restarts: seed%4 != 0, losses: seed%5 != 0, moves: moves,
			failures: seed%7 == 0, reloads: seed%11 == 0,
		}))
		for _, n := range s.nodes {
			n.table.err = nil
			n.reload(true)
		}
		for vip := range simVIPs {
			holder := s.rng.IntN(2)
			if h := s.holders(vip); len(h) == 1 && !moves {
				holder = h[0].id
			}
			s.nodes[holder].lease(vip, true)
			s.nodes[1-holder].lease(vip, false)
		}
		s.link(true)
		check("settling", s.settle(3*time.Second))
		check("at rest", s.compare(false))

		// Packets alone are no change: a refresh brings them.
		for _, n := range s.nodes {
			for p, f := range n.table.flows {
				if n.table.leased[p.service.Addr()] {
					f.PacketsIn++
					n.last[f.ID()] = s.now
					n.table.put(f)
				}
			}
		}
		check("settling after packets", s.settle(time.Second))
		check("after a refresh", s.compare(true))
		for _, n := range s.nodes {
			overflows += n.sender.counts.overflows
			lost += n.sender.counts.lost
			outdated += n.receiver.counts.outdated
			swept += n.receiver.counts.swept
			refused += n.receiver.counts.refused
			for i, count := range n.sender.counts.resyncs {
				resyncs[i] += count
			}
		}
	})
	t.Logf("overflows %d, outdated %d, swept %d, lost %d, refused %d, resyncs %v", overflows, outdated, swept, lost, refused, resyncs)
	if _, one := setting(t, "PGSTEER_SEED"); !one && (overflows == 0 || outdated == 0 || swept == 0 || lost == 0 || refused == 0 || resyncs[ResyncLease] == 0) {
		t.Error("the simulation does not do what it should")
	}
}
