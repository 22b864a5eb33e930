package main

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// TestPassive shows the counters of two backends and looks at who is checked.
func TestPassive(t *testing.T) {
	var nudged journal
	backends := []lb.BackendStats{{Name: "a", Refused: 5}, {Name: "b", Redispatched: 7}}
	var failure error
	p := newPassive(
		func() (lb.DatapathStats, error) {
			return lb.DatapathStats{Services: []lb.ServiceStats{{Name: "postgres", Backends: backends}}}, failure
		},
		func(service, backend string) { nudged.add(service + "/" + backend) }, discard)
	expect := func(what string, want ...string) {
		t.Helper()
		p.look()
		if !slices.Equal(nudged.words, want) {
			t.Errorf("%s: %v, want %v", what, nudged.words, want)
		}
		nudged.words = nil
	}
	expect("at first")
	expect("nothing new")
	backends[0].Refused++
	expect("refused", "postgres/a")
	backends[1].Redispatched++
	expect("silent", "postgres/b")
	failure = errors.New("odd")
	backends[1].Refused++
	expect("cannot read")
	failure = nil
	expect("can read again", "postgres/b")
}

// TestPassiveInterval checks that slow reading does not take a CPU for itself.
func TestPassiveInterval(t *testing.T) {
	for takes, want := range map[time.Duration]time.Duration{0: passiveInterval, 50 * time.Millisecond: 21 * 50 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			looks := make(chan time.Time)
			p := newPassive(func() (lb.DatapathStats, error) {
				looks <- time.Now()
				time.Sleep(takes)
				return lb.DatapathStats{}, nil
			}, nil, discard)
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- p.run(ctx) }()
			first := <-looks
			if got := (<-looks).Sub(first); got != want {
				t.Errorf("reading takes %s: looks every %s, want %s", takes, got, want)
			}
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}
