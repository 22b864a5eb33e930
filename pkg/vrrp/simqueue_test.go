package vrrp

import "time"

// simQueue is the future of a simulation, a heap with the next event first;
// those of one moment keep the order in which they were scheduled.
type simQueue []simEvent

type simEvent struct {
	at  time.Duration
	seq int
	run func()
}

func (q simQueue) Len() int { return len(q) }
func (q simQueue) Less(i, j int) bool {
	if q[i].at != q[j].at {
		return q[i].at < q[j].at
	}
	return q[i].seq < q[j].seq
}
func (q simQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *simQueue) Push(x any)   { *q = append(*q, x.(simEvent)) }
func (q *simQueue) Pop() any {
	old := *q
	e := old[len(old)-1]
	*q = old[:len(old)-1]
	return e
}
