package xdp

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// finishInterrupted completes an upgrade that died with its program on the
// interface. One that died earlier has changed nothing that counts.
func (b *Balancer) finishInterrupted() error {
	dir := b.cfg.PinPath
	took, err := tookOver(dir)
	if err != nil || !took {
		return err
	}
	b.log.Warn("an earlier start was interrupted; finishing what it had begun")
	u := &upgrade{dir: dir}
	err = u.resume()
	if errors.Is(err, ErrTables) {
		// Only what that version's own daemon could have read is lost: flows
		// opened in the moment of the change.
		b.log.Warn("not all of it can be finished", "reason", err)
		err = commit(dir)
	}
	return errors.Join(err, u.Close())
}

// resume copies what the old program has done last, and gives the new tables
// their names.
func (u *upgrade) resume() error {
	names, err := newNames(u.dir)
	if err != nil {
		return err
	}
	was, err := readDescription(filepath.Join(u.dir, descriptionPin))
	if err != nil {
		return err
	}
	is, err := readDescription(filepath.Join(u.dir, descriptionPin+newSuffix))
	if err != nil {
		return err
	}
	if was == nil || is == nil { // nothing was moved, or all was copied
		return commit(u.dir)
	}
	u.was, u.is = was, *is
	for _, n := range names {
		name := strings.TrimSuffix(n, newSuffix)
		to, described := is.Tables[name]
		if !described {
			continue
		}
		t := &movedTable{name: name, from: was.Tables[name], to: to}
		u.moved = append(u.moved, t)
		t.old, err = openPinned(filepath.Join(u.dir, name))
		if err != nil {
			return err
		}
		if t.new, err = openPinned(filepath.Join(u.dir, n)); err != nil {
			return err
		}
	}
	return u.resumeWith()
}

// resumeWith does the rest with programs of this version, which must therefore
// have the layout of the interrupted one.
func (u *upgrade) resumeWith() error {
	var err error
	if u.specs, err = bothSpecifications(); err != nil {
		return err
	}
	ours, err := describe(u.specs...)
	if err != nil {
		return err
	}
	for name := range ours.Tables {
		if ours.Meaning != u.is.Meaning || ours.differs(&u.is, name) {
			return fmt.Errorf("%w: the interrupted version had another layout of table %s", ErrTables, name)
		}
	}
	var four programs
	var six programs6
	defer func() { _ = errors.Join(four.Close(), six.Close()) }() // loaded for reading
	if err := u.loadOver(u.specs[0], &four); err != nil {
		return err
	}
	six6, err := exists(u.pinOf(balancer6MapFlows6))
	if err != nil {
		return err
	}
	if six6 {
		if err := u.loadOver(u.specs[1], &six); err != nil {
			return err
		}
	}
	t, err := openTables(func(name string) (string, error) { return u.pinOf(name), nil }, false)
	if err != nil {
		return err
	}
	t.four.reapProg, t.six.reapProg, t.clockProg = four.Reap, six.Reap, four.ReadClock
	began, err := u.began(&t)
	if err == nil {
		err = u.finish(&t, began)
	}
	return errors.Join(err, t.Close())
}

// loadOver loads programs over the tables that are there, whatever their size.
func (u *upgrade) loadOver(spec *ebpf.CollectionSpec, to any) error {
	there := make(map[string]*ebpf.Map)
	defer func() {
		for _, m := range there {
			_ = m.Close() // a second descriptor
		}
	}()
	for name, ms := range spec.Maps {
		if !pinned(name) {
			continue
		}
		m, err := openPinned(u.pinOf(name))
		if err != nil {
			return err
		}
		if m == nil {
			return fmt.Errorf("%w: table %s is missing", ErrTables, name)
		}
		there[name] = m
		if ms.MaxEntries = m.MaxEntries(); ms.Compatible(m) != nil {
			return fmt.Errorf("%w: the interrupted version had another table %s", ErrTables, name)
		}
	}
	return spec.LoadAndAssign(to, &ebpf.CollectionOptions{MapReplacements: there})
}

