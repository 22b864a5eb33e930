package main

import (
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// countingDatapath counts what it is told to reset.
type countingDatapath struct {
	lb.Datapath
	resets int
}

func (c *countingDatapath) ResetFlows(string, string) error { c.resets++; return nil }

func TestNothingIsResetInIsolation(t *testing.T) {
	below, isolated := new(countingDatapath), true
	careful := carefulDatapath{below, func() bool { return isolated }}
	for _, want := range []int{0, 1} {
		if err := careful.ResetFlows("postgres", "pooler1"); err != nil || below.resets != want {
			t.Errorf("isolated %v: %d resets, %v", isolated, below.resets, err)
		}
		isolated = false
	}
	if (&balancerDaemon{}).isolated() {
		t.Error("a node without another one is isolated")
	}
}

// What is down loses its connections a while after a take-over or an isolation,
// once.
func TestSettling(t *testing.T) {
	var s settling
	now := epoch
	for i, step := range []struct {
		after                            time.Duration
		tookOver, isolated, check, reset bool
	}{
		{0, false, false, false, false},
		{time.Second, true, false, true, false},
		{settleTime - 1, false, false, false, false},
		{1, false, false, false, true},
		{time.Minute, false, false, false, false},
		{time.Second, true, false, true, false},
		{time.Second, true, false, true, false}, // and again: it begins anew
		{settleTime - 1, false, false, false, false},
		{0, false, true, false, false}, // cut off: whatever is down now
		{time.Minute, false, true, false, false},
		{time.Second, false, false, true, false}, // back
		{settleTime, false, false, false, true},
		{time.Minute, false, false, false, false},
	} {
		now = now.Add(step.after)
		if check, reset := s.look(step.tookOver, step.isolated, now); check != step.check || reset != step.reset {
			t.Errorf("step %d: check %v, reset %v", i, check, reset)
		}
	}
}
