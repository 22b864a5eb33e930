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
	// driftShare is the part by which another node's lease may last longer by
	// our clock than by its own. Clocks of a pair run apart by far less, but while
	// one of them is set right its rate may be off by percents: adjtimex allows
	// 10 % for the tick, NTP daemons stay well below.
	driftShare = 24
	// claimShare and claimMax give the length of a claim: it must exceed a LAN
	// round trip and be small beside the take-over time.
	claimShare = 16
	claimMax   = 10 * time.Millisecond
	// forever is the lease of a lone node, which nobody can take over from. As
	// nanoseconds since boot its end still fits 63 bits.
	forever = 100 * 365 * 24 * time.Hour
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

	preemptDelay time.Duration // how long a worse router is followed at least
	syncGate     bool          // a node that is not synced stands back
	witness      time.Duration // how old the last sign from outside may be; 0: none is needed
	lone         bool          // there is no other node: the lease does not end
}

// machine is the state machine of RFC 9568 section 6.4, with the lease and the
// claim described in the package comment. It has no clock and does no I/O.
type machine struct {
	params
	standing
	state         State
	failed        bool          // Init because of a fault, and not for want of a start
	claiming      bool          // Backup whose claim is out
	learned       time.Duration // Active_Adver_Interval
	timer         time.Duration // the deadline of what comes next
	listening     bool          // timer is the down timer, begun at since
	since         time.Duration
	lease         time.Duration // end of our lease; Active only
	sent          time.Duration // when we last sent, as Active
	cause         string        // why the running down timer would make us active
	rival         netip.Addr    // who advertised last, until it resigned
	rivalPriority uint8
	leases        map[netip.Addr]time.Duration // until then others may hold one
	rivalLease    time.Duration                // the last of these
	unheard       time.Duration                // until then a router that we could not hear may hold one
	doubtful      time.Duration                // until then what is heard may be old
	vacated       bool                         // the router that we followed has resigned
	worse         bool                         // we follow a worse router, whom we would preempt,
	worseSince    time.Duration                // since then
	isolated      bool                         // the witness was missing when we last looked
	claimSent     time.Duration                // just before our claim was sent
	claimEnd      time.Duration                // end of the wait for objections to it
	out           []action
}

func newMachine(p params) *machine {
	m := &machine{params: p, learned: p.interval}
	if p.syncGate {
		m.unsynced = "not synced: not since the start"
	}
	return m
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
	if m.state == Active && m.cutOff(e) {
		m.resign()
		m.become(Backup, m.cutOffReason(e))
		m.listen(now, "no active router heard since we were cut off")
	}
	switch e.kind {
	case evStart:
		m.start(e, now)
	case evTimer:
		if m.state != Init && now >= m.timer {
			m.timeout(e, now)
		}
	case evAdvert:
		if m.state == Backup && m.late(now) {
			m.absent(now)
			m.listen(now, m.cause)
		}
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
			m.timer, m.listening = max(m.timer, now+faultHold), false
		}
	case evTrack:
		m.track(e, now)
	case evSync:
		m.sync(e, now)
	case evResign:
		m.stepAside(e, now)
	case evTakeover:
		m.takeOver(e, now)
	case evGiveUp:
		m.giveUp(now)
	case evConflict:
		if m.state == Active {
			m.do(action{kind: actContention, reason: e.reason, wins: true})
			m.assert(now)
			m.do(action{kind: actAnnounce})
		}
	case evStop:
		if m.state == Active || m.claiming {
			m.resign()
		}
		m.claiming, m.failed = false, false
		if m.state != Init {
			m.become(Init, e.reason)
		}
	}
	return m.out
}

func (m *machine) do(a action) { m.out = append(m.out, a) }

func (m *machine) become(s State, reason string) {
	if s != Active {
		m.lower(reason)
	}
	m.worse = false
	m.do(action{kind: actTransition, from: m.state, to: s, reason: reason})
	m.state = s
}

// start enters Backup. The lease and the addresses of an earlier life of this
// process are given up first; configuration never decides who is active, except
// for the owner (section 6.4.1), and even that one claims first.
func (m *machine) start(e event, now time.Duration) {
	if m.state != Init || m.failed {
		return
	}
	m.do(action{kind: actRevoke})
	m.do(action{kind: actDisown})
	m.become(Backup, "started")
	m.learned = m.interval
	m.absent(now)
	m.listen(now, "no active router heard since the start")
	switch fault := m.fault(); {
	case fault != "":
		m.failed = true
		m.become(Init, fault)
	case m.rank() == priorityOwner && m.barred(e, now) == "":
		m.cause = "started as the owner of the addresses"
		m.claim(now)
	}
}

