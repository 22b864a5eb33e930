// Package admin is how the running daemon is told what to do: HTTP and JSON
// over a Unix socket, the client for it, and the file in which orders are kept.
//
// Who may connect is a matter of the socket's owner, group and mode; who did is
// read from the kernel (SO_PEERCRED, unix(7)) and stands in the log beside each
// change. Nothing here listens on a network.
//
//	GET   /v1/backends                                  []lb.BackendStatus
//	PATCH /v1/services/{service}/backends/{backend}     BackendChange → lb.BackendStatus
//	GET   /v1/routers                                   []vrrp.Snapshot
//	POST  /v1/routers/{name}/resign                     Move, or no body → vrrp.Snapshot
//	POST  /v1/routers/{name}/takeover                   Move, or no body → vrrp.Snapshot
//	GET   /v1/sync                                      flowsync.Status
//	GET   /v1/notify                                    []notify.Status
//	POST  /v1/notify/test                               no body → []notify.Result
//
// An answer other than 200 has the body {"error": "a sentence"}: 400 for what
// makes no sense, 404 for what is not there, 409 for what the present state
// forbids, 500 for what failed, 504 for a move that did not come about in time.
package admin

import (
	"fmt"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// DefaultSocket is where the daemon listens if nobody says otherwise.
const DefaultSocket = "/run/pgsteer/admin.sock"

// BackendChange is what is to change of a backend. What is absent stays.
type BackendChange struct {
	State string `json:"state,omitempty"` // ready, draining or maint
	// Deadline is the time, as Go writes durations, after which the connections
	// of a draining backend are reset; 0s is never. Without it, a backend that
	// begins to drain has its service's drain_timeout.
	Deadline       *string `json:"deadline,omitempty"`
	Weight         *uint16 `json:"weight,omitempty"`          // 1 to 256
	MaxConnections *uint32 `json:"max_connections,omitempty"` // 0 is no limit
}

// change puts b into the words of the controller. The error matches
// lb.ErrBadChange.
func (b *BackendChange) change() (lb.Change, error) {
	c := lb.Change{Weight: b.Weight, MaxConnections: b.MaxConnections}
	if b.State != "" {
		c.Admin = new(lb.AdminState)
		if err := c.Admin.UnmarshalText([]byte(b.State)); err != nil {
			return c, fmt.Errorf("%w: state %w", lb.ErrBadChange, err)
		}
	}
	if b.Deadline != nil {
		d, err := time.ParseDuration(*b.Deadline)
		if err != nil {
			return c, fmt.Errorf("%w: deadline %q is not a duration; write 30s, 5m or 1h", lb.ErrBadChange, *b.Deadline)
		}
		c.Deadline = &d
	}
	return c, nil
}

// failure is the body of an answer that is not 200.
type failure struct {
	Error string `json:"error"`
}
