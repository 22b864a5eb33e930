package xdp

import (
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

func (f *fixture) wantActive(want ...int64) {
	f.t.Helper()
	got := f.active()
	slices.Sort(got)
	if !slices.Equal(got, want) {
		f.t.Fatalf("active counts %v, want %v", got, want)
	}
}

func TestActiveCountOverAFlowsLife(t *testing.T) {
	f := newFixture(t)
	f.wantActive(0, 0, 0)
	c, b := f.connect(client)
	f.wantActive(0, 0, 1)
	f.expect(fromClient(syn), "tx_forward") // sent again: the same flow
	f.wantActive(0, 0, 1)
	c.flags = fin | ack
	f.expect(c, "tx_forward")
	f.expect(c, "tx_forward") // sent again
	f.wantActive(0, 0, 1)
	f.expect(b.answer(fin|ack), "tx_reverse")
	f.wantActive(0, 0, 0)
	f.expect(b.answer(fin|ack), "tx_reverse")
	c.flags = ack
	f.expect(c, "tx_forward")
	c.flags = rst
	f.expect(c, "tx_forward")
	f.wantActive(0, 0, 0)
}

func TestResetEndsAFlowFromEitherSide(t *testing.T) {
	f := newFixture(t)
	c, _ := f.connect(clientNumber(1))
	_, b := f.connect(clientNumber(2))
	f.wantActive(0, 1, 1)
	c.flags = rst | ack
	f.expect(c, "tx_forward")
	f.expect(b.answer(rst), "tx_reverse")
	f.wantActive(0, 0, 0)
}

func TestBlindResetEndsNothing(t *testing.T) {
	f := newFixture(t)
	c, b := f.connect(client)
	for _, off := range []uint32{1 << 24, 1 << 31, ^uint32(0)} {
		blind := c
		blind.flags, blind.seq = rst, c.seq+off
		f.expect(blind, "tx_forward") // the backend has the last word
		blind = b.answer(rst)
		blind.seq += off
		f.expect(blind, "tx_reverse")
		f.wantActive(0, 0, 1)
	}
	// In flight: beyond what the backend has acknowledged.
	c.flags, c.seq = rst, c.seq+(6<<20)
	f.expect(c, "tx_forward")
	f.wantActive(0, 0, 0)
}

func TestLateAcknowledgementsDoNotCount(t *testing.T) {
	f := newFixture(t)
	c, b := f.connect(client)
	c.ack += 1 << 22
	f.expect(c, "tx_forward")
	c.ack -= 1 << 22
	f.expect(c, "tx_forward") // overtaken on the way
	r := b.answer(rst)
	f.expect(r, "tx_reverse")
	f.wantActive(0, 0, 1)
	r.seq += 1 << 22
	f.expect(r, "tx_reverse")
	f.wantActive(0, 0, 0)
}

func TestSYNFromAClosedFlowsPortIsScheduledAfresh(t *testing.T) {
	f := newFixture(t)
	c, b := f.connect(client)
	c.flags = fin | ack
	f.expect(c, "tx_forward")
	f.expect(b.answer(fin|ack), "tx_reverse")
	again := f.expect(fromClient(syn), "tx_new")
	if again.dst == b.dst {
		t.Errorf("scheduled to %s again, though the turn was another's", again.dst)
	}
	f.wantActive(0, 0, 1)
	if n := f.entries(); n != 2 {
		t.Errorf("%d entries", n)
	}
	// The old backend's late segment finds no flow any more.
	f.expect(b.answer(ack), "tx_rst_backend")
}

func TestBurstSpreadsExactly(t *testing.T) {
	f := newFixture(t)
	for n := range 300 {
		s := fromClient(syn)
		s.src = clientNumber(n)
		f.expect(s, "tx_new")
	}
	f.wantActive(100, 100, 100)
}

func TestWeightsShareInProportion(t *testing.T) {
	f := newFixture(t)
	s := threePoolers()
	s.Backends[0].Weight, s.Backends[1].Weight = 3, 2
	f.must(f.SetServices([]lb.Service{s}))
	for n := range 300 {
		s := fromClient(syn)
		s.src = clientNumber(n)
		f.expect(s, "tx_new")
	}
	if got := f.active(); !slices.Equal(got, []int64{150, 100, 50}) {
		t.Errorf("active counts %v", got)
	}
}

func TestOnlyBackendsThatAreUpAndReachableTakeFlows(t *testing.T) {
	f := newFixture(t)
	f.must(f.setState("pooler1", lb.Draining))
	_, b := f.connect(clientNumber(1))
	f.must(f.setState("pooler2", lb.Down))
	for n := range 10 {
		if _, b := f.connect(clientNumber(10 + n)); b.dst.Port() != 6434 {
			t.Fatalf("scheduled to %s", b.dst)
		}
	}
	f.expect(b.answer(ack), "tx_reverse") // what is established lives on
	f.mu.Lock()
	delete(f.neighbours, pooler.Addr())
	err := f.refreshNextHops()
	f.mu.Unlock()
	f.must(err)
	f.expect(fromClient(syn), "tx_rst_no_backend")
	if err := f.setState("pooler9", lb.Up); err == nil {
		t.Error("a backend that does not exist was accepted")
	}
}

// Two CPUs at once: choosing and counting are one step.
func TestCountsAreExactUnderConcurrency(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.FlowTableSize = 65536 })
	const each, workers = 3000, 4
	var wg sync.WaitGroup
	backends := make([][]segment, workers)
	for w := range workers {
		wg.Go(func() {
			for n := range each {
				s := fromClient(syn)
				s.src = clientNumber(w*each + n)
				opts := ebpf.RunOptions{Data: s.frame(), DataOut: make([]byte, 256)}
				if action, err := f.progs.Balancer.Run(&opts); err != nil || action != xdpTX {
					t.Errorf("action %d, %v", action, err)
					return
				}
				backends[w] = append(backends[w], decode(t, opts.DataOut))
			}
		})
	}
	wg.Wait()
	f.wantActive(each*workers/3, each*workers/3, each*workers/3)
	// Both ends close at the same time, on different CPUs.
	for w := range workers {
		for _, flags := range []uint8{fin | ack, rst} {
			wg.Go(func() {
				for n := range each {
					s := fromClient(flags)
					s.src = clientNumber(w*each + n)
					f.progs.Balancer.Run(&ebpf.RunOptions{Data: s.frame()})
				}
			})
		}
		wg.Go(func() {
			for _, b := range backends[w] {
				f.progs.Balancer.Run(&ebpf.RunOptions{Data: b.answer(fin | ack).frame()})
			}
		})
	}
	wg.Wait()
	f.wantActive(0, 0, 0)
}

