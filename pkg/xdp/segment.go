package xdp

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Flags of a TCP header (RFC 9293, 3.1).
const (
	tcpRST = 1 << 2
	tcpACK = 1 << 4
)

// probeWindow is nothing that anybody goes by, since a probe is out of sequence;
// but none that says stop.
const probeWindow = 512

// tcpHeaderLen is that of a header without options, in bytes.
const tcpHeaderLen = 20

// bareSegment is an IP packet with a TCP segment that has no data.
func bareSegment(from, to netip.AddrPort, seq, ack uint32, flags uint8) []byte {
	var packet []byte
	if from.Addr().Is4() {
		packet = ipv4Header(from.Addr(), to.Addr())
	} else {
		packet = ipv6Header(from.Addr(), to.Addr())
	}
	tcp := make([]byte, tcpHeaderLen)
	binary.BigEndian.PutUint16(tcp, from.Port())
	binary.BigEndian.PutUint16(tcp[2:], to.Port())
	binary.BigEndian.PutUint32(tcp[4:], seq)
	binary.BigEndian.PutUint32(tcp[8:], ack)
	tcp[12], tcp[13] = tcpHeaderLen/4<<4, flags
	if flags&tcpRST == 0 {
		binary.BigEndian.PutUint16(tcp[14:], probeWindow)
	}
	binary.BigEndian.PutUint16(tcp[16:], tcpChecksum(from.Addr(), to.Addr(), tcp))
	return append(packet, tcp...)
}

// tcpChecksum covers the addresses, protocol and length as well (RFC 9293, 3.1;
// RFC 8200, 8.1).
func tcpChecksum(from, to netip.Addr, tcp []byte) uint16 {
	sum := uint32(unix.IPPROTO_TCP + len(tcp))
	for _, part := range [][]byte{from.AsSlice(), to.AsSlice(), tcp} {
		for i := 0; i+1 < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// hopLimit is of packets that are made here.
const hopLimit = 64

// ipv4Header leaves checksum and identification to the kernel.
func ipv4Header(from, to netip.Addr) []byte {
	b := make([]byte, 20, 20+tcpHeaderLen)
	b[0] = 0x45
	binary.BigEndian.PutUint16(b[2:], 20+tcpHeaderLen)
	binary.BigEndian.PutUint16(b[6:], 0x4000) // do not fragment
	b[8], b[9] = hopLimit, unix.IPPROTO_TCP
	copy(b[12:], from.AsSlice())
	copy(b[16:], to.AsSlice())
	return b
}

func ipv6Header(from, to netip.Addr) []byte {
	b := make([]byte, 40, 40+tcpHeaderLen)
	b[0] = 0x60
	binary.BigEndian.PutUint16(b[4:], tcpHeaderLen)
	b[6], b[7] = unix.IPPROTO_TCP, hopLimit
	copy(b[8:], from.AsSlice())
	copy(b[24:], to.AsSlice())
	return b
}
