package xdp

import (
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// fixture is a balancer on one end of a veth pair in a namespace of its own.
type fixture struct {
	*Balancer
	t      *testing.T
	config Config
	ns     netns.NsHandle

	closed bool
}

// inNamespace runs fn on a thread of its own inside ns. The thread is thrown
// away afterwards, so that nothing can leak out of it.
func inNamespace(t *testing.T, ns netns.NsHandle, fn func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := netns.Set(ns); err != nil {
			done <- err
			return
		}
		done <- fn()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func newNamespace(t *testing.T) netns.NsHandle {
	t.Helper()
	made := make(chan netns.NsHandle)
	failed := make(chan error)
	go func() {
		runtime.LockOSThread()
		ns, err := netns.New()
		if err != nil {
			failed <- err
			return
		}
		made <- ns
	}()
	select {
	case err := <-failed:
		t.Fatalf("making a network namespace: %v", err)
		return netns.None()
	case ns := <-made:
		t.Cleanup(func() { ns.Close() })
		return ns
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if testing.Short() || os.Getuid() != 0 {
		t.Skip("loading BPF programs needs root, and is left out of the short tests")
	}
}

// bpffs mounts a BPF file system for one test.
func bpffs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		t.Fatalf("mounting a BPF file system: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmounting: %v", err)
		}
	})
	return dir + "/pins"
}

// newHost makes a namespace with interface lan0 (192.168.1.10/24), whose other
// end is lan1, and returns a configuration for it.
func newHost(t *testing.T) (Config, netns.NsHandle) {
	t.Helper()
	needRoot(t)
	ns := newNamespace(t)
	inNamespace(t, ns, func() error {
		// The kernel's own IPv6 chatter would be counted between our packets.
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0); err != nil && !os.IsNotExist(err) {
			return err
		}
		veth := &netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: "lan0", HardwareAddr: lbMAC[:]},
			PeerName:  "lan1",
		}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("adding the veth pair: %w", err)
		}
		addr, err := netlink.ParseAddr("192.168.1.10/24")
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(veth, addr); err != nil {
			return fmt.Errorf("adding the address: %w", err)
		}
		peer, err := netlink.LinkByName("lan1")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(peer); err != nil {
			return err
		}
		return netlink.LinkSetUp(veth)
	})
	return Config{
		Interface:     "lan0",
		Mode:          ModeNative,
		PinPath:       bpffs(t),
		FlowTableSize: 4096,
	}, ns
}

// open opens a balancer inside the namespace and closes it with the test.
func open(t *testing.T, cfg Config, ns netns.NsHandle) *fixture {
	t.Helper()
	f := &fixture{t: t, config: cfg, ns: ns}
	inNamespace(t, ns, func() (err error) {
		f.Balancer, err = Open(cfg)
		return err
	})
	t.Cleanup(func() { f.must(f.Close()) })
	f.neighbours[pooler.Addr()] = poolerMAC
	return f
}

// Close may be called before the test ends, for what comes after.
func (f *fixture) Close() error {
	if f.closed {
		return nil
	}
	f.closed = true
	return f.Balancer.Close()
}

// threePoolers is the service of all tests unless they need another.
func threePoolers() lb.Service {
	s := lb.Service{Name: "postgres", Addr: vip}
	for i := range 3 {
		s.Backends = append(s.Backends, lb.Backend{
			Name: fmt.Sprintf("pooler%d", i+1), Addr: netip.AddrPortFrom(pooler.Addr(), pooler.Port()+uint16(i)),
			Weight: 1, State: lb.Up,
		})
	}
	return s
}

// newFixture is a balancer that owns the VIP and has three poolers up.
func newFixture(t *testing.T, change ...func(*Config)) *fixture {
	t.Helper()
	cfg, ns := newHost(t)
	for _, c := range change {
		c(&cfg)
	}
	f := open(t, cfg, ns)
	f.must(f.SetVIPs([]lb.VIPStats{{Addr: vip.Addr(), Router: "main", VRID: 51, Priority: 101}}))
	f.must(f.RenewLease(vip.Addr(), time.Hour))
	f.must(f.SetServices([]lb.Service{threePoolers()}))
	return f
}

