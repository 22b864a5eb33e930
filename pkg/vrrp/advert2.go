package vrrp

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"time"
)

// Numbers of version 2, RFC 3768 section 5.
const (
	version2 = 2 // 5.3.1
	auth2Len = 8 // 5.3.10: the authentication data, there even when it is void

	auth2None     = 0 // 5.3.6
	auth2Password = 1 // RFC 2338 section 5.3.6, reserved since

	maxInterval2 = 255 * time.Second // 5.3.7: a byte of seconds
)

// Secret is a password or key, and never shows in logs or dumps.
type Secret string

// String implements fmt.Stringer.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "***"
}

// GoString implements fmt.GoStringer, for %#v.
func (s Secret) GoString() string { return s.String() }

// MarshalText implements encoding.TextMarshaler.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// data returns the authentication type and data of a version 2 message: the
// first eight bytes of the password, in the clear. It keeps a router that was
// not meant apart, as RFC 2338 section 10.2 says, not an attacker.
func (s Secret) data() (kind byte, data [auth2Len]byte) {
	if s == "" {
		return auth2None, data
	}
	copy(data[:], s)
	return auth2Password, data
}

// Append2 appends the message in the encoding of version 2 (RFC 3768 section
// 5.1) to b and returns the extended slice. The interval is sent in whole
// seconds; the addresses must be IPv4.
func (a *Advertisement) Append2(b []byte, auth Secret) []byte {
	kind, data := auth.data()
	start := len(b)
	b = append(b, version2<<4|typeAdvert, a.VRID, a.Priority, uint8(len(a.Addresses)),
		kind, uint8(a.Interval/time.Second), 0, 0)
	for _, addr := range a.Addresses {
		b = append(b, addr.AsSlice()...)
	}
	b = append(b, data[:]...)
	msg := b[start:]
	binary.BigEndian.PutUint16(msg[6:], ^fold(sum16(0, msg))) // 5.3.8: no pseudo-header
	return b
}

// Parse2 decodes and verifies the version 2 message b for a router with this
// password. The error is a [Refusal]. b is not retained. That the interval must
// be the receiver's own (RFC 3768 section 7.1) is the router's to check.
func Parse2(b []byte, auth Secret) (Advertisement, error) {
	if len(b) < headerLen {
		return Advertisement{}, RefusedLength
	}
	if b[0]>>4 != version2 {
		return Advertisement{}, RefusedVersion
	}
	if b[0]&0x0f != typeAdvert {
		return Advertisement{}, RefusedType
	}
	count := int(b[3])
	if len(b) != headerLen+4*count+auth2Len {
		return Advertisement{}, RefusedLength
	}
	if fold(sum16(0, b)) != 0xffff {
		return Advertisement{}, RefusedChecksum
	}
	kind, data := auth.data()
	// The data of a message without authentication is ignored (5.3.10).
	if b[4] != kind || kind != auth2None && !bytes.Equal(b[len(b)-auth2Len:], data[:]) {
		return Advertisement{}, RefusedAuth
	}
	if count == 0 {
		return Advertisement{}, RefusedCount
	}
	if b[5] == 0 {
		return Advertisement{}, RefusedInterval
	}
	a := Advertisement{
		VRID: b[1], Priority: b[2], Interval: time.Duration(b[5]) * time.Second,
		Addresses: make([]netip.Addr, count),
	}
	for i := range a.Addresses {
		a.Addresses[i] = netip.AddrFrom4([4]byte(b[headerLen+4*i:]))
	}
	return a, nil
}
