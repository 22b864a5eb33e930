package vrrp

import (
	"cmp"
	"container/heap"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

// The simulation runs machines against each other on a simulated network in
// simulated time, with every action of a driver as a step of its own, so that a
// node can freeze between any two of them. Each node has a clock of its own.

const maxSimNodes = 3

// simNet says what the network and the operating system do to the nodes.
type simNet struct {
	loss       float64              // of each packet
	twice      float64              // of each packet: it arrives twice
	maxLatency time.Duration        // of a packet; they overtake each other within that,
	inOrder    bool                 // but for this
	maxLate    time.Duration        // of a timer
	drift      float64              // how far a clock's rate may be from 1
	lossOf     [maxSimNodes]float64 // of each packet that the node sends, besides
	cut        [maxSimNodes]bool    // what the node sends is lost
	second     bool                 // there is another path, by which a node knows who holds a lease
}

type sim struct {
	seed    uint64
	rng     *rand.Rand
	net     simNet
	now     time.Duration
	seq     int
	queue   simQueue
	nodes   []*simNode
	trace   []string
	overlap time.Duration // time in which more than one node held a lease
	onDual  func(owner *simNode)
}

type simNode struct {
	sim    *sim
	id     int
	params params
	m      *machine
	life   int           // raised by a kill: what an earlier life scheduled is void
	alive  bool          // the process exists
	wakes  time.Duration // frozen until then
	deaf   bool          // the freeze loses what arrives (a paused virtual machine)
	inbox  []event
	todo   []action
	midway bool // an action is under way
	timer  int  // generation of the armed timer
	lease  time.Duration
	mishap float64 // chance to freeze at any step

	offset   time.Duration // of its clock
	rate     float64       // of its clock
	isolated time.Duration // no sign from outside arrives until then
	lastSign time.Duration // when the last one did, by its clock
	arrived  time.Duration // when the last packet came or will come
	outcomes []string      // of planned moves
}

// newSim is a pair, of which node 0 is the better.
func newSim(seed uint64, n simNet, preempt bool) *sim { return newSimOf(seed, n, 2, preempt) }

func newSimOf(seed uint64, n simNet, nodes int, preempt bool) *sim {
	s := &sim{seed: seed, rng: rand.New(rand.NewPCG(seed, 51)), net: n}
	for i := range nodes {
		p := params{
			priority: uint8(101 - i), interval: 100 * time.Millisecond, preempt: preempt,
			source: netip.AddrFrom4([4]byte{192, 168, 1, byte(10 + i)}),
		}
		s.nodes = append(s.nodes, &simNode{
			sim: s, id: i, params: p,
			offset: s.upTo(time.Hour), rate: 1 + n.drift*(2*s.rng.Float64()-1),
		})
	}
	return s
}

func (s *sim) logf(format string, args ...any) {
	s.trace = append(s.trace, fmt.Sprintf("%12v ", s.now)+fmt.Sprintf(format, args...))
	if len(s.trace) > 60 {
		s.trace = s.trace[1:]
	}
}

func (s *sim) at(t time.Duration, run func()) {
	s.seq++
	heap.Push(&s.queue, simEvent{at: max(t, s.now), seq: s.seq, run: run})
}

func (s *sim) upTo(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return time.Duration(s.rng.Int64N(int64(d)))
}

func (s *sim) run(until time.Duration) {
	for len(s.queue) > 0 && s.queue[0].at <= until {
		e := heap.Pop(&s.queue).(simEvent)
		s.pass(e.at)
		e.run()
	}
	s.pass(until)
}

// pass lets time go on, and measures for how long of it there were two leases.
func (s *sim) pass(to time.Duration) {
	first, second := time.Duration(0), time.Duration(0) // the latest ends of leases
	for _, n := range s.nodes {
		if n.lease > first {
			first, second = n.lease, first
		} else {
			second = max(second, n.lease)
		}
	}
	s.overlap += max(0, min(second, to)-s.now)
	s.now = to
}

// clock is the node's own.
func (n *simNode) clock() time.Duration {
	return n.offset + time.Duration(n.rate*float64(n.sim.now))
}

// when is the simulation's time at which the node's clock shows that; a little
// later, so that it does show it.
func (n *simNode) when(local time.Duration) time.Duration {
	return time.Duration(float64(local-n.offset)/n.rate) + 2
}

// soon schedules a step of this life of the node; a frozen node takes it when
// it wakes.
func (n *simNode) soon(after time.Duration, run func()) {
	life := n.life
	var step func()
	step = func() {
		switch {
		case n.life != life:
		case n.sim.now < n.wakes:
			n.sim.at(n.wakes, step)
		default:
			run()
		}
	}
	n.sim.at(n.sim.now+after, step)
}

func (n *simNode) start() {
	if n.paused(n.start) || n.alive {
		return
	}
	n.life++
	n.wakes = 0
	n.alive, n.midway, n.todo, n.inbox = true, false, nil, nil
	n.m = newMachine(n.params)
	n.sim.logf("node %d starts", n.id)
	n.step(event{kind: evStart})
}

// paused puts an order off until the machine runs again.
func (n *simNode) paused(order func()) bool {
	if n.sim.now < n.wakes && n.deaf {
		n.sim.at(n.wakes, order)
		return true
	}
	return false
}

// kill ends the process, a stopped one too; the lease stays with the kernel.
func (n *simNode) kill() {
	if n.paused(n.kill) {
		return
	}
	n.life++
	n.alive = false
	n.sim.logf("node %d is killed", n.id)
}

// freeze stops a node. A stopped process loses nothing, its socket buffers; a
// paused machine loses what comes when it is paused for long. (No protocol that
// counts lost advertisements as silence can promise anything about a short
// deafness right before the other node dies.)
func (n *simNode) freeze(d time.Duration, deaf bool) {
	deaf = deaf && d > 650*time.Millisecond
	if n.sim.now >= n.wakes {
		n.wakes, n.deaf = 0, false
	}
	n.wakes, n.deaf = max(n.wakes, n.sim.now+d), n.deaf || deaf
	n.sim.logf("node %d freezes for %v (deaf %v)", n.id, d, deaf)
}

func (n *simNode) step(e event) {
	n.feed(e)
	n.proceed()
}

// feed gives the machine an event with what is known from elsewhere.
func (n *simNode) feed(e event) {
	s := n.sim
	if s.now >= n.isolated {
		n.lastSign = n.clock()
	}
	e.seen, e.seenAgo = n.lastSign > 0, n.clock()-n.lastSign
	for _, other := range s.nodes {
		e.peerActive = e.peerActive || s.net.second && other != n && other.alive && other.lease > s.now
	}
	n.todo = append(n.todo, n.m.step(e, n.clock())...)
}

// order gives the node an event from outside, if it is there to take it.
func (n *simNode) order(e event) {
	if !n.alive {
		return
	}
	n.soon(n.sim.upTo(50*time.Microsecond)+time.Microsecond, func() {
		if n.midway {
			n.order(e)
			return
		}
		n.step(e)
	})
}

// proceed carries out the next action, or arms the timer when none is left.
func (n *simNode) proceed() {
	if n.midway {
		return
	}
	if n.sim.rng.Float64() < n.mishap {
		n.freeze(n.sim.upTo(2*time.Second), n.sim.rng.IntN(2) == 0)
	}
	if len(n.todo) == 0 {
		n.arm()
		return
	}
	a := n.todo[0]
	n.todo = n.todo[1:]
	n.midway = true
	n.soon(n.sim.upTo(50*time.Microsecond), func() { n.perform(a) })
}

func (n *simNode) perform(a action) {
	s := n.sim
	switch a.kind {
	case actRenew:
		if a.until > n.clock() {
			n.lease = n.when(a.until)
			for _, other := range s.nodes {
				if other != n && other.lease > s.now && s.onDual != nil {
					s.onDual(n)
				}
			}
		}
	case actRevoke:
		n.lease = 0
	case actTransition:
		s.logf("node %d: %v -> %v: %s", n.id, a.from, a.to, a.reason)
	case actOutcome:
		s.logf("node %d: move: %q", n.id, a.reason)
		n.outcomes = append(n.outcomes, a.reason)
	case actSend:
		if a.priority != priorityResign && n.m.expired(n.clock()) {
			n.midway = false
			n.step(event{kind: evTimer})
			return
		}
		began := n.clock()
		if s.rng.Float64() < n.mishap {
			n.freeze(s.upTo(2*time.Second), s.rng.IntN(2) == 0)
		}
		n.soon(s.upTo(20*time.Microsecond), func() {
			n.transmit(a)
			if s.rng.Float64() < n.mishap {
				n.freeze(s.upTo(2*time.Second), s.rng.IntN(2) == 0)
			}
			n.soon(s.upTo(20*time.Microsecond), func() {
				n.midway = false
				if a.priority == priorityResign {
					n.proceed()
					return
				}
				n.step(event{kind: evSent, began: began, ok: true})
			})
		})
		return
	}
	n.midway = false
	n.proceed()
}

func (n *simNode) transmit(a action) {
	s := n.sim
	e := event{kind: evAdvert, from: n.params.source, advert: Advertisement{
		VRID: 51, Priority: a.priority, Interval: cmp.Or(a.interval, n.params.interval),
	}}
	for _, other := range s.nodes {
		if other == n || s.net.cut[n.id] {
			continue
		}
		if p := s.net.loss + s.net.lossOf[n.id]; p > 0 && s.rng.Float64() < p {
			continue
		}
		copies := 1
		if s.net.twice > 0 && s.rng.Float64() < s.net.twice {
			copies = 2
		}
		for range copies {
			at := s.now + 20*time.Microsecond + s.upTo(s.net.maxLatency)
			if s.net.inOrder {
				at = max(at, other.arrived)
				other.arrived = at
			}
			s.at(at, func() { other.receive(e) })
		}
	}
}

func (n *simNode) receive(e event) {
	if !n.alive || n.sim.now < n.wakes && n.deaf {
		return
	}
	n.inbox = append(n.inbox, e)
	n.soon(n.sim.upTo(50*time.Microsecond), n.drain)
}

// drain handles what the socket holds, as a driver does before its timers.
func (n *simNode) drain() {
	if n.midway {
		return // looked at when the actions are through
	}
	for len(n.inbox) > 0 {
		e := n.inbox[0]
		n.inbox = n.inbox[1:]
		n.feed(e)
	}
	n.proceed()
}

func (n *simNode) arm() {
	if len(n.inbox) > 0 {
		n.soon(0, n.drain)
		return
	}
	at, ok := n.m.deadline()
	if !ok {
		return
	}
	n.timer++
	generation := n.timer
	n.soon(max(0, n.when(at)-n.sim.now)+n.sim.upTo(n.sim.net.maxLate), func() {
		if generation != n.timer || n.midway {
			return
		}
		for len(n.inbox) > 0 {
			e := n.inbox[0]
			n.inbox = n.inbox[1:]
			n.feed(e)
		}
		n.step(event{kind: evTimer})
	})
}

// settled fails the test unless exactly one node is active and holds the lease.
func (s *sim) settled(t *testing.T) {
	t.Helper()
	owners := 0
	for _, n := range s.nodes {
		if n.alive && n.m.state == Active && n.lease > s.now {
			owners++
		}
	}
	if owners != 1 {
		s.fail(t, "%d nodes own the addresses, want 1", owners)
	}
}
