package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/pkg/admin"
	"github.com/pgsteer/pgsteer/pkg/flowsync"
	"github.com/pgsteer/pgsteer/pkg/vrrp"
	"github.com/pgsteer/pgsteer/pkg/xdp"
)

// daemonEnv makes this test binary the daemon, so that it can be killed.
const daemonEnv = "PGSTEERD_TEST_CONFIG"

func TestMain(m *testing.M) {
	if config := os.Getenv(daemonEnv); config != "" {
		os.Exit(run([]string{"-config", config}, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// A village is four hosts on one LAN: lb1, lb2, a backend that says everything
// back, and a client. It has no PostgreSQL, so that it fits into a VM that
// boots a kernel and little else.
type village struct {
	t   *testing.T
	dir string
	lan *netlink.Handle
	ns  map[string]netns.NsHandle
}

var villagers = map[string]string{"lb1": "192.168.1.10", "lb2": "192.168.1.11", "backend": "192.168.1.5", "client": "192.168.1.50"}

const villageVIP = "192.168.1.100:5432"

func newVillage(t *testing.T) *village {
	t.Helper()
	if testing.Short() || os.Getuid() != 0 {
		t.Skip("needs root for network namespaces and XDP, and some seconds")
	}
	v := &village{t: t, dir: t.TempDir(), ns: map[string]netns.NsHandle{}}
	v.must("making a directory for pins", os.Mkdir(filepath.Join(v.dir, "bpf"), 0o700))
	v.must("mounting a BPF file system", unix.Mount("bpf", filepath.Join(v.dir, "bpf"), "bpf", 0, ""))
	t.Cleanup(func() { v.must("unmounting the BPF file system", unix.Unmount(filepath.Join(v.dir, "bpf"), 0)) })
	for _, name := range []string{"lan", "lb1", "lb2", "backend", "client"} {
		v.ns[name] = v.newNamespace()
	}
	v.lan = v.handle("lan")
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "village"}}
	v.must("adding a bridge", v.lan.LinkAdd(bridge))
	v.must("raising the bridge", v.lan.LinkSetUp(bridge))
	for name, addr := range villagers {
		v.settle(bridge, name, addr)
	}
	return v
}

func (v *village) must(what string, err error) {
	v.t.Helper()
	if err != nil {
		v.t.Fatalf("%s: %v", what, err)
	}
}

// newNamespace makes a network namespace that lives as long as the test.
func (v *village) newNamespace() (ns netns.NsHandle) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := netns.Get()
	v.must("finding the own namespace", err)
	defer home.Close()
	ns, err = netns.New()
	v.must("making a namespace", err)
	v.t.Cleanup(func() { ns.Close() })
	v.must("going home", netns.Set(home))
	return ns
}

func (v *village) handle(host string) *netlink.Handle {
	h, err := netlink.NewHandleAt(v.ns[host], unix.NETLINK_ROUTE)
	v.must("opening rtnetlink", err)
	v.t.Cleanup(h.Close)
	return h
}

// on runs f on a thread that is in the host's namespace.
func (v *village) on(host string, f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := netns.Get()
	if err != nil {
		return err
	}
	defer home.Close()
	if err := netns.Set(v.ns[host]); err != nil {
		return err
	}
	return errors.Join(f(), netns.Set(home))
}

// settle gives a host its network card.
func (v *village) settle(bridge netlink.Link, name, addr string) {
	port := "port-" + name
	cable := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: port, MasterIndex: bridge.Attrs().Index}, PeerName: "eth0", PeerNamespace: netlink.NsFd(v.ns[name])}
	v.must("laying a cable", v.lan.LinkAdd(cable))
	link, err := v.lan.LinkByName(port)
	v.must("finding a port", err)
	if strings.HasPrefix(name, "lb") {
		// What makes a virtual cable like a real one: docs/datapath.md.
		v.must("completing checksums", v.on("lan", func() error {
			return errors.Join(transmitChecksumOff(port), xdp.AttachPass(link.Attrs().Index))
		}))
	}
	v.must("raising a port", v.lan.LinkSetUp(link))
	h := v.handle(name)
	for _, device := range []string{"lo", "eth0"} {
		l, err := h.LinkByName(device)
		v.must("finding "+device, err)
		v.must("raising "+device, h.LinkSetUp(l))
		if device == "eth0" {
			a, err := netlink.ParseAddr(addr + "/24")
			v.must("reading an address", err)
			v.must("addressing eth0", h.AddrAdd(l, a))
		}
	}
}

