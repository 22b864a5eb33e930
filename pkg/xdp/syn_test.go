package xdp

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// clientOption is what a service with client addresses puts before the options
// of a SYN (RFC 6994): kind 254, its length, "PS", address, and for IPv4 port
// and padding.
func clientOption(from netip.AddrPort) string {
	if from.Addr().Is4() {
		b := append([]byte{254, 10, 'P', 'S'}, from.Addr().AsSlice()...)
		return string(append(binary.BigEndian.AppendUint16(b, from.Port()), 1, 1))
	}
	return string(append([]byte{254, 20, 'P', 'S'}, from.Addr().AsSlice()...))
}

// label is the flow label of a SYN that tells the client's port.
func (c cast) label(from netip.AddrPort) uint32 {
	if c.vip.Addr().Is4() {
		return 0
	}
	return uint32(from.Port())
}

// wantSYN wants the client's SYN as the program writes it anew.
func (f *fixture) wantSYN(c cast, out, in segment, options string, label uint32) {
	f.t.Helper()
	want := in
	want.srcMAC, want.dstMAC, want.src, want.dst = lbMAC, poolerMAC, out.src, out.dst
	want.options, want.label, want.ttl, want.padding, want.payload = options, label, 64, 0, ""
	if in.window == 0 {
		want.window = 65535
	}
	want.ack = 0
	if out != want {
		f.t.Errorf("the SYN arrives as\n%+v, want\n%+v", out, want)
	}
	if c.slot(out.dst) < 0 || out.src.Addr() != c.vip.Addr() {
		f.t.Errorf("it goes from %s to %s", out.src, out.dst)
	}
}

func (c cast) tellsClient() lb.Service {
	s := c.service(3)
	s.ClientAddress = true
	return s
}

func testClientAddress(f *fixture, c cast) {
	f.must(f.SetServices([]lb.Service{c.tellsClient()}))
	for n, options := range []string{"", "\x02\x04\x05\xb4", linuxOptions} {
		in := c.syn(n)
		in.options, in.window, in.tos, in.padding = options, 64240, 0x02, 6*(1-min(n, 1))
		in.flags |= 0xc0 // ECN is asked for by CWR and ECE (RFC 3168, 6.1.1)
		told := clientOption(in.src)
		out := f.expect(in, "tx_new")
		f.wantSYN(c, out, in, told+options, c.label(in.src))
		again := f.expect(in, "tx_forward")
		if again != out {
			f.t.Errorf("sent again it is %+v, at first %+v", again, out)
		}
		// The SYN-ACK was lost: the next one must tell it as well.
		reply := out.answer(syn | ack)
		back := f.expect(reply, "tx_reverse")
		if back.src != c.vip || back.dst != in.src || back.ack != in.seq+1 {
			f.t.Errorf("the client is answered by %+v", back)
		}
		if again := f.expect(in, "tx_forward"); again != out {
			f.t.Errorf("sent again it is %+v, at first %+v", again, out)
		}
		// What follows has no option.
		in.flags, in.seq, in.ack, in.payload, in.options = ack, in.seq+1, 9001, "hello", ""
		if got := f.expect(in, "tx_forward"); got.options != "" || got.payload != "hello" || got.src != out.src || got.dst != out.dst {
			f.t.Errorf("data arrives as %+v", got)
		}
		f.wantState(c, in.src, "established")
	}
	f.wantActive(1, 1, 1)
}

