package vrrp

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// key1 is the key of the draft's examples.
var key1 = func() Secret {
	b := make([]byte, 32)
	for i := range b {
		b[i] = byte(i)
	}
	return Secret(b)
}()

const key2 = Secret("another key, which has forty bytes in it")

// The messages of the draft's appendix, which keepalived 2.4 is tested by.
var goldenHMAC = []struct {
	src, dst, vip string
	form          ChecksumForm
	frame         string
}{
	{
		"198.51.100.10", "224.0.0.18", "192.0.2.100", ChecksumMessage,
		"3133c801 00644402 c0000264 01010000 68000000 80000000 1b84bc4e 8e43892d c6d98448 f8ee2265",
	},
	{
		"fe80::10", "fe80::20", "fe80::100", ChecksumPseudo,
		"3133c801 0064a2e9 fe800000 00000000 00000000 00000100 01010000 68000000 80000000 c8c56146 ebfd66ee 10ec4d81 86461b78",
	},
}

func TestGoldenFramesHMAC(t *testing.T) {
	for _, tc := range goldenHMAC {
		src, dst := netip.MustParseAddr(tc.src), netip.MustParseAddr(tc.dst)
		want := unhex(t, tc.frame)
		a := Advertisement{51, 200, time.Second, []netip.Addr{netip.MustParseAddr(tc.vip)}}
		b := a.Append(nil, tc.form, src, dst)
		b = appendTrailer(b, 1, key1, 0x6800000080000000, src, b)
		if src.Is6() {
			seal(b, tc.form, src, dst)
		}
		if !bytes.Equal(b, want) {
			t.Errorf("%s: %x, want %x", tc.src, b, want)
		}
		f := filter{vrid: 51, source: netip.MustParseAddr("198.51.100.11"), peers: []netip.Addr{src}}
		if src.Is6() {
			f.source = netip.MustParseAddr("fe80::20")
		} else {
			f.peers = nil
		}
		f.hmac = newAuthenticator(HMAC{Keys: map[uint8]Secret{1: key1}}, time.Second,
			func() time.Duration { return 0 }, func() time.Time { return time.Unix(0x68000000, 0) })
		got, _, form, err := f.accept(packetOf(src, dst, 255, want))
		if err != nil || form != tc.form || got.Priority != 200 {
			t.Errorf("accept = %+v, %v, %v", got, form, err)
		}
	}
}

// TestHMACVerify goes through what can be wrong with a trailer.
func TestHMACVerify(t *testing.T) {
	a := Advertisement{51, 101, time.Second, []netip.Addr{vip}}
	wall := time.Unix(1_800_000_000, 0)
	message := a.Append(nil, ChecksumMessage, node2, node1)
	trailer := appendTrailer(nil, 1, key1, sequenceOf(wall), node2, message)
	flip := func(b []byte, at int) []byte {
		b = bytes.Clone(b)
		b[at] ^= 1
		return b
	}
	const fine = numRefusals
	for _, tc := range []struct {
		name    string
		mode    HMACMode
		src     netip.Addr
		message []byte
		trailer []byte
		want    Refusal
	}{
		{"good", HMACEnforce, node2, message, trailer, fine},
		{"none, enforced", HMACEnforce, node2, message, nil, RefusedHMACMissing},
		{"none, permissive", HMACPermissive, node2, message, nil, fine},
		{"none, receive-only", HMACReceiveOnly, node2, message, nil, fine},
		{"bad, receive-only", HMACReceiveOnly, node2, message, flip(trailer, 20), RefusedHMAC},
		{"another scheme", HMACEnforce, node2, message, flip(trailer, 0), RefusedHMAC},
		{"reserved bits", HMACEnforce, node2, message, flip(trailer, 3), RefusedHMAC},
		{"unknown key", HMACEnforce, node2, message, flip(trailer, 1), RefusedHMACKey},
		{"wrong key", HMACEnforce, node2, message, appendTrailer(nil, 2, key1, sequenceOf(wall), node2, message), RefusedHMAC},
		{"second key", HMACEnforce, node2, message, appendTrailer(nil, 2, key2, sequenceOf(wall), node2, message), fine},
		{"priority", HMACEnforce, node2, flip(message, 2), trailer, RefusedHMAC},
		{"interval", HMACEnforce, node2, flip(message, 5), trailer, RefusedHMAC},
		{"checksum is not covered", HMACEnforce, node2, flip(message, 7), trailer, fine},
		{"address", HMACEnforce, node2, flip(message, 11), trailer, RefusedHMAC},
		{"virtual router", HMACEnforce, node2, flip(message, 1), trailer, RefusedHMAC},
		{"version", HMACEnforce, node2, flip(message, 0), trailer, RefusedHMAC},
		{"source", HMACEnforce, node1, message, trailer, RefusedHMAC},
		{"sequence", HMACEnforce, node2, message, flip(trailer, 11), RefusedHMAC},
		{"last byte", HMACEnforce, node2, message, flip(trailer, 27), RefusedHMAC},
	} {
		auth := newAuthenticator(HMAC{Mode: tc.mode, Keys: map[uint8]Secret{1: key1, 2: key2}}, time.Second,
			func() time.Duration { return 0 }, func() time.Time { return wall })
		got := fine
		if err := auth.verify(tc.message, tc.trailer, tc.src); err != nil && !errors.As(err, &got) {
			t.Fatal(err)
		}
		if got != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}

// TestHMACReplay tells the argument of the authenticator's comment as a story.
func TestHMACReplay(t *testing.T) {
	var now time.Duration
	var senderClock, receiverClock time.Time
	step := func(d time.Duration) {
		now, senderClock, receiverClock = now+d, senderClock.Add(d), receiverClock.Add(d)
	}
	tick := func() time.Duration { return now }
	newSender := func() *authenticator {
		return newAuthenticator(HMAC{}, 100*ms, tick, func() time.Time { return senderClock })
	}
	newReceiver := func() *authenticator {
		return newAuthenticator(HMAC{}, 100*ms, tick, func() time.Time { return receiverClock })
	}
	var s, r *authenticator
	reset := func() {
		senderClock = time.Unix(1_800_000_000, 123_000_000)
		receiverClock = senderClock.Add(2 * time.Second)
		s, r = newSender(), newReceiver()
		for range 3 {
			step(100 * ms)
			if !r.fresh(s.next(), node2) {
				t.Fatal("an ordinary sequence was refused")
			}
		}
	}
	next := func(what string, want bool) {
		t.Helper()
		step(100 * ms)
		if got := r.fresh(s.next(), node2); got != want {
			t.Errorf("%s: accepted %v", what, got)
		}
	}

	reset()
	old := s.next()
	if !r.fresh(old, node2) || r.fresh(old, node2) {
		t.Error("a repetition was accepted")
	}
	if a, b := s.next(), s.next(); sequenceAfter(b, a) < 0 || a == b {
		t.Error("two sequences of one moment do not rise")
	}
	next("after a repetition", true)
	if r = newReceiver(); r.fresh(old-60<<32, node2) {
		t.Error("a restarted receiver accepted a recording")
	}
	next("receiver restarted", true)
	s = newSender()
	next("sender restarted", true)
	step(time.Hour)
	next("after an hour of silence", true)
	if r.fresh(old, node2) {
		t.Error("an old recording was accepted")
	}

	reset()
	senderClock = senderClock.Add(time.Hour)
	next("sender's clock set forward", true)
	r = newReceiver()
	next("and the receiver restarted", false)
	receiverClock = receiverClock.Add(time.Hour)
	next("and its clock set too", true)

	reset()
	receiverClock = receiverClock.Add(-time.Hour)
	next("receiver's clock set back", true)

	reset()
	senderClock, receiverClock = senderClock.Add(time.Hour), receiverClock.Add(time.Hour)
	next("both were ahead", true)
	receiverClock = receiverClock.Add(-time.Hour)
	next("receiver corrected", true)
	senderClock = senderClock.Add(-time.Hour)
	next("sender corrected too", true)

	reset()
	senderClock = senderClock.Add(-time.Hour)
	next("sender's clock set back wrongly", false)
	if r.skew > -time.Hour || r.skew < -time.Hour-3*time.Second {
		t.Errorf("the log would say %v", r.skew)
	}
	senderClock = senderClock.Add(time.Hour)
	next("and corrected", true)

	for i := range 3 * hmacSenders {
		if !r.fresh(sequenceOf(receiverClock), netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})) {
			t.Error("a new sender was refused")
		}
	}
	if len(r.senders) > hmacSenders {
		t.Errorf("%d senders are remembered", len(r.senders))
	}
}

