package vrrp

import "time"

// announceOffsets is when announcements go out after the addresses have been
// taken. One frame would do if none were ever lost: the early repeats cover a
// dropped frame at little cost to the take-over time, the late ones a switch or
// a host that was not listening yet. keepalived sends 5 at once and 5 after
// 5 s, metallb one per 1.1 s for 5 s.
var announceOffsets = [...]time.Duration{
	0, 50 * time.Millisecond, 200 * time.Millisecond, 500 * time.Millisecond,
	time.Second, 2 * time.Second, 5 * time.Second,
}

const (
	// announceRefresh keeps hosts right that slept through all of the above.
	announceRefresh = 30 * time.Second
	// announceGap bounds what contention can make us send.
	announceGap = 50 * time.Millisecond
)

// schedule says when to announce. It is pure: times are on the machine's clock.
type schedule struct {
	running bool
	start   time.Duration
	step    int // index in announceOffsets of the next one; past its end: refresh
	next    time.Duration
	last    time.Duration // of the last announcement
	sent    bool          // last is valid
}

// restart begins the whole series again.
func (s *schedule) restart(now time.Duration) {
	s.start = now
	if s.sent {
		s.start = max(now, s.last+announceGap)
	}
	s.running, s.step, s.next = true, 0, s.start
}

func (s *schedule) stop() { s.running = false }

// due reports whether an announcement has to go out now, and if so moves on to
// the next one. Those missed meanwhile are not made up for.
func (s *schedule) due(now time.Duration) bool {
	if !s.running || now < s.next {
		return false
	}
	s.last, s.sent = now, true
	for s.step < len(announceOffsets) && s.start+announceOffsets[s.step] <= now {
		s.step++
	}
	if s.step < len(announceOffsets) {
		s.next = s.start + announceOffsets[s.step]
	} else {
		s.next = now + announceRefresh
	}
	return true
}
