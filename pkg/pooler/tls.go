package pooler

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// A connection under TLS is one of the loop's like any other: crypto/tls works
// on memory there, and the loop moves the encrypted bytes. The machine does not
// know of it. There is no goroutine and no timer for such a connection, and no
// buffer beyond the tls.Conn's own while it rests.

const (
	// tlsReceive is how many encrypted bytes a connection may deliver in its
	// turn.
	tlsReceive = readSize
	// tlsWindow is room for what they decrypt to: never more than they and the
	// front of a record that came before.
	tlsWindow = tlsReceive + maxRecord
	// maxRecord is the longest record on the wire: header, 16 KB and what TLS
	// 1.2 allows on top (RFC 5246, section 6.2.3).
	maxRecord = 5 + 16<<10 + 2048
	// recordSize is the longest content of a record.
	recordSize = 16 << 10
	// sealBatch is up to how much is encrypted for one send.
	sealBatch = 64 << 10
	// maxSealed bounds what TLS itself sends (answers to key updates) while the
	// peer does not read.
	maxSealed = sealBatch + 4*maxRecord
)

// tlsSession is the TLS side of a connection.
type tlsSession struct {
	conn *tls.Conn
	wire *tlsWire
	// sealed is encrypted and not sent.
	sealed []byte
	begun  bool // the loop has read from it
	// closed: the peer has closed its side, or made no sense.
	closed bool
	finish bool // the sending side is to be closed when sealed is sent
}

// tlsWire is what a tls.Conn stands on: a socket while a goroutine has the
// connection, memory when the loop has it.
type tlsWire struct {
	net.Conn        // nil in the loop
	head     []byte // read already when TLS began
	in, out  []byte

	// slots is taken while a handshake computes, unless done.
	slots     chan struct{}
	done      <-chan struct{}
	computing bool
}

// errWouldBlock says that there is nothing more in memory. Crypto/tls goes on
// after an error that is temporary.
var errWouldBlock net.Error = wouldBlock{}

type wouldBlock struct{}

func (wouldBlock) Error() string   { return "no data in memory" }
func (wouldBlock) Timeout() bool   { return true }
func (wouldBlock) Temporary() bool { return true }

// Read implements net.Conn.
func (w *tlsWire) Read(b []byte) (int, error) {
	if w.Conn == nil {
		if len(w.in) == 0 {
			return 0, errWouldBlock
		}
		n := copy(b, w.in)
		w.in = w.in[n:]
		return n, nil
	}
	if len(w.head) > 0 {
		n := copy(b, w.head)
		w.head = w.head[n:]
		return n, nil
	}
	w.rest()
	return w.Conn.Read(b)
}

// Write implements net.Conn. To memory it never fails: an error would end the
// tls.Conn.
func (w *tlsWire) Write(b []byte) (int, error) {
	if w.Conn == nil {
		w.out = append(w.out, b...)
		return len(b), nil
	}
	return w.Conn.Write(b)
}

// SetWriteDeadline implements net.Conn. Crypto/tls calls it for its goodbye.
func (w *tlsWire) SetWriteDeadline(t time.Time) error {
	if w.Conn == nil {
		return nil // memory does not wait
	}
	return w.Conn.SetWriteDeadline(t)
}

// open decrypts what was received into b, to its end. Eof says that nothing
// will follow; an err that is not nil says why, if it was no orderly close.
func (s *tlsSession) open(in, b []byte) (n int, eof bool, err error) {
	s.wire.in = in
	for n < len(b) {
		got, rerr := s.conn.Read(b[n:])
		n += got
		switch {
		case rerr == nil:
			continue
		case rerr == error(errWouldBlock):
		case errors.Is(rerr, io.EOF):
			eof = true
		default:
			eof, err = true, rerr
		}
		break
	}
	s.wire.in = nil
	return n, eof, err
}

