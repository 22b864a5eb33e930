package flowsync

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// The simulation runs the machines of two nodes against each other in simulated
// time. What happens next is drawn: traffic, the delivery of a frame, a step of
// a walk through the table, an address that moves, a connection that breaks.

const (
	simVIPs    = 2
	simClients = 12 // of each VIP: few, so that their ports come back
)

type sim struct {
	rng    *rand.Rand
	now    time.Duration
	nodes  [2]*simNode
	linked bool
	lives  int // flows ever opened
	traced bool
	trace  []string
}

type simNode struct {
	sim      *sim
	id       int
	table    *memTable
	last     map[lb.FlowID]time.Duration // when the flow had a packet
	book     *book
	sender   sender
	receiver receiver
	ring     []lb.FlowChange // happened, but not yet published
	lost     int             // something was dropped after so many of these; -1: nothing
	inbox    [][]byte
	walks    *simWalk
	acked    uint64
	limit    int
}

// simWalk is a walk through the table: what is read may wait before it is
// handed over, as with a kernel that gives out many entries at a time.
type simWalk struct {
	walk
	before []netip.Addr
	places []place // still to be read
	read   []lb.FlowRecord
}

func newSim(seed uint64) *sim {
	s := &sim{rng: rand.New(rand.NewPCG(seed, 7))}
	for i := range s.nodes {
		n := &simNode{sim: s, id: i, table: newMemTable(), last: make(map[lb.FlowID]time.Duration), book: newBook(testServices(simVIPs))}
		s.nodes[i] = n
		n.limit = 3 + s.rng.IntN(30)
		n.start()
	}
	for vip := range simVIPs {
		s.nodes[s.rng.IntN(2)].table.leased[testVIP(vip)] = true
	}
	return s
}

func (s *sim) logf(format string, args ...any) {
	if s.traced {
		s.trace = append(s.trace, fmt.Sprintf("%10v ", s.now)+fmt.Sprintf(format, args...))
	}
}

func (s *sim) chance(p float64) bool { return s.rng.Float64() < p }

// start is the beginning of a process. The table has outlived the last one.
func (n *simNode) start() {
	n.sender = newSender(n.book, 300*time.Millisecond, n.limit)
	n.sender.window, n.sender.ops = 60+n.sim.rng.IntN(600), 1+n.sim.rng.IntN(6)
	n.receiver = receiver{table: n.table, ours: func() *book { return n.book }}
	n.ring, n.lost, n.walks = nil, -1, nil
}

func (n *simNode) peer() *simNode { return n.sim.nodes[1-n.id] }

func (n *simNode) serves() []netip.Addr { s := n.table.state(); return s.serves() }

// link connects or disconnects the nodes.
func (s *sim) link(up bool) {
	if s.linked == up {
		return
	}
	s.linked = up
	for _, n := range s.nodes {
		n.inbox, n.acked, n.walks = nil, 0, nil
		if up {
			n.receiver.connected()
			n.sender.connected(s.now, n.serves())
		} else {
			n.receiver.disconnected()
			n.sender.disconnected()
		}
	}
	for _, n := range s.nodes {
		n.beat()
	}
	s.logf("linked: %v", up)
}

// holders returns the nodes that hold the lease of a VIP.
func (s *sim) holders(vip int) (out []*simNode) {
	for _, n := range s.nodes {
		if n.table.leased[testVIP(vip)] {
			out = append(out, n)
		}
	}
	return out
}

// lease gives or takes away a lease.
func (n *simNode) lease(vip int, held bool) {
	if n.table.leased[testVIP(vip)] != held {
		n.sim.logf("node %d holds %v: %v", n.id, testVIP(vip), held)
	}
	n.table.leased[testVIP(vip)] = held
	n.sender.serveOwn(n.serves())
	n.beat() // the daemon kicks the link
}

// traffic is a packet of a client: it opens, moves or closes its flow.
func (s *sim) traffic() {
	vip, client := s.rng.IntN(simVIPs), s.rng.IntN(simClients)
	holders := s.holders(vip)
	if len(holders) == 0 {
		return
	}
	n := holders[s.rng.IntN(len(holders))]
	f := testFlow(vip, client, s.lives)
	old, ok := n.table.flows[placeOf(&f)]
	switch {
	case !ok || s.chance(0.1):
		if ok {
			n.happen(old, true) // the client's port is used anew
		}
		s.lives++
		f.PacketsIn = 1
		n.happen(f, false)
	case s.chance(0.3):
		n.happen(old, true)
	default:
		published := s.chance(0.3) && old.State&lb.FlowFinBackend == 0
		old.PacketsIn++
		if published {
			old.State = old.State<<1 | 1
			old.FinAck = uint32(s.rng.IntN(1 << 30))
		}
		n.last[old.ID()] = s.now
		n.table.put(old)
		if published {
			n.ring = append(n.ring, lb.FlowChange{Record: old})
		}
	}
}

