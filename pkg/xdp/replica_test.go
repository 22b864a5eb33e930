package xdp

import (
	"net/netip"
	"slices"
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

// A connection that ended while its node could tell of it no more is asked for
// soon after the take-over, and those that live go on.
func TestDoubtfulReplicasAreAsked(t *testing.T) {
	p := newTwo(t, func(c *Config) { c.ProbeInterval = time.Nanosecond })
	p.each(t, func(p two, c cast) {
		f := p.standby
		lives, silent := p.active.establish(c.syn(1)), p.active.establish(c.syn(2))
		for _, r := range p.active.records(true) {
			r.Idle = time.Minute
			f.store(0, r)
		}
		p.active.lease(c, 0)
		f.lease(c, time.Hour)
		f.must(f.sweep())
		if n := len(f.probes.asked); n != 0 {
			f.t.Fatalf("%d flows are asked at once", n)
		}
		f.mu.Lock()
		for addr, since := range f.took {
			clock, err := f.tables.clock()
			f.must(err)
			f.took[addr] = since - (clock.before(0) - clock.before(2*settleTime))
		}
		f.mu.Unlock()
		f.clientSays(&lives, ack|psh, "select 1")
		f.must(f.sweep())
		if n := len(f.probes.asked); n != 1 || f.probes.asked[flowID{silent.c.src, c.vip}] == nil {
			f.t.Fatalf("%d flows are asked: %v", n, f.probes.asked)
		}
		// It answers, and is left alone from then on.
		silent.c.flags, silent.b.flags = ack, ack
		f.expect(silent.c, "tx_forward")
		f.expect(silent.b, "tx_reverse")
		f.must(f.sweep())
		f.must(f.sweep())
		if n := len(f.probes.asked); n != 0 {
			f.t.Errorf("%d flows are still asked", n)
		}
		f.wantState(c, silent.c.src, "established")
	})
}
