package capture

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/pgsteer/pgsteer/pkg/lb"
	"github.com/pgsteer/pgsteer/pkg/xdp"
)

const (
	xdpDrop = 1
	xdpPass = 2
	xdpTX   = 3
)

// seen waits until the XDP program has had n packets since the capture began.
func (r *running) seen(n uint64) {
	r.f.t.Helper()
	r.f.until("the packets have gone through the program", func() bool {
		c, err := r.Counts()
		r.f.must(err)
		return c.Seen >= n
	})
}

// converse sends a packet of each kind and returns the frames in their order.
// It needs a capture to learn the SNAT port.
func (f *fixture) converse() [][]byte {
	f.t.Helper()
	var frames [][]byte
	send := func(s segment) {
		frames = append(frames, s.frame())
		f.send(frames[len(frames)-1])
	}
	r, k := f.keep(Config{Verdicts: []string{"tx_new"}})
	send(fromClient(syn))
	r.seen(1)
	r.stop()
	first := k.all()
	if len(first) != 1 {
		f.t.Fatalf("%d packets for a SYN", len(first))
	}
	snat, _ := ports(first[0].Out.Data)
	send(segment{mac: poolerMAC, src: pooler, dst: netip.AddrPortFrom(vip.Addr(), snat), flags: syn | ack, ttl: 64})
	send(fromClient(ack))
	stranger := fromClient(ack)
	stranger.src = netip.AddrPortFrom(client.Addr(), 40001)
	send(stranger)
	last := fromClient(ack)
	last.ttl = 1
	send(last)
	other := fromClient(syn)
	other.dst = netip.AddrPortFrom(vip.Addr(), 22)
	send(other)
	// Both are of no VIP; the second one's address has the last byte of one.
	for _, addr := range []string{"192.168.1.77", "192.168.2.100"} {
		other.dst = netip.AddrPortFrom(netip.MustParseAddr(addr), vip.Port())
		send(other)
	}
	return frames
}

// conversation is what a capture of every verdict has of converse.
var conversation = []struct {
	verdict string
	action  uint32
	out     int // length
}{
	{"tx_new", xdpTX, 54},
	{"tx_reverse", xdpTX, 54},
	{"tx_forward", xdpTX, 54},
	{"tx_rst_client", xdpTX, 54},
	{"drop_ttl", xdpDrop, 0},
	{"pass_port", xdpPass, 0},
	{"pass_not_vip", xdpPass, 0},
	{"pass_not_vip", xdpPass, 0},
}

func TestCapture(t *testing.T) {
	f := newFixture(t)
	f.balance()
	r, k := f.keep(Config{All: true})
	if got := r.Interface(); got != "lan0" {
		t.Errorf("interface %q", got)
	}
	frames := f.converse()
	r.seen(uint64(len(frames)))
	r.stop()
	got := k.all()
	if len(got) != len(conversation) {
		t.Fatalf("%d packets, want %d: %+v", len(got), len(conversation), got)
	}
	for i, want := range conversation {
		p := got[i]
		if p.Verdict != want.verdict || p.Action != want.action || p.ID != uint64(i+1) {
			t.Errorf("packet %d: number %d, verdict %s, action %d; want %s and %d", i, p.ID, p.Verdict, p.Action, want.verdict, want.action)
		}
		if !bytes.Equal(p.In.Data, frames[i]) || p.In.Len != len(frames[i]) {
			t.Errorf("%s came as\n%x of length %d, but was sent as\n%x", p.Verdict, p.In.Data, p.In.Len, frames[i])
		}
		if p.Out.Len != want.out || len(p.Out.Data) != want.out {
			t.Errorf("%s left with %d bytes, %d captured; want %d", p.Verdict, p.Out.Len, len(p.Out.Data), want.out)
		}
		if p.Out.Time.Before(p.In.Time) {
			t.Errorf("%s left at %s, before it came at %s", p.Verdict, p.Out.Time, p.In.Time)
		}
	}
	if t.Failed() {
		return
	}
	// Each pair's second half is the first one, rewritten.
	snat, backend := ports(got[0].Out.Data)
	if snat < 10240 || backend != pooler.Port() || !bytes.Equal(got[0].Out.Data[:6], poolerMAC) {
		t.Errorf("the SYN left as %x", got[0].Out.Data)
	}
	if src, dst := ports(got[1].Out.Data); src != vip.Port() || dst != client.Port() || !bytes.Equal(got[1].Out.Data[:6], clientMAC) {
		t.Errorf("the answer left as %x", got[1].Out.Data)
	}
	if src, dst := ports(got[2].Out.Data); src != snat || dst != backend {
		t.Errorf("the acknowledgement left as %x", got[2].Out.Data)
	}
	if src, dst := ports(got[3].Out.Data); src != vip.Port() || dst != 40001 || got[3].Out.Data[47] != 0x04 {
		t.Errorf("the reset left as %x", got[3].Out.Data)
	}
	counts, err := r.Counts()
	f.must(err)
	if want := (Counts{Seen: uint64(len(frames)), Accepted: uint64(len(frames))}); counts != want {
		t.Errorf("counts %+v, want %+v", counts, want)
	}
}

