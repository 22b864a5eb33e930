package pooler

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
)

// synHeaders builds the headers of a SYN.
func synHeaders(src, dst netip.AddrPort, label uint32, seq uint32, options []byte) []byte {
	tcp := binary.BigEndian.AppendUint16(nil, src.Port())
	tcp = binary.BigEndian.AppendUint16(tcp, dst.Port())
	tcp = binary.BigEndian.AppendUint32(tcp, seq)
	tcp = append(tcp, 0, 0, 0, 0, byte((tcpHeaderLen+len(options))/4)<<4, tcpFlagSYN, 0xff, 0xff, 0, 0, 0, 0)
	return ipPacket(src.Addr(), dst.Addr(), label, append(tcp, options...))
}

// ipPacket puts an IP header before a TCP segment, and fills in the checksums.
func ipPacket(src, dst netip.Addr, label uint32, tcp []byte) []byte {
	pseudo := slices.Concat(src.AsSlice(), dst.AsSlice(), binary.BigEndian.AppendUint32(nil, uint32(len(tcp))), []byte{0, 0, 0, 6})
	binary.BigEndian.PutUint16(tcp[16:], 0)
	binary.BigEndian.PutUint16(tcp[16:], checksum(append(pseudo, tcp...)))
	var ip []byte
	if src.Is4() {
		ip = []byte{0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0}
		binary.BigEndian.PutUint16(ip[2:], uint16(20+len(tcp)))
		ip = slices.Concat(ip, src.AsSlice(), dst.AsSlice())
		binary.BigEndian.PutUint16(ip[10:], checksum(ip))
	} else {
		ip = binary.BigEndian.AppendUint32(nil, 6<<28|label)
		ip = binary.BigEndian.AppendUint16(ip, uint16(len(tcp)))
		ip = slices.Concat(ip, []byte{6, 64}, src.AsSlice(), dst.AsSlice())
	}
	return append(ip, tcp...)
}

