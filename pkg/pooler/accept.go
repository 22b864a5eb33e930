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
		if err == nil {
			n := p.clients.Add(1)
			if n > int64(p.config.MaxClients+refusingExtra) {
				p.early[refusedFull].Add(1)
				p.clients.Add(-1)
				_ = conn.Close() // nothing was sent, nothing can be lost
				continue
			}
			p.wg.Go(func() { p.serve(conn, n > int64(p.config.MaxClients)) })
			continue
		}
		if errors.Is(err, net.ErrClosed) {
			return
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
	addr := addrOf(conn)
	limit := p.config.ClientLoginTimeout
	if full && (limit == 0 || limit > refusingTimeout) {
		limit = refusingTimeout
	}
	if limit > 0 {
		if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
			p.log.Debug("failed to set deadline", "client", addr, "error", err)
		}
	}
	// At shutdown, whoever is not logged in is not waited for.
	stop := context.AfterFunc(p.ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	why, err := p.login(conn, addr, full)
	stop()
	if err == nil {
		return
	}
	p.refuse(conn, addr, why, err)
	p.clients.Add(-1)
}

// refuse tells a client why it is not let in, counts and logs it, and closes
// the connection.
func (p *Pooler) refuse(conn net.Conn, addr netip.AddrPort, why refusal, err error) {
	var netErr net.Error
	switch {
	case errors.Is(err, errAnswered):
		_ = conn.Close() // the peer has all it is to get
		return
	case p.ctx.Err() != nil:
		why, err = refusedShutdown, errShutdown
	case errors.As(err, &netErr) && netErr.Timeout():
		why, err = refusedLoginTimeout, errLoginTimeout
	}
	e, ok := errors.AsType[*pgwire.Error](err)
	if !ok {
		// A health check, or a client without a password, that left.
		p.log.Debug("client left during login", "client", addr, "error", err)
		_ = conn.Close()
		return
	}
	p.early[why].Add(1)
	p.log.Log(p.ctx, p.loop.m.limits.trouble, "pooler error: "+e.Message, "client", addr, "reason", why.String(), "error", err)
	// What it has not read is lost if we close with input unread, so that is
	// read away, for a moment.
	_ = conn.SetDeadline(time.Now().Add(lingerTimeout))
	if err := pgwire.SendError(conn, e); err != nil {
		p.log.Debug("failed to refuse client", "client", addr, "error", err)
	}
	if cw, ok := conn.(interface{ CloseWrite() error }); ok && cw.CloseWrite() == nil {
		_, _ = io.CopyN(io.Discard, conn, 1<<20)
	}
	_ = conn.Close()
}

func addrOf(conn net.Conn) netip.AddrPort {
	a, _ := conn.RemoteAddr().(*net.TCPAddr)
	if a == nil {
		return netip.AddrPort{}
	}
	ap := a.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