// TestRouterHMACRollout brings authentication to a pair mode by mode, node by
// node, without a second active router at any time.
func TestRouterHMACRollout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lan fakeLAN
		with := func(mode HMACMode) func(*Config) {
			return func(c *Config) {
				c.HMAC = &HMAC{Mode: mode, Keys: map[uint8]Secret{1: key1}}
				if mode != HMACReceiveOnly {
					c.HMAC.SendKey = 1
				}
			}
		}
		a := newNode(t, &lan, node1, 101, nil).run()
		elapse(time.Second)
		b := newNode(t, &lan, node2, 100, nil).run()
		elapse(time.Second)
		for _, mode := range []HMACMode{HMACReceiveOnly, HMACPermissive, HMACEnforce} {
			a.stop()
			elapse(time.Second)
			a = newNode(t, &lan, node1, 101, with(mode)).run()
			elapse(time.Second)
			if a.owns() || !b.owns() {
				t.Fatalf("%v: the restarted node does not follow the other", mode)
			}
			b.stop()
			elapse(time.Second)
			b = newNode(t, &lan, node2, 100, with(mode)).run()
			elapse(time.Second)
			if !a.owns() || b.owns() {
				t.Fatalf("%v: the second node does not follow the other", mode)
			}
		}
		stranger := Advertisement{51, 255, 100 * ms, []netip.Addr{vip}}
		a.port.inject(packetOf(node2, node1, 255, stranger.Append(nil, ChecksumMessage, node2, node1)))
		elapse(ms)
		if s := a.router.Snapshot(); !a.owns() || s.Refused[RefusedHMACMissing].Count != 1 || s.HMAC != "enforce" {
			t.Errorf("an advertisement without HMAC: %+v", s)
		}
		a.stop()
		b.stop()
	})
}

func TestRouterHMACReplayed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lan fakeLAN
		a := newNode(t, &lan, node1, 101, func(c *Config) {
			c.HMAC = &HMAC{Keys: map[uint8]Secret{1: key1}, SendKey: 1}
		}).run()
		elapse(time.Second)
		message := (&Advertisement{51, 255, 100 * ms, []netip.Addr{vip}}).Append(nil, ChecksumMessage, node2, node1)
		signed := appendTrailer(message, 1, key1, sequenceOf(time.Now().Add(-time.Minute)), node2, message)
		a.port.inject(packetOf(node2, node1, 255, signed))
		elapse(ms)
		if s := a.router.Snapshot(); !a.owns() || s.Refused[RefusedHMACReplayed].Count != 1 {
			t.Errorf("a recording: %+v", s)
		}
		if !strings.Contains(a.log.String(), "ahead_of_our_clock=-1m0") {
			t.Errorf("the log does not name the difference of the clocks:\n%s", a.log)
		}
		a.stop()
	})
}
