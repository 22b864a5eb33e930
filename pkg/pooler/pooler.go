package pooler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Pooler is a transaction pooler.
type Pooler struct {
	inForce   atomic.Pointer[settings] // by conf
	reloading sync.Mutex
	log       *slog.Logger
	loop      *loop
	listeners []net.Listener
	local     *localListener // nil: none

	gate        gate
	ids         atomic.Uint64 // given to connections
	consoles    consoles
	succession  succession
	accepting   gate
	forwarding  forwarding
	hosts       hostBook
	addresses   *addressBook
	refreshing  bool            // names are being looked up; the loop's
	refreshedAt time.Duration   // the loop's
	late        context.Context // ends when the loop has ended
	lateEnd     context.CancelFunc
	// handshakes holds an entry for each handshake that computes.
	handshakes chan struct{}
	// logins holds an entry for each authentication that computes.
	logins chan struct{}
	auths  authBook

	clients atomic.Int64 // connected
	parting atomic.Int64 // goroutines that wait for a client's close
	early   earlyRefusals
	wg      sync.WaitGroup // goroutines beside the loop
	ctx     context.Context
	cancel  context.CancelFunc
	stopAt  time.Time // when transactions have had their time; the loop's
	closing sync.Once

	done     chan struct{} // closed at the end of Run
	lastLook Snapshot      // valid then
}

// earlyRefusals counts the clients turned away before they reach the machine.
type earlyRefusals [numRefusals]atomic.Uint64