// transmitChecksumOff is `ethtool -K NAME tx off`.
func transmitChecksumOff(device string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	value := struct{ cmd, data uint32 }{cmd: unix.ETHTOOL_STXCSUM}
	var request struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	copy(request.name[:], device)
	request.data = unsafe.Pointer(&value)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return errno
	}
	return nil
}

// serveEcho has the backend say everything back.
func (v *village) serveEcho() (stop func()) {
	var l net.Listener
	v.must("listening", v.on("backend", func() (err error) {
		l, err = net.Listen("tcp", villagers["backend"]+":6432")
		return err
	}))
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c) // until either end has had enough
			}()
		}
	})
	stop = sync.OnceFunc(func() {
		l.Close()
		serving.Wait()
	})
	v.t.Cleanup(stop)
	return stop
}

// A balancerProcess is a daemon on its host.
type balancerProcess struct {
	name  string
	cmd   *exec.Cmd
	admin *admin.Client
}

// balance starts the daemon of a host.
func (v *village) balance(name string, priority int, key string, more ...string) *balancerProcess {
	v.t.Helper()
	other := map[string]string{"lb1": "lb2", "lb2": "lb1"}[name]
	file := func(suffix string) string { return filepath.Join(v.dir, name+suffix) }
	text := fmt.Sprintf(`node: %s
interface: eth0
xdp: {mode: native, pin_path: %s/bpf/%s, flow_table_size: 4096, half_open_flows: 1024}
services:
  - name: echo
    address: %s
    check: {type: tcp, interval: 500ms}
    backends:
      - {name: one, address: "%s:6432"}
virtual_routers:
  - {name: main, vrid: 51, priority: %d, addresses: [192.168.1.100], source: %s, peers: [%s]}
sync: {listen: "%s:5480", peer: "%s:5480", key_file: %s}
stats: {listen: "127.0.0.1:8404"}
admin: {socket: %s, state_file: %s}
`, name, v.dir, name, villageVIP, villagers["backend"], priority, villagers[name], villagers[other], villagers[name], villagers[other], key,
		file(".sock"), file(".orders")) + strings.Join(more, "")
	v.must("writing a configuration", os.WriteFile(file(".yaml"), []byte(text), 0o600))
	log, err := os.OpenFile(file(".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	v.must("opening a log", err)
	defer log.Close()
	b := &balancerProcess{name: name, cmd: exec.Command(os.Args[0]), admin: admin.NewClient(file(".sock"))}
	b.cmd.Env = append(os.Environ(), daemonEnv+"="+file(".yaml"))
	b.cmd.Stdout, b.cmd.Stderr = log, log
	v.must("starting "+name, v.on(name, b.cmd.Start))
	v.t.Cleanup(func() {
		b.end(syscall.SIGKILL)
		if text, err := os.ReadFile(file(".log")); err == nil && v.t.Failed() {
			v.t.Logf("%s says:\n%s", name, text)
		}
	})
	return b
}

// signal sends a signal, also to a process that has ended.
func (b *balancerProcess) signal(s syscall.Signal) { _ = b.cmd.Process.Signal(s) }

// end sends a signal, and waits until the process is gone.
func (b *balancerProcess) end(s syscall.Signal) {
	if b.cmd.ProcessState == nil {
		b.signal(s)
		_ = b.cmd.Wait() // its status is the signal's
	}
}

// is reports whether the daemon's virtual router has that state.
func (b *balancerProcess) is(want vrrp.State) func() bool {
	return func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		all, err := b.admin.Routers(ctx)
		return err == nil && len(all) == 1 && all[0].State == want
	}
}

// synced reports whether the daemon has all connections of the other node.
func (b *balancerProcess) synced() bool {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	s, err := b.admin.Sync(ctx)
	return err == nil && s.Connected && s.Synced && s.PeerSynced
}

// bound is how long anything may take: a VM without hardware support is slow.
const bound = 60 * time.Second

func (v *village) eventually(what string, f func() bool) {
	v.t.Helper()
	for began := time.Now(); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Since(began) > bound {
			v.t.Fatalf("after %v still not: %s", bound, what)
		}
	}
}

// A conversation says something every few milliseconds and hears it again.
type conversation struct {
	c     net.Conn
	lines *bufio.Reader
	count int
	gap   time.Duration // the longest time between two answers
	last  time.Time
}