// Where there is no room, the SYN is the client's own, but made anew, too: its
// data does not go with it. And then the client may not call itself another.
func testNoClientAddress(f *fixture, c cast) {
	f.must(f.SetServices([]lb.Service{c.tellsClient()}))
	room := 40 - len(clientOption(c.client)) // RFC 9293, 3.1
	pad := func(n int) string { return linuxOptions + string(slices.Repeat([]byte{1}, n-len(linuxOptions))) }
	fits := c.syn(0)
	fits.options = pad(room)
	f.wantSYN(c, f.expect(fits, "tx_new"), fits, clientOption(fits.src)+fits.options, c.label(fits.src))
	for n, change := range []func(*segment){
		func(s *segment) { s.options = pad(room + 4) },
		func(s *segment) { s.options = pad(40) },
		func(s *segment) { s.payload = "early data" },
		func(s *segment) { s.payload, s.options = "e", linuxOptions },
	} {
		in := c.syn(n + 1)
		change(&in)
		options, label := in.options, in.label
		if len(in.options) <= room {
			options, label = clientOption(in.src)+options, c.label(in.src)
		}
		for _, verdict := range []string{"tx_new", "tx_forward"} {
			f.wantSYN(c, f.expect(in, verdict), in, options, label)
		}
	}
	forged := clientOption(c.number(1000))
	in := c.syn(10)
	in.options = forged // room: ours comes before it
	f.wantSYN(c, f.expect(in, "tx_new"), in, clientOption(in.src)+forged, c.label(in.src))
	in = c.syn(11)
	for at := 0; at+len(forged) <= 40; at++ {
		full := []byte(pad(40))
		copy(full[at:], forged)
		in.options = string(full)
		f.wantUnsent(in, "drop_client_option")
	}
	if _, ok := f.forwardHalf(c, in.src); ok {
		f.t.Error("a flow was left behind")
	}
	in.options = pad(40)
	f.expect(in, "tx_new")
}

// ownLabel is the flow label of a client's packets.
func (c cast) ownLabel() uint32 {
	if c.vip.Addr().Is4() {
		return 0
	}
	return 0x54321
}

// bothWays runs a test for a service that sends SYNs as they came, and for one
// that tells the client's address in them.
func (f *fixture) bothWays(c cast, test func(in segment, options string, label uint32)) {
	for n, tells := range []bool{false, true} {
		s := c.service(3)
		s.ClientAddress = tells
		f.serve(s)
		in := c.syn(n)
		in.options, in.tos, in.window, in.label = linuxOptions, 0x02, 64240, c.ownLabel()
		in.flags |= 0xc0
		options, label := linuxOptions, c.ownLabel()
		if tells {
			options, label = clientOption(in.src)+options, c.label(in.src)
		}
		test(in, options, label)
	}
}

func testRefusedSYN(f *fixture, c cast) {
	f.bothWays(c, func(in segment, options string, label uint32) {
		got := f.expect(in, "tx_new")
		asked := []int{c.slot(got.dst)}
		for i := range 2 {
			refusal := got.answer(rst | ack)
			refusal.padding, refusal.ttl = 6*i, 60
			got = f.expect(refusal, "tx_redispatch_refused")
			f.wantSYN(c, got, in, options, label)
			asked = append(asked, c.slot(got.dst))
			f.wantActive(0, 0, 1)
			f.wantState(c, in.src, "syn_sent")
			if n := f.entries(); n != 2 {
				f.t.Errorf("%d entries", n)
			}
		}
		slices.Sort(asked)
		if !slices.Equal(asked, []int{0, 1, 2}) {
			f.t.Errorf("asked %v", asked)
		}
		// It lives on where it was accepted, as any other.
		accepted := f.expect(got.answer(syn|ack), "tx_reverse")
		if accepted.src != c.vip || accepted.dst != in.src || accepted.dstMAC != clientMAC || accepted.tags != c.tags {
			f.t.Errorf("the client gets %+v", accepted)
		}
		for i, b := range f.backends() {
			refused := uint64(1)
			if i == c.slot(got.dst) {
				refused = 0
			}
			if b.Total != 1 || b.Refused != refused || b.Redispatched != refused {
				f.t.Errorf("%s: %d in all, %d refused, %d redispatched", b.Name, b.Total, b.Refused, b.Redispatched)
			}
		}
	})
	// Nobody else to ask: the client hears of it.
	f.bothWays(c, func(in segment, _ string, _ uint32) {
		got := f.expect(in, "tx_new")
		for range 2 {
			got = f.expect(got.answer(rst|ack), "tx_redispatch_refused")
		}
		last := f.expect(got.answer(rst|ack), "tx_reverse")
		if last.flags != rst|ack || last.src != c.vip || last.dst != in.src || last.ack != in.seq+1 || last.tags != c.tags {
			f.t.Errorf("the client gets %+v", last)
		}
		f.wantActive(0, 0, 0)
	})
}

