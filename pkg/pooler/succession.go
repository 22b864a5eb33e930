package pooler

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

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

// Accept leaves the keepalive settings to serve, as our own listeners do.
func (l inheritedListener) Accept() (net.Conn, error) {
	conn, err := l.AcceptTCP()
	if err != nil {
		return nil, err
	}
	if err := conn.SetKeepAlive(false); err != nil { // serve sets it
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
	fd, ok := -1, false
	if o := p.succession.offer; o != nil {
		fd, ok = o.listeners[addr]
		delete(o.listeners, addr)
	}
	if !ok {
		return p.givenListener(addr)
	}
	ln, err := listenerOf(fd)
	if err != nil {
		return nil, err
	}
	return inheritedListener{ln}, nil
}

// givenListener returns the socket for an address that the process was started
// with, or nil.
func (p *Pooler) givenListener(addr string) (net.Listener, error) {
	want, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		return nil, err
	}
	for _, ln := range p.conf().Sockets {
		have, ok := ln.Addr().(*net.TCPAddr)
		if !ok || have.Port != want.Port {
			continue
		}
		if anywhere := want.IP == nil || want.IP.IsUnspecified(); anywhere && have.IP.IsUnspecified() || have.IP.Equal(want.IP) {
			return inheritedListener{ln}, nil
		}
	}
	return nil, nil
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
