package pooler

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

const (
	// refusingExtra is how many clients above the limit are told so. Beyond
	// that they are just disconnected: telling takes a read, too.
	refusingExtra = 256
	// refusingTimeout bounds the time for telling.
	refusingTimeout = 5 * time.Second
	// acceptPause follows a failed accept for want of descriptors or memory.
	acceptPause = 100 * time.Millisecond
)

// accept takes in clients until the listener is closed.
func (p *Pooler) accept(ln net.Listener) {
	for {
		conn, err := ln.Accept()
		p.gate.wait(p.ctx)
		if err == nil {
			n := p.clients.Add(1)
			if n > int64(p.conf().MaxClients+refusingExtra) {
				p.early[refusedFull].Add(1)
				p.clients.Add(-1)
				_ = conn.Close() // nothing was sent, nothing can be lost
				continue
			}
			p.wg.Go(func() { p.serve(conn, n > int64(p.conf().MaxClients)) })
			continue
		}
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() { // another process accepts now
			p.accepting.wait(p.ctx)
			continue
		}
		p.log.Error("failed to accept client", "error", err)
		if !isShortage(err) {
			continue // the connection's own fault: it was gone already
		}
		select {
		case <-p.ctx.Done():
		case <-time.After(acceptPause):
		}
	}
}

// isShortage reports whether accepting again at once would fail again.
func isShortage(err error) bool {
	for _, e := range []error{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// serve takes one connection through startup and authentication, and hands it
// to the loop.
func (p *Pooler) serve(conn net.Conn, full bool) {
	addr, peer, local := p.endpoints(conn)
	p.conf().TCP.apply(conn, p.log)
	limit := p.conf().ClientLoginTimeout
	if full && (limit == 0 || limit > refusingTimeout) {
		limit = refusingTimeout
	}
	if limit > 0 {
		if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
			p.log.Debug("failed to set deadline", "client", addr, "error", err)
		}
	}
	// At shutdown, whoever is not logged in is not waited for.
	// The socket, because conn is to change.
	socket := conn
	stop := context.AfterFunc(p.ctx, func() { _ = socket.SetReadDeadline(time.Unix(1, 0)) })
	n := newcomer{id: p.ids.Add(1), addr: addr, peer: peer, local: local}
	conn, start, err := p.opening(conn, &n)
	why := refusedStartup
	if err == nil {
		why, err = p.login(conn, &start, &n, full)
	}
	stop()
	var s *console
	if errors.Is(err, errConsole) {
		s, err = p.openConsole(conn, n)
		why = refusedConsole
	}
	switch {
	case s != nil:
		p.clients.Add(-1) // it is not one
		_ = conn.SetDeadline(time.Time{})
		s.run()
	case errors.Is(err, pgwire.ErrTerminate):
		p.clients.Add(-1)
		p.log.Debug("client left during login", "client", addr, "error", err)
		p.part(conn)
	case err != nil:
		p.refuse(conn, addr, why, err)
		p.clients.Add(-1)
	}
}

// refuse tells a client why it is not let in, counts and logs it, and closes
// the connection.
func (p *Pooler) refuse(conn net.Conn, addr netip.AddrPort, why refusal, err error) {
	var netErr net.Error
	switch {
	case errors.Is(err, errAnswered):
		p.hangUp(conn) // the peer has all it is to get
		return
	case p.ctx.Err() != nil:
		why, err = refusedShutdown, errShutdown
	case errors.As(err, &netErr) && netErr.Timeout():
		why, err = refusedLoginTimeout, errLoginTimeout
	}
	if err == errTLSRequired {
		why = refusedTLS
	}
	e, ok := errors.AsType[*pgwire.Error](err)
	if !ok && errors.Is(err, errHandshake) {
		p.early[refusedTLS].Add(1)
		p.log.Log(p.ctx, p.conf().limits.trouble, "closing because: "+err.Error(), "client", addr)
		_ = conn.Close()
		return
	}
	if !ok {
		// A health check, or a client without a password, that left.
		p.log.Debug("client left during login", "client", addr, "error", err)
		_ = conn.Close()
		return
	}
	p.early[why].Add(1)
	p.log.Log(p.ctx, p.conf().limits.trouble, "pooler error: "+e.Message, "client", addr, "reason", why.String(), "error", err)
	_ = conn.SetWriteDeadline(time.Now().Add(lingerTimeout))
	if err := pgwire.SendError(conn, e); err != nil {
		p.log.Debug("failed to refuse client", "client", addr, "error", err)
	}
	p.hangUp(conn)
}

// hangUp closes a connection so that the peer gets all that was sent. What it
// has not read is lost if we close with input unread (RFC 1122, section
// 4.2.2.13), so that is read away, for a moment.
func (p *Pooler) hangUp(conn net.Conn) {
	_ = conn.SetReadDeadline(time.Now().Add(lingerTimeout))
	if cw, ok := conn.(interface{ CloseWrite() error }); ok && cw.CloseWrite() == nil {
		_, _ = io.CopyN(io.Discard, conn, maxDiscard)
	}
	_ = conn.Close()
}