// began is when the interrupted version loaded its program, in age units:
// copying began after that.
func (u *upgrade) began(t *tables) (uint32, error) {
	prog, err := ebpf.LoadPinnedProgram(marker(u.dir), nil)
	if err != nil {
		return 0, fmt.Errorf("opening the pinned program: %w", err)
	}
	defer prog.Close()
	info, err := prog.Info()
	if err != nil {
		return 0, fmt.Errorf("asking for the pinned program: %w", err)
	}
	loaded, _ := info.LoadTime() // since boot; known since 4.15
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return 0, fmt.Errorf("reading the clock: %w", err)
	}
	clock, err := t.clock()
	if err != nil {
		return 0, err
	}
	return clock.before(time.Duration(now.Nano())-loaded) - 1, nil
}

// abandon clears away what a failed Open has made, unless its program is on the
// interface: then the next one finishes.
func (b *Balancer) abandon() error {
	took, err := tookOver(b.cfg.PinPath)
	if err != nil || took {
		return err
	}
	return removeNew(b.cfg.PinPath)
}

// clearObsolete removes the tables that the program has no more: those of an
// earlier version, or of IPv6 when that was switched off. The services of the
// latter leave the tables that both families share.
func (b *Balancer) clearObsolete() error {
	u := &b.upgrade
	if u.was == nil {
		return nil
	}
	ours := make(map[string]bool)
	for _, spec := range u.specs {
		for name := range spec.Maps {
			ours[name] = true
		}
	}
	if !b.cfg.IPv6 {
		if err := b.clearIPv6(); err != nil {
			return err
		}
	}
	dropped := false
	for name := range u.was.Tables {
		if ours[name] {
			continue
		}
		dropped = true
		if err := removePin(filepath.Join(u.dir, name)); err != nil {
			return err
		}
	}
	if !dropped {
		return nil
	}
	is, err := describe(u.specs...)
	if err != nil {
		return err
	}
	described := filepath.Join(u.dir, descriptionPin)
	if err := is.pin(described + newSuffix); err != nil {
		return err
	}
	return commit(u.dir)
}

// clearIPv6 forgets the counts and schedules of services that the program does
// not know any more: their numbers are free to be used again.
func (b *Balancer) clearIPv6() error {
	u := &b.upgrade
	m, err := openPinned(filepath.Join(u.dir, balancer6MapServices6))
	if err != nil || m == nil {
		return err
	}
	defer m.Close()
	was := u.was.Tables[balancer6MapServices6].Value
	id := was.field("id")
	if id == nil {
		return fmt.Errorf("%w: table %s has no id; %s", ErrTables, balancer6MapServices6, howToDetach)
	}
	ids := make(map[uint32]bool)
	var key, raw []byte
	it := m.Iterate()
	for it.Next(&key, &raw) {
		ids[fromBytes[uint32](raw[id.Offset:][:4])] = true
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("listing the services of IPv6: %w", err)
	}
	zero := make([]trafficRow, ebpf.MustPossibleCPU())
	for service := range ids {
		if err := b.tables.schedules.Put(service, scheduleRow{}); err != nil {
			return fmt.Errorf("clearing a schedule: %w", err)
		}
		for slot := range uint32(lb.MaxBackends) {
			at := index(service, slot)
			_, err := control(b.progs.ClearSlot, []clearRequest{{Service: service, Slot: slot}})
			err = errors.Join(err, b.tables.traffics.Put(at, zero), b.tables.connectTimes.Put(at, connectTimeRow{}))
			if err != nil {
				return fmt.Errorf("clearing the counts of IPv6: %w", err)
			}
		}
	}
	if len(ids) > 0 {
		b.log.Warn("IPv6 was switched off: its services are gone, and their connections end", "services", len(ids))
	}
	return nil
}