// Open checks the configuration and opens the listening sockets. Nothing is
// accepted before Run; the caller must call Close.
func Open(config Config, log *slog.Logger) (_ *Pooler, err error) {
	s, err := newSettings(config, nil)
	if err != nil {
		return nil, err
	}
	p := &Pooler{
		log: log, done: make(chan struct{}), auths: newAuthBook(),
		handshakes: make(chan struct{}, runtime.GOMAXPROCS(0)), logins: make(chan struct{}, runtime.GOMAXPROCS(0)),
	}
	p.inForce.Store(s)
	p.addresses = newAddressBook(p.addressesChanged)
	if config.lookup != nil {
		p.addresses.lookup = config.lookup
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.late, p.lateEnd = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	if p.loop, err = openLoop(log); err != nil {
		return nil, fmt.Errorf("opening event loop: %w", err)
	}
	p.loop.m = newMachine(s.limits, p, log)
	p.loop.onTick = p.tick
	p.loop.onDrop = p.dropped
	if err := p.succeed(); err != nil {
		return nil, fmt.Errorf("taking over: %w", err)
	}
	for _, addr := range config.Listen {
		ln, err := p.listen(addr)
		if err != nil {
			return nil, fmt.Errorf("opening listener: %w", err)
		}
		p.listeners = append(p.listeners, ln)
	}
	if err := p.openLocal(); err != nil {
		return nil, err
	}
	if err := p.openControl(); err != nil {
		return nil, err
	}
	if o := p.succession.offer; o != nil {
		o.closeUnused()
	}
	return p, nil
}

func (p *Pooler) listen(addr string) (net.Listener, error) {
	lc := net.ListenConfig{KeepAlive: -1} // serve sets it
	lc.SetMultipathTCP(false)             // on by default since Go 1.24, and not wanted here
	lc.Control = func(network, address string, rc syscall.RawConn) (err error) {
		err = p.conf().TCP.listenControl(network, address, rc)
		if p.conf().ReusePort {
			err = errors.Join(err, setReusePort(network, address, rc))
		}
		if len(p.conf().TrustedBalancers) > 0 {
			err = errors.Join(err, setSaveSYN(network, address, rc))
		}
		return err
	}
	ln, err := p.inheritedListener(addr)
	if err == nil && ln == nil {
		ln, err = lc.Listen(context.Background(), "tcp", addr)
	} else if err == nil {
		err = p.setUp(ln, lc.Control)
	}
	if err != nil {
		return nil, err
	}
	if n := p.conf().Backlog; n > 0 {
		if err := setBacklog(ln.(syscall.Conn), n); err != nil {
			return nil, errors.Join(fmt.Errorf("setting backlog: %w", err), ln.Close())
		}
	}
	return ln, nil
}

// Addrs returns the addresses that the pooler listens at, in the order of
// Config.Listen.
func (p *Pooler) Addrs() []net.Addr {
	addrs := make([]net.Addr, len(p.listeners))
	for i, ln := range p.listeners {
		addrs[i] = ln.Addr()
	}
	return addrs
}

// Run accepts clients until ctx ends. Then it accepts no more, ends the clients
// that are not in a transaction, waits up to Config.ShutdownTimeout for the
// others to end theirs, and returns nil. Close cuts that short.
func (p *Pooler) Run(ctx context.Context) error {
	var accepting sync.WaitGroup
	for _, ln := range p.listeners {
		accepting.Go(func() { p.accept(ln) })
	}
	if p.local != nil {
		accepting.Go(func() { p.accept(p.local) })
	}
	if p.succession.ln != nil {
		p.succession.wg.Go(p.serveControl)
	}
	if o := p.takeOffer(); o != nil {
		p.succession.wg.Go(func() { p.inherit(o) })
	}
	p.loop.post(p.prefill)
	release := context.AfterFunc(ctx, p.stop)
	defer release()
	err := p.loop.run()
	p.sayGoodbye()
	p.cancel()
	p.lateEnd()
	p.closeListeners()
	p.loop.deliver() // the last messages: nobody may be left behind in them
	p.loop.m.abandon()
	p.loop.m.flush()
	p.loop.closePartings(0)
	accepting.Wait()
	p.wg.Wait()
	p.endSuccession()
	p.lastLook = p.loop.m.snapshot()
	close(p.done)
	return err
}

// stop begins the end.
func (p *Pooler) stop() { p.stopAfter(p.conf().ShutdownTimeout) }

// stopAfter begins it, with so much time for transactions.
func (p *Pooler) stopAfter(limit time.Duration) {
	p.closeListeners()
	p.cancel() // logins under way
	p.loop.post(func() {
		p.stopAt = time.Now().Add(limit)
		if p.loop.m.suspended {
			p.resume()
		}
		p.loop.m.stop()
		p.tick()
	})
}

// tick looks whether the end has come.
func (p *Pooler) tick() {
	p.tickAddresses()
	m := p.loop.m
	p.tickSuccession()
	if !m.stopping {
		return
	}
	switch now := time.Now(); {
	case now.After(p.stopAt.Add(lingerTimeout)):
		p.loop.over = true
	case now.After(p.stopAt):
		m.stopNow()
	}
}

// Close ends Run at once, if it runs, waits for it, and releases everything.
func (p *Pooler) Close() error {
	p.cancel()
	p.lateEnd()
	p.closeListeners()
	p.declineOffer()
	if p.loop == nil {
		return nil
	}
	p.loop.post(func() { p.loop.over = true })
	p.loop.mu.Lock()
	ran := p.loop.started
	p.loop.mu.Unlock()
	if ran {
		<-p.done
	}
	p.closing.Do(p.loop.close)
	return nil
}

func (p *Pooler) closeListeners() {
	for _, ln := range p.listeners {
		// Closing twice is the only way for this to fail.
		_ = ln.Close()
	}
	p.closeControl()
	if p.local != nil {
		_ = p.local.Close()
	}
}

// Snapshot returns the present state.
func (p *Pooler) Snapshot() Snapshot {
	var s Snapshot
	done := make(chan struct{})
	if !p.loop.post(func() {
		s = p.loop.m.snapshot()
		close(done)
	}) {
		<-p.done
		s = p.lastLook
		s.Refusals = maps.Clone(s.Refusals)
		close(done)
	}
	<-done
	s.Started = p.loop.start
	s.Clients, s.MaxClients = int(p.clients.Load()), p.conf().MaxClients
	for i := range p.early {
		s.Refusals[refusal(i).String()] += p.early[i].Load()
	}
	return s
}

// write and end of world are the loop's.
func (p *Pooler) write(c *conn, segs [][]byte) (int, error) { return p.loop.write(c, segs) }
func (p *Pooler) end(c *conn, how ending)                   { p.loop.end(c, how) }

// dropped is called for each connection that the machine has closed.
func (p *Pooler) dropped(c *conn) {
	if c.cl != nil {
		p.clients.Add(-1)
	}
}

// setReusePort lets several processes listen at one port.
func setReusePort(_, _ string, rc syscall.RawConn) error {
	var serr error
	err := rc.Control(func(fd uintptr) {
		serr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	})
	return errors.Join(err, serr)
}

// setBacklog changes the length of a listener's queue: listen may be called
// again, while net has no setting for it.
func setBacklog(ln syscall.Conn, n int) error {
	rc, err := ln.SyscallConn()
	if err != nil {
		return err
	}
	var lerr error
	err = rc.Control(func(fd uintptr) { lerr = unix.Listen(int(fd), n) })
	return errors.Join(err, lerr)
}
