package xdp

import (
	"context"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// two are the nodes of a pair, of which the first one serves.
type two struct{ active, standby *fixture }

// newTwo has both nodes of each cast's service; change is for both.
func newTwo(t *testing.T, change ...func(*Config)) two {
	t.Helper()
	change = append(change, func(c *Config) { c.Replicate = true })
	p := two{newDualFixture(t, change...), newDualFixture(t, change...)}
	for _, c := range families {
		p.standby.lease(c, 0)
	}
	return p
}

// lease has a node answer for the addresses of a cast, or fall silent.
func (f *fixture) lease(c cast, d time.Duration) {
	f.t.Helper()
	for _, addr := range []netip.Addr{c.vip.Addr(), c.nat} {
		if d == 0 {
			f.must(f.RevokeLease(addr))
		} else {
			f.must(f.RenewLease(addr, d))
		}
	}
}

// each is a test for each family, on nodes with three poolers and no flow.
func (p two) each(t *testing.T, test func(p two, c cast)) {
	t.Helper()
	for _, c := range families {
		t.Run(c.name, func(t *testing.T) {
			p := two{p.active.sub(t), p.standby.sub(t)}
			for _, f := range []*fixture{p.active, p.standby} {
				f.serve(c.service(3))
			}
			p.active.lease(c, time.Hour)
			p.standby.lease(c, 0)
			test(p, c)
			p.active.wantNoDrift()
			p.standby.wantNoDrift()
		})
	}
}

// records is what Each has, by client.
func (f *fixture) records(own bool) map[netip.AddrPort]lb.FlowRecord {
	f.t.Helper()
	all := make(map[netip.AddrPort]lb.FlowRecord)
	f.must(f.Each(own, func(r *lb.FlowRecord) bool {
		if _, twice := all[r.Client]; twice {
			f.t.Errorf("%v is there twice", r.Client)
		}
		all[r.Client] = *r
		return true
	}))
	return all
}

// store wants a number of records to be refused.
func (f *fixture) store(refused int, records ...lb.FlowRecord) {
	f.t.Helper()
	n, err := f.Store(records)
	f.must(err)
	if n != refused {
		f.t.Errorf("%d of %d records were refused, want %d", n, len(records), refused)
	}
}

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

// What one node serves the other one goes on with, to the end of each flow.
func TestAnotherNodeGoesOn(t *testing.T) {
	p := newTwo(t)
	p.each(t, func(p two, c cast) {
		talks := make([]talk, 12)
		for n := range talks {
			talks[n] = p.active.establish(c.syn(n))
		}
		half := p.active.expect(c.syn(100), "tx_new") // accepted by nobody
		p.active.expect(p.active.expect(c.syn(101), "tx_new").answer(syn|ack), "tx_reverse")
		p.active.clientSays(&talks[0], fin|ack, "")
		p.active.backendSays(&talks[1], fin|ack, "")
		served := p.active.records(true)
		if len(served) != 13 || len(p.active.records(false)) != 0 {
			p.active.t.Fatalf("%d records, want 13", len(served))
		}
		for _, r := range served {
			p.standby.store(0, r)
			p.standby.store(0, r) // the same again
		}
		copies := p.standby.records(false)
		for client, r := range served {
			is := copies[client]
			// Times are counted in units of some milliseconds.
			if d := is.Age - r.Age; d < -time.Second || d > time.Second {
				p.standby.t.Errorf("%v is %v old, %v as a copy", client, r.Age, is.Age)
			}
			r.Age, r.Idle, is.Age, is.Idle = 0, 0, 0, 0
			if r != is {
				p.standby.t.Errorf("%+v has become %+v", r, is)
			}
		}
		p.standby.wantNoDrift()
		var n int64
		for _, b := range p.standby.backends() {
			n += b.Active
			if b.Total != uint64(b.Active) || b.Closed != 0 {
				p.standby.t.Errorf("%s: %d active, %d in all, %d closed", b.Name, b.Active, b.Total, b.Closed)
			}
		}
		if n != 13 {
			p.standby.t.Errorf("%d flows are counted, want 13", n)
		}
		in := talks[5].c
		in.flags = ack
		p.standby.wantUnsent(in, "drop_fenced")

		p.active.lease(c, 0)
		p.standby.lease(c, time.Hour)
		for i := range talks {
			k := &talks[i]
			if out := p.standby.clientSays(k, ack|psh, "select 1"); out.dst != k.b.src || out.src != k.b.dst {
				p.standby.t.Errorf("%v came from %v to %v, want %v to %v", k.c.src, out.src, out.dst, k.b.dst, k.b.src)
			}
			if out := p.standby.backendSays(k, ack|psh, "1"); out.dst != k.c.src || out.src != c.vip || out.dstMAC != clientMAC {
				p.standby.t.Errorf("an answer to %v went to %v", k.c.src, out.dst)
			}
		}
		// One that was not told of: its client begins again.
		p.standby.expect(half.answer(syn|ack), "tx_rst_backend")
		p.standby.expect(c.syn(100), "tx_new")
		for i := range talks {
			if i != 0 {
				p.standby.clientSays(&talks[i], fin|ack, "")
			}
			if i != 1 {
				p.standby.backendSays(&talks[i], fin|ack, "")
			}
			p.standby.wantState(c, talks[i].c.src, map[bool]string{true: "time_wait", false: "closed"}[i == 1])
		}
		p.standby.wantNoDrift()
	})
}

// A replica that is in another's way, or makes no sense here.
func TestReplicasThatDoNotFit(t *testing.T) {
	p := newTwo(t)
	p.each(t, func(p two, c cast) {
		f := p.standby
		p.active.establish(c.syn(1))
		p.active.establish(c.syn(2))
		served := p.active.records(true)
		one, other := served[c.number(1)], served[c.number(2)]
		f.store(0, one, other)

		// Its client has come again, from another port of ours.
		again := one
		again.SNAT = netip.AddrPortFrom(again.SNAT.Addr(), one.SNAT.Port()^1)
		f.store(0, again)
		// That was one that is gone; this one is there.
		f.must(f.Remove([]lb.FlowID{one.ID()}))
		if got := f.records(false)[one.Client]; got.SNAT != again.SNAT {
			f.t.Errorf("%v leaves from %v, want %v", one.Client, got.SNAT, again.SNAT)
		}
		f.wantActive(countsOf(again, other, c)...)
		f.wantNoDrift()

		// Somebody else has the port by now.
		third := again
		third.Client = c.number(3)
		f.store(0, third)
		f.wantState(c, again.Client, "")
		f.wantState(c, third.Client, "established")
		f.wantNoDrift()

		closed := third
		closed.State |= lb.FlowFinClient | lb.FlowFinBackend | lb.FlowClosed
		f.store(0, closed, closed)
		f.wantState(c, third.Client, "closed")
		f.wantActive(countsOf(other, other, c)...)
		f.must(f.Remove([]lb.FlowID{closed.ID(), other.ID(), other.ID()}))
		f.wantActive(0, 0, 0)
		if n := f.entries(); n != 0 {
			f.t.Errorf("%d entries are left", n)
		}

		unknown := one
		unknown.Backend = netip.AddrPortFrom(one.Backend.Addr(), 7777)
		mixed := one
		mixed.SNAT = netip.MustParseAddrPort("192.168.1.100:20000")
		if c.vip.Addr().Is4() {
			mixed.SNAT = netip.MustParseAddrPort("[fd00:1::100]:20000")
		}
		var nothing lb.FlowRecord
		f.store(3, unknown, mixed, nothing)
		// A node believes nobody about what it serves itself.
		p.active.store(1, other)
		p.active.must(p.active.Remove([]lb.FlowID{other.ID()}))
		p.active.wantState(c, other.Client, "established")
		// But of one that it does not know: it has just taken the address over.
		late := other
		late.Client, late.SNAT = c.number(7), netip.AddrPortFrom(other.SNAT.Addr(), other.SNAT.Port()^2)
		p.active.store(0, late)
		p.active.wantState(c, late.Client, "established")
		taken := late
		taken.Client = c.number(8)
		p.active.store(1, taken)
		p.active.wantState(c, late.Client, "established")
	})
}

// Who has just taken over waits before it tells anybody that his connection is
// unknown.
func TestResetsAreHeld(t *testing.T) {
	f := newFixture(t)
	f.must(f.HoldResets(time.Hour))
	f.wantUnsent(fromClient(ack), "drop_rst_limit")
	f.must(f.HoldResets(0))
	verdict := "drop_rst_limit"
	for deadline := time.Now().Add(10 * time.Second); verdict == "drop_rst_limit" && time.Now().Before(deadline); {
		_, _, verdict = f.run(fromClient(ack).frame()) // tokens are earned by the jiffy
	}
	if verdict != "tx_rst_client" {
		t.Errorf("verdict %s", verdict)
	}
}

// countsOf is how many of two records each pooler has, sorted; the same twice
// is one.
func countsOf(a, b lb.FlowRecord, c cast) []int64 {
	n := make([]int64, 3)
	n[c.slot(a.Backend)]++
	if a.ID() != b.ID() {
		n[c.slot(b.Backend)]++
	}
	slices.Sort(n)
	return n
}

// A table that is full refuses replicas, and counts what it has.
func TestReplicasInAFullTable(t *testing.T) {
	p := newTwo(t, func(c *Config) { c.FlowTableSize = 64 })
	p.each(t, func(p two, c cast) {
		p.active.establish(c.syn(1))
		r := p.active.records(true)[c.number(1)]
		var records []lb.FlowRecord
		for n := range 100 {
			r.Client, r.SNAT = c.number(n), netip.AddrPortFrom(c.vip.Addr(), uint16(20000+n))
			records = append(records, r)
		}
		refused, err := p.standby.Store(records)
		p.standby.must(err)
		// CPUs keep some free entries to themselves.
		if stored := len(p.standby.records(false)); refused < 68 || refused+stored != 100 {
			p.standby.t.Errorf("%d of 100 were refused, %d are there", refused, stored)
		}
	})
}

// As long as another node serves them, flows are kept whatever their age: their
// packets are not seen here. Those that are over end as everywhere.
func TestReplicasDoNotGetOld(t *testing.T) {
	p := newTwo(t, func(c *Config) {
		const now = -time.Hour
		c.Timeouts = Timeouts{SYN: now, Established: now, FIN: now, TimeWait: now, Closed: now, Reset: now}
	})
	p.each(t, func(p two, c cast) {
		f := p.standby
		p.active.establish(c.syn(1))
		k := p.active.establish(c.syn(2))
		p.active.clientSays(&k, fin|ack, "")
		p.active.backendSays(&k, fin|ack, "")
		accepted := p.active.expect(c.syn(3), "tx_new")
		p.active.expect(accepted.answer(syn|ack), "tx_reverse")
		for _, r := range p.active.records(true) {
			f.store(0, r)
		}
		f.must(f.sweep())
		f.must(f.sweep())
		f.wantState(c, c.number(1), "established")
		f.wantState(c, c.number(2), "")
		f.wantState(c, c.number(3), "syn_received")
		if a := f.audit.Load(); a.Drift != 0 || a.Live != 2 {
			f.t.Errorf("%d live, drift %d", a.Live, a.Drift)
		}
		f.lease(c, time.Hour)
		f.must(f.sweep())
		f.wantState(c, c.number(3), "")
	})
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
