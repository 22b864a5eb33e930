package flowsync

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// testKey returns a new key, and the file that it is in.
func testKey(t testing.TB) (*Key, string) {
	t.Helper()
	text, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "sync.key")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	k, err := LoadKey(path)
	if err != nil {
		t.Fatal(err)
	}
	return k, path
}

var testNets atomic.Int32

// testAddrs returns the addresses of two nodes on the loopback interface, which
// no other test has; the first is the lower one.
func testAddrs(t testing.TB) (a, b netip.AddrPort) {
	t.Helper()
	n := testNets.Add(1)
	host := func(last byte) netip.Addr { return netip.AddrFrom4([4]byte{127, byte(77 + n>>8), byte(n), last}) }
	l, err := net.Listen("tcp", netip.AddrPortFrom(host(2), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	b = l.Addr().(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(host(1), b.Port()), b
}

// testConfigs returns the configurations of two nodes. Nobody is found dead
// because the machine is busy.
func testConfigs(t testing.TB, a, b *memTable) (Config, Config) {
	t.Helper()
	key, _ := testKey(t)
	at, bt := testAddrs(t)
	base := Config{Key: key, Services: testServices(2), Heartbeat: 20 * time.Millisecond, Missed: 1000, Log: testLog(t)}
	ca, cb := base, base
	ca.Node, ca.Listen, ca.Peer, ca.Table, ca.State = "lb1", at, bt, a, a.state
	cb.Node, cb.Listen, cb.Peer, cb.Table, cb.State = "lb2", bt, at, b, b.state
	return ca, cb
}

func testLog(t testing.TB) *slog.Logger {
	if testing.Verbose() {
		return slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	return nil
}

// start opens and runs a link. The returned function ends it, and is called at
// the end of the test anyway.
func start(t testing.TB, c Config) (l *Link, stop func()) {
	t.Helper()
	l, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return l, stop
}

// eventually waits until something is so.
func eventually(t testing.TB, what string, so func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(30 * time.Second); !so(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("not in 30 s: %s", what)
		}
	}
}

// synced waits until both nodes have each other's flows and know it.
func synced(t testing.TB, links ...*Link) {
	t.Helper()
	for _, l := range links {
		eventually(t, l.config.Node+" is synced both ways", func() bool {
			s := l.Status()
			return s.Synced && s.PeerSynced
		})
	}
}

// count returns the counter of a reason.
func count(counts []Count, reason fmt.Stringer) uint64 {
	for _, c := range counts {
		if c.Reason == reason.String() {
			return c.Count
		}
	}
	return 0
}
