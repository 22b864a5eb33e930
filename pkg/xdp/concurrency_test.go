package xdp

import (
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

// Several CPUs at the same few flows, which are opened, moved, reset, evicted
// and swept all the time: no half is left alone, and the counts are those of
// the flows.
func TestConcurrentTrafficLeavesNoTrace(t *testing.T) {
	f := newDualFixture(t, func(c *Config) {
		c.HalfOpenFlows, c.SNATLow, c.SNATHigh = 8, 20000, 20015
	})
	f.setBucket(bucketRST, 1<<40) // no limit
	f.each(families, func(f *fixture, c cast) {
		const workers, packets = 4, 15000
		var wg sync.WaitGroup
		for w := range workers {
			wg.Go(func() { f.crowd(c, rand.New(rand.NewPCG(uint64(w), 1)), packets) })
		}
		stop := make(chan struct{})
		swept := make(chan error, 1)
		go func() { swept <- f.sweepUntil(stop) }()
		wg.Wait()
		close(stop)
		f.must(<-swept)
		f.wantNoDrift()
		if _, err := f.FlushFlows(c.vip.Addr()); err != nil {
			f.t.Fatal(err)
		}
		f.wantActive(0, 0, 0)
		if n := f.entries(); n != 0 {
			f.t.Errorf("%d entries are left when all flows are gone", n)
		}
	})
}

// crowd sends segments of a dozen clients and of all ports of the backends.
func (f *fixture) crowd(c cast, rng *rand.Rand, packets int) {
	for range packets {
		s := c.syn(rng.IntN(12))
		s.flags = []uint8{syn, syn, syn, ack, fin | ack, rst}[rng.IntN(6)]
		s.seq = 1000 + uint32(rng.IntN(2)) // of two connections
		if s.flags != syn {
			s.seq, s.ack = 1001, 1
		}
		if rng.IntN(2) == 0 {
			s = c.stray([]uint8{syn | ack, syn | ack, rst | ack, fin | ack, ack}[rng.IntN(5)])
			s.src = c.backend(rng.IntN(3)).Addr
			s.dst = netip.AddrPortFrom(c.vip.Addr(), uint16(20000+rng.IntN(16)))
			s.seq, s.ack = 0, 1001
		}
		if action, err := f.progs.Balancer.Run(&ebpf.RunOptions{Data: s.frame()}); err != nil || action == 0 {
			f.t.Errorf("action %d, %v", action, err)
			return
		}
	}
}

// sweepUntil sweeps without a pause, as if the time of each flow were up but
// those that are established.
func (f *fixture) sweepUntil(stop chan struct{}) error {
	const now = -time.Hour
	f.cfg.Timeouts = Timeouts{SYN: now, Established: time.Hour, FIN: now, TimeWait: now, Closed: now, Reset: now}
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		if err := f.sweep(); err != nil {
			return err
		}
	}
}
