package vrrp

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"
)

// The fakes let whole routers run in a synctest bubble: a LAN that delivers
// after a moment, a kernel that keeps a list of addresses, a fence that keeps a
// lease.

type fakeLAN struct {
	mu    sync.Mutex
	ports map[netip.Addr]*fakePort
}

type fakePort struct {
	lan     *fakeLAN
	addr    netip.Addr
	wake    chan struct{}
	fail    error // of send
	broken  chan error
	queue   [][]byte
	dropped int
	sent    int
}

func (l *fakeLAN) plug(addr netip.Addr) *fakePort {
	p := &fakePort{lan: l, addr: addr, wake: make(chan struct{}, 1), broken: make(chan error, 1)}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ports == nil {
		l.ports = map[netip.Addr]*fakePort{}
	}
	l.ports[addr] = p
	return p
}

// inject delivers a packet now.
func (p *fakePort) inject(packets ...[]byte) {
	p.lan.mu.Lock()
	p.queue = append(p.queue, packets...)
	p.lan.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *fakePort) failSends(err error) {
	p.lan.mu.Lock()
	defer p.lan.mu.Unlock()
	p.fail = err
}

func (p *fakePort) send(payload []byte, dst netip.Addr) error {
	p.lan.mu.Lock()
	defer p.lan.mu.Unlock()
	if p.fail != nil {
		return p.fail
	}
	p.sent++
	for addr, to := range p.lan.ports {
		if addr != p.addr && (addr == dst || dst == groupOf(p.addr)) {
			packet := packetOf(p.addr, dst, 255, bytes.Clone(payload))
			time.AfterFunc(200*time.Microsecond, func() { to.inject(packet) })
		}
	}
	return nil
}

func (p *fakePort) ready() <-chan struct{} { return p.wake }

func (p *fakePort) take() ([][]byte, int, error) {
	p.lan.mu.Lock()
	defer p.lan.mu.Unlock()
	packets, dropped := p.queue, p.dropped
	p.queue, p.dropped = nil, 0
	return packets, dropped, nil
}

func (p *fakePort) serve(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-p.broken:
		return err
	}
}

type fakeKernel struct {
	mu       sync.Mutex
	have     []netip.Prefix
	addErr   error
	listErr  error
	delErr   error
	hold     chan struct{} // add waits for it, when set
	added    int
	frames   int
	announce error
}

func (k *fakeKernel) set(change func(*fakeKernel)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	change(k)
}

func (k *fakeKernel) list() ([]netip.Prefix, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.have), k.listErr
}

func (k *fakeKernel) add(p netip.Prefix) error {
	k.mu.Lock()
	hold := k.hold
	k.mu.Unlock()
	if hold != nil {
		<-hold
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.added++
	if k.addErr == nil && !slices.Contains(k.have, p) {
		k.have = append(k.have, p)
	}
	return k.addErr
}

func (k *fakeKernel) remove(a netip.Addr) (bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.delErr != nil {
		return false, k.delErr
	}
	n := len(k.have)
	k.have = slices.DeleteFunc(k.have, func(p netip.Prefix) bool { return p.Addr() == a })
	return len(k.have) < n, nil
}

func (k *fakeKernel) hardware() (net.HardwareAddr, error) {
	return net.HardwareAddr{2, 0, 0, 0, 0, 1}, nil
}

// heraldOf is the fake kernel as a herald.
type heraldOf struct{ *fakeKernel }

func (h heraldOf) name() string { return "gratuitous ARP" }

func (h heraldOf) announce(_ net.HardwareAddr, _ netip.Addr) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fakeKernel.announce != nil {
		return 0, h.fakeKernel.announce
	}
	h.frames += 2
	return 2, nil
}

type fakeFence struct {
	mu      sync.Mutex
	until   time.Time
	renewed int
	fail    error
	revoke  error
}

func (f *fakeFence) Renew(d time.Duration) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return f.fail
	}
	f.until, f.renewed = time.Now().Add(d), f.renewed+1
	return nil
}

func (f *fakeFence) Revoke() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.until = time.Time{}
	return f.revoke
}

func (f *fakeFence) holds() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return time.Now().Before(f.until)
}

// node is a router on fakes.
type node struct {
	t      *testing.T
	router *Router
	port   *fakePort
	kernel *fakeKernel
	fence  *fakeFence
	log    *lockedBuffer
	cancel context.CancelFunc
	done   chan error

	mu          sync.Mutex
	transitions []Transition
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

var errTest = errors.New("made to fail")

// newNode makes a router with the address and priority given; run starts it.
func newNode(t *testing.T, lan *fakeLAN, addr netip.Addr, priority uint8, change func(*Config)) *node {
	n := &node{t: t, port: lan.plug(addr), kernel: &fakeKernel{}, fence: &fakeFence{}, log: &lockedBuffer{}}
	c := Config{
		Name: "main", Interface: "fake0", VRID: 51, Priority: priority, Source: addr,
		Addresses: []netip.Prefix{netip.PrefixFrom(vip, 32)}, Fence: n.fence,
		Log: slog.New(slog.NewTextHandler(n.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		OnTransition: func(tr Transition) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.transitions = append(n.transitions, tr)
		},
	}
	pair := []netip.Addr{node1, node2}
	if addr.Is6() {
		pair = []netip.Addr{local1, local2}
		c.Addresses = []netip.Prefix{netip.PrefixFrom(vip6, 128)}
	}
	for _, a := range pair {
		if a != addr {
			c.Peers = append(c.Peers, a)
		}
	}
	if change != nil {
		change(&c)
	}
	c, err := c.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	epoch := time.Now()
	n.router = newRouter(c, n.port, n.kernel, heraldOf{n.kernel}, func() time.Duration { return time.Since(epoch) })
	return n
}

func (n *node) run() *node {
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel, n.done = cancel, make(chan error, 1)
	go func() { n.done <- n.router.Run(ctx) }()
	return n
}

// stop cancels the router and waits for it.
func (n *node) stop() {
	n.t.Helper()
	n.cancel()
	if err := <-n.done; err != nil {
		n.t.Errorf("Run: %v", err)
	}
}

func (n *node) addresses() []netip.Prefix {
	got, _ := n.kernel.list()
	return got
}

// owns reports whether the node is active in every respect; it must be so in
// all or none.
func (n *node) owns() bool {
	n.t.Helper()
	active := n.router.Snapshot().State == Active
	if len(n.addresses()) == 1 != active || n.fence.holds() != active {
		n.t.Errorf("active %v, addresses %v, lease %v: they must agree", active, n.addresses(), n.fence.holds())
	}
	return active
}
