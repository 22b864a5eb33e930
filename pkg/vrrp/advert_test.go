package vrrp

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

var (
	vip   = netip.MustParseAddr("192.168.1.100")
	node1 = netip.MustParseAddr("192.168.1.10")
	node2 = netip.MustParseAddr("192.168.1.11")

	vip6     = netip.MustParseAddr("fd00:1::100")
	localVIP = netip.MustParseAddr("fe80::100")
	local1   = netip.MustParseAddr("fe80::10")
	local2   = netip.MustParseAddr("fe80::11")
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The frames with pseudo-header, IPv6 included, are what keepalived 2.2.7 puts on
// the wire.
var golden = []struct {
	name     string
	advert   Advertisement
	form     ChecksumForm
	src, dst netip.Addr
	frame    string
}{
	{
		"message only", Advertisement{51, 101, time.Second, []netip.Addr{vip}}, ChecksumMessage,
		netip.MustParseAddr("192.168.1.101"), groupV4, "31336501 0064a75a c0a80164",
	},
	{
		"pseudo-header", Advertisement{51, 101, time.Second, []netip.Addr{vip}}, ChecksumPseudo,
		netip.MustParseAddr("192.168.1.101"), groupV4, "31336501 006404be c0a80164",
	},
	{
		"resignation, 10 cs, two addresses",
		Advertisement{51, 0, 100 * time.Millisecond, []netip.Addr{vip, netip.MustParseAddr("192.168.1.200")}}, ChecksumMessage,
		node1, node2, "31330002 000a4a43 c0a80164 c0a801c8",
	},
	{
		"IPv6 multicast", Advertisement{51, 101, 100 * time.Millisecond, []netip.Addr{localVIP, vip6}}, ChecksumPseudo,
		local2, groupV6, "31336502 000a6dfe fe800000000000000000000000000100 fd000001000000000000000000000100",
	},
	{
		"IPv6 unicast", Advertisement{51, 101, 100 * time.Millisecond, []netip.Addr{localVIP, vip6}}, ChecksumPseudo,
		local2, local1, "31336502 000a6e82 fe800000000000000000000000000100 fd000001000000000000000000000100",
	},
}

func TestGoldenFrames(t *testing.T) {
	for _, tc := range golden {
		t.Run(tc.name, func(t *testing.T) {
			want := unhex(t, tc.frame)
			if got := tc.advert.Append([]byte("head"), tc.form, tc.src, tc.dst); !bytes.Equal(got[4:], want) {
				t.Errorf("Append = %x, want %x", got[4:], want)
			}
			got, form, err := Parse(want, tc.src, tc.dst)
			if err != nil || form != tc.form || !reflect.DeepEqual(got, tc.advert) {
				t.Errorf("Parse = %+v, %v, %v; want %+v, %v", got, form, err, tc.advert, tc.form)
			}
		})
	}
}

// reseal corrects the checksum of a message that a test has changed.
func reseal(b []byte) []byte {
	b[6], b[7] = 0, 0
	sum := ^fold(sum16(0, b))
	b[6], b[7] = byte(sum>>8), byte(sum)
	return b
}

func TestParseRefuses(t *testing.T) {
	const good = "31336501 000a a7b4 c0a80164"
	if _, _, err := Parse(unhex(t, good), node1, node2); err != nil {
		t.Fatalf("the message that the cases start from: %v", err)
	}
	for _, tc := range []struct {
		name string
		msg  []byte
		want Refusal
	}{
		{"nothing", nil, RefusedLength},
		{"seven bytes", unhex(t, good)[:7], RefusedLength},
		{"version 2 golden frame", unhex(t, "21336501 0001b7bd c0a80164 00000000 00000000"), RefusedVersion},
		{"type 2", reseal(unhex(t, "32336501 000a0000 c0a80164")), RefusedType},
		{"one address missing", reseal(unhex(t, "31336502 000a0000 c0a80164")), RefusedLength},
		{"trailing bytes", reseal(unhex(t, good+"00000000")), RefusedLength},
		{"bit flipped in the address", unhex(t, "31336501 000aa7b4 c0a80165"), RefusedChecksum},
		{"pseudo-header of other addresses", unhex(t, "31336501 006404be c0a80164"), RefusedChecksum},
		{"no address", reseal(unhex(t, "31336500 000a0000")), RefusedCount},
		{"interval 0", reseal(unhex(t, "31336501 00000000 c0a80164")), RefusedInterval},
		{"interval 0, reserved bits set", reseal(unhex(t, "31336501 f0000000 c0a80164")), RefusedInterval},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, _, err := Parse(tc.msg, node1, node2)
			var got Refusal
			if !errors.As(err, &got) || got != tc.want {
				t.Errorf("Parse: %v, want %v", err, tc.want)
			}
		})
	}
}

