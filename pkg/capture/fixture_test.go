package capture

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/pkg/lb"
	"github.com/pgsteer/pgsteer/pkg/xdp"
)

// The cast of the tests.
var (
	lbMAC     = net.HardwareAddr{0x02, 0, 0, 0, 0, 0x10}
	clientMAC = net.HardwareAddr{0x02, 0, 0, 0, 0, 0x50}
	poolerMAC = net.HardwareAddr{0x02, 0, 0, 0, 0, 0x05}

	vip    = netip.MustParseAddrPort("192.168.1.100:5432")
	client = netip.MustParseAddrPort("192.168.1.50:40000")
	pooler = netip.MustParseAddrPort("192.168.1.5:6432")
)

const (
	syn = 0x02
	ack = 0x10
)

// segment is a TCP segment in an Ethernet frame. The program checks no
// checksums, so there are none.
type segment struct {
	mac      net.HardwareAddr // of the sender
	src, dst netip.AddrPort
	flags    byte
	ttl      byte
	payload  int
}

func (s segment) frame() []byte {
	b := make([]byte, 54+s.payload)
	copy(b, lbMAC)
	copy(b[6:], s.mac)
	binary.BigEndian.PutUint16(b[12:], unix.ETH_P_IP)
	ip, tcp := b[14:], b[34:]
	ip[0] = 0x45
	binary.BigEndian.PutUint16(ip[2:], uint16(40+s.payload))
	ip[8] = s.ttl
	ip[9] = unix.IPPROTO_TCP
	copy(ip[12:], s.src.Addr().AsSlice())
	copy(ip[16:], s.dst.Addr().AsSlice())
	binary.BigEndian.PutUint16(tcp, s.src.Port())
	binary.BigEndian.PutUint16(tcp[2:], s.dst.Port())
	binary.BigEndian.PutUint32(tcp[4:], 1000)
	binary.BigEndian.PutUint32(tcp[8:], 2000)
	tcp[12] = 5 << 4
	tcp[13] = s.flags
	return b
}

func fromClient(flags byte) segment {
	return segment{mac: clientMAC, src: client, dst: vip, flags: flags, ttl: 64}
}

// frame6 is a TCP segment over IPv6, with ACK alone.
func frame6(src, dst netip.AddrPort) []byte {
	b := make([]byte, 74)
	copy(b, lbMAC)
	copy(b[6:], clientMAC)
	copy(b[12:], []byte{0x86, 0xdd, 0x60})
	b[19], b[20], b[21] = 20, unix.IPPROTO_TCP, 64
	copy(b[22:], src.Addr().AsSlice())
	copy(b[38:], dst.Addr().AsSlice())
	binary.BigEndian.PutUint16(b[54:], src.Port())
	binary.BigEndian.PutUint16(b[56:], dst.Port())
	b[66], b[67] = 5<<4, ack
	return b
}

// ports reads source and destination port of a TCP segment over IPv4.
func ports(frame []byte) (src, dst uint16) {
	return binary.BigEndian.Uint16(frame[34:]), binary.BigEndian.Uint16(frame[36:])
}

// fixture is a balancer on one end of a cable in a namespace of its own, with
// a socket on the other end.
type fixture struct {
	t      *testing.T
	ns     netns.NsHandle
	config xdp.Config
	socket int
	peer   *unix.SockaddrLinklayer
}

func (f *fixture) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// inside runs fn on a thread of its own inside the namespace. The thread is
// thrown away afterwards, so that nothing can leak out of it.
func (f *fixture) inside(fn func() error) {
	f.t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := netns.Set(f.ns); err != nil {
			done <- err
			return
		}
		done <- fn()
	}()
	f.must(<-done)
}

func needRoot(t *testing.T) {
	t.Helper()
	if testing.Short() || os.Getuid() != 0 {
		t.Skip("loading BPF programs needs root, and is left out of the short tests")
	}
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	needRoot(t)
	f := &fixture{t: t, config: xdp.Config{Interface: "lan0", Mode: xdp.ModeNative, FlowTableSize: 4096}}
	made := make(chan error)
	go func() {
		runtime.LockOSThread()
		var err error
		f.ns, err = netns.New()
		made <- err
	}()
	f.must(<-made)
	t.Cleanup(func() { f.ns.Close() })
	pins := t.TempDir()
	f.must(unix.Mount("bpf", pins, "bpf", 0, ""))
	t.Cleanup(func() {
		if err := unix.Unmount(pins, 0); err != nil {
			t.Errorf("unmounting: %v", err)
		}
	})
	f.config.PinPath = pins + "/pins"
	f.inside(f.cable)
	t.Cleanup(func() { unix.Close(f.socket) })
	return f
}

