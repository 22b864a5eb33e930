package xdp

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// icmpSYN opens a flow, and returns the SYN as it went to the backend, and what
// the backend answers.
func (f *fixture) icmpSYN(cast icmpCast) (sent []byte, synAck segment) {
	f.t.Helper()
	c := segment{srcMAC: clientMAC, dstMAC: lbMAC, src: cast.client, dst: cast.vip, flags: syn, seq: 1000}
	sent = f.mustSend(frameOf(c), "tx_new")
	return sent, segment{
		srcMAC: poolerMAC, dstMAC: lbMAC, flags: syn | ack, seq: 7, ack: c.seq + 1,
		src: netip.AddrPortFrom(cast.pooler.Addr(), destPort(sent)),
		dst: netip.AddrPortFrom(cast.vip.Addr(), sourcePort(sent)),
	}
}

// mustSend wants a frame to leave under the verdict, and returns it.
func (f *fixture) mustSend(frame []byte, verdict string) []byte {
	f.t.Helper()
	action, out, got := f.run(frame)
	if got != verdict || action != xdpTX {
		f.t.Fatalf("verdict %s, want %s; action %d", got, verdict, action)
	}
	return out
}

// A sentOn is a packet as its sender made it and as it left the program.
type sentOn struct {
	name     string
	in, out  []byte
	received netip.Addr // by whom the sender thinks it is
	mac      macAddr    // the sender's
}

// icmpFlow establishes a flow and returns what was sent on in it: to the
// backend and to the client.
func (f *fixture) icmpFlow(cast icmpCast) []sentOn {
	f.t.Helper()
	_, b := f.icmpSYN(cast)
	f.mustSend(frameOf(b), "tx_reverse")
	c := segment{
		srcMAC: clientMAC, dstMAC: lbMAC, src: cast.client, dst: cast.vip,
		flags: ack | psh, seq: 1001, ack: 8, payload: "select 'an odd number of bytes'",
	}
	b.flags, b.seq, b.payload = ack|psh, 8, "an odd number of bytes."
	return []sentOn{
		{"to the backend", frameOf(c), f.mustSend(frameOf(c), "tx_forward"), c.dst.Addr(), c.srcMAC},
		{"to the client", frameOf(b), f.mustSend(frameOf(b), "tx_reverse"), b.dst.Addr(), b.srcMAC},
	}
}

// icmpFamilies runs a test for both, with a service in each.
func icmpFamilies(t *testing.T, test func(t *testing.T, f *fixture, cast icmpCast)) {
	f := newFixture(t, func(c *Config) { c.IPv6 = true })
	six := icmpCasts[1]
	// Of the two ends only this one, so that nothing arrives by itself.
	inNamespace(t, f.ns, func() error {
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/lan0/disable_ipv6", []byte("0"), 0); err != nil {
			return err
		}
		addr, err := netlink.ParseAddr("2001:db8::10/64")
		if err != nil {
			return err
		}
		addr.Flags = unix.IFA_F_NODAD
		return netlink.AddrAdd(f.iface, addr)
	})
	f.neighbours[six.pooler.Addr()] = poolerMAC
	services := []lb.Service{threePoolers(), threePoolers()}
	services[1].Name, services[1].Addr = "postgres6", six.vip
	for i := range services[1].Backends {
		b := &services[1].Backends[i]
		b.Addr = netip.AddrPortFrom(six.pooler.Addr(), b.Addr.Port())
	}
	f.must(f.SetVIPs([]lb.VIPStats{{Addr: vip.Addr()}, {Addr: six.vip.Addr()}}))
	f.must(f.RenewLease(six.vip.Addr(), time.Hour))
	f.must(f.SetServices(services))
	for _, cast := range icmpCasts {
		t.Run(cast.name, func(t *testing.T) { test(t, f.on(t), cast) })
	}
}

// on is the fixture for a subtest.
func (f *fixture) on(t *testing.T) *fixture {
	return &fixture{Balancer: f.Balancer, t: t}
}