func (v *village) dial() (*conversation, error) {
	var c net.Conn
	err := v.on("client", func() (err error) {
		d := net.Dialer{Timeout: bound}
		c, err = d.Dial("tcp", villageVIP)
		return err
	})
	if err != nil {
		return nil, err
	}
	v.t.Cleanup(func() { c.Close() })
	return &conversation{c: c, lines: bufio.NewReader(c), last: time.Now()}, nil
}

// turn says one line, and hears it.
func (c *conversation) turn() error {
	c.count++
	line := fmt.Sprintf("line %d\n", c.count)
	if err := c.c.SetDeadline(time.Now().Add(bound)); err != nil {
		return err
	}
	if _, err := io.WriteString(c.c, line); err != nil {
		return err
	}
	got, err := c.lines.ReadString('\n')
	if err == nil && got != line {
		err = fmt.Errorf("heard %q, not %q", got, line)
	}
	now := time.Now()
	c.gap, c.last = max(c.gap, now.Sub(c.last)), now
	return err
}

// during talks until what is awaited has come, and then some lines more.
func (v *village) during(c *conversation, what string, done func() bool) time.Duration {
	v.t.Helper()
	c.gap, c.last = 0, time.Now()
	after := 0
	for began := time.Now(); after < 20; time.Sleep(5 * time.Millisecond) {
		v.must("talking over a connection from before "+what, c.turn())
		if after > 0 || done() {
			after++
		} else if time.Since(began) > bound {
			v.t.Fatalf("after %v still not: %s", bound, what)
		}
	}
	v.t.Logf("%s: the longest gap was %v", what, c.gap.Round(time.Millisecond))
	return c.gap
}

// TestFailover moves the address by a crash, by a return with a planned move,
// and by the end of a daemon, over one connection, which goes on.
func TestFailover(t *testing.T) {
	v := newVillage(t)
	key := filepath.Join(v.dir, "key")
	text, err := flowsync.GenerateKey()
	v.must("generating a key", err)
	v.must("writing the key", os.WriteFile(key, text, 0o600))
	v.serveEcho()
	one := v.balance("lb1", 101, key)
	v.eventually("lb1 is active", one.is(vrrp.Active))
	two := v.balance("lb2", 100, key)
	v.eventually("both have all connections", func() bool { return one.synced() && two.synced() })

	var c *conversation
	v.eventually("the service answers", func() bool {
		c, err = v.dial()
		return err == nil && c.turn() == nil
	})
	// What was opened within the replication's delay before a crash may be lost.
	v.eventually("lb2 knows the connection", func() bool {
		s, err := two.admin.Sync(t.Context())
		return err == nil && s.Received.Stored > 0
	})
	gap := v.during(c, "a crash", func() bool {
		one.signal(syscall.SIGKILL)
		return two.is(vrrp.Active)()
	})
	if gap > 20*time.Second {
		t.Errorf("a crash cost %v", gap)
	}
	if _, err := v.dial(); err != nil {
		t.Errorf("a new connection after a crash: %v", err)
	}

	one.end(syscall.SIGKILL)
	one = v.balance("lb1", 101, key)
	v.during(c, "the return", func() bool { return one.synced() && two.synced() && one.is(vrrp.Backup)() })
	gap = v.during(c, "a planned move", func() bool {
		if one.is(vrrp.Active)() {
			return true
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := two.admin.Resign(ctx, "main", admin.Move{})
		return err == nil && one.is(vrrp.Active)()
	})
	if gap > 20*time.Second {
		t.Errorf("a planned move cost %v", gap)
	}
	v.during(c, "the end of a daemon", func() bool {
		one.signal(syscall.SIGTERM)
		return two.is(vrrp.Active)()
	})
	ended := time.Now()
	one.end(syscall.SIGTERM)
	// What the other node had to be told was next to nothing; that it waited for
	// something that did not come is logged.
	text, err = os.ReadFile(filepath.Join(v.dir, "lb1.log"))
	if err != nil || strings.Contains(string(text), "connections may be lost") {
		t.Errorf("the daemon ended %v later, and not in order: %v", time.Since(ended).Round(time.Millisecond), err)
	}
	if all, err := two.admin.Routers(t.Context()); err != nil || len(all) != 1 || len(all[0].PeerHistory) == 0 {
		t.Errorf("lb2 knows nothing of lb1's moves: %+v, %v", all, err)
	}
	if a := netip.MustParseAddrPort(villageVIP); c.c.RemoteAddr().String() != a.String() {
		t.Errorf("talking to %v", c.c.RemoteAddr())
	}
}