// TestFilters runs one conversation with all captures on it at once.
func TestFilters(t *testing.T) {
	f := newFixture(t)
	f.balance()
	var check []func()
	for _, tt := range []struct {
		name     string
		config   Config
		verdicts []string
	}{
		{"what a packet socket does not see", Config{}, []string{"tx_new", "tx_reverse", "tx_forward", "tx_rst_client", "drop_ttl"}},
		{"patterns", Config{Verdicts: []string{"drop_*", "tx_re*"}}, []string{"tx_reverse", "drop_ttl"}},
		{"passed", Config{Verdicts: []string{"pass_port"}}, []string{"pass_port"}},
		{"for no VIP", Config{Verdicts: []string{"pass_not_vip"}}, []string{"pass_not_vip", "pass_not_vip"}},
		{"of no VIP", Config{All: true, Host: netip.MustParsePrefix("192.168.1.77/32")}, []string{"pass_not_vip"}},
		{"only what was sent", Config{All: true, Side: Out}, []string{"tx_new", "tx_reverse", "tx_forward", "tx_rst_client"}},
		// The client is in the answer only after it was rewritten.
		{"host of one side", Config{Host: netip.PrefixFrom(client.Addr(), 32)}, []string{"tx_new", "tx_reverse", "tx_forward", "tx_rst_client", "drop_ttl"}},
		// The same for the pooler and what comes from the client.
		{"host of the other side", Config{Host: netip.PrefixFrom(pooler.Addr(), 32)}, []string{"tx_new", "tx_reverse", "tx_forward"}},
		{"prefix", Config{Host: netip.MustParsePrefix("192.168.1.4/31")}, []string{"tx_new", "tx_reverse", "tx_forward"}},
		{"prefix without anybody", Config{Host: netip.MustParsePrefix("192.168.1.6/31")}, nil},
		{"all of IPv4", Config{All: true, Host: netip.MustParsePrefix("0.0.0.0/0")}, []string{"tx_new", "tx_reverse", "tx_forward", "tx_rst_client", "drop_ttl", "pass_port", "pass_not_vip", "pass_not_vip"}},
		{"nothing of IPv6", Config{Host: netip.MustParsePrefix("fd00::/8")}, nil},
		{"port", Config{Port: 40001}, []string{"tx_rst_client"}},
		{"port after the rewrite", Config{Port: 6432}, []string{"tx_new", "tx_reverse", "tx_forward"}},
		{"host and port", Config{Host: netip.PrefixFrom(vip.Addr(), 32), Port: 22, All: true}, []string{"pass_port"}},
	} {
		r, k := f.keep(tt.config)
		check = append(check, func() {
			r.seen(uint64(len(conversation)))
			r.stop()
			var verdicts []string
			for _, p := range k.all() {
				verdicts = append(verdicts, p.Verdict)
			}
			if !slices.Equal(verdicts, tt.verdicts) {
				t.Errorf("%s: got %v, want %v", tt.name, verdicts, tt.verdicts)
			}
		})
	}
	f.converse()
	for _, c := range check {
		c()
	}
}

