package xdp

import (
	"slices"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// Weights 5, 1 and 1 are served evenly: a a b a c a a, whatever the counts are.
func testRoundRobin(f *fixture, c cast) {
	s := c.service(3)
	s.Scheduler = lb.RoundRobin
	s.Backends[0].Weight = 5
	f.serve(s)
	first := f.establish(c.syn(500))
	if c.slot(first.b.src) != 0 {
		f.t.Fatalf("the first one goes to %s", first.b.src)
	}
	f.clientSays(&first, rst, "") // that it is over does not matter
	want := []int{0, 1, 0, 2, 0, 0, 0, 0, 1, 0, 2, 0, 0, 0, 0, 1, 0, 2, 0, 0}
	if got := f.openMany(c, 0, 20); !slices.Equal(got, want) {
		f.t.Errorf("served %v, want %v", got, want)
	}
	// One less, and the others' shares stay.
	f.set(c, 1, withState(lb.Down))
	if got := tally(f.openMany(c, 100, 60)); got != [3]int{50, 0, 10} {
		f.t.Errorf("weights 5 and 1: %v", got)
	}
}

// Of equals, the one that is drawn in neither pair gets none: the more loaded
// of two never wins.
func testRandomTwo(f *fixture, c cast) {
	s := c.service(3)
	s.Scheduler = lb.RandomTwo
	f.serve(s)
	previous := f.active()
	for n := range 300 {
		at := c.slot(f.expect(c.syn(n), "tx_new").dst)
		if most := slices.Max(previous); previous[at] == most && slices.Index(previous, most) == at &&
			previous[(at+1)%3] < most && previous[(at+2)%3] < most {
			f.t.Fatalf("flow %d went to the most loaded of %v", n, previous)
		}
		previous[at]++
	}
	if got := f.active(); slices.Max(got)-slices.Min(got) > 20 {
		f.t.Errorf("active counts %v", got)
	}
	// One pooler alone, and weights.
	f.set(c, 1, withState(lb.Down))
	f.set(c, 2, withState(lb.Down))
	if got := tally(f.openMany(c, 300, 10)); got != [3]int{10, 0, 0} {
		f.t.Errorf("one alone: %v", got)
	}
	s.Backends = s.Backends[:2]
	s.Backends[0].Weight = 3
	f.serve(s) // two: both are drawn
	if got := tally(f.openMany(c, 0, 100)); got != [3]int{75, 25, 0} {
		f.t.Errorf("weights 3 and 1: %v", got)
	}
}

func testLeastConnections(f *fixture, c cast) {
	if got := tally(f.openMany(c, 0, 100)); got != [3]int{34, 33, 33} {
		f.t.Errorf("equal weights: %v", got)
	}
	for _, weights := range [][3]uint16{{5, 3, 1}, {256, 1, 128}, {7, 7, 1}, {1, 2, 3}} {
		s := c.service(3)
		sum := 0
		for i, w := range weights {
			s.Backends[i].Weight = w
			sum += int(w)
		}
		f.serve(s)
		var share [3]int
		rounds := max(1, 200/sum)
		for i, w := range weights {
			share[i] = rounds * int(w)
		}
		if got := tally(f.openMany(c, 0, rounds*sum)); got != share {
			f.t.Errorf("weights %v: %v", weights, got)
		}
		// Those that lose flows get the next ones.
		f.forgetMany(c, 0, 20)
		f.openMany(c, 0, 20)
		for i, n := range f.active() {
			if int(n) != share[i] {
				f.t.Errorf("weights %v, after some have ended: %v", weights, f.active())
				break
			}
		}
	}
}

// forgetMany ends flows of the clients from first on by their reset.
func (f *fixture) forgetMany(c cast, first, count int) {
	f.t.Helper()
	for n := range count {
		s := c.syn(first + n)
		s.flags = rst
		f.expect(s, "tx_forward")
	}
}

// A backend that comes up has the share of its weight that has passed of its
// slow start, and no less than a sixteenth.
func testSlowStart(f *fixture, c cast) {
	s := c.service(2)
	s.SlowStart = time.Hour
	s.Backends[0].State = lb.Down
	f.serve(s)
	weight := func() uint32 {
		var row scheduleRow
		f.must(f.tables.schedules.Lookup(uint32(0), &row))
		return row.Slots[0].Weight
	}
	f.set(c, 0, withState(lb.Up))
	came := f.placed[0].slowUntil.Add(-time.Hour)
	if since := time.Since(came); since < 0 || since > time.Minute {
		f.t.Fatalf("the slow start began %s ago", since)
	}
	first := 0
	for _, step := range []struct {
		after time.Duration
		share float64
	}{
		{0, 1.0 / 16}, {time.Minute, 1.0 / 16}, {15 * time.Minute, 0.25}, {30 * time.Minute, 0.5}, {45 * time.Minute, 0.75}, {2 * time.Hour, 1},
	} {
		f.must(f.raiseWeights(came.Add(step.after)))
		if got := float64(weight()) / weightUnit; got < step.share-0.01 || got > step.share+0.01 {
			f.t.Fatalf("after %s its weight is %.3f, want %.3f", step.after, got, step.share)
		}
		f.forgetMany(c, 0, first)
		first = 160
		got := tally(f.openMany(c, 0, first))
		want := 160 * step.share / (1 + step.share)
		if d := float64(got[0]) - want; d < -1.5 || d > 1.5 {
			f.t.Errorf("after %s it takes %v, want %.1f of 160", step.after, got, want)
		}
	}
	// It is over; a further change is none.
	f.must(f.raiseWeights(came.Add(3 * time.Hour)))
	f.set(c, 0, withState(lb.Up))
	if got := weight(); got != weightUnit {
		f.t.Errorf("a state that it had began another slow start: weight %d", got)
	}
	// Down within it, and up: from the beginning.
	f.set(c, 0, withState(lb.Down))
	f.set(c, 0, withState(lb.Up))
	if got := weight(); got != weightUnit/16 {
		f.t.Errorf("up again its weight is %d", got)
	}
}
