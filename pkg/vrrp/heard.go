package vrrp

import (
	"fmt"
	"net/netip"
	"time"
)

// What the machine makes of an advertisement.

// note remembers who advertises and how long its lease can last. One that
// withdraws says so by priority 0.
func (m *machine) note(e event, now time.Duration) {
	switch {
	case e.advert.Priority != priorityResign:
		m.rival, m.rivalPriority = e.from, e.advert.Priority
		m.rivalLease, m.vacated = now+leaseIntervals*e.advert.Interval, false
	case e.from == m.rival:
		m.rival, m.rivalLease = netip.Addr{}, 0
	}
}

// better reports whether the sender of an advertisement goes before us.
func (m *machine) better(e event) bool {
	if rank := m.rank(); e.advert.Priority != rank {
		return e.advert.Priority > rank
	}
	return e.from.Compare(m.source) > 0 // section 6.4.3: the greater address wins
}

func (m *machine) heardAsBackup(e event, now time.Duration) {
	stranger := m.rival.IsValid() && e.from != m.rival
	m.note(e, now)
	switch {
	case e.advert.Priority == priorityResign && stranger:
		// Not the one that we follow: a third node has withdrawn its claim.
	case e.advert.Priority == priorityResign:
		m.cause, m.vacated = fmt.Sprintf("%v resigned", e.from), true
		m.timer = now + max(0, m.skewOf(min(m.learned, e.advert.Interval))-m.claimTime())
		m.listening = false
	case e.advert.Priority >= m.rank():
		m.worse = false
		m.follow(e, now)
	case !m.mayPreempt(now):
		m.follow(e, now)
	default:
		// Discarded, and the timer runs on: we preempt when it fires.
		m.cause = fmt.Sprintf("preempting %v, whose priority is %d", e.from, e.advert.Priority)
	}
}

// follow accepts the sender as the active router.
func (m *machine) follow(e event, now time.Duration) {
	m.lower(fmt.Sprintf("%v advertises priority %d", e.from, e.advert.Priority))
	m.learned = e.advert.Interval
	m.listen(now, "")
	m.cause = fmt.Sprintf("%v was silent for %v", e.from, (m.timer + m.claimTime() - now).Round(time.Millisecond))
}

func (m *machine) heardAsClaimant(e event, now time.Duration) {
	m.note(e, now)
	if e.advert.Priority != priorityResign && m.better(e) {
		m.do(action{kind: actSend, priority: priorityResign})
		m.follow(e, now)
		return
	}
	m.timer = max(m.claimEnd, m.rivalLease)
	// One that is worse withdraws on hearing our claim; this one may have missed
	// it. One that never hears us keeps the addresses: better it than both.
	if e.advert.Priority != priorityResign && now-m.claimSent >= m.claimTime() {
		m.claim(now)
	}
}

func (m *machine) heardAsActive(e event, now time.Duration) {
	m.note(e, now)
	switch {
	case e.advert.Priority == priorityResign:
		m.assert(now)
	case m.better(e):
		// RFC 9568 leaves without a word. Priority 0 tells the better router
		// that our lease is over, so that it need not wait for its end.
		if !m.plannable(e) {
			m.do(action{kind: actContention, rival: e.from, reason: fmt.Sprintf("it advertises priority %d", e.advert.Priority)})
		}
		m.resign()
		m.become(Backup, fmt.Sprintf("%v advertises priority %d", e.from, e.advert.Priority))
		m.follow(e, now)
	default:
		m.do(action{kind: actContention, rival: e.from, wins: true, reason: fmt.Sprintf("it advertises priority %d", e.advert.Priority)})
		m.assert(now) // section 6.4.3
		// Clients may have learned the other's hardware address.
		m.do(action{kind: actAnnounce})
	}
}

// plannable reports whether a better router's advertisement, heard while we are
// active, can be an ordinary claim to the role. It cannot where nobody preempts,
// unless somebody was told to take over: then that one was active beside us, or
// has not heard us for a while.
func (m *machine) plannable(e event) bool {
	return m.preempt || e.advert.Priority >= priorityTakeover
}
