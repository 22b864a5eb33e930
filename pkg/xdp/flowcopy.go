package xdp

import (
	"errors"
	"fmt"
	"reflect"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// flowCopier carries the flows of one family over into a table of another size
// or layout, while packets go on.
type flowCopier interface {
	// all copies every flow into the table that nobody uses yet, and returns how
	// many of each backend are live.
	all() (map[uint32]int64, error)
	// changed looks again at the flows that were seen since a time in age units,
	// or were opened since, and returns for how many there was no room. The
	// table may be in use.
	changed(since uint32) (lost int, err error)
	Close() error
}

// errNoRoom means that the table has filled up while it was being copied.
var errNoRoom = fmt.Errorf("%w: the new flow table is full before all flows are in it; make it larger, or %s", ErrTables, howToDetach)

// flowCopy implements flowCopier.
type flowCopy[A address] struct {
	old      *ebpf.Map
	from, to tableDescription
	lookup   *gatherer // in the old table
	into     *family[A]
	adder    *adder
}

// copier makes the copier from an old table into the family's own.
func (f *family[A]) copier(old *ebpf.Map, from, to tableDescription, adder *adder) (flowCopier, error) {
	lookup, err := newGatherer(old)
	if err != nil {
		return nil, err
	}
	return &flowCopy[A]{old: old, from: from, to: to, lookup: lookup, into: f, adder: adder}, nil
}

// Close leaves the tables open.
func (c *flowCopy[A]) Close() error { return c.lookup.Close() }

// pair is a flow with both halves, as they are now.
type pair[A address] struct {
	key              flowKey[A]
	forward, reverse flowRow[A]
}

func (p *pair[A]) live() bool { return !p.forward.has(balancerFlowFlagFLOW_CLOSED) }

// eachRaw reads a hash whose entries no Go type has. The slices are overwritten
// by the next batch.
func eachRaw(m *ebpf.Map, fn func(keys, values [][]byte) error) error {
	buffer := func(size uint32) (reflect.Value, [][]byte) {
		v := reflect.MakeSlice(reflect.SliceOf(reflect.ArrayOf(int(size), reflect.TypeFor[byte]())), batchSize, batchSize)
		all := unsafe.Slice((*byte)(v.UnsafePointer()), batchSize*int(size))
		parts := make([][]byte, batchSize)
		for i := range parts {
			parts[i] = all[i*int(size):][:size]
		}
		return v, parts
	}
	keys, keyParts := buffer(m.KeySize())
	values, valueParts := buffer(m.ValueSize())
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, keys.Interface(), values.Interface(), nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("reading a table: %w", err)
		}
		fnErr := fn(keyParts[:n], valueParts[:n])
		if fnErr != nil || err != nil { // ErrKeyNotExist: the end
			return fnErr
		}
	}
}

func (c *flowCopy[A]) key(raw []byte) (key flowKey[A], err error) {
	return key, convert(&c.to.Key, &c.from.Key, bytesOf(unsafe.Slice(&key, 1)), raw)
}

// row leaves out FLOW_TAKEN: whoever was replacing the entry is not doing so
// in the new table.
func (c *flowCopy[A]) row(raw []byte) (row flowRow[A], err error) {
	err = convert(&c.to.Value, &c.from.Value, bytesOf(unsafe.Slice(&row, 1)), raw)
	row.Flags &^= uint32(balancerFlowFlagFLOW_TAKEN)
	return row, err
}

// oldKeys are keys as the old table has them, one behind the other.
func (c *flowCopy[A]) oldKeys(keys []flowKey[A]) ([]byte, error) {
	size := int(c.from.Key.Size)
	raw := make([]byte, len(keys)*size)
	for i := range keys {
		if err := convert(&c.from.Key, &c.to.Key, raw[i*size:][:size], bytesOf(keys[i:i+1])); err != nil {
			return nil, err
		}
	}
	return raw, nil
}

// completed adds the reverse halves. Flows that have none are being removed,
// and are left out.
func (c *flowCopy[A]) completed(flows []pair[A]) ([]pair[A], error) {
	peers := make([]flowKey[A], len(flows))
	for i := range flows {
		peers[i] = flows[i].forward.peerKey()
	}
	raw, err := c.oldKeys(peers)
	if err != nil {
		return nil, err
	}
	whole := flows[:0]
	var rowErr error
	err = c.lookup.look(raw, func(i int, value []byte) bool {
		if value == nil {
			return true
		}
		p := flows[i]
		p.reverse, rowErr = c.row(value)
		whole = append(whole, p)
		return rowErr == nil
	})
	return whole, errors.Join(err, rowErr)
}

func (c *flowCopy[A]) all() (map[uint32]int64, error) {
	live := make(map[uint32]int64)
	return live, eachRaw(c.old, func(keys, values [][]byte) error {
		flows := make([]pair[A], 0, len(keys))
		for i := range keys {
			row, err := c.row(values[i])
			if err != nil {
				return err
			}
			if !row.has(balancerFlowFlagFLOW_FORWARD) {
				continue
			}
			key, err := c.key(keys[i])
			if err != nil {
				return err
			}
			flows = append(flows, pair[A]{key: key, forward: row})
		}
		flows, err := c.completed(flows)
		if err != nil || len(flows) == 0 {
			return err
		}
		newKeys, rows := make([]flowKey[A], 0, 2*len(flows)), make([]flowRow[A], 0, 2*len(flows))
		for i := range flows {
			p := &flows[i]
			newKeys, rows = append(newKeys, p.key, p.forward.peerKey()), append(rows, p.forward, p.reverse)
			if p.live() {
				live[uint32(p.forward.Backend)]++
			}
		}
		_, err = c.into.flows.BatchUpdate(newKeys, rows, nil)
		if errors.Is(err, unix.E2BIG) {
			return errNoRoom
		}
		if err != nil {
			return fmt.Errorf("copying flows: %w", err)
		}
		return nil
	})
}

