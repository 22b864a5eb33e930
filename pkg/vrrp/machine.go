package vrrp

import (
	"fmt"
	"net/netip"
	"time"
)

const (
	// leaseIntervals is how many advertisement intervals the lease lasts. It
	// equals the whole intervals of Active_Down_Interval (RFC 9568 section
	// 6.1), so the skew is what separates the end of our lease from a peer's
	// take-over.
	leaseIntervals = 3
	// claimShare and claimMax give the length of a claim: it must exceed a LAN
	// round trip and be small beside the take-over time.
	claimShare = 16
	claimMax   = 10 * time.Millisecond
	// lateIntervals is how late, in advertisement intervals, a backup's timer
	// may fire before we take it that this node, not the active one, was
	// absent; keepalived draws the same line (timer_expired_backup).
	lateIntervals = 2
	// faultHold keeps a node that could not own the addresses from trying
	// again at once: without a peer it would flap at the down interval.
	faultHold = time.Second
)

// params are the settings of a machine.
type params struct {
	priority uint8
	interval time.Duration // Advertisement_Interval
	preempt  bool
	source   netip.Addr // decides between equal priorities
	version2 bool       // its skew is a part of a second, not of the interval
}

// machine is the state machine of RFC 9568 section 6.4, with the lease and the
// claim described in the package comment. It has no clock and does no I/O.
type machine struct {
	params
	state      State
	claiming   bool          // Backup whose claim is out
	learned    time.Duration // Active_Adver_Interval
	timer      time.Duration // the deadline of what comes next
	lease      time.Duration // end of our lease; Active only
	sent       time.Duration // when we last sent, as Active
	cause      string        // why the running down timer would make us active
	rival      netip.Addr    // who advertised last, until it resigned
	rivalLease time.Duration // until then the rival may hold a lease
	claimSent  time.Duration // just before our claim was sent
	claimEnd   time.Duration // end of the wait for objections to it
	out        []action
}

func newMachine(p params) *machine {
	return &machine{params: p, learned: p.interval}
}

// deadline returns when the machine wants its next evTimer.
func (m *machine) deadline() (time.Duration, bool) { return m.timer, m.state != Init }

// expired reports that the node believes to be active but has lost its lease:
// it was frozen or starved, and must not send or announce anything.
func (m *machine) expired(now time.Duration) bool { return m.state == Active && now >= m.lease }

// step handles one event and returns the actions to carry out in order. The
// slice is valid until the next call.
func (m *machine) step(e event, now time.Duration) []action {
	m.out = m.out[:0]
	// Before anything else, whatever the event: a peer may be active by now,
	// and even answering its advertisement would throw it out.
	if m.expired(now) {
		m.stepDown(now, fmt.Sprintf("the lease ran out %v ago: no advertisement could be sent in time",
			(now-m.lease).Round(time.Millisecond)))
	}
	switch e.kind {
	case evStart:
		m.start(now)
	case evTimer:
		if m.state != Init && now >= m.timer {
			m.timeout(now)
		}
	case evAdvert:
		switch {
		case m.state == Active:
			m.heardAsActive(e, now)
		case m.state == Backup && m.claiming:
			m.heardAsClaimant(e, now)
		case m.state == Backup:
			m.heardAsBackup(e, now)
		}
	case evSent:
		m.reportSent(e, now)
	case evFault:
		if m.state == Active {
			m.resign()
			m.become(Backup, e.reason)
			m.listen(now, "trying again after a fault: "+e.reason)
			m.timer = max(m.timer, now+faultHold)
		}
	case evStop:
		if m.state == Active || m.claiming {
			m.resign()
		}
		if m.state != Init {
			m.claiming = false
			m.become(Init, e.reason)
		}
	}
	return m.out
}

func (m *machine) do(a action) { m.out = append(m.out, a) }

func (m *machine) become(s State, reason string) {
	m.do(action{kind: actTransition, from: m.state, to: s, reason: reason})
	m.state = s
}

// start enters Backup. The lease and the addresses of an earlier life of this
// process are given up first; configuration never decides who is active, except
// for the owner (section 6.4.1), and even that one claims first.
func (m *machine) start(now time.Duration) {
	if m.state != Init {
		return
	}
	m.do(action{kind: actRevoke})
	m.do(action{kind: actDisown})
	m.become(Backup, "started")
	m.learned = m.interval
	m.listen(now, "no active router heard since the start")
	if m.priority == priorityOwner {
		m.cause = "started as the owner of the addresses"
		m.claim(now)
	}
}

// skew is Skew_Time of section 6.1: the better the priority the shorter. That of
// version 2 (RFC 3768 section 6.1) does not depend on the interval.
func (m *machine) skew() time.Duration {
	unit := m.learned
	if m.version2 {
		unit = time.Second
	}
	return time.Duration(256-int(m.priority)) * unit / 256
}

// claimTime is how long a claim waits for an objection.
func (m *machine) claimTime() time.Duration { return min(m.learned/claimShare, claimMax) }