func testUnansweredSYN(f *fixture, c cast) {
	f.bothWays(c, func(in segment, options string, label uint32) {
		first := f.expect(in, "tx_new")
		asked := []int{c.slot(first.dst)}
		got := first
		for range 2 {
			f.ageSYN(c, in.src)
			got = f.expect(in, "tx_redispatch_silent")
			asked = append(asked, c.slot(got.dst))
			if got.options != options || got.label != label || got.flags != in.flags || got.seq != in.seq || got.tos != in.tos {
				f.t.Errorf("the SYN arrives as %+v", got)
			}
		}
		slices.Sort(asked)
		if !slices.Equal(asked, []int{0, 1, 2}) {
			f.t.Errorf("asked %v", asked)
		}
		f.ageSYN(c, in.src)
		if again := f.expect(in, "tx_forward"); again.dst != got.dst || again.src != got.src || again.options != options {
			f.t.Errorf("with nobody else to ask it is %+v", again)
		}
		f.wantActive(0, 0, 1)
		f.expect(first.answer(syn|ack), "tx_rst_backend")
		f.expect(got.answer(syn|ack), "tx_reverse")
		// Accepted: however long ago, it moves no more, though others could
		// be asked.
		other := in
		other.src = c.number(50)
		accepted := f.expect(other, "tx_new")
		f.expect(accepted.answer(syn|ack), "tx_reverse")
		f.ageSYN(c, other.src)
		if again := f.expect(other, "tx_forward"); again.dst != accepted.dst || again.src != accepted.src {
			f.t.Errorf("accepted by %s, sent to %s", accepted.dst, again.dst)
		}
		// The others have taken it to be slow, not to refuse.
		for _, b := range f.backends() {
			if b.Refused != 0 {
				f.t.Errorf("%s: %d refused", b.Name, b.Refused)
			}
		}
	})
}

// Once the client has sent FIN, its flow has no ticket any more: the number
// that it keeps there is the client's to choose, and must not pass for another
// flow's.
func testForgedTicket(f *fixture, c cast) {
	victim := c.syn(1)
	victim.options = linuxOptions
	first := f.expect(victim, "tx_new")
	forge := func(n int) (in, got segment) {
		in = c.syn(n)
		in.seq = 50
		got = f.expect(in, "tx_new")
		in.flags, in.seq = fin|ack, f.ticket(c, victim.src)-1
		f.expect(in, "tx_forward")
		return in, got
	}
	in, got := forge(2)
	refusal := got.answer(rst | ack)
	refusal.ack = victim.seq + 1
	back := f.expect(refusal, "tx_reverse")
	if back.dst != in.src {
		f.t.Errorf("the reset goes to %s", back.dst)
	}
	f.wantState(c, in.src, "reset")
	// Nor is the time since the other's SYN that of this handshake.
	_, got = forge(3)
	f.expect(got.answer(syn|ack), "tx_reverse")
	for _, b := range f.backends() {
		if b.ConnectTimeSum != 0 {
			f.t.Errorf("%s is said to have taken %s", b.Name, b.ConnectTimeSum)
		}
	}
	// Nor is it the other's place that is given back when the client confirms.
	in, got = forge(4)
	f.expect(got.answer(syn|ack), "tx_reverse")
	in.flags, in.ack = ack, 1
	f.expect(in, "tx_forward")
	f.wantState(c, in.src, "fin_client")
	f.expect(first.answer(rst|ack), "tx_redispatch_refused")
}

// ticket reads the field of that name of a client's flow.
func (f *fixture) ticket(c cast, from netip.AddrPort) uint32 {
	f.t.Helper()
	if c.vip.Addr().Is4() {
		return ticketOf(f, &f.tables.four, c, from)
	}
	return ticketOf(f, &f.tables.six, c, from)
}

func ticketOf[A address](f *fixture, tables *family[A], c cast, from netip.AddrPort) uint32 {
	f.t.Helper()
	var row flowRow[A]
	f.must(tables.flows.Lookup(tables.keyOf(from, c.vip), &row))
	return row.Ticket
}