// readTLS is read for a connection under TLS.
func (l *loop) readTLS(c *conn) {
	s := c.tls
	if s.closed {
		l.endOfStream(c)
		return
	}
	n, errno := receive(c.fd, l.sealedIn[:])
	if errno != 0 {
		n = 0
	}
	dry := errno == unix.EAGAIN && !c.ended
	over := !dry && n == 0 // as for a connection without TLS
	var got int
	b := l.m.arena.window(tlsWindow)
	if n > 0 || !s.begun { // the login may have read ahead
		s.begun = true
		var eof bool
		var err error
		got, eof, err = s.open(l.sealedIn[:n], b)
		if err != nil {
			l.log.Debug("TLS connection broken", "fd", c.fd, "error", err)
			c.broken = true
		}
		if eof {
			s.closed, c.ended = true, true
		}
		if len(s.wire.out) > 0 && !l.sendOwn(c) {
			s.closed, c.ended, c.broken = true, true, true
		}
	}
	if over {
		s.closed, c.ended = true, true
	}
	c.readable = n == len(l.sealedIn) || c.ended
	if got == 0 {
		switch {
		case s.closed:
			l.endOfStream(c)
		case c.readable:
			l.again = append(l.again, c)
		default:
			l.dry(c)
		}
		return
	}
	l.received(c, b[:got])
}

// sendOwn sends what TLS itself has to say. It reports false when there is too
// much of that or the socket is broken.
func (l *loop) sendOwn(c *conn) bool {
	s := c.tls
	s.sealed = append(s.sealed, s.wire.out...)
	s.wire.out = nil
	if len(s.sealed) > maxSealed {
		return false
	}
	_, err := l.flushTLS(c)
	return err == nil
}

// writableTLS goes on with what is encrypted when the socket has room again, and
// reports whether the machine may go on, too.
func (l *loop) writableTLS(c *conn) bool {
	done, err := l.flushTLS(c)
	if err != nil {
		l.m.sendFailed(c)
	}
	return done
}

// flushTLS sends what is encrypted already. It reports whether that is all gone.
func (l *loop) flushTLS(c *conn) (done bool, err error) {
	s := c.tls
	if len(s.sealed) > 0 {
		l.one[0] = s.sealed
		n, err := l.out.send(c.fd, l.one[:])
		if err != nil {
			return false, err
		}
		if n < len(s.sealed) {
			s.sealed = s.sealed[:copy(s.sealed, s.sealed[n:])]
			return false, nil
		}
		s.sealed = nil
	}
	if s.finish {
		s.finish = false
		_ = unix.Shutdown(c.fd, unix.SHUT_WR) // as in end
	}
	return true, nil
}

// writeTLS is write for a connection under TLS. It takes segments as long as
// the socket takes what they are encrypted to; the last rest of that is kept
// here, at most a batch.
func (l *loop) writeTLS(c *conn, segs [][]byte) (taken int, err error) {
	s := c.tls
	if done, err := l.flushTLS(c); !done || err != nil {
		return 0, err
	}
	s.wire.out = l.sealedOut
	defer func() { s.wire.out = nil }()
	off := 0 // in segs[0]
	for len(segs) > 0 {
		s.wire.out = s.wire.out[:0]
		for len(segs) > 0 && len(s.wire.out) < sealBatch {
			b := segs[0][off:]
			if len(b) < recordSize && len(segs) > 1 {
				// Short pieces make one record together.
				b = l.plain[:0]
				for len(segs) > 0 && len(b) < recordSize {
					n := min(recordSize-len(b), len(segs[0])-off)
					b = append(b, segs[0][off:off+n]...)
					segs, off = advance(segs, off, n)
				}
			} else {
				b = b[:min(len(b), recordSize)]
				segs, off = advance(segs, off, len(b))
			}
			if _, err := s.conn.Write(b); err != nil {
				return taken, err
			}
			taken += len(b)
		}
		l.one[0] = s.wire.out
		n, err := l.out.send(c.fd, l.one[:])
		if err != nil {
			return taken, err
		}
		if n < len(s.wire.out) {
			s.sealed = append([]byte(nil), s.wire.out[n:]...)
			return taken, nil
		}
	}
	return taken, nil
}

// advance goes n bytes on in segs.
func advance(segs [][]byte, off, n int) ([][]byte, int) {
	if off += n; off == len(segs[0]) {
		return segs[1:], 0
	}
	return segs, off
}

// endTLS closes the sending side of a connection under TLS: the peer is told,
// so that it can tell the end from a cut.
func (l *loop) endTLS(c *conn) {
	s := c.tls
	s.finish = true
	if err := s.conn.CloseWrite(); err == nil {
		s.sealed = append(s.sealed, s.wire.out...)
		s.wire.out = nil
	}
	if _, err := l.flushTLS(c); err != nil {
		_ = unix.Shutdown(c.fd, unix.SHUT_WR)
	}
}
