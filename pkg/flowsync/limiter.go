package flowsync

import "time"

// logInterval is the shortest time between two log lines of one kind.
const logInterval = 10 * time.Second

// limiter bounds how often something is logged. The zero value allows the first.
type limiter struct {
	next       time.Duration
	used       bool
	suppressed int
}

// allow reports whether to log now, and how many times it has said no since it
// last said yes.
func (l *limiter) allow(now time.Duration) (suppressed int, ok bool) {
	if l.used && now < l.next {
		l.suppressed++
		return 0, false
	}
	suppressed = l.suppressed
	l.used, l.suppressed, l.next = true, 0, now+logInterval
	return suppressed, true
}
