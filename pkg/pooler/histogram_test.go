package pooler

import (
	"math"
	"testing"
	"time"
)

func TestHistogram(t *testing.T) {
	for _, tt := range []struct {
		d      time.Duration
		bucket int
	}{
		{-1, 0}, {0, 0}, {999, 0}, {time.Microsecond, 1}, {2*time.Microsecond - 1, 1}, {2 * time.Microsecond, 2}, {3 * time.Microsecond, 2},
		{time.Millisecond, 10}, {time.Second, 20}, {16 * time.Second, 24}, {17 * time.Second, 25}, {math.MaxInt64, 25},
	} {
		var h Histogram
		h.add(tt.d)
		if h[tt.bucket] != 1 {
			t.Errorf("%v is in %v, not in bucket %d", tt.d, h, tt.bucket)
		}
		end, ok := UpperBound(tt.bucket)
		if ok && tt.d >= end || !ok && tt.bucket != HistogramBuckets-1 {
			t.Errorf("bucket %d of %v ends at %v", tt.bucket, tt.d, end)
		}
	}
}
