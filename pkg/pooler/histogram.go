package pooler

import (
	"math/bits"
	"time"
)

// HistogramBuckets is how many buckets a Histogram has. The last but one ends at
// 2^24 microseconds, 17 s; the last one has all that took longer.
const HistogramBuckets = 26

// Histogram counts times: bucket n has those below 2^n microseconds that no
// lower one has. Times are as coarse as the loop's rounds.
type Histogram [HistogramBuckets]uint64

// add counts one.
func (h *Histogram) add(d time.Duration) {
	h[min(bits.Len64(uint64(max(d, 0)/time.Microsecond)), HistogramBuckets-1)]++
}

// UpperBound is where a bucket ends; ok is false for the last one, which does
// not.
func UpperBound(bucket int) (d time.Duration, ok bool) {
	if bucket >= HistogramBuckets-1 {
		return 0, false
	}
	return time.Microsecond << bucket, true
}
