package xdp

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

func TestHandshakeIsRewrittenBothWays(t *testing.T) {
	f := newFixture(t)
	in := fromClient(syn)
	for _, payload := range []string{"", "x", "select 1;", "an odd number of bytes."} {
		in.payload = payload
		verdict := "tx_new"
		if payload != "" {
			verdict = "tx_forward"
		}
		out := f.expect(in, verdict)
		if out.srcMAC != lbMAC || out.dstMAC != poolerMAC {
			t.Errorf("MAC addresses %x to %x", out.srcMAC, out.dstMAC)
		}
		if out.src.Addr() != vip.Addr() || out.src.Port() < 10240 || out.dst.Addr() != pooler.Addr() {
			t.Errorf("%s to %s", out.src, out.dst)
		}
		if out.ttl != 63 || out.payload != payload || out.seq != in.seq {
			t.Errorf("TTL %d, payload %q, sequence %d", out.ttl, out.payload, out.seq)
		}
		reply := out.answer(syn | ack)
		reply.payload = payload
		back := f.expect(reply, "tx_reverse")
		if back.srcMAC != lbMAC || back.dstMAC != clientMAC || back.src != vip || back.dst != client {
			t.Errorf("reply goes from %s (%x) to %s (%x)", back.src, back.srcMAC, back.dst, back.dstMAC)
		}
		if back.payload != payload || back.ttl != 63 {
			t.Errorf("reply has payload %q, TTL %d", back.payload, back.ttl)
		}
		in.flags = ack
	}
}

func TestRepliesFollowTheClientsMAC(t *testing.T) {
	f := newFixture(t)
	c, b := f.connect(client)
	c.srcMAC = macAddr{0x02, 0, 0, 0, 0, 0x51}
	f.expect(c, "tx_forward")
	if got := f.expect(b.answer(ack), "tx_reverse"); got.dstMAC != c.srcMAC {
		t.Errorf("reply goes to %x", got.dstMAC)
	}
}

func TestVerdicts(t *testing.T) {
	f := newFixture(t)
	edit := func(s segment, fn func(b []byte) []byte) []byte { return fn(s.frame()) }
	withPort := func(s segment, port uint16) segment {
		s.dst = netip.AddrPortFrom(s.dst.Addr(), port)
		return s
	}
	change := func(s segment, fn func(*segment)) segment { fn(&s); return s }
	for _, test := range []struct {
		name    string
		frame   []byte
		verdict string
	}{
		{"ARP for the VIP", arp("192.168.1.50", "192.168.1.100"), "pass_arp"},
		{"ARP for another", arp("192.168.1.50", "192.168.1.10"), "pass_arp"},
		{"gratuitous ARP", arp("192.168.1.100", "192.168.1.100"), "pass_arp"},
		{"ARP cut short", arp("192.168.1.50", "192.168.1.100")[:40], "pass_truncated"},
		{"IPv6", edit(fromClient(syn), func(b []byte) []byte { b[12], b[13] = 0x86, 0xdd; return b }), "pass_ethertype"},
		{"VLAN", edit(fromClient(syn), func(b []byte) []byte { b[12], b[13] = 0x81, 0; return b }), "pass_ethertype"},
		{"to the node itself", change(fromClient(syn), func(s *segment) { s.dst = netip.MustParseAddrPort("192.168.1.10:22") }).frame(), "pass_not_vip"},
		{"another host's frame", change(fromClient(syn), func(s *segment) { s.dstMAC = poolerMAC }).frame(), "pass_not_mine"},
		{"ping", edit(fromClient(syn), func(b []byte) []byte { b[23] = 1; return b }), "pass_not_tcp"},
		{"ssh to the VIP", withPort(fromClient(syn), 22).frame(), "pass_port"},
		{"stats page on the VIP", withPort(fromClient(ack), 8404).frame(), "pass_port"},
		{"IP header cut short", fromClient(syn).frame()[:30], "pass_truncated"},
		{"IP version 5", edit(fromClient(syn), func(b []byte) []byte { b[14] = 0x55; return b }), "drop_ip_header"},
		{"IP header length 16", edit(fromClient(syn), func(b []byte) []byte { b[14] = 0x44; return b }), "drop_ip_header"},
		{"total length below the header", edit(fromClient(syn), func(b []byte) []byte { b[16], b[17] = 0, 19; return b }), "drop_ip_header"},
		{"total length beyond the frame", edit(fromClient(syn), func(b []byte) []byte { b[17]++; return b }), "drop_ip_header"},
		{"IP options", change(fromClient(syn), func(s *segment) { s.ipOptions = 1 }).frame(), "drop_ip_options"},
		{"first fragment", change(fromClient(syn), func(s *segment) { s.fragment = 0x2000 }).frame(), "drop_fragment"},
		{"later fragment", change(fromClient(syn), func(s *segment) { s.fragment = 100 }).frame(), "drop_fragment"},
		{"TCP header cut short", edit(fromClient(syn), func(b []byte) []byte { b[17] = 39; return b[:53] }), "drop_tcp_header"},
		{"TCP data offset 4", edit(fromClient(syn), func(b []byte) []byte { b[46] = 4 << 4; return b }), "drop_tcp_header"},
		{"TCP data offset beyond the packet", edit(fromClient(syn), func(b []byte) []byte { b[46] = 15 << 4; return b }), "drop_tcp_header"},
		{"stray reset", fromClient(rst).frame(), "drop_stray_rst"},
		{"stray reset from a pooler", segment{srcMAC: poolerMAC, dstMAC: lbMAC, src: pooler, dst: netip.AddrPortFrom(vip.Addr(), 20000), flags: rst}.frame(), "drop_stray_rst"},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := &fixture{Balancer: f.Balancer, t: t}
			action, out, verdict := f.run(test.frame)
			if verdict != test.verdict {
				t.Fatalf("verdict %s, want %s", verdict, test.verdict)
			}
			want := uint32(xdpDrop)
			if verdict[:4] == "pass" {
				want = xdpPass
			}
			if action != want {
				t.Errorf("action %d, want %d", action, want)
			}
			if string(out) != string(test.frame) {
				t.Error("the packet was changed")
			}
		})
	}
	if n := f.entries(); n != 0 {
		t.Errorf("%d entries were left behind", n)
	}
}

