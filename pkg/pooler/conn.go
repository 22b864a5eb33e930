package pooler

// conn is what clients and servers have in common: a place in the slot table,
// readiness, and bytes on their way out. It belongs to the machine; the loop
// reads and writes the descriptor.
type conn struct {
	slot uint32 // index in machine.slots
	gen  uint32 // generation of the slot: tells this connection's events from a predecessor's
	fd   int
	tls  *tlsSession // nil for plain text
	// tlsInfo describes it for the console.
	tlsInfo string

	cl *client // exactly one of the two is not nil
	sv *server

	// readable: an edge was seen and the socket has not been read dry since.
	// With edge-triggered events nobody else remembers this.
	readable bool
	// ended: the peer closed or the connection broke, so a short read does not
	// mean that there is nothing more: the end is still to be read.
	ended bool
	// broken: it was not closed in order, nothing can be sent any more.
	broken bool
	// writable is false from a send that did not take everything to the next
	// EPOLLOUT.
	writable bool
	queued   bool // stands in machine.ready
	dirty    bool // stands in machine.dirty
	dropped  bool // descriptor closed, slot given back
	noted    bool // stands in heir.candidates
	parked   bool // not to be read while the pooler is suspended

	in  framer
	out *outq // nil unless there are bytes to send in this round
	// spill is what the socket did not take. While it is not empty, its source
	// is not read, which bounds it to about one turn's bytes.
	spill []byte
	// bye: close when the output is sent. Its last words (an error) would be
	// lost if the socket were closed with unread input in it (RFC 1122,
	// section 4.2.2.13), so the input is read and thrown away until the peer
	// closes or the deadline comes.
	bye bool
}

// framer follows the messages in one direction of a connection.
type framer struct {
	gather []byte   // the front of a message that must be seen before it may pass
	want   int      // how many bytes of it
	left   int      // body bytes of the current message still to come
	drop   bool     // they are to be swallowed
	small  [24]byte // where gather lies when want fits: headers and short messages
}

// atBoundary reports whether nothing of an unfinished message has been passed.
func (f *framer) atBoundary() bool { return f.left == 0 || f.drop }

// start begins to gather a message of which b is there and want is needed.
func (f *framer) start(b []byte, want int) {
	f.want = want
	if want <= len(f.small) {
		f.gather = append(f.small[:0], b...)
		return
	}
	// Grow with what arrives, not with what was announced.
	f.gather = append(make([]byte, 0, min(want, max(2*len(b), 512))), b...)
}

// more adds the front of b to the gathered bytes. When they suffice, it returns
// them as a slice that stays valid for the round, and the gathering is over.
func (f *framer) more(b []byte, a *arena) (msg, rest []byte) {
	n := min(f.want-len(f.gather), len(b))
	f.gather = append(f.gather, b[:n]...)
	if len(f.gather) < f.want {
		return nil, nil
	}
	msg = f.gather
	if len(msg) <= len(f.small) {
		msg = a.copied(msg)
	}
	f.gather = nil
	return msg, b[n:]
}

// outq is what a connection is to be sent at the end of the round.
type outq struct {
	segs [][]byte
	size int // bytes in all
}

// smallCopy is up to how many bytes it is cheaper to copy than to send as a
// vector of their own (an iovec costs the kernel about as much as copying a few
// hundred bytes).
const smallCopy = 256

// emit queues b for c. B must not change before the end of the round.
func (m *machine) emit(c *conn, b []byte) {
	if len(b) == 0 || c.dropped {
		return
	}
	if c.out == nil {
		c.out = m.takeOutq()
	}
	if !c.dirty {
		c.dirty = true
		m.dirty = append(m.dirty, c)
	}
	o := c.out
	o.size += len(b)
	if n := len(o.segs); n > 0 {
		last := o.segs[n-1]
		if len(last) < cap(last) && &last[: len(last)+1 : cap(last)][len(last)] == &b[0] && len(last)+len(b) <= cap(last) {
			o.segs[n-1] = last[:len(last)+len(b)]
			return
		}
		if len(b) <= smallCopy {
			if joined, ok := m.arena.extend(last, b); ok {
				o.segs[n-1] = joined
				return
			}
		}
	}
	o.segs = append(o.segs, b)
}

