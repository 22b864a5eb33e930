package deploy

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/pkg/admin"
	"github.com/pgsteer/pgsteer/pkg/flowsync"
	"github.com/pgsteer/pgsteer/pkg/lb"
)

// startLimit bounds the daemon's way from start to active. It needs half a
// second, mostly for three advertisement intervals; the rest is for a machine
// with other things to do.
const startLimit = 30 * time.Second

// TestBalancerRunsWithTheUnitsCapabilities runs pgsteerd with the first
// example and no more rights than the unit leaves it, until it is active.
func TestBalancerRunsWithTheUnitsCapabilities(t *testing.T) {
	if testing.Short() {
		t.Skip("builds and runs the daemon; not with -short")
	}
	if os.Getuid() != 0 {
		t.Skip("makes a network namespace and attaches an XDP program; only root can")
	}
	unit, err := os.ReadFile(filepath.Join("systemd", "pgsteerd.service"))
	if err != nil {
		t.Fatal(err)
	}
	sets := regexp.MustCompile(`(?m)^CapabilityBoundingSet=(.*)$`).FindAllSubmatch(unit, -1)
	if len(sets) != 1 {
		t.Fatalf("the unit has %d lines CapabilityBoundingSet, want one", len(sets))
	}
	granted := strings.Fields(string(sets[0][1]))
	want := []string{"CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_BPF", "CAP_PERFMON"}
	if diff := cmp.Diff(want, granted); diff != "" {
		t.Fatalf("capabilities of the unit (-want +got):\n%s", diff)
	}

	dir := t.TempDir()
	daemon := filepath.Join(dir, "pgsteerd")
	build := exec.Command("go", "build", "-o", daemon, "../cmd/pgsteerd")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building pgsteerd: %v\n%s", err, out)
	}
	ready := notifySocket(t, filepath.Join(dir, "notify"))

	ctx, cancel := context.WithTimeout(t.Context(), startLimit)
	defer cancel()
	args := []string{"--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"}
	for _, c := range granted {
		args[2] += ",+" + strings.ToLower(strings.TrimPrefix(c, "CAP_"))
	}
	args = append(args, daemon, "-config", privateExample(t, dir))
	cmd := exec.CommandContext(ctx, "setpriv", args...)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+filepath.Join(dir, "notify"))
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	inBalancersNamespace(t, cmd.Start)

	// Its log tells when it has become active: by then every part has started.
	var log bytes.Buffer
	active := false
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		log.WriteString(lines.Text() + "\n")
		if !active && strings.Contains(lines.Text(), "to=active") {
			active = true
			checkOrders(t, dir)
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Error(err)
			}
		}
	}
	err = cmd.Wait()
	if !active || err != nil {
		t.Fatalf("pgsteerd became active: %v, and ended with: %v\n%s", active, err, &log)
	}
	// What it sent lies in the socket; the deadline is for when it sent nothing.
	if err := ready.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	message := make([]byte, 256)
	n, err := ready.Read(message)
	if err != nil || !strings.HasPrefix(string(message[:n]), "READY=1") {
		t.Errorf("systemd was told %q, %v; want READY=1", message[:n], err)
	}
}

// checkOrders drains a pooler through the admin socket, and looks at what would
// outlive the daemon.
func checkOrders(t *testing.T, dir string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startLimit)
	defer cancel()
	c := admin.NewClient(filepath.Join(dir, "run", "admin.sock"))
	got, err := c.ChangeBackend(ctx, "postgres", "pooler2", admin.BackendChange{State: "draining"})
	if err != nil || got.Admin != lb.AdminDraining {
		t.Errorf("draining a pooler: %+v, %v", got, err)
	}
	kept, err := admin.LoadOrders(filepath.Join(dir, "lib", "orders.json"))
	if err != nil || len(kept) != 1 || kept[0].Backend != "pooler2" || kept[0].Admin != lb.AdminDraining {
		t.Errorf("kept orders: %+v, %v", kept, err)
	}
}

// notifySocket listens like systemd does for units of Type=notify.
func notifySocket(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return conn
}

// privateExample writes lb1.yaml with pins in a BPF file system of the test's,
// and its files below dir.
func privateExample(t *testing.T, dir string) string {
	t.Helper()
	example, err := os.ReadFile(filepath.Join("examples", "lb1.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	bpffs := filepath.Join(dir, "bpf")
	if err := os.Mkdir(bpffs, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("bpf", bpffs, "bpf", 0, "mode=0700"); err != nil {
		t.Fatalf("mounting a BPF file system: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(bpffs, 0); err != nil {
			t.Errorf("unmounting %s: %v", bpffs, err)
		}
	})
	key, err := flowsync.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	keyFile := filepath.Join(dir, "sync.key")
	if err := os.WriteFile(keyFile, key, 0o600); err != nil {
		t.Fatal(err)
	}
	private := string(example)
	for key, place := range map[string][2]string{
		"pin_path":   {"/sys/fs/bpf/pgsteer", filepath.Join(bpffs, "pgsteer")},
		"socket":     {"/run/pgsteer/admin.sock", filepath.Join(dir, "run", "admin.sock")},
		"state_file": {"/var/lib/pgsteer/orders.json", filepath.Join(dir, "lib", "orders.json")},
		"key_file":   {"/etc/pgsteer/sync.key", keyFile},
	} {
		before, after := key+": "+place[0], key+": "+place[1]
		if !strings.Contains(private, before) {
			t.Fatalf("lb1.yaml has no %s", before)
		}
		private = strings.Replace(private, before, after, 1)
	}
	path := filepath.Join(dir, "lb1.yaml")
	if err := os.WriteFile(path, []byte(private), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// inBalancersNamespace calls fn in a new network namespace that has the
// interface and the address of lb1, on a cable with the poolers' machine. The
// namespace lives as long as what fn started in it.
func inBalancersNamespace(t *testing.T, fn func() error) {
	t.Helper()
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	far, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := far.Close(); err != nil {
			t.Error(err)
		}
	})
	away, err := netns.New() // and enter it
	if err != nil {
		t.Fatal(err)
	}
	err = addCable(far)
	if err == nil {
		err = fn()
	}
	// A thread that cannot return must not run other goroutines: Fatal ends
	// this one while it still holds the thread, which Go then throws away.
	if err := netns.Set(home); err != nil {
		t.Fatalf("returning to the network namespace: %v", err)
	}
	runtime.UnlockOSThread()
	if err := away.Close(); err != nil {
		t.Error(err)
	}
	if err := home.Close(); err != nil {
		t.Error(err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// addCable connects this namespace with far. That the poolers' machine refuses
// connections there is enough for the daemon not to think that it is cut off.
func addCable(far netns.NsHandle) error {
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(far))}
	if err := netlink.LinkAdd(pair); err != nil {
		return err
	}
	here, err := netlink.NewHandle()
	if err != nil {
		return err
	}
	defer here.Close()
	there, err := netlink.NewHandleAt(far)
	if err != nil {
		return err
	}
	defer there.Close()
	return errors.Join(addInterface(here, lb1Addr), addInterface(there, poolerAddr))
}

func addInterface(h *netlink.Handle, own netip.Addr) error {
	addr, err := netlink.ParseAddr(own.String() + "/24")
	if err != nil {
		return err
	}
	for _, name := range []string{"lo", "eth0"} {
		link, err := h.LinkByName(name)
		if err != nil {
			return err
		}
		if name == "eth0" {
			if err := h.AddrAdd(link, addr); err != nil {
				return err
			}
		}
		if err := h.LinkSetUp(link); err != nil {
			return err
		}
	}
	return nil
}
