package pooler

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// Takeover: a process that is started to replace this one connects to its control
// socket, gets the listening sockets, says that it is ready, and gets one
// connection after the other (handover.go, inherit.go). Until it is ready nothing
// has changed here, and whatever goes wrong afterwards, this process goes on with
// all that the other has not acknowledged. It ends when it has nothing left.

// readyTimeout is for the new process to begin, from when it has got the
// listening sockets.
const readyTimeout = 30 * time.Second

// succession is what a Pooler has to do with other processes.
type succession struct {
	ln    *net.UnixListener
	path  string
	owner bool // of the path: to be removed at the end

	mu   sync.Mutex
	heir *control // who takes over
	pred *control // who is being taken over; nil when it has nothing any more

	generation uint64
	offer      *offer // from Open to Run
	moved      bool   // everything has been handed over
	heirPID    int

	wg sync.WaitGroup
}

// openControl opens the control socket, or takes the old process's.
func (p *Pooler) openControl() error {
	s := &p.succession
	s.path = p.conf().ControlSocket
	if s.path == "" {
		return nil
	}
	if o := s.offer; o != nil && o.control >= 0 {
		f := os.NewFile(uintptr(o.control), "control")
		o.control = -1
		ln, err := net.FileListener(f)
		if err := errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("taking control socket: %w", err)
		}
		s.ln = ln.(*net.UnixListener)
		s.ln.SetUnlinkOnClose(false)
		return nil
	}
	if conn, err := net.DialTimeout("unix", s.path, controlTimeout); err == nil {
		_ = conn.Close()
		return fmt.Errorf("another pooler answers at %s; use -takeover to replace it", s.path)
	} else if errors.Is(err, unix.ECONNREFUSED) {
		if err := os.Remove(s.path); err != nil { // of a process that was killed
			return fmt.Errorf("removing old control socket: %w", err)
		}
	}
	ln, err := listenPrivate(s.path)
	if err != nil {
		return fmt.Errorf("opening control socket: %w", err)
	}
	s.ln, s.owner = ln, true
	return nil
}

// listenPrivate opens a Unix socket for our own user. It gets its name when its
// mode is set.
func listenPrivate(path string) (*net.UnixListener, error) {
	draft := filepath.Join(filepath.Dir(path), fmt.Sprintf(".%s.%d", filepath.Base(path), os.Getpid()))
	_ = os.Remove(draft) // of a namesake that was killed
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: draft, Net: "unix"})
	if err != nil {
		return nil, err
	}
	ln.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(draft, 0o600), os.Rename(draft, path)); err != nil {
		return nil, errors.Join(err, os.Remove(draft), ln.Close())
	}
	return ln, nil
}

// closeControl closes the control socket. Its name goes with the last process
// that has it.
func (p *Pooler) closeControl() {
	s := &p.succession
	if s.ln == nil {
		return
	}
	s.mu.Lock()
	last := s.owner && !s.moved && s.heir == nil
	s.mu.Unlock()
	if s.ln.Close() == nil && last {
		_ = os.Remove(s.path)
	}
}

// serveControl takes connections to the control socket.
func (p *Pooler) serveControl() {
	for {
		conn, err := p.succession.ln.AcceptUnix()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() { // paused: the heir accepts
				p.accepting.wait(p.ctx)
				continue
			}
			p.log.Error("failed to accept on control socket", "error", err)
			select {
			case <-p.ctx.Done():
				return
			case <-time.After(acceptPause):
			}
			continue
		}
		p.succession.wg.Go(func() { p.controlConn(conn) })
	}
}

