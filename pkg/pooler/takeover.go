package pooler

import (
	"context"
	"errors"
	"fmt"
	"io"
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

	wg sync.WaitGroup
}

// offer is what an old process gives at first.
type offer struct {
	c         *control
	hello     carriedHello
	listeners map[string]int // descriptors by the address of the configuration
	control   int            // descriptor, -1: none
}

// close closes what was not used.
func (o *offer) closeUnused() {
	for _, fd := range o.listeners {
		_ = unix.Close(fd)
	}
	o.listeners = nil
	if o.control >= 0 {
		_ = unix.Close(o.control)
		o.control = -1
	}
}

// errNobody means that there is no process to take over from.
var errNobody = errors.New("old process not found, try to continue normally")

// askOffer connects to the process at a control socket.
func askOffer(path, release string) (_ *offer, err error) {
	raw, err := net.DialTimeout("unix", path, controlTimeout)
	switch {
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ENOENT):
		return nil, errNobody
	case err != nil:
		return nil, fmt.Errorf("connecting to the old process: %w", err)
	}
	o := &offer{c: newControl(raw.(*net.UnixConn)), listeners: make(map[string]int), control: -1}
	defer func() {
		if err != nil {
			o.closeUnused()
			o.c.close()
		}
	}()
	if err := o.c.send(messageHello, carriedHello{Version: carryVersion, PID: os.Getpid(), Release: release}); err != nil {
		return nil, err
	}
	if err := o.c.conn.SetReadDeadline(time.Now().Add(controlTimeout)); err != nil {
		return nil, fmt.Errorf("waiting for the old process: %w", err)
	}
	kind, body, fds, err := o.c.receive()
	if err != nil {
		return nil, fmt.Errorf("waiting for the old process: %w", err)
	}
	if err = decodeCarried(body, &o.hello); kind != messageOffer || err != nil {
		closeAll(fds)
		return nil, errors.Join(errors.New("the old process does not answer as expected"), err)
	}
	switch h := &o.hello; {
	case h.Refused != "":
		err = errors.New("the old process refuses: " + h.Refused)
	case h.Version != carryVersion:
		err = fmt.Errorf("the old process (%s) hands over in version %d, this one takes version %d", h.Release, h.Version, carryVersion)
	case len(fds) != len(h.Listeners)+len(fds[:min(len(fds), 1)])*btoi(h.Control):
		err = errors.New("the old process sent the wrong number of sockets")
	}
	if err != nil {
		closeAll(fds)
		return nil, err
	}
	for i, l := range o.hello.Listeners {
		o.listeners[l.Configured] = fds[i]
	}
	if o.hello.Control {
		o.control = fds[len(fds)-1]
	}
	return o, o.c.conn.SetReadDeadline(time.Time{})
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func closeAll(fds []int) {
	for _, fd := range fds {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// inheritedListener is a listening socket that somebody else has opened.
type inheritedListener struct{ *net.TCPListener }

// Accept accepts a connection with our keepalive settings: those of a listener
// are lost with its file.
func (l inheritedListener) Accept() (net.Conn, error) {
	conn, err := l.AcceptTCP()
	if err != nil {
		return nil, err
	}
	if err := conn.SetKeepAliveConfig(keepAlive); err != nil {
		// Its peer is gone, which the first read shows.
		return conn, nil
	}
	return conn, nil
}

// SyscallConn makes the descriptor's options reachable.
func (l inheritedListener) SyscallConn() (syscall.RawConn, error) { return l.TCPListener.SyscallConn() }

// listenerOf makes a listener of a descriptor, which it takes.
func listenerOf(fd int) (*net.TCPListener, error) {
	f := os.NewFile(uintptr(fd), "listener")
	defer f.Close()
	ln, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("taking listening socket: %w", err)
	}
	tcp, ok := ln.(*net.TCPListener)
	if !ok {
		_ = ln.Close()
		return nil, errors.New("taking listening socket: it is not of TCP")
	}
	return tcp, nil
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
				if !p.accepting.wait(p.ctx) {
					return
				}
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

// outbox sends messages in order, so that the loop never waits for the other
// process.
type outbox struct {
	c    *control
	mu   sync.Mutex
	cond *sync.Cond
	list []outgoing
	over bool
}

type outgoing struct {
	kind messageKind
	body any
	fds  []int
}

func newOutbox(c *control) *outbox {
	o := &outbox{c: c}
	o.cond = sync.NewCond(&o.mu)
	return o
}

// put queues a message. The descriptors stay open until it is answered.
func (o *outbox) put(kind messageKind, body any, fds ...int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.over {
		o.list = append(o.list, outgoing{kind, body, fds})
		o.cond.Signal()
	}
}

func (o *outbox) run() {
	for {
		o.mu.Lock()
		for len(o.list) == 0 && !o.over {
			o.cond.Wait()
		}
		list := o.list
		o.list = nil
		over := o.over
		o.mu.Unlock()
		if over {
			return
		}
		for _, x := range list {
			if o.c.send(x.kind, x.body, x.fds...) != nil {
				o.c.hangUp() // the reader comes to the end and takes all back
				return
			}
		}
	}
}

func (o *outbox) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.over = true
	o.cond.Signal()
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

// gate lets goroutines wait while somebody else accepts.
type gate struct {
	mu     sync.Mutex
	closed chan struct{} // nil: open
}

// wait waits until the gate is open, and reports false if the context ends first.
func (g *gate) wait(ctx context.Context) bool {
	g.mu.Lock()
	ch := g.closed
	g.mu.Unlock()
	if ch == nil {
		return true
	}
	select {
	case <-ch:
		return true
	case <-ctx.Done():
		return false
	}
}

// pauseAccepting leaves new connections to the heir. The sockets stay open, in
// case that it goes away.
func (p *Pooler) pauseAccepting() {
	p.accepting.mu.Lock()
	p.accepting.closed = make(chan struct{})
	p.accepting.mu.Unlock()
	p.setAcceptDeadlines(time.Unix(1, 0))
}

func (p *Pooler) resumeAccepting() {
	p.setAcceptDeadlines(time.Time{})
	p.accepting.mu.Lock()
	defer p.accepting.mu.Unlock()
	if p.accepting.closed != nil {
		close(p.accepting.closed)
		p.accepting.closed = nil
	}
}

func (p *Pooler) setAcceptDeadlines(t time.Time) {
	for _, ln := range p.listeners {
		if d, ok := ln.(interface{ SetDeadline(time.Time) error }); ok {
			_ = d.SetDeadline(t) // it fails on a closed one
		}
	}
	if ln := p.succession.ln; ln != nil {
		_ = ln.SetDeadline(t)
	}
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

// inherit takes over from the old process, until that has nothing any more.
func (p *Pooler) inherit(o *offer) {
	s := &p.succession
	c := o.c
	err := c.send(messageGo, nil)
	for err == nil {
		var kind messageKind
		var body []byte
		var fds []int
		if kind, body, fds, err = c.receive(); err != nil {
			break
		}
		if kind == messageEnd {
			closeAll(fds)
			break
		}
		err = p.inheritOne(c, kind, body, fds)
	}
	s.mu.Lock()
	s.pred = nil
	s.owner = true
	s.mu.Unlock()
	c.hangUp()
	c.close()
	p.loop.post(p.loop.m.legacyGone)
	switch {
	case err == nil:
		p.log.Info("takeover is complete: the old process has ended", "pid", o.hello.PID)
	case p.ctx.Err() == nil:
		if errors.Is(err, io.EOF) {
			err = errors.New("the old process is gone")
		}
		p.log.Error("takeover is over: " + err.Error())
	}
}

// inheritOne takes one message of the old process.
func (p *Pooler) inheritOne(c *control, kind messageKind, body []byte, fds []int) error {
	var do func(m *machine)
	var err error
	switch kind {
	case messagePool:
		r := new(carriedPool)
		if err = decodeCarried(body, r); err == nil {
			if db := p.conf().database(string(r.Database)); db != nil {
				do = func(m *machine) { m.inheritPool(r, db) }
			}
		}
	case messageCount:
		r := new(carriedCount)
		err = decodeCarried(body, r)
		do = func(m *machine) { m.inheritCount(r) }
	case messageStmt:
		r := new(carriedStmt)
		err = decodeCarried(body, r)
		do = func(m *machine) { m.inheritStmt(r) }
	case messageItem:
		return p.inheritItem(c, body, fds)
	case messageCancel, messageDone:
		p.relayCancel(c, kind, body, true)
	default:
		err = fmt.Errorf("unknown message %q", byte(kind))
	}
	closeAll(fds)
	if err == nil && do != nil && !p.loop.post(func() { do(p.loop.m) }) {
		err = errShutdown
	}
	return err
}

// inheritItem takes a connection over, in one step of the loop: from the moment
// that the answer is sent it is ours, and not before.
func (p *Pooler) inheritItem(c *control, body []byte, fds []int) error {
	item := new(carriedItem)
	derr := decodeCarried(body, item)
	failed := make(chan error, 1)
	if !p.loop.post(func() {
		if derr != nil {
			closeAll(fds)
			failed <- c.send(messageAnswer, carriedAnswer{Seq: item.Seq, Error: derr.Error(), Failed: true})
			return
		}
		failed <- p.inheritNow(c, item, fds)
	}) {
		closeAll(fds)
		return errShutdown
	}
	return <-failed
}

// inheritNow runs in the loop.
func (p *Pooler) inheritNow(c *control, item *carriedItem, fds []int) error {
	m := p.loop.m
	var cl *client
	var sv *server
	var err error
	for _, fd := range fds {
		if err = errors.Join(err, unix.SetNonblock(fd, true)); err != nil {
			break
		}
	}
	switch {
	case err != nil:
	case m.stopping:
		err = errShutdown
	case item.Client != nil && len(fds) == 1:
		cl, err = m.inheritClient(item.Client, p.conf().database(string(item.Client.Database)), fds[0])
	case item.Server != nil && len(fds) == 1:
		sv, err = m.inheritServer(item.Server, p.conf().database(string(item.Server.Database)), fds[0])
	case item.Pair != nil && len(fds) == 2:
		cl, sv, err = m.inheritPair(item.Pair, p.conf().database(string(item.Pair.Client.Database)), fds)
	default:
		err = errors.New("its record makes no sense")
	}
	if err != nil {
		closeAll(fds)
		return c.send(messageAnswer, carriedAnswer{Seq: item.Seq, Error: err.Error(), Failed: true})
	}
	if cl != nil {
		p.clients.Add(1)
	}
	if err := c.send(messageAnswer, carriedAnswer{Seq: item.Seq}); err != nil {
		// It stays the old process's: nothing of it was touched.
		switch {
		case cl != nil:
			m.abandonLeaving(cl)
		default:
			m.forgetServer(sv)
		}
		return err
	}
	m.arrived(cl, sv)
	if sv != nil && !sv.dropped {
		if err := p.loop.watch(&sv.conn); err != nil {
			p.log.Error("failed to watch server", "server", sv.key.PID, "error", err)
			m.serverEnded(sv)
		}
	}
	if cl != nil && !cl.dropped {
		if err := p.loop.watch(&cl.conn); err != nil {
			p.log.Error("failed to watch client", "client", cl.addr, "error", err)
			m.clientGone(cl, "cannot be watched")
		}
	}
	return nil
}

// succeed gets the old process's sockets.
func (p *Pooler) succeed() error {
	if !p.conf().TakeOver {
		return nil
	}
	if p.conf().ControlSocket == "" {
		return errors.New("there is no control socket in the configuration")
	}
	o, err := askOffer(p.conf().ControlSocket, p.conf().Version)
	if errors.Is(err, errNobody) {
		p.log.Info(err.Error())
		return nil
	}
	if err != nil {
		return err
	}
	s := &p.succession
	s.offer, s.pred, s.generation = o, o.c, o.hello.Generation+1
	p.ids.Store(o.hello.NextID + idGap)
	p.loop.m.inheritFrom(s.generation)
	p.log.Info("taking over", "pid", o.hello.PID, "release", o.hello.Release)
	return nil
}

// idGap is for the connections that the old process still takes in.
const idGap = 1 << 20

// inheritedListener returns the old process's socket for an address, or nil.
func (p *Pooler) inheritedListener(addr string) (net.Listener, error) {
	o := p.succession.offer
	if o == nil {
		return nil, nil
	}
	fd, ok := o.listeners[addr]
	if !ok {
		return nil, nil
	}
	delete(o.listeners, addr)
	ln, err := listenerOf(fd)
	if err != nil {
		return nil, err
	}
	return inheritedListener{ln}, nil
}

// setUp sets the options of a socket that somebody else has opened.
func (p *Pooler) setUp(ln net.Listener, set func(network, address string, rc syscall.RawConn) error) error {
	rc, err := ln.(syscall.Conn).SyscallConn()
	if err == nil {
		err = set("tcp", ln.Addr().String(), rc)
	}
	if err != nil {
		return errors.Join(err, ln.Close())
	}
	return nil
}

// endSuccession releases what other processes have to do with us. The loop has
// ended.
func (p *Pooler) endSuccession() {
	s := &p.succession
	s.mu.Lock()
	pred := s.pred
	s.mu.Unlock()
	if pred != nil {
		pred.hangUp()
	}
	s.wg.Wait()
}

// takeOffer returns the offer for the one who acts on it.
func (p *Pooler) takeOffer() *offer {
	s := &p.succession
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.offer
	s.offer = nil
	return o
}

// declineOffer is for a process that does not take over after all.
func (p *Pooler) declineOffer() {
	if o := p.takeOffer(); o != nil {
		o.closeUnused()
		o.c.close()
	}
}