// skew is Skew_Time of section 6.1: the better the priority the shorter. That of
// version 2 (RFC 3768 section 6.1) does not depend on the interval.
func (m *machine) skew() time.Duration { return m.skewOf(m.learned) }

func (m *machine) skewOf(interval time.Duration) time.Duration {
	if m.version2 {
		interval = time.Second
	}
	return time.Duration(256-int(m.rank())) * interval / 256
}

// claimTime is how long a claim waits for an objection.
func (m *machine) claimTime() time.Duration { return min(m.learned/claimShare, claimMax) }

// listen restarts the down timer: the addresses are ours after three intervals
// and the skew of silence, and the claim goes out shortly before that.
func (m *machine) listen(now time.Duration, cause string) {
	m.claiming, m.vacated = false, false
	m.cause = cause
	m.since, m.listening = now, true
	m.timer = m.downAt()
}

// downAt is when the claim is due that follows the silence since m.since.
func (m *machine) downAt() time.Duration { return m.since + 3*m.learned + m.skew() - m.claimTime() }

func (m *machine) timeout(e event, now time.Duration) {
	wasIsolated := m.isolated
	m.isolated = m.state != Active && m.cutOff(e)
	reason := m.barred(e, now)
	switch {
	case m.state == Active:
		m.advertise(now, m.timer)
	case m.late(now) || wasIsolated && !m.isolated:
		// It was we who were absent: the silence proves nothing, and a claim
		// that was out meanwhile may have been answered.
		m.absent(now)
		m.listen(now, m.cause)
	case reason != "":
		m.withdraw()
		m.timer, m.listening = now+m.learned, false
		m.do(action{kind: actBarred, reason: reason})
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
	m.claiming, m.listening = true, false
	m.await(now, now)
	m.do(action{kind: actSend, priority: m.rank()})
}

// await lets the claim, sent at the time given, stand for a moment from now on,
// and for as long as a worse router that we have heard may hold a lease
// without having heard us.
func (m *machine) await(sent, now time.Duration) {
	m.claimSent, m.claimEnd = sent, now+m.claimTime()
	m.timer = max(m.claimEnd, m.rivalLease)
}

func (m *machine) promote(now time.Duration) {
	m.claiming = false
	m.lease = m.claimSent + m.leaseTime() // the claim is our last advertisement
	m.do(action{kind: actRenew, until: m.lease})
	m.do(action{kind: actOwn})
	if m.raised {
		m.cause = m.move
	}
	m.held = "" // nobody else was there
	m.become(Active, m.cause)
	m.advertise(now, now)
	if m.raised {
		m.outcome("")
	}
}

// leaseTime is how long a lease lasts from just before an advertisement.
func (m *machine) leaseTime() time.Duration {
	if m.lone {
		return forever
	}
	return leaseIntervals * m.interval
}

// advertise sends what an active router sends; the next one is due an interval
// after the time that this one was due, unless that has passed too.
func (m *machine) advertise(now, due time.Duration) {
	m.do(action{kind: actSend, priority: m.rank()})
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
		if until := e.began + m.leaseTime(); until > m.lease {
			m.lease = until
			m.do(action{kind: actRenew, until: until})
		}
	case m.claiming && e.ok && now-m.claimSent <= lateIntervals*m.learned:
		m.await(e.began, now) // the wait begins when others can have heard it
	case m.claiming:
		// Nobody hears us, so there is nothing to win by being active; or we
		// froze on the way, and do not know what we missed.
		m.absent(now)
		m.listen(now, m.cause)
	}
}

// stepDown leaves Active without a word on the wire. The fence comes first: it
// takes effect at once, whereas removing an address can wait for a kernel lock.
func (m *machine) stepDown(now time.Duration, reason string) {
	m.do(action{kind: actRevoke})
	m.do(action{kind: actDisown})
	m.become(Backup, reason)
	m.learned = m.interval
	m.absent(now)
	m.listen(now, "no active router heard since we stepped down")
}

// resign leaves Active by priority 0. The lease ends before the message goes
// out, because a peer may own the addresses a skew later.
func (m *machine) resign() {
	quick := handoverInterval
	if m.version2 {
		quick = 0 // it would be refused: version 2 has one interval
	}
	m.do(action{kind: actRevoke})
	m.do(action{kind: actSend, priority: priorityResign, interval: quick})
	m.do(action{kind: actDisown})
}