func TestMinimumFramePaddingIsNotPayload(t *testing.T) {
	f := newFixture(t)
	in := fromClient(syn)
	in.padding = 6
	out := f.expect(in, "tx_new")
	if out.payload != "" || out.padding != 6 {
		t.Errorf("payload %q, padding %d", out.payload, out.padding)
	}
}

func TestTTLIsNotForwardedBelowOne(t *testing.T) {
	f := newFixture(t)
	for _, ttl := range []uint8{0, 1} {
		frame := fromClient(syn).frame()
		frame[14+8] = ttl
		if _, _, v := f.run(frame); v != "drop_ttl" || f.entries() != 0 {
			t.Errorf("verdict %s on a SYN, %d entries", v, f.entries())
		}
	}
	f.connect(client)
	s := fromClient(ack)
	s.ttl = 1
	if _, _, v := f.run(s.frame()); v != "drop_ttl" {
		t.Errorf("verdict %s", v)
	}
}

func TestUnknownSegmentsAreReset(t *testing.T) {
	f := newFixture(t)
	backend := segment{srcMAC: poolerMAC, dstMAC: lbMAC, src: pooler, dst: netip.AddrPortFrom(vip.Addr(), 20000), flags: ack, seq: 7, ack: 9}
	data := fromClient(ack | psh)
	data.payload = "select pg_sleep(1)"
	noAck := fromClient(fin)
	noAck.payload = "abc"
	for _, test := range []struct {
		name    string
		in      segment
		verdict string
		flags   uint8
		seq     uint32
		ack     uint32
	}{
		{"ACK", fromClient(ack), "tx_rst_client", rst, 2000, 0},
		{"data", data, "tx_rst_client", rst, 2000, 0},
		{"SYN and ACK", fromClient(syn | ack), "tx_rst_client", rst, 2000, 0},
		{"FIN with data but no ACK", noAck, "tx_rst_client", rst | ack, 0, 1004},
		{"SYN and FIN", fromClient(syn | fin), "tx_rst_client", rst | ack, 0, 1002},
		{"from a pooler", backend, "tx_rst_backend", rst, 9, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := &fixture{Balancer: f.Balancer, t: t}
			out := f.expect(test.in, test.verdict)
			if out.src != test.in.dst || out.dst != test.in.src || out.srcMAC != lbMAC || out.dstMAC != test.in.srcMAC {
				t.Errorf("reset goes from %s to %s", out.src, out.dst)
			}
			if out.flags != test.flags || out.seq != test.seq || out.ack != test.ack || out.payload != "" {
				t.Errorf("flags %#x, sequence %d, acknowledgement %d, payload %q", out.flags, out.seq, out.ack, out.payload)
			}
		})
	}
	if n := f.entries(); n != 0 {
		t.Errorf("%d entries were left behind", n)
	}
}

