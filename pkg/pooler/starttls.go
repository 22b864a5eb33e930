package pooler

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

var (
	// errHandshake is wrapped by the errors of handshakes with clients. TLS has
	// its own way to tell the other side.
	errHandshake = errors.New("TLS handshake error")
	errNoALPN    = errors.New("received direct SSL connection request without ALPN protocol negotiation extension")

	errTLSRequired = pgwire.NewError(pgwire.SeverityFatal, pgwire.CodeProtocolViolation, "SSL required")
)

// opening conducts a connection's opening: it turns TLS on as the client and the
// configuration want, and returns the connection to go on with.
func (p *Pooler) opening(conn net.Conn, n *newcomer) (net.Conn, pgwire.Startup, error) {
	var start pgwire.StartTLS
	t := p.conf().clientTLS
	if t != nil {
		start = func(head []byte) (io.ReadWriter, error) {
			secured, err := p.acceptTLS(conn, t, head)
			if err != nil {
				return nil, fmt.Errorf("%w: %w", errHandshake, err)
			}
			n.tls = secured.session
			state := secured.ConnectionState()
			n.tlsInfo, n.certs = pgwire.TLSInfo(&state), state.PeerCertificates
			n.binding = t.binding
			conn = secured
			return conn, nil
		}
	}
	s, err := pgwire.AcceptStartupTLS(peeker{conn}, 0, start)
	if err == nil && s.Kind == pgwire.KindStartup && n.tls == nil && t != nil && t.mode >= TLSRequire {
		err = errTLSRequired
	}
	return conn, s, err
}

// secured is a connection under TLS that a goroutine has.
type secured struct {
	*tls.Conn
	session *tlsSession
}

// CloseWrite closes the sending side of TLS and of what is below.
func (s secured) CloseWrite() error {
	err := s.Conn.CloseWrite()
	if cw, ok := s.session.wire.Conn.(interface{ CloseWrite() error }); ok {
		return errors.Join(err, cw.CloseWrite())
	}
	return err
}

// acceptTLS is a handshake as the server.
func (p *Pooler) acceptTLS(conn net.Conn, t *clientTLS, head []byte) (secured, error) {
	w := &tlsWire{Conn: conn, head: head, slots: p.handshakes, done: p.ctx.Done()}
	defer w.rest()
	c := tls.Server(w, t.config)
	if err := c.HandshakeContext(p.ctx); err != nil {
		return secured{}, err
	}
	if len(head) > 0 && c.ConnectionState().NegotiatedProtocol == "" {
		return secured{}, errNoALPN
	}
	ackNow(conn)
	return secured{c, &tlsSession{conn: c, wire: w}}, nil
}

// ackNow acknowledges what was received. The handshake ends with a message of
// the client's, and a client without TCP_NODELAY sends its next one when that is
// acknowledged: otherwise after the kernel's delay of 40 ms, for we have nothing
// to say.
func ackNow(conn net.Conn) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return
	}
	if rc, err := sc.SyscallConn(); err == nil {
		_ = rc.Control(func(fd uintptr) { // or it takes a little longer
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1)
		})
	}
}

// A handshake computes for up to a millisecond, and a thousand clients may come
// at once. No more of them compute at a time than there are CPUs, so that the
// loop, which is one goroutine among them, has its turn after one of them and not
// after all.

// compute waits for a CPU.
func (w *tlsWire) compute() {
	if w.slots == nil || w.computing {
		return
	}
	select {
	case w.slots <- struct{}{}:
		w.computing = true
	case <-w.done:
	}
}

// rest gives it back.
func (w *tlsWire) rest() {
	if w.computing {
		w.computing = false
		<-w.slots
	}
}

// takeTLS takes a connection's descriptor for the loop, with its TLS session if
// it has one.
func takeTLS(conn net.Conn, s *tlsSession) (int, error) {
	if s == nil {
		return takeFD(conn)
	}
	fd, err := takeFD(s.wire.Conn)
	// From here on the session lives in memory.
	s.wire.Conn, s.wire.slots, s.wire.done = nil, nil, nil
	return fd, err
}

// peeker tells whether anything was received that nobody has read.
type peeker struct{ net.Conn }

// Buffered returns a positive number if the peer has sent more than was read.
func (p peeker) Buffered() int {
	sc, ok := p.Conn.(syscall.Conn)
	if !ok {
		return 0
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return 0
	}
	var n int
	_ = rc.Control(func(fd uintptr) { // else the connection is gone, and so are its bytes
		var one [1]byte
		if got, _, err := unix.Recvfrom(int(fd), one[:], unix.MSG_PEEK|unix.MSG_DONTWAIT); err == nil {
			n = got
		}
	})
	return n
}

// handshakeContext is a handshake as the client that ends with ctx.
func handshakeContext(ctx context.Context, conn net.Conn, config *tls.Config) (*tls.Conn, *tlsSession, error) {
	w := &tlsWire{Conn: conn}
	c := tls.Client(w, config)
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, nil, err
	}
	return c, &tlsSession{conn: c, wire: w}, nil
}
