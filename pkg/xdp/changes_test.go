package xdp

import (
	"context"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// told is what a node has told and nobody has looked at yet.
type told struct {
	batches chan []lb.FlowChange
	rest    []lb.FlowChange
	lost    atomic.Int32
}

// changes reads what a node tells until the test ends.
func (f *fixture) changes(t *testing.T) *told {
	t.Helper()
	all := &told{batches: make(chan []lb.FlowChange, 1<<16)}
	ended := make(chan error, 1)
	go func() {
		ended <- f.Changes(t.Context(), func(c []lb.FlowChange) { all.batches <- slices.Clone(c) }, func() { all.lost.Add(1) })
	}()
	t.Cleanup(func() { f.must(<-ended) })
	return all
}

// next is the next change.
func (all *told) next(t *testing.T) (change lb.FlowChange) {
	t.Helper()
	if len(all.rest) == 0 {
		select {
		case all.rest = <-all.batches:
		case <-time.After(10 * time.Second):
			t.Fatal("nothing is told")
		}
	}
	change, all.rest = all.rest[0], all.rest[1:]
	return change
}

// A connection is told of when it is accepted, when it is confirmed, and at
// each step to its end; what is forgotten without having been accepted is not.
func TestChangesOfAFlowAreTold(t *testing.T) {
	p := newTwo(t)
	all := p.active.changes(t)
	p.each(t, func(p two, c cast) {
		f := p.active
		want := func(state lb.FlowState, gone bool) lb.FlowRecord {
			f.t.Helper()
			got := all.next(f.t)
			if got.Gone != gone || got.Record.State != state {
				f.t.Fatalf("told %+v, want state %b, gone %v", got, state, gone)
			}
			return got.Record
		}
		k := f.establish(c.syn(1))
		r := want(lb.FlowAccepted, false)
		if r.BackendAck != k.c.seq || r.ClientAck != 0 || r.FinAck != 0 || r.ClientMAC != clientMAC {
			f.t.Errorf("told %+v", r)
		}
		if r.Client != k.c.src || r.Service != c.vip || r.SNAT != k.b.dst || r.Backend != k.b.src {
			f.t.Errorf("told of %+v, of a flow between %v and %v", r.ID(), k.c.src, k.b.src)
		}
		const open = lb.FlowAccepted | lb.FlowEstablished
		want(open, false)
		f.clientSays(&k, ack|psh, "select 1")
		f.clientSays(&k, fin|ack, "")
		if r = want(open|lb.FlowFinClient, false); r.FinAck != k.c.seq {
			f.t.Errorf("FIN is acknowledged by %d, told %d", k.c.seq, r.FinAck)
		}
		f.backendSays(&k, fin|ack, "")
		want(open|lb.FlowFinClient|lb.FlowFinBackend|lb.FlowClosed, false)
		// The same port again: the old flow makes room for a new one.
		again := c.syn(1)
		again.seq += 100_000
		k = f.establish(again)
		want(open|lb.FlowFinClient|lb.FlowFinBackend|lb.FlowClosed, true)
		want(lb.FlowAccepted, false)
		want(open, false)
		k.c.flags, k.c.ack = rst, 0
		f.expect(k.c, "tx_forward")
		want(open|lb.FlowReset|lb.FlowClosed, false)
		// Nobody accepts, the next one is not told of before it is accepted.
		f.expect(c.syn(2), "tx_new")
		if _, err := f.FlushFlows(c.vip.Addr()); err != nil {
			f.t.Fatal(err)
		}
		want(open|lb.FlowReset|lb.FlowClosed, true)
		f.establish(c.syn(3))
		if r := want(lb.FlowAccepted, false); r.Client != c.number(3) {
			f.t.Errorf("told of %v", r.Client)
		}
		want(open, false)
		// Who is silent about the address says nothing of its flows either.
		f.lease(c, 0)
		if _, err := f.FlushFlows(c.vip.Addr()); err != nil {
			f.t.Fatal(err)
		}
		f.lease(c, time.Hour)
		f.establish(c.syn(4))
		want(lb.FlowAccepted, false)
		want(open, false)
		if n := all.lost.Load(); n != 0 {
			f.t.Errorf("changes were lost %d times", n)
		}
		f.lease(c, 0) // and nothing of what the next test clears away
	})
}

// Changes that nobody reads in time are lost, and that is told once the others
// have been read.
func TestLostChangesAreTold(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.Replicate, c.eventRing = true, os.Getpagesize() })
	const flows = 100 // two changes each, of some 90 bytes
	for n := range flows {
		f.connect(clientNumber(n))
	}
	all := f.changes(t)
	told, most := 0, 2*flows
	for all.lost.Load() == 0 && told < most {
		all.next(t)
		told++
		if len(all.rest) == 0 && len(all.batches) == 0 && all.lost.Load() == 0 {
			f.connect(clientNumber(most)) // there is always a next one
			most += 2
		}
	}
	if n := all.lost.Load(); n != 1 {
		t.Errorf("the loss was told %d times, after %d changes were seen", n, told)
	}
}

