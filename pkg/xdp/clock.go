package xdp

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cilium/ebpf"
)

// The program reads the time in jiffies: that takes it nothing, a clock in
// nanoseconds 13 to 30 ns a packet (measured). User space cannot read them, but
// a program can be asked; how long one is, is the resolution of the kernel's
// coarse clocks.

// ageShift is AGE_SHIFT of bpf/types.h: flows count in units of 2^5 jiffies.
const ageShift = 5

// clock converts between the program's time and ours.
type clock struct {
	jiffy   time.Duration
	jiffies uint64 // at ns
	ns      uint64 // CLOCK_MONOTONIC
}

func jiffyLength() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &ts); err != nil {
		return 0, fmt.Errorf("asking for the length of a jiffy: %w", err)
	}
	return time.Duration(ts.Nano()), nil
}

// readClock asks the program for both clocks.
func readClock(prog *ebpf.Program) (clock, error) {
	jiffy, err := jiffyLength()
	if err != nil {
		return clock{}, err
	}
	out, err := control(prog, []clockRequest{{}})
	if err != nil {
		return clock{}, fmt.Errorf("reading the program's clock: %w", err)
	}
	return clock{jiffy: jiffy, jiffies: out[0].Jiffies, ns: out[0].Ns}, nil
}

// now is the present in jiffies, going by CLOCK_MONOTONIC: the two run alike
// but for what NTP corrects, half a millisecond a second at the most.
func (c clock) now() uint64 { return c.jiffies + (monotonic()-c.ns)/uint64(c.jiffy) }

// after is the time d from c in jiffies, rounded down.
func (c clock) after(d time.Duration) uint64 { return c.jiffies + uint64(max(d, 0)/c.jiffy) }

// until is the time left to then; negative when it is past.
func (c clock) until(then uint64) time.Duration {
	return time.Duration(int64(then-c.now())) * c.jiffy
}

// age is how long ago a time of a flow's was, and zero when it lies ahead, as
// two CPUs allow.
func (c clock) age(then uint32) time.Duration {
	units := int32(uint32(c.now()>>ageShift) - then)
	return time.Duration(max(units, 0)) * c.jiffy << ageShift
}

// since is how long ago a time in jiffies was, of which the low half is given.
func (c clock) since(then uint32) time.Duration {
	return time.Duration(max(int32(uint32(c.now())-then), 0)) * c.jiffy
}

// before is the time d ago, as flows have it.
func (c clock) before(d time.Duration) uint32 {
	return uint32((c.now() - uint64(d/c.jiffy)) >> ageShift)
}

// monotonic is CLOCK_MONOTONIC in nanoseconds. A lease does not count down
// while the machine is suspended: what it has left when it wakes is what it had
// when it fell asleep, a few advertisement intervals at the most.
func monotonic() uint64 {
	var ts unix.Timespec
	// Fails only for a clock that does not exist.
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return uint64(ts.Nano())
}
