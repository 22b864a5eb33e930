package flowsync

import (
	"context"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// walk is the reading of a pass's flows from the table.
type walk struct {
	epoch uint64
	full  bool
	since time.Duration // of a refresh: flows with a packet since then
}

// idleMargin makes up for the time that passes while a chunk is read.
const idleMargin = 100 * time.Millisecond

// begin starts the walker, which may still be busy with a pass that was given
// up. Of those that wait the last one counts. The writer's goroutine only.
func (s *session) begin(w walk) {
	select {
	case <-s.walks:
	default:
	}
	s.walks <- w
}

// walker walks the table, pass by pass.
func (s *session) walker(ctx context.Context) error {
	for {
		select {
		case w := <-s.walks:
			s.walk(ctx, w)
		case <-ctx.Done():
			return nil
		}
	}
}

// walk reads the flows of this node and hands them to the sender, which says
// when it has room. Two chunks are in use in turn.
func (s *session) walk(ctx context.Context, w walk) {
	l := s.link
	before := l.config.State()
	chunk, other := make([]lb.FlowRecord, 0, chunkRecords), make([]lb.FlowRecord, 0, chunkRecords)
	flush := func() bool {
		if len(chunk) == 0 {
			return true
		}
		ok := s.offer(ctx, w.epoch, chunk)
		chunk, other = other[:0], chunk
		return ok
	}
	var visited uint
	var limit time.Duration
	err := l.config.Table.Each(true, func(f *lb.FlowRecord) bool {
		if visited%chunkRecords == 0 {
			limit = l.now() - w.since + idleMargin
		}
		visited++
		if !w.full && f.Idle > limit {
			return true
		}
		chunk = append(chunk, *f)
		return len(chunk) < chunkRecords || flush()
	})
	if !flush() {
		return
	}
	after := l.config.State()
	l.mu.Lock()
	l.sender.finish(w.epoch, common(before.serves(), after.serves()), err)
	now := l.now()
	suppressed, say := 0, false
	if err != nil {
		l.status.lastError = "reading the flow table: " + err.Error()
		suppressed, say = l.muteFail.Allow(now)
	}
	l.mu.Unlock()
	l.signal()
	if say {
		l.log.Error("failed to read the flow table", "error", err, "suppressed", suppressed)
	}
}

// offer gives a chunk to the sender when that has room. It returns false if the
// pass is not wanted any more.
func (s *session) offer(ctx context.Context, epoch uint64, chunk []lb.FlowRecord) bool {
	l := s.link
	for {
		l.mu.Lock()
		more, valid := l.sender.hungry(epoch)
		if more {
			l.sender.offer(epoch, chunk)
		}
		l.mu.Unlock()
		switch {
		case !valid:
			return false
		case more:
			l.signal()
			return true
		}
		select {
		case <-s.hungry:
		case <-ctx.Done():
			return false
		}
	}
}
