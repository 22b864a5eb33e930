package datapath

import (
	"bytes"
	"os"
	"slices"
	"testing"

	"github.com/pgsteer/pgsteer/pkg/bench"
)

func needRoot(t *testing.T) {
	t.Helper()
	if testing.Short() || os.Getuid() != 0 {
		t.Skip("loading BPF programs needs root, and is left out of the short tests")
	}
}

// TestSuite measures a few packets of each row. How fast they are is not asked:
// that every one of them had the row's verdict is, and measure fails if not.
func TestSuite(t *testing.T) {
	needRoot(t)
	s := Suite(Options{Rounds: 3, Packets: 3000, Flows: 500, SYNs: 700})
	var got []bench.Result
	if err := s.Run(t.Context(), s.Names, t.Logf, func(r bench.Result) { got = append(got, r) }); err != nil {
		t.Fatal(err)
	}
	for _, name := range s.Names {
		i := slices.IndexFunc(got, func(r bench.Result) bool { return r.Name == name })
		if i < 0 {
			t.Errorf("%s was not measured", name)
			continue
		}
		if r := got[i]; r.Runs != 3 || r.Value <= 0 || r.PeerValue <= 0 || r.Ratio <= 0 || r.Unit != "ns" {
			t.Errorf("%+v", r)
		}
	}
}

// TestWrongVerdict proves that a row fails whose packets are not what it is
// about, although the program's action is the right one.
func TestWrongVerdict(t *testing.T) {
	needRoot(t)
	n, err := newNode(t.Context(), 3)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}()
	h, err := newHarness([][]byte{synOf(0)})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	// The second SYN is the first one's repetition, and sent on as such.
	r := row{name: "syn", node: n, harness: h, packets: 2, calibration: 10, action: xdpTX, verdict: "tx_new"}
	if err := r.measure(t.Context(), h.objs.Empty); err == nil {
		t.Error("a SYN that opened no flow was counted as new")
	}
	r.packets, r.action, r.verdict = 1, xdpPass, "tx_forward"
	if err := r.measure(t.Context(), h.objs.Empty); err == nil {
		t.Error("a packet that was sent passed for one that went to the kernel")
	}
}

// TestHarnessRestores has the harness put every byte back, whatever a program
// does to them, and walk over its flows in order. The empty program changes
// nothing, so that what comes out is what the harness has written.
func TestHarnessRestores(t *testing.T) {
	needRoot(t)
	for _, tt := range []struct {
		name string
		make func(n int) []byte
	}{
		{"plain", func(n int) []byte {
			s := fromClient(n, flagACK|flagPSH)
			s.payload = payload
			return s.frame()
		}},
		{"with options", synOf},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var frames [][]byte
			for n := range 5 {
				frames = append(frames, tt.make(n*1000))
			}
			h, err := newHarness(frames)
			if err != nil {
				t.Fatal(err)
			}
			defer h.Close()
			if err := h.objs.Target.Put(uint32(0), h.objs.Empty); err != nil {
				t.Fatal(err)
			}
			// Garbage of other lengths: the front moved, the end cut off.
			for i, length := range []int{0, 8, 20, -6, -10, 0} {
				garbage := bytes.Repeat([]byte{0xa5}, len(frames[0])+length)
				action, out, err := h.objs.Harness.Test(garbage)
				if err != nil || action != xdpTX {
					t.Fatalf("action %d, error %v", action, err)
				}
				want := slices.Clone(frames[i%len(frames)])
				copy(want[len(want)-payloadOf(frames[0]):], out[len(want)-payloadOf(frames[0]):]) // not restored
				if !bytes.Equal(out, want) {
					t.Errorf("packet %d, %+d bytes:\n got %x\nwant %x", i, length, out, want)
				}
			}
		})
	}
}

func payloadOf(frame []byte) int {
	return len(frame) - offTCP - int(frame[offTCP+12]>>4)*4
}

func TestFrame(t *testing.T) {
	frame := synOf(70000)
	src, dst := addresses(frame)
	if src != client(70000) || dst != service {
		t.Errorf("from %s to %s", src, dst)
	}
	// A sum over what is covered, the checksum included, is all ones (RFC 1071).
	if sum := add(0, frame[offIP:offTCP]); sum != 0xffff {
		t.Errorf("the sum over the IP header is %#x", sum)
	}
	if sum := add(add(uint16(protoTCP+len(frame)-offTCP), frame[offSource:offTCP]), frame[offTCP:]); sum != 0xffff {
		t.Errorf("the sum over the TCP segment is %#x", sum)
	}
	other := fromClient(3, flagACK).frame()
	if len(other) != plainLen || bytes.Equal(other, fromClient(4, flagACK).frame()) {
		t.Errorf("%x", other)
	}
}

func TestClientsDiffer(t *testing.T) {
	seen := make(map[any]bool)
	for n := range maxTuples {
		seen[client(n).Addr()] = true
	}
	if len(seen) != maxTuples {
		t.Errorf("%d addresses of %d clients", len(seen), maxTuples)
	}
}

func TestStrided(t *testing.T) {
	for _, n := range []int{1, 2, 3, 10, 100, 1000} {
		frames := make([][]byte, n)
		for i := range frames {
			frames[i] = []byte{byte(i), byte(i >> 8)}
		}
		got := strided(frames)
		if n >= 10 && got[1][0] == 1 && got[1][1] == 0 {
			t.Errorf("of %d: neighbours stay neighbours", n)
		}
		slices.SortFunc(got, func(a, b []byte) int {
			return int(a[0]) + int(a[1])<<8 - int(b[0]) - int(b[1])<<8
		})
		if !slices.EqualFunc(got, frames, slices.Equal[[]byte]) {
			t.Errorf("of %d: not each frame once", n)
		}
	}
}
