package vrrp

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Numbers of the protocol, RFC 9568 section 5.
const (
	protocolNumber = 112 // 5.1.1.4: IANA's number for VRRP
	version3       = 3   // 5.2.1
	typeAdvert     = 1   // 5.2.2, the only type there is
	protocolTTL    = 255 // 5.1.1.3: proves that no router forwarded the packet

	headerLen = 8 // 5.2: the fixed part of a message, before the addresses

	priorityOwner  = 255 // 5.2.4: the node whose own address is the virtual one
	priorityResign = 0   // 5.2.4: the active node gives up its role

	maxIntervalCentiseconds = 0x0fff // 5.2.7: twelve bits
)

// The groups that advertisements are multicast to, 5.1.1.2 and 5.1.2.2.
var (
	groupV4 = netip.AddrFrom4([4]byte{224, 0, 0, 18})
	groupV6 = netip.AddrFrom16([16]byte{0: 0xff, 1: 0x02, 15: 0x12})
)

// groupOf returns the group of the family that the node's own address is of.
func groupOf(source netip.Addr) netip.Addr {
	if source.Is6() {
		return groupV6
	}
	return groupV4
}

// ChecksumForm tells what the checksum of a version 3 message over IPv4 covers.
//
// RFC 9568 section 5.2.8 says the message alone for IPv4; RFC 5798 was read by
// keepalived and FRR as message plus pseudo-header, and both still send that by
// default. We accept either, and remember which one a peer uses. Over IPv6 all
// agree on the pseudo-header, and nothing else is accepted.
type ChecksumForm uint8

// The forms of the checksum.
const (
	ChecksumUnknown ChecksumForm = iota // nothing accepted so far
	ChecksumMessage                     // over the message only, RFC 9568
	ChecksumPseudo                      // over a pseudo-header and the message

	// ChecksumAuto, of a Config, sends in the form of the peer once it is known.
	ChecksumAuto = ChecksumUnknown
)

var checksumNames = [...]string{ChecksumUnknown: "unknown", ChecksumMessage: "message", ChecksumPseudo: "pseudo-header"}

// String returns the name used in snapshots.
func (f ChecksumForm) String() string {
	if int(f) < len(checksumNames) {
		return checksumNames[f]
	}
	return fmt.Sprintf("checksum(%d)", uint8(f))
}

// MarshalText implements encoding.TextMarshaler.
func (f ChecksumForm) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (f *ChecksumForm) UnmarshalText(text []byte) error {
	i := slices.Index(checksumNames[:], string(text))
	if i < 0 {
		return fmt.Errorf("unknown form of checksum %q", text)
	}
	*f = ChecksumForm(i)
	return nil
}

// Advertisement is the only message of VRRP (RFC 9568 section 5.2). [Parse] and
// Append are of version 3, [Parse2] and Append2 of version 2.
type Advertisement struct {
	VRID     uint8
	Priority uint8
	// Interval is the sender's advertisement interval, 10 ms to 40.95 s in
	// steps of 10 ms (the wire has centiseconds). Version 2 has seconds, 1 to 255.
	Interval  time.Duration
	Addresses []netip.Addr // the virtual addresses, 1 to 255 of them, all of one family
}

// Append appends the encoded message to b and returns the extended slice.
// src and dst are the addresses of the packet that will carry it, of the same
// family as the virtual ones; for IPv6 form does not count, because there is
// only one.
func (a *Advertisement) Append(b []byte, form ChecksumForm, src, dst netip.Addr) []byte {
	start := len(b)
	b = append(b, version3<<4|typeAdvert, a.VRID, a.Priority, uint8(len(a.Addresses)))
	b = binary.BigEndian.AppendUint16(b, uint16(a.Interval/(10*time.Millisecond))&maxIntervalCentiseconds)
	b = append(b, 0, 0)
	for _, addr := range a.Addresses {
		b = append(b, addr.AsSlice()...)
	}
	seal(b[start:], form, src, dst)
	return b
}

// seal fills in the checksum of a version 3 message.
func seal(msg []byte, form ChecksumForm, src, dst netip.Addr) {
	msg[6], msg[7] = 0, 0
	sum := sum16(0, msg)
	if form == ChecksumPseudo || src.Is6() {
		sum = pseudoSum(sum, src, dst, len(msg))
	}
	binary.BigEndian.PutUint16(msg[6:], ^fold(sum))
}

// Parse decodes and verifies the VRRP message b, which came in a packet from
// src to dst, whose family is that of the virtual addresses in it. The error is
// a [Refusal]. b is not retained.
//
// The checks of RFC 9568 section 7.1 that need no knowledge of the receiver
// are all here; those that do (TTL, VRID, source) are the router's.
func Parse(b []byte, src, dst netip.Addr) (Advertisement, ChecksumForm, error) {
	return parse3(b, 0, src, dst)
}

// parse3 is Parse of a message that is followed by a trailer of that many bytes.
func parse3(b []byte, trailer int, src, dst netip.Addr) (Advertisement, ChecksumForm, error) {
	if len(b) < headerLen {
		return Advertisement{}, ChecksumUnknown, RefusedLength
	}
	if b[0]>>4 != version3 {
		return Advertisement{}, ChecksumUnknown, RefusedVersion
	}
	if b[0]&0x0f != typeAdvert {
		return Advertisement{}, ChecksumUnknown, RefusedType
	}
	count, size := int(b[3]), src.BitLen()/8
	if len(b) != headerLen+size*count+trailer {
		return Advertisement{}, ChecksumUnknown, RefusedLength
	}
	covered := b[:len(b)-trailer]
	if src.Is6() {
		covered = b // the sender's kernel takes it for a transport protocol's
	}
	form := ChecksumUnknown
	sum := sum16(0, covered)
	switch {
	case fold(sum) == 0xffff && src.Is4():
		form = ChecksumMessage
	case fold(pseudoSum(sum, src, dst, len(covered))) == 0xffff:
		form = ChecksumPseudo
	default:
		return Advertisement{}, ChecksumUnknown, RefusedChecksum
	}
	if count == 0 { // RFC 5798 erratum 8299
		return Advertisement{}, form, RefusedCount
	}
	// The four reserved bits above the interval are ignored, 5.2.6. An interval
	// of 0 would make the down interval 0 too (RFC 5798 erratum 8301).
	centiseconds := binary.BigEndian.Uint16(b[4:]) & maxIntervalCentiseconds
	if centiseconds == 0 {
		return Advertisement{}, form, RefusedInterval
	}
	a := Advertisement{
		VRID:      b[1],
		Priority:  b[2],
		Interval:  time.Duration(centiseconds) * 10 * time.Millisecond,
		Addresses: make([]netip.Addr, count),
	}
	for i := range a.Addresses {
		a.Addresses[i], _ = netip.AddrFromSlice(b[headerLen+size*i:][:size])
	}
	return a, form, nil
}

// sum16 adds the 16-bit words of b to sum, RFC 1071. A message is at most 4088
// bytes long, so the sum cannot overflow.
func sum16(sum uint32, b []byte) uint32 {
	for len(b) >= 2 {
		sum += uint32(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	return sum
}

// pseudoSum adds the pseudo-header: addresses, protocol, message length. The one
// of IPv6 (RFC 8200 section 8.1) has wider fields, but the same sum.
func pseudoSum(sum uint32, src, dst netip.Addr, length int) uint32 {
	return sum16(sum16(sum, src.AsSlice()), dst.AsSlice()) + protocolNumber + uint32(length)
}

func fold(sum uint32) uint16 {
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}
