package xdp

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// An upgrade puts a program on the interface in the place of an earlier one.
// Tables that fit are adopted; those whose layout or size has changed are made
// anew beside the old ones, under names that end in newSuffix, filled while the
// old program still forwards, brought up to date when the new one has taken
// over, and then renamed.
//
// Whoever dies on the way leaves either the old or the new program with all of
// its tables. Which one is told by the marker: the new program's own pin, which
// is there before the program is on the interface and goes when all names are
// right. If the program under the link is the marker's, the new names count.
type upgrade struct {
	dir   string
	specs []*ebpf.CollectionSpec
	was   *description // nil when nothing is pinned
	is    description
	moved []*movedTable

	copiers []flowCopier
	adder   *adder
	loads   map[uint32]loadRow // the old counts, as they were copied
	lost    int                // flows for which there was no room at last
	took    time.Duration      // to copy what had changed
	since   uint32             // age units: the flows seen before were copied
}

// movedTable is a table that is made anew.
type movedTable struct {
	name     string
	old      *ebpf.Map // nil when there was none
	new      *ebpf.Map
	from, to tableDescription
}

// ErrTables means that the pinned tables cannot be carried over.
var ErrTables = errors.New("the pinned tables cannot be carried over")

// howToDetach is what to do about ErrTables.
const howToDetach = "stop the daemon and detach the program (pgsteerd -detach), which ends their flows"

// newSuffix has no dot: a BPF file system reserves names with one.
const newSuffix = "_new"

// marker is the new program's pin, see upgrade.
func marker(dir string) string { return filepath.Join(dir, balancerProgBalancer+newSuffix) }

// required are the fields without which an entry is worth nothing, by table;
// the tables of IPv6 are like those of IPv4. Any other field may be new, and
// then begins as zero.
var required = map[string][]string{
	balancerMapFlows:      {"rewritten", "client_mac", "backend", "flags", "ip_delta", "tcp_delta", "vip", "created", "seen"},
	balancerMapServices:   {"id", "nat", "nat_count", "nat_vips"},
	balancerMapVips:       {"index"},
	balancerMapBackends:   {"addr", "port"},
	balancerMapSchedules:  {"mask", "slots"},
	balancerMapLoads:      {"active"},
	balancerMapHandshakes: {"ticket"},
}

// together are the tables of which none is made anew without the others: counts
// and what they count.
var together = []string{balancerMapLoads, balancerMapFlows, balancer6MapFlows6}

// withThem are made anew, too: in an empty table no source is known, and none
// may open flows while the program is held.
var withThem = []string{balancerMapSources, balancer6MapSources6}

// plan finds out what has to be made anew, and whether it can be.
func (u *upgrade) plan() error {
	var err error
	if u.is, err = describe(u.specs...); err != nil {
		return err
	}
	if u.was, err = readDescription(filepath.Join(u.dir, descriptionPin)); err != nil {
		return err
	}
	if u.was == nil {
		if u.was, err = describePinned(u.dir, u.specs...); err != nil {
			return fmt.Errorf("%w; start once with CAP_SYS_ADMIN, or %s", err, howToDetach)
		}
	}
	changed := make(map[string]bool)
	var all []*movedTable
	for _, spec := range u.specs {
		for name, m := range spec.Maps {
			if _, seen := changed[name]; seen || !pinned(name) {
				continue
			}
			changed[name] = false
			t := &movedTable{name: name, to: u.is.Tables[name]}
			if t.old, err = openPinned(filepath.Join(u.dir, name)); err != nil {
				return err
			}
			all = append(all, t)
			if t.old == nil {
				continue
			}
			if t.from = u.was.Tables[name]; t.from.Key.Size != t.old.KeySize() || t.from.Value.Size != t.old.ValueSize() {
				return fmt.Errorf("%w: table %s is not what its description says; %s", ErrTables, name, howToDetach)
			}
			changed[name] = m.Compatible(t.old) != nil || u.was.differs(&u.is, name)
		}
	}
	if slices.ContainsFunc(together, func(name string) bool { return changed[name] }) {
		for _, name := range slices.Concat(together, withThem) {
			changed[name] = true
		}
	}
	anew := false
	for _, c := range changed {
		anew = anew || c
	}
	for _, t := range all {
		switch {
		case t.old == nil && anew, changed[t.name]:
			u.moved = append(u.moved, t)
		case t.old != nil:
			if err := t.old.Close(); err != nil {
				return err
			}
		}
	}
	return u.check()
}

