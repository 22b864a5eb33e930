package flowsync

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// Bits of the byte that a record begins with.
const (
	recordV6     = 1 << 0 // all four addresses are IPv6
	recordClosed = 1 << 1 // only the identity follows
	recordKnown  = recordV6 | recordClosed
)

// encodable reports whether the record has the form that flows have: four
// addresses of one family, without zones.
func encodable(r *lb.FlowRecord) bool {
	family := r.Client.Addr().BitLen()
	if family == 0 {
		return false
	}
	for _, a := range [...]netip.AddrPort{r.Client, r.Service, r.SNAT, r.Backend} {
		if a.Addr().BitLen() != family || a.Addr().Zone() != "" {
			return false
		}
	}
	return true
}

// appendRecord appends a record, or only its identity if the flow is closed.
// Service and backend are given by their place in the sender's dictionary,
// counted from 1; those that are not there any more, by address after a 0.
func appendRecord(dst []byte, r *lb.FlowRecord, closed bool, b *book) []byte {
	var flags byte
	if r.Client.Addr().Is6() {
		flags |= recordV6
	}
	if closed {
		flags |= recordClosed
	}
	dst = append(dst, flags)
	place := b.index[pair{r.Service, r.Backend}]
	dst = binary.AppendUvarint(dst, uint64(place))
	if place == 0 {
		dst = appendAddrPort(dst, r.Service)
		dst = appendAddrPort(dst, r.Backend)
	}
	dst = appendAddrPort(dst, r.Client)
	dst = appendAddrPort(dst, r.SNAT)
	if closed {
		return dst
	}
	dst = append(dst, r.ClientMAC[:]...)
	dst = binary.BigEndian.AppendUint16(dst, uint16(r.State))
	dst = binary.BigEndian.AppendUint32(dst, r.ClientAck)
	dst = binary.BigEndian.AppendUint32(dst, r.BackendAck)
	dst = binary.BigEndian.AppendUint32(dst, r.FinAck)
	dst = appendAge(dst, r.Age)
	dst = appendAge(dst, r.Idle)
	for _, n := range [...]uint64{r.PacketsIn, r.BytesIn, r.PacketsOut, r.BytesOut} {
		dst = binary.AppendUvarint(dst, n)
	}
	return dst
}

// appendAge appends a time in whole microseconds.
func appendAge(dst []byte, d time.Duration) []byte {
	return binary.AppendUvarint(dst, uint64(max(0, d)/time.Microsecond))
}

// maxAge keeps an age that a peer sends within what a Duration can hold.
const maxAge = uint64(1<<63-1) / uint64(time.Microsecond)

func (c *cursor) age() time.Duration {
	return time.Duration(min(c.uvarint(), maxAge)) * time.Microsecond
}

// record reads what appendRecord has written. The places are those of the
// peer's dictionary.
func (c *cursor) record(r *lb.FlowRecord, pairs []pair) (closed bool) {
	flags := c.u8()
	if flags&^recordKnown != 0 {
		c.bad, c.b = true, nil
		return false
	}
	v6 := flags&recordV6 != 0
	*r = lb.FlowRecord{}
	switch place := c.uvarint(); {
	case place == 0:
		r.Service, r.Backend = c.addrPort(v6), c.addrPort(v6)
	case place <= uint64(len(pairs)) && pairs[place-1].service.Addr().Is6() == v6:
		r.Service, r.Backend = pairs[place-1].service, pairs[place-1].backend
	default:
		c.bad, c.b = true, nil
		return false
	}
	r.Client, r.SNAT = c.addrPort(v6), c.addrPort(v6)
	if flags&recordClosed != 0 {
		return true
	}
	copy(r.ClientMAC[:], c.take(len(r.ClientMAC)))
	r.State = lb.FlowState(c.u16())
	r.ClientAck, r.BackendAck, r.FinAck = c.u32(), c.u32(), c.u32()
	r.Age, r.Idle = c.age(), c.age()
	r.PacketsIn, r.BytesIn, r.PacketsOut, r.BytesOut = c.uvarint(), c.uvarint(), c.uvarint(), c.uvarint()
	return false
}
