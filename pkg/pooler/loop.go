package pooler

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxEvents is how many events one round takes. With the arena's size it
	// keeps a round's first phase, and so the delay that batching adds, well
	// below a millisecond.
	maxEvents = 256
	// yieldRounds is how often the loop lets the other goroutines run. On one
	// CPU logins would starve otherwise, since a busy loop never parks.
	yieldRounds = 16
	// passes is how often a round goes over the ready connections: once for
	// what the events brought, once for those that got a server by it.
	passes = 2
)

// Event data of the loop's own descriptors, in the place of a slot.
const (
	slotWake = -1 - iota
	slotTimer
)

// loop owns the machine and the sockets in protocol.
//
// The epoll descriptor is itself registered with Go's poller, and the loop's
// goroutine parks there: no thread is held in epoll_wait, which would cost two
// thread hand-offs a wake-up.
type loop struct {
	m     *machine
	log   *slog.Logger
	start time.Time

	epfd    int
	epoll   *os.File // owns epfd
	raw     syscall.RawConn
	wakefd  int
	timerfd int

	events [maxEvents]unix.EpollEvent
	found  int // events found by poll
	perr   error
	poll   func(uintptr) bool

	out sender
	one [1][]byte
	// Buffers for connections under TLS: what was received, short pieces that
	// make a record together, what they were encrypted to.
	sealedIn  [tlsReceive]byte
	plain     [recordSize]byte
	sealedOut []byte
	partings  partings
	again     []*conn // read to the brim: their next turn comes next round
	spare     []*conn

	// onTick and onDrop are the Pooler's.
	onTick func()
	onDrop func(*conn)
	over   bool // set by a message: leave

	mu      sync.Mutex
	inbox   []func()
	started bool // the goroutine of run owns the machine
	ended   bool // nobody takes messages any more
}

func openLoop(log *slog.Logger) (_ *loop, err error) {
	l := &loop{log: log, start: time.Now(), wakefd: -1, timerfd: -1, epfd: -1, partings: newPartings(),
		sealedOut: make([]byte, 0, sealBatch+maxRecord)}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	if l.epfd, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err = unix.SetNonblock(l.epfd, true); err != nil { // or os.NewFile would not poll it
		return nil, os.NewSyscallError("fcntl", err)
	}
	l.epoll = os.NewFile(uintptr(l.epfd), "epoll")
	if l.raw, err = l.epoll.SyscallConn(); err != nil {
		return nil, fmt.Errorf("nesting epoll: %w", err)
	}
	if l.wakefd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	if l.timerfd, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK); err != nil {
		return nil, os.NewSyscallError("timerfd_create", err)
	}
	every := unix.NsecToTimespec(int64(tickInterval))
	if err = unix.TimerfdSettime(l.timerfd, 0, &unix.ItimerSpec{Interval: every, Value: every}, nil); err != nil {
		return nil, os.NewSyscallError("timerfd_settime", err)
	}
	for fd, slot := range map[int]int32{l.wakefd: slotWake, l.timerfd: slotTimer} {
		ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET&0xffffffff, Fd: slot}
		if err = unix.EpollCtl(l.epfd, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
			return nil, os.NewSyscallError("epoll_ctl", err)
		}
	}
	l.poll = func(uintptr) bool {
		l.found, l.perr = pollNow(l.epfd, l.events[:])
		return l.found > 0 || l.perr != nil
	}
	return l, nil
}

// close releases the loop's own descriptors.
func (l *loop) close() {
	if l.epoll != nil {
		l.epoll.Close()
	} else if l.epfd >= 0 {
		unix.Close(l.epfd)
	}
	for _, fd := range []int{l.wakefd, l.timerfd} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	l.wakefd, l.timerfd = -1, -1
}

// post has fn run by the loop's goroutine, or at once if the loop does not run
// yet. It reports false, and does not run fn, when the loop has ended.
func (l *loop) post(fn func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.ended:
		return false
	case !l.started:
		fn()
		return true
	}
	l.inbox = append(l.inbox, fn)
	if len(l.inbox) == 1 {
		var one [8]byte
		binary.NativeEndian.PutUint64(one[:], 1)
		// It fails only when the counter is at its maximum: then the loop
		// has been woken already.
		_, _ = unix.Write(l.wakefd, one[:])
	}
	return true
}

// watch registers a connection's socket.
func (l *loop) watch(c *conn) error {
	ev := unix.EpollEvent{
		Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET&0xffffffff,
		Fd:     int32(c.slot),
		Pad:    int32(c.gen),
	}
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(l.epfd, unix.EPOLL_CTL_ADD, c.fd, &ev))
}

// unwatch ends the events of a connection. To close its descriptor is not enough
// when another process has the socket, too.
func (l *loop) unwatch(c *conn) {
	// It fails only for what is not registered.
	_ = unix.EpollCtl(l.epfd, unix.EPOLL_CTL_DEL, c.fd, nil)
}

// run serves until a message sets over, or the machine's end has come.
func (l *loop) run() error {
	l.mu.Lock()
	l.started = true
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		l.ended = true
		l.mu.Unlock()
	}()
	m := l.m
	for round := 1; !l.over && !m.ended(); round++ {
		if err := l.wait(len(m.ready) == 0); err != nil {
			return fmt.Errorf("waiting for events: %w", err)
		}
		m.now = time.Since(l.start)
		l.take()
		for range passes {
			l.serveReady()
		}
		for _, c := range l.again {
			m.wake(c)
		}
		clear(l.again)
		l.again = l.again[:0]
		m.flush()
		if m.heir != nil {
			m.departures()
		}
		if round%yieldRounds == 0 {
			runtime.Gosched()
		}
	}
	return nil
}

