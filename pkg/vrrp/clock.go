package vrrp

import (
	"time"

	"golang.org/x/sys/unix"
)

// clock tells the time since an arbitrary fixed instant.
type clock func() time.Duration

// bootClock is CLOCK_BOOTTIME, the clock that the XDP program checks the lease
// against: unlike the one of package time it counts a suspended machine's
// sleep, after which a node has to know that it was away.
func bootClock() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		// The clock exists since Linux 2.6.39; the call takes no other input.
		panic("reading CLOCK_BOOTTIME: " + err.Error())
	}
	return time.Duration(ts.Nano())
}