// checksum is the Internet checksum (RFC 1071).
func checksum(b []byte) uint16 {
	sum := uint32(0)
	for i, c := range b {
		sum += uint32(c) << (8 * (1 - i%2))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// usualOptions are what Linux sends in a SYN: 20 bytes.
var usualOptions = []byte{2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7}

// option4 and option6 are the options that name a client.
func option4(client netip.AddrPort) []byte {
	o := slices.Concat([]byte{254, 10, 'P', 'S'}, client.Addr().AsSlice())
	return append(binary.BigEndian.AppendUint16(o, client.Port()), 1, 1)
}

func option6(client netip.Addr) []byte {
	return slices.Concat([]byte{254, 20, 'P', 'S'}, client.AsSlice())
}

var (
	vip4    = netip.MustParseAddrPort("192.168.1.100:40001")
	pooler4 = netip.MustParseAddrPort("192.168.1.5:6432")
	client4 = netip.MustParseAddrPort("10.1.2.3:54321")
	vip6    = netip.MustParseAddrPort("[2001:db8::100]:40001")
	pooler6 = netip.MustParseAddrPort("[2001:db8::5]:6432")
	client6 = netip.MustParseAddrPort("[2001:db8:9::3]:54321")
)

func TestClientOfSYN(t *testing.T) {
	syn4 := func(options ...[]byte) []byte { return synHeaders(vip4, pooler4, 0, 1, bytes.Join(options, nil)) }
	syn6 := func(options ...[]byte) []byte {
		return synHeaders(vip6, pooler6, 0xa0000|uint32(client6.Port()), 1, bytes.Join(options, nil))
	}
	with := func(b []byte, at int, value byte) []byte {
		b = slices.Clone(b)
		b[at] = value
		return b
	}
	good4, good6 := syn4(usualOptions, option4(client4)), syn6(usualOptions, option6(client6.Addr()))
	ipOptions := slices.Concat(good4[:20], []byte{7, 4, 4, 0}, good4[20:])
	ipOptions[0] = 0x46
	// A hop-by-hop and a destination header before the TCP header.
	extended := slices.Concat(good6[:40], []byte{60, 0, 1, 4, 0, 0, 0, 0}, []byte{6, 1}, make([]byte, 14), good6[40:])
	extended[6] = 0
	other := netip.MustParseAddrPort("192.168.1.101:40001")
	none := netip.AddrPort{}
	tests := []struct {
		name    string
		headers []byte
		peer    netip.AddrPort
		want    netip.AddrPort
	}{
		{"IPv4", good4, vip4, client4},
		{"IPv4, nothing else", syn4(option4(client4)), vip4, client4},
		{"IPv4, first", syn4(option4(client4), usualOptions), vip4, client4},
		{"IPv4, end of options", syn4(option4(client4), []byte{0, 9, 9, 9}), vip4, client4},
		{"IPv4, beside another experiment", syn4([]byte{254, 8, 0xf9, 0x89, 1, 2, 3, 4}, option4(client4)), vip4, client4},
		{"IPv4 with IP options", ipOptions, vip4, client4},
		{"IPv6", good6, vip6, client6},
		{"IPv6 with extension headers", extended, vip6, client6},

		{"no headers", nil, vip4, none},
		{"no option", syn4(usualOptions), vip4, none},
		{"another experiment", syn4([]byte{254, 10, 'P', 'T', 10, 1, 2, 3, 4, 5, 1, 1}), vip4, none},
		{"twice", syn4(option4(client4), option4(client4)), vip4, none},
		{"twice, the second too short", syn4(option4(client4), []byte{254, 4, 'P', 'S'}), vip4, none},
		{"short", syn4([]byte{254, 8, 'P', 'S', 10, 1, 2, 3}), vip4, none},
		{"long", syn4([]byte{254, 12, 'P', 'S', 10, 1, 2, 3, 4, 5, 6, 7}), vip4, none},
		{"length 0", syn4([]byte{254, 0, 'P', 'S'}), vip4, none},
		{"length 1", syn4([]byte{254, 1, 'P', 'S'}), vip4, none},
		{"kind without length", syn4([]byte{1, 1, 1, 254}), vip4, none},
		{"beyond the header", syn4([]byte{254, 10, 'P', 'S', 10, 1, 2, 3}), vip4, none},
		{"malformed option behind", syn4(option4(client4), []byte{8, 40, 0, 0}), vip4, none},
		{"behind the end of options", syn4([]byte{0, 1, 1, 1}, option4(client4)), vip4, none},
		{"IPv6 form on IPv4", syn4(option6(client6.Addr())), vip4, none},
		{"IPv4 form on IPv6", syn6(option4(client4)), vip6, none},
		{"port 0", syn4(option4(netip.AddrPortFrom(client4.Addr(), 0))), vip4, none},
		{"flow label 0", synHeaders(vip6, pooler6, 0, 1, option6(client6.Addr())), vip6, none},
		{"address 0.0.0.0", syn4(option4(netip.MustParseAddrPort("0.0.0.0:5"))), vip4, none},
		{"address ::", syn6(option6(netip.IPv6Unspecified())), vip6, none},
		{"multicast", syn4(option4(netip.MustParseAddrPort("224.0.0.18:5"))), vip4, none},
		{"broadcast", syn4(option4(netip.MustParseAddrPort("255.255.255.255:5"))), vip4, none},
		{"IPv4 in IPv6", syn6(option6(netip.MustParseAddr("::ffff:10.1.2.3"))), vip6, none},
		{"another peer's", good4, other, none},
		{"another port's", good4, netip.AddrPortFrom(vip4.Addr(), 1), none},
		{"SYN-ACK", with(good4, 33, tcpFlagSYN|tcpFlagACK), vip4, none},
		{"no SYN", with(good4, 33, tcpFlagACK), vip4, none},
		{"UDP", with(good4, 9, 17), vip4, none},
		{"version 5", with(good4, 0, 0x55), vip4, none},
		{"IPv4 header of 16 bytes", with(good4, 0, 0x44), vip4, none},
		{"TCP header of 16 bytes", with(good4, 32, 0x40), vip4, none},
		{"TCP header too long", with(good4, 32, 0xf0), vip4, none},
		{"IPv6 with an unknown header", with(good6, 6, 50), vip6, none},
		{"IPv6 with nothing behind", with(good6, 6, 59), vip6, none},
		{"extension beyond the end", with(extended, 41, 200), vip6, none},
		{"bytes behind the header", append(slices.Clone(good4), 0), vip4, none},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := clientOfSYN(tt.headers, tt.peer)
			if !ok {
				got = none
			}
			if got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
	for _, whole := range [][]byte{good4, good6, ipOptions, extended} {
		peer := vip4
		if whole[0]>>4 == 6 {
			peer = vip6
		}
		for n := range whole {
			if got, ok := clientOfSYN(whole[:n], peer); ok {
				t.Errorf("cut to %d of %d bytes: %v", n, len(whole), got)
			}
		}
	}
}

// FuzzClientOfSYN looks for headers that the parser reads beyond, or of which it
// makes an address that no client can have.
func FuzzClientOfSYN(f *testing.F) {
	f.Add(synHeaders(vip4, pooler4, 0, 1, option4(client4)))
	f.Add(synHeaders(vip6, pooler6, 0x54321, 1, slices.Concat(usualOptions, option6(client6.Addr()))))
	f.Add(synHeaders(vip4, pooler4, 0, 1, usualOptions))
	f.Fuzz(func(t *testing.T, b []byte) {
		peer := vip4
		if len(b) > 0 && b[0]>>4 == 6 {
			peer = vip6
		}
		got, ok := clientOfSYN(b, peer)
		if !ok {
			return
		}
		if got.Port() == 0 || !got.IsValid() || got.Addr().Is4() != peer.Addr().Is4() || got.Addr().IsUnspecified() {
			t.Fatalf("accepted %v", got)
		}
		if !bytes.Contains(b, slices.Concat([]byte("PS"), got.Addr().AsSlice())) {
			t.Fatalf("%v does not stand in %x", got, b)
		}
	})
}
