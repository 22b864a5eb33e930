package pooler

import (
	"context"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// Whoever closes a TCP connection first keeps it for a minute in TIME-WAIT (RFC
// 9293, section 3.6.1). Behind a balancer that translates addresses, such a
// rest on the pooler's side keeps one of the balancer's ports from being used
// again. Clients that say goodbye close at once afterwards (libpq, pgx), so
// they are given a moment to be the first.

const (
	// partingTimeout is that moment. The close follows the goodbye at once, so
	// this is for a packet lost on the way: TCP repeats it after 200 ms and a
	// round trip. It is no longer, because there are drivers that wait for us to
	// close (asyncpg).
	partingTimeout = 500 * time.Millisecond
	// maxPartings bounds the sockets that wait so. Beyond that the oldest is
	// closed at once.
	maxPartings = 512
)

// parting is the socket of a client that the machine has forgotten already.
type parting struct {
	place eventPlace
	fd    int
	since time.Duration
	lk    link[parting]
}

// eventPlace is the slot and generation under which a socket's events come.
type eventPlace struct{ slot, gen uint32 }

// partings are the sockets whose clients are to close first.
type partings struct {
	byPlace map[eventPlace]*parting
	queue   list[parting] // the one that has waited longest first
}

func newPartings() partings {
	return partings{
		byPlace: make(map[eventPlace]*parting),
		queue:   list[parting]{at: func(p *parting) *link[parting] { return &p.lk }},
	}
}

// add keeps the socket of c, and returns the one that has to go for it, if the
// bound is reached.
func (p *partings) add(c *conn, now time.Duration) (excess *parting) {
	if p.queue.n >= maxPartings {
		excess = p.queue.head
		p.remove(excess)
	}
	e := &parting{place: eventPlace{c.slot, c.gen}, fd: c.fd, since: now}
	p.byPlace[e.place] = e
	p.queue.pushBack(e)
	return excess
}

func (p *partings) remove(e *parting) {
	delete(p.byPlace, e.place)
	p.queue.remove(e)
}

// part keeps a client's socket open until the client has closed it.
func (l *loop) part(c *conn) {
	if e := l.partings.add(c, l.m.now); e != nil {
		l.closeFD(e.fd)
	}
}

// parted looks whether an event means that a client that took its leave has
// closed.
func (l *loop) parted(ev *unix.EpollEvent) {
	if ev.Events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) == 0 {
		return
	}
	if e := l.partings.byPlace[eventPlace{uint32(ev.Fd), uint32(ev.Pad)}]; e != nil {
		l.partings.remove(e)
		l.closeFD(e.fd)
	}
}

// closePartings closes the sockets that have waited for at least age.
func (l *loop) closePartings(age time.Duration) {
	for e := l.partings.queue.head; e != nil && l.m.now-e.since >= age; e = l.partings.queue.head {
		l.partings.remove(e)
		l.closeFD(e.fd)
	}
}

// part is the same for a connection that never reached the loop.
func (p *Pooler) part(conn net.Conn) {
	defer conn.Close()
	defer p.parting.Add(-1)
	if p.parting.Add(1) > maxPartings {
		return
	}
	// A connection that takes no deadline is broken, and the read fails.
	_ = conn.SetReadDeadline(time.Now().Add(p.conf().limits.parting))
	defer context.AfterFunc(p.ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })()
	_, _ = io.CopyN(io.Discard, conn, maxDiscard)
}

// maxDiscard is how much input of a client that goes is read away, in bytes.
const maxDiscard = 1 << 20