// What the sender of a quoted packet gets to see is its own packet.
func TestICMPErrorsReachTheSender(t *testing.T) {
	icmpFamilies(t, func(t *testing.T, f *fixture, cast icmpCast) {
		for _, s := range f.icmpFlow(cast) {
			for _, kind := range icmpKinds {
				// 18 bytes of TCP are what has the checksum.
				for _, length := range []int{8, 9, 12, 17, 18, 19, 20, 27, 1500} {
					t.Run(fmt.Sprintf("%s/%s/%d", s.name, kind.name, length), func(t *testing.T) {
						f := f.on(t)
						in := aboutFrame(s.out, kind, length)
						in.quote = hops(in.quote, 3)
						in.padding = length % 7
						frame := in.frame()
						action, raw, verdict := f.run(frame)
						if verdict != "tx_icmp" || action != xdpTX || len(raw) != len(frame) {
							t.Fatalf("verdict %s, action %d, %d bytes of %d", verdict, action, len(raw), len(frame))
						}
						out := decodeICMP(t, raw)
						if out.srcMAC != lbMAC || macAddr(raw[:6]) != s.mac {
							t.Errorf("MAC addresses %x to %x", out.srcMAC, raw[:6])
						}
						if sender := aboutFrame(s.in, kind, 8).dst; out.src != s.received || out.dst != sender || out.ttl != 63 {
							t.Errorf("%s to %s, TTL %d", out.src, out.dst, out.ttl)
						}
						at := len(frame) - in.padding - len(in.quote) - 8
						if !bytes.Equal(raw[at:at+2], frame[at:at+2]) || out.info != in.info {
							t.Errorf("type and code %x, second word %#x", raw[at:at+2], out.info)
						}
						want := hops(s.in[14:], 4)[:len(in.quote)]
						if length == 17 { // half a checksum cannot be mended
							want[len(want)-1] = in.quote[len(want)-1]
						}
						if !bytes.Equal(out.quote, want) {
							t.Errorf("the quote is\n%x, want\n%x", out.quote, want)
						}
						if !bytes.Equal(raw[len(raw)-in.padding:], frame[len(frame)-in.padding:]) {
							t.Error("bytes beyond the packet were changed")
						}
					})
				}
			}
		}
	})
}

