package xdp

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// An icmpKind is a kind of error, as each family has it.
type icmpKind struct {
	name         string
	type4, code4 uint8
	type6, code6 uint8
}

var (
	tooBig      = icmpKind{"too big", 3, 4, 2, 0}
	unreachable = icmpKind{"port unreachable", 3, 3, 1, 4}
	expired     = icmpKind{"time exceeded", 11, 0, 3, 0}
	parameter   = icmpKind{"parameter problem", 12, 0, 4, 1}
	icmpKinds   = []icmpKind{tooBig, unreachable, expired, parameter}
)

// An icmpCast is who takes part, of one family.
type icmpCast struct {
	name                string
	client, vip, pooler netip.AddrPort
	router              netip.Addr
}

var icmpCasts = []icmpCast{
	{"IPv4", client, vip, pooler, netip.MustParseAddr("198.51.100.1")},
	{
		"IPv6", netip.MustParseAddrPort("[2001:db8::50]:40000"), netip.MustParseAddrPort("[2001:db8::100]:5432"),
		netip.MustParseAddrPort("[2001:db8::5]:6432"), netip.MustParseAddr("2001:db8:ffff::1"),
	},
}

// icmpError is an ICMP or ICMPv6 error in an Ethernet frame, as a router sends
// it to the VIP. Nothing here shares code with the program.
type icmpError struct {
	srcMAC   macAddr
	src, dst netip.Addr
	kind     icmpKind
	info     uint32 // the second word of the header
	quote    []byte // the beginning of an IP packet
	ttl      uint8  // 64 when zero
	fragment uint16
	options  int // 32-bit words of IPv4 options
	padding  int // bytes after the packet
}

// aboutFrame complains to the sender of a frame that left the program, and
// quotes length bytes of its TCP segment.
func aboutFrame(frame []byte, kind icmpKind, length int) icmpError {
	ip := frame[14:]
	e := icmpError{srcMAC: macAddr{0x02, 0, 0, 0, 0, 0xfe}, kind: kind, src: icmpCasts[0].router}
	if kind == tooBig {
		e.info = 1400
	}
	header := 20
	if ip[0]>>4 == 6 {
		header, e.src = 40, icmpCasts[1].router
		e.dst = netip.AddrFrom16([16]byte(ip[8:24]))
	} else {
		e.dst = netip.AddrFrom4([4]byte(ip[12:16]))
	}
	e.quote = bytes.Clone(ip[:min(header+length, len(ip))])
	return e
}

func (e icmpError) frame() []byte {
	v6 := e.dst.Is6()
	header := 20 + 4*e.options
	if v6 {
		header = 40
	}
	total := header + 8 + len(e.quote)
	b := make([]byte, 14+total+e.padding)
	copy(b, lbMAC[:])
	copy(b[6:], e.srcMAC[:])
	for i := 14 + total; i < len(b); i++ {
		b[i] = 0xa5
	}
	ip, ttl := b[14:14+total], e.ttl
	if ttl == 0 {
		ttl = 64
	}
	src, dst := e.src.AsSlice(), e.dst.AsSlice()
	icmp := ip[header:]
	icmp[0], icmp[1] = e.kind.type4, e.kind.code4
	if v6 {
		icmp[0], icmp[1] = e.kind.type6, e.kind.code6
	}
	binary.BigEndian.PutUint32(icmp[4:], e.info)
	copy(icmp[8:], e.quote)
	if v6 {
		binary.BigEndian.PutUint16(b[12:], 0x86dd)
		ip[0], ip[6], ip[7] = 0x60, unix.IPPROTO_ICMPV6, ttl
		binary.BigEndian.PutUint16(ip[4:], uint16(total-40))
		copy(ip[8:], src)
		copy(ip[24:], dst)
		binary.BigEndian.PutUint16(icmp[2:], ^sum6(src, dst, unix.IPPROTO_ICMPV6, icmp))
		return b
	}
	binary.BigEndian.PutUint16(b[12:], 0x0800)
	ip[0], ip[8], ip[9] = 0x40|byte(header/4), ttl, unix.IPPROTO_ICMP
	binary.BigEndian.PutUint16(ip[2:], uint16(total))
	binary.BigEndian.PutUint16(ip[6:], e.fragment)
	copy(ip[12:], src)
	copy(ip[16:], dst)
	for i := 20; i < header; i++ {
		ip[i] = 1 // no operation
	}
	binary.BigEndian.PutUint16(ip[10:], ^onesSum(0, ip[:header]))
	binary.BigEndian.PutUint16(icmp[2:], ^onesSum(0, icmp))
	return b
}

