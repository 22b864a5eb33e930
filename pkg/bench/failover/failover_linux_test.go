package failover

import (
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/pkg/bench"
)

func needRoot(t *testing.T, why string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can " + why)
	}
}

func TestDropVRRP(t *testing.T) {
	needRoot(t, "load programs into the kernel")
	var m mute
	prog, err := m.load()
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	frame := func(etherType uint16, at int, protocol byte) []byte {
		b := make([]byte, 60)
		binary.BigEndian.PutUint16(b[12:], etherType)
		b[14+at] = protocol
		return b
	}
	next := tcxNext // a variable, since a constant cannot be converted so
	for name, tt := range map[string]struct {
		frame []byte
		want  uint32
	}{
		"IPv4 VRRP": {frame(unix.ETH_P_IP, 9, 112), tcxDrop},
		"IPv6 VRRP": {frame(unix.ETH_P_IPV6, 6, 112), tcxDrop},
		"IPv4 TCP":  {frame(unix.ETH_P_IP, 9, unix.IPPROTO_TCP), uint32(next)},
		"IPv6 TCP":  {frame(unix.ETH_P_IPV6, 6, unix.IPPROTO_TCP), uint32(next)},
		"ARP":       {frame(unix.ETH_P_ARP, 9, 112), uint32(next)},
	} {
		for on, want := range map[uint32]uint32{0: uint32(next), 1: tt.want} {
			if err := m.set(on); err != nil {
				t.Fatal(err)
			}
			if got, err := prog.Run(&ebpf.RunOptions{Data: tt.frame}); err != nil || got != want {
				t.Errorf("%s, switched to %d: verdict %d, want %d: %v", name, on, int32(got), int32(want), err)
			}
		}
	}
}

func TestSockets(t *testing.T) {
	before, err := sockets(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fds[0])
	defer syscall.Close(fds[1])
	if after, err := sockets(os.Getpid()); err != nil || after != before+2 {
		t.Errorf("%d sockets, and %d after two more: %v", before, after, err)
	}
	if _, err := sockets(1 << 30); err == nil {
		t.Error("a process that does not exist has sockets")
	}
}

func TestWatch(t *testing.T) {
	w := startWatch(func(int) (bool, error) { return true, nil })
	time.Sleep(50 * time.Millisecond)
	if both, err := w.end(); err != nil || both <= 0 || both > 10*time.Second {
		t.Errorf("%v, %v", both, err)
	}
}

// TestSuite has each stack hand over once. Which of the two is faster is not
// asked.
func TestSuite(t *testing.T) {
	needRoot(t, "raise a lab")
	if testing.Short() {
		t.Skip("a lab takes its time, which -short does not leave")
	}
	bin := t.TempDir()
	build := exec.Command("go", "build", "-buildvcs=false", "-o", bin+"/", "./cmd/pgsteerd", "./cmd/pgsteer-pooler")
	build.Dir = filepath.Join("..", "..", "..")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the programs: %v\n%s", err, out)
	}
	o := Options{Rounds: 1, Idle: 6, Clients: 4, BinDir: bin}
	for _, s := range Suites(o) {
		if s.Names[0] != gapMedian+"resign" {
			continue
		}
		var got []bench.Result
		if err := s.Run(t.Context(), s.Names, t.Logf, func(r bench.Result) { got = append(got, r) }); err != nil {
			t.Fatal(err)
		}
		if len(got) != 3 {
			t.Fatalf("%d rows", len(got))
		}
		for _, r := range got[:2] {
			// Attempts begin 10 ms apart, and no stack hands over for long.
			if r.Runs != 1 || r.Value < 1 || r.Value > 10_000 || r.PeerValue < 1 || r.PeerValue > 10_000 {
				t.Errorf("%+v", r)
			}
		}
		if r := got[2]; r.Value < 0 || r.Value > 10 || r.PeerValue < 0 || r.PeerValue > 10 {
			t.Errorf("%+v", r)
		}
	}
}
