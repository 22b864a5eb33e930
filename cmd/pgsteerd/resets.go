package main

import (
	"time"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// A carefulDatapath resets no connections while this node may be the one that is
// cut off: all backends look dead from here then, and what is sent waits in the
// kernel until the cable is back, when the connections have long gone on
// elsewhere.
type carefulDatapath struct {
	lb.Datapath
	isolated func() bool
}

// ResetFlows implements lb.Datapath.
func (c carefulDatapath) ResetFlows(service, backend string) error {
	if c.isolated() {
		return nil // see supervisor.settle
	}
	return c.Datapath.ResetFlows(service, backend)
}

// isolated reports whether nobody has given a sign for longer than a check takes:
// a backend is found down by several. Without another node nothing is sure, and nothing
// goes on elsewhere.
func (d *balancerDaemon) isolated() bool {
	if d.sync == nil {
		return false
	}
	ago, ok := d.witness()
	return !ok || ago > checkTime(d.cfg)
}

// settleTime is how long after a take-over, or after this node was cut off, the
// checks are given before what is down then loses its connections: they were
// made anew at the beginning of it, and what works comes up meanwhile.
const settleTime = 3 * time.Second

// settling is when backends that are down are to lose their connections.
type settling struct {
	due      time.Time // zero: nothing is to be done
	isolated bool      // as last seen
}

// look is told what there is now, and says whether the checks are to be made
// anew and whether it is time.
func (s *settling) look(tookOver, isolated bool, now time.Time) (check, reset bool) {
	back := s.isolated && !isolated
	s.isolated = isolated
	switch {
	case isolated:
		s.due = time.Time{}
	case tookOver || back:
		s.due = now.Add(settleTime)
		return true, false
	case !s.due.IsZero() && !now.Before(s.due):
		s.due = time.Time{}
		return false, true
	}
	return false, false
}
