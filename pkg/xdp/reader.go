package xdp

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

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
		s.Audit.SweptAgo = int64(age(monotonic(), a.at))
	} else {
		s.Audit.Capacity = int(b.objs.Flows.MaxEntries())
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
	maps    []*ebpf.Map
}

// OpenPins opens the tables that are pinned under path. The error matches
// ErrNoPins when there are none.
func OpenPins(path string) (*Reader, error) {
	r := &Reader{pinPath: path}
	for name, m := range map[string]**ebpf.Map{
		balancerMapBackends:  &r.tables.backends,
		balancerMapFlows:     &r.tables.flows,
		balancerMapLoads:     &r.tables.loads,
		balancerMapSchedules: &r.tables.schedules,
		balancerMapServices:  &r.tables.services,
		balancerMapTraffics:  &r.tables.traffics,
		balancerMapVerdicts:  &r.tables.verdicts,
		balancerMapVips:      &r.tables.vips,
	} {
		var err error
		*m, err = ebpf.LoadPinnedMap(filepath.Join(path, name), &ebpf.LoadPinOptions{ReadOnly: true})
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w in %s", ErrNoPins, path)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("opening table %s: %w", name, err), r.Close())
		}
		r.maps = append(r.maps, *m)
	}
	return r, nil
}

// Close releases the tables.
func (r *Reader) Close() error {
	var errs []error
	for _, m := range r.maps {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}

// Stats reads all that the datapath counted. The audit is a count made now,
// without drift: that takes two looks.
func (r *Reader) Stats() (lb.DatapathStats, error) {
	s, err := r.tables.stats()
	if err != nil {
		return s, err
	}
	s.Audit.Capacity = int(r.tables.flows.MaxEntries())
	var batch flowBatch
	err = batch.each(r.tables.flows, func(_ *balancerFlowKey, f *balancerFlow) bool {
		flags := balancerFlowFlag(f.Flags)
		if flags&balancerFlowFlagFLOW_FORWARD != 0 {
			s.Audit.Flows++
			if flags&balancerFlowFlagFLOW_CLOSED == 0 {
				s.Audit.Live++
			}
		}
		return true
	})
	if err != nil {
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

// Flows calls fn for every flow, in no order, until it returns false.
func (r *Reader) Flows(fn func(lb.Flow) bool) error { return r.tables.eachFlow(fn) }