// changed finds flows by either half: replies leave no trace in the forward
// half but for the flags that they set.
func (c *flowCopy[A]) changed(since uint32) (lost int, err error) {
	found := make(map[flowKey[A]]bool)
	err = eachRaw(c.old, func(keys, values [][]byte) error {
		for i := range keys {
			row, err := c.row(values[i])
			if err != nil {
				return err
			}
			if int32(row.Seen-since) < 0 {
				continue
			}
			key := row.peerKey()
			if row.has(balancerFlowFlagFLOW_FORWARD) {
				if key, err = c.key(keys[i]); err != nil {
					return err
				}
			}
			found[key] = true
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	keys := make([]flowKey[A], 0, len(found))
	for key := range found {
		keys = append(keys, key)
	}
	raw, err := c.oldKeys(keys)
	if err != nil {
		return 0, err
	}
	var flows []pair[A]
	var rowErr error
	err = c.lookup.look(raw, func(i int, value []byte) bool {
		if value == nil {
			return true
		}
		var row flowRow[A]
		if row, rowErr = c.row(value); rowErr == nil && row.has(balancerFlowFlagFLOW_FORWARD) {
			flows = append(flows, pair[A]{key: keys[i], forward: row})
		}
		return rowErr == nil
	})
	if err := errors.Join(err, rowErr); err != nil {
		return 0, err
	}
	if flows, err = c.completed(flows); err != nil {
		return 0, err
	}
	return c.reconcile(flows)
}

// reconcile brings the table to what it would be had the program that is on
// the interface now seen these flows all along. Counts move with every step,
// so that they are exact at each moment.
func (c *flowCopy[A]) reconcile(flows []pair[A]) (lost int, err error) {
	g, err := c.into.scan.gatherer()
	if err != nil {
		return 0, err
	}
	keys := make([]flowKey[A], len(flows))
	for i := range flows {
		keys[i] = flows[i].key
	}
	var stale []reapRequest[A]
	var insert []pair[A]
	err = g.look(bytesOf(keys), func(i int, value []byte) bool {
		p := flows[i]
		if value != nil {
			is := fromBytes[flowRow[A]](value)
			if !merge(&p, &is) {
				return true
			}
			stale = append(stale, reapRequest[A]{Key: p.key, Force: 1})
		}
		insert = append(insert, p)
		return true
	})
	if err != nil {
		return 0, err
	}
	if _, err := c.into.run(stale); err != nil {
		return 0, err
	}
	for i := range insert {
		err := c.insert(&insert[i])
		if errors.Is(err, unix.E2BIG) {
			lost++
		} else if err != nil {
			return lost, err
		}
	}
	return lost, nil
}

// merge says whether p, as the old table has a flow, has to replace what the
// new one has, and adds to it what only that has seen.
func merge[A address](p *pair[A], is *flowRow[A]) bool {
	was := &p.forward
	if was.Rewritten != is.Rewritten {
		// One of the two is a new connection from an old one's port.
		age := int32(was.Created - is.Created)
		return age > 0 || age == 0 && is.has(balancerFlowFlagFLOW_CLOSED) && p.live()
	}
	if was.Flags&^is.Flags == 0 {
		return false
	}
	const clientFIN = balancerFlowFlagFLOW_FIN_CLIENT
	if is.has(clientFIN) || !was.has(clientFIN) {
		was.Ticket = is.Ticket
	}
	was.Flags |= is.Flags &^ uint32(balancerFlowFlagFLOW_TAKEN)
	if int32(is.Seen-was.Seen) > 0 {
		was.Seen = is.Seen
	}
	if int32(is.Ack-was.Ack) > 0 {
		was.Ack = is.Ack
	}
	return true
}

// insert adds a flow in the order in which the program does, so that it is
// counted before a packet can end it. A port that another flow was given in
// the meantime, or a client that came again, leaves things as they are.
func (c *flowCopy[A]) insert(p *pair[A]) error {
	peer := p.forward.peerKey()
	err := c.into.flows.Update(peer, p.reverse, ebpf.UpdateNoExist)
	if errors.Is(err, ebpf.ErrKeyExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("copying a flow: %w", err)
	}
	if p.live() {
		if err := c.adder.active(uint32(p.forward.Backend), 1); err != nil {
			return err
		}
	}
	err = c.into.flows.Update(p.key, p.forward, ebpf.UpdateNoExist)
	if err == nil {
		return nil
	}
	var undo error
	if p.live() {
		undo = c.adder.active(uint32(p.forward.Backend), -1)
	}
	if undo = errors.Join(undo, c.into.flows.Delete(peer)); undo != nil {
		return undo
	}
	if errors.Is(err, ebpf.ErrKeyExist) {
		return nil
	}
	return fmt.Errorf("copying a flow: %w", err)
}