func (m *machine) takeOutq() *outq {
	if n := len(m.outqs); n > 0 {
		o := m.outqs[n-1]
		m.outqs = m.outqs[:n-1]
		return o
	}
	return &outq{segs: make([][]byte, 0, 8)}
}

func (m *machine) putOutq(o *outq) {
	clear(o.segs)
	o.segs, o.size = o.segs[:0], 0
	if cap(o.segs) <= 64 { // one that a giant pipeline blew up is let go
		m.outqs = append(m.outqs, o)
	}
}

// wake puts c in the queue of connections to be read, if there is anything to
// read and it is not there already.
func (m *machine) wake(c *conn) {
	if c.queued || c.dropped || !(c.readable || c.cl != nil && (len(c.cl.held) > 0 || c.cl.heldEnd)) {
		return
	}
	c.queued = true
	m.ready = append(m.ready, c)
}

// flush sends what the round queued, to each destination once, and gives the
// arena free.
func (m *machine) flush() {
	if m.freed {
		m.settleLimits()
	}
	for i := 0; i < len(m.dirty); i++ { // a failed send may add to the list
		m.flushConn(m.dirty[i])
	}
	clear(m.dirty)
	m.dirty = m.dirty[:0]
	m.arena.reset()
}

func (m *machine) flushConn(c *conn) {
	c.dirty = false
	o := c.out
	c.out = nil
	if o == nil {
		return
	}
	if c.dropped {
		m.putOutq(o)
		return
	}
	sent := 0
	if len(c.spill) == 0 && c.writable {
		n, err := m.world.write(c, o.segs)
		if err != nil {
			m.putOutq(o)
			m.sendFailed(c)
			return
		}
		sent = n
		m.countSent(c, n)
	}
	if sent < o.size {
		c.writable = false
		if c.spill == nil {
			c.spill = m.takeSpill()
		}
		for _, seg := range o.segs {
			if sent >= len(seg) {
				sent -= len(seg)
				continue
			}
			c.spill = append(c.spill, seg[sent:]...)
			sent = 0
		}
	}
	m.putOutq(o)
	if len(c.spill) == 0 {
		m.drained(c)
	}
}

// becameWritable goes on with a connection whose socket has room again.
func (m *machine) becameWritable(c *conn) {
	c.writable = true
	if len(c.spill) == 0 || c.dropped {
		return
	}
	m.one[0] = c.spill
	n, err := m.world.write(c, m.one[:])
	if err != nil {
		m.sendFailed(c)
		return
	}
	m.countSent(c, n)
	if n < len(c.spill) {
		c.writable = false
		// Moved down, so that the buffer does not keep what is gone.
		c.spill = c.spill[:copy(c.spill, c.spill[n:])]
		return
	}
	m.putSpill(c)
	m.drained(c)
}

// Spill buffers up to this size are kept for the next slow reader, this many
// of them: a slow reader of a large result needs one for each turn.
const (
	spillKeep  = readSize
	spillCount = 64
)

func (m *machine) takeSpill() []byte {
	if n := len(m.spills); n > 0 {
		b := m.spills[n-1]
		m.spills = m.spills[:n-1]
		return b
	}
	return make([]byte, 0, spillKeep)
}

func (m *machine) putSpill(c *conn) {
	if cap(c.spill) == spillKeep && len(m.spills) < spillCount {
		m.spills = append(m.spills, c.spill[:0])
	}
	c.spill = nil
}

// countSent counts what was sent to a client.
func (m *machine) countSent(c *conn, n int) {
	if c.cl != nil {
		c.cl.pool.stats.BytesSent += uint64(n)
	}
}

// drained wakes the source of a connection that has nothing left to send.
func (m *machine) drained(c *conn) {
	switch {
	case c.bye:
		m.world.end(c, endSending)
	case c.sv != nil:
		if cl := c.sv.client; cl != nil {
			m.wake(&cl.conn)
		}
	case c.cl.server != nil:
		m.wake(&c.cl.server.conn)
		m.wake(c)
	default:
		m.wake(c)
	}
}

// sendFailed deals with a connection that takes no more bytes. A server may
// have said why before it closed, so its end is taken from its own stream.
func (m *machine) sendFailed(c *conn) {
	m.putSpill(c)
	if c.cl != nil {
		m.clientGone(c.cl, "send failed")
		return
	}
	c.writable = false
	c.ended, c.readable = true, true
	m.wake(c)
}
