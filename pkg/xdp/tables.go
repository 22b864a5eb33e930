package xdp

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// tables are all maps that the program and the daemon keep things in; both the
// daemon and, through pins, the tools open them.
type tables struct {
	four family[addr4]
	six  family[addr6] // only if hasSix
	// hasSix is false where no IPv6 program was ever loaded.
	hasSix bool

	loads, schedules, traffics, connectTimes, verdicts *ebpf.Map

	clockProg *ebpf.Program
	all       []*ebpf.Map
}

// openTables opens what is pinned, each under the path that pinOf says.
func openTables(pinOf func(name string) (string, error), readOnly bool) (t tables, err error) {
	names := map[string]**ebpf.Map{
		balancerMapLoads:        &t.loads,
		balancerMapSchedules:    &t.schedules,
		balancerMapTraffics:     &t.traffics,
		balancerMapConnectTimes: &t.connectTimes,
		balancerMapVerdicts:     &t.verdicts,
	}
	merge := func(more map[string]**ebpf.Map) {
		for name, m := range more {
			names[name] = m
		}
	}
	merge(t.four.byName())
	six := t.six.byName()
	path, err := pinOf(balancer6MapFlows6)
	if err != nil {
		return t, err
	}
	if t.hasSix, err = exists(path); err != nil {
		return t, err
	}
	if t.hasSix {
		merge(six)
	}
	var opened []*ebpf.Map
	for name, to := range names {
		path, err := pinOf(name)
		if err != nil {
			return t, errors.Join(err, closeMaps(opened))
		}
		m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: readOnly})
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w in %s", ErrNoPins, filepath.Dir(path))
		}
		if err != nil {
			return t, errors.Join(fmt.Errorf("opening table %s: %w", name, err), closeMaps(opened))
		}
		*to = m
		opened = append(opened, m)
	}
	t.all = opened
	t.four.scan = newFlowScan[addr4](t.four.flows)
	if t.hasSix {
		t.six.scan = newFlowScan[addr6](t.six.flows)
	}
	return t, nil
}

func exists(path string) (bool, error) {
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Close releases the tables, if they are open.
func (t *tables) Close() error {
	err := errors.Join(closeMaps(t.all), t.four.Close(), t.six.Close())
	t.all = nil
	return err
}

func closeMaps(maps []*ebpf.Map) error {
	var errs []error
	for _, m := range maps {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}

// families are those that there are.
func (t *tables) families() []familyTables {
	if t.hasSix {
		return []familyTables{&t.four, &t.six}
	}
	return []familyTables{&t.four}
}

// errNoIPv6 is returned for IPv6 addresses where only IPv4 was asked for.
var errNoIPv6 = errors.New("the program for IPv6 is not loaded")

// of is the family of an address.
func (t *tables) of(addr netip.Addr) (familyTables, error) {
	switch {
	case addr.Is4():
		return &t.four, nil
	case !addr.IsValid() || addr.Zone() != "" || addr.Is4In6():
		return nil, fmt.Errorf("%s is not a plain IPv4 or IPv6 address", addr)
	case !t.hasSix:
		return nil, fmt.Errorf("%s: %w", addr, errNoIPv6)
	}
	return &t.six, nil
}

// clock reads the program's clock.
func (t *tables) clock() (clock, error) { return readClock(t.clockProg) }

// allServices returns the services of both families.
func (t *tables) allServices() (map[netip.AddrPort]serviceHead, error) {
	all := make(map[netip.AddrPort]serviceHead)
	for _, f := range t.families() {
		services, err := f.services()
		if err != nil {
			return nil, err
		}
		for addr, head := range services {
			all[addr] = head
		}
	}
	return all, nil
}

// placements reads back which backends an earlier life had placed where.
func (t *tables) placements() ([]placedBackend, error) {
	var placed []placedBackend
	for _, f := range t.families() {
		services, err := f.services()
		if err != nil {
			return nil, err
		}
		for addr, s := range services {
			for slot := range uint32(lb.MaxBackends) {
				row, err := f.backend(index(s.id, slot))
				if err != nil {
					return nil, err
				}
				if row.addr.IsValid() {
					placed = append(placed, placedBackend{
						service: s.name, vip: addr, name: row.name, addr: row.addr, id: s.id, slot: slot,
					})
				}
			}
		}
	}
	return placed, nil
}

// memory is how many bytes the maps take, as the kernel reckons.
func (t *tables) memory() (bytes int64) {
	for _, m := range t.all {
		if info, err := m.Info(); err == nil {
			if n, ok := info.Memlock(); ok {
				bytes += int64(n)
			}
		}
	}
	return bytes
}
