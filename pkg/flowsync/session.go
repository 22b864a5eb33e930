package flowsync

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// writeBytes is how much is gathered for one write.
const writeBytes = 32 << 10

// session is one connection in use: a goroutine reads and stores, one writes,
// one walks the table when the writer has begun a pass.
type session struct {
	*peerConn
	link     *Link
	receiver receiver  // the reader's
	walks    chan walk // the writer starts the walker by it
	hungry   chan struct{}
	sent     uint64 // bytes; the writer's
}

// serve uses a connection until it breaks or ctx is cancelled, and closes it.
func (l *Link) serve(ctx context.Context, p *peerConn) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s := &session{peerConn: p, link: l, walks: make(chan walk, 1), hungry: make(chan struct{}, 1)}
	s.receiver = receiver{table: l.config.Table, ours: l.ours.Load}
	s.receiver.connected()
	l.connected(s)
	var running sync.WaitGroup
	for _, part := range []func(context.Context) error{s.read, s.write, s.walker} {
		running.Go(func() {
			if err := part(ctx); err != nil {
				cancel(err)
			}
		})
	}
	<-ctx.Done()
	// Not conn.Close, which would wait to say good-bye behind a blocked write.
	s.conn.NetConn().Close()
	running.Wait()
	l.disconnected(s, context.Cause(ctx))
}

// connected begins a session.
func (l *Link) connected(s *session) {
	own := l.config.State()
	now := l.now()
	l.mu.Lock()
	l.sender.connected(now, own.serves())
	l.ask, l.ackDue, l.ackSent, l.kicked = false, 0, 0, false
	st := &l.status
	st.connected, st.since, st.node, st.version, st.key = true, time.Now(), s.node, s.version, s.key
	st.connections++
	l.mu.Unlock()
	l.log.Info("linked with the peer", "node", s.node, "address", s.conn.RemoteAddr().String(), "version", s.version)
}

// disconnected ends it.
func (l *Link) disconnected(s *session, cause error) {
	l.mu.Lock()
	l.sender.disconnected()
	l.status.connected, l.status.since = false, time.Now()
	if !errors.Is(cause, context.Canceled) {
		l.status.lastError = cause.Error()
	}
	l.advance()
	l.mu.Unlock()
	l.setSynced(false)
	if !errors.Is(cause, context.Canceled) {
		l.log.Warn("lost the link with the peer", "node", s.node, "error", cause)
	}
}

// setSynced keeps and makes known whether the table has a full copy of the peer's flows.
func (l *Link) setSynced(synced bool) {
	now := l.now()
	l.mu.Lock()
	changed := l.status.synced != synced
	l.status.synced = synced
	if changed {
		l.status.fresh = now
		l.kicked = true
	}
	l.mu.Unlock()
	if changed {
		l.signal()
		l.config.OnSynced(synced)
	}
}

// read takes what the peer sends.
func (s *session) read(ctx context.Context) error {
	l, dead := s.link, s.link.config.dead()
	var buf []byte
	for {
		if err := s.conn.SetReadDeadline(time.Now().Add(dead)); err != nil {
			return fmt.Errorf("reading from the peer: %w", err)
		}
		k, body, next, err := readFrame(s.reader, buf)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			return fmt.Errorf("the peer has been silent for %v", dead)
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return errors.New("the peer has closed the connection")
		case err != nil:
			return fmt.Errorf("reading from the peer: %w", err)
		}
		buf = next
		l.mu.Lock()
		l.status.bytesReceived += uint64(len(body) + frameHeader)
		l.mu.Unlock()
		if err := s.take(k, body); err != nil {
			return fmt.Errorf("reading from the peer: %w", err)
		}
	}
}

// take acts upon one frame.
func (s *session) take(k kind, body []byte) error {
	l := s.link
	switch k {
	case kindAck:
		seq, err := parseNumber(body)
		if err != nil {
			return err
		}
		l.mu.Lock()
		err = l.sender.acknowledged(seq)
		l.advance()
		l.mu.Unlock()
		l.signal()
		return err
	case kindState:
		peer, err := parseState(body)
		if err != nil {
			return err
		}
		now := l.now()
		l.mu.Lock()
		l.peer, l.heard, l.hasPeer = peer, now, true
		l.sender.servePeer(peer.serves())
		l.mu.Unlock()
		l.signal()
		return nil
	case kindResync:
		if _, err := parseReason(body); err != nil {
			return err
		}
		l.mu.Lock()
		l.sender.incomplete(ResyncAsked)
		l.mu.Unlock()
		l.signal()
		return nil
	case kindRefuse:
		return refusedBy(body)
	}
	return s.receive(k, body)
}

