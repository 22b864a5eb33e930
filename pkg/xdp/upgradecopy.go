package xdp

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// emptyAnew are the tables that begin empty: what they hold is worth a second
// or goes by a number that each program makes up.
var emptyAnew = map[string]bool{balancerMapBuckets: true, balancerMapSources: true, balancer6MapSources6: true}

// copyAll fills the new tables while nobody uses them.
func (u *upgrade) copyAll(t *tables) error {
	u.loads = make(map[uint32]loadRow)
	clock, err := t.clock()
	if err != nil {
		return err
	}
	u.since = clock.before(0) - 1
	for _, m := range u.moved {
		name := strings.TrimSuffix(m.name, "6")
		if m.old == nil || emptyAnew[m.name] || name == balancerMapFlows || name == balancerMapLoads {
			continue
		}
		if err := u.copyTable(m); err != nil {
			return fmt.Errorf("copying table %s: %w", m.name, err)
		}
	}
	if err := u.openCopiers(t); err != nil {
		return err
	}
	live := make(map[uint32]int64)
	for _, c := range u.copiers {
		n, err := c.all()
		if err != nil {
			return err
		}
		maps.Copy(live, n)
	}
	return u.copyLoads(live)
}

// openCopiers prepares for what has to be counted.
func (u *upgrade) openCopiers(t *tables) error {
	loads := u.movedTable(balancerMapLoads)
	if loads == nil {
		return nil
	}
	var err error
	if u.adder, err = newAdder(loads.new); err != nil {
		return err
	}
	for name, f := range map[string]familyTables{balancerMapFlows: &t.four, balancer6MapFlows6: &t.six} {
		m := u.movedTable(name)
		if m == nil {
			continue
		}
		c, err := f.copier(m.old, m.from, m.to, u.adder)
		if err != nil {
			return err
		}
		u.copiers = append(u.copiers, c)
	}
	return nil
}

// oldLoad reads the counts of a service out of the old table.
func (u *upgrade) oldLoad(m *movedTable, service uint32) (row loadRow, err error) {
	raw, err := m.old.LookupBytes(service)
	if err != nil {
		return row, err
	}
	return row, convert(&m.to.Value, &m.from.Value, bytesOf(unsafe.Slice(&row, 1)), raw)
}

// copyLoads copies the counts, with the active ones as the new flow table has
// them.
func (u *upgrade) copyLoads(live map[uint32]int64) error {
	m := u.movedTable(balancerMapLoads)
	if m == nil {
		return nil
	}
	for service := range m.old.MaxEntries() {
		row, err := u.oldLoad(m, service)
		if err != nil {
			return fmt.Errorf("copying the counts: %w", err)
		}
		u.loads[service] = row
		for slot := range row.Active {
			row.Active[slot] = live[index(service, uint32(slot))]
		}
		if err := m.new.Put(service, row); err != nil {
			return fmt.Errorf("copying the counts: %w", err)
		}
	}
	return nil
}

// copyAgain copies what has happened during copyAll: there is less of it, and
// so less that will have happened by the end.
func (u *upgrade) copyAgain(t *tables) error {
	began := time.Now()
	if err := u.copyChanged(t); err != nil {
		return err
	}
	if u.took = time.Since(began); u.lost > 0 {
		return errNoRoom
	}
	return nil
}

// copyChanged copies what has happened since the last time.
func (u *upgrade) copyChanged(t *tables) error {
	if len(u.copiers) == 0 {
		return nil
	}
	clock, err := t.clock()
	if err != nil {
		return err
	}
	now := clock.before(0) - 1
	u.lost = 0
	for _, c := range u.copiers {
		lost, err := c.changed(u.since)
		if err != nil {
			return err
		}
		u.lost += lost
	}
	u.since = now
	return nil
}