// controlConn serves another process.
func (p *Pooler) controlConn(conn *net.UnixConn) {
	c := newControl(conn)
	defer c.close()
	pid, err := samePeer(conn)
	if err != nil {
		p.log.Warn("control connection refused", "error", err)
		return
	}
	stop := context.AfterFunc(p.ctx, func() {
		if !p.isHeir(c) {
			_ = conn.SetDeadline(time.Unix(1, 0))
		}
	})
	defer stop()
	if conn.SetReadDeadline(time.Now().Add(controlTimeout)) != nil {
		return
	}
	kind, body, fds, err := c.receive()
	closeAll(fds)
	switch {
	case err != nil: // somebody who looked whether we are there
		return
	case kind == messageHello:
		if err := p.beTakenOver(c, pid, body); err != nil {
			p.log.Error("takeover failed: " + err.Error())
		}
	case kind == messageCancel:
		p.answerSibling(c, body)
	default:
		p.log.Warn("control connection refused", "error", "unknown message", "pid", pid)
	}
}

func (p *Pooler) isHeir(c *control) bool {
	p.succession.mu.Lock()
	defer p.succession.mu.Unlock()
	return p.succession.heir == c
}

// makeOffer answers a process that wants to take over.
func (p *Pooler) makeOffer(c *control, body []byte) error {
	var hello carriedHello
	if err := decodeCarried(body, &hello); err != nil {
		return err
	}
	standing := false
	if !p.ask(func(m *machine) { standing = m.paused || m.suspended || len(m.marks) > 0 }) {
		return errShutdown
	}
	s := &p.succession
	reply := carriedHello{Version: carryVersion, PID: os.Getpid(), Release: p.conf().Version, Generation: s.generation, NextID: p.ids.Load()}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case hello.Version != carryVersion:
		reply.Refused = fmt.Sprintf("it takes over in version %d, this process (%s) hands over in version %d",
			hello.Version, p.conf().Version, carryVersion)
	case s.heir != nil:
		reply.Refused = "another takeover is under way"
	case standing:
		reply.Refused = "it is paused or suspended, or has databases that are paused or disabled"
	case p.ctx.Err() != nil:
		reply.Refused = "it is shutting down"
	}
	if reply.Refused != "" {
		return errors.Join(errors.New(reply.Refused), c.send(messageOffer, reply))
	}
	var fds []int
	add := func(sc syscall.Conn) error {
		rc, err := sc.SyscallConn()
		if err != nil {
			return err
		}
		return rc.Control(func(fd uintptr) { fds = append(fds, int(fd)) })
	}
	for i, ln := range p.listeners {
		if err := add(ln.(syscall.Conn)); err != nil {
			return fmt.Errorf("handing listening socket over: %w", err)
		}
		reply.Listeners = append(reply.Listeners, carriedListener{p.conf().Listen[i]})
	}
	if err := add(s.ln); err != nil {
		return fmt.Errorf("handing control socket over: %w", err)
	}
	reply.Control = true
	// Listeners are closed by nobody but stop, which waits for s.mu.
	if err := c.send(messageOffer, reply, fds...); err != nil {
		return err
	}
	s.heir = c
	return nil
}

// beTakenOver hands everything over to the process at the other end.
func (p *Pooler) beTakenOver(c *control, pid int, body []byte) error {
	if err := p.makeOffer(c, body); err != nil {
		return err
	}
	s := &p.succession
	forget := func() {
		s.mu.Lock()
		s.heir = nil
		s.mu.Unlock()
	}
	err := c.conn.SetReadDeadline(time.Now().Add(readyTimeout))
	kind := messageKind(0)
	if err == nil {
		var fds []int
		kind, _, fds, err = c.receive()
		closeAll(fds)
	}
	if err != nil || kind != messageGo {
		forget()
		return fmt.Errorf("the new process did not begin: %w", errors.Join(err))
	}
	s.mu.Lock()
	s.heirPID = pid
	s.mu.Unlock()
	p.log.Info("being taken over", "pid", pid)
	start := time.Now()
	p.pauseAccepting()
	out := newOutbox(c)
	s.wg.Go(out.run)
	h := &heir{send: out.put, watch: p.loop.watch, unwatch: p.loop.unwatch}
	if !p.loop.post(func() { p.loop.m.handOver(h) }) {
		forget()
		return errShutdown
	}
	err = p.readHeir(c)
	out.close()
	s.mu.Lock()
	moved := s.moved
	s.mu.Unlock()
	if moved {
		p.log.Info("taken over", "pid", pid, "took", time.Since(start).Round(time.Millisecond))
		return nil
	}
	p.loop.post(func() { p.loop.m.heirGone() })
	forget()
	p.resumeAccepting()
	return fmt.Errorf("the new process (%d) is gone, going on: %w", pid, err)
}

