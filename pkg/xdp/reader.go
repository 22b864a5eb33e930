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
		s.Audit.Capacity = b.tables.four.capacity()
	}
	return s, nil
}

// Flows calls fn for every flow, in no order, until it returns false.
func (b *Balancer) Flows(fn func(lb.Flow) bool) error { return b.tables.eachFlow(fn) }

// Reader reads pinned tables, with or without a daemon running. It changes
// nothing.
type Reader struct {
	tables  tables
	pinPath string
}

// OpenPins opens the tables that are pinned under path. The error matches
// ErrNoPins when there are none.
func OpenPins(path string) (*Reader, error) {
	t, err := openTables(path, true)
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

// Close releases the tables.
func (r *Reader) Close() error {
	return errors.Join(r.tables.Close(), r.tables.clockProg.Close())
}

// Stats reads all that the datapath counted. The audit is a count made now,
// without drift: that takes two looks.
func (r *Reader) Stats() (lb.DatapathStats, error) {
	s, err := r.tables.stats()
	if err != nil {
		return s, err
	}
	if s.Audit, _, err = r.count(); err != nil {
		return s, err
	}
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
		_, err := f.sweep(func(flags balancerFlowFlag, backend uint16, _ uint32) (fate, uint32) {
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
func (r *Reader) Flows(fn func(lb.Flow) bool) error { return r.tables.eachFlow(fn) }
