package vrrp

import (
	"slices"
	"testing"
	"time"
)

// announcements runs a schedule to the end, looking at it whenever it asks to.
func announcements(s *schedule, until time.Duration) (at []time.Duration) {
	for now := s.next; now <= until; now = s.next {
		if s.due(now) {
			at = append(at, now)
		}
	}
	return at
}

func TestScheduleSeries(t *testing.T) {
	var s schedule
	if s.due(time.Hour) {
		t.Error("due before it was started")
	}
	s.restart(10 * time.Second)
	want := []time.Duration{
		10 * time.Second, 10050 * ms, 10200 * ms, 10500 * ms, 11 * time.Second, 12 * time.Second, 15 * time.Second,
		45 * time.Second, 75 * time.Second,
	}
	if got := announcements(&s, 80*time.Second); !slices.Equal(got, want) {
		t.Errorf("announced at %v, want %v", got, want)
	}
	s.stop()
	if s.due(time.Hour) {
		t.Error("due after it was stopped")
	}
}

func TestScheduleMakesNothingUp(t *testing.T) {
	var s schedule
	s.restart(0)
	if !s.due(700*ms) || s.due(700*ms) {
		t.Error("a late look must announce exactly once")
	}
	if s.next != time.Second {
		t.Errorf("next at %v, want 1s", s.next)
	}
}

func TestScheduleBoundsContention(t *testing.T) {
	var s schedule
	count := 0
	for now := time.Duration(0); now < time.Second; now += ms {
		s.restart(now)
		if s.due(now) {
			count++
		}
	}
	if count != 20 {
		t.Errorf("a second of contention made %d announcements, want 20", count)
	}
}
