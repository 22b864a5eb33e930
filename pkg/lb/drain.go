package lb

import (
	"context"
	"time"
)

const (
	// secondReset is when the flows are reset once more after a deadline, for
	// connections that were half open at the first: one that completes its
	// handshake does so within 10 s, the longest life of a half-open one by
	// default. It is also for a process that begins after the deadline, and has
	// no right to reset anything before its node is active.
	secondReset = 10 * time.Second
	// retryReset is when a reset that failed is tried again.
	retryReset = time.Second
	// retrySave is when orders that could not be kept are tried again.
	retrySave = 10 * time.Second
)

// Run resets the flows of draining backends at their deadlines until ctx ends;
// it then returns nil.
func (c *Controller) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.wake:
		case <-timer.C:
		}
		timer.Stop()
		if next, ok := c.tick(); ok {
			timer.Reset(next)
		}
	}
}

func (c *Controller) wakeRun() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// tick does what is due and returns the time until more is, if ever.
func (c *Controller) tick() (next time.Duration, ok bool) {
	next, ok = c.resetDueFlows()
	if !c.isUnsaved() {
		return next, ok
	}
	c.save()
	if c.isUnsaved() && (!ok || retrySave < next) {
		next, ok = retrySave, true
	}
	return next, ok
}

func (c *Controller) isUnsaved() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.unsaved != nil
}

// resetDueFlows resets the flows of all backends whose time has come, and
// returns the time until that of another, if there is one.
func (c *Controller) resetDueFlows() (next time.Duration, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	for _, b := range c.backends {
		if due := b.resetDue(); !due.IsZero() && !now.Before(due) {
			if !b.deadline.IsZero() && !now.Before(b.deadline) {
				b.passDeadline(now)
			}
			c.resetFlows(b)
		}
		if due := b.resetDue(); !due.IsZero() && (!ok || due.Sub(now) < next) {
			next, ok = due.Sub(now), true
		}
	}
	return next, ok
}

// setDeadline notes when the flows are to be reset for the deadline of an order.
func (b *backend) setDeadline(o *Order) {
	b.deadline, b.passed = time.Time{}, false
	if o.Deadline != nil {
		b.deadline = *o.Deadline
	}
}

// passDeadline notes that they are reset now.
func (b *backend) passDeadline(now time.Time) {
	if b.passed {
		b.deadline = time.Time{}
		return
	}
	b.deadline, b.passed = now.Add(secondReset), true
}

// resetDue is when the flows are to be reset next, zero if never.
func (b *backend) resetDue() time.Time {
	if b.retry.IsZero() || !b.deadline.IsZero() && b.deadline.Before(b.retry) {
		return b.deadline
	}
	return b.retry
}

// resetFlows has the flows of a backend reset, now or when the datapath can.
// The caller holds mu.
func (c *Controller) resetFlows(b *backend) {
	b.retry = time.Time{}
	if err := c.dp.ResetFlows(b.service.Name, b.config.Name); err != nil {
		b.retry = c.now().Add(retryReset)
		c.log.Error("failed to reset the connections of a backend; trying again",
			append(b.names(), "error", err)...)
		c.wakeRun()
		return
	}
	c.log.Info("resetting the connections of a backend", append(b.names(), "reason", b.reason)...)
}