// readHeir takes the heir's answers until it is gone.
func (p *Pooler) readHeir(c *control) error {
	if err := c.conn.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	for {
		kind, body, fds, err := c.receive()
		closeAll(fds)
		if err != nil {
			return err
		}
		switch kind {
		case messageAnswer:
			var a carriedAnswer
			if err := decodeCarried(body, &a); err != nil {
				return err
			}
			if a.Failed {
				p.log.Warn("the new process does not take a connection", "reason", a.Error)
			}
			p.loop.post(func() {
				if p.loop.m.heir != nil {
					p.loop.m.answeredByHeir(a.Seq, a.Failed)
				}
			})
		case messageCancel, messageDone:
			p.relayCancel(c, kind, body, false)
		default:
			return fmt.Errorf("unknown message %q", byte(kind))
		}
	}
}

// relayCancel handles a cancel request of the other process, or its answer to
// one of ours. Down says that it comes from the process that we took over.
func (p *Pooler) relayCancel(c *control, kind messageKind, body []byte, down bool) {
	if kind == messageDone {
		var a carriedAnswer
		if decodeCarried(body, &a) == nil {
			c.answered(a.Seq, !a.Failed)
		}
		return
	}
	var r carriedCancel
	if decodeCarried(body, &r) != nil {
		return
	}
	p.succession.wg.Go(func() {
		key := pgwire.CancelKey{PID: r.PID, Secret: string(r.Secret)}
		found := p.cancelHere(key)
		if !found {
			found = p.cancelThere(key, down, !down)
		}
		// Without an answer the other process gives up by itself.
		_ = c.send(messageDone, carriedAnswer{Seq: r.Seq, Failed: !found})
	})
}

// cancelThere asks the processes before and behind us.
func (p *Pooler) cancelThere(key pgwire.CancelKey, up, down bool) bool {
	s := &p.succession
	s.mu.Lock()
	heir, pred := s.heir, s.pred
	s.mu.Unlock()
	asked := false
	for _, other := range []struct {
		c    *control
		want bool
	}{{pred, down}, {heir, up}} {
		if other.c == nil || !other.want {
			continue
		}
		asked = true
		if other.c.cancel(key.PID, key.Secret, p.ctx.Done()) {
			return true
		}
	}
	// It may have come over while its request was on the way there.
	return asked && p.cancelHere(key)
}

// tickSuccession looks whether everything has been handed over, or the heir does
// not answer any more. It runs in the loop.
func (p *Pooler) tickSuccession() {
	m := p.loop.m
	h := m.heir
	if h == nil {
		return
	}
	m.tickHeir()
	s := &p.succession
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case len(h.onTheWay) > 0 && m.now-h.asOf > controlTimeout:
		p.log.Error("the new process does not answer")
		s.heir.hangUp()
	case s.pred == nil && p.clients.Load() == 0 && m.vacant():
		s.moved = true
		p.loop.over = true
	}
}

// sayGoodbye tells the heir that all is its own.
func (p *Pooler) sayGoodbye() {
	s := &p.succession
	s.mu.Lock()
	c, moved := s.heir, s.moved
	s.mu.Unlock()
	if c == nil {
		return
	}
	if moved {
		_ = c.send(messageEnd, nil) // it sees our end otherwise
	}
	c.hangUp()
}

// Successor returns the process that has taken everything over, or 0 if none has.
func (p *Pooler) Successor() (pid int) {
	s := &p.succession
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.moved {
		return 0
	}
	return s.heirPID
}

// TakesOver reports whether there was a process to take over from.
func (p *Pooler) TakesOver() bool { return p.succession.generation > 0 }
