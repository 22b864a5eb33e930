package xdp

import (
	"errors"
	"fmt"
	"sync"
	"unsafe"

	"github.com/cilium/ebpf"
)

// flowScan reads a whole flow table. It may be used by several goroutines.
type flowScan[A address] struct {
	flows   *ebpf.Map
	buffers sync.Pool // of *flowBatch[A]

	mu     sync.Mutex
	lookup *gatherer // made when it is first wanted
}

// flowBatch is a buffer for reading the flow table in strides. 4096 entries a
// system call read 200,000 in 62 ms; one at a time takes ten times as long.
type flowBatch[A address] struct {
	keys [batchSize]flowKey[A]
	rows [batchSize]flowRow[A]
}

const batchSize = 4096

func newFlowScan[A address](flows *ebpf.Map) *flowScan[A] {
	return &flowScan[A]{flows: flows, buffers: sync.Pool{New: func() any { return new(flowBatch[A]) }}}
}

// Close releases the program that looks up other halves; the table stays open.
func (s *flowScan[A]) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.lookup.Close()
	s.lookup = nil
	return err
}

// each calls fn for every entry until it returns false. Entries that come or go
// meanwhile may be seen or missed.
func (s *flowScan[A]) each(fn func(*flowKey[A], *flowRow[A]) bool) error {
	batch := s.buffers.Get().(*flowBatch[A])
	defer s.buffers.Put(batch)
	return batch.each(s.flows, fn)
}

func (b *flowBatch[A]) each(m *ebpf.Map, fn func(*flowKey[A], *flowRow[A]) bool) error {
	more := true
	return b.strides(m, func(keys []flowKey[A], rows []flowRow[A]) (bool, error) {
		for i := range keys {
			if more = fn(&keys[i], &rows[i]); !more {
				break
			}
		}
		return more, nil
	})
}

func (b *flowBatch[A]) strides(m *ebpf.Map, fn func([]flowKey[A], []flowRow[A]) (more bool, err error)) error {
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, b.keys[:], b.rows[:], nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("reading the flow table: %w", err)
		}
		more, fnErr := fn(b.keys[:n], b.rows[:n])
		if fnErr != nil || !more || err != nil { // ErrKeyNotExist: the end
			return fnErr
		}
	}
}

// gatherer is for the other halves.
func (s *flowScan[A]) gatherer() (*gatherer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	if s.lookup == nil {
		s.lookup, err = newGatherer(s.flows)
	}
	return s.lookup, err
}

// eachPair calls fn for every flow whose forward half matches, with its reverse
// half, or nil when that is gone, until fn returns false.
func (s *flowScan[A]) eachPair(match func(*flowKey[A], *flowRow[A]) bool, fn func(key *flowKey[A], forward, reverse *flowRow[A]) bool) error {
	g, err := s.gatherer()
	if err != nil {
		return err
	}
	var found []int
	var peers []flowKey[A]
	batch := s.buffers.Get().(*flowBatch[A])
	defer s.buffers.Put(batch)
	return batch.strides(s.flows, func(keys []flowKey[A], rows []flowRow[A]) (bool, error) {
		found, peers = found[:0], peers[:0]
		for i := range keys {
			if rows[i].has(balancerFlowFlagFLOW_FORWARD) && match(&keys[i], &rows[i]) {
				found, peers = append(found, i), append(peers, rows[i].peerKey())
			}
		}
		more := true
		err := g.look(bytesOf(peers), func(i int, value []byte) bool {
			var reverse *flowRow[A]
			if value != nil {
				row := fromBytes[flowRow[A]](value)
				reverse = &row
			}
			more = fn(&keys[found[i]], &rows[found[i]], reverse)
			return more
		})
		return more, err
	})
}

// bytesOf is the memory of rows, which have no pointers in them and no padding
// that is not explicit.
func bytesOf[T any](rows []T) []byte {
	if len(rows) == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(&rows[0])), len(rows)*int(unsafe.Sizeof(rows[0])))
}

// fromBytes is the other way round, for one row.
func fromBytes[T any](b []byte) (row T) {
	copy(bytesOf(unsafe.Slice(&row, 1)), b)
	return row
}

// eachHalf calls fn for every entry of the flow table until it returns false.
// Entries that come or go meanwhile may be seen or missed.
func (f *family[A]) eachHalf(fn func(*half) bool) error {
	return f.scan.each(func(key *flowKey[A], row *flowRow[A]) bool {
		h := f.halfOf(key, row)
		return fn(&h)
	})
}

// eachFlow calls fn for every flow whose forward half matches, with its reverse
// half, or nil when that is gone, until fn returns false.
func (f *family[A]) eachFlow(match func(*half) bool, fn func(forward, reverse *half) bool) error {
	return f.scan.eachPair(func(key *flowKey[A], row *flowRow[A]) bool {
		h := f.halfOf(key, row)
		return match(&h)
	}, func(key *flowKey[A], row, peer *flowRow[A]) bool {
		forward := f.halfOf(key, row)
		if peer == nil {
			return fn(&forward, nil)
		}
		peerKey := row.peerKey()
		reverse := f.halfOf(&peerKey, peer)
		return fn(&forward, &reverse)
	})
}
