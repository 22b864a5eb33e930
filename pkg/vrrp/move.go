package vrrp

import (
	"fmt"
	"net/netip"
	"time"
)

// The moves that an operator plans. What came of one is an actOutcome.

// handoverInterval is the advertisement interval in a resignation of an active
// router. Its receivers take their skew from it, so that the role moves within
// milliseconds and in the order of priorities; those that do not are as fast as
// the protocol makes them. It is the shortest there is.
const handoverInterval = 10 * time.Millisecond

// outcome tells what came of a move: a reason why not, or "" if it was made.
func (m *machine) outcome(failure string) {
	m.do(action{kind: actOutcome, reason: failure})
}

// stepAside is Resign: give the role up, and stand back while another has it.
func (m *machine) stepAside(e event, now time.Duration) {
	if m.state == Init && !m.failed {
		m.outcome("the virtual router is not running")
		return
	}
	wasActive, wasClaiming := m.state == Active, m.claiming
	m.withdraw()
	m.lower(e.reason)
	m.held = e.reason
	switch {
	case wasActive:
		m.become(Backup, e.reason)
		m.listen(now, "nobody took over after we resigned: "+e.reason)
	case m.state == Backup && m.listening:
		m.timer = m.downAt()
	case wasClaiming:
		m.listen(now, m.cause)
	}
	m.outcome("")
}

// takeOver is Takeover: claim the role with a priority that no other node has.
func (m *machine) takeOver(e event, now time.Duration) {
	switch {
	case m.failed:
		m.outcome("this node is at fault: " + m.fault())
	case m.state == Init:
		m.outcome("the virtual router is not running")
	case m.cutOff(e):
		m.outcome(m.cutOffReason(e))
	case m.state == Active:
		m.reckon(now, func() { m.raised, m.move = true, e.reason })
		m.outcome("")
	case now < m.rivalLease && m.unbeatable(m.rivalPriority, m.rival):
		m.outcome(fmt.Sprintf("%v advertises priority %d", m.rival, m.rivalPriority))
	default:
		m.raised, m.move, m.held = true, e.reason, ""
		if m.late(now) {
			m.absent(now) // and the timer has not told yet
		}
		m.mayHold(netip.Addr{}, m.unheard)
		m.claim(now)
	}
}

// unbeatable reports whether an active router would not give way to our claim.
func (m *machine) unbeatable(priority uint8, from netip.Addr) bool {
	return priority == priorityOwner && m.priority != priorityOwner ||
		priority == priorityTakeover && m.priority != priorityOwner && from.Compare(m.source) > 0
}

// giveUp ends a take-over that was not made yet; nobody waits for it any more.
func (m *machine) giveUp(now time.Duration) {
	if !m.raised || m.state == Active {
		return
	}
	m.raised = false
	if m.claiming {
		m.withdraw()
		m.listen(now, "a take-over was given up")
	}
}

// lower ends a take-over, also one that was made: it lasts as long as the role.
func (m *machine) lower(reason string) {
	if m.raised && m.state != Active {
		m.outcome(reason)
	}
	m.raised = false
}

// withdraw gives up the role, or a claim to it, by priority 0.
func (m *machine) withdraw() {
	switch {
	case m.state == Active:
		m.resign()
	case m.claiming:
		m.do(action{kind: actSend, priority: priorityResign})
	}
	m.claiming = false
}
