package xdp

import (
	"net/netip"
	"testing"
	"time"
)

// idle makes a flow that has been silent for longer than it may, and returns
// the last segments of both ends.
func idleFlow(f *fixture) (c, b segment) {
	f.t.Helper()
	c = fromClient(syn)
	c.src = netip.AddrPortFrom(client.Addr(), 40001)
	c.seq, c.ack = 5000, 0
	b = f.expect(c, "tx_new")
	reply := b.answer(syn | ack)
	reply.seq, reply.ack = 9000, 5001
	f.expect(reply, "tx_reverse")
	c.flags, c.seq, c.ack = ack, 5001, 9001
	b = f.expect(c, "tx_forward")
	b = b.answer(ack)
	b.seq, b.ack = 9001, 5001
	f.expect(b, "tx_reverse")

	clock, err := f.tables.clock()
	f.must(err)
	day := clock.before(25 * time.Hour)
	row := f.row(c.src)
	row.Seen = day
	f.put(c.src, row)
	reverseKey := row.peerKey()
	var reverse flowRow[addr4]
	f.must(f.tables.four.flows.Lookup(reverseKey, &reverse))
	reverse.Seen = day
	f.must(f.tables.four.flows.Put(reverseKey, reverse))
	return c, b
}

func TestIdleFlowIsAskedAndLivesOn(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.ProbeInterval = time.Nanosecond })
	next := f.listen()
	c, b := idleFlow(f)
	f.must(f.sweep())
	toClient, toBackend := next(), next()
	if toClient.src != vip || toClient.dst != c.src || toClient.flags != ack || toClient.seq != 9000 || toClient.ack != 5001 {
		t.Errorf("the client is asked by %+v", toClient)
	}
	if toBackend.src != b.dst || toBackend.dst != b.src || toBackend.flags != ack || toBackend.seq != 5000 || toBackend.ack != 9001 {
		t.Errorf("the backend is asked by %+v", toBackend)
	}
	f.expect(c, "tx_forward") // what an acknowledgement out of sequence is answered by
	f.must(f.sweep())
	if again := next(); again.dst != b.src {
		t.Errorf("asked again: %+v, though only the backend was silent", again)
	}
	f.expect(b, "tx_reverse")
	f.must(f.sweep())
	if n := len(f.probes.asked); n != 0 || f.entries() != 2 {
		t.Errorf("%d questions are open, %d entries left", n, f.entries())
	}
	if a := f.audit.Load(); a.Probed != 1 || a.Dead != 0 {
		t.Errorf("%d flows asked after, %d of them dead", a.Probed, a.Dead)
	}
}

func TestIdleFlowWithADeadEndIsGivenUp(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.ProbeInterval, c.ProbeCount = time.Nanosecond, 2 })
	next := f.listen()
	c, b := idleFlow(f)
	f.must(f.sweep())
	next()
	next()
	f.expect(c, "tx_forward") // the backend says nothing
	f.must(f.sweep())
	next()
	f.must(f.sweep())
	toClient, toBackend := next(), next()
	if toClient.dst != c.src || toClient.flags != rst || toClient.seq != 9001 {
		t.Errorf("the client gets %+v", toClient)
	}
	if toBackend.dst != b.src || toBackend.flags != rst || toBackend.seq != 5001 {
		t.Errorf("the backend gets %+v", toBackend)
	}
	if f.entries() != 0 {
		t.Errorf("%d entries are left", f.entries())
	}
	f.wantActive(0, 0, 0)
	f.must(f.sweep())
	if a := f.audit.Load(); a.Dead != 1 {
		t.Errorf("%d flows given up", a.Dead)
	}
}

// A node without the lease knows nothing of the ends.
func TestIdleFlowIsLeftAloneWithoutLease(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.ProbeInterval, c.ProbeCount = time.Nanosecond, 1 })
	idleFlow(f)
	f.must(f.RevokeLease(vip.Addr()))
	for range 3 {
		f.must(f.sweep())
	}
	if f.entries() != 2 || f.probes.probed != 0 {
		t.Errorf("%d entries left, %d asked after", f.entries(), f.probes.probed)
	}
}

// A flow that ends, or is forgotten, while its ends are asked is no trouble.
func TestIdleFlowIsGoneBeforeItAnswers(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.ProbeInterval = time.Hour })
	idleFlow(f)
	f.must(f.sweep())
	if n := len(f.probes.asked); n != 1 {
		t.Fatalf("%d questions are open, want 1", n)
	}
	if _, err := f.FlushFlows(vip.Addr()); err != nil {
		t.Fatal(err)
	}
	f.must(f.sweep())
	if n := len(f.probes.asked); n != 0 {
		t.Errorf("%d questions are open about a flow that is gone", n)
	}
}
