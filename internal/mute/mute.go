// Package mute bounds how often something is logged that others can cause: a
// flood of bad packets must not become a flood of lines.
package mute

import "time"

// Interval is the shortest time between two lines of one kind.
const Interval = 10 * time.Second

// Limiter is for one kind of line. The zero value allows the first. It is not
// safe for concurrent use.
type Limiter struct {
	next       time.Duration
	used       bool
	suppressed int
}

// Allow reports whether to log now, on any clock that does not go back, and how
// many times it has said no since it last said yes.
func (l *Limiter) Allow(now time.Duration) (suppressed int, ok bool) {
	if l.used && now < l.next {
		l.suppressed++
		return 0, false
	}
	suppressed = l.suppressed
	l.used, l.suppressed, l.next = true, 0, now+Interval
	return suppressed, true
}
