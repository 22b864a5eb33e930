package vrrp

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// The tests in real network namespaces: three hosts on a bridge, each with a
// device eth0. The namespaces have no name and vanish with the test.

var (
	clientAddr = netip.MustParseAddr("192.168.1.50")
	vipPrefix  = netip.PrefixFrom(vip, 32)

	// Of IPv6 the hosts have a global address and a link-local one, which ends
	// the same way.
	global1      = netip.MustParseAddr("fd00:1::10")
	global2      = netip.MustParseAddr("fd00:1::11")
	globalClient = netip.MustParseAddr("fd00:1::50")
)

// localOf returns the link-local address of the host with that address.
func localOf(global netip.Addr) netip.Addr {
	a := global.As16()
	copy(a[:8], []byte{0xfe, 0x80, 0, 0, 0, 0, 0, 0})
	return netip.AddrFrom16(a)
}

// within runs f on a thread that is in the namespace.
func within(t testing.TB, ns netns.NsHandle, f func()) {
	t.Helper()
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		t.Fatalf("getting the present namespace: %v", err)
	}
	defer home.Close()
	if err := netns.Set(ns); err != nil {
		runtime.UnlockOSThread()
		t.Fatalf("entering a namespace: %v", err)
	}
	defer func() {
		// A thread that cannot go home stays locked, and so dies with the
		// goroutine instead of serving others.
		if err := netns.Set(home); err != nil {
			t.Fatalf("leaving a namespace: %v", err)
		}
		runtime.UnlockOSThread()
	}()
	f()
}

func newNamespace(t *testing.T) netns.NsHandle {
	t.Helper()
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	ns, err := netns.New() // enters it
	if err := netns.Set(home); err != nil {
		t.Fatalf("leaving a namespace: %v", err)
	}
	home.Close()
	runtime.UnlockOSThread()
	if err != nil {
		t.Fatalf("making a namespace: %v", err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// host is one namespace on the LAN.
type host struct {
	t    *testing.T
	ns   netns.NsHandle
	addr netip.Addr
	port netlink.Link // the bridge's end of its cable
	lan  *netlink.Handle
	nl   *netlink.Handle
	eth0 netlink.Link
}

// newLAN makes hosts with these addresses on one bridge, or skips the test.
func newLAN(t *testing.T, addrs ...netip.Addr) []*host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for network namespaces and raw sockets")
	}
	if testing.Short() {
		t.Skip("takes some seconds, which -short does not leave")
	}
	lanNS := newNamespace(t)
	lan := handleIn(t, lanNS)
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "ha-lan"}}
	must(t, "adding a bridge", lan.LinkAdd(bridge))
	must(t, "raising the bridge", lan.LinkSetUp(bridge))
	var hosts []*host
	for i, addr := range addrs {
		h := &host{t: t, ns: newNamespace(t), addr: addr, lan: lan}
		h.nl = handleIn(t, h.ns)
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprintf("ha-port%d", i)}, PeerName: fmt.Sprintf("ha-host%d", i)}
		must(t, "adding a cable", lan.LinkAdd(veth))
		peer, err := lan.LinkByName(veth.PeerName)
		must(t, "finding its other end", err)
		must(t, "moving it", lan.LinkSetNsFd(peer, int(h.ns)))
		h.port, err = lan.LinkByName(veth.Name)
		must(t, "finding a port", err)
		must(t, "plugging a port", lan.LinkSetMaster(h.port, bridge))
		must(t, "raising a port", lan.LinkSetUp(h.port))
		h.eth0, err = h.nl.LinkByName(veth.PeerName)
		must(t, "finding eth0", err)
		must(t, "renaming eth0", h.nl.LinkSetName(h.eth0, "eth0"))
		own := []netlink.Addr{{IPNet: toIPNet(netip.PrefixFrom(addr, 24))}}
		if addr.Is6() {
			own = []netlink.Addr{
				{IPNet: toIPNet(netip.PrefixFrom(addr, 64)), Flags: unix.IFA_F_NODAD},
				{IPNet: toIPNet(netip.PrefixFrom(localOf(addr), 64)), Flags: unix.IFA_F_NODAD},
			}
			// No link-local address but the one above.
			within(t, h.ns, func() {
				must(t, "making eth0 generate no address", os.WriteFile("/proc/sys/net/ipv6/conf/eth0/addr_gen_mode", []byte("1"), 0))
			})
		}
		must(t, "raising eth0", h.nl.LinkSetUp(h.eth0))
		for _, a := range own {
			must(t, "addressing eth0", h.nl.AddrAdd(h.eth0, &a))
		}
		h.eth0, err = h.nl.LinkByName("eth0")
		must(t, "finding eth0 again", err)
		lo, err := h.nl.LinkByName("lo")
		must(t, "finding lo", err)
		must(t, "raising lo", h.nl.LinkSetUp(lo))
		hosts = append(hosts, h)
	}
	return hosts
}