// The bucket is a CPU's: a burst of 2000 and 10000 a second.
func TestResetsAreLimited(t *testing.T) {
	f := newFixture(t)
	const sent = 20000
	in := fromClient(ack).frame()
	start := time.Now()
	for range sent {
		if _, err := f.progs.Balancer.Run(&ebpf.RunOptions{Data: in}); err != nil {
			t.Fatal(err)
		}
	}
	elapsed := time.Since(start)
	counts := make(map[string]uint64)
	for _, v := range f.verdictCounts() {
		counts[v.Name] = v.Count
	}
	resets, dropped := counts["tx_rst_client"], counts["drop_rst_limit"]
	most := uint64(runtime.NumCPU()) * (2000 + uint64(elapsed.Seconds()*10000) + 100)
	if resets+dropped != sent || resets > most {
		t.Errorf("%d resets and %d dropped of %d in %s", resets, dropped, sent, elapsed)
	}
	if dropped == 0 && most < sent {
		t.Error("the limit never came into force")
	}
}

func TestNoLeaseNoWord(t *testing.T) {
	f := newFixture(t)
	c, b := f.connect(client)
	f.must(f.RevokeLease(vip.Addr()))
	other := fromClient(syn)
	other.src = clientNumber(1)
	stats := fromClient(syn)
	stats.dst = netip.AddrPortFrom(vip.Addr(), 8404)
	for _, test := range []struct {
		name    string
		frame   []byte
		verdict string
	}{
		{"an established flow", c.frame(), "drop_fenced"},
		{"its replies", b.answer(ack).frame(), "drop_fenced"},
		{"a new flow", other.frame(), "drop_fenced"},
		{"a backend's unknown segment", segment{srcMAC: poolerMAC, dstMAC: lbMAC, src: pooler, dst: netip.AddrPortFrom(vip.Addr(), 1), flags: ack}.frame(), "drop_fenced"},
		{"ARP for the VIP", arp("192.168.1.50", "192.168.1.100"), "drop_fenced_arp"},
		{"the other node's announcement", arp("192.168.1.100", "192.168.1.100"), "pass_arp"},
		{"ARP for the node", arp("192.168.1.50", "192.168.1.10"), "pass_arp"},
		{"the stats page", stats.frame(), "pass_port"},
	} {
		if _, _, v := f.run(test.frame); v != test.verdict {
			t.Errorf("%s: verdict %s, want %s", test.name, v, test.verdict)
		}
	}
	f.must(f.RenewLease(vip.Addr(), time.Hour))
	f.expect(c, "tx_forward")
	if got := f.active(); got[0]+got[1]+got[2] != 1 {
		t.Errorf("active counts %v", got)
	}
}

func TestNoBackendUpIsToldAtOnce(t *testing.T) {
	f := newFixture(t)
	for i, state := range []lb.State{lb.Down, lb.Draining, lb.Maintenance} {
		f.must(f.setState(threePoolers().Backends[i].Name, state))
	}
	out := f.expect(fromClient(syn), "tx_rst_no_backend")
	if out.flags != rst|ack || out.ack != 1001 || out.dst != client {
		t.Errorf("flags %#x, acknowledgement %d, to %s", out.flags, out.ack, out.dst)
	}
	if n := f.entries(); n != 0 {
		t.Errorf("%d entries were left behind", n)
	}
}

// Whatever comes in, one verdict goes out, and no packet is let through to the
// kernel that belongs to a service.
func TestGarbageIsCountedAndHarmless(t *testing.T) {
	f := newFixture(t)
	rng := rand.New(rand.NewPCG(1, 2))
	f.connect(client)
	for range 5000 {
		s := fromClient(uint8(rng.Uint32()))
		if rng.IntN(2) == 0 {
			s.src = clientNumber(rng.IntN(1000))
		}
		b := s.frame()
		for range rng.IntN(4) {
			b[rng.IntN(len(b))] ^= byte(1 << rng.IntN(8))
		}
		b = b[:14+rng.IntN(len(b)-13)]
		action, _, verdict := f.run(b)
		if action == 0 {
			t.Fatalf("aborted on %x", b)
		}
		if verdict == "pass_not_tcp" && b[23] == 6 {
			t.Fatalf("a segment for the service was passed: %x", b)
		}
	}
	if _, err := f.FlushFlows(vip.Addr()); err != nil {
		t.Fatal(err)
	}
	if got := f.active(); got[0]|got[1]|got[2] != 0 {
		t.Errorf("active counts %v after all flows were flushed", got)
	}
}

func TestChecksumsOverManyAddresses(t *testing.T) {
	f := newFixture(t)
	rng := rand.New(rand.NewPCG(3, 4))
	for range 1000 {
		var ip [4]byte
		binary.BigEndian.PutUint32(ip[:], rng.Uint32())
		s := fromClient(syn)
		s.src = netip.AddrPortFrom(netip.AddrFrom4(ip), uint16(rng.Uint32()))
		s.seq, s.ttl = rng.Uint32(), uint8(2+rng.IntN(254))
		s.payload = string(make([]byte, rng.IntN(3)))
		f.expect(f.expect(s, "tx_new").answer(syn|ack), "tx_reverse")
	}
}