func TestSNATPortsRunOut(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.SNATLow, c.SNATHigh = 20000, 20003 })
	refused := false
	opened := 0
	for n := range 40 {
		s := fromClient(syn)
		s.src = clientNumber(n)
		_, out, v := f.run(s.frame())
		switch v {
		case "tx_new":
			opened++
		case "tx_rst_no_port":
			refused = true
			if got := decode(t, out); got.dst != s.src || got.flags != rst|ack {
				t.Errorf("reset with flags %#x to %s", got.flags, got.dst)
			}
		default:
			t.Fatalf("verdict %s", v)
		}
	}
	// Four ports to each of three backends, found by trying at random.
	if !refused || opened > 12 || opened < 9 {
		t.Errorf("%d flows opened, refused: %v", opened, refused)
	}
	got := f.active()
	if sum := got[0] + got[1] + got[2]; sum != int64(opened) {
		t.Errorf("%d flows, active counts %v", opened, got)
	}
	if n := f.entries(); n != 2*opened {
		t.Errorf("%d flows, %d entries", opened, n)
	}
}

func TestFullTableRefusesNewFlowsAndKeepsOld(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.FlowTableSize = 64 })
	c, _ := f.connect(clientNumber(0))
	opened, refused := 1, 0
	for n := range 200 {
		s := fromClient(syn)
		s.src = clientNumber(n + 1)
		switch _, _, v := f.run(s.frame()); v {
		case "tx_new":
			opened++
		case "tx_rst_table_full":
			refused++
		default:
			t.Fatalf("verdict %s", v)
		}
	}
	if refused == 0 || opened > 32 {
		t.Errorf("%d opened, %d refused", opened, refused)
	}
	f.expect(c, "tx_forward")
	got := f.active()
	if sum := got[0] + got[1] + got[2]; sum != int64(opened) {
		t.Errorf("%d flows, active counts %v", opened, got)
	}
	if n := f.entries(); n != 2*opened {
		t.Errorf("%d flows, %d entries", opened, n)
	}
}

func TestClientNumbersDiffer(t *testing.T) {
	seen := make(map[netip.AddrPort]bool)
	for n := range 12000 {
		if seen[clientNumber(n)] {
			t.Fatalf("client %d is not the first", n)
		}
		seen[clientNumber(n)] = true
	}
}
