package vrrp

import (
	"log/slog"
	"net/netip"
	"time"
)

// What a router tells of itself.

// historySize is how many changes of state are remembered.
const historySize = 64

// Change is a change of state as it is remembered.
type Change struct {
	At       time.Time `json:"at"`
	From     State     `json:"from"`
	To       State     `json:"to"`
	Reason   string    `json:"reason"`
	Priority uint8     `json:"priority"` // ours then
	// Peer is who had been heard last then; Ago is how long ago that was.
	Peer Peer `json:"peer"`
}

// transition makes a change of state known.
func (r *Router) transition(a action) {
	t := Transition{
		Router: r.config.Name, From: a.from, To: a.to, Reason: a.reason,
		At: time.Now(), Priority: r.machine.rank(),
	}
	now := r.now()
	r.mu.Lock()
	r.state.State, r.state.Since, r.state.Reason = t.To, t.At, t.Reason
	r.state.Transitions++
	if t.To == Active {
		r.state.BecameActive++
	}
	if len(r.history) == historySize {
		r.history = append(r.history[:0], r.history[1:]...)
	}
	peer := r.state.Peer
	if peer.Address.IsValid() {
		peer.Ago = max(0, now-r.seen)
	}
	r.history = append(r.history, Change{
		At: t.At, From: t.From, To: t.To, Reason: t.Reason, Priority: t.Priority, Peer: peer,
	})
	r.mu.Unlock()
	r.log.Info("virtual router changed state", "from", t.From, "to", t.To, "reason", t.Reason)
	if r.config.OnTransition != nil {
		r.config.OnTransition(t)
	}
}

// publish brings what the machine thinks of this node into the snapshot.
func (r *Router) publish() {
	m := r.machine
	r.mu.Lock()
	defer r.mu.Unlock()
	s := &r.state
	s.EffectivePriority, s.Takeover = m.rank(), m.raised
	s.Fault, s.Gate, s.Synced, s.CutOff = m.fault(), m.gate(), m.unsynced == "", m.isolated
	if !m.failed {
		s.Fault = ""
	}
}

// contention tells that two nodes were active, and who goes on.
func (r *Router) contention(a action) {
	r.mu.Lock()
	r.state.Contentions++
	r.mu.Unlock()
	winner := any(a.rival)
	if a.wins {
		winner = "this node"
	}
	if n, ok := r.muteContend.Allow(r.now()); ok {
		args := []any{"reason", a.reason, "winner", winner, "suppressed", n}
		if a.rival != (netip.Addr{}) {
			args = append(args, slog.Any("other", a.rival))
		}
		r.log.Error("two nodes are active for the same addresses", args...)
	}
}

// barred tells why this node leaves the addresses without an owner.
func (r *Router) barred(a action) {
	r.mu.Lock()
	r.state.Barred++
	r.mu.Unlock()
	if n, ok := r.muteBarred.Allow(r.now()); ok {
		r.log.Warn("not becoming active", "reason", a.reason, "suppressed", n)
	}
}
