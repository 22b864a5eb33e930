package failover

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/pgsteer/pgsteer/pkg/lab"
	"github.com/pgsteer/pgsteer/pkg/lb"
	"github.com/pgsteer/pgsteer/pkg/xdp"
)

// ours is pgsteer: the lab's balancers. What a balancer's machine runs is one
// daemon.
type ours struct {
	lab    *lab.Lab
	tables [2]*xdp.Reader // kept open: that takes longer than to look
}

func openOurs(l *lab.Lab) (*ours, error) {
	o := &ours{lab: l}
	for i, host := range o.hosts() {
		r, err := xdp.OpenPins(l.PinPath(host))
		if err != nil {
			o.close()
			return nil, fmt.Errorf("opening the tables of %s: %w", host, err)
		}
		o.tables[i] = r
	}
	return o, nil
}

func (o *ours) close() {
	for _, r := range o.tables {
		if r != nil {
			r.Close()
		}
	}
}

func (o *ours) name() string            { return "pgsteer" }
func (o *ours) address() netip.AddrPort { return netip.MustParseAddrPort(lab.Service) }
func (o *ours) hosts() []string         { return []string{lab.LB1, lab.LB2} }

// holds looks at the lease in a node's maps, by which its program answers for the
// address or is silent. The maps outlive the daemon.
func (o *ours) holds(i int) (bool, error) {
	stats, err := o.tables[i].Stats()
	if err != nil {
		return false, fmt.Errorf("reading the lease of %s: %w", o.hosts()[i], err)
	}
	return slices.ContainsFunc(stats.VIPs, func(v lb.VIPStats) bool {
		return v.Addr == o.address().Addr() && v.Lease > 0
	}), nil
}

func (o *ours) kill(context.Context) error      { return o.lab.Kill(lab.LB1) }
func (o *ours) freeze(context.Context) error    { return o.lab.Stop(lab.LB1) }
func (o *ours) thaw(context.Context) error      { return o.lab.Cont(lab.LB1) }
func (o *ours) resign(context.Context) error    { return o.lab.Terminate(lab.LB1) }
func (o *ours) halt(ctx context.Context) error  { return o.resign(ctx) }
func (o *ours) start(ctx context.Context) error { return o.lab.Start(ctx, lab.LB1) }

// ready waits until the first node holds both of the lab's addresses, and both
// nodes know the poolers.
func (o *ours) ready(ctx context.Context) error {
	if _, err := o.lab.WaitActive(ctx, lab.LB1); err != nil {
		return err
	}
	return o.lab.WaitBackends(ctx, lb.Up, lab.Poolers()...)
}