// ageSYN has a client's SYN be as old as its first retransmission finds it.
func (f *fixture) ageSYN(c cast, from netip.AddrPort) {
	f.t.Helper()
	name := balancerMapHandshakes
	if c.vip.Addr().Is6() {
		name = balancer6MapHandshakes6
	}
	handshakes := f.pinned(name)
	defer handshakes.Close()
	place := f.ticket(c, from) & (f.cfg.HalfOpenFlows - 1)
	if c.vip.Addr().Is4() {
		ageHandshake[addr4](f, handshakes, place)
	} else {
		ageHandshake[addr6](f, handshakes, place)
	}
}

func ageHandshake[A address](f *fixture, handshakes *ebpf.Map, place uint32) {
	f.t.Helper()
	var row handshakeRow[A]
	f.must(handshakes.Lookup(place, &row))
	row.OpenedNs -= uint64(time.Second)
	f.must(handshakes.Put(place, row))
}

// Half-open flows are a ring: one more, and the oldest gives way. Those that
// are established, or were, are not in it.
func TestHalfOpenFlowsAreBounded(t *testing.T) {
	const ring = 64
	f := newDualFixture(t, func(c *Config) { c.HalfOpenFlows = ring })
	f.each(families, func(f *fixture, c cast) {
		var lives []talk
		for n := range 50 {
			lives = append(lives, f.establish(c.syn(n)))
		}
		closing := f.establish(c.syn(50))
		f.clientSays(&closing, fin|ack, "")
		early := c.syn(51) // closed by the client before it was accepted
		gone := f.expect(early, "tx_new")
		// And its FIN ends in the very number that its ticket had.
		early.flags, early.seq = fin|ack, f.ticket(c, early.src)-1
		f.expect(early, "tx_forward")
		accepted := c.syn(52) // but not confirmed
		f.expect(f.expect(accepted, "tx_new").answer(syn|ack), "tx_reverse")
		total := 53
		const halfOpen = 5 * ring
		ports := make(map[netip.AddrPort]segment) // of the half-open, by client
		for n := range halfOpen {
			in := c.syn(1000 + n)
			ports[in.src] = f.expect(in, "tx_new")
			total++
		}
		// The oldest are gone, the newest are all there.
		for n := range halfOpen {
			want := ""
			if n >= halfOpen-ring {
				want = "syn_sent"
			}
			f.wantState(c, c.number(1000+n), want)
		}
		f.wantState(c, accepted.src, "")
		f.wantState(c, early.src, "fin_client")
		f.wantState(c, closing.c.src, "fin_client")
		const evicted = halfOpen - ring + 1
		var active int64
		var counted, opened uint64
		for _, b := range f.backends() {
			active += b.Active
			counted += b.Evicted
			opened += b.Total
		}
		if active != 52+ring || counted != evicted || opened != uint64(total) {
			f.t.Errorf("%d active, %d evicted, %d in all; want %d, %d, %d", active, counted, opened, 52+ring, evicted, total)
		}
		if n := f.entries(); n != 2*(52+ring) {
			f.t.Errorf("%d entries", n)
		}
		for i := range lives {
			f.clientSays(&lives[i], ack|psh, "select 1")
			if back := f.backendSays(&lives[i], ack|psh, "1"); back.dst != lives[i].c.src {
				f.t.Errorf("the answer for %s went to %s", lives[i].c.src, back.dst)
			}
		}
		f.backendSays(&closing, fin|ack, "")
		f.wantState(c, closing.c.src, "closed")
		f.expect(gone.answer(rst|ack), "tx_reverse")
		// An evicted one: its backend is told, its client sends the SYN again.
		// Not just any: ports are drawn at random, and that of one that is gone
		// may be another's by now.
		users := make(map[[2]netip.AddrPort]int)
		for _, out := range ports {
			users[[2]netip.AddrPort{out.src, out.dst}]++
		}
		n := 1000
		for out := ports[c.number(n)]; users[[2]netip.AddrPort{out.src, out.dst}] > 1; out = ports[c.number(n)] {
			n++
		}
		first := c.syn(n)
		f.expect(ports[first.src].answer(syn|ack), "tx_rst_backend")
		f.expect(first, "tx_new")
		f.wantNoDrift()
	})
}
