package xdp

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// The cast of the packet tests.
var (
	lbMAC     = macAddr{0x02, 0, 0, 0, 0, 0x10}
	clientMAC = macAddr{0x02, 0, 0, 0, 0, 0x50}
	poolerMAC = macAddr{0x02, 0, 0, 0, 0, 0x05}

	vip    = netip.MustParseAddrPort("192.168.1.100:5432")
	client = netip.MustParseAddrPort("192.168.1.50:40000")
	pooler = netip.MustParseAddrPort("192.168.1.5:6432")
)

const (
	fin = 1 << iota
	syn
	rst
	psh
	ack
)

// segment is a TCP segment in an Ethernet frame, built from scratch, with
// checksums of its own making: nothing here shares code with the program. The
// addresses say of which family it is.
type segment struct {
	srcMAC, dstMAC macAddr
	tags           string // 802.1Q and 802.1ad tags, four bytes each
	src, dst       netip.AddrPort
	flags          uint8
	seq, ack       uint32
	window         uint16 // 65535 when zero
	payload        string
	options        string // TCP options, a multiple of four bytes
	tos            uint8  // of the IP header; IPv6 calls it traffic class
	label          uint32 // flow label, of IPv6
	ttl            uint8  // 64 when zero; IPv6 calls it hop limit
	fragment       uint16 // of IPv4
	ipOptions      int    // 32-bit words, of IPv4
	padding        int    // bytes after the packet
}

// fromClient is a segment as a client of the VIP sends it.
func fromClient(flags uint8) segment {
	return segment{srcMAC: clientMAC, dstMAC: lbMAC, src: client, dst: vip, flags: flags, seq: 1000, ack: 2000}
}

// frame puts the segment into bytes.
func (s segment) frame() []byte {
	tcp := s.tcp()
	var ip, proto []byte
	if s.src.Addr().Is4() {
		ip, proto = s.ip4(len(tcp)), []byte{0x08, 0x00}
	} else {
		ip, proto = s.ip6(len(tcp)), []byte{0x86, 0xdd}
	}
	binary.BigEndian.PutUint16(tcp[16:], ^tcpSum(ip, tcp))
	return slices.Concat(s.dstMAC[:], s.srcMAC[:], []byte(s.tags), proto, ip, tcp, make([]byte, s.padding))
}

// tcp has no checksum yet.
func (s segment) tcp() []byte {
	b := make([]byte, 20, 20+len(s.options)+len(s.payload))
	binary.BigEndian.PutUint16(b, s.src.Port())
	binary.BigEndian.PutUint16(b[2:], s.dst.Port())
	binary.BigEndian.PutUint32(b[4:], s.seq)
	if s.flags&ack != 0 {
		binary.BigEndian.PutUint32(b[8:], s.ack)
	}
	b[12] = byte(5+len(s.options)/4) << 4
	b[13] = s.flags
	binary.BigEndian.PutUint16(b[14:], cmp.Or(s.window, 65535))
	b = append(b, s.options...)
	return append(b, s.payload...)
}

func (s segment) ip4(payload int) []byte {
	b := make([]byte, 20+4*s.ipOptions)
	b[0], b[1] = 0x40|byte(len(b)/4), s.tos
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)+payload))
	binary.BigEndian.PutUint16(b[4:], 0x1234)
	binary.BigEndian.PutUint16(b[6:], s.fragment)
	b[8], b[9] = cmp.Or(s.ttl, 64), unix.IPPROTO_TCP
	src, dst := s.src.Addr().As4(), s.dst.Addr().As4()
	copy(b[12:], src[:])
	copy(b[16:], dst[:])
	for i := range s.ipOptions * 4 {
		b[20+i] = 1 // no operation
	}
	binary.BigEndian.PutUint16(b[10:], ^onesSum(0, b))
	return b
}

func (s segment) ip6(payload int) []byte {
	b := make([]byte, 40)
	binary.BigEndian.PutUint32(b, 6<<28|uint32(s.tos)<<20|s.label)
	binary.BigEndian.PutUint16(b[4:], uint16(payload))
	b[6], b[7] = unix.IPPROTO_TCP, cmp.Or(s.ttl, 64)
	src, dst := s.src.Addr().As16(), s.dst.Addr().As16()
	copy(b[8:], src[:])
	copy(b[24:], dst[:])
	return b
}