// settle copies what the old program has done last. It is off the interface,
// but another CPU may still be in the middle of it: the barrier waits for that.
func (u *upgrade) settle(t *tables) error {
	if len(u.moved) == 0 {
		return nil
	}
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0); errno != 0 {
		// Not in every kernel. A packet takes microseconds.
		time.Sleep(10 * time.Millisecond)
	}
	for _, name := range []string{balancerMapHandshakes, balancer6MapHandshakes6} {
		if m := u.movedTable(name); m != nil {
			if err := u.copyHandshakes(m); err != nil {
				return err
			}
		}
	}
	if err := u.copyChanged(t); err != nil {
		return err
	}
	m := u.movedTable(balancerMapLoads)
	for service, was := range u.loads {
		is, err := u.oldLoad(m, service)
		if err == nil {
			err = u.adder.totals(service, &was, &is)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// membarrierGlobal is MEMBARRIER_CMD_GLOBAL of linux/membarrier.h: it returns
// when every CPU has left what it was in the middle of.
const membarrierGlobal = 1

// copyTable copies a table as it is, but for its layout.
func (u *upgrade) copyTable(m *movedTable) error {
	switch name := strings.TrimSuffix(m.name, "6"); {
	case name == balancerMapVerdicts:
		return u.copyVerdicts(m)
	case name == balancerMapHandshakes:
		return u.copyHandshakes(m)
	case m.old.Type() == ebpf.PerCPUArray:
		return m.eachIndex(func(i uint32, perCPU [][]byte) error { return m.putPerCPU(i, perCPU) })
	case m.old.Type() == ebpf.Array:
		for i := range m.old.MaxEntries() {
			raw, err := m.old.LookupBytes(i)
			if err != nil {
				return err
			}
			if err := m.putIndex(i, raw); err != nil {
				return err
			}
		}
		return nil
	}
	var key, raw []byte
	it := m.old.Iterate()
	for it.Next(&key, &raw) {
		newKey := make([]byte, m.to.Key.Size)
		value := make([]byte, m.to.Value.Size)
		err := errors.Join(convert(&m.to.Key, &m.from.Key, newKey, key), convert(&m.to.Value, &m.from.Value, value, raw))
		if err != nil {
			return err
		}
		if err := m.new.Put(newKey, value); err != nil {
			return err
		}
	}
	return it.Err()
}

// putIndex writes an entry of an array.
func (m *movedTable) putIndex(i uint32, raw []byte) error {
	if allZero(raw) {
		return nil
	}
	if i >= m.new.MaxEntries() {
		return fmt.Errorf("entry %d: %w", i, errDoesNotFit)
	}
	value := make([]byte, m.to.Value.Size)
	if err := convert(&m.to.Value, &m.from.Value, value, raw); err != nil {
		return err
	}
	return m.new.Put(i, value)
}

func (m *movedTable) eachIndex(fn func(uint32, [][]byte) error) error {
	for i := range m.old.MaxEntries() {
		var perCPU [][]byte
		if err := m.old.Lookup(i, &perCPU); err != nil {
			return err
		}
		if slices.ContainsFunc(perCPU, func(b []byte) bool { return !allZero(b) }) {
			if err := fn(i, perCPU); err != nil {
				return err
			}
		}
	}
	return nil
}

func (m *movedTable) putPerCPU(i uint32, perCPU [][]byte) error {
	if i >= m.new.MaxEntries() {
		return fmt.Errorf("entry %d: %w", i, errDoesNotFit)
	}
	values := make([][]byte, len(perCPU))
	for cpu, raw := range perCPU {
		values[cpu] = make([]byte, m.to.Value.Size)
		if err := convert(&m.to.Value, &m.from.Value, values[cpu], raw); err != nil {
			return err
		}
	}
	return m.new.Put(i, values)
}

// copyVerdicts goes by the names: numbers change with every verdict that is
// added. Those that are gone are left out.
func (u *upgrade) copyVerdicts(m *movedTable) error {
	return m.eachIndex(func(i uint32, perCPU [][]byte) error {
		if int(i) >= len(u.was.Verdicts) {
			return nil
		}
		to := slices.Index(u.is.Verdicts, u.was.Verdicts[i])
		if to < 0 {
			return nil
		}
		return m.putPerCPU(uint32(to), perCPU)
	})
}

// copyHandshakes gives each its place in a ring of another length. Of two that
// share a place the younger has it, as if it had come later.
func (u *upgrade) copyHandshakes(m *movedTable) error {
	at := m.from.Value.field("ticket")
	ticketOf := func(s *shape, raw []byte) (ticket uint32, err error) {
		f := s.field(at.Name)
		err = convert(&shape{Size: 4}, &f.Shape, bytesOf(unsafe.Slice(&ticket, 1)), raw[f.Offset:][:f.Shape.Size])
		return ticket, err
	}
	for i := range m.old.MaxEntries() {
		raw, err := m.old.LookupBytes(i)
		if err != nil {
			return fmt.Errorf("copying a handshake: %w", err)
		}
		if allZero(raw) {
			continue
		}
		ticket, err := ticketOf(&m.from.Value, raw)
		if err != nil {
			return err
		}
		place := ticket & (m.new.MaxEntries() - 1)
		have, err := m.new.LookupBytes(place)
		if err != nil {
			return fmt.Errorf("copying a handshake: %w", err)
		}
		is, err := ticketOf(&m.to.Value, have)
		if err != nil {
			return err
		}
		if !allZero(have) && int32(ticket-is) <= 0 {
			continue
		}
		value := make([]byte, m.to.Value.Size)
		if err := convert(&m.to.Value, &m.from.Value, value, raw); err != nil {
			return fmt.Errorf("copying a handshake: %w", err)
		}
		if err := m.new.Put(place, value); err != nil {
			return fmt.Errorf("copying a handshake: %w", err)
		}
	}
	return nil
}

// finish completes an upgrade that was interrupted with its program on the
// interface. What the old program did last is still to be copied.
func (u *upgrade) finish(t *tables, began uint32) error {
	if err := u.openCopiers(t); err != nil {
		return err
	}
	u.since = began
	if err := u.copyChanged(t); err != nil {
		return err
	}
	return commit(u.dir)
}

// pinOf is where one of the moved tables or any other is until the commit.
func (u *upgrade) pinOf(name string) string {
	if slices.ContainsFunc(u.moved, func(m *movedTable) bool { return m.name == name }) {
		name += newSuffix
	}
	return filepath.Join(u.dir, name)
}
