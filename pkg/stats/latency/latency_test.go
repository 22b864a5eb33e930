package latency

import (
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

const last = lb.ConnectTimeBuckets - 1

func TestQuantile(t *testing.T) {
	tests := []struct {
		name     string
		h        Histogram
		p50, p99 string
	}{
		{"empty", Histogram{}, "-", "-"},
		{"one", Histogram{10: 1}, "<1.03ms", "<1.03ms"},
		{"two", Histogram{0: 1, 1: 1}, "<1µs", "<2µs"},
		{"99 and one", Histogram{5: 99, 20: 1}, "<32µs", "<32µs"},
		{"98 and two", Histogram{5: 98, 20: 2}, "<32µs", "<1.05s"},
		{"half", Histogram{7: 50, 8: 50}, "<128µs", "<256µs"},
		{"more than half", Histogram{7: 50, 8: 51}, "<256µs", "<256µs"},
		{"over", Histogram{1: 1, last: 5}, ">4.19s", ">4.19s"},
		{"slowest with a bound", Histogram{last - 1: 1}, "<4.2s", "<4.2s"},
	}
	for _, tt := range tests {
		if p50, p99 := tt.h.Text(0.5), tt.h.Text(0.99); p50 != tt.p50 || p99 != tt.p99 {
			t.Errorf("%s: got %s and %s, want %s and %s", tt.name, p50, p99, tt.p50, tt.p99)
		}
	}
}

// TestQuantileBounds checks against the durations themselves that a quantile
// lies below its bound, and not below the half of it.
func TestQuantileBounds(t *testing.T) {
	var h Histogram
	var all []time.Duration
	d := 300 * time.Nanosecond
	for range 1000 {
		d += d/97 + 1
		all = append(all, d)
		bucket := 0
		for bucket < last && d >= UpperBound(bucket) {
			bucket++
		}
		h[bucket]++
	}
	for rank := 1; rank <= 1000; rank += 7 {
		q := float64(rank) / 1000
		b, ok := h.Quantile(q)
		exact := all[rank-1]
		switch {
		case !ok, b.Over && exact < b.Limit, !b.Over && exact >= b.Limit, !b.Over && b.Limit > time.Microsecond && exact < b.Limit/2:
			t.Errorf("quantile %v is %s, the bound %s", q, exact, b)
		}
	}
}

func TestAdd(t *testing.T) {
	a, b := Histogram{0: 1, last: 2}, Histogram{0: 3, 5: 4}
	a.Add(&b)
	if a != (Histogram{0: 4, 5: 4, last: 2}) || a.Count() != 10 {
		t.Errorf("got %v", a)
	}
}

// TestBoundText checks that no bound is made stricter than it is by rounding.
func TestBoundText(t *testing.T) {
	for i := range last {
		text := Bound{Limit: UpperBound(i)}.String()
		d, err := time.ParseDuration(text[len("<"):])
		if err != nil || d < UpperBound(i) || d > UpperBound(i)*101/100 {
			t.Errorf("bucket %d ends at %s, which is written %s: %v", i, UpperBound(i), text, err)
		}
	}
}
