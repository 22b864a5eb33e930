package flowsync

import (
	"time"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// queued is a change on its way.
type queued struct {
	lb.FlowChange
	at time.Duration // when it was published
}

// queue is a ring of changes that grows up to a limit.
type queue struct {
	ring  []queued
	head  int
	n     int
	limit int
}

// room grows the ring by what is needed and possible, and reports whether one
// more fits.
func (q *queue) room() bool {
	if q.n < len(q.ring) {
		return true
	}
	if q.n >= q.limit {
		return false
	}
	ring := make([]queued, min(max(256, 2*len(q.ring)), q.limit))
	for i := range q.n {
		ring[i] = q.ring[(q.head+i)%len(q.ring)]
	}
	q.ring, q.head = ring, 0
	return true
}

// push adds a change if there is room.
func (q *queue) push(c lb.FlowChange, at time.Duration) bool {
	if !q.room() {
		return false
	}
	q.ring[(q.head+q.n)%len(q.ring)] = queued{c, at}
	q.n++
	return true
}

// front returns the oldest change; there must be one.
func (q *queue) front() *queued { return &q.ring[q.head] }

func (q *queue) pop() {
	q.head = (q.head + 1) % len(q.ring)
	q.n--
}

// reset forgets all changes, and the room that they took.
func (q *queue) reset() { q.ring, q.head, q.n = nil, 0, 0 }
