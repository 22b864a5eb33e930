package lab

import (
	"net/netip"
	"slices"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// Status is what a lab looks like right now.
type Status struct {
	Name      string           `json:"name"`
	Since     time.Time        `json:"since"`
	Complete  bool             `json:"complete"` // false when raising it was not completed
	Active    []string         `json:"active"`   // balancers that answer for a VIP; one, if all is well
	Hosts     []HostStatus     `json:"hosts"`
	Processes []ProcessStatus  `json:"processes"`
	Balancers []BalancerStatus `json:"balancers"`
}

// HostStatus is one host.
type HostStatus struct {
	Name      string     `json:"name"`
	Namespace string     `json:"namespace"`
	Address   netip.Addr `json:"address"`
	Address6  netip.Addr `json:"address6"`
	Link      string     `json:"link"` // up, cut, or gone
}

// ProcessStatus is one process of the lab.
type ProcessStatus struct {
	Name   string        `json:"name"`
	Host   string        `json:"host"`
	State  string        `json:"state"` // running, stopped, dead
	PID    int           `json:"pid,omitempty"`
	Uptime time.Duration `json:"uptime,omitempty"` // nanoseconds
	Log    string        `json:"log"`
}

// BalancerStatus is what a balancer's pinned maps tell.
type BalancerStatus struct {
	Host     string            `json:"host"`
	VIPs     []lb.VIPStats     `json:"vips,omitempty"`
	Services []lb.ServiceStats `json:"services,omitempty"`
	Flows    int               `json:"flows"` // closed ones that are still remembered included
	Error    string            `json:"error,omitempty"`
}

// healthy tells whether the balancer has all poolers up behind each service.
func (b BalancerStatus) healthy() bool {
	ok := b.Error == "" && len(b.Services) == len(fronts())
	for _, s := range b.Services {
		ok = ok && len(s.Backends) == PoolerCount &&
			!slices.ContainsFunc(s.Backends, func(x lb.BackendStats) bool { return x.State != lb.Up })
	}
	return ok
}

// Healthy tells whether everything is as Up has left it.
func (s Status) Healthy() bool {
	ok := s.Complete && len(s.Active) == 1
	for _, h := range s.Hosts {
		ok = ok && h.Link == "up"
	}
	for _, p := range s.Processes {
		ok = ok && p.State == "running"
	}
	for _, b := range s.Balancers {
		ok = ok && b.healthy()
	}
	return ok
}

// GetStatus looks at the lab called name. It returns ErrNotUp when there is
// none.
func GetStatus(name string) (Status, error) {
	if err := checkName(name); err != nil {
		return Status{}, err
	}
	if err := checkRoot(); err != nil {
		return Status{}, err
	}
	l := newLab(name)
	st, err := l.load()
	if err != nil {
		return Status{}, err
	}
	s := Status{Name: l.name, Since: st.Since, Complete: st.Complete}
	for _, h := range st.Options.hosts() {
		link := "cut"
		switch up, err := l.linkIsUp(h); {
		case err != nil:
			link = "gone"
		case up:
			link = "up"
		}
		s.Hosts = append(s.Hosts, HostStatus{h.name, l.namespace(h.name), h.addr, h.addr6, link})
	}
	specs, err := l.specs(st)
	if err != nil {
		return Status{}, err
	}
	for _, sp := range specs {
		id := st.Processes[sp.name]
		p := ProcessStatus{Name: sp.name, Host: sp.host, State: "dead", Log: l.logFile(sp.name)}
		if letter, alive := id.state(); alive {
			p.State, p.PID = "running", id.PID
			if letter == 'T' {
				p.State = "stopped"
			}
			p.Uptime = id.age()
		}
		s.Processes = append(s.Processes, p)
	}
	for _, name := range Balancers() {
		b := BalancerStatus{Host: name}
		stats, err := l.datapath(name)
		if err != nil {
			b.Error = err.Error()
		}
		b.VIPs, b.Services, b.Flows = stats.VIPs, stats.Services, stats.Audit.Flows
		if slices.ContainsFunc(stats.VIPs, func(v lb.VIPStats) bool { return v.Lease > 0 }) {
			s.Active = append(s.Active, name)
		}
		s.Balancers = append(s.Balancers, b)
	}
	return s, nil
}

// LogFile returns the path of a process's log; a balancer's host name stands
// for its daemon.
func (l *Lab) LogFile(target string) (string, error) {
	st, err := l.load()
	if err != nil {
		return "", err
	}
	s, err := l.findSpec(st, target)
	if err != nil {
		return "", err
	}
	return l.logFile(s.name), nil
}
