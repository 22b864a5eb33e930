package lab_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/pkg/lab"
	"github.com/pgsteer/pgsteer/pkg/lab/load"
)

// floodHosts are where the flood comes from.
var floodHosts = []string{lab.Client, lab.DB}

// flood sends SYNs from made-up sources as fast as the machine lets it beside
// its victims, while it is on. Close ends it.
type flood struct {
	on      atomic.Bool
	sent    atomic.Uint64
	failed  atomic.Pointer[error]
	done    atomic.Bool
	threads sync.WaitGroup
}

// batch is how many frames one system call sends.
const batch = 64

// mmsghdr is struct mmsghdr of socket.h.
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
	_   [4]byte
}

func openFlood(t *testing.T, l *lab.Lab, target net.HardwareAddr) *flood {
	t.Helper()
	f := new(flood)
	var sockets []floodSocket
	for _, host := range floodHosts {
		var fd int
		mac, err := lab.HardwareAddr(host)
		if err != nil {
			t.Fatal(err)
		}
		err = l.Do(host, func() (err error) {
			ifi, err := net.InterfaceByName("eth0")
			if err != nil {
				return err
			}
			// Protocol 0 receives nothing (packet(7)).
			if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
				return err
			}
			return unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: ifi.Index})
		})
		if err != nil {
			t.Fatalf("opening a raw socket on %s: %v", host, err)
		}
		t.Cleanup(func() { f.close(); unix.Close(fd) })
		sockets = append(sockets, floodSocket{fd, mac})
	}
	f.threads.Go(func() {
		if err := f.run(sockets, target); err != nil {
			f.failed.Store(&err)
		}
	})
	return f
}

// floodSocket is a raw socket on one of the hosts.
type floodSocket struct {
	fd  int
	mac net.HardwareAddr
}

// run sends from the hosts in turn, on a thread of the lowest priority that is not
// unlocked, so that it ends with its goroutine. There is only one: the kernel
// carries a frame all the way in its sender's time, whatever his priority is, and
// a flood on all CPUs would leave its victims none.
func (f *flood) run(from []floodSocket, target net.HardwareAddr) error {
	runtime.LockOSThread()
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, 19); err != nil {
		return fmt.Errorf("lowering the priority: %w", err)
	}
	frames, vectors, messages := make([][]byte, batch), make([]unix.Iovec, batch), make([]mmsghdr, batch)
	for i := range frames {
		frames[i] = slices.Concat(target, make([]byte, 6), []byte{0x08, 0x00})
		frames[i] = append(frames[i], ipv4(0, flagSYN, 0)...)
		vectors[i].Base = &frames[i][0]
		vectors[i].SetLen(len(frames[i]))
		messages[i].hdr.Iov = &vectors[i]
		messages[i].hdr.SetIovlen(1)
	}
	random := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	for turn := 0; !f.done.Load(); turn++ {
		if !f.on.Load() {
			<-time.After(time.Millisecond)
			continue
		}
		socket := from[turn%len(from)]
		for _, frame := range frames {
			copy(frame[6:], socket.mac)
			ip := frame[14:]
			// Class A networks without 0, 10 and 127, so that all may be clients.
			binary.BigEndian.PutUint32(ip[12:], uint32(11+random.IntN(100))<<24|random.Uint32()>>8)
			binary.BigEndian.PutUint16(ip[20:], uint16(1024+random.IntN(64000)))
			binary.BigEndian.PutUint32(ip[24:], random.Uint32())
			checksums(ip)
		}
		n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(socket.fd), uintptr(unsafe.Pointer(&messages[0])), batch, 0, 0, 0)
		switch {
		case errno == 0:
			f.sent.Add(uint64(n))
		case errors.Is(errno, unix.ENOBUFS), errors.Is(errno, unix.EINTR):
		default:
			return fmt.Errorf("sending: %w", errno)
		}
	}
	return nil
}

func (f *flood) close() {
	f.done.Store(true)
	f.threads.Wait()
}

// lines is what a program writes, and when.
type lines struct {
	mu    sync.Mutex
	part  string
	whole []stamped
}

type stamped struct {
	at   time.Time
	line string
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.part += string(p)
	for {
		line, rest, ok := strings.Cut(l.part, "\n")
		if !ok {
			return len(p), nil
		}
		l.part, l.whole = rest, append(l.whole, stamped{time.Now(), line})
	}
}

func (l *lines) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var b strings.Builder
	for _, s := range l.whole {
		b.WriteString(s.line + "\n")
	}
	return b.String() + l.part
}

// tps returns the means of the seconds that lie wholly in the phases without the
// flood and with it, which follow each other.
func (l *lines) tps(switched []time.Time) (calm, flooded float64) {
	var sums [2]float64
	var seconds [2]int
	for _, s := range l.whole {
		m := progressLine.FindStringSubmatch(s.line)
		if m == nil {
			continue
		}
		rate, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			continue // "nan" of a second that was none
		}
		for i := range len(switched) - 1 {
			if s.at.Add(-time.Second).After(switched[i]) && s.at.Before(switched[i+1]) {
				sums[i%2] += rate
				seconds[i%2]++
			}
		}
	}
	return sums[0] / float64(seconds[0]), sums[1] / float64(seconds[1])
}

