package lab

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lb"
	"github.com/pgsteer/pgsteer/pkg/xdp"
)

const (
	// pollInterval is how often a condition is looked at that nothing
	// announces.
	pollInterval = 20 * time.Millisecond
	// attemptTimeout bounds one attempt to get an answer.
	attemptTimeout = 2 * time.Second
	// tailLines is how much of a log an error carries.
	tailLines = 15
)

// until calls cond until it returns nil. When ctx ends first, it returns the
// reason for that together with cond's last error.
func until(ctx context.Context, cond func(context.Context) error) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		attempt, cancel := context.WithTimeout(ctx, attemptTimeout)
		err := cond(attempt)
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (%w)", err, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// waitReady waits until a process answers. If it ends instead, or does not
// answer in time, the error carries the end of its log.
func (l *Lab) waitReady(ctx context.Context, st *state, s spec) error {
	id := st.Processes[s.name]
	alive, stop := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if id.wait(alive) == nil {
			stop(errors.New("the process has ended"))
		}
	}()
	err := until(alive, func(ctx context.Context) error { return l.answers(ctx, st, s) })
	stop(nil)
	<-done
	if err == nil {
		return nil
	}
	return fmt.Errorf("starting %s: %w; the end of %s:\n%s", s.name, err, l.logFile(s.name), l.tail(s.name, tailLines))
}

// answers asks a process for what it is there for.
func (l *Lab) answers(ctx context.Context, st *state, s spec) error {
	switch {
	case s.name == Postgres:
		return l.ensureRoles(ctx, st)
	case s.host == Pooler:
		i := slices.Index(Poolers(), s.name)
		return l.selectOne(ctx, st, Pooler, poolerAddr(i))
	default:
		return l.healthy(ctx, s.host)
	}
}

// healthy asks a balancer's daemon, from its own host, whether it works. The
// maps would not do: they answer for a daemon that is long dead.
func (l *Lab) healthy(ctx context.Context, balancer string) error {
	transport := &http.Transport{DialContext: l.DialContext(balancer), DisableKeepAlives: true}
	url := fmt.Sprintf("http://%s:%d/healthz", mustHost(balancer).addr, StatsPort)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return fmt.Errorf("asking %s for its health: %w", balancer, err)
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("asking %s for its health: %w", balancer, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("asking %s for its health: %s", balancer, resp.Status)
	}
	return nil
}

// selectOne runs a query as the bench user, from one of the hosts.
func (l *Lab) selectOne(ctx context.Context, st *state, host string, to netip.AddrPort) error {
	conn, err := l.connect(ctx, st, host, Database, to)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var one int
	return conn.QueryRow(ctx, "select 1").Scan(&one)
}

// waitService waits until one balancer is active, each has found every pooler,
// and the VIP answers. It returns the active one.
func (l *Lab) waitService(ctx context.Context, st *state) (string, error) {
	owner, err := l.WaitActive(ctx)
	if err == nil {
		err = l.WaitBackends(ctx, lb.Up, Poolers()...)
	}
	for _, f := range fronts() {
		if err == nil {
			err = until(ctx, func(ctx context.Context) error { return l.selectOne(ctx, st, Client, f.addr) })
		}
	}
	if err != nil {
		err = fmt.Errorf("waiting for the service at %s: %w", frontAddresses(), err)
		for _, name := range Balancers() {
			err = fmt.Errorf("%w\nthe end of %s:\n%s", err, l.logFile(Daemon(name)), l.tail(Daemon(name), tailLines))
		}
	}
	return owner, err
}

// WaitActive waits until each VIP is held by exactly one of the balancers named
// (all, if none is), and returns the name of the one that holds Service's.
func (l *Lab) WaitActive(ctx context.Context, among ...string) (string, error) {
	if len(among) == 0 {
		among = Balancers()
	}
	var owner string
	err := until(ctx, func(context.Context) error {
		for i, f := range fronts() {
			owners, err := l.OwnersOf(f.service)
			if err != nil {
				return err
			}
			if len(owners) != 1 || !slices.Contains(among, owners[0]) {
				return fmt.Errorf("the VIP of %s is held by %d balancers %v", f.service, len(owners), owners)
			}
			if i == 0 {
				owner = owners[0]
			}
		}
		return nil
	})
	return owner, err
}

