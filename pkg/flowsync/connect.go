package flowsync

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	minBackoff = 50 * time.Millisecond
	maxBackoff = time.Second
	// dialTime is how long the network may take to connect; on one LAN it takes
	// less than a millisecond, or for ever.
	dialTime = time.Second
	// maxGreetings is how many connections may shake hands at a time. The peer
	// needs one, and a second when it restarts.
	maxGreetings = 4
)

// dial connects to the peer, again and again, and serves the connections.
func (l *Link) dial(ctx context.Context) {
	for backoff := minBackoff; ; backoff = min(2*backoff, maxBackoff) {
		p, err := l.connect(ctx)
		if err == nil {
			began := l.now()
			l.serve(ctx, p)
			if l.now()-began > maxBackoff {
				backoff = minBackoff
			}
		} else if ctx.Err() == nil {
			l.fail(l.config.Peer.String(), err)
		}
		select {
		case <-time.After(backoff):
		case <-ctx.Done():
			return
		}
	}
}

func (l *Link) connect(ctx context.Context) (*peerConn, error) {
	d := net.Dialer{
		Timeout: dialTime,
		// The peer lets in our address only.
		LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(l.config.Listen.Addr(), 0)),
	}
	conn, err := d.DialContext(ctx, "tcp", l.config.Peer.String())
	if err != nil {
		return nil, &failed{FailureConnect, fmt.Errorf("connecting: %w", err)}
	}
	return l.greet(ctx, conn.(*net.TCPConn))
}

// errReplaced is why a connection ends when the peer makes another.
var errReplaced = errors.New("the peer has made a new connection")

// accept serves the connections that the peer makes. The newest counts: a peer
// connects anew only when it has given up the one before.
func (l *Link) accept(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	peers, broken := make(chan *peerConn), make(chan error, 1)
	running.Go(func() { broken <- l.listen(ctx, peers) })

	end := func() {} // the present session
	defer func() { end() }()
	for {
		select {
		case err := <-broken:
			return err
		case p := <-peers:
			end()
			session, stop := context.WithCancelCause(ctx)
			ended := make(chan struct{})
			running.Go(func() {
				defer close(ended)
				l.serve(session, p)
			})
			end = func() { stop(errReplaced); <-ended }
		}
	}
}

// listen accepts connections until ctx is cancelled and hands over those of the
// peer.
func (l *Link) listen(ctx context.Context, peers chan<- *peerConn) error {
	stop := context.AfterFunc(ctx, func() { _ = l.listener.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var greeting sync.WaitGroup
	defer greeting.Wait()
	free := make(chan struct{}, maxGreetings)
	for {
		conn, err := l.listener.AcceptTCP()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				conn.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accepting the peer: %w", err)
		case err != nil:
			l.fail("", &failed{FailureConnect, fmt.Errorf("accepting the peer: %w", err)})
			select { // out of file descriptors, most likely
			case <-time.After(minBackoff):
			case <-ctx.Done():
			}
			continue
		}
		from := conn.RemoteAddr().String()
		if a := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap(); a != l.config.Peer.Addr() {
			conn.Close()
			l.fail(from, &failed{FailureAddress, fmt.Errorf("a connection from %v, which is not the peer's address", a)})
			continue
		}
		select {
		case free <- struct{}{}:
		default:
			conn.Close()
			l.fail(from, &failed{FailureBusy, errors.New("too many connections at a time")})
			continue
		}
		greeting.Go(func() {
			defer func() { <-free }()
			p, err := l.greet(ctx, conn)
			if err != nil {
				if ctx.Err() == nil {
					l.fail(from, err)
				}
				return
			}
			select {
			case peers <- p:
			case <-ctx.Done():
				p.conn.Close()
			}
		})
	}
}

// fail takes note of a link that did not come to be.
func (l *Link) fail(address string, err error) {
	why := failure(err, FailureConnect)
	now := l.now()
	l.mu.Lock()
	l.status.failures[why]++
	l.status.lastError = err.Error()
	suppressed, say := l.mute[why].Allow(now)
	l.mu.Unlock()
	if say {
		l.log.Warn("no link with the peer", "address", address, "reason", why.String(), "error", err, "suppressed", suppressed)
	}
}
