// Package stats shows what a balancer node does: as Prometheus metrics, as a
// page for a person, and as an answer to whether it is well. All of them are
// made from one Snapshot at the moment they are asked for; nothing is counted
// or kept here.
package stats

import (
	"errors"
	"fmt"
	"time"

	"github.com/pgsteer/pgsteer/pkg/flowsync"
	"github.com/pgsteer/pgsteer/pkg/health"
	"github.com/pgsteer/pgsteer/pkg/lb"
	"github.com/pgsteer/pgsteer/pkg/notify"
	"github.com/pgsteer/pgsteer/pkg/vrrp"
)

// Snapshot is everything observable about a node at one moment.
type Snapshot struct {
	Node      string    // name of the node
	Interface string    // name of the interface that it balances on
	Version   string    // of the program
	PID       int       // of the daemon
	Started   time.Time // when the daemon started
	Now       time.Time // when this was taken

	// Datapath is what the XDP program counted. It is empty when DatapathErr
	// says that it could not be read; the rest of the snapshot still counts.
	Datapath    lb.DatapathStats
	DatapathErr error

	Backends []lb.BackendStatus    // the controller's view of each backend
	Checks   []health.TargetStatus // the health checker's view of each backend
	Routers  []vrrp.Snapshot
	Sync     *flowsync.Status // nil: connections are not replicated
	Notify   []notify.Status  // the sinks of notifications
}

// Uptime is how long the daemon has run.
func (s *Snapshot) Uptime() time.Duration { return s.Now.Sub(s.Started) }

// Unwell returns why the node cannot do its work, or nil. That it is a backup,
// or that backends are down, are no reasons: both are work.
func (s *Snapshot) Unwell() error {
	var errs []error
	if s.DatapathErr != nil {
		errs = append(errs, fmt.Errorf("reading the datapath: %w", s.DatapathErr))
	}
	for _, r := range s.Routers {
		if r.State == vrrp.Init {
			errs = append(errs, fmt.Errorf("virtual router %s is not running", r.Name))
		}
	}
	return errors.Join(errs...)
}
