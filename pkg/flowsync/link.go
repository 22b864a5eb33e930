package flowsync

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/internal/mute"
	"github.com/pgsteer/pgsteer/pkg/lb"
)

// ErrNotConnected is that there is no peer to wait for.
var ErrNotConnected = errors.New("not connected to the peer")

// Link is this node's end of the replication. All its methods but Run and Close
// may be called at any time from any goroutine.
type Link struct {
	config   Config
	log      *slog.Logger
	hello    hello
	now      func() time.Duration
	listener *net.TCPListener     // nil: this node dials
	ours     atomic.Pointer[book] // this node's dictionary
	wake     chan struct{}        // for the writer

	mu       sync.Mutex
	sender   sender
	kicked   bool
	ask      bool   // the peer has to be asked for a full copy
	ackDue   uint64 // last batch stored
	ackSent  uint64
	theirs   *book // the peer's dictionary; nil: unknown
	peer     State
	heard    time.Duration // when peer was received
	hasPeer  bool
	progress chan struct{} // closed when Drain has to look again; nil: nobody waits
	mute     [numFailures]mute.Limiter
	muteGap  mute.Limiter
	muteLong mute.Limiter
	muteFail mute.Limiter
	status   tally
}

// bootClock is CLOCK_BOOTTIME, which counts a suspended machine's sleep: what a
// peer said before it is that much older.
func bootClock() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		// The clock exists since Linux 2.6.39; the call takes no other input.
		panic("reading CLOCK_BOOTTIME: " + err.Error())
	}
	return time.Duration(ts.Nano())
}

// Open checks the configuration and, on the node that listens, opens the
// socket. The caller has to Close the link.
func Open(c Config) (*Link, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("flow sync: %w", err)
	}
	l := &Link{
		config: c, log: c.Log, now: bootClock, wake: make(chan struct{}, 1),
		hello: hello{lowest: minVersion, highest: maxVersion, node: c.Node},
	}
	l.ours.Store(newBook(c.Services))
	l.sender = newSender(l.ours.Load(), c.RefreshInterval, c.QueueLimit)
	l.status.since, l.status.fresh = time.Now(), never
	if !c.dials() {
		if l.listener, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(c.Listen)); err != nil {
			return nil, fmt.Errorf("flow sync: %w", err)
		}
	}
	return l, nil
}

// Close releases the socket. Run must have returned, if it was called.
func (l *Link) Close() error {
	if l.listener == nil {
		return nil
	}
	if err := l.listener.Close(); err != nil {
		return fmt.Errorf("closing flow sync: %w", err)
	}
	return nil
}

// Run keeps up the connection to the peer until ctx is cancelled, then returns
// nil. Run may be called once.
func (l *Link) Run(ctx context.Context) error {
	if l.listener == nil {
		l.dial(ctx)
		return nil
	}
	return l.accept(ctx)
}

// signal wakes the writer.
func (l *Link) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Publish hands over what happened to flows of this node, in the order in which
// it happened, after it can be seen in the table. It never blocks; the slice is
// the caller's again when it returns. Without a connection it does nothing.
func (l *Link) Publish(changes []lb.FlowChange) {
	now := l.now()
	l.mu.Lock()
	before := l.sender.counts.overflows
	l.sender.publish(changes, now)
	var suppressed int
	var say bool
	if l.sender.counts.overflows != before {
		suppressed, say = l.muteGap.Allow(now)
	}
	l.mu.Unlock()
	l.signal()
	if say {
		l.log.Warn("the peer is slower than flows change: all will be sent anew", "queue_limit", l.config.QueueLimit, "suppressed", suppressed)
	}
}

// Lost says that the datapath has lost changes: a full copy has to make up for
// them. What happened before the loss has to be published before: it would else
// be taken for news. A reader that looks for losses whenever it has emptied its
// ring buffer does that.
func (l *Link) Lost() {
	now := l.now()
	l.mu.Lock()
	l.sender.lost()
	suppressed, say := l.muteGap.Allow(now)
	l.mu.Unlock()
	l.signal()
	if say {
		l.log.Warn("the datapath has lost changes of flows: all will be sent anew", "suppressed", suppressed)
	}
}

// Kick sends the state at once, not at the next heartbeat.
func (l *Link) Kick() {
	l.mu.Lock()
	l.kicked = true
	l.mu.Unlock()
	l.signal()
}

// SetServices replaces the dictionary. The peer is told, and asked for a full
// copy, since flows may fit now that did not before.
func (l *Link) SetServices(services []lb.Service) {
	b := newBook(services)
	l.ours.Store(b)
	l.mu.Lock()
	l.sender.book, l.sender.tell = b, true
	l.ask = l.sender.up
	l.mu.Unlock()
	l.signal()
	l.compare(nil)
}

// compare looks for differences between the configurations of the nodes, and
// says what is new. theirs is the peer's dictionary, nil if it is still the
// same.
func (l *Link) compare(theirs *book) {
	l.mu.Lock()
	if theirs != nil {
		l.theirs = theirs
	}
	var found []string
	if l.theirs != nil {
		found = differences(l.ours.Load(), l.theirs, l.status.node)
	}
	changed := !slices.Equal(found, l.status.differences)
	l.status.differences = found
	l.mu.Unlock()
	if changed && len(found) > 0 {
		l.log.Warn("the nodes are configured differently", "differences", found)
	} else if changed {
		l.log.Info("the nodes are configured alike again")
	}
}

// Peer returns what the peer said last and how long ago. ok is false if it
// never said anything; what it said before the connection was lost is kept.
func (l *Link) Peer() (s State, ago time.Duration, ok bool) {
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.peer, max(0, now-l.heard), l.hasPeer
}

// Synced reports whether the table has a full copy of the peer's flows, and is
// kept up to date.
func (l *Link) Synced() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.status.synced
}

// Connected reports whether there is a connection to the peer now.
func (l *Link) Connected() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.status.connected
}

// Drain waits until the peer has everything that was published so far, full
// copy included. It returns an error if ctx ends before or the connection does.
func (l *Link) Drain(ctx context.Context) error {
	l.mu.Lock()
	target := l.sender.published
	l.sender.hasten(l.now())
	l.mu.Unlock()
	l.signal()
	for {
		l.mu.Lock()
		up, drained := l.sender.up, l.sender.drained(target)
		if l.progress == nil {
			l.progress = make(chan struct{})
		}
		progress := l.progress
		l.mu.Unlock()
		switch {
		case drained:
			return nil
		case !up:
			return fmt.Errorf("draining flow sync: %w", ErrNotConnected)
		}
		select {
		case <-progress:
		case <-ctx.Done():
			return fmt.Errorf("draining flow sync: %w", ctx.Err())
		}
	}
}

// advance has those in Drain look again. l.mu is held.
func (l *Link) advance() {
	if l.progress != nil {
		close(l.progress)
		l.progress = nil
	}
}
