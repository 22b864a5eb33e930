package health

import "time"

// nudgeGap is the least time between the starts of two checks of one target,
// however often somebody doubts it, if its interval is not shorter still.
const nudgeGap = 100 * time.Millisecond

// pace says when the next check of a target is due. It is pure.
type pace struct {
	interval time.Duration
	started  time.Time // the last check
	due      time.Time // the next one
}

// start notes that a check starts.
func (p *pace) start(now time.Time) {
	p.started, p.due = now, now.Add(p.interval)
}

// hasten brings the next check forward, to no sooner than gap after the last
// one, if it is not due sooner anyway.
func (p *pace) hasten(now time.Time, gap time.Duration) {
	at := p.started.Add(gap)
	if at.Before(now) {
		at = now
	}
	if at.Before(p.due) {
		p.due = at
	}
}
