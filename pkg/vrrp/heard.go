package vrrp

import (
	"fmt"
	"maps"
	"net/netip"
	"time"
)

// What the machine makes of an advertisement.

// maxLeases bounds what strangers can make us remember where anybody may
// advertise.
const maxLeases = 32

// note remembers who advertises and how long its lease can last. One that
// withdraws says so by priority 0. Each has a lease of its own: among three, a
// claim that was withdrawn must not hide who is still active.
func (m *machine) note(e event, now time.Duration) {
	maps.DeleteFunc(m.leases, func(_ netip.Addr, end time.Duration) bool { return end <= now })
	switch {
	case e.advert.Priority != priorityResign:
		m.rival, m.rivalPriority, m.vacated = e.from, e.advert.Priority, false
		m.mayHold(e.from, now+leaseOf(e.advert.Interval))
		return
	case now < m.doubtful:
		return
	case e.from == m.rival:
		m.rival = netip.Addr{}
	}
	delete(m.leases, e.from)
	m.mayHold(netip.Addr{}, 0)
}

// mayHold notes until when another router may hold a lease. The zero address is
// who could not be heard.
func (m *machine) mayHold(who netip.Addr, until time.Duration) {
	if _, known := m.leases[who]; until > 0 && (known || len(m.leases) < maxLeases) {
		if m.leases == nil {
			m.leases = map[netip.Addr]time.Duration{}
		}
		m.leases[who] = until
	}
	m.rivalLease = 0
	for _, end := range m.leases {
		m.rivalLease = max(m.rivalLease, end)
	}
}

// leaseOf is how long the lease of a router with that interval can last by our
// clock, from when we hear it.
func leaseOf(interval time.Duration) time.Duration {
	lease := leaseIntervals * interval
	return lease + lease/driftShare
}

// absent notes that we could hear nobody until now, so that the silence so far
// proves nothing. A down timer that begins now needs no such note: it is longer.
// What is heard at first can be as old as the absence is long, because it lay in
// the socket, and something that followed can be lost: no resignation counts.
func (m *machine) absent(now time.Duration) {
	m.unheard, m.doubtful = now+leaseOf(m.learned), now+m.learned
}

// late reports that a deadline has passed so long ago that this node must have
// been absent.
func (m *machine) late(now time.Duration) bool { return now-m.timer > lateIntervals*m.learned }

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
	case e.advert.Priority == priorityResign && (stranger || now < m.doubtful):
		// Not the one that we follow: a third node has withdrawn its claim. Or
		// it was said while we were absent, and who knows what then.
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
	reason := fmt.Sprintf("%v advertises priority %d", e.from, e.advert.Priority)
	switch {
	case e.advert.Priority == priorityResign:
		m.assert(now)
		// It may have been active beside us, unheard, until it heard us: clients
		// may have learned its hardware address.
		m.do(action{kind: actAnnounce})
	case m.better(e):
		if !m.plannable(e) {
			m.do(action{kind: actContention, rival: e.from, reason: reason})
		}
		// RFC 9568 leaves without a word. Priority 0 tells the better router
		// that our lease is over, so that it need not wait for its end.
		m.resign()
		m.become(Backup, reason)
		m.follow(e, now)
	default:
		m.do(action{kind: actContention, rival: e.from, wins: true, reason: reason})
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
