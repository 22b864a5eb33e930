package health

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestPace(t *testing.T) {
	epoch := time.Unix(1000, 0)
	at := func(d time.Duration) time.Time { return epoch.Add(d) }
	for _, tt := range []struct {
		name     string
		interval time.Duration
		doubts   []time.Duration // after the start of a check
		want     time.Duration
	}{
		{"left alone", 2 * time.Second, nil, 2 * time.Second},
		{"at once", 2 * time.Second, []time.Duration{time.Second}, time.Second},
		{"just checked", 2 * time.Second, []time.Duration{time.Millisecond}, nudgeGap},
		{"again and again", 2 * time.Second, []time.Duration{0, time.Millisecond, 2 * time.Millisecond}, nudgeGap},
		{"due sooner anyway", 2 * time.Second, []time.Duration{2*time.Second - 1}, 2*time.Second - 1},
		{"late", 2 * time.Second, []time.Duration{3 * time.Second}, 2 * time.Second},
		{"short interval", 20 * time.Millisecond, []time.Duration{0}, 20 * time.Millisecond},
	} {
		p := pace{interval: tt.interval}
		p.start(epoch)
		for _, d := range tt.doubts {
			p.hasten(at(d), nudgeGap)
		}
		if !p.due.Equal(at(tt.want)) {
			t.Errorf("%s: due after %s, want %s", tt.name, p.due.Sub(epoch), tt.want)
		}
	}
}

func TestPassive(t *testing.T) {
	var p Passive
	for i, step := range []struct {
		backend string
		count   uint64
		want    bool
	}{
		{"a", 7, false}, {"a", 7, false}, {"a", 8, true}, {"a", 8, false},
		{"b", 9, false}, {"b", 10, true},
		{"a", 2, false}, {"a", 3, true}, // cleared meanwhile
	} {
		if got := p.Observe("postgres", step.backend, step.count); got != step.want {
			t.Errorf("step %d: %v", i, got)
		}
	}
}

// checkedAt are the times of the checks after start.
func (s *script) checkedAt(start time.Time) []time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	var at []time.Duration
	for _, call := range s.calls {
		at = append(at, call.Sub(start))
	}
	return at
}

// TestNudge follows doubts of which the first is unfounded. However many there
// are, fall is not reached in a moment.
func TestNudge(t *testing.T) {
	const ms = time.Millisecond
	for _, tt := range []struct {
		name  string
		every time.Duration // between the doubts, from 3 s on; 0 is only one
		want  []time.Duration
	}{
		{"one", 0, []time.Duration{0, 500 * ms, 2500 * ms, 3000 * ms, 3500 * ms, 4000 * ms}},
		{"many", ms, []time.Duration{0, 500 * ms, 2500 * ms, 3000 * ms, 3500 * ms, 4000 * ms}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				refused := errors.New("connection refused")
				s := &script{results: []error{nil, nil, nil, refused}}
				c, stop := run(t, newTarget("pooler1", s.check))
				defer stop()
				<-c.Transitions()
				start := time.Now()
				time.Sleep(500 * ms)
				c.Nudge("postgres", "pooler1")
				c.Nudge("postgres", "nobody")
				time.Sleep(2500 * ms)
				doubt, settled := context.WithCancel(t.Context())
				go func() {
					for c.Nudge("postgres", "pooler1"); tt.every > 0 && doubt.Err() == nil; c.Nudge("postgres", "pooler1") {
						time.Sleep(tt.every)
					}
				}()
				got := <-c.Transitions()
				settled()
				if got.Up || got.At.Sub(start) != 4*time.Second {
					t.Errorf("down after %s: %+v", got.At.Sub(start), got)
				}
				if at := s.checkedAt(start); !slices.Equal(at, tt.want) {
					t.Errorf("checked at %v, want %v", at, tt.want)
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				at := s.checkedAt(start)
				if n := len(at); at[n-1]-at[n-2] != 2*time.Second {
					t.Errorf("with the doubts gone, checked at %v", at)
				}
			})
		})
	}
}

// TestNudgeOfAFailingTarget: the check that has failed already counts, and the
// next ones keep their distance.
func TestNudgeOfAFailingTarget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{results: []error{nil, errors.New("connection refused")}}
		c, stop := run(t, newTarget("pooler1", s.check))
		defer stop()
		<-c.Transitions()
		start := time.Now()
		time.Sleep(2*time.Second + time.Millisecond)
		c.Nudge("postgres", "pooler1")
		if got := <-c.Transitions(); got.At.Sub(start) != 3*time.Second {
			t.Errorf("down after %s", got.At.Sub(start))
		}
	})
}

// TestNudgeDuringACheck checks that a doubt that comes up while a check is
// under way is followed by another one: the check may have begun before.
func TestNudgeDuringACheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls []time.Time
		slow := func(context.Context, netip.AddrPort) error {
			calls = append(calls, time.Now())
			time.Sleep(500 * time.Millisecond)
			return nil
		}
		c, stop := run(t, newTarget("pooler1", slow))
		drain(t, c)
		time.Sleep(200 * time.Millisecond)
		c.Nudge("postgres", "pooler1")
		time.Sleep(time.Second)
		stop()
		if len(calls) != 2 || calls[1].Sub(calls[0]) != 500*time.Millisecond {
			t.Errorf("checked at %v", calls)
		}
	})
}
