package lb

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"
)

// ErrUnknownBackend is returned for a service or backend that is not configured.
var ErrUnknownBackend = errors.New("unknown backend")

// BackendStatus is what the controller knows of a backend beyond the counts.
type BackendStatus struct {
	Service     string         `json:"service"`
	Name        string         `json:"name"`
	Addr        netip.AddrPort `json:"address"`
	State       State          `json:"state"`
	Since       time.Time      `json:"since"`       // of State
	Reason      string         `json:"reason"`      // of the last change
	Transitions uint64         `json:"transitions"` // from Up to Down
	Downtime    time.Duration  `json:"downtime"`    // total, the present one included; nanoseconds

	config Backend // as SetServices was given it
}

// as is the backend as the datapath is told of it.
func (b *BackendStatus) as(s State) Backend {
	config := b.config
	config.State = s
	return config
}

// Controller holds the desired state and tells the datapath what changes.
// It is safe for concurrent use.
type Controller struct {
	dp  Datapath
	log *slog.Logger
	now func() time.Time

	mu       sync.Mutex
	backends []*BackendStatus // in the order of configuration
	reset    map[string]bool  // services whose dead backends' flows are reset
}

// NewController returns a controller without services.
func NewController(dp Datapath, log *slog.Logger) *Controller {
	return &Controller{dp: dp, log: log, now: time.Now}
}

// SetServices replaces the configuration. The State of the backends given is
// ignored: one that is known keeps its state, a new one starts Down.
func (c *Controller) SetServices(services []Service) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var next []*BackendStatus
	reset := make(map[string]bool)
	desired := make([]Service, len(services))
	for i, s := range services {
		desired[i] = s
		reset[s.Name] = s.ResetOnDown
		desired[i].Backends = make([]Backend, len(s.Backends))
		for j, b := range s.Backends {
			status := c.find(s.Name, b.Name)
			if status == nil || status.Addr != b.Addr {
				status = &BackendStatus{
					Service: s.Name, Name: b.Name, Addr: b.Addr,
					State: Down, Since: c.now(), Reason: "not checked yet",
				}
			}
			next = append(next, status)
			status.config = b
			b.State = status.State
			desired[i].Backends[j] = b
		}
	}
	if err := c.dp.SetServices(desired); err != nil {
		return fmt.Errorf("configuring the datapath: %w", err)
	}
	c.backends, c.reset = next, reset
	return nil
}

// SetHealth takes the result of a health check's rise and fall. One that does
// not change the state may still say why it is so. A new state is kept only if
// the datapath took it.
func (c *Controller) SetHealth(service, backend string, up bool, reason string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.find(service, backend)
	if b == nil {
		return fmt.Errorf("%w: %s/%s", ErrUnknownBackend, service, backend)
	}
	state := Down
	if up {
		state = Up
	}
	if b.State == state {
		b.Reason = reason
		return nil
	}
	if err := c.dp.SetBackend(service, b.as(state)); err != nil {
		return fmt.Errorf("setting %s/%s %s: %w", service, backend, state, err)
	}
	now := c.now()
	switch {
	case state == Down:
		b.Transitions++
	case b.State == Down:
		b.Downtime += now.Sub(b.Since)
	}
	c.log.Info("backend changed", "service", service, "backend", backend,
		"from", b.State, "to", state, "reason", reason)
	b.State, b.Since, b.Reason = state, now, reason
	if state == Down && c.reset[service] {
		if err := c.dp.ResetFlows(service, backend); err != nil {
			return fmt.Errorf("resetting the flows of %s/%s: %w", service, backend, err)
		}
	}
	return nil
}

// Snapshot returns the status of every backend, in the order of configuration.
func (c *Controller) Snapshot() []BackendStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]BackendStatus, len(c.backends))
	for i, b := range c.backends {
		all[i] = *b
		if b.State == Down {
			all[i].Downtime += c.now().Sub(b.Since)
		}
	}
	return all
}

// find returns nil when there is no such backend. The caller holds mu.
func (c *Controller) find(service, backend string) *BackendStatus {
	for _, b := range c.backends {
		if b.Service == service && b.Name == backend {
			return b
		}
	}
	return nil
}
