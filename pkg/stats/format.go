package stats

import (
	"fmt"
	"strconv"
	"time"
)

// grouped is n with a thin space between groups of three digits.
func grouped[T int | int64 | uint64](n T) string {
	s := fmt.Sprint(n)
	sign := ""
	if s[0] == '-' {
		sign, s = "-", s[1:]
	}
	const thinSpace = "\u2009"
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + thinSpace + s[i:]
	}
	return sign + s
}

// A size is a number of bytes.
type size uint64

// String is the size in decimal units with three significant digits.
func (n size) String() string {
	if n < 1000 {
		return strconv.FormatUint(uint64(n), 10) + " B"
	}
	v, unit := float64(n)/1000, 0
	for ; v >= 999.5; unit++ {
		v /= 1000
	}
	precision := 2
	switch {
	case v >= 99.95:
		precision = 0
	case v >= 9.995:
		precision = 1
	}
	return fmt.Sprintf("%.*f %cB", precision, v, "kMGTPE"[unit])
}

// Exact is the size in bytes.
func (n size) Exact() string { return strconv.FormatUint(uint64(n), 10) + " bytes" }

// brief is d in at most two units, as HAProxy shows ages: 3d4h, 2h5m, 12m30s,
// 4.2s, 37ms.
func brief(d time.Duration) string {
	day := 24 * time.Hour
	switch {
	case d < 0:
		return "-" + brief(-d)
	case d < time.Microsecond:
		return d.String()
	case d < time.Millisecond:
		return d.Round(time.Microsecond).String()
	case d < 999500*time.Microsecond: // what is nearer to a second is one
		return fmt.Sprintf("%.3gms", float64(d)/float64(time.Millisecond))
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	case d < day:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd%dh", d/day, d%day/time.Hour)
}