func TestParseRefusesIPv6(t *testing.T) {
	a := Advertisement{51, 101, 100 * time.Millisecond, []netip.Addr{vip6}}
	good := a.Append(nil, ChecksumMessage, local2, local1) // the form does not count
	if _, form, err := Parse(good, local2, local1); err != nil || form != ChecksumPseudo {
		t.Fatalf("the message that the cases start from: %v, %v", form, err)
	}
	short := bytes.Clone(good[:headerLen+4])
	for _, tc := range []struct {
		name string
		msg  []byte
		want Refusal
	}{
		{"checksum over the message only", reseal(bytes.Clone(good)), RefusedChecksum},
		{"four bytes an address", reseal(short), RefusedLength},
		{"one address missing", good[:headerLen+15], RefusedLength},
		{"no address", (&Advertisement{VRID: 51, Priority: 101, Interval: time.Second}).Append(nil, ChecksumPseudo, local2, local1), RefusedCount},
	} {
		_, _, err := Parse(tc.msg, local2, local1)
		var got Refusal
		if !errors.As(err, &got) || got != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
		}
	}
	// A pseudo-header of other addresses is another checksum.
	if _, _, err := Parse(good, local2, groupV6); err != RefusedChecksum {
		t.Errorf("sent to somebody else: %v", err)
	}
}

func TestParseIgnoresReservedBits(t *testing.T) {
	a, _, err := Parse(reseal(unhex(t, "31336501 f00a0000 c0a80164")), node1, node2)
	if err != nil || a.Interval != 100*time.Millisecond {
		t.Errorf("interval %v, %v; want 100ms", a.Interval, err)
	}
}

// packetOf wraps a message in a header: that of IPv4 as a raw socket delivers
// it, that of IPv6 as we make it up.
func packetOf(src, dst netip.Addr, ttl byte, payload []byte) []byte {
	if src.Is6() {
		return append(appendHeader6(nil, src, dst, ttl, len(payload)), payload...)
	}
	s, d := src.As4(), dst.As4()
	total := 20 + len(payload)
	b := []byte{0x45, 0xc0, byte(total >> 8), byte(total), 0, 1, 0, 0, ttl, protocolNumber, 0, 0}
	b = append(b, s[:]...)
	b = append(b, d[:]...)
	return append(b, payload...)
}

func TestFilter(t *testing.T) {
	a := Advertisement{51, 101, 100 * time.Millisecond, []netip.Addr{vip}}
	msg := a.Append(nil, ChecksumMessage, node2, node1)
	foreign := a
	foreign.VRID = 52
	unicast := filter{vrid: 51, source: node1, peers: []netip.Addr{node2}}
	multicast := filter{vrid: 51, source: node1}
	stranger := netip.MustParseAddr("192.168.1.66")
	a6 := Advertisement{51, 101, 100 * time.Millisecond, []netip.Addr{localVIP, vip6}}
	msg6 := a6.Append(nil, ChecksumPseudo, local2, local1)
	unicast6 := filter{vrid: 51, source: local1, peers: []netip.Addr{local2}}
	multicast6 := filter{vrid: 51, source: local1}
	whole6 := packetOf(local2, local1, 255, msg6)
	stranger6 := netip.MustParseAddr("fe80::66")
	change := func(b []byte, at int, to byte) []byte {
		b = bytes.Clone(b)
		b[at] = to
		return b
	}
	whole := packetOf(node2, node1, 255, msg)
	const fine = numRefusals
	for _, tc := range []struct {
		name   string
		filter filter
		packet []byte
		want   Refusal
	}{
		{"unicast", unicast, whole, fine},
		{"unicast, padded to the shortest frame", unicast, append(bytes.Clone(whole), make([]byte, 14)...), fine},
		{"multicast", multicast, packetOf(node2, groupV4, 255, a.Append(nil, ChecksumPseudo, node2, groupV4)), fine},
		{"IP options", unicast, append(append(change(change(whole[:20], 0, 0x46), 3, 36), 1, 1, 1, 1), msg...), fine},
		{"empty", unicast, nil, RefusedPacket},
		{"cut short", unicast, whole[:25], RefusedPacket},
		{"header length 16", unicast, change(whole, 0, 0x44), RefusedPacket},
		{"IPv6", unicast, change(whole, 0, 0x65), RefusedPacket},
		{"another protocol", unicast, change(whole, 9, 6), RefusedPacket},
		{"our own", unicast, packetOf(node1, node1, 255, msg), RefusedOwnSource},
		{"a stranger", unicast, packetOf(stranger, node1, 255, msg), RefusedPeer},
		{"unicast to a multicast router", multicast, packetOf(stranger, node1, 255, msg), RefusedDestination},
		{"through a router", unicast, packetOf(node2, node1, 254, msg), RefusedTTL},
		{"short message", unicast, packetOf(node2, node1, 255, msg[:4]), RefusedLength},
		{"version 2", unicast, packetOf(node2, node1, 255, change(msg, 0, 0x21)), RefusedVersion},
		{"type 3", unicast, packetOf(node2, node1, 255, change(msg, 0, 0x33)), RefusedType},
		{"another router", unicast, packetOf(node2, node1, 255, foreign.Append(nil, ChecksumMessage, node2, node1)), RefusedVRID},
		{"another router, damaged", unicast, packetOf(node2, node1, 255, change(msg, 1, 52)), RefusedVRID},
		{"damaged", unicast, packetOf(node2, node1, 255, change(msg, 2, 255)), RefusedChecksum},

		{"IPv6: unicast", unicast6, whole6, fine},
		{"IPv6: padded", unicast6, append(bytes.Clone(whole6), 0, 0), fine},
		{"IPv6: multicast", multicast6, packetOf(local2, groupV6, 255, a6.Append(nil, ChecksumPseudo, local2, groupV6)), fine},
		{"IPv6: empty", unicast6, nil, RefusedPacket},
		{"IPv6: cut short in the header", unicast6, whole6[:39], RefusedPacket},
		{"IPv6: cut short", unicast6, whole6[:len(whole6)-1], RefusedPacket},
		{"IPv6: IPv4", unicast6, append(bytes.Clone(whole), msg6...), RefusedPacket},
		{"IPv6: another protocol", unicast6, change(whole6, 6, 58), RefusedPacket},
		{"IPv6: our own", unicast6, packetOf(local1, local1, 255, msg6), RefusedOwnSource},
		{"IPv6: a stranger", unicast6, packetOf(stranger6, local1, 255, msg6), RefusedPeer},
		{"IPv6: unicast to a multicast router", multicast6, whole6, RefusedDestination},
		{"IPv6: through a router", unicast6, packetOf(local2, local1, 254, msg6), RefusedTTL},
		{"IPv6: damaged", unicast6, packetOf(local2, local1, 255, change(msg6, 9, 1)), RefusedChecksum},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, _, _, err := tc.filter.accept(tc.packet)
			got := fine
			if err != nil && !errors.As(err, &got) {
				t.Fatalf("error %v is no Refusal", err)
			}
			if got != tc.want {
				t.Errorf("accept: %v, want %v", got, tc.want)
			}
		})
	}
}

