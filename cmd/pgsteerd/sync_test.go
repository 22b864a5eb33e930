package main

import (
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/config"
	"github.com/pgsteer/pgsteer/pkg/flowsync"
	"github.com/pgsteer/pgsteer/pkg/health"
)

// What the other node finds to be down is news once, and only where this one
// has it up.
func TestDoubts(t *testing.T) {
	var d doubts
	state := func(up, known bool) []flowsync.BackendState {
		return []flowsync.BackendState{{Service: "postgres", Backend: "pooler1", Up: up, Known: known}}
	}
	up := []health.TargetStatus{{Service: "postgres", Backend: "pooler1", Up: true}}
	down := []health.TargetStatus{{Service: "postgres", Backend: "pooler1"}}
	for i, tt := range []struct {
		theirs []flowsync.BackendState
		ours   []health.TargetStatus
		want   int
	}{
		{state(true, true), up, 0},
		{state(false, false), up, 0}, // not checked yet
		{state(false, true), up, 1},
		{state(false, true), up, 0}, // said already
		{state(true, true), up, 0},
		{state(false, true), down, 0}, // we know
		{state(false, true), up, 0},   // it has come up here since
		{nil, up, 0},
		{state(false, true), up, 1},
		{[]flowsync.BackendState{{Service: "other", Backend: "pooler1", Known: true}}, up, 0}, // not ours
	} {
		if news := d.news(tt.theirs, tt.ours); len(news) != tt.want {
			t.Errorf("step %d: %d are news, want %d", i, len(news), tt.want)
		}
	}
}

// A sign from outside may be as old as checks make it, and never less than what
// a virtual router takes for granted.
func TestWitnessTimeout(t *testing.T) {
	check := func(interval, timeout time.Duration) config.Service {
		return config.Service{Check: config.Check{Interval: interval, Timeout: timeout}}
	}
	for _, tt := range []struct {
		services []config.Service
		want     time.Duration
	}{
		{[]config.Service{check(2*time.Second, time.Second)}, 4 * time.Second},
		{[]config.Service{check(100*time.Millisecond, 100*time.Millisecond)}, 3 * time.Second},
		{[]config.Service{check(time.Minute, time.Second), check(5*time.Second, time.Second)}, 7 * time.Second},
	} {
		if got := witnessTimeout(&config.Config{Services: tt.services}); got != tt.want {
			t.Errorf("%v, want %v", got, tt.want)
		}
	}
}
