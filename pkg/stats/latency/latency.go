// Package latency reads the histogram of connect times that the datapath
// keeps, in which each bucket is twice as wide as the one before.
package latency

import (
	"fmt"
	"math"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// A Histogram counts durations: bucket 0 those below 1 microsecond, bucket n
// those below 2^n, the last one all that took longer.
type Histogram [lb.ConnectTimeBuckets]uint64

// UpperBound is what the durations of bucket n stay below. The last bucket has
// none.
func UpperBound(n int) time.Duration { return time.Microsecond << n }

// Count is the number of durations in all buckets.
func (h *Histogram) Count() uint64 {
	var n uint64
	for _, c := range h {
		n += c
	}
	return n
}

// Add counts the durations of another histogram as well.
func (h *Histogram) Add(other *Histogram) {
	for i, c := range other {
		h[i] += c
	}
}

// A Bound is all that a histogram knows of a quantile: the end of its bucket,
// which the true value is at most the half away from.
type Bound struct {
	Limit time.Duration
	Over  bool // the value is not below Limit but at or above it: the last bucket
}

// Quantile returns a bound of the duration that the share q of all, between 0
// and 1, do not exceed. There is none of an empty histogram.
func (h *Histogram) Quantile(q float64) (b Bound, ok bool) {
	total := h.Count()
	if total == 0 {
		return Bound{}, false
	}
	rank := max(1, uint64(math.Ceil(q*float64(total))))
	const last = lb.ConnectTimeBuckets - 1
	var seen uint64
	for i, c := range h[:last] {
		if seen += c; seen >= rank {
			return Bound{Limit: UpperBound(i)}, true
		}
	}
	return Bound{Limit: UpperBound(last - 1), Over: true}, true
}

// String is "<2.05ms" or ">4.19s": three digits, rounded so that it stays true.
func (b Bound) String() string {
	unit, name := time.Second, "s"
	switch {
	case b.Limit < time.Millisecond:
		unit, name = time.Microsecond, "µs"
	case b.Limit < time.Second:
		unit, name = time.Millisecond, "ms"
	}
	digits := 2
	switch {
	case b.Limit >= 100*unit:
		digits = 0
	case b.Limit >= 10*unit:
		digits = 1
	}
	scale := math.Pow10(digits)
	v := float64(b.Limit) / float64(unit) * scale
	sign, v := "<", math.Ceil(v)
	if b.Over {
		sign, v = ">", math.Floor(float64(b.Limit)/float64(unit)*scale)
	}
	return fmt.Sprintf("%s%g%s", sign, v/scale, name)
}

// Text is the bound of the quantile q, or "-" for an empty histogram.
func (h *Histogram) Text(q float64) string {
	if b, ok := h.Quantile(q); ok {
		return b.String()
	}
	return "-"
}