// happen opens or closes a flow of the node.
func (n *simNode) happen(f lb.FlowRecord, closed bool) {
	n.sim.logf("node %d: %v %v closed %v", n.id, f.Client, f.SNAT, closed)
	if closed {
		n.table.drop(f)
		delete(n.last, f.ID())
	} else {
		n.table.put(f)
		n.last[f.ID()] = n.sim.now
	}
	n.ring = append(n.ring, lb.FlowChange{Record: f, Gone: closed})
}

// publish hands over some of what the ring has.
func (n *simNode) publish(most int) {
	k := min(most, len(n.ring))
	n.sender.publish(n.ring[:k], n.sim.now)
	n.ring = n.ring[k:]
	// A loss counts when all that happened before is published.
	if n.lost >= 0 {
		if n.lost = max(0, n.lost-k); n.lost == 0 {
			n.lost = -1
			n.sender.lost()
		}
	}
}

// say sends at most so many frames, acknowledgement included.
func (n *simNode) say(most int) {
	if !n.sim.linked {
		return
	}
	if n.acked != n.receiver.seq {
		n.acked = n.receiver.seq
		n.send(appendNumber(nil, kindAck, n.acked))
	}
	if n.receiver.asks {
		n.receiver.asks = false
		n.send(appendReason(nil, kindResync, ""))
	}
	for range most {
		frame, begun, _ := n.sender.next(n.sim.now, nil)
		if begun {
			w := &simWalk{walk: walk{epoch: n.sender.epoch, full: n.sender.pass.full, since: n.sender.pass.since}, before: n.serves()}
			for p := range n.table.flows {
				w.places = append(w.places, p)
			}
			slices.SortFunc(w.places, func(a, b place) int {
				if c := a.client.Compare(b.client); c != 0 {
					return c
				}
				return a.service.Compare(b.service)
			})
			n.sim.rng.Shuffle(len(w.places), func(i, j int) { w.places[i], w.places[j] = w.places[j], w.places[i] })
			n.walks = w
		}
		if frame == nil {
			return
		}
		n.send(frame)
	}
}

func (n *simNode) send(frame []byte) { n.peer().inbox = append(n.peer().inbox, frame) }

// beat sends the state.
func (n *simNode) beat() {
	if !n.sim.linked {
		return
	}
	state := n.table.state()
	n.sender.serveOwn(state.serves())
	frame, _, err := appendState(nil, state)
	if err != nil {
		panic(err)
	}
	n.send(frame)
}

// step goes on with the walk.
func (n *simNode) step(most int) {
	w := n.walks
	if w == nil {
		return
	}
	for range most {
		if len(w.places) > 0 && (len(w.read) == 0 || n.sim.chance(0.6)) {
			p := w.places[0]
			w.places = w.places[1:]
			f, ok := n.table.flows[p]
			if ok && n.table.leased[p.service.Addr()] && (w.full || n.sim.now-n.last[f.ID()] <= n.sim.now-w.since) {
				w.read = append(w.read, f)
			}
			continue
		}
		more, valid := n.sender.hungry(w.epoch)
		switch {
		case !valid:
			n.walks = nil
			return
		case len(w.read) > 0 && more:
			k := 1 + n.sim.rng.IntN(len(w.read))
			n.sender.offer(w.epoch, slices.Clone(w.read[:k]))
			w.read = w.read[k:]
		case len(w.read) == 0 && len(w.places) == 0:
			n.sender.finish(w.epoch, common(w.before, n.serves()), n.table.err)
			n.walks = nil
			return
		}
	}
}

// hear takes at most so many frames.
func (n *simNode) hear(most int) error {
	for range min(most, len(n.inbox)) {
		k, body := kind(n.inbox[0][4]), n.inbox[0][frameHeader:]
		n.inbox = n.inbox[1:]
		switch k {
		case kindAck:
			seq, err := parseNumber(body)
			if err == nil {
				err = n.sender.acknowledged(seq)
			}
			if err != nil {
				return err
			}
		case kindState:
			state, err := parseState(body)
			if err != nil {
				return err
			}
			n.sender.servePeer(state.serves())
		case kindResync:
			n.sender.incomplete(ResyncAsked)
		default:
			n.sim.logf("node %d takes kind %d of %d bytes, marks %d", n.id, k, len(body), len(n.receiver.marks.flows))
			if broken, err := n.receiver.handle(k, body); err != nil && !broken {
				return err
			}
		}
	}
	return nil
}
