package flowsync

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// receiver keeps in the table what the peer sends. It knows no network and no
// time: frames are handed to it in order.
type receiver struct {
	table Table
	// ours is this node's dictionary: a flow whose backend is not in it cannot
	// be kept.
	ours func() *book

	theirs  *book
	seq     uint64 // of the last batch taken
	synced  bool   // the table has a full copy of the peer's flows
	asks    bool   // the peer has to be asked for a full copy
	passing bool
	begin   begin // of the pass in progress
	failed  bool  // it cannot become a full copy any more
	marks   marks
	counts  receiveCounts

	ops     []op // scratch, as the next three
	last    map[lb.FlowID]int
	records []lb.FlowRecord
	ids     []lb.FlowID
}

// op is one entry of a batch.
type op struct {
	record lb.FlowRecord
	closed bool
}

type receiveCounts struct {
	changes, copied, closed uint64 // records received
	outdated                uint64 // of copied, those of flows that had changed since
	stored, removed         uint64
	unknown                 uint64 // not stored: no such backend here
	refused                 uint64 // not stored: the table's refusals
	swept                   uint64 // removed at the end of a full copy
	copies                  uint64 // full copies completed
	gaps                    uint64 // times that the peer told of lost changes
	failures                uint64 // errors of the table
}

// connected begins a connection.
func (r *receiver) connected() {
	r.theirs, r.seq, r.last = &book{}, 0, make(map[lb.FlowID]int)
	r.disconnected()
}

// disconnected ends it. The replicas stay, but may fall behind from now on.
func (r *receiver) disconnected() {
	r.synced, r.asks, r.passing = false, false, false
	r.marks.reset()
}

// handle takes a frame. An error means that the peer does not keep to the
// protocol, or that the table failed; in the latter case broken is set and the
// connection may go on.
func (r *receiver) handle(k kind, body []byte) (broken bool, err error) {
	switch k {
	case kindDictionary:
		theirs, err := parseBook(body)
		if err == nil {
			r.theirs = theirs
		}
		return false, err
	case kindGap:
		_, err := parseReason(body)
		r.synced, r.failed = false, true
		r.counts.gaps++
		return false, err
	case kindBegin:
		return r.onBegin(body)
	case kindCopy:
		return r.onCopy(body)
	case kindEnd:
		return r.onEnd(body)
	case kindChanges:
		return r.onChanges(body)
	}
	return false, malformed("kind %d", k)
}

// follows checks that no batch is missing.
func (r *receiver) follows(seq uint64) error {
	if seq != r.seq+1 {
		return malformed("batch %d follows batch %d", seq, r.seq)
	}
	r.seq = seq
	return nil
}

// fail takes note of an error of the table: what it has is no full copy.
func (r *receiver) fail(doing string, err error) (bool, error) {
	if err == nil {
		return false, nil
	}
	r.counts.failures++
	r.synced, r.failed, r.asks = false, true, true
	return true, fmt.Errorf("%s replicas: %w", doing, err)
}

func (r *receiver) onBegin(body []byte) (broken bool, err error) {
	b, err := parseBegin(body)
	if err == nil {
		err = r.follows(b.seq)
	}
	if err != nil {
		return false, err
	}
	r.begin, r.passing, r.failed = b, true, false
	r.marks.reset()
	if !b.full {
		return false, nil
	}
	r.synced = false
	err = r.table.Each(false, func(f *lb.FlowRecord) bool {
		r.marks.old(f.ID())
		return true
	})
	return r.fail("listing", err)
}

func (r *receiver) onEnd(body []byte) (broken bool, err error) {
	e, err := parseEnd(body)
	if err == nil {
		err = r.follows(e.seq)
	}
	if err != nil {
		return false, err
	}
	if !r.passing || e.epoch != r.begin.epoch {
		return false, malformed("pass %d ends, but %d began", e.epoch, r.begin.epoch)
	}
	defer r.marks.reset()
	r.passing = false
	if r.marks.full && r.begin.full {
		r.failed, r.asks = true, true
	}
	if !r.begin.full || r.failed {
		return false, nil
	}
	if err := r.sweep(e.serves); err != nil {
		return r.fail("removing", err)
	}
	r.synced = true
	r.counts.copies++
	return false, nil
}