// receive has the receiver take a frame, and acknowledges it.
func (s *session) receive(k kind, body []byte) error {
	l, r := s.link, &s.receiver
	broken, err := r.handle(k, body)
	if err != nil && !broken {
		return err
	}
	now := l.now()
	l.mu.Lock()
	l.status.received.add(r.counts)
	r.counts = receiveCounts{}
	due := l.ackDue != r.seq
	l.ackDue = r.seq
	if r.asks {
		l.ask, r.asks = true, false
	}
	suppressed, say := 0, false
	if broken {
		l.status.lastError = err.Error()
		suppressed, say = l.muteFail.Allow(now)
	}
	l.mu.Unlock()
	if due || broken {
		l.signal()
	}
	if say {
		l.log.Error("the table fails: the peer is asked to send all flows anew", "error", err, "suppressed", suppressed)
	}
	switch {
	case k == kindDictionary:
		l.compare(r.theirs)
	case k == kindBegin && r.begin.full:
		l.log.Info("a full copy of the peer's flows begins", "reason", r.begin.reason)
	case k == kindEnd && r.begin.full:
		l.log.Info("the full copy of the peer's flows is over", "synced", r.synced)
	}
	l.setSynced(r.synced)
	return nil
}

// write sends what there is to send.
func (s *session) write(ctx context.Context) error {
	l := s.link
	timer := time.NewTimer(0)
	defer timer.Stop()
	var buf []byte
	beat := l.now()
	for ctx.Err() == nil {
		now := l.now()
		buf = buf[:0]
		if l.kick() || now >= beat {
			buf = l.heartbeat(buf)
			beat = now + l.config.Heartbeat
		}
		var wake time.Duration
		buf, wake = s.gather(now, buf)
		if len(buf) > 0 {
			if err := s.conn.SetWriteDeadline(time.Now().Add(l.config.dead())); err != nil {
				return fmt.Errorf("writing to the peer: %w", err)
			}
			if _, err := s.conn.Write(buf); err != nil {
				return fmt.Errorf("writing to the peer: %w", err)
			}
			s.sent += uint64(len(buf))
		}
		if wake == 0 {
			continue
		}
		timer.Reset(max(0, min(wake, beat)-l.now()))
		select {
		case <-l.wake:
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	return nil
}

// gather appends the frames that are to be sent now. wake is when to look
// again; 0: at once.
func (s *session) gather(now time.Duration, buf []byte) (_ []byte, wake time.Duration) {
	l := s.link
	l.mu.Lock()
	defer l.mu.Unlock()
	l.status.bytesSent += s.sent
	s.sent = 0
	// Before the acknowledgement: who waits for that must not take what the
	// table failed to store for stored.
	if l.ask {
		l.ask = false
		buf = appendReason(buf, kindResync, "")
	}
	if l.ackDue != l.ackSent {
		l.ackSent = l.ackDue
		buf = appendNumber(buf, kindAck, l.ackDue)
	}
	for len(buf) < writeBytes {
		out, begun, at := l.sender.next(now, buf)
		wake = at
		if begun {
			s.begin(walk{epoch: l.sender.epoch, full: l.sender.pass.full, since: l.sender.pass.since})
		}
		if len(out) == len(buf) {
			break
		}
		buf = out
	}
	// The walker has to see that its pass wants more, or is over.
	select {
	case s.hungry <- struct{}{}:
	default:
	}
	return buf, wake
}

// kick reports whether the state has to be sent at once.
func (l *Link) kick() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	kicked := l.kicked
	l.kicked = false
	return kicked
}

// heartbeat appends the state of this node.
func (l *Link) heartbeat(buf []byte) []byte {
	state := l.config.State()
	now := l.now()
	l.mu.Lock()
	state.Node, state.Synced = l.config.Node, l.status.synced
	l.sender.serveOwn(state.serves())
	l.mu.Unlock()
	out, whole, err := appendState(buf, state)
	if err == nil && whole {
		return out
	}
	l.mu.Lock()
	suppressed, say := l.muteLong.Allow(now)
	l.mu.Unlock()
	if say {
		l.log.Warn("the state is too long to tell the peer", "backends", len(state.Backends), "error", err, "suppressed", suppressed)
	}
	if err != nil {
		// Without anything that is long, it still is a heartbeat.
		out, _, _ = appendState(buf, State{Node: state.Node, Synced: state.Synced, Draining: state.Draining})
	}
	return out
}