// listen restarts the down timer: the addresses are ours after three intervals
// and the skew of silence, and the claim goes out shortly before that.
func (m *machine) listen(now time.Duration, cause string) {
	m.claiming = false
	m.cause = cause
	m.timer = now + 3*m.learned + m.skew() - m.claimTime()
}

func (m *machine) timeout(now time.Duration) {
	late := now-m.timer > lateIntervals*m.learned
	switch {
	case m.state == Active:
		m.advertise(now, m.timer)
	case late:
		// It was we who were absent: the silence proves nothing, and a claim
		// that was out meanwhile may have been answered.
		m.listen(now, m.cause)
	case m.claiming && now < m.rivalLease:
		m.timer = m.rivalLease
	case m.claiming && now-m.claimSent > m.learned:
		m.claim(now) // too old to base a lease on
	case m.claiming:
		m.promote(now)
	default:
		m.claim(now)
	}
}

// claim advertises our wish to be active. evSent starts the wait.
func (m *machine) claim(now time.Duration) {
	m.claiming = true
	m.await(now, now)
	m.do(action{kind: actSend, priority: m.priority})
}

// await lets the claim, sent at the time given, stand for a moment from now on,
// and for as long as a worse router that we have heard may hold a lease
// without having heard us.
func (m *machine) await(sent, now time.Duration) {
	m.claimSent, m.claimEnd = sent, now+m.claimTime()
	m.timer = max(m.claimEnd, m.rivalLease)
}

// note remembers who advertises and how long its lease can last. One that
// withdraws says so by priority 0.
func (m *machine) note(e event, now time.Duration) {
	switch {
	case e.advert.Priority != priorityResign:
		m.rival, m.rivalLease = e.from, now+leaseIntervals*e.advert.Interval
	case e.from == m.rival:
		m.rival, m.rivalLease = netip.Addr{}, 0
	}
}

func (m *machine) promote(now time.Duration) {
	m.claiming = false
	m.lease = m.claimSent + leaseIntervals*m.interval // the claim is our last advertisement
	m.do(action{kind: actRenew, until: m.lease})
	m.do(action{kind: actOwn})
	m.become(Active, m.cause)
	m.advertise(now, now)
}

// advertise sends what an active router sends; the next one is due an interval
// after the time that this one was due, unless that has passed too.
func (m *machine) advertise(now, due time.Duration) {
	m.do(action{kind: actSend, priority: m.priority})
	m.sent = now
	m.timer = due + m.interval
	if m.timer <= now {
		m.timer = now + m.interval
	}
}

// assert advertises out of turn. Once in half a claim is enough for a claimant
// to hear it in time, and bounds what a flood can make us send.
func (m *machine) assert(now time.Duration) {
	if now-m.sent >= m.claimTime()/2 {
		m.advertise(now, now)
	}
}

// reportSent turns an advertisement that left into a longer lease. The lease
// has not run out here, or step would have made us Backup: it is extended only
// while it is held, because a peer that last heard us before that has been
// counting since.
func (m *machine) reportSent(e event, now time.Duration) {
	switch {
	case m.state == Active && e.ok:
		if until := e.began + leaseIntervals*m.interval; until > m.lease {
			m.lease = until
			m.do(action{kind: actRenew, until: until})
		}
	case m.claiming && e.ok && now-m.claimSent <= lateIntervals*m.learned:
		m.await(e.began, now) // the wait begins when others can have heard it
	case m.claiming:
		// Nobody hears us, so there is nothing to win by being active; or we
		// froze on the way, and do not know what we missed.
		m.listen(now, m.cause)
	}
}

// better reports whether the sender of an advertisement goes before us.
func (m *machine) better(e event) bool {
	if e.advert.Priority != m.priority {
		return e.advert.Priority > m.priority
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
		m.cause = fmt.Sprintf("%v resigned", e.from)
		m.timer = now + max(0, m.skew()-m.claimTime())
	case e.advert.Priority >= m.priority || !m.preempt:
		m.follow(e, now)
	default:
		// Discarded, and the timer runs on: we preempt when it fires.
		m.cause = fmt.Sprintf("preempting %v, whose priority is %d", e.from, e.advert.Priority)
	}
}

// follow accepts the sender as the active router.
func (m *machine) follow(e event, now time.Duration) {
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
		m.resign()
		m.become(Backup, fmt.Sprintf("%v advertises priority %d", e.from, e.advert.Priority))
		m.follow(e, now)
	default:
		m.assert(now) // section 6.4.3
		// Clients may have learned the other's hardware address.
		m.do(action{kind: actAnnounce})
	}
}

// stepDown leaves Active without a word on the wire. The fence comes first: it
// takes effect at once, whereas removing an address can wait for a kernel lock.
func (m *machine) stepDown(now time.Duration, reason string) {
	m.do(action{kind: actRevoke})
	m.do(action{kind: actDisown})
	m.become(Backup, reason)
	m.learned = m.interval
	m.listen(now, "no active router heard since we stepped down")
}

// resign leaves Active by priority 0. The lease ends before the message goes
// out, because a peer may own the addresses a skew later.
func (m *machine) resign() {
	m.do(action{kind: actRevoke})
	m.do(action{kind: actSend, priority: priorityResign})
	m.do(action{kind: actDisown})
}
