package pooler

import (
	"sync"
	"time"
)

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

// pauseAccepting leaves new connections to the heir. The sockets stay open, in
// case that it goes away.
func (p *Pooler) pauseAccepting() {
	p.accepting.close()
	p.setAcceptDeadlines(time.Unix(1, 0))
}

func (p *Pooler) resumeAccepting() {
	p.setAcceptDeadlines(time.Time{})
	p.accepting.open()
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