// sweep forgets the replicas that were there when a full copy began and were
// not in it, if they are of an address that the copy is complete for.
func (r *receiver) sweep(serves []netip.Addr) error {
	ids := r.ids[:0]
	flush := func() error {
		if len(ids) == 0 {
			return nil
		}
		r.counts.swept += uint64(len(ids))
		err := r.table.Remove(ids)
		ids = ids[:0]
		return err
	}
	for id := range r.marks.unseen() {
		if !slices.Contains(serves, id.Service.Addr()) {
			continue
		}
		ids = append(ids, id)
		if len(ids) == maxOps {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	err := flush()
	r.ids = ids
	return err
}

// parseOps reads the records of a batch into r.ops.
func (r *receiver) parseOps(c *cursor, what string) error {
	r.ops = r.ops[:0]
	for len(c.b) > 0 {
		if len(r.ops) == maxOps {
			return malformed("%s have more than %d records", what, maxOps)
		}
		r.ops = append(r.ops, op{})
		o := &r.ops[len(r.ops)-1]
		o.closed = c.record(&o.record, r.theirs.pairs)
	}
	return c.done(what)
}

// onChanges takes what happened, in order.
func (r *receiver) onChanges(body []byte) (broken bool, err error) {
	c := cursor{b: body}
	seq := c.uvarint()
	if err := r.parseOps(&c, "changes"); err != nil {
		return false, err
	}
	if err := r.follows(seq); err != nil {
		return false, err
	}
	// Of each flow the last word counts. That done, removals can go first: they
	// and the records are of different flows.
	clear(r.last)
	for i := range r.ops {
		r.last[r.ops[i].record.ID()] = i
	}
	r.records, r.ids = r.records[:0], r.ids[:0]
	for i := range r.ops {
		o := &r.ops[i]
		if o.closed {
			r.counts.closed++
		} else {
			r.counts.changes++
		}
		id := o.record.ID()
		if r.last[id] != i {
			continue
		}
		if r.passing {
			r.marks.changed(id)
		}
		if o.closed {
			r.ids = append(r.ids, id)
			continue
		}
		r.keep(&o.record)
	}
	if len(r.ids) > 0 {
		r.counts.removed += uint64(len(r.ids))
		if err := r.table.Remove(r.ids); err != nil {
			return r.fail("removing", err)
		}
	}
	return r.store()
}

// onCopy takes records of a pass.
func (r *receiver) onCopy(body []byte) (broken bool, err error) {
	c := cursor{b: body}
	seq, epoch := c.uvarint(), c.uvarint()
	if err := r.parseOps(&c, "records"); err != nil {
		return false, err
	}
	if err := r.follows(seq); err != nil {
		return false, err
	}
	if !r.passing || epoch != r.begin.epoch {
		return false, malformed("records of pass %d, but %d began", epoch, r.begin.epoch)
	}
	r.records = r.records[:0]
	for i := range r.ops {
		o := &r.ops[i]
		if o.closed {
			return false, malformed("a closed flow in a pass")
		}
		r.counts.copied++
		if !r.marks.copied(o.record.ID()) {
			r.counts.outdated++
			continue
		}
		r.keep(&o.record)
	}
	return r.store()
}

// keep puts a record on the list of those to be stored, if it can be.
func (r *receiver) keep(f *lb.FlowRecord) {
	if !r.ours().has(pair{f.Service, f.Backend}) {
		r.counts.unknown++
		return
	}
	r.records = append(r.records, *f)
}

// store stores the list.
func (r *receiver) store() (broken bool, err error) {
	if len(r.records) == 0 {
		return false, nil
	}
	refused, err := r.table.Store(r.records)
	r.counts.refused += uint64(refused)
	if err != nil {
		return r.fail("storing", err)
	}
	r.counts.stored += uint64(len(r.records) - refused)
	return false, nil
}
