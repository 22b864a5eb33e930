package flowsync

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// mishaps says what may go wrong in a simulation.
type mishaps struct{ breaks, restarts, losses, moves, failures, reloads bool }

// reload changes the configuration: a backend comes or goes.
func (n *simNode) reload(all bool) {
	services := testServices(simVIPs)
	if !all {
		services[0].Backends = services[0].Backends[1:]
	}
	n.book = newBook(services)
	n.sender.book, n.sender.tell = n.book, true
	n.receiver.asks = n.sim.linked
	n.sim.logf("node %d reloads, all backends: %v", n.id, all)
}

// run lets things happen.
func (s *sim) run(steps int, m mishaps) error {
	for range steps {
		n := s.nodes[s.rng.IntN(2)]
		s.now += time.Duration(s.rng.IntN(1000)) * time.Microsecond
		switch s.rng.IntN(12) {
		case 0, 1, 2:
			s.traffic()
		case 3:
			n.publish(1 + s.rng.IntN(8))
		case 4, 5:
			n.say(1 + s.rng.IntN(4))
		case 6, 7:
			if err := n.hear(1 + s.rng.IntN(4)); err != nil {
				return err
			}
		case 8, 9:
			n.step(1 + s.rng.IntN(10))
		case 10:
			n.beat()
		case 11:
			switch s.rng.IntN(10) {
			case 0:
				s.link(!m.breaks || !s.linked)
			case 1:
				if m.restarts && s.chance(0.3) {
					s.link(false)
					n.start()
					s.logf("node %d restarts", n.id)
				}
			case 2:
				if m.losses && len(n.ring) > 0 {
					n.ring = n.ring[:s.rng.IntN(len(n.ring))]
					n.lost = len(n.ring)
					s.logf("node %d loses events", n.id)
				}
			case 3:
				if m.moves {
					n.lease(s.rng.IntN(simVIPs), s.chance(0.5))
				}
			case 4:
				s.now += time.Duration(s.rng.IntN(1500)) * time.Millisecond
			case 5:
				if m.failures {
					n.table.err = nil
					if s.chance(0.3) {
						n.table.err = errors.New("the map is gone")
					}
				}
			case 6:
				if m.reloads {
					n.reload(s.chance(0.5))
				}
			case 7, 8, 9:
				s.link(true)
			}
		}
	}
	return nil
}

// settle lets everything come to rest for the given time.
func (s *sim) settle(d time.Duration) error {
	for i := range int(d / (5 * time.Millisecond)) {
		s.now += 5 * time.Millisecond
		for _, n := range s.nodes {
			n.publish(len(n.ring))
			if i%20 == 0 {
				n.beat()
			}
			n.say(10)
			n.step(100)
			n.say(10)
			if err := n.hear(len(n.inbox)); err != nil {
				return err
			}
		}
	}
	return nil
}

// compare returns what is wrong when all is at rest.
func (s *sim) compare(counters bool) error {
	for vip := range simVIPs {
		from := s.holders(vip)[0]
		to := from.peer()
		for p, f := range from.table.flows {
			if p.service.Addr() != testVIP(vip) {
				continue
			}
			g, ok := to.table.flows[p]
			switch {
			case !ok:
				return fmt.Errorf("node %d lacks the flow of %v at %v", to.id, p.client, p.service)
			case g.ID() != f.ID() || g.State != f.State || g.FinAck != f.FinAck || counters && g != f:
				return fmt.Errorf("node %d has %+v, node %d %+v", to.id, g, from.id, f)
			}
		}
		for p, g := range to.table.flows {
			if _, ok := from.table.flows[p]; !ok && p.service.Addr() == testVIP(vip) {
				return fmt.Errorf("node %d still has %+v", to.id, g)
			}
		}
	}
	for _, n := range s.nodes {
		switch {
		case !n.receiver.synced || !n.sender.synced || !n.sender.drained(n.sender.published):
			return fmt.Errorf("node %d: receiver synced %v, sender synced %v, settled %d of %d", n.id, n.receiver.synced, n.sender.synced, n.sender.settled, n.sender.published)
		case n.sender.lag(s.now) != 0 || n.sender.queue.n != 0:
			return fmt.Errorf("node %d: lag %v, queue %d", n.id, n.sender.lag(s.now), n.sender.queue.n)
		case len(n.receiver.marks.flows) != 0:
			return fmt.Errorf("node %d still has %d marks", n.id, len(n.receiver.marks.flows))
		}
	}
	return nil
}

// history is what happened, if a single seed was asked for.
func (s *sim) history() string { return strings.Join(s.trace, "\n") }
