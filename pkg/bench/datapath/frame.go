package datapath

import (
	"encoding/binary"
	"net/netip"
)

// Offsets within the frames of this package: Ethernet, IPv4 without options,
// TCP.
const (
	offIP       = 14
	offIPCheck  = offIP + 10
	offSource   = offIP + 12
	offDest     = offIP + 16
	offTCP      = offIP + 20
	offTCPCheck = offTCP + 16
	plainLen    = offTCP + 20

	protoTCP = 6
)

// TCP flags (RFC 9293, 3.1).
const (
	flagSYN = 0x02
	flagPSH = 0x08
	flagACK = 0x10
)

// synOptions are those of a SYN by Linux: segment size, selective
// acknowledgement, timestamps, window scale.
var synOptions = []byte{
	2, 4, 0x05, 0xb4,
	4, 2,
	8, 10, 0, 0x12, 0x34, 0x56, 0, 0, 0, 0,
	1, 3, 3, 7,
}

// segment is a TCP segment in an IPv4 packet in an Ethernet frame.
type segment struct {
	srcMAC, dstMAC [6]byte
	src, dst       netip.AddrPort
	seq, ack       uint32
	flags          byte
	options        []byte // a multiple of four bytes
	payload        int    // bytes, all zero
}

func (s segment) frame() []byte {
	headers := plainLen + len(s.options)
	b := make([]byte, headers+s.payload)
	copy(b[0:], s.dstMAC[:])
	copy(b[6:], s.srcMAC[:])
	binary.BigEndian.PutUint16(b[12:], 0x0800)
	ip := b[offIP:]
	ip[0] = 0x45
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
	binary.BigEndian.PutUint16(ip[6:], 0x4000) // do not fragment
	ip[8], ip[9] = 64, protoTCP
	src, dst := s.src.Addr().As4(), s.dst.Addr().As4()
	copy(b[offSource:], src[:])
	copy(b[offDest:], dst[:])
	tcp := b[offTCP:]
	binary.BigEndian.PutUint16(tcp[0:], s.src.Port())
	binary.BigEndian.PutUint16(tcp[2:], s.dst.Port())
	binary.BigEndian.PutUint32(tcp[4:], s.seq)
	binary.BigEndian.PutUint32(tcp[8:], s.ack)
	tcp[12], tcp[13] = byte(20+len(s.options))/4<<4, s.flags
	binary.BigEndian.PutUint16(tcp[14:], 502) // window
	copy(tcp[20:], s.options)
	binary.BigEndian.PutUint16(b[offIPCheck:], ^add(0, ip[:20]))
	pseudo := add(add(protoTCP+uint16(len(tcp)), src[:]), dst[:])
	binary.BigEndian.PutUint16(b[offTCPCheck:], ^add(pseudo, tcp))
	return b
}

// add adds bytes, an even number of them, to a ones' complement sum (RFC 1071).
func add(sum uint16, b []byte) uint16 {
	wide := uint32(sum)
	for i := 0; i < len(b); i += 2 {
		wide += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for wide > 0xffff {
		wide = wide&0xffff + wide>>16
	}
	return uint16(wide)
}

// addresses returns source and destination of a frame.
func addresses(frame []byte) (src, dst netip.AddrPort) {
	at := func(addr, port int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(frame[addr:])), binary.BigEndian.Uint16(frame[port:]))
	}
	return at(offSource, offTCP), at(offDest, offTCP+2)
}