// IPv6 is another program's, which is called by a tail call.
func TestIPv6(t *testing.T) {
	f := newFixture(t)
	f.config.IPv6 = true
	b := f.balance()
	vip6, client6 := netip.MustParseAddrPort("[fd00::100]:5432"), netip.MustParseAddrPort("[fd00::50]:40000")
	f.must(b.SetVIPs([]lb.VIPStats{{Addr: vip6.Addr(), Router: "main", VRID: 51, Priority: 101}}))
	f.must(b.RenewLease(vip6.Addr(), time.Hour))
	f.must(b.SetServices([]lb.Service{{Name: "six", Addr: vip6, Backends: []lb.Backend{
		{Name: "pooler1", Addr: netip.MustParseAddrPort("[fd00::5]:6432"), Weight: 1, State: lb.Up},
	}}}))
	all, ofAll := f.keep(Config{})
	some, ofSome := f.keep(Config{Host: netip.MustParsePrefix("fd00::50/127"), Port: 40000})
	none, ofNone := f.keep(Config{Host: netip.MustParsePrefix("fd00::52/127")})
	early, ofEarly := f.keep(Config{Verdicts: []string{"pass_*"}})
	frame := frame6(client6, vip6)
	f.send(frame)
	stranger := frame6(client6, netip.MustParseAddrPort("[fd00::77]:5432"))
	f.send(stranger)
	for _, r := range []*running{all, some, none, early} {
		r.seen(2)
		r.stop()
	}
	for _, k := range []*kept{ofAll, ofSome} {
		got := k.all()
		if len(got) != 1 || got[0].Verdict != "tx_rst_client" || got[0].Action != xdpTX || !bytes.Equal(got[0].In.Data, frame) {
			t.Fatalf("captured %+v", got)
		}
		if out := got[0].Out.Data; len(out) != 74 || out[67]&0x04 == 0 || !bytes.Equal(out[22:38], frame[38:54]) {
			t.Errorf("the reset left as %x", out)
		}
	}
	if got := ofEarly.all(); len(got) != 1 || got[0].Verdict != "pass_not_vip" || got[0].Action != xdpPass || !bytes.Equal(got[0].In.Data, stranger) || got[0].Out.Len != 0 {
		t.Errorf("captured %+v of what is for no VIP", got)
	}
	if got := ofNone.all(); len(got) != 0 {
		t.Errorf("captured %+v for another host", got)
	}
}

func TestTags(t *testing.T) {
	f := newFixture(t)
	f.balance()
	r, k := f.keep(Config{Host: netip.PrefixFrom(client.Addr(), 32), Port: client.Port()})
	other, ofOther := f.keep(Config{Host: netip.PrefixFrom(client.Addr(), 32), Port: client.Port() + 1})
	plain := fromClient(ack).frame()
	tagged := slices.Concat(plain[:12], []byte{0x88, 0xa8, 0, 5, 0x81, 0, 0, 7}, plain[12:])
	f.send(tagged)
	r.seen(1)
	other.seen(1)
	r.stop()
	other.stop()
	if got := k.all(); len(got) != 1 || !bytes.Equal(got[0].In.Data, tagged) || got[0].Out.Len != len(tagged) {
		t.Errorf("captured %+v", got)
	}
	if got := ofOther.all(); len(got) != 0 {
		t.Errorf("captured %+v for another port", got)
	}
}

func TestSnapLen(t *testing.T) {
	f := newFixture(t)
	f.balance()
	r, k := f.keep(Config{All: true, SnapLen: 60})
	s := fromClient(syn)
	s.payload = 100
	f.send(s.frame())
	r.seen(1)
	r.stop()
	got := k.all()
	if len(got) != 1 {
		t.Fatalf("%d packets", len(got))
	}
	for _, frame := range []Frame{got[0].In, got[0].Out} {
		if frame.Len != 154 || len(frame.Data) != 60 {
			t.Errorf("%d bytes of %d, want 60 of 154", len(frame.Data), frame.Len)
		}
	}
	if !bytes.Equal(got[0].In.Data, s.frame()[:60]) {
		t.Errorf("captured %x", got[0].In.Data)
	}
}