// check refuses what would lose flows, or make nonsense of them.
func (u *upgrade) check() error {
	for _, t := range u.moved {
		if t.old == nil {
			continue
		}
		if u.was.Meaning != u.is.Meaning {
			return fmt.Errorf("%w: they were written by a version of pgsteerd that meant something else by the same names; %s", ErrTables, howToDetach)
		}
		if is := u.spec(t.name).Type; t.old.Type() != is {
			return fmt.Errorf("%w: table %s is a %s and would have to be a %s; %s", ErrTables, t.name, t.old.Type(), is, howToDetach)
		}
		for _, name := range required[strings.TrimSuffix(t.name, "6")] {
			if t.from.Value.field(name) == nil {
				return fmt.Errorf("%w: table %s has no %s; %s", ErrTables, t.name, name, howToDetach)
			}
		}
		if err := sameKeys(&t.from.Key, &t.to.Key); err != nil {
			return fmt.Errorf("%w: the keys of table %s: %w; %s", ErrTables, t.name, err, howToDetach)
		}
		if slots := t.from.Value.field("slots"); slots != nil {
			if n := slots.Shape.Size / max(slots.Shape.elemSize(), 1); n != lb.MaxBackends {
				return fmt.Errorf("%w: they have %d places a service, now there are %d; %s", ErrTables, n, lb.MaxBackends, howToDetach)
			}
		}
		if strings.TrimSuffix(t.name, "6") == balancerMapFlows {
			if err := u.checkRoom(t); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *shape) elemSize() uint32 {
	if s.Elem == nil {
		return 0
	}
	return s.Elem.Size
}

// sameKeys wants the same fields: with one more or one less, two keys could
// become one.
func sameKeys(a, b *shape) error {
	if len(a.Fields) != len(b.Fields) {
		return errors.New("they have other fields")
	}
	for i := range a.Fields {
		o := b.field(a.Fields[i].Name)
		if o == nil {
			return fmt.Errorf("%s is not in them any more", a.Fields[i].Name)
		}
		if err := sameKeys(&a.Fields[i].Shape, &o.Shape); err != nil {
			return fmt.Errorf("%s: %w", o.Name, err)
		}
	}
	return convert(b, a, make([]byte, b.Size), make([]byte, a.Size))
}

// checkRoom makes sure that the flows fit into the new table.
func (u *upgrade) checkRoom(t *movedTable) error {
	room := u.spec(t.name).MaxEntries
	if room >= t.old.MaxEntries() {
		return nil
	}
	n := 0
	err := eachRaw(t.old, func(keys, _ [][]byte) error { n += len(keys); return nil })
	if err != nil {
		return err
	}
	if n > int(room) {
		return fmt.Errorf("%w: a table for %d flows is too small for the %d that there are; make it larger, or %s",
			ErrTables, room/2, (n+1)/2, howToDetach)
	}
	return nil
}

func (u *upgrade) spec(name string) *ebpf.MapSpec {
	for _, spec := range u.specs {
		if m := spec.Maps[name]; m != nil {
			return m
		}
	}
	return nil
}

// prepare makes the new tables, empty, and describes what will be pinned. What
// an interrupted upgrade has left is cleared away.
func (u *upgrade) prepare() error {
	if err := removeNew(u.dir); err != nil {
		return err
	}
	d := u.is
	d.Tables = maps.Clone(u.is.Tables)
	if u.was != nil {
		for name, t := range u.was.Tables {
			if _, ok := d.Tables[name]; !ok {
				d.Tables[name] = t // pinned until the end of the upgrade
			}
		}
	}
	described := filepath.Join(u.dir, descriptionPin)
	if err := d.pin(described + newSuffix); err != nil {
		return err
	}
	// Nothing that is described is there in another layout: it is true already,
	// and tables that are about to be pinned must not be without.
	if len(u.moved) == 0 {
		if err := os.Rename(described+newSuffix, described); err != nil {
			return fmt.Errorf("replacing the tables' description: %w", err)
		}
	}
	for _, t := range u.moved {
		spec := u.spec(t.name).Copy()
		spec.Pinning = ebpf.PinNone
		var err error
		if t.new, err = ebpf.NewMap(spec); err != nil {
			return fmt.Errorf("making table %s: %w", t.name, err)
		}
		if err := t.new.Pin(filepath.Join(u.dir, t.name+newSuffix)); err != nil {
			return fmt.Errorf("pinning table %s: %w", t.name, err)
		}
	}
	return nil
}

// replacements are the new tables, for the loader.
func (u *upgrade) replacements(spec *ebpf.CollectionSpec) map[string]*ebpf.Map {
	all := make(map[string]*ebpf.Map)
	for _, t := range u.moved {
		if spec.Maps[t.name] != nil {
			all[t.name] = t.new
		}
	}
	return all
}

func (u *upgrade) movedTable(name string) *movedTable {
	for _, t := range u.moved {
		if t.name == name && t.old != nil {
			return t
		}
	}
	return nil
}

// Close releases what only an upgrade needs.
func (u *upgrade) Close() error {
	var errs []error
	for _, c := range u.copiers {
		errs = append(errs, c.Close())
	}
	for _, t := range u.moved {
		errs = append(errs, t.old.Close(), t.new.Close())
	}
	errs = append(errs, u.adder.Close())
	u.copiers, u.moved, u.adder, u.loads = nil, nil, nil, nil
	return errors.Join(errs...)
}

// commit gives the new tables their names. The marker goes last.
func commit(dir string) error {
	names, err := newNames(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if name == filepath.Base(marker(dir)) {
			continue
		}
		if err := os.Rename(filepath.Join(dir, name), filepath.Join(dir, strings.TrimSuffix(name, newSuffix))); err != nil {
			return fmt.Errorf("replacing a pin: %w", err)
		}
	}
	return removePin(marker(dir))
}

// removeNew clears away what an upgrade has left that did not come to put its
// program on the interface.
func removeNew(dir string) error {
	names, err := newNames(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := removePin(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// newNames are the pins whose names end in newSuffix.
func newNames(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("listing the pins: %w", err)
	}
	var names []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), newSuffix) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// tookOver says whether the program on the interface is that of an upgrade
// which was interrupted before all names were right.
func tookOver(dir string) (bool, error) {
	there, err := exists(marker(dir))
	if err != nil || !there {
		return false, err
	}
	prog, err := ebpf.LoadPinnedProgram(marker(dir), &ebpf.LoadPinOptions{})
	if err != nil {
		return false, fmt.Errorf("opening the pinned program: %w", err)
	}
	defer prog.Close()
	info, err := prog.Info()
	if err != nil {
		return false, fmt.Errorf("asking for the pinned program: %w", err)
	}
	l, ifindex, program, err := pinnedLink(dir)
	if err != nil || l == nil {
		return false, err
	}
	id, _ := info.ID()
	return ifindex != 0 && id == program, l.Close()
}

// pinInForce is where a table is pinned that the program on the interface uses.
func pinInForce(dir string, newCounts bool, name string) (string, error) {
	path := filepath.Join(dir, name)
	if !newCounts {
		return path, nil
	}
	there, err := exists(path + newSuffix)
	if there {
		path += newSuffix
	}
	return path, err
}