func TestRefusalNames(t *testing.T) {
	names := map[string]bool{}
	for r := range numRefusals {
		if r.String() == "" || names[r.String()] {
			t.Errorf("refusal %d has name %q", r, r.String())
		}
		names[r.String()] = true
	}
	if got := Refusal(200).String(); got != "refusal(200)" {
		t.Errorf("unknown refusal is called %q", got)
	}
}

// FuzzAccept feeds whole packets. What is accepted must mean the same after
// encoding it again.
func FuzzAccept(f *testing.F) {
	for _, g := range golden {
		f.Add(packetOf(g.src, g.dst, 255, unhex(f, g.frame)))
	}
	for _, g := range golden2 {
		f.Add(packetOf(node2, node1, 255, unhex(f, g.frame)))
	}
	for _, g := range goldenHMAC {
		f.Add(packetOf(netip.MustParseAddr(g.src), netip.MustParseAddr(g.dst), 255, unhex(f, g.frame)))
	}
	f.Add(packetOf(node2, node1, 255, nil))
	f.Add(packetOf(local2, local1, 255, nil))
	filters := []filter{
		{vrid: 51, source: node1}, {vrid: 51, source: node1, peers: []netip.Addr{node2}},
		{vrid: 51, source: local1}, {vrid: 51, source: local1, peers: []netip.Addr{local2}},
		{vrid: 51, source: node1, version: 2, interval: time.Second},
		{vrid: 51, source: node1, version: 2, interval: time.Second, auth: "1111"},
		{vrid: 51, source: node1}, {vrid: 51, source: local1},
	}
	for i := len(filters) - 2; i < len(filters); i++ {
		filters[i].hmac = newAuthenticator(HMAC{Mode: HMACPermissive, Keys: map[uint8]Secret{1: key1}}, time.Second,
			func() time.Duration { return 0 }, func() time.Time { return time.Unix(0x68000000, 0) })
	}
	f.Fuzz(func(t *testing.T, packet []byte) {
		for _, fl := range filters {
			a, d, form, err := fl.accept(packet)
			if err != nil {
				var r Refusal
				if !errors.As(err, &r) || r >= numRefusals {
					t.Fatalf("error %v is no Refusal", err)
				}
				continue
			}
			if fl.version == 2 {
				if again, err := Parse2(a.Append2(nil, fl.auth), fl.auth); err != nil || !reflect.DeepEqual(a, again) {
					t.Fatalf("%+v became %+v (%v)", a, again, err)
				}
				continue
			}
			again, form2, err := Parse(a.Append(nil, form, d.src, d.dst), d.src, d.dst)
			if err != nil || form2 != form || !reflect.DeepEqual(a, again) {
				t.Fatalf("%+v (%v) became %+v (%v, %v)", a, form, again, form2, err)
			}
		}
		for _, ends := range [][2]netip.Addr{{node2, node1}, {local2, local1}} {
			if _, _, err := Parse(packet, ends[0], ends[1]); err == nil && len(packet) < headerLen {
				t.Fatal("accepted a message shorter than its header")
			}
		}
	})
}