// What is not translated goes as it came, or not at all.
func TestICMPVerdicts(t *testing.T) {
	icmpFamilies(t, func(t *testing.T, f *fixture, cast icmpCast) {
		flow := f.icmpFlow(cast)
		toBackend, toClient := flow[0].out, flow[1].out
		v6 := cast.vip.Addr().Is6()
		header, least, proto := 20, uint32(552), 9
		if v6 {
			header, least, proto = 40, 1280, 6
		}
		about := func(frame []byte, kind icmpKind, change func(e *icmpError)) []byte {
			e := aboutFrame(frame, kind, 20)
			change(&e)
			return e.frame()
		}
		mtu := func(n uint32) func(e *icmpError) { return func(e *icmpError) { e.info = n } }
		// quoted changes bytes of the quote.
		quoted := func(at int, to ...byte) func(e *icmpError) {
			return func(e *icmpError) { copy(e.quote[at:], to) }
		}
		same := func(*icmpError) {}
		type row struct {
			name    string
			frame   []byte
			verdict string
		}
		rows := []row{
			{"echo request", about(toClient, icmpKind{"", 8, 0, 128, 0}, same), "pass_not_tcp"},
			{"echo request without data", about(toClient, icmpKind{"", 8, 0, 128, 0}, func(e *icmpError) { e.quote = nil }), "pass_not_tcp"},
			{"redirect", about(toClient, icmpKind{"", 5, 1, 137, 0}, same), "pass_not_tcp"},
			{"least MTU", about(toClient, tooBig, mtu(least)), "tx_icmp"},
			{"tiny MTU to the backend", about(toClient, tooBig, mtu(least-1)), "drop_icmp"},
			{"tiny MTU to the client", about(toBackend, tooBig, mtu(least-1)), "drop_icmp"},
			{"no MTU", about(toClient, tooBig, mtu(0)), "drop_icmp"},
			{"tiny MTU of another kind", about(toClient, unreachable, mtu(68)), "tx_icmp"},
			{"no quote", about(toClient, tooBig, func(e *icmpError) { e.quote = nil }), "drop_icmp"},
			{"IP header only", about(toClient, tooBig, func(e *icmpError) { e.quote = e.quote[:header] }), "drop_icmp"},
			{"7 bytes of TCP", about(toClient, tooBig, func(e *icmpError) { e.quote = e.quote[:header+7]; e.padding = 20 }), "drop_icmp"},
			{"quote of UDP", about(toClient, unreachable, quoted(proto, unix.IPPROTO_UDP)), "pass_not_tcp"},
			{"quote of another IP version", about(toClient, unreachable, quoted(0, 0x55)), "pass_not_tcp"},
			{"quote of somebody else's packet", about(toClient, tooBig, func(e *icmpError) { e.quote[header-5]++; e.quote[header-17]++ }), "drop_icmp"},
			{"quote of another client's port", about(toClient, tooBig, quoted(header+2, 1, 1)), "drop_icmp"},
			{"quote of another SNAT port", about(toBackend, tooBig, quoted(header, 1, 1)), "drop_icmp"},
			{"quote of the stats page", about(toClient, tooBig, quoted(header, 8404>>8, 8404&255)), "pass_not_tcp"},
			{"tiny MTU for the stats page", about(toClient, tooBig, func(e *icmpError) { e.info = 68; copy(e.quote[header:], []byte{8404 >> 8, 8404 & 255}) }), "pass_not_tcp"},
			{"quote of what was received", about(flow[0].in, tooBig, func(e *icmpError) { e.dst = cast.vip.Addr() }), "drop_icmp"},
			{"last hop", about(toClient, tooBig, func(e *icmpError) { e.ttl = 1 }), "drop_ttl"},
			{"another address", about(toClient, tooBig, func(e *icmpError) {
				e.dst = cast.router
			}), "pass_not_vip"},
			{"ICMP header cut short", func() []byte {
				b := about(toClient, tooBig, func(e *icmpError) { e.quote = nil })
				b[14+3]-- // of the total length, and of IPv6 that of the payload
				if v6 {
					b[14+3], b[14+5] = 0, b[14+5]-1
				}
				return b
			}(), "pass_truncated"},
		}
		if !v6 {
			rows = append(rows,
				row{"first fragment", about(toClient, tooBig, func(e *icmpError) { e.fragment = 0x2000 }), "drop_fragment"},
				row{"later fragment", about(toClient, tooBig, func(e *icmpError) { e.fragment = 100 }), "drop_fragment"},
				row{"IP options", about(toClient, tooBig, func(e *icmpError) { e.options = 1 }), "drop_ip_options"},
				row{"echo request with options", about(toClient, icmpKind{"", 8, 0, 0, 0}, func(e *icmpError) { e.options = 1 }), "drop_ip_options"},
				row{"quote with IP options", about(toClient, tooBig, quoted(0, 0x46)), "pass_not_tcp"},
				row{"quote of a first fragment", about(toClient, tooBig, quoted(6, 0x20, 0)), "tx_icmp"},
				row{"quote of a later fragment", about(toClient, tooBig, quoted(6, 0x20, 100)), "pass_not_tcp"},
			)
		}
		for _, r := range rows {
			t.Run(r.name, func(t *testing.T) { f.on(t).wantICMP(r.frame, r.verdict) })
		}
		f.must(f.RevokeLease(cast.vip.Addr()))
		t.Run("without a lease", func(t *testing.T) {
			f.on(t).wantICMP(about(toClient, tooBig, same), "drop_fenced")
			f.on(t).wantICMP(about(toBackend, tooBig, same), "drop_fenced")
		})
	})
}

// wantICMP wants a frame unchanged unless it is sent.
func (f *fixture) wantICMP(frame []byte, want string) {
	f.t.Helper()
	action, out, verdict := f.run(frame)
	if verdict != want {
		f.t.Fatalf("verdict %s, want %s", verdict, want)
	}
	wantAction := map[string]uint32{"pass": xdpPass, "drop": xdpDrop, "tx_i": xdpTX}[want[:4]]
	if action != wantAction {
		f.t.Errorf("action %d, want %d", action, wantAction)
	}
	if action != xdpTX && !bytes.Equal(out, frame) {
		f.t.Errorf("the packet was changed")
	}
}

