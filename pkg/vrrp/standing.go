package vrrp

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"
)

const (
	// priorityTakeover is the best that is not the owner's: what an active
	// router advertises that was told to take over.
	priorityTakeover = 254
	// priorityGated is the claim of a node that shall not be active if another
	// can: it goes last, and gives way to whoever answers.
	priorityGated = 1
)

// Track is what something outside says about this node's fitness. The zero
// value says nothing, and takes back what was said before.
type Track struct {
	// Fault makes the node resign and stay out of the election while it lasts.
	Fault bool
	// Weight is added to the configured priority, -253 to 253. The sum of all is
	// kept within 1 to 254; the owner of the addresses stays at 255.
	Weight int
	Reason string // why, for people; one line
}

// standing is what a node counts for in an election.
type standing struct {
	tracks   map[string]Track
	unsynced string // why the node is not synced; "": it is
	held     string // why it was told to resign, as long as that counts
	raised   bool   // it was told to take over, and is active or claims
	move     string // why, of raised
}

// fault returns why the node must stay out of the election, "" if it need not.
// With several reasons it is always the same one.
func (s *standing) fault() string {
	for _, name := range slices.Sorted(maps.Keys(s.tracks)) {
		if t := s.tracks[name]; t.Fault {
			return fmt.Sprintf("%s: %s", name, cmp.Or(t.Reason, "failed"))
		}
	}
	return ""
}

// weigh returns the priority with the weights added.
func (s *standing) weigh(base uint8) uint8 {
	if base == priorityOwner {
		return base
	}
	sum := int(base)
	for _, t := range s.tracks {
		sum += t.Weight
	}
	return uint8(min(max(sum, 1), priorityTakeover))
}

// gate returns why the node shall not take the role from another that is fit,
// "" if it may.
func (s *standing) gate() string {
	switch {
	case s.raised:
		return ""
	case s.held != "":
		return s.held
	}
	return s.unsynced
}

// track takes in what is said about the node, and acts on what that changes.
func (m *machine) track(e event, now time.Duration) {
	m.reckon(now, func() {
		if e.track == (Track{}) {
			delete(m.tracks, e.name)
			return
		}
		if m.tracks == nil {
			m.tracks = map[string]Track{}
		}
		m.tracks[e.name] = e.track
	})
	fault := m.fault()
	switch {
	case fault != "" && m.state != Init:
		m.withdraw()
		m.failed = true
		m.become(Init, fault)
	case fault == "" && m.failed:
		m.failed = false
		m.become(Backup, "the fault is over")
		m.learned = m.interval
		m.absent(now) // nobody was listened to meanwhile
		m.listen(now, "no active router heard since the fault was over")
	}
}

// sync takes in whether the node has a copy of what the active one knows.
func (m *machine) sync(e event, now time.Duration) {
	m.reckon(now, func() {
		m.unsynced = ""
		if m.syncGate && !e.ok {
			m.unsynced = "not synced: " + cmp.Or(e.reason, "no reason given")
		}
	})
}

// reckon lets a change of the standing take effect at once: an active router
// tells its new priority, a backup waits as long as it would have with it.
func (m *machine) reckon(now time.Duration, change func()) {
	before := m.rank()
	change()
	switch {
	case m.rank() == before:
	case m.state == Active:
		m.advertise(now, now)
	case m.state == Backup && m.listening:
		m.timer = m.downAt()
	}
}

// rank is the priority that we advertise and compare by.
func (m *machine) rank() uint8 {
	switch {
	case m.raised && m.priority != priorityOwner:
		return priorityTakeover
	case m.state != Active && m.gate() != "":
		return priorityGated
	}
	return m.weigh(m.priority)
}

// mayPreempt reports whether we may take the role from a worse active router
// that was just heard. The owner may whatever Preempt says (RFC 9568 section
// 6.1); a node behind a gate finds nobody worse.
func (m *machine) mayPreempt(now time.Duration) bool {
	switch {
	case m.raised:
		return true
	case !m.preempt && m.priority != priorityOwner:
		return false
	case !m.worse:
		m.worse, m.worseSince = true, now
	}
	return now-m.worseSince >= m.preemptDelay
}

// barred returns why we must not become active now, whoever is silent: nobody
// outside is in sight, so that it is we who are cut off; or the one whose
// advertisements do not arrive is active all the same. One that told us to go
// ahead, or that we hear and preempt, is not in the way.
func (m *machine) barred(e event, now time.Duration) string {
	switch {
	case m.cutOff(e):
		return m.cutOffReason(e)
	case e.peerActive && !m.raised && !m.vacated && now >= m.rivalLease:
		return "the other node is not heard, but active by its own account"
	}
	return ""
}

// cutOff reports that the witness required has been silent for too long.
func (m *machine) cutOff(e event) bool {
	return m.witness > 0 && (!e.seen || e.seenAgo > m.witness)
}

func (m *machine) cutOffReason(e event) string {
	if !e.seen {
		return "cut off: no sign from outside"
	}
	return fmt.Sprintf("cut off: the last sign from outside was %v ago", e.seenAgo.Round(time.Millisecond))
}