// cable makes interface lan0 with the address 192.168.1.10, whose other end is
// lan1, and a socket on that.
func (f *fixture) cable() error {
	// The kernel's own IPv6 chatter would stand between our packets.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0); err != nil && !os.IsNotExist(err) {
		return err
	}
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "lan0", HardwareAddr: lbMAC}, PeerName: "lan1"}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("adding the veth pair: %w", err)
	}
	if err := netlink.AddrAdd(veth, &netlink.Addr{IPNet: &net.IPNet{IP: net.IP{192, 168, 1, 10}, Mask: net.CIDRMask(24, 32)}}); err != nil {
		return fmt.Errorf("adding the address: %w", err)
	}
	lan0, err := netlink.LinkByName("lan0")
	if err != nil {
		return err
	}
	lan1, err := netlink.LinkByName("lan1")
	if err != nil {
		return err
	}
	for _, l := range []netlink.Link{lan1, lan0} {
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
	}
	err = netlink.NeighSet(&netlink.Neigh{
		LinkIndex: lan0.Attrs().Index, State: netlink.NUD_PERMANENT,
		IP: pooler.Addr().AsSlice(), HardwareAddr: poolerMAC,
	})
	if err != nil {
		return fmt.Errorf("naming the pooler's MAC address: %w", err)
	}
	f.peer = &unix.SockaddrLinklayer{Ifindex: lan1.Attrs().Index}
	f.socket, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	return err
}

// balance opens a balancer with one pooler, which runs until the test ends.
func (f *fixture) balance() *xdp.Balancer {
	f.t.Helper()
	var b *xdp.Balancer
	f.inside(func() (err error) {
		b, err = xdp.Open(f.config)
		return err
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- b.Run(ctx) }()
	f.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			f.t.Errorf("running the balancer: %v", err)
		}
		if err := b.Close(); err != nil {
			f.t.Errorf("closing the balancer: %v", err)
		}
	})
	f.must(b.SetVIPs([]lb.VIPStats{{Addr: vip.Addr(), Router: "main", VRID: 51, Priority: 101}}))
	f.must(b.RenewLease(vip.Addr(), time.Hour))
	f.must(b.SetServices([]lb.Service{{Name: "postgres", Addr: vip, Backends: []lb.Backend{
		{Name: "pooler1", Addr: pooler, Weight: 1, State: lb.Up},
	}}}))
	f.until("the pooler can be reached", func() bool {
		s, err := b.Stats()
		f.must(err)
		return s.Services[0].Backends[0].Reachable
	})
	return b
}

// until waits for something that happens in another thread or in the kernel.
func (f *fixture) until(what string, happened func() bool) {
	f.t.Helper()
	deadline := time.Now().Add(time.Minute)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !happened() {
		if time.Now().After(deadline) {
			f.t.Fatalf("waited a minute in vain until %s", what)
		}
		<-tick.C
	}
}

// send puts a frame on the cable.
func (f *fixture) send(frame []byte) {
	f.t.Helper()
	f.must(unix.Sendto(f.socket, frame, 0, f.peer))
}

// kept collects copies of packets.
type kept struct {
	mu      sync.Mutex
	packets []Packet
}

func (k *kept) Packet(p *Packet) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	c := *p
	c.In.Data, c.Out.Data = bytes.Clone(p.In.Data), bytes.Clone(p.Out.Data)
	k.packets = append(k.packets, c)
	return nil
}

func (k *kept) Flush() error { return nil }

func (k *kept) all() []Packet {
	k.mu.Lock()
	defer k.mu.Unlock()
	return append([]Packet(nil), k.packets...)
}

// running is a capture that runs.
type running struct {
	*Capture
	f      *fixture
	cancel context.CancelFunc
	done   chan error
	ended  bool
}

// open opens a capture, and skips the test where nobody may.
func (f *fixture) open(cfg Config) *Capture {
	f.t.Helper()
	var c *Capture
	var err error
	cfg.PinPath = f.config.PinPath
	f.inside(func() error {
		c, err = Open(cfg)
		return nil
	})
	if errors.Is(err, ErrRefused) {
		f.t.Skip(err)
	}
	f.must(err)
	return c
}

// capture begins a capture; it ends with the test if stop does not end it.
func (f *fixture) capture(cfg Config, sink func(*Capture) Sink) *running {
	f.t.Helper()
	r := &running{f: f, done: make(chan error, 1)}
	r.Capture = f.open(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	s := sink(r.Capture)
	go func() { r.done <- r.Run(ctx, s) }()
	f.t.Cleanup(func() {
		r.stop()
		f.must(r.Close())
	})
	return r
}

// keep is a capture into memory.
func (f *fixture) keep(cfg Config) (*running, *kept) {
	f.t.Helper()
	k := &kept{}
	return f.capture(cfg, func(*Capture) Sink { return k }), k
}

// stop ends it, with all that was captured until now delivered.
func (r *running) stop() {
	r.f.t.Helper()
	r.cancel()
	if r.ended {
		return
	}
	r.ended = true
	r.f.must(<-r.done)
}