// A client that is told would not try again. An MTU it has to know.
func TestICMPErrorAboutASYNIsARefusal(t *testing.T) {
	icmpFamilies(t, func(t *testing.T, f *fixture, cast icmpCast) {
		refused := func() (n uint64) {
			stats, err := f.Stats()
			f.must(err)
			for _, s := range stats.Services {
				for _, b := range s.Backends {
					if s.Addr == cast.vip {
						n += b.Refused
					}
				}
			}
			return n
		}
		sent, synAck := f.icmpSYN(cast)
		blind := aboutFrame(sent, unreachable, 20)
		blind.quote[len(blind.quote)-13]++ // in the sequence number
		for _, step := range []struct {
			e       icmpError
			verdict string
			refused uint64
		}{
			{blind, "drop_icmp", 0},
			{aboutFrame(sent, tooBig, 20), "tx_icmp", 0},
			{aboutFrame(sent, unreachable, 8), "drop_icmp", 1},
			{aboutFrame(sent, expired, 20), "drop_icmp", 2},
		} {
			f.wantICMP(step.e.frame(), step.verdict)
			if n := refused(); n != step.refused {
				t.Errorf("%d refusals, want %d, after %s", n, step.refused, step.e.kind.name)
			}
		}
		f.mustSend(frameOf(synAck), "tx_reverse")
		f.wantICMP(aboutFrame(sent, unreachable, 20).frame(), "tx_icmp")
	})
}

func TestICMPErrorsInTaggedFrames(t *testing.T) {
	icmpFamilies(t, func(t *testing.T, f *fixture, cast icmpCast) {
		for _, s := range f.icmpFlow(cast) {
			plain := aboutFrame(s.out, tooBig, 20).frame()
			tags := []byte{0x88, 0xa8, 0, 7, 0x81, 0, 0x20, 9}
			tagged := bytes.Join([][]byte{plain[:12], tags, plain[12:]}, nil)
			_, out, verdict := f.run(tagged)
			if verdict != "tx_icmp" || !bytes.Equal(out[12:20], tags) {
				t.Fatalf("verdict %s, tags %x", verdict, out[12:20])
			}
			_, want, _ := f.run(plain)
			if !bytes.Equal(out[20:], want[12:]) || !bytes.Equal(out[:12], want[:12]) {
				t.Errorf("the rest differs: %x, want %x", out, want)
			}
		}
	})
}

// A message that was damaged on the way stays damaged: its receiver drops it.
func TestDamagedICMPErrorsStayDamaged(t *testing.T) {
	icmpFamilies(t, func(t *testing.T, f *fixture, cast icmpCast) {
		header := 20
		if cast.vip.Addr().Is6() {
			header = 40
		}
		for _, s := range f.icmpFlow(cast) {
			for _, length := range []int{8, 20, 1500} {
				good := aboutFrame(s.out, tooBig, length).frame()
				bad := bytes.Clone(good)
				at := 14 + header + 8 + header + 5 // in the sequence number
				bad[at] ^= 0x10
				_, want, _ := f.run(good)
				_, out, verdict := f.run(bad)
				want[at] ^= 0x10
				if verdict != "tx_icmp" || !bytes.Equal(out, want) {
					t.Errorf("verdict %s\n%x, want\n%x", verdict, out, want)
				}
			}
		}
	})
}

// Whatever a message quotes, and wherever it ends: what was right about it is
// right when it is sent, and what is not sent is unchanged.
func TestMutatedICMPErrors(t *testing.T) {
	icmpFamilies(t, func(t *testing.T, f *fixture, cast icmpCast) {
		random := rand.New(rand.NewPCG(1, 2))
		flow := f.icmpFlow(cast)
		sent := 0
		for range 5000 {
			in := aboutFrame(flow[random.IntN(2)].out, icmpKinds[random.IntN(4)], random.IntN(60))
			in.info = random.Uint32() >> random.IntN(32)
			in.padding = random.IntN(30)
			if random.IntN(2) == 0 {
				for range random.IntN(3) {
					in.quote[random.IntN(len(in.quote))] ^= 1 << random.IntN(8)
				}
			}
			frame := in.frame()
			action, out, verdict := f.run(frame)
			switch {
			case verdict == "tx_icmp" && action == xdpTX:
				sent++
				if e := decodeICMP(t, out); e.info != in.info || e.padding != in.padding || len(e.quote) != len(in.quote) {
					t.Fatalf("became %+v: %x", e, frame)
				}
			case !bytes.Equal(out, frame):
				t.Fatalf("verdict %s, and changed: %x", verdict, frame)
			}
			if t.Failed() {
				t.Fatalf("%x became %x", frame, out)
			}
		}
		if sent < 500 {
			t.Errorf("only %d were sent on", sent)
		}
	})
}
