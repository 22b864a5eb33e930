package datapath

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/pkg/lb"
	"github.com/pgsteer/pgsteer/pkg/xdp"
)

// The picture: one balancer, a service, and poolers on one host.
var (
	nodeMAC   = [6]byte{0x02, 0, 192, 168, 1, 10}
	clientMAC = [6]byte{0x02, 0, 192, 168, 1, 50}
	poolerMAC = [6]byte{0x02, 0, 192, 168, 1, 5}

	service   = netip.MustParseAddrPort("192.168.1.100:5432")
	pooler    = netip.MustParseAddrPort("192.168.1.5:6432") // the first; the others' ports follow
	otherHost = netip.MustParseAddrPort("192.168.1.10:22")
)

const (
	nodeAddress = "192.168.1.10/24"

	// flowTableSize is the default of pgsteerd.
	flowTableSize = 524288
	// leaseTime is longer than any run.
	leaseTime = 24 * time.Hour
	// readyTimeout bounds the wait for the poolers' hardware address, which
	// is there from the start: it is for machines that are very busy.
	readyTimeout = 20 * time.Second
)

// node is a balancer with the product's XDP program on a network card of its
// own, and nobody but us to send it packets.
type node struct {
	balancer *xdp.Balancer
	program  *ebpf.Program // what is attached
	ns       netns.NsHandle
	dir      string // a BPF file system
}

// newNode returns a node whose service has so many poolers, all of them up.
func newNode(ctx context.Context, backends int) (n *node, err error) {
	n = &node{ns: netns.None()}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close())
		}
	}()
	if n.dir, err = os.MkdirTemp("", "pgsteer-bench-"); err != nil {
		return n, fmt.Errorf("making a directory for pins: %w", err)
	}
	if err := unix.Mount("bpf", n.dir, "bpf", 0, ""); err != nil {
		return n, fmt.Errorf("mounting a BPF file system: %w", err)
	}
	if n.ns, err = newNamespace(); err != nil {
		return n, err
	}
	if err := n.do(n.open); err != nil {
		return n, err
	}
	return n, n.serve(ctx, backends)
}

// pins is where the balancer keeps its maps.
func (n *node) pins() string { return filepath.Join(n.dir, "pins") }

// open makes the network card, attaches the balancer to it and finds the
// program. It runs in the node's namespace.
func (n *node) open() error {
	// What the kernel itself says on a link would be counted between our packets.
	err := os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("silencing the network card: %w", err)
	}
	card := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "eth0", HardwareAddr: nodeMAC[:]},
		PeerName:  "lan",
	}
	if err := netlink.LinkAdd(card); err != nil {
		return fmt.Errorf("making a network card: %w", err)
	}
	address, err := netlink.ParseAddr(nodeAddress)
	if err != nil {
		return fmt.Errorf("reading %s: %w", nodeAddress, err)
	}
	peer, err := netlink.LinkByName("lan")
	if err != nil {
		return fmt.Errorf("finding the other end: %w", err)
	}
	err = errors.Join(netlink.AddrAdd(card, address), netlink.LinkSetUp(peer), netlink.LinkSetUp(card))
	if err != nil {
		return fmt.Errorf("bringing the network card up: %w", err)
	}
	neighbour := &netlink.Neigh{
		LinkIndex: card.Attrs().Index, State: netlink.NUD_PERMANENT,
		IP: pooler.Addr().AsSlice(), HardwareAddr: net.HardwareAddr(poolerMAC[:]),
	}
	if err := netlink.NeighSet(neighbour); err != nil {
		return fmt.Errorf("saying where the poolers are: %w", err)
	}
	n.balancer, err = xdp.Open(xdp.Config{
		Interface: "eth0", Mode: xdp.ModeNative, PinPath: n.pins(), FlowTableSize: flowTableSize,
		SweepInterval: leaseTime, // the sweep would only disturb
		ResetRate:     1e9,       // it is the cost of a reset that counts
	})
	if err != nil {
		return err
	}
	attached, err := netlink.LinkByName("eth0")
	if err != nil {
		return fmt.Errorf("asking the network card for its program: %w", err)
	}
	if attached.Attrs().Xdp == nil || !attached.Attrs().Xdp.Attached {
		return errors.New("no XDP program is on the network card")
	}
	n.program, err = ebpf.NewProgramFromID(ebpf.ProgramID(attached.Attrs().Xdp.ProgId))
	if err != nil {
		return fmt.Errorf("opening the XDP program: %w", err)
	}
	return nil
}

