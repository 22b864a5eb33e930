package mute

import (
	"testing"
	"time"
)

func TestLimiter(t *testing.T) {
	var l Limiter
	for _, tt := range []struct {
		now        time.Duration
		suppressed int
		ok         bool
	}{
		{0, 0, true}, {1, 0, false}, {Interval - 1, 0, false}, {Interval, 2, true}, {Interval + 1, 0, false}, {5 * Interval, 1, true},
	} {
		if n, ok := l.Allow(tt.now); n != tt.suppressed || ok != tt.ok {
			t.Errorf("at %v: %d and %v, want %d and %v", tt.now, n, ok, tt.suppressed, tt.ok)
		}
	}
}