// setState changes the state of one of the three poolers.
func (f *fixture) setState(name string, state lb.State) error {
	for _, b := range threePoolers().Backends {
		if b.Name == name {
			b.State = state
			return f.SetBackend("postgres", b)
		}
	}
	return f.SetBackend("postgres", lb.Backend{Name: name, State: state})
}

func (f *fixture) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// run sends one frame through the program and returns its action, what the
// frame became, and the verdict it was counted under. Every packet must be
// counted exactly once.
func (f *fixture) run(frame []byte) (action uint32, out []byte, verdict string) {
	f.t.Helper()
	before := f.verdictCounts()
	opts := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256)}
	action, err := f.progs.Balancer.Run(&opts)
	f.must(err)
	for i, v := range f.verdictCounts() {
		switch v.Count - before[i].Count {
		case 0:
		case 1:
			if verdict != "" {
				f.t.Fatalf("counted twice: %s and %s", verdict, v.Name)
			}
			verdict = v.Name
		default:
			f.t.Fatalf("%s counted %d times", v.Name, v.Count-before[i].Count)
		}
	}
	if verdict == "" {
		f.t.Fatal("left without a verdict")
	}
	return action, opts.DataOut, verdict
}

// expect sends a segment and wants it to leave under the verdict.
func (f *fixture) expect(s segment, verdict string) segment {
	f.t.Helper()
	action, out, got := f.run(s.frame())
	if got != verdict {
		f.t.Fatalf("verdict %s, want %s", got, verdict)
	}
	if action != xdpTX {
		f.t.Fatalf("action %d", action)
	}
	return decode(f.t, out)
}

const (
	xdpDrop = 1
	xdpTX   = 3
)

func (f *fixture) verdictCounts() []lb.VerdictCount {
	f.t.Helper()
	v, err := f.tables.verdictCounts()
	f.must(err)
	return v
}

func (f *fixture) backends() []lb.BackendStats {
	f.t.Helper()
	s, err := f.Stats()
	f.must(err)
	return s.Services[0].Backends
}

// active returns the active counts in the order of the backends.
func (f *fixture) active() (counts []int64) {
	f.t.Helper()
	for _, b := range f.backends() {
		counts = append(counts, b.Active)
	}
	return counts
}

// flowCount returns the entries of the flow table, both halves counted.
func (f *fixture) entries() (n int) {
	f.t.Helper()
	for _, t := range f.tables.families() {
		f.must(t.eachHalf(func(*half) bool { n++; return true }))
	}
	return n
}

// row reads the forward half of a client's flow; put writes it back.
func (f *fixture) row(from netip.AddrPort) (row flowRow[addr4]) {
	f.t.Helper()
	f.must(f.tables.four.flows.Lookup(f.tables.four.keyOf(from, vip), &row))
	return row
}

func (f *fixture) put(from netip.AddrPort, row flowRow[addr4]) {
	f.t.Helper()
	f.must(f.tables.four.flows.Put(f.tables.four.keyOf(from, vip), row))
}

// clientNumber is the n-th of many clients.
func clientNumber(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(n >> 14), byte(n >> 6)}), uint16(20000+n%64))
}

// connect runs a handshake and returns the client's last segment and the one
// that the backend got.
func (f *fixture) connect(from netip.AddrPort) (c, b segment) {
	f.t.Helper()
	c = fromClient(syn)
	c.src = from
	b = f.expect(c, "tx_new")
	f.expect(b.answer(syn|ack), "tx_reverse")
	c.flags, c.seq = ack, c.seq+1
	b = f.expect(c, "tx_forward")
	return c, b
}
