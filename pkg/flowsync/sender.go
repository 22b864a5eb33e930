package flowsync

import (
	"encoding/binary"
	"math"
	"net/netip"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

const (
	// maxDelay is how long a change may wait for others to travel with it,
	// while a batch is on its way anyway.
	maxDelay = 2 * time.Millisecond
	// maxWindow is how many bytes of batches may be unacknowledged. It is less
	// than the sockets' buffers hold, see tune, so that heartbeats go on while
	// the peer is slow to store; on a LAN more makes nothing faster.
	maxWindow = 128 << 10
	// resyncInterval is the shortest time between two full copies of one
	// connection, so that a peer that is too slow is not kept copying.
	resyncInterval = time.Second
	// chunkRecords is how many records of a pass are handed over at a time.
	chunkRecords = 256
)

// never is a time that does not come.
const never = time.Duration(math.MaxInt64)

// sender decides what goes to the peer and when. It knows no network: what is
// to be written is asked of it by next.
type sender struct {
	refresh time.Duration // between two refreshes
	window  int           // unacknowledged bytes allowed; tests have less
	ops     int           // changes or records of one batch; tests have fewer
	book    *book
	queue   queue

	up      bool // there is a connection
	tell    bool // the dictionary has to be sent
	gap     bool // the peer has to be told that its copy is incomplete
	queuing bool // changes are kept: a full copy has begun, and none was lost since
	synced  bool // the peer has a full copy
	damaged bool // the peer lacks changes that were made since the last full copy began
	seq     uint64
	flight  []batch // unacknowledged, in order
	bytes   int     // of these
	// published counts all changes. Those up to settled have reached the peer,
	// by themselves or in a full copy.
	published, settled uint64

	wanted     Resync // a full copy is, if wants
	wants      bool
	earliest   time.Duration // of the next full copy
	epoch      uint64        // of the pass in progress
	copyOf     uint64        // epoch of the last full copy
	pass       pass
	turn       bool // a pass in progress is next, not the changes
	refreshAt  time.Duration
	refreshed  time.Duration // when the last pass began
	own, peers []netip.Addr  // addresses served here, and there
	heard      bool          // what the peer serves is known; without, no copy begins
	counts     sendCounts
}

// batch is a frame that has to be acknowledged.
type batch struct {
	seq    uint64
	bytes  int
	oldest time.Duration // when its oldest change was published; never: it has none
	upTo   uint64        // of published
	endOf  uint64        // epoch of the full copy that it ends; 0: it does not
}

// pass is a walk through the table that is being sent.
type pass struct {
	active bool
	full   bool
	since  time.Duration // of a refresh: flows with a packet since then
	from   uint64        // published at its begin
	chunk  []lb.FlowRecord
	done   bool // chunk is the last
	serves []netip.Addr
	lapsed []netip.Addr // served no more since the begin, if only for a while
}

type sendCounts struct {
	changes, copied, closed uint64 // records sent
	unfit                   uint64 // records that are no flow's
	overflows, lost         uint64
	resyncs                 [numResyncs]uint64
	refreshes               uint64
}

// newSender returns a sender with the usual limits.
func newSender(b *book, refresh time.Duration, limit int) sender {
	return sender{book: b, refresh: refresh, window: maxWindow, ops: batchOps, queue: queue{limit: limit}}
}

// connected begins a connection. The addresses are those served here.
func (s *sender) connected(now time.Duration, own []netip.Addr) {
	s.up, s.tell = true, true
	s.seq, s.flight, s.bytes = 0, nil, 0
	s.own, s.peers, s.heard = own, nil, false
	s.earliest = now
	s.resync(ResyncConnected)
}

// disconnected ends it. Changes are not kept: the next connection begins with
// a full copy.
func (s *sender) disconnected() {
	s.up, s.wants, s.gap, s.synced, s.queuing = false, false, false, false, false
	s.abort()
	s.queue.reset()
}

// resync has a full copy sent as soon as it may.
func (s *sender) resync(why Resync) {
	if !s.up || s.wants {
		return
	}
	s.wants, s.wanted = true, why
	s.counts.resyncs[why]++
	s.abort()
}

// abort gives up the pass in progress. Its records may still be on their way
// from the table; the epoch tells.
func (s *sender) abort() {
	s.pass = pass{}
	s.epoch++
}

// incomplete is that the peer lacks changes. What waits to be sent is dropped:
// with a gap behind it, it would be taken for news after the copy has said
// better. Changes count again when the copy begins.
func (s *sender) incomplete(why Resync) {
	if !s.up {
		return
	}
	s.synced, s.damaged, s.gap, s.queuing = false, true, true, false
	s.queue.reset()
	s.abort()
	s.resync(why)
}

// publish queues changes.
func (s *sender) publish(changes []lb.FlowChange, now time.Duration) {
	for i := range changes {
		s.published++
		if !s.queuing {
			continue
		}
		if !encodable(&changes[i].Record) {
			s.counts.unfit++
			continue
		}
		if !s.queue.push(changes[i], now) {
			s.counts.overflows++
			s.incomplete(ResyncOverflow)
		}
	}
}

// lost is that changes were lost before they were published.
func (s *sender) lost() {
	s.counts.lost++
	s.incomplete(ResyncLost)
}

// serveOwn and servePeer take note of which addresses are served here, and by
// the peer. What the peer refused to store while it served the address itself
// has to be sent again when it stops.
func (s *sender) serveOwn(own []netip.Addr) { s.serve(own, s.peers) }

func (s *sender) servePeer(peers []netip.Addr) {
	if !s.heard {
		s.heard, s.peers = true, peers
		return
	}
	s.serve(s.own, peers)
}

func (s *sender) serve(own, peers []netip.Addr) {
	before, after := without(s.own, s.peers), without(own, peers)
	s.pass.lapsed = append(s.pass.lapsed, without(s.own, own)...)
	s.own, s.peers = own, peers
	if len(without(after, before)) > 0 {
		s.resync(ResyncLease)
	}
}

// acknowledged is that the peer has stored all batches up to seq.
func (s *sender) acknowledged(seq uint64) error {
	if seq > s.seq {
		return malformed("batch %d is acknowledged, but %d was the last", seq, s.seq)
	}
	for len(s.flight) > 0 && s.flight[0].seq <= seq {
		b := s.flight[0]
		s.flight = s.flight[1:]
		s.bytes -= b.bytes
		s.settled = max(s.settled, b.upTo)
		if b.endOf != 0 && b.endOf == s.copyOf && !s.damaged {
			s.synced = true
		}
	}
	return nil
}

// drained reports whether the peer has all changes up to the given count.
func (s *sender) drained(upTo uint64) bool {
	return s.up && s.synced && !s.wants && s.settled >= upTo
}

// hasten has a full copy that is wanted begin now. Somebody waits for the peer to
// have everything: that is rare, and not what resyncInterval guards against.
func (s *sender) hasten(now time.Duration) { s.earliest = min(s.earliest, now) }

// lag is the age of the oldest change that the peer is not known to have.
func (s *sender) lag(now time.Duration) time.Duration {
	oldest := now
	if s.queue.n > 0 {
		oldest = s.queue.front().at
	}
	for _, b := range s.flight {
		oldest = min(oldest, b.oldest)
	}
	return max(0, now-oldest)
}

// hungry reports whether the walk of this epoch may deliver more.
func (s *sender) hungry(epoch uint64) (more, valid bool) {
	valid = s.up && s.pass.active && s.epoch == epoch
	return valid && len(s.pass.chunk) == 0 && !s.pass.done, valid
}

// offer takes records of a pass. The chunk is the machine's until it is hungry
// again.
func (s *sender) offer(epoch uint64, chunk []lb.FlowRecord) {
	if _, valid := s.hungry(epoch); valid {
		s.pass.chunk = chunk
	}
}

// finish is the end of a walk.
func (s *sender) finish(epoch uint64, serves []netip.Addr, err error) {
	_, valid := s.hungry(epoch)
	if !valid {
		return
	}
	if err != nil && s.pass.full {
		s.resync(ResyncTable)
		return
	}
	// A refresh that broke off still has to be ended.
	s.pass.done, s.pass.serves = true, without(serves, s.pass.lapsed)
}

// next appends the next frame to dst, if there is something to send now. If it
// begins a pass, walk is set. Else wake is when to ask again, unless something
// happens before.
func (s *sender) next(now time.Duration, dst []byte) (out []byte, walk bool, wake time.Duration) {
	switch {
	case !s.up:
		return dst, false, never
	case s.tell:
		s.tell = false
		return appendBook(dst, s.book), false, 0
	case s.gap:
		s.gap = false
		return appendReason(dst, kindGap, s.wanted.String()), false, 0
	case s.bytes >= s.window:
		return dst, false, never // until an acknowledgement
	}
	wake = never
	if s.wants && s.heard {
		if now >= s.earliest {
			return s.begin(now, dst, true), true, 0
		}
		wake = s.earliest
	}
	ready := s.pass.active && (len(s.pass.chunk) > 0 || s.pass.done)
	if s.queue.n > 0 && !(s.turn && ready && s.pass.full) {
		due := s.queue.front().at + maxDelay
		if len(s.flight) == 0 || now >= due || s.queue.n >= s.ops {
			s.turn = true
			return s.changes(dst), false, 0
		}
		wake = min(wake, due)
	}
	s.turn = false
	if ready && (s.pass.full || s.queue.n == 0) {
		return s.copy(dst), false, 0
	}
	if s.synced && !s.wants && !s.pass.active && s.queue.n == 0 {
		if now >= s.refreshAt {
			return s.begin(now, dst, false), true, 0
		}
		wake = min(wake, s.refreshAt)
	}
	return dst, false, wake
}

// sent takes note of a frame that has to be acknowledged.
func (s *sender) sent(b batch, bytes int) {
	b.seq, b.bytes = s.seq, bytes
	s.bytes += bytes
	s.flight = append(s.flight, b)
}

// begin begins a pass. All changes that come from now on are sent, or make
// another full copy necessary.
func (s *sender) begin(now time.Duration, dst []byte, full bool) []byte {
	start := len(dst)
	s.seq++
	s.epoch++
	s.pass = pass{active: true, full: full, since: s.refreshed, from: s.published - uint64(s.queue.n)}
	s.refreshed, s.refreshAt = now, now+s.refresh
	b := begin{seq: s.seq, epoch: s.epoch, full: full}
	if full {
		b.reason = s.wanted.String()
		s.wants, s.queuing, s.copyOf = false, true, s.epoch
		s.synced, s.damaged = false, false
		s.earliest = now + resyncInterval
	} else {
		s.counts.refreshes++
	}
	dst = appendBegin(dst, b)
	s.sent(batch{oldest: never}, len(dst)-start)
	return dst
}

// changes sends what fits of the queue.
func (s *sender) changes(dst []byte) []byte {
	start := len(dst)
	s.seq++
	b := batch{oldest: s.queue.front().at}
	dst = beginFrame(dst, kindChanges)
	dst = binary.AppendUvarint(dst, s.seq)
	for n := 0; s.queue.n > 0 && n < s.ops && len(dst)-start < batchBytes; n++ {
		c := s.queue.front()
		dst = appendRecord(dst, &c.Record, c.Gone, s.book)
		if c.Gone {
			s.counts.closed++
		} else {
			s.counts.changes++
		}
		s.queue.pop()
	}
	b.upTo = s.published - uint64(s.queue.n)
	dst = endFrame(dst, start)
	s.sent(b, len(dst)-start)
	return dst
}

// copy sends what fits of the pass's records, or its end.
func (s *sender) copy(dst []byte) []byte {
	start := len(dst)
	s.seq++
	p := &s.pass
	if len(p.chunk) == 0 {
		dst = appendEnd(dst, end{seq: s.seq, epoch: s.epoch, serves: p.serves})
		b := batch{oldest: never}
		if p.full {
			b.upTo, b.endOf = p.from, s.epoch
		}
		s.pass = pass{}
		s.sent(b, len(dst)-start)
		return dst
	}
	dst = beginFrame(dst, kindCopy)
	dst = binary.AppendUvarint(dst, s.seq)
	dst = binary.AppendUvarint(dst, s.epoch)
	for n := 0; len(p.chunk) > 0 && n < s.ops && len(dst)-start < batchBytes; n++ {
		if r := &p.chunk[0]; encodable(r) {
			dst = appendRecord(dst, r, false, s.book)
			s.counts.copied++
		} else {
			s.counts.unfit++
		}
		p.chunk = p.chunk[1:]
	}
	dst = endFrame(dst, start)
	s.sent(batch{oldest: never}, len(dst)-start)
	return dst
}