// behindTags is where the network header begins, at most so many tags on, and
// of which type it is; 0 when the frame ends before.
func behindTags(b []byte, most int) (at int, proto uint16) {
	for at = 14; at <= len(b); at += 4 {
		proto = binary.BigEndian.Uint16(b[at-2:])
		if most == 0 || proto != 0x8100 && proto != 0x88a8 {
			return at, proto
		}
		most--
	}
	return 0, 0
}

// decode reads a frame back and fails the test unless lengths and all
// checksums are right.
func decode(t *testing.T, b []byte) segment {
	t.Helper()
	l2, _ := behindTags(b, 4)
	s := segment{dstMAC: macAddr(b[:6]), srcMAC: macAddr(b[6:12]), tags: string(b[12 : l2-2])}
	if len(b) < l2+40 {
		t.Fatalf("frame of %d bytes", len(b))
	}
	ip := b[l2:]
	var header, total int
	var src, dst netip.Addr
	switch ip[0] >> 4 {
	case 4:
		header, total = int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:]))
		if header != 20 {
			t.Fatalf("IP header length %d", header)
		}
		if sum := onesSum(0, ip[:header]); sum != 0xffff {
			t.Errorf("IP checksum: sum %#04x", sum)
		}
		src, dst = netip.AddrFrom4([4]byte(ip[12:])), netip.AddrFrom4([4]byte(ip[16:]))
		s.tos, s.ttl = ip[1], ip[8]
	case 6:
		header, total = 40, 40+int(binary.BigEndian.Uint16(ip[4:]))
		src, dst = netip.AddrFrom16([16]byte(ip[8:])), netip.AddrFrom16([16]byte(ip[24:]))
		first := binary.BigEndian.Uint32(ip)
		s.tos, s.label, s.ttl = uint8(first>>20), first&0xfffff, ip[7]
	default:
		t.Fatalf("IP version %d", ip[0]>>4)
	}
	if total > len(ip) || total < header+20 {
		t.Fatalf("%d bytes of IP in %d", total, len(ip))
	}
	tcp := ip[header:total]
	data := int(tcp[12]>>4) * 4
	if data < 20 || data > len(tcp) {
		t.Fatalf("TCP header of %d bytes in %d", data, len(tcp))
	}
	if sum := tcpSum(ip, tcp); sum != 0xffff {
		t.Errorf("TCP checksum: sum %#04x", sum)
	}
	s.src = netip.AddrPortFrom(src, binary.BigEndian.Uint16(tcp))
	s.dst = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(tcp[2:]))
	s.seq, s.ack = binary.BigEndian.Uint32(tcp[4:]), binary.BigEndian.Uint32(tcp[8:])
	s.flags, s.window = tcp[13], binary.BigEndian.Uint16(tcp[14:])
	s.options, s.payload = string(tcp[20:data]), string(tcp[data:])
	s.padding = len(ip) - total
	return s
}

// answer is what the receiver of s would send back.
func (s segment) answer(flags uint8) segment {
	return segment{
		srcMAC: s.dstMAC, dstMAC: s.srcMAC, tags: s.tags, src: s.dst, dst: s.src,
		flags: flags, seq: s.ack, ack: s.seq + 1,
	}
}

// onesSum is the sum of RFC 1071, not complemented.
func onesSum(sum uint32, b []byte) uint16 {
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

func tcpSum(ip, tcp []byte) uint16 {
	addresses := ip[12:20]
	if ip[0]>>4 == 6 {
		addresses = ip[8:40]
	}
	pseudo := uint32(onesSum(0, addresses)) + unix.IPPROTO_TCP + uint32(len(tcp))
	return onesSum(pseudo, tcp)
}

// arp is a request for target by sender.
func arp(sender, target string) []byte {
	b := make([]byte, 42)
	copy(b, []byte{255, 255, 255, 255, 255, 255})
	copy(b[6:], clientMAC[:])
	binary.BigEndian.PutUint16(b[12:], 0x0806)
	copy(b[14:], []byte{0, 1, 8, 0, 6, 4, 0, 1})
	copy(b[22:], clientMAC[:])
	s, d := netip.MustParseAddr(sender).As4(), netip.MustParseAddr(target).As4()
	copy(b[28:], s[:])
	copy(b[38:], d[:])
	return b
}
