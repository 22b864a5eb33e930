package xdp

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// ErrNoPins means that no program is pinned under the path: the daemon never
// ran on this host, or was detached.
var ErrNoPins = errors.New("no pgsteer tables are pinned")

// Stats reads all that the datapath counted.
func (b *Balancer) Stats() (lb.DatapathStats, error) {
	s, err := b.tables.stats()
	if err != nil {
		return s, err
	}
	s.Interface, s.Mode = b.cfg.Interface, b.mode
	if a := b.audit.Load(); a != nil {
		s.Audit = a.Audit
		s.Audit.SweptAgo = int64(monotonic() - a.at)
	} else {
		for _, f := range b.tables.families() {
			s.Audit.Capacity += f.capacity()
		}
		s.Audit.Memory = b.tables.memory()
	}
	return s, nil
}

// Flows calls fn for every flow, in no order, until it returns false.
func (b *Balancer) Flows(fn func(lb.Flow) bool) error { return b.tables.eachFlow(nil, fn) }

// FlowsWhere is Flows for those that match. match sees a flow as its client
// does: PacketsOut and BytesOut are zero, and Idle is the time since the client
// was heard. What it turns away costs no look at the other direction.
func (b *Balancer) FlowsWhere(match, fn func(lb.Flow) bool) error {
	return b.tables.eachFlow(match, fn)
}

// Reader reads pinned tables, with or without a daemon running. It changes
// nothing.
type Reader struct {
	tables  tables
	pinPath string
}

// OpenPins opens the tables that are pinned under path. The error matches
// ErrNoPins when there are none, and ErrTables when they are another version's.
func OpenPins(path string) (*Reader, error) {
	t, err := openForReading(path)
	if err != nil {
		return nil, err
	}
	spec, err := loadBalancer()
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	// It has no maps: this is not the one of the daemon.
	if t.clockProg, err = ebpf.NewProgram(spec.Programs[balancerProgReadClock]); err != nil {
		return nil, errors.Join(fmt.Errorf("loading the program that reads the clock: %w", err), t.Close())
	}
	return &Reader{tables: t, pinPath: path}, nil
}

// openForReading opens the tables of the program that is on the interface, also
// while it, or its daemon's death, has left them between two names.
func openForReading(path string) (tables, error) {
	newCounts, err := tookOver(path)
	if err != nil {
		return tables{}, err
	}
	pinOf := func(name string) (string, error) { return pinInForce(path, newCounts, name) }
	t, err := openTables(pinOf, true)
	if err != nil {
		return t, err
	}
	if err := checkDescription(pinOf); err != nil {
		return t, errors.Join(err, t.Close())
	}
	return t, nil
}

// checkDescription makes sure that the tables are what this program takes them
// for.
func checkDescription(pinOf func(string) (string, error)) error {
	path, err := pinOf(descriptionPin)
	if err != nil {
		return err
	}
	was, err := readDescription(path)
	if err != nil {
		return err
	}
	specs, err := bothSpecifications()
	if err != nil {
		return err
	}
	is, err := describe(specs...)
	if err != nil {
		return err
	}
	if was == nil || was.Meaning != is.Meaning {
		return fmt.Errorf("%w: they were pinned by another version of pgsteerd; use that one's tools", ErrTables)
	}
	for name := range is.Tables {
		if was.differs(&is, name) {
			return fmt.Errorf("%w: table %s was pinned by another version of pgsteerd; use that one's tools", ErrTables, name)
		}
	}
	return nil
}

func bothSpecifications() ([]*ebpf.CollectionSpec, error) {
	four, err := loadBalancer()
	if err != nil {
		return nil, err
	}
	six, err := loadBalancer6()
	return []*ebpf.CollectionSpec{four, six}, err
}

// Close releases the tables.
func (r *Reader) Close() error {
	return errors.Join(r.tables.Close(), r.tables.clockProg.Close())
}

// Stats reads all that the datapath counted. Of the audit it fills Capacity and
// Memory: the flows themselves are counted by Audit, which reads the whole
// table.
func (r *Reader) Stats() (lb.DatapathStats, error) {
	s, err := r.tables.stats()
	if err != nil {
		return s, err
	}
	for _, f := range r.tables.families() {
		s.Audit.Capacity += f.capacity()
	}
	s.Audit.Memory = r.tables.memory()
	l, ifindex, _, err := pinnedLink(r.pinPath)
	if err != nil || l == nil {
		return s, err
	}
	defer l.Close()
	if iface, err := netlink.LinkByIndex(int(ifindex)); err == nil {
		s.Interface, s.Mode = iface.Attrs().Name, attachMode(iface)
	}
	return s, nil
}

// count counts the flow tables, in all and by backend.
func (r *Reader) count() (lb.Audit, map[uint32]int64, error) {
	count := newCount()
	for _, f := range r.tables.families() {
		_, err := f.sweep(func(flags balancerFlowFlag, backend, _ uint16, _ uint32) (fate, uint32) {
			count.see(flags, uint32(backend))
			return keep, 0
		}, nil)
		if err != nil {
			return lb.Audit{}, nil, err
		}
		count.Capacity += f.capacity()
	}
	count.Memory = r.tables.memory()
	return count.audit(), count.live, nil
}

// Audit counts the flow table and puts the program's own counts beside it.
func (r *Reader) Audit() (lb.AuditReport, error) {
	placed, err := r.tables.placements()
	if err != nil {
		return lb.AuditReport{}, err
	}
	slices.SortFunc(placed, func(a, b placedBackend) int {
		return cmp.Or(strings.Compare(a.service, b.service), cmp.Compare(a.slot, b.slot))
	})
	audit, live, err := r.count()
	if err != nil {
		return lb.AuditReport{}, err
	}
	active, err := r.tables.activeCounts(placed)
	if err != nil {
		return lb.AuditReport{}, err
	}
	report := lb.AuditReport{Orphans: audit.Orphans, Flows: audit.Flows, Capacity: audit.Capacity, Memory: audit.Memory}
	for _, p := range placed {
		report.Backends = append(report.Backends, lb.BackendAudit{
			Service: p.service, Name: p.name, Active: active[p.index()], Counted: live[p.index()],
		})
	}
	return report, nil
}

// Flows calls fn for every flow, in no order, until it returns false.
func (r *Reader) Flows(fn func(lb.Flow) bool) error { return r.tables.eachFlow(nil, fn) }

// FlowsWhere is like that of Balancer.
func (r *Reader) FlowsWhere(match, fn func(lb.Flow) bool) error { return r.tables.eachFlow(match, fn) }