// wait fetches events; if block is set, it waits for some.
func (l *loop) wait(block bool) error {
	l.found = 0
	if !block {
		l.found, l.perr = pollNow(l.epfd, l.events[:])
		return l.perr
	}
	if err := l.raw.Read(l.poll); err != nil {
		return err
	}
	return l.perr
}

// take looks at the events: servers first, so that what they give back or take
// away is known before clients ask for it.
func (l *loop) take() {
	events := l.events[:l.found]
	timer := false
	for i := range events {
		ev := &events[i]
		switch ev.Fd {
		case slotWake:
			l.drain(l.wakefd)
			l.deliver()
		case slotTimer:
			l.drain(l.timerfd)
			l.m.tick()
			timer = true
			l.onTick()
		default:
			if c := l.m.find(uint32(ev.Fd), uint32(ev.Pad)); c != nil && c.sv != nil {
				l.event(c, ev.Events)
			}
		}
	}
	for i := range events {
		if ev := &events[i]; ev.Fd >= 0 {
			switch c := l.m.find(uint32(ev.Fd), uint32(ev.Pad)); {
			case c == nil:
				l.parted(ev)
			case c.cl != nil:
				l.event(c, ev.Events)
			}
		}
	}
	if timer { // last, for those who have closed at the last moment
		l.closePartings(l.m.limits.parting)
	}
}

// drain empties the counter of an eventfd or timerfd.
func (l *loop) drain(fd int) {
	var count [8]byte
	if _, err := unix.Read(fd, count[:]); err != nil && err != unix.EAGAIN {
		l.log.Error("failed to read own event", "error", err)
	}
}

// deliver runs the messages.
func (l *loop) deliver() {
	l.mu.Lock()
	box := l.inbox
	l.inbox = nil
	l.mu.Unlock()
	for _, fn := range box {
		fn()
	}
}

func (l *loop) event(c *conn, events uint32) {
	if events&unix.EPOLLOUT != 0 && (c.tls == nil || l.writableTLS(c)) && !c.writable {
		l.m.becameWritable(c)
	}
	if events&(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) == 0 {
		return
	}
	c.readable = true
	if events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		c.ended = true
		c.broken = events&(unix.EPOLLHUP|unix.EPOLLERR) != 0
	}
	l.m.wake(c)
}

// serveReady gives each connection that is ready its turn.
func (l *loop) serveReady() {
	m := l.m
	batch := m.ready
	m.ready = l.spare[:0]
	for _, c := range batch {
		c.queued = false
		if c.dropped || !m.turn(c) || !c.readable {
			continue
		}
		room := readSize
		if c.tls != nil {
			room = tlsWindow
		}
		if m.arena.window(room) == nil {
			m.flush()
			if c.dropped {
				continue
			}
		}
		l.read(c)
	}
	clear(batch)
	l.spare = batch[:0]
}

// read gives the machine what a socket has, up to a turn's share.
func (l *loop) read(c *conn) {
	if c.tls != nil {
		l.readTLS(c)
		return
	}
	b := l.m.arena.window(readSize)
	n, errno := receive(c.fd, b)
	switch {
	case errno == unix.EAGAIN && !c.ended:
		c.readable = false
		l.dry(c)
	case n == 0 || errno != 0:
		l.endOfStream(c)
	default:
		// A short read means that there is no more, unless the end of the
		// stream is to follow.
		c.readable = n == len(b) || c.ended
		l.received(c, b[:n])
	}
}

// received gives the machine what is in the arena's window.
func (l *loop) received(c *conn, b []byte) {
	m := l.m
	m.arena.commit(len(b))
	if c.cl != nil {
		m.clientReceived(c.cl, b)
	} else {
		m.serverData(c.sv, b)
		if !c.readable && !c.dropped {
			m.serverDry(c.sv)
		}
	}
	if c.readable {
		l.again = append(l.again, c)
	}
}

// dry: there is nothing more to be read for now.
func (l *loop) dry(c *conn) {
	if c.cl != nil {
		l.m.clientDry(c.cl)
	} else {
		l.m.serverDry(c.sv)
	}
}

// endOfStream: there will be nothing more.
func (l *loop) endOfStream(c *conn) {
	c.readable = false
	if c.cl != nil {
		l.m.clientEnded(c.cl)
	} else {
		l.m.serverEnded(c.sv)
	}
}

// write implements world.
func (l *loop) write(c *conn, segs [][]byte) (int, error) {
	if c.tls != nil {
		return l.writeTLS(c, segs)
	}
	return l.out.send(c.fd, segs)
}

// end implements world.
func (l *loop) end(c *conn, how ending) {
	switch how {
	case endSending:
		if c.tls != nil {
			l.endTLS(c)
			return
		}
		// The peer may be gone already; the end is then read from the socket.
		_ = unix.Shutdown(c.fd, unix.SHUT_WR)
		return
	case endParting:
		l.part(c)
	case endNow:
		l.closeFD(c.fd)
	}
	l.onDrop(c)
}

func (l *loop) closeFD(fd int) {
	if err := unix.Close(fd); err != nil && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ECONNRESET) {
		l.log.Error("failed to close socket", "error", err)
	}
}
