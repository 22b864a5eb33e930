package xdp

import (
	"slices"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// The packet tables, on one balancer: to load one takes a second.
func TestPackets(t *testing.T) {
	f := newDualFixture(t, func(c *Config) { c.SNATLow, c.SNATHigh = 20000, 20999 })
	for _, table := range []struct {
		name  string
		casts []cast
		test  func(*fixture, cast)
	}{
		{"conversation", casts(), testConversation},
		{"who closes first", families, testWhoClosesFirst},
		{"resets", families, testResets},
		{"unknown segments", casts(), testUnknownSegments},
		{"SYN on a flow there is", casts(), testSYNOnAFlow},
		{"fenced", casts(), testFenced},
		{"headers", families, testHeaders},
		{"hop limit", casts(), testHopLimit},
		{"client moves", families, testClientMoves},
		{"connect time", families, testConnectTime},
		{"expiry is no drift", families, testExpiryIsNoDrift},

		{"states", families, testStates},
		{"full", casts(), testFull},
		{"limits are passed over", families, testLimits},
		{"backup", families, testBackup},
		{"round robin", families, testRoundRobin},
		{"random of two", families, testRandomTwo},
		{"least connections", families, testLeastConnections},
		{"slow start", families, testSlowStart},
		{"NAT addresses", families, testNATAddresses},
		{"allowed networks", families, testAllowed},

		{"client address", casts(), testClientAddress},
		{"no room for the client address", casts(), testNoClientAddress},
		{"refused SYN", casts(), testRefusedSYN},
		{"unanswered SYN", casts(), testUnansweredSYN},
		{"forged ticket", families, testForgedTicket},
	} {
		t.Run(table.name, func(t *testing.T) { f.sub(t).each(table.casts, table.test) })
	}
}

func testUnknownSegments(f *fixture, c cast) {
	data := c.sends(ack | psh)
	data.payload = "select pg_sleep(1)"
	long := c.sends(ack)
	long.payload, long.options = string(make([]byte, 1400)), linuxOptions
	padded := c.sends(ack)
	padded.padding = 6
	noAck := c.sends(fin)
	noAck.payload, noAck.padding = "abc", 3
	synData := c.sends(syn | fin)
	synData.payload = "abcd"
	wraps := c.sends(0)
	wraps.seq, wraps.payload = 0xffffffff, "ab"
	for _, test := range []struct {
		name    string
		in      segment
		verdict string
		flags   uint8
		seq     uint32
		ack     uint32
	}{
		{"ACK", c.sends(ack), "tx_rst_client", rst, 2000, 0},
		{"data", data, "tx_rst_client", rst, 2000, 0},
		{"a long one with options", long, "tx_rst_client", rst, 2000, 0},
		{"padded", padded, "tx_rst_client", rst, 2000, 0},
		{"SYN and ACK", c.sends(syn | ack), "tx_rst_client", rst, 2000, 0},
		{"FIN and ACK", c.sends(fin | ack), "tx_rst_client", rst, 2000, 0},
		{"no flags", wraps, "tx_rst_client", rst | ack, 0, 1},
		{"FIN with data but no ACK", noAck, "tx_rst_client", rst | ack, 0, 1004},
		{"SYN and FIN with data", synData, "tx_rst_client", rst | ack, 0, 1006},
		{"from a pooler", c.stray(ack), "tx_rst_backend", rst, 9, 0},
		{"SYN-ACK from a pooler", c.stray(syn | ack), "tx_rst_backend", rst, 9, 0},
		{"SYN from a pooler", c.stray(syn), "tx_rst_backend", rst | ack, 0, 8},
	} {
		out := f.expect(test.in, test.verdict)
		if out.src != test.in.dst || out.dst != test.in.src || out.srcMAC != lbMAC || out.dstMAC != test.in.srcMAC {
			f.t.Errorf("%s: the reset goes from %s (%x) to %s (%x)", test.name, out.src, out.srcMAC, out.dst, out.dstMAC)
		}
		if out.flags != test.flags || out.seq != test.seq || out.ack != test.ack {
			f.t.Errorf("%s: flags %#x, sequence %d, acknowledgement %d", test.name, out.flags, out.seq, out.ack)
		}
		if out.tags != c.tags || out.payload+out.options != "" || out.padding != 0 || out.ttl != 64 || out.window != 0 {
			f.t.Errorf("%s: the reset is %+v", test.name, out)
		}
	}
	f.wantUnsent(c.sends(rst), "drop_stray_rst")
	f.wantUnsent(c.sends(rst|ack), "drop_stray_rst")
	f.wantUnsent(c.stray(rst), "drop_stray_rst")
	if n := f.entries(); n != 0 {
		f.t.Errorf("%d entries were left behind", n)
	}
}

func testHopLimit(f *fixture, c cast) {
	withHops := func(s segment, hops byte) []byte {
		b := s.frame()
		at := 14 + len(s.tags) + 8
		if c.vip.Addr().Is6() {
			at--
		}
		b[at] = hops
		return b
	}
	k := f.establish(c.syn(1))
	for _, hops := range []byte{0, 1} {
		for _, s := range []segment{c.syn(2), k.c, k.b} {
			in := withHops(s, hops)
			if _, out, v := f.run(in); v != "drop_ttl" || !slices.Equal(out, in) {
				f.t.Errorf("hop limit %d: %s", hops, v)
			}
		}
	}
	f.wantActive(0, 0, 1)
	s := k.c
	s.ttl = 2
	if out := f.expect(s, "tx_forward"); out.ttl != 1 {
		f.t.Errorf("hop limit %d", out.ttl)
	}
}

func testClientMoves(f *fixture, c cast) {
	k := f.establish(c.syn(1))
	k.c.srcMAC = macAddr{0x02, 0, 0, 0, 0, 0x51}
	f.expect(k.c, "tx_forward")
	if got := f.expect(k.b, "tx_reverse"); got.dstMAC != k.c.srcMAC {
		f.t.Errorf("the reply goes to %x", got.dstMAC)
	}
}

// The sum of the buckets is one a handshake, in those that the sum of the times
// allows.
func testConnectTime(f *fixture, c cast) {
	f.must(f.SetServices([]lb.Service{c.service(1)}))
	const handshakes = 20
	for n := range handshakes {
		in := c.syn(n)
		got := f.expect(in, "tx_new")
		if n%2 == 0 {
			f.expect(in, "tx_forward")
		}
		f.expect(got.answer(syn|ack), "tx_reverse")
		f.expect(got.answer(syn|ack), "tx_reverse") // sent again: counted once
	}
	slow := c.syn(handshakes)
	got := f.expect(slow, "tx_new")
	f.ageSYN(c, slow.src)
	f.expect(got.answer(syn|ack), "tx_reverse")
	b := f.backends()[0]
	var count uint64
	var least, most float64 // microseconds
	for i, n := range b.ConnectTime {
		count += n
		if i > 0 {
			least += float64(n) * float64(uint64(1)<<(i-1))
		}
		most += float64(n) * float64(uint64(1)<<i)
	}
	sum := float64(b.ConnectTimeSum.Nanoseconds()) / 1000
	if count != handshakes+1 || sum < least || sum > most {
		f.t.Errorf("%d handshakes in %v, in all %v", count, b.ConnectTime, b.ConnectTimeSum)
	}
	if b.ConnectTime[20] != 1 { // 2^19 to 2^20 us: a second and a little
		if b.ConnectTime[21] != 1 {
			f.t.Errorf("the handshake of a second is not where it belongs: %v", b.ConnectTime)
		}
	}
}

// Flows whose time is up are taken out between the two counts that an audit
// compares: however many there are in each sweep, that is no drift.
func testExpiryIsNoDrift(f *fixture, c cast) {
	defer func(t Timeouts) { f.cfg.Timeouts = t }(f.cfg.Timeouts)
	f.cfg.Timeouts = DefaultTimeouts
	f.cfg.Timeouts.SYN = -time.Hour // however coarse the program's clock is
	f.establish(c.syn(0))
	for n := range 3 {
		f.openMany(c, 1+10*n, 6)
		f.must(f.sweep())
		if a := f.audit.Load(); a.Drift != 0 || a.Orphans != 0 || a.Flows != 1 || a.Live != 1 {
			f.t.Errorf("sweep %d: %+v", n, a.Audit)
		}
	}
}
