package lb

import (
	"net/netip"
	"time"
)

// BackendStatus is what the controller knows of a backend beyond the counts.
type BackendStatus struct {
	Service     string         `json:"service"`
	Name        string         `json:"name"`
	Addr        netip.AddrPort `json:"address"`
	State       State          `json:"state"`       // by the operator's word and the checks
	Since       time.Time      `json:"since"`       // of State
	Reason      string         `json:"reason"`      // of State
	Transitions uint64         `json:"transitions"` // to Down, from Up or Draining
	Downtime    time.Duration  `json:"downtime"`    // total, the present one included; nanoseconds

	Healthy      bool       `json:"healthy"`            // by its checks alone
	HealthReason string     `json:"health_reason"`      // what they say
	Admin        AdminState `json:"admin_state"`        // by the operator's word alone
	By           string     `json:"by,omitempty"`       // who gave that word, or changed a number
	At           *time.Time `json:"at,omitempty"`       // when
	Deadline     *time.Time `json:"deadline,omitempty"` // when the flows are reset, or were; only while draining
	Backup       bool       `json:"backup"`

	// What is in force, and what the configuration says.
	Weight                   uint16 `json:"weight"`
	ConfiguredWeight         uint16 `json:"configured_weight"`
	MaxConnections           uint32 `json:"max_connections"`            // 0 is no limit
	ConfiguredMaxConnections uint32 `json:"configured_max_connections"` // 0 is no limit

	// Unsaved says why the operator's word would not outlive the daemon; it is
	// empty when it would, or when there is none.
	Unsaved string `json:"unsaved,omitempty"`
}

// status is what is shown of b. The caller holds mu.
func (c *Controller) status(b *backend) BackendStatus {
	now := b.order.apply(b.config, b.state)
	s := BackendStatus{
		Service: b.service.Name, Name: b.config.Name, Addr: b.config.Addr,
		State: b.state, Since: b.since, Reason: b.reason,
		Transitions: b.transitions, Downtime: b.downtime,
		Healthy: b.healthy, HealthReason: b.health,
		Admin: b.order.Admin, By: b.order.By, Deadline: b.order.Deadline,
		Backup: b.config.Backup,
		Weight: now.Weight, ConfiguredWeight: b.config.Weight,
		MaxConnections: now.MaxConnections, ConfiguredMaxConnections: b.config.MaxConnections,
	}
	if b.state == Down {
		s.Downtime += c.now().Sub(b.since)
	}
	if b.order.By != "" {
		at := b.order.At
		s.At = &at
	}
	if c.unsaved != nil && !b.order.empty() {
		s.Unsaved = c.unsaved.Error()
	}
	return s
}

// Snapshot returns the status of every backend, in the order of configuration.
func (c *Controller) Snapshot() []BackendStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]BackendStatus, len(c.backends))
	for i, b := range c.backends {
		all[i] = c.status(b)
	}
	return all
}
