package pooler

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// ShutdownMode says what a pooler that is to end waits for.
type ShutdownMode uint8

// The modes of PgBouncer's SHUTDOWN.
const (
	ShutdownNow            ShutdownMode = iota // nothing
	ShutdownWaitForServers                     // transactions to end; clients without one are told to go
	ShutdownWaitForClients                     // clients to leave of themselves
)

// forever is the time for transactions where nothing bounds it.
const forever = 100 * 365 * 24 * time.Hour

// Shutdown has Run end. It does not wait for that.
func (p *Pooler) Shutdown(mode ShutdownMode) {
	switch mode {
	case ShutdownWaitForServers:
		p.stopAfter(forever)
	case ShutdownWaitForClients:
		p.closeListeners()
		p.gate.open()
		p.loop.post(func() { p.loop.m.unload() })
	default:
		p.closeListeners()
		p.cancel()
		p.loop.post(func() { p.loop.over = true })
	}
}

// Pause has all clients wait, as the console's PAUSE does, Resume lets them go
// on. They do not wait for that, and do nothing if it is so already.
func (p *Pooler) Pause() {
	p.loop.post(func() {
		if m := p.loop.m; !m.paused && !m.suspended {
			m.pauseAll()
		}
	})
}

// Resume ends a pause or suspension.
func (p *Pooler) Resume() {
	p.loop.post(func() {
		if m := p.loop.m; (m.paused || m.suspended) && !m.stopping && !m.unloading {
			p.resume()
		}
	})
}

// shutdown answers SHUTDOWN. Immediately means without an answer: the session's
// end is one.
func (s *console) shutdown(q, arg string) {
	mode := ShutdownNow
	switch strings.ToUpper(arg) {
	case "":
	case "WAIT_FOR_CLIENTS":
		mode = ShutdownWaitForClients
	case "WAIT_FOR_SERVERS":
		mode = ShutdownWaitForServers
	default:
		s.invalid(q)
		return
	}
	s.announce(strings.TrimSpace("SHUTDOWN " + strings.ToUpper(arg)))
	s.p.Shutdown(mode)
	if mode != ShutdownNow {
		s.done("SHUTDOWN")
	}
}

// suspend answers SUSPEND: when it is done, nothing is in the pooler's buffers
// and nothing is read.
func (s *console) suspend(q, arg string) {
	if arg != "" {
		s.invalid(q)
		return
	}
	s.announce("SUSPEND")
	s.await("SUSPEND", func(m *machine) error {
		if m.paused || m.suspended {
			return errors.New(pausedAlready)
		}
		for _, k := range m.marks {
			if k.paused {
				return errors.New("cannot suspend with paused databases")
			}
		}
		s.p.gate.close()
		m.suspend()
		return nil
	}, func(m *machine) bool {
		return m.atStandstill() && int(s.p.clients.Load()) == m.population
	}, func(*machine) { s.p.resume() })
}

// gate holds newcomers up while the pooler is suspended. The zero gate is open.
type gate struct {
	mu     sync.Mutex
	closed chan struct{} // nil: open; closed when it opens
}

func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed == nil {
		g.closed = make(chan struct{})
	}
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed != nil {
		close(g.closed)
		g.closed = nil
	}
}

// wait waits for the gate to open.
func (g *gate) wait(ctx context.Context) {
	g.mu.Lock()
	c := g.closed
	g.mu.Unlock()
	if c == nil {
		return
	}
	select {
	case <-c:
	case <-ctx.Done():
	}
}

// cancelConsole carries out a cancel request for a session that waits, and
// reports whether the key is a session's.
func (p *Pooler) cancelConsole(key pgwire.CancelKey) bool {
	p.consoles.mu.Lock()
	defer p.consoles.mu.Unlock()
	for _, s := range p.consoles.open {
		if s.key.Matches(key) {
			select {
			case s.cancelled <- struct{}{}:
			default: // one is on its way
			}
			return true
		}
	}
	return false
}

// peerGone reports whether the other side has closed a connection from which
// nothing is being read.
func peerGone(conn net.Conn) bool {
	if t, ok := conn.(interface{ NetConn() net.Conn }); ok { // TLS
		conn = t.NetConn()
	}
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return false
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return true
	}
	gone := false
	err = rc.Control(func(fd uintptr) {
		var b [1]byte
		n, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		gone = n == 0 && err == nil || err != nil && err != unix.EAGAIN
	})
	return gone || err != nil
}
