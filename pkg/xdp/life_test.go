package xdp

import (
	"net/netip"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// unlike says in what a segment that was sent on differs from the original, but
// for what a hop is to change.
func unlike(out, in segment) string {
	for _, field := range []struct {
		name string
		same bool
	}{
		{"flags", out.flags == in.flags},
		{"sequence", out.seq == in.seq},
		{"acknowledgement", in.flags&ack == 0 || out.ack == in.ack},
		{"window", out.window == max(in.window, 1) || in.window == 0},
		{"payload", out.payload == in.payload},
		{"options", out.options == in.options},
		{"traffic class", out.tos == in.tos},
		{"flow label", out.label == in.label},
		{"tags", out.tags == in.tags},
		{"padding", out.padding == in.padding},
		{"hop limit", out.ttl == 63 && in.ttl == 0 || out.ttl == in.ttl-1},
	} {
		if !field.same {
			return field.name
		}
	}
	return ""
}

func (f *fixture) wantToBackend(c cast, out, in segment) {
	f.t.Helper()
	if what := unlike(out, in); what != "" {
		f.t.Errorf("towards the backend: another %s", what)
	}
	if out.srcMAC != lbMAC || out.dstMAC != poolerMAC || c.slot(out.dst) < 0 || out.src.Addr() != c.vip.Addr() {
		f.t.Errorf("from %s (%x) to %s (%x)", out.src, out.srcMAC, out.dst, out.dstMAC)
	}
	if p := out.src.Port(); p < 20000 || p > 20999 {
		f.t.Errorf("SNAT port %d", p)
	}
}

func (f *fixture) wantToClient(c cast, out, in segment) {
	f.t.Helper()
	if what := unlike(out, in); what != "" {
		f.t.Errorf("towards the client: another %s", what)
	}
	if out.srcMAC != lbMAC || out.dstMAC != clientMAC || out.src != c.vip || out.dst != c.client {
		f.t.Errorf("from %s (%x) to %s (%x)", out.src, out.srcMAC, out.dst, out.dstMAC)
	}
}

// A whole connection, every segment and count of it.
func testConversation(f *fixture, c cast) {
	in := c.sends(syn)
	in.options, in.window, in.padding = linuxOptions, 64240, 2
	in.tos = 0xb8 // expedited forwarding
	if c.vip.Addr().Is6() {
		in.label = 0xabcde
	}
	out := f.expect(in, "tx_new")
	f.wantToBackend(c, out, in)
	f.wantState(c, c.client, "syn_sent")
	reply := out.answer(syn | ack)
	reply.seq, reply.options, reply.window, reply.tos = 5000, linuxOptions, 28960, 0x02
	back := f.expect(reply, "tx_reverse")
	f.wantToClient(c, back, reply)
	f.wantState(c, c.client, "syn_received")
	f.wantActive(0, 0, 1)
	var sent, received int
	say := func(flags uint8, seq, acked uint32, payload, options string) {
		f.t.Helper()
		s := in
		s.flags, s.seq, s.ack, s.payload, s.options, s.padding, s.ttl = flags, seq, acked, payload, options, len(payload)%4, 7
		f.wantToBackend(c, f.expect(s, "tx_forward"), s)
		sent += len(payload) + len(options)
	}
	answer := func(flags uint8, seq, acked uint32, payload, options string) {
		f.t.Helper()
		s := reply
		s.flags, s.seq, s.ack, s.payload, s.options, s.ttl = flags, seq, acked, payload, options, 255
		f.wantToClient(c, f.expect(s, "tx_reverse"), s)
		received += len(payload) + len(options)
	}
	const timestamps = "\x01\x01\x08\x0a\x00\x00\x12\x35\x00\x00\x00\x01"
	say(ack, 1001, 5001, "", timestamps)
	f.wantState(c, c.client, "established")
	for i, payload := range []string{"x", "select 1;", "an odd number of bytes.", string(make([]byte, 1400)), "\xff\xff\xff"} {
		seq := uint32(1001 + 10000*i)
		say(ack|psh, seq, 5001, payload, timestamps)
		answer(ack, 5001, seq+uint32(len(payload)), payload, "")
	}
	f.wantActive(0, 0, 1)
	say(fin|ack|psh, 60000, 5001, "X", "")
	f.wantState(c, c.client, "fin_client")
	f.wantActive(0, 0, 1)
	answer(fin|ack, 5001, 60002, "", "")
	f.wantState(c, c.client, "closed")
	f.wantActive(0, 0, 0)
	say(ack, 60002, 5002, "", "") // the last acknowledgement
	answer(fin|ack, 5001, 60002, "", "")
	f.wantState(c, c.client, "closed")
	f.wantActive(0, 0, 0)

	header := 40 // of a segment without options
	if c.vip.Addr().Is6() {
		header = 60
	}
	var total lb.BackendStats
	for _, b := range f.backends() {
		total.Total += b.Total
		total.Closed += b.Closed
		total.PacketsIn += b.PacketsIn
		total.BytesIn += b.BytesIn
		total.PacketsOut += b.PacketsOut
		total.BytesOut += b.BytesOut
	}
	sent, received = sent+9*header+len(linuxOptions), received+8*header+len(linuxOptions)
	if total.Total != 1 || total.Closed != 1 || total.PacketsIn != 9 || total.PacketsOut != 8 ||
		int(total.BytesIn) != sent || int(total.BytesOut) != received {
		f.t.Errorf("the backends count %+v; in were %d bytes, out %d", total, sent, received)
	}
	f.must(f.Flows(func(fl lb.Flow) bool {
		if fl.Client != c.client || fl.Service != c.vip || fl.Backend != reply.src || fl.SNAT != reply.dst ||
			fl.PacketsIn != 9 || fl.PacketsOut != 8 || int(fl.BytesIn) != sent || int(fl.BytesOut) != received {
			f.t.Errorf("the flow %+v", fl)
		}
		return true
	}))
}

// Who closes first holds TIME-WAIT: the pooler's port rests long only if that
// is the pooler.
func testWhoClosesFirst(f *fixture, c cast) {
	for i, test := range []struct {
		name string
		act  func(k *talk)
	}{
		{"client", func(k *talk) {
			f.clientSays(k, fin|ack, "bye")
			f.wantState(c, k.c.src, "fin_client")
			f.clientSays(&talk{k.c, k.b}, ack, "") // late
			f.backendSays(k, ack, "the rest of it")
			f.wantState(c, k.c.src, "fin_client")
			f.backendSays(k, fin|ack, "")
			f.wantState(c, k.c.src, "closed")
		}},
		{"backend", func(k *talk) {
			f.backendSays(k, fin|ack, "bye")
			f.wantState(c, k.c.src, "fin_backend")
			f.clientSays(k, ack, "the rest of it")
			f.wantState(c, k.c.src, "fin_backend")
			f.clientSays(k, fin|ack, "")
			f.wantState(c, k.c.src, "time_wait")
		}},
		{"both at once, the client's FIN comes by first", func(k *talk) {
			heard := k.b.ack
			f.clientSays(k, fin|ack, "")
			k.b.ack = heard
			f.backendSays(k, fin|ack, "")
			f.wantState(c, k.c.src, "time_wait")
		}},
		{"both at once, data before the client's FIN was heard", func(k *talk) {
			f.clientSays(k, fin|ack, "data")
			k.b.ack-- // the data, not the FIN
			f.backendSays(k, fin|ack, "")
			f.wantState(c, k.c.src, "time_wait")
		}},
		{"client, its FIN sent again", func(k *talk) {
			again := *k
			f.clientSays(k, fin|ack, "")
			f.clientSays(&again, fin|ack, "")
			f.backendSays(k, fin|ack, "")
			f.wantState(c, k.c.src, "closed")
			again = *k
			again.b.seq--
			f.backendSays(&again, fin|ack, "")
			f.wantState(c, k.c.src, "closed")
		}},
		{"client, numbers that wrap", func(k *talk) {
			k.c.seq = ^uint32(0)
			f.clientSays(k, fin|ack, "")
			f.backendSays(k, fin|ack, "")
			f.wantState(c, k.c.src, "closed")
		}},
		{"client, and a reset after it", func(k *talk) {
			f.clientSays(k, fin|ack, "")
			f.backendSays(k, fin|ack, "")
			f.clientSays(k, rst, "")
			f.wantState(c, k.c.src, "reset")
		}},
	} {
		before := f.backends()
		k := f.establish(c.syn(i))
		f.wantActive(0, 0, 1)
		test.act(&k)
		if f.t.Failed() {
			f.t.Fatalf("who closes first: %s", test.name)
		}
		f.wantActive(0, 0, 0)
		for i, b := range f.backends() {
			if b.Resets != before[i].Resets {
				f.t.Errorf("%s: counted as a reset", test.name)
			}
		}
	}
}

func testResets(f *fixture, c cast) {
	const window = 8 << 20
	for i, test := range []struct {
		name string
		ends bool
		send func(k *talk)
	}{
		{"client, as expected", true, func(k *talk) { f.clientSays(k, rst, "") }},
		{"client, in flight", true, func(k *talk) { k.c.seq += window; f.clientSays(k, rst|ack, "") }},
		{"client, beyond", false, func(k *talk) { k.c.seq += window + 1; f.clientSays(k, rst, "") }},
		{"client, before", false, func(k *talk) { k.c.seq--; f.clientSays(k, rst, "") }},
		{"backend, as expected", true, func(k *talk) { f.backendSays(k, rst, "") }},
		{"backend, in flight", true, func(k *talk) { k.b.seq += window; f.backendSays(k, rst|ack, "") }},
		{"backend, beyond", false, func(k *talk) { k.b.seq += window + 1; f.backendSays(k, rst, "") }},
		{"backend, before", false, func(k *talk) { k.b.seq--; f.backendSays(k, rst, "") }},
		{"client, after data that moved the window", true, func(k *talk) {
			f.clientSays(k, ack, "data")
			f.backendSays(k, ack, "")
			f.clientSays(k, rst, "")
		}},
		{"client, from before that data", false, func(k *talk) {
			old := *k
			f.clientSays(k, ack, "data")
			f.backendSays(k, ack, "")
			f.clientSays(&old, rst, "")
		}},
	} {
		k := f.establish(c.syn(i))
		before := f.resets()
		test.send(&k)
		want, ended := "established", uint64(0)
		if test.ends {
			want, ended = "reset", 1
		}
		f.wantState(c, k.c.src, want)
		if got := f.resets() - before; got != ended {
			f.t.Errorf("%s: %d resets counted", test.name, got)
		}
		if f.t.Failed() {
			f.t.Fatal(test.name)
		}
		f.forget(c, k.c.src)
	}
	f.wantActive(0, 0, 0)

	// A flow that has heard nothing yet takes any: it costs nobody anything.
	half := c.syn(100)
	f.expect(half, "tx_new")
	half.flags, half.seq = rst, 77
	f.expect(half, "tx_forward")
	f.wantState(c, half.src, "reset")
	f.wantActive(0, 0, 0)
}

func (f *fixture) resets() (n uint64) {
	for _, b := range f.backends() {
		n += b.Resets
	}
	return n
}

// forget removes one client's flow.
func (f *fixture) forget(c cast, from netip.AddrPort) {
	f.t.Helper()
	family, err := f.tables.of(c.vip.Addr())
	f.must(err)
	_, err = reapWhere(family, func(h *half) bool { return h.has(balancerFlowFlagFLOW_FORWARD) && h.from == from })
	f.must(err)
}

func testSYNOnAFlow(f *fixture, c cast) {
	// Half-open, the same SYN: sent on as it is.
	in := c.syn(1)
	in.options = linuxOptions
	first := f.expect(in, "tx_new")
	again := f.expect(in, "tx_forward")
	if again != first {
		f.t.Errorf("sent again it is %+v, at first %+v", again, first)
	}
	// Half-open, another number: the client has given up the old connection.
	anew := in
	anew.seq += 100000
	second := f.expect(anew, "tx_new")
	if second.src == first.src && second.dst == first.dst {
		f.t.Error("the new connection goes where the old one went")
	}
	f.wantActive(0, 0, 1)
	if n := f.entries(); n != 2 {
		f.t.Errorf("%d entries", n)
	}
	f.expect(first.answer(syn|ack), "tx_rst_backend")

	// Accepted but not confirmed, the same SYN: the client lost the SYN-ACK.
	f.expect(second.answer(syn|ack), "tx_reverse")
	if got := f.expect(anew, "tx_forward"); got.dst != second.dst || got.src != second.src {
		f.t.Errorf("the SYN sent again goes from %s to %s", got.src, got.dst)
	}
	// And another number then.
	anew.seq += 100000
	third := f.expect(anew, "tx_new")
	f.expect(second.answer(ack), "tx_rst_backend")
	f.wantActive(0, 0, 1)

	// Established: the backend answers it, as RFC 5961, 4 says.
	f.expect(third.answer(syn|ack), "tx_reverse")
	confirm := anew
	confirm.flags, confirm.options, confirm.seq = ack, "", anew.seq+1
	f.expect(confirm, "tx_forward")
	f.wantState(c, anew.src, "established")
	if got := f.expect(anew, "tx_forward"); got.dst != third.dst || got.options != linuxOptions {
		f.t.Errorf("a SYN on an established flow goes to %s", got.dst)
	}
	f.wantState(c, anew.src, "established")

	// Over: afresh, at once.
	confirm.flags = rst
	f.expect(confirm, "tx_forward")
	f.wantActive(0, 0, 0)
	fourth := f.expect(anew, "tx_new")
	f.wantActive(0, 0, 1)
	f.expect(third.answer(ack), "tx_rst_backend")
	// In TIME-WAIT too.
	f.expect(fourth.answer(syn|ack), "tx_reverse")
	confirm.flags = ack
	f.expect(confirm, "tx_forward")
	f.expect(fourth.answer(fin|ack), "tx_reverse")
	confirm.flags = fin | ack
	f.expect(confirm, "tx_forward")
	f.wantState(c, anew.src, "time_wait")
	fifth := f.expect(anew, "tx_new")
	if fifth.src == fourth.src && fifth.dst == fourth.dst {
		f.t.Error("the new connection goes where the old one is in TIME-WAIT")
	}
	if n := f.entries(); n != 2 {
		f.t.Errorf("%d entries", n)
	}
}
