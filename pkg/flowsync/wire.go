package flowsync

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
)

// A frame is its length (4 bytes, of what follows), its kind (1 byte) and a
// body. Numbers are big-endian or, where they are mostly small, uvarints.
const (
	frameHeader = 5
	// maxFrame bounds what a peer can make us allocate. The dictionary of 256
	// services with 64 backends, all names and addresses of the longest kind,
	// takes 850 kB.
	maxFrame = 1 << 20
	// maxOps is the most records of one frame; they take more room in memory
	// than on the wire.
	maxOps = 1024
	// batchOps and batchBytes are when a batch is full. It fits one TLS record
	// of 16 KiB.
	batchOps   = 512
	batchBytes = 15 << 10
	// maxServes is the most addresses of one end frame: more virtual routers of
	// more addresses than pkg/xdp takes.
	maxServes = 1024
	maxReason = 256
)

// kind says what a frame is. The numbers of hello and refuse are the same in
// all versions of the protocol.
type kind uint8

const (
	kindHello      kind = 1 + iota // who I am and what versions I speak
	kindRefuse                     // why I hang up
	kindDictionary                 // my services and backends
	kindState                      // heartbeat: State as JSON
	kindAck                        // stored everything up to this batch
	kindBegin                      // a pass begins
	kindCopy                       // records of a pass
	kindEnd                        // the pass is complete
	kindChanges                    // what happened, in order
	kindGap                        // changes were lost: your copy of mine is incomplete
	kindResync                     // my copy of yours is incomplete: send all
)

// errMalformed is the cause of all errors of decoding.
var errMalformed = errors.New("malformed frame")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errMalformed, fmt.Sprintf(format, args...))
}

// beginFrame appends a header; endFrame fills in the length.
func beginFrame(dst []byte, k kind) []byte { return append(dst, 0, 0, 0, 0, byte(k)) }

func endFrame(dst []byte, start int) []byte {
	binary.BigEndian.PutUint32(dst[start:], uint32(len(dst)-start-4))
	return dst
}

// readFrame reads one frame. The body is valid until the next call, which gets
// the returned buffer.
func readFrame(r *bufio.Reader, buf []byte) (k kind, body, next []byte, err error) {
	var head [frameHeader]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, buf, err
	}
	length := binary.BigEndian.Uint32(head[:])
	if length < 1 || length > maxFrame {
		return 0, nil, buf, malformed("length %d", length)
	}
	n := int(length) - 1
	if cap(buf) < n {
		buf = make([]byte, n)
	}
	body = buf[:n]
	if _, err := io.ReadFull(r, body); err != nil {
		return 0, nil, buf, fmt.Errorf("reading a frame's body: %w", err)
	}
	return kind(head[4]), body, buf, nil
}

// cursor reads a body. After something is missing all reads give zeros, and
// bad is set.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) take(n int) []byte {
	if n < 0 || n > len(c.b) {
		c.bad, c.b = true, nil
		return nil
	}
	out := c.b[:n]
	c.b = c.b[n:]
	return out
}

func (c *cursor) u8() uint8 {
	if b := c.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (c *cursor) u16() uint16 {
	if b := c.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (c *cursor) u32() uint32 {
	if b := c.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (c *cursor) uvarint() uint64 {
	v, n := binary.Uvarint(c.b)
	if n <= 0 {
		c.bad, c.b = true, nil
		return 0
	}
	c.b = c.b[n:]
	return v
}

// text reads a string with its length, of at most so many bytes.
func (c *cursor) text(most int) string {
	n := c.uvarint()
	if n > uint64(most) {
		c.bad, c.b = true, nil
		return ""
	}
	return string(c.take(int(n)))
}

// addr reads an address of the given family.
func (c *cursor) addr(v6 bool) netip.Addr {
	if v6 {
		if b := c.take(16); b != nil {
			return netip.AddrFrom16([16]byte(b))
		}
		return netip.IPv6Unspecified()
	}
	if b := c.take(4); b != nil {
		return netip.AddrFrom4([4]byte(b))
	}
	return netip.IPv4Unspecified()
}

func (c *cursor) addrPort(v6 bool) netip.AddrPort {
	a := c.addr(v6)
	return netip.AddrPortFrom(a, c.u16())
}

// anyAddr reads an address that is preceded by its length.
func (c *cursor) anyAddr() netip.Addr {
	switch n := c.u8(); n {
	case 4, 16:
		return c.addr(n == 16)
	default:
		c.bad, c.b = true, nil
		return netip.Addr{}
	}
}

// done returns an error unless the body was exactly what was read.
func (c *cursor) done(what string) error {
	if c.bad {
		return malformed("%s is cut short or out of bounds", what)
	}
	if len(c.b) > 0 {
		return malformed("%s has %d bytes too many", what, len(c.b))
	}
	return nil
}

func appendText(dst []byte, s string, most int) []byte {
	s = s[:min(len(s), most)]
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

func appendAddrPort(dst []byte, a netip.AddrPort) []byte {
	dst = appendAddr(dst, a.Addr())
	return binary.BigEndian.AppendUint16(dst, a.Port())
}

func appendAddr(dst []byte, a netip.Addr) []byte {
	if a.Is4() {
		b := a.As4()
		return append(dst, b[:]...)
	}
	b := a.As16()
	return append(dst, b[:]...)
}

func appendAnyAddr(dst []byte, a netip.Addr) []byte {
	return appendAddr(append(dst, byte(a.BitLen()/8)), a)
}