// WaitBackends waits until every balancer that runs has the named poolers in
// the given state and can reach them.
func (l *Lab) WaitBackends(ctx context.Context, want lb.State, names ...string) error {
	return until(ctx, func(context.Context) error {
		for _, balancer := range Balancers() {
			running, err := l.Running(Daemon(balancer))
			if err != nil {
				return err
			}
			if !running {
				continue
			}
			stats, err := l.datapath(balancer)
			if err != nil {
				return err
			}
			for _, f := range fronts() {
				for _, b := range backendsOf(stats, f.service) {
					if !slices.Contains(names, b.Name) {
						continue
					}
					if b.State != want {
						return fmt.Errorf("%s has %s of %s as %v, not %v", balancer, b.Name, f.service, b.State, want)
					}
					if want == lb.Up && !b.Reachable {
						return fmt.Errorf("%s does not know the hardware address of %s", balancer, b.Name)
					}
				}
			}
		}
		return nil
	})
}

// Owners returns the balancers whose datapath answers for Service's VIP right
// now.
func (l *Lab) Owners() ([]string, error) { return l.OwnersOf(ServiceName) }

// OwnersOf is Owners for any of the services.
func (l *Lab) OwnersOf(service string) ([]string, error) {
	f, err := findFront(service)
	if err != nil {
		return nil, err
	}
	var owners []string
	for _, name := range Balancers() {
		stats, err := l.datapath(name)
		if err != nil {
			return nil, err
		}
		for _, v := range stats.VIPs {
			if v.Addr == f.addr.Addr() && v.Lease > 0 {
				owners = append(owners, name)
			}
		}
	}
	return owners, nil
}

// Backends returns the poolers as a balancer's datapath counts them for Service.
func (l *Lab) Backends(balancer string) ([]lb.BackendStats, error) {
	return l.BackendsOf(balancer, ServiceName)
}

// BackendsOf is Backends for any of the services.
func (l *Lab) BackendsOf(balancer, service string) ([]lb.BackendStats, error) {
	if _, err := findFront(service); err != nil {
		return nil, err
	}
	stats, err := l.datapath(balancer)
	return backendsOf(stats, service), err
}

// Datapath returns what a balancer's datapath has counted, read from its
// pinned maps: it needs no living daemon.
func (l *Lab) Datapath(balancer string) (lb.DatapathStats, error) { return l.datapath(balancer) }

func (l *Lab) datapath(balancer string) (lb.DatapathStats, error) {
	r, err := xdp.OpenPins(l.PinPath(balancer))
	if err != nil {
		return lb.DatapathStats{}, fmt.Errorf("reading the maps of %s: %w", balancer, err)
	}
	defer r.Close()
	stats, err := r.Stats()
	if err != nil {
		return lb.DatapathStats{}, fmt.Errorf("reading the maps of %s: %w", balancer, err)
	}
	return stats, nil
}

// Flows calls fn for each flow in a balancer's flow table until fn returns
// false.
func (l *Lab) Flows(balancer string, fn func(lb.Flow) bool) error {
	r, err := xdp.OpenPins(l.PinPath(balancer))
	if err != nil {
		return fmt.Errorf("reading the maps of %s: %w", balancer, err)
	}
	defer r.Close()
	if err := r.Flows(fn); err != nil {
		return fmt.Errorf("reading the flows of %s: %w", balancer, err)
	}
	return nil
}

// backendsOf returns the backends of one service.
func backendsOf(stats lb.DatapathStats, service string) []lb.BackendStats {
	for _, s := range stats.Services {
		if s.Name == service {
			return s.Backends
		}
	}
	return nil
}