func must(t testing.TB, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func handleIn(t *testing.T, ns netns.NsHandle) *netlink.Handle {
	t.Helper()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	must(t, "opening rtnetlink in a namespace", err)
	t.Cleanup(h.Close)
	return h
}

// eventually waits until f is true, and fails the test after the time given.
func eventually(t testing.TB, limit time.Duration, what string, f func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	ticker := time.NewTicker(2 * time.Millisecond)
	defer ticker.Stop()
	for !f() {
		if time.Since(began) > limit {
			t.Fatalf("after %v still not: %s", limit, what)
		}
		<-ticker.C
	}
	return time.Since(began)
}

// family returns the host's family, the virtual address of it, and the network
// of its UDP.
func (h *host) family() (int, netip.Prefix, string) {
	if h.addr.Is6() {
		return netlink.FAMILY_V6, netip.PrefixFrom(vip6, 128), "udp6"
	}
	return netlink.FAMILY_V4, vipPrefix, "udp4"
}

// hasVIP reports whether the virtual address is on the host's eth0.
func (h *host) hasVIP() bool {
	h.t.Helper()
	family, prefix, _ := h.family()
	addrs, err := h.nl.AddrList(h.eth0, family)
	must(h.t, "listing addresses", err)
	return slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IPNet.String() == prefix.String() })
}

// connect makes the host's kernel resolve the virtual address.
func (h *host) connect() {
	h.t.Helper()
	_, prefix, network := h.family()
	within(h.t, h.ns, func() {
		c, err := net.Dial(network, netip.AddrPortFrom(prefix.Addr(), 9).String())
		must(h.t, "opening a UDP socket", err)
		defer c.Close()
		_, err = c.Write([]byte("x"))
		must(h.t, "sending to the virtual address", err)
	})
}

// neighbour returns the hardware address that the host has for the virtual one.
func (h *host) neighbour() string {
	h.t.Helper()
	family, prefix, _ := h.family()
	neighs, err := h.nl.NeighList(h.eth0.Attrs().Index, family)
	must(h.t, "listing neighbours", err)
	for _, n := range neighs {
		if n.IP.String() == prefix.Addr().String() {
			return n.HardwareAddr.String()
		}
	}
	return ""
}

func (h *host) mac() string { return h.eth0.Attrs().HardwareAddr.String() }

// config is that of a router on this host, with peer as its peer, or multicast.
func (h *host) config(priority uint8, peers ...netip.Addr) Config {
	_, prefix, _ := h.family()
	return Config{
		Name: "main", Interface: "eth0", VRID: 51, Priority: priority, AdvertInterval: 100 * ms,
		Addresses: []netip.Prefix{prefix}, Source: h.addr, Peers: peers,
		Log: slog.New(slog.NewTextHandler(h.t.Output(), nil)),
	}
}

// running is a router in this process.
type running struct {
	*Router
	stop func()
}

// route opens and runs a router on the host; it is stopped with the test at
// the latest.
func (h *host) route(c Config) *running {
	h.t.Helper()
	var r *Router
	var err error
	within(h.t, h.ns, func() { r, err = Open(c) })
	must(h.t, "opening a router", err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	stopped := false
	stop := func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			h.t.Errorf("Run: %v", err)
		}
		if err := r.Close(); err != nil {
			h.t.Errorf("Close: %v", err)
		}
	}
	h.t.Cleanup(stop)
	return &running{Router: r, stop: stop}
}

// nodeEnv makes this test binary a node of its own, so that it can be killed.
const nodeEnv = "VRRP_TEST_NODE"

type nodeConfig struct {
	Priority     uint8
	Interval     time.Duration // of advertisements; 0 is the default
	Address      netip.Prefix
	Source, Peer netip.Addr
}

// hurry has this process's threads, and those that they make, go before others,
// as the daemon's do (deploy/systemd): a lease is over in 300 ms, and a test
// machine is busy. Who is not root has no such tests.
func hurry() {
	const nice = -15
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return
	}
	for _, t := range threads {
		if id, err := strconv.Atoi(t.Name()); err == nil {
			_ = unix.Setpriority(unix.PRIO_PROCESS, id, nice)
		}
	}
}

func TestMain(m *testing.M) {
	hurry()
	if config := os.Getenv(nodeEnv); config != "" {
		if err := runNode(config); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func runNode(config string) error {
	var c nodeConfig
	if err := json.Unmarshal([]byte(config), &c); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	r, err := Open(Config{
		Name: "process", Interface: "eth0", VRID: 51, Priority: c.Priority, AdvertInterval: c.Interval,
		Addresses: []netip.Prefix{c.Address}, Source: c.Source, Peers: []netip.Addr{c.Peer},
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return err
	}
	defer r.Close()
	return r.Run(ctx)
}

// start starts a command on the host, which is killed with the test.
func (h *host) start(cmd *exec.Cmd) *exec.Cmd {
	h.t.Helper()
	cmd.Stdout, cmd.Stderr = h.t.Output(), h.t.Output()
	var err error
	within(h.t, h.ns, func() { err = cmd.Start() })
	must(h.t, "starting "+cmd.Path, err)
	h.t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill() // it may have ended by now
			_ = cmd.Wait()         // its status is of no interest
		}
	})
	return cmd
}

// process runs a router on the host in a process of its own, with an interval of
// advertisements or the default, 0.
func (h *host) process(priority uint8, interval time.Duration, peer netip.Addr) *exec.Cmd {
	h.t.Helper()
	_, prefix, _ := h.family()
	config, err := json.Marshal(nodeConfig{Priority: priority, Interval: interval, Address: prefix, Source: h.addr, Peer: peer})
	must(h.t, "encoding a node's configuration", err)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), nodeEnv+"="+string(config))
	return h.start(cmd)
}
