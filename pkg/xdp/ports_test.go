package xdp

import (
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

const portRange = 1000

// Random probes, 32 of them: up to half of the ports, none fails; up to 90 %,
// one flow in a thousand did with one backend (169 of 150,000, measured), and
// with three, which are tried in turn, none; and all ports can be had.
func TestSNATPortsFillUp(t *testing.T) {
	f := newDualFixture(t, func(c *Config) {
		c.HalfOpenFlows, c.SNATLow, c.SNATHigh, c.FlowTableSize = 4096, 30000, 30000+portRange-1, 16384
	})
	f.each(families, func(f *fixture, c cast) {
		f.setBucket(bucketRST, 1<<40) // no limit
		for _, poolers := range []int{1, 3} {
			f.serve(c.service(poolers))
			testFill(f, c, poolers)
		}
	})
	f.each(families, testPortsRest)
}

// quick sends a segment without asking for its verdict.
func (f *fixture) quick(s segment) segment {
	f.t.Helper()
	opts := ebpf.RunOptions{Data: s.frame(), DataOut: make([]byte, 512)}
	action, err := f.progs.Balancer.Run(&opts)
	f.must(err)
	if action != xdpTX {
		f.t.Fatalf("action %d", action)
	}
	return decode(f.t, opts.DataOut)
}

func testFill(f *fixture, c cast, poolers int) {
	capacity := poolers * portRange
	given := make(map[[2]netip.AddrPort]bool)
	refused, client := 0, 0
	next := func() {
		in := c.syn(client)
		client++
		out := f.quick(in)
		if out.dst == in.src {
			if out.flags != rst|ack || out.ack != in.seq+1 {
				f.t.Fatalf("refused by %+v", out)
			}
			refused++
			return
		}
		if p := out.src.Port(); p < 30000 || p >= 30000+portRange || out.src.Addr() != c.vip.Addr() || c.slot(out.dst) < 0 {
			f.t.Fatalf("from %s to %s", out.src, out.dst)
		}
		if at := [2]netip.AddrPort{out.src, out.dst}; given[at] {
			f.t.Fatalf("%s to %s was given twice", out.src, out.dst)
		} else {
			given[at] = true
		}
	}
	check := func(percent, most int) {
		f.t.Helper()
		var active int64
		for _, n := range f.active() {
			active += n
		}
		if refused > most || int(active) != len(given) || f.entries() != 2*len(given) {
			f.t.Errorf("%d poolers, %d %%: %d of %d refused, %d active, %d entries", poolers, percent, refused, client, active, f.entries())
		}
	}
	// With one pooler one failure is to be expected up to 90 %: more than ten are
	// one in 10^8.
	most := map[int]int{10: 0, 50: 0, 90: 10}
	if poolers > 1 {
		most[90] = 2
	}
	for _, percent := range []int{10, 50, 90} {
		for len(given) < capacity*percent/100 {
			next()
		}
		check(percent, most[percent])
	}
	for len(given) < capacity && client < 40*capacity {
		next()
	}
	check(100, client)
	if len(given) != capacity {
		f.t.Fatalf("%d of %d ports could be had", len(given), capacity)
	}
	f.t.Logf("%d poolers: all %d ports given out to %d clients, %d of which were refused", poolers, capacity, client, refused)
	refused = 0
	for range 50 {
		next()
	}
	if refused != 50 {
		f.t.Errorf("%d of 50 were refused by a full range", refused)
	}
	check(100, client)
}

// A port is free again 3 s after the client has closed first, and 60 s after
// the backend did: it holds TIME-WAIT then.
func testPortsRest(f *fixture, c cast) {
	f.setBucket(bucketRST, 1<<40)
	f.cfg.Timeouts = DefaultTimeouts
	f.serve(c.service(1))
	flows := make([]talk, 0, portRange)
	for n := 0; len(flows) < portRange; n++ {
		in := c.syn(n)
		out := f.quick(in)
		if out.dst == in.src {
			continue
		}
		reply := out.answer(syn | ack)
		reply.seq = 9000
		f.quick(reply)
		in.flags, in.seq, in.ack = ack, in.seq+1, 9001
		f.quick(in)
		reply.flags, reply.seq = ack, 9001
		flows = append(flows, talk{in, reply})
	}
	const each = 40
	end := func(first, second *segment, reply *uint32) {
		first.flags = fin | ack
		f.quick(*first)
		second.flags, *reply = fin|ack, first.seq+1
		f.quick(*second)
	}
	byClient, byBackend, byReset := make(map[uint16]bool), make(map[uint16]bool), make(map[uint16]bool)
	for i := range each {
		k := flows[i]
		end(&k.c, &k.b, &k.b.ack)
		f.wantState(c, k.c.src, "closed")
		byClient[k.b.dst.Port()] = true
		k = flows[each+i]
		end(&k.b, &k.c, &k.c.ack)
		f.wantState(c, k.c.src, "time_wait")
		byBackend[k.b.dst.Port()] = true
		k = flows[2*each+i]
		k.c.flags = rst
		f.quick(k.c)
		f.wantState(c, k.c.src, "reset")
		byReset[k.b.dst.Port()] = true
	}
	f.wantActive(portRange - 3*each)
	client := 100000
	// open takes all ports that can be had and wants them to be these.
	open := func(when string, want map[uint16]bool) {
		f.t.Helper()
		f.must(f.sweep())
		// One free port is found once in 31 times.
		for tries := 0; tries < 3000 && (len(want) > 0 || tries < 20); tries++ {
			in := c.syn(client)
			client++
			out := f.quick(in)
			if out.dst == in.src {
				continue
			}
			if !want[out.src.Port()] {
				f.t.Fatalf("%s: port %d was given out, or twice", when, out.src.Port())
			}
			delete(want, out.src.Port())
		}
		if len(want) > 0 {
			f.t.Errorf("%s: %d ports are not free", when, len(want))
		}
	}
	open("at once", nil)
	f.getOlder(c, 2*time.Second)
	open("after 2 s", nil)
	f.getOlder(c, 2*time.Second)
	open("after 4 s, closed by the client", byClient)
	f.getOlder(c, 4*time.Second)
	open("after 8 s", nil)
	f.getOlder(c, 4*time.Second)
	open("after 12 s, reset", byReset)
	f.getOlder(c, 45*time.Second)
	open("after 57 s", nil)
	f.getOlder(c, 5*time.Second)
	open("after 62 s, closed by the backend", byBackend)
	f.wantActive(portRange)
	f.wantNoDrift()
}

// getOlder has all closed flows have been silent for longer.
func (f *fixture) getOlder(c cast, d time.Duration) {
	f.t.Helper()
	jiffy, err := jiffyLength()
	f.must(err)
	by := uint32(d/jiffy) >> ageShift
	if c.vip.Addr().Is4() {
		getOlder(f, &f.tables.four, by)
	} else {
		getOlder(f, &f.tables.six, by)
	}
}

func getOlder[A address](f *fixture, tables *family[A], by uint32) {
	f.t.Helper()
	var forward []flowKey[A]
	var batch flowBatch[A]
	f.must(batch.each(tables.flows, func(k *flowKey[A], row *flowRow[A]) bool {
		if row.has(balancerFlowFlagFLOW_FORWARD | balancerFlowFlagFLOW_CLOSED) {
			forward = append(forward, *k)
		}
		return true
	}))
	older := func(k flowKey[A]) (row flowRow[A]) {
		f.must(tables.flows.Lookup(k, &row))
		row.Seen -= by
		f.must(tables.flows.Put(k, row))
		return row
	}
	for _, k := range forward {
		row := older(k)
		older(row.peerKey())
	}
}
