package main

import (
	"slices"
	"time"

	"github.com/pgsteer/pgsteer/pkg/admin"
	"github.com/pgsteer/pgsteer/pkg/flowsync"
	"github.com/pgsteer/pgsteer/pkg/vrrp"
)

const (
	// toldMoves is how many of its last moves a node tells the other one with each
	// heartbeat: more than it makes between two of them.
	toldMoves = 8
	// keptMoves is how many of the other node's moves are kept, as many as of our
	// own (vrrp.Snapshot.History).
	keptMoves = 64
)

// lastMoves are the last moves of a virtual router, for the other node.
func lastMoves(v *vrrp.Snapshot, now time.Time) []flowsync.Move {
	history := v.History[max(0, len(v.History)-toldMoves):]
	moves := make([]flowsync.Move, 0, len(history))
	for i, c := range history {
		m := flowsync.Move{
			Number: v.Transitions - uint64(len(history)-1-i), Ago: max(0, now.Sub(c.At)),
			From: c.From.String(), To: c.To.String(), Reason: c.Reason, Priority: c.Priority,
		}
		if c.Peer.Address.IsValid() {
			m.Heard, m.HeardPriority, m.HeardBefore = c.Peer.Address, c.Peer.Priority, c.Peer.Ago
		}
		moves = append(moves, m)
	}
	return moves
}

// A routerID is what both nodes know a virtual router by.
type routerID struct {
	vrid uint8
	v6   bool
}

// peerMoves are the moves of the other node, as it has told of them.
type peerMoves map[routerID]*movesOf

type movesOf struct {
	run     uint64 // the life in which it made
	last    uint64 // the last one
	changes []admin.PeerChange
}

// note remembers the moves of a state that are new; sent is when it was sent, by
// our clock.
func (p *peerMoves) note(s *flowsync.State, sent time.Time) {
	if *p == nil {
		*p = make(peerMoves)
	}
	for _, r := range s.Routers {
		id := routerID{r.VRID, r.V6}
		of := (*p)[id]
		if of == nil {
			of = new(movesOf)
			(*p)[id] = of
		}
		if of.run != r.Run {
			of.run, of.last = r.Run, 0
		}
		for _, m := range r.Moves {
			if m.Number > of.last {
				of.last = m.Number
				of.add(s.Node, m, sent)
			}
		}
	}
}

// add remembers one move. One from or to a state that we do not know is a newer
// daemon's, and left out.
func (o *movesOf) add(node string, m flowsync.Move, sent time.Time) {
	c := admin.PeerChange{Node: node, Change: vrrp.Change{At: sent.Add(-m.Ago), Reason: m.Reason, Priority: m.Priority}}
	if c.From.UnmarshalText([]byte(m.From)) != nil || c.To.UnmarshalText([]byte(m.To)) != nil {
		return
	}
	c.Peer = vrrp.Peer{Address: m.Heard, Priority: m.HeardPriority, Ago: m.HeardBefore}
	if len(o.changes) == keptMoves {
		o.changes = slices.Delete(o.changes, 0, 1)
	}
	o.changes = append(o.changes, c)
}

func (r *replication) note(s flowsync.State, sent time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.moves.note(&s, sent)
}

// peerHistory returns what the other node has told of its moves.
func (d *balancerDaemon) peerHistory(vrid uint8, v6 bool) []admin.PeerChange {
	if d.sync == nil {
		return nil
	}
	d.sync.mu.Lock()
	defer d.sync.mu.Unlock()
	of := d.sync.moves[routerID{vrid, v6}]
	if of == nil {
		return nil
	}
	return slices.Clone(of.changes)
}