// decodeICMP reads an error back and fails the test unless lengths and the
// checksums around the quote are right.
func decodeICMP(t *testing.T, b []byte) icmpError {
	t.Helper()
	e := icmpError{srcMAC: macAddr(b[6:12])}
	ip := b[14:]
	var icmp []byte
	if b[12] == 0x86 {
		total := 40 + int(binary.BigEndian.Uint16(ip[4:]))
		e.src, e.dst, e.ttl = netip.AddrFrom16([16]byte(ip[8:24])), netip.AddrFrom16([16]byte(ip[24:40])), ip[7]
		icmp, e.padding = ip[40:total], len(ip)-total
		if sum := sum6(ip[8:24], ip[24:40], unix.IPPROTO_ICMPV6, icmp); sum != 0xffff {
			t.Errorf("ICMPv6 checksum: sum %#04x", sum)
		}
	} else {
		total := int(binary.BigEndian.Uint16(ip[2:]))
		e.src, e.dst, e.ttl = netip.AddrFrom4([4]byte(ip[12:16])), netip.AddrFrom4([4]byte(ip[16:20])), ip[8]
		icmp, e.padding = ip[20:total], len(ip)-total
		if sum := onesSum(0, ip[:20]); sum != 0xffff {
			t.Errorf("IP checksum: sum %#04x", sum)
		}
		if sum := onesSum(0, icmp); sum != 0xffff {
			t.Errorf("ICMP checksum: sum %#04x", sum)
		}
	}
	e.info, e.quote = binary.BigEndian.Uint32(icmp[4:]), icmp[8:]
	return e
}

// hops lets an IP packet have gone through n routers.
func hops(ip []byte, n uint8) []byte {
	ip = bytes.Clone(ip)
	if ip[0]>>4 == 6 {
		ip[7] -= n
		return ip
	}
	ip[8] -= n
	ip[10], ip[11] = 0, 0
	binary.BigEndian.PutUint16(ip[10:], ^onesSum(0, ip[:20]))
	return ip
}

// sum6 is the sum over a message and its pseudo header (RFC 8200, 8.1).
func sum6(src, dst []byte, proto uint8, message []byte) uint16 {
	sum := uint32(onesSum(0, src)) + uint32(onesSum(0, dst)) + uint32(proto) + uint32(len(message))
	return onesSum(sum, message)
}

// frameOf puts a segment of either family into bytes.
func frameOf(s segment) []byte {
	if s.src.Addr().Is4() {
		return s.frame()
	}
	src, dst := s.src.Addr().As16(), s.dst.Addr().As16()
	s.src, s.dst = netip.AddrPortFrom(client.Addr(), s.src.Port()), netip.AddrPortFrom(vip.Addr(), s.dst.Port())
	four := s.frame()
	b := append(four[:12:12], 0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(len(four)-34), unix.IPPROTO_TCP, 64)
	b = append(append(append(b, src[:]...), dst[:]...), four[34:]...)
	tcp := b[54:]
	tcp[16], tcp[17] = 0, 0
	binary.BigEndian.PutUint16(tcp[16:], ^sum6(src[:], dst[:], unix.IPPROTO_TCP, tcp))
	return b
}

// sourcePort is the source port of a frame of either family.
func sourcePort(frame []byte) uint16 {
	if frame[12] == 0x86 {
		return binary.BigEndian.Uint16(frame[54:])
	}
	return binary.BigEndian.Uint16(frame[34:])
}

// destPort is its destination port.
func destPort(frame []byte) uint16 {
	if frame[12] == 0x86 {
		return binary.BigEndian.Uint16(frame[56:])
	}
	return binary.BigEndian.Uint16(frame[36:])
}
