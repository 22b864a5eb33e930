package xdp

import (
	"encoding/binary"
	"net/netip"
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
// checksums of its own making: nothing here shares code with the program.
type segment struct {
	srcMAC, dstMAC macAddr
	src, dst       netip.AddrPort
	flags          uint8
	seq, ack       uint32
	payload        string
	options        string // TCP options, a multiple of four bytes
	ttl            uint8  // 64 when zero
	fragment       uint16
	ipOptions      int // 32-bit words
	padding        int // bytes after the packet
}

// fromClient is a segment as a client of the VIP sends it.
func fromClient(flags uint8) segment {
	return segment{srcMAC: clientMAC, dstMAC: lbMAC, src: client, dst: vip, flags: flags, seq: 1000, ack: 2000}
}

// frame puts the segment into bytes.
func (s segment) frame() []byte {
	ihl := 20 + 4*s.ipOptions
	total := ihl + 20 + len(s.options) + len(s.payload)
	b := make([]byte, 14+total+s.padding)
	copy(b, s.dstMAC[:])
	copy(b[6:], s.srcMAC[:])
	binary.BigEndian.PutUint16(b[12:], 0x0800)
	ip := b[14:]
	ip[0] = 0x40 | byte(ihl/4)
	binary.BigEndian.PutUint16(ip[2:], uint16(total))
	binary.BigEndian.PutUint16(ip[4:], 0x1234)
	binary.BigEndian.PutUint16(ip[6:], s.fragment)
	if ip[8] = s.ttl; s.ttl == 0 {
		ip[8] = 64
	}
	ip[9] = unix.IPPROTO_TCP
	src, dst := s.src.Addr().As4(), s.dst.Addr().As4()
	copy(ip[12:], src[:])
	copy(ip[16:], dst[:])
	for i := range s.ipOptions * 4 {
		ip[20+i] = 1 // no operation
	}
	binary.BigEndian.PutUint16(ip[10:], ^onesSum(0, ip[:ihl]))
	tcp := ip[ihl:total]
	binary.BigEndian.PutUint16(tcp, s.src.Port())
	binary.BigEndian.PutUint16(tcp[2:], s.dst.Port())
	binary.BigEndian.PutUint32(tcp[4:], s.seq)
	if s.flags&ack != 0 {
		binary.BigEndian.PutUint32(tcp[8:], s.ack)
	}
	tcp[12] = byte(5+len(s.options)/4) << 4
	tcp[13] = s.flags
	binary.BigEndian.PutUint16(tcp[14:], 65535)
	copy(tcp[20:], s.options+s.payload)
	binary.BigEndian.PutUint16(tcp[16:], ^tcpSum(ip, tcp))
	return b
}

// decode reads a frame back and fails the test unless lengths and both
// checksums are right.
func decode(t *testing.T, b []byte) segment {
	t.Helper()
	if len(b) < 54 {
		t.Fatalf("frame of %d bytes", len(b))
	}
	ip := b[14:]
	ihl := int(ip[0]&15) * 4
	total := int(binary.BigEndian.Uint16(ip[2:]))
	if ihl != 20 || total > len(ip) {
		t.Fatalf("IP header length %d, total %d of %d", ihl, total, len(ip))
	}
	if sum := onesSum(0, ip[:ihl]); sum != 0xffff {
		t.Errorf("IP checksum: sum %#04x", sum)
	}
	tcp := ip[ihl:total]
	data := int(tcp[12]>>4) * 4
	if sum := tcpSum(ip, tcp); sum != 0xffff {
		t.Errorf("TCP checksum: sum %#04x", sum)
	}
	addr := func(b []byte, port []byte) netip.AddrPort {
		a, _ := netip.AddrFromSlice(b)
		return netip.AddrPortFrom(a, binary.BigEndian.Uint16(port))
	}
	return segment{
		dstMAC:  macAddr(b[:6]),
		srcMAC:  macAddr(b[6:12]),
		src:     addr(ip[12:16], tcp),
		dst:     addr(ip[16:20], tcp[2:]),
		flags:   tcp[13],
		seq:     binary.BigEndian.Uint32(tcp[4:]),
		ack:     binary.BigEndian.Uint32(tcp[8:]),
		options: string(tcp[20:data]),
		payload: string(tcp[data:]),
		ttl:     ip[8],
		padding: len(ip) - total,
	}
}

// answer is what the receiver of s would send back.
func (s segment) answer(flags uint8) segment {
	return segment{
		srcMAC: s.dstMAC, dstMAC: s.srcMAC, src: s.dst, dst: s.src,
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
	pseudo := uint32(onesSum(0, ip[12:20])) + unix.IPPROTO_TCP + uint32(len(tcp))
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
