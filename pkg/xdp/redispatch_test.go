package xdp

import (
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// linuxOptions are those of a Linux client's SYN: MSS, SACK, timestamps, scale.
const linuxOptions = "\x02\x04\x05\xb4\x04\x02\x08\x0a\x00\x00\x12\x34\x00\x00\x00\x00\x01\x03\x03\x07"

// synWithOptions is a SYN of the n-th client.
func synWithOptions(n int) segment {
	s := fromClient(syn)
	s.src, s.seq, s.options = clientNumber(n), 123456, linuxOptions
	return s
}

func TestRefusedSYNGoesToTheOthersInTurn(t *testing.T) {
	for _, options := range []string{"", "\x02\x04\x05\xb4", linuxOptions, linuxOptions + linuxOptions} {
		f := newFixture(t)
		in := synWithOptions(1)
		in.options = options
		got := f.expect(in, "tx_new")
		asked := []uint16{got.dst.Port()}
		for range 2 {
			got = f.expect(got.answer(rst|ack), "tx_redispatch_refused")
			asked = append(asked, got.dst.Port())
			if got.flags != syn || got.seq != in.seq || got.ack != 0 || got.options != options || got.payload != "" {
				t.Errorf("the SYN arrives as flags %#x, sequence %d, options %x", got.flags, got.seq, got.options)
			}
			if got.srcMAC != lbMAC || got.dstMAC != poolerMAC || got.src.Addr() != vip.Addr() || got.ttl != 64 {
				t.Errorf("it goes from %s (%x) to %s (%x)", got.src, got.srcMAC, got.dst, got.dstMAC)
			}
			f.wantActive(0, 0, 1)
			if n := f.entries(); n != 2 {
				t.Errorf("%d entries", n)
			}
		}
		slices.Sort(asked)
		if !slices.Equal(asked, []uint16{6432, 6433, 6434}) {
			t.Errorf("asked %v", asked)
		}
		// Everybody has refused: so does the VIP.
		last := f.expect(got.answer(rst|ack), "tx_reverse")
		if last.flags != rst|ack || last.src != vip || last.dst != in.src || last.ack != in.seq+1 {
			t.Errorf("the client gets flags %#x from %s, acknowledging %d", last.flags, last.src, last.ack)
		}
		f.wantActive(0, 0, 0)
		for _, b := range f.backends() {
			if b.Refused != 1 || b.Total != 1 {
				t.Errorf("%s: %d refused of %d", b.Name, b.Refused, b.Total)
			}
		}
	}
}

func TestConnectionLivesOnAfterARedispatch(t *testing.T) {
	f := newFixture(t)
	in := synWithOptions(1)
	first := f.expect(in, "tx_new")
	b := f.expect(first.answer(rst|ack), "tx_redispatch_refused")
	reply := b.answer(syn | ack)
	reply.seq, reply.ack = 777, b.seq+1
	back := f.expect(reply, "tx_reverse")
	if back.src != vip || back.dst != in.src || back.dstMAC != clientMAC || back.ack != in.seq+1 {
		t.Errorf("the client gets an answer from %s to %s", back.src, back.dst)
	}
	in.flags, in.options, in.ack = ack, "", 778
	if got := f.expect(in, "tx_forward"); got.dst != b.dst {
		t.Errorf("the client's next segment goes to %s", got.dst)
	}
	// Established: a reset is a reset now.
	reply.flags, reply.seq = rst|ack, 778
	f.expect(reply, "tx_reverse")
	f.wantActive(0, 0, 0)
}

func TestOnlyAResetForTheSYNMovesIt(t *testing.T) {
	f := newFixture(t)
	b := f.expect(synWithOptions(1), "tx_new")
	blind := b.answer(rst | ack)
	blind.ack += 5
	f.expect(blind, "tx_reverse")
	b = f.expect(synWithOptions(2), "tx_new")
	f.expect(b.answer(rst), "tx_reverse")
	for _, b := range f.backends() {
		if b.Refused != 0 {
			t.Errorf("%s was taken to refuse", b.Name)
		}
	}
}

func TestBackendThatRefusedIsTheLastChoiceForAWhile(t *testing.T) {
	f := newFixture(t)
	refusing := f.expect(synWithOptions(0), "tx_new")
	f.expect(refusing.answer(rst|ack), "tx_redispatch_refused")
	for n := range 20 {
		if got := f.expect(synWithOptions(n+1), "tx_new"); got.dst == refusing.dst {
			t.Fatalf("client %d was sent to %s", n, got.dst)
		}
	}
	for _, b := range threePoolers().Backends {
		if b.Addr != refusing.dst {
			f.must(f.setState(b.Name, lb.Down))
		}
	}
	if got := f.expect(synWithOptions(50), "tx_new"); got.dst != refusing.dst {
		t.Errorf("sent to %s", got.dst)
	}
}

// age makes a client's flow as old as a first retransmission would find it.
func (f *fixture) age(in segment) {
	f.t.Helper()
	handshakes, err := ebpf.LoadPinnedMap(filepath.Join(f.config.PinPath, balancerMapHandshakes), nil)
	f.must(err)
	defer handshakes.Close()
	place := f.row(in.src).Ticket & (f.cfg.HalfOpenFlows - 1)
	var row handshakeRow[addr4]
	f.must(handshakes.Lookup(place, &row))
	row.OpenedNs -= uint64(time.Second)
	f.must(handshakes.Put(place, row))
}

func TestUnansweredSYNGoesToTheOthersInTurn(t *testing.T) {
	f := newFixture(t)
	in := synWithOptions(1)
	first := f.expect(in, "tx_new")
	if got := f.expect(in, "tx_forward"); got.dst != first.dst {
		t.Errorf("a duplicate goes to %s, the original went to %s", got.dst, first.dst)
	}
	asked := []uint16{first.dst.Port()}
	var got segment
	for range 2 {
		f.age(in)
		got = f.expect(in, "tx_redispatch_silent")
		asked = append(asked, got.dst.Port())
		if got.options != linuxOptions || got.seq != in.seq || got.ttl != 63 {
			t.Errorf("the SYN arrives with options %x", got.options)
		}
	}
	slices.Sort(asked)
	if !slices.Equal(asked, []uint16{6432, 6433, 6434}) {
		t.Errorf("asked %v", asked)
	}
	f.age(in)
	if again := f.expect(in, "tx_forward"); again.dst != got.dst || again.src != got.src {
		t.Errorf("with nobody else to ask it goes from %s to %s", again.src, again.dst)
	}
	f.wantActive(0, 0, 1)
	if n := f.entries(); n != 2 {
		t.Errorf("%d entries", n)
	}
	// The first was only slow: its connection is of no use any more.
	f.expect(first.answer(syn|ack), "tx_rst_backend")
	f.expect(got.answer(syn|ack), "tx_reverse")
	in.flags = ack
	f.expect(in, "tx_forward")
}

func TestSingleBackendIsNotGivenUp(t *testing.T) {
	f := newFixture(t)
	s := threePoolers()
	s.Backends = s.Backends[:1]
	f.must(f.SetServices([]lb.Service{s}))
	in := synWithOptions(1)
	first := f.expect(in, "tx_new")
	f.age(in)
	if got := f.expect(in, "tx_forward"); got.src != first.src || got.dst != first.dst {
		t.Errorf("%s to %s, at first %s to %s", got.src, got.dst, first.src, first.dst)
	}
	f.expect(first.answer(rst|ack), "tx_reverse")
	f.wantActive(0)
}