// Whatever happens to flows on one node, on several CPUs at once, the other one
// that is told in order ends with the same flows.
func TestReplicasFollowConcurrentTraffic(t *testing.T) {
	p := newTwo(t, func(c *Config) {
		c.HalfOpenFlows, c.SNATLow, c.SNATHigh = 8, 20000, 20015
	})
	p.active.setBucket(bucketRST, 1<<40) // no limit
	all := p.active.changes(t)
	p.each(t, func(p two, c cast) {
		f := p.active
		const workers, packets = 4, 8000
		var wg sync.WaitGroup
		for w := range workers {
			wg.Go(func() { f.crowd(c, rand.New(rand.NewPCG(uint64(w), 2)), packets) })
		}
		stop := make(chan struct{})
		swept := make(chan error, 1)
		go func() { swept <- f.sweepUntil(stop) }()
		working, done := context.WithCancel(t.Context())
		go func() { wg.Wait(); close(stop); f.must(<-swept); done() }()

		changes := 0
		follow := func(change lb.FlowChange) {
			changes++
			var err error
			if r := change.Record; change.Gone {
				err = p.standby.Remove([]lb.FlowID{r.ID()})
			} else {
				_, err = p.standby.Store([]lb.FlowRecord{r})
			}
			p.standby.must(err)
		}
		for working.Err() == nil {
			select {
			case all.rest = <-all.batches:
				for len(all.rest) > 0 {
					follow(all.next(f.t))
				}
			case <-working.Done():
			}
		}
		// The last one of all marks the end. It may take the place of others.
		last := c.syn(5000)
		f.establish(last)
		for {
			change := all.next(f.t)
			follow(change)
			if change.Record.Client == last.src && change.Record.State&lb.FlowEstablished != 0 {
				break
			}
		}
		want, got := f.records(true), p.standby.records(false)
		// Some may be lost where virtual CPUs stand still for long: then
		// everything is copied anew.
		if n := all.lost.Load(); n != 0 {
			f.t.Logf("changes were lost %d times", n)
			for client, r := range got {
				if is, ok := want[client]; !ok || is.ID() != r.ID() {
					p.standby.must(p.standby.Remove([]lb.FlowID{r.ID()}))
				}
			}
			p.standby.store(0, slices.Collect(maps.Values(want))...)
			got = p.standby.records(false)
		}
		for client, r := range want {
			if is, ok := got[client]; !ok || is.ID() != r.ID() || is.State != r.State {
				f.t.Errorf("%v is %b of %v, and as a copy %b of %v, %v", client, r.State, r.ID(), is.State, is.ID(), ok)
			}
		}
		for client, r := range got {
			if _, ok := want[client]; !ok {
				f.t.Errorf("%v is there as a copy only, %b", client, r.State)
			}
		}
		if changes < 1000 {
			f.t.Errorf("only %d changes: nothing is proved", changes)
		}
		f.t.Logf("%d changes, %d flows at the end", changes, len(want))
		f.lease(c, 0) // and nothing of what the next test clears away
	})
}