// A frame longer than what is kept at the most, more of them than the ring
// holds, and nobody who reads: every one is either delivered or counted.
func TestLost(t *testing.T) {
	f := newFixture(t)
	f.balance()
	c := f.open(Config{SnapLen: MaxSnapLen, Verdicts: []string{"drop_ttl"}})
	defer func() { f.must(c.Close()) }()
	program, err := ebpf.NewProgramFromID(ebpf.ProgramID(c.Program()))
	f.must(err)
	defer program.Close()
	s := fromClient(ack)
	s.ttl, s.payload = 1, 1460
	const packets = 10000
	frame := s.frame()
	// The TTL is looked at once there is a flow.
	first := fromClient(syn)
	if _, err := program.Run(&ebpf.RunOptions{Data: first.frame()}); err != nil {
		t.Fatal(err)
	}
	if _, err := program.Run(&ebpf.RunOptions{Data: frame, Repeat: packets}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	k := &kept{}
	f.must(c.Run(ctx, k))
	counts, err := c.Counts()
	f.must(err)
	delivered := uint64(len(k.all()))
	if counts.Lost == 0 || counts.Accepted != packets || delivered+counts.Lost != counts.Accepted {
		t.Errorf("%+v, delivered %d", counts, delivered)
	}
	for _, p := range k.all() {
		if !bytes.Equal(p.In.Data, frame) {
			t.Fatalf("captured %x", p.In.Data)
		}
	}
}

func TestCount(t *testing.T) {
	f := newFixture(t)
	f.balance()
	r, k := f.keep(Config{All: true, Count: 2})
	for range 5 {
		f.send(fromClient(syn).frame())
	}
	r.ended = true
	f.must(<-r.done)
	if got := len(k.all()); got != 2 {
		t.Errorf("%d packets, want 2", got)
	}
	if c, err := r.Counts(); err != nil || c.Seen < 2 {
		t.Errorf("counts %+v, %v", c, err)
	}
}

// A second daemon takes over the pins and exchanges the program.
func TestFollowsTheProgram(t *testing.T) {
	f := newFixture(t)
	f.balance()
	r, k := f.keep(Config{All: true})
	f.send(fromClient(syn).frame())
	r.seen(1)
	first := r.Program()
	f.balance()
	f.until("the capture sees packets of the new program", func() bool {
		f.send(fromClient(ack).frame())
		got := k.all()
		return got[len(got)-1].Verdict == "tx_forward"
	})
	r.stop()
	if r.Program() == first {
		t.Errorf("still watching program %d", first)
	}
	if got := k.all()[0].Verdict; got != "tx_new" {
		t.Errorf("the first packet's verdict is %s", got)
	}
}

func TestEndsWithTheProgram(t *testing.T) {
	f := newFixture(t)
	f.balance()
	r, k := f.keep(Config{})
	f.send(fromClient(syn).frame())
	r.seen(1)
	f.must(xdp.Detach(f.config.PinPath))
	r.ended = true
	if err := <-r.done; !errors.Is(err, ErrNotAttached) {
		t.Errorf("got %v", err)
	}
	if got := k.all(); len(got) != 1 || got[0].Verdict != "tx_new" {
		t.Errorf("captured %+v", got)
	}
}

func TestNothingAttached(t *testing.T) {
	needRoot(t)
	_, err := Open(Config{PinPath: t.TempDir()})
	if !errors.Is(err, ErrNotAttached) {
		t.Errorf("got %v", err)
	}
}

// A sink that fails ends the capture and is not asked again.
func TestSinkFails(t *testing.T) {
	f := newFixture(t)
	f.balance()
	s := &failing{}
	r := f.capture(Config{}, func(*Capture) Sink { return s })
	f.send(fromClient(syn).frame())
	f.send(fromClient(syn).frame())
	r.ended = true
	if err := <-r.done; !errors.Is(err, os.ErrClosed) {
		t.Errorf("got %v", err)
	}
	if s.asked != 1 {
		t.Errorf("asked %d times", s.asked)
	}
}

type failing struct{ asked int }

func (f *failing) Packet(*Packet) error { f.asked++; return os.ErrClosed }
func (f *failing) Flush() error         { f.asked++; return nil }