// serve configures the service and waits until it takes connections. The
// balancer's goroutines run until then and no longer, so that nothing but the
// program is measured.
func (n *node) serve(ctx context.Context, backends int) error {
	s := lb.Service{Name: "postgres", Addr: service}
	for i := range backends {
		s.Backends = append(s.Backends, lb.Backend{
			Name: fmt.Sprintf("pooler%d", i+1), Weight: 1, State: lb.Up,
			Addr: netip.AddrPortFrom(pooler.Addr(), pooler.Port()+uint16(i)),
		})
	}
	err := n.balancer.SetVIPs([]lb.VIPStats{{Addr: service.Addr(), Router: "main", VRID: 51, Priority: 101}})
	if err != nil {
		return err
	}
	if err := n.balancer.RenewLease(service.Addr(), leaseTime); err != nil {
		return err
	}
	if err := n.balancer.SetServices([]lb.Service{s}); err != nil {
		return err
	}
	run, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- n.balancer.Run(run) }()
	err = n.awaitReady(ctx)
	stop()
	return errors.Join(err, <-ended, n.forgetFlows())
}

// awaitReady waits until a SYN goes to a pooler.
func (n *node) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyTimeout, fmt.Errorf("not so after %v", readyTimeout))
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		out, action, err := n.send(synOf(0))
		if err != nil {
			return err
		}
		if action == xdpTX && [6]byte(out) == poolerMAC {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for the balancer to forward a SYN: %w", context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// send sends one frame through the program and returns what it became.
func (n *node) send(frame []byte) ([]byte, uint32, error) {
	opts := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256)}
	action, err := n.program.Run(&opts)
	if err != nil {
		return nil, 0, fmt.Errorf("sending a packet: %w", err)
	}
	return opts.DataOut, action, nil
}

// forgetFlows empties the flow table and frees all ports.
func (n *node) forgetFlows() error {
	_, err := n.balancer.FlushFlows(service.Addr())
	return err
}

// verdicts returns how many packets were counted under each verdict.
func (n *node) verdicts() (map[string]uint64, error) {
	stats, err := n.balancer.Stats()
	if err != nil {
		return nil, err
	}
	counts := make(map[string]uint64, len(stats.Verdicts))
	for _, v := range stats.Verdicts {
		counts[v.Name] = v.Count
	}
	return counts, nil
}

// Close takes the program off and removes all that newNode has made.
func (n *node) Close() error {
	var errs []error
	if n.program != nil {
		errs = append(errs, n.program.Close())
	}
	if n.balancer != nil {
		errs = append(errs, n.balancer.Close(), xdp.Detach(n.pins()))
	}
	if n.ns.IsOpen() {
		errs = append(errs, n.ns.Close())
	}
	if n.dir != "" {
		err := unix.Unmount(n.dir, unix.MNT_DETACH)
		if errors.Is(err, unix.EINVAL) { // it was not mounted
			err = nil
		}
		errs = append(errs, err, os.RemoveAll(n.dir))
	}
	return errors.Join(errs...)
}

// do runs fn on a thread in the node's namespace. The thread is thrown away
// afterwards, so that nothing can leak out of it.
func (n *node) do(fn func() error) error {
	return onNewThread(func() error {
		if err := netns.Set(n.ns); err != nil {
			return fmt.Errorf("entering the network namespace: %w", err)
		}
		return fn()
	})
}

func newNamespace() (ns netns.NsHandle, err error) {
	ns = netns.None()
	err = onNewThread(func() error {
		if ns, err = netns.New(); err != nil {
			return fmt.Errorf("making a network namespace: %w", err)
		}
		return nil
	})
	return ns, err
}

// onNewThread runs fn on a thread that ends with it.
func onNewThread(fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		done <- fn()
	}()
	return <-done
}
