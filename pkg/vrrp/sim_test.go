package vrrp

import (
	"flag"
	"fmt"
	"strings"
	"testing"
	"time"
)

// lan is a network that only delays.
var lan = simNet{maxLatency: 500 * time.Microsecond, maxLate: time.Millisecond}

// seeds can be raised for a long search: go test -run Sim -seeds 1000000.
var seeds = flag.Uint64("seeds", 1500, "seeds that each randomised simulation runs through")

// TestSimNeverTwoLeases kills, restarts and freezes the nodes at random
// moments, also between two actions, over a network that loses nothing.
func TestSimNeverTwoLeases(t *testing.T) {
	for seed := range *seeds {
		s := newSim(seed, lan, seed%2 == 1)
		s.onDual = func(n *simNode) {
			t.Fatalf("seed %d: node %d takes the lease while the other holds it\n%s", seed, n.id, strings.Join(s.trace, "\n"))
		}
		const quiet = 20 * time.Second
		for _, n := range s.nodes {
			n.mishap = 0.002
			s.at(s.upTo(time.Duration(seed%3)*200*time.Millisecond), n.start) // a third of them together
			for range s.rng.IntN(6) {
				at := s.upTo(quiet)
				if s.rng.IntN(2) == 0 {
					s.at(at, func() { n.freeze(s.upTo(3*time.Second), s.rng.IntN(2) == 0) })
					continue
				}
				s.at(at, n.kill)
				s.at(at+s.upTo(2*time.Second), n.start)
			}
		}
		s.run(quiet)
		for _, n := range s.nodes {
			n.mishap = 0
		}
		// The last freeze or kill may end 3 s later; an election takes less
		// than a second, and a stray old advertisement can cost another.
		s.run(quiet + 6*time.Second)
		s.settled(t, fmt.Sprintf("seed %d", seed))
		if s.overlap != 0 {
			t.Fatalf("seed %d: two leases for %v", seed, s.overlap)
		}
	}
}

// TestSimHealsAfterLoss loses packets and cuts directions, which may well make
// two nodes active, and then demands that one remains when the network heals.
func TestSimHealsAfterLoss(t *testing.T) {
	var overlap time.Duration
	for seed := range *seeds {
		s := newSim(seed, lan, seed%2 == 1)
		s.net.loss = 0.3
		for _, n := range s.nodes {
			n.mishap = 0.001
			s.at(s.upTo(time.Second), n.start)
			at := s.upTo(10 * time.Second)
			s.at(at, func() { s.net.cut[n.id] = true })
			s.at(at+s.upTo(3*time.Second), func() { s.net.cut[n.id] = false })
		}
		s.run(12 * time.Second)
		for _, n := range s.nodes {
			n.mishap = 0
		}
		s.run(16 * time.Second)
		s.net.loss, s.net.cut = 0, [simNodes]bool{}
		s.run(18 * time.Second)
		s.settled(t, fmt.Sprintf("seed %d", seed))
		overlap += s.overlap
	}
	if overlap == 0 {
		t.Error("no seed ever made two nodes active: the simulation does not cut what it should")
	}
}

// TestSimTakeoverTime measures how long nobody holds the lease.
func TestSimTakeoverTime(t *testing.T) {
	// Three intervals, the skew of priority 100 and what the simulated
	// machine is late, from the last advertisement on.
	const crash = 300*time.Millisecond + 61*time.Millisecond + 3*time.Millisecond
	for _, tc := range []struct {
		name string
		do   func(*simNode)
		most time.Duration
	}{
		{"kill", (*simNode).kill, crash},
		{"freeze", func(n *simNode) { n.freeze(5*time.Second, true) }, crash},
		{"resign", func(n *simNode) { n.step(event{kind: evStop, reason: "shutting down"}) }, 64 * time.Millisecond},
	} {
		for seed := range uint64(50) {
			s := newSim(seed, lan, false)
			s.nodes[0].start()
			s.run(50 * time.Millisecond) // without preemption the first one wins
			s.nodes[1].start()
			s.run(2*time.Second + s.upTo(100*time.Millisecond))
			s.settled(t, tc.name)
			if s.nodes[0].m.state != Active {
				t.Fatalf("%s: the better priority is not active after starting first", tc.name)
			}
			fault := s.now
			tc.do(s.nodes[0])
			for s.nodes[1].lease <= s.now {
				s.run(s.now + 100*time.Microsecond)
				if s.now-fault > time.Second {
					t.Fatalf("%s: no take-over in a second\n%s", tc.name, strings.Join(s.trace, "\n"))
				}
			}
			if took := s.now - fault; took > tc.most {
				t.Errorf("%s: take-over after %v, want at most %v", tc.name, took, tc.most)
			}
			if s.nodes[0].lease > s.now {
				t.Errorf("%s: the old lease still runs", tc.name)
			}
		}
	}
}

// TestSimPreemptsThroughLoss has a better node take over although half of what
// it says is lost, its claim perhaps.
func TestSimPreemptsThroughLoss(t *testing.T) {
	for seed := range uint64(200) {
		s := newSim(seed, lan, true)
		s.nodes[1].start()
		s.run(time.Second)
		s.net.lossOf[0] = 0.5
		s.nodes[0].start()
		for s.nodes[0].m.state != Active {
			s.run(s.now + ms)
			if s.now > 3*time.Second {
				t.Fatalf("seed %d: the better node was not active within 2 s\n%s", seed, strings.Join(s.trace, "\n"))
			}
		}
		s.net.lossOf[0] = 0
		s.run(s.now + time.Second)
		s.settled(t, fmt.Sprintf("seed %d", seed))
	}
}

// TestSimNoPreempt brings a better node back beside an active worse one.
func TestSimNoPreempt(t *testing.T) {
	for _, preempt := range []bool{false, true} {
		s := newSim(7, lan, preempt)
		s.onDual = func(n *simNode) { t.Fatalf("preempt %v: two leases\n%s", preempt, strings.Join(s.trace, "\n")) }
		s.nodes[1].start()
		s.run(time.Second)
		if s.nodes[1].m.state != Active {
			t.Fatal("a lone node did not become active")
		}
		s.nodes[0].start()
		s.run(3 * time.Second)
		if got := s.nodes[0].m.state == Active; got != preempt {
			t.Errorf("preempt %v: the better node became active: %v", preempt, got)
		}
		s.settled(t, fmt.Sprintf("preempt %v", preempt))
	}
}