// progressLine is what pgbench says every second.
var progressLine = regexp.MustCompile(`^progress: [0-9.]+ s, ([0-9.]+) tps`)

// testFlood: a flood of SYNs with made-up sources costs those who are connected
// time but no error, and keeps nobody out who has been there before.
func testFlood(t *testing.T, l *lab.Lab) {
	// The flood is on in every other of the phases, which begin and end in peace.
	phases, phase := 5, 5*time.Second
	if long {
		phases = 2*12 + 1
	}
	owner := active(t, l)
	quietBoth(t, l, owner)
	mac, err := lab.HardwareAddr(owner)
	if err != nil {
		t.Fatal(err)
	}
	before := verdicts(t, l, owner)
	evicted := evictions(t, l, owner)
	f := openFlood(t, l, mac)

	bench := load.Pgbench{Script: load.SelectOnly, Protocol: load.Prepared, Clients: 16, Duration: time.Duration(phases)*phase + 3*time.Second}
	cmd, err := l.Command(within(t, bench.Duration+time.Minute), lab.Client, append(bench.Args(), "-P", "1")...)
	if err != nil {
		t.Fatal(err)
	}
	stdout, stderr := new(lines), new(lines)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("pgbench wrote:\n%s%s", stdout.text(), stderr.text())
		}
	})
	connected(t, l, owner, lab.ServiceName, bench.Clients)

	var switched []time.Time
	connects, slowest := 0, time.Duration(0)
	connect := connector(t, l)
	sent, onFor := uint64(0), time.Duration(0)
	for i := range phases {
		on := i%2 == 1
		begin, already := time.Now(), f.sent.Load()
		f.on.Store(on)
		switched = append(switched, begin)
		for time.Since(begin) < phase {
			tick := time.After(200 * time.Millisecond)
			if on {
				one := time.Now()
				conn, err := connect(within(t, 10*time.Second))
				if err != nil {
					t.Fatalf("connecting during the flood, %v after its begin: %v", time.Since(begin), err)
				}
				connects, slowest = connects+1, max(slowest, time.Since(one))
				if err := conn.Close(t.Context()); err != nil {
					t.Error(err)
				}
			}
			<-tick
		}
		f.on.Store(false)
		if on {
			sent, onFor = sent+f.sent.Load()-already, onFor+time.Since(begin)
		}
	}
	switched = append(switched, time.Now())
	f.close()
	if err := f.failed.Load(); err != nil {
		t.Fatal(*err)
	}
	if err := <-ended; err != nil {
		t.Fatalf("%v\n%s%s", err, stdout.text(), stderr.text())
	}
	r, err := load.ParsePgbench(stdout.text() + stderr.text())
	if err != nil {
		t.Fatal(err)
	}
	if r.Failed != 0 || r.Aborted != 0 || r.Transactions == 0 {
		t.Errorf("of %d transactions %d failed, and %d clients aborted", r.Transactions, r.Failed, r.Aborted)
	}
	calm, flooded := stderr.tps(switched)
	after := verdicts(t, l, owner)
	gone := evictions(t, l, owner) - evicted
	moved := func(verdict string) uint64 { return after[verdict] - before[verdict] }
	t.Logf("%d SYNs in %v, %.0f a second; %.0f tps without, %.0f tps with; %d connections meanwhile, the slowest in %v",
		sent, onFor, float64(sent)/onFor.Seconds(), calm, flooded, connects, slowest)
	t.Logf("begun %d, drop_syn_total %d, drop_syn_source %d, evicted %d", moved("tx_new"), moved("drop_syn_total"), moved("drop_syn_source"), gone)
	if flooded < calm/2 {
		t.Errorf("%.0f tps with the flood are less than half of %.0f without", flooded, calm)
	}
	if connects < 5 {
		t.Errorf("only %d connections were made during the flood", connects)
	}
	for _, refusal := range []string{"tx_rst_table_full", "tx_rst_no_port", "tx_rst_full", "tx_rst_no_backend"} {
		if n := moved(refusal); n != 0 {
			t.Errorf("%d of %s", n, refusal)
		}
	}
	// More than was allowed, and more than half-open flows have room for.
	if moved("drop_syn_total") == 0 || gone == 0 {
		t.Errorf("of %d SYNs %d were dropped, and %d flows gave way: this was no flood", sent, moved("drop_syn_total"), gone)
	}
	quietBoth(t, l, owner)
	audited(t, l, owner)
}

// evictions counts the half-open flows that gave way to newer ones.
func evictions(t *testing.T, l *lab.Lab, balancer string) (n uint64) {
	t.Helper()
	backends, err := l.Backends(balancer)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range backends {
		n += b.Evicted
	}
	return n
}
