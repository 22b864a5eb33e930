package xdp

import (
	"encoding/binary"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// The tables hold addresses and ports in network order. Go sees the same bytes
// as integers of the host.

func be32(a netip.Addr) uint32 {
	b := a.As4()
	return binary.NativeEndian.Uint32(b[:])
}

func be16(p uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], p)
	return binary.NativeEndian.Uint16(b[:])
}

func addrOf(v uint32) netip.Addr {
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], v)
	return netip.AddrFrom4(b)
}

func addrPortOf(addr uint32, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(addrOf(addr), be16(port))
}

func nameBytes(s string) (b [32]int8) {
	for i := 0; i < len(s) && i < len(b)-1; i++ {
		b[i] = int8(s[i])
	}
	return b
}

func nameOf(b [32]int8) string {
	var s []byte
	for _, c := range b {
		if c == 0 {
			break
		}
		s = append(s, byte(c))
	}
	return string(s)
}

// monotonic is the clock that the program reads, coarsely: CLOCK_MONOTONIC.
// CLOCK_BOOTTIME, which goes on while the machine is suspended, has no coarse
// form for programs and would cost 17 ns more a packet (measured: 30 and 13);
// what a suspended machine has left of a lease when it wakes is what it had
// when it fell asleep, a few advertisement intervals at the most.
func monotonic() uint64 {
	var ts unix.Timespec
	// Fails only for a clock that does not exist.
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return uint64(ts.Nano())
}

// age is the time from then to now; zero when then lies ahead, as the coarse
// clock and two CPUs allow.
func age(now, then uint64) time.Duration {
	if then > now {
		return 0
	}
	return time.Duration(now - then)
}

// peerKey is flow_peer_key() of bpf/flow.h.
func peerKey(f *balancerFlow) balancerFlowKey {
	return balancerFlowKey{
		Saddr: f.Rewritten.Daddr,
		Daddr: f.Rewritten.Saddr,
		Sport: f.Rewritten.Dport,
		Dport: f.Rewritten.Sport,
	}
}
