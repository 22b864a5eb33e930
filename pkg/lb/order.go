package lb

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// AdminState is what the operator wants of a backend, whatever its checks say.
type AdminState uint8

// The words of an operator. The zero value leaves the backend to its checks.
const (
	AdminReady    AdminState = iota // in use whenever its checks pass
	AdminDraining                   // no new flows; the old ones live on
	AdminMaint                      // out of use at once
)

var adminStateNames = [...]string{AdminReady: "ready", AdminDraining: "draining", AdminMaint: "maint"}

// String returns the name used in the CLI, the admin socket and the log.
func (s AdminState) String() string {
	if int(s) < len(adminStateNames) {
		return adminStateNames[s]
	}
	return fmt.Sprintf("admin_state(%d)", uint8(s))
}

// MarshalText implements encoding.TextMarshaler.
func (s AdminState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler. The error names the word
// that is none of the three.
func (s *AdminState) UnmarshalText(text []byte) error {
	i := slices.Index(adminStateNames[:], string(text))
	if i < 0 {
		return fmt.Errorf("%q is not one of %s", text, strings.Join(adminStateNames[:], ", "))
	}
	*s = AdminState(i)
	return nil
}

// effective is the state that a backend has by the operator's word and its
// health. One that fails its checks while it drains is down: its flows are as
// dead as those of any other.
func effective(admin AdminState, healthy bool) State {
	switch {
	case admin == AdminMaint:
		return Maintenance
	case !healthy:
		return Down
	case admin == AdminDraining:
		return Draining
	}
	return Up
}

// The reasons for which Controller.Change refuses, to be told apart by
// errors.Is.
var (
	// ErrUnknownBackend is for a service or backend that is not configured.
	ErrUnknownBackend = errors.New("unknown backend")
	// ErrBadChange is for a change that makes no sense, whatever the state.
	ErrBadChange = errors.New("bad change")
	// ErrNotPossible is for a change that the present state forbids.
	ErrNotPossible = errors.New("not possible")
)

// maxWeight is the highest weight of a backend, that of HAProxy.
const maxWeight = 256

// Change is what an operator changes of a backend. What is nil stays.
type Change struct {
	Admin *AdminState
	// Deadline is the time from now after which the flows of a draining backend
	// are reset; 0 is never. Without it, a backend that begins to drain has its
	// service's DrainTimeout.
	Deadline *time.Duration
	// Weight is 1 to 256. The configured one ends the override.
	Weight *uint16
	// MaxConnections is the most flows it may have; 0 is no limit. The
	// configured one ends the override.
	MaxConnections *uint32
}

// Order is all that an operator has said about one backend and that is in
// force. It outlives reconfiguration, and the process where somebody keeps it.
type Order struct {
	Service string         `json:"service"`
	Backend string         `json:"backend"`
	Addr    netip.AddrPort `json:"address"` // one that moves is another backend

	Admin AdminState `json:"admin_state"`
	// Deadline is when the flows of a draining backend are reset, or were; nil
	// is never.
	Deadline       *time.Time `json:"deadline,omitempty"`
	Weight         *uint16    `json:"weight,omitempty"`          // nil: as configured
	MaxConnections *uint32    `json:"max_connections,omitempty"` // nil: as configured

	By string    `json:"by"` // who said it last
	At time.Time `json:"at"` // when
}

// Check returns what is wrong with an order that was read from somewhere.
func (o *Order) Check() error {
	switch {
	case o.Service == "" || o.Backend == "" || !o.Addr.IsValid():
		return errors.New("service, backend or address is missing")
	case o.Deadline != nil && o.Admin != AdminDraining:
		return fmt.Errorf("%s has a deadline", o.Admin)
	case o.Weight != nil && (*o.Weight < 1 || *o.Weight > maxWeight):
		return fmt.Errorf("weight %d is out of range; want 1 to %d", *o.Weight, maxWeight)
	}
	return nil
}

// empty reports whether the order leaves everything as it is configured.
func (o *Order) empty() bool {
	return o.Admin == AdminReady && o.Weight == nil && o.MaxConnections == nil
}

// same reports whether two orders say the same, whoever said it.
func (o *Order) same(other *Order) bool {
	return o.Admin == other.Admin && sameTime(o.Deadline, other.Deadline) &&
		same(o.Weight, other.Weight) && same(o.MaxConnections, other.MaxConnections)
}

func same[T comparable](a, b *T) bool {
	return a == b || a != nil && b != nil && *a == *b
}

func sameTime(a, b *time.Time) bool {
	return a == b || a != nil && b != nil && a.Equal(*b)
}

// after returns the order that the change makes of o, at the time now, for a
// backend that is configured so.
func (o Order) after(c Change, config Backend, drainTimeout time.Duration, now time.Time) (Order, error) {
	if c.Admin == nil && c.Deadline == nil && c.Weight == nil && c.MaxConnections == nil {
		return o, fmt.Errorf("%w: it changes nothing", ErrBadChange)
	}
	if c.Deadline != nil && *c.Deadline < 0 {
		return o, fmt.Errorf("%w: the deadline %s is in the past", ErrBadChange, *c.Deadline)
	}
	if c.Admin != nil {
		if c.Deadline != nil && *c.Admin != AdminDraining {
			return o, fmt.Errorf("%w: only draining has a deadline, not %s", ErrBadChange, *c.Admin)
		}
		begins := *c.Admin == AdminDraining && o.Admin != AdminDraining
		o.Admin = *c.Admin
		if o.Admin != AdminDraining || begins {
			o.Deadline = nil
		}
		if begins && c.Deadline == nil && drainTimeout > 0 {
			c.Deadline = &drainTimeout
		}
	}
	if c.Deadline != nil {
		if o.Admin != AdminDraining {
			return o, fmt.Errorf("%w: it has no deadline, because it is not draining", ErrNotPossible)
		}
		o.Deadline = nil
		if *c.Deadline > 0 {
			at := now.Add(*c.Deadline)
			o.Deadline = &at
		}
	}
	if w := c.Weight; w != nil {
		if *w < 1 || *w > maxWeight {
			return o, fmt.Errorf("%w: weight %d is out of range; want 1 to %d, and draining for no new connections", ErrBadChange, *w, maxWeight)
		}
		o.Weight = override(*w, config.Weight)
	}
	if m := c.MaxConnections; m != nil {
		o.MaxConnections = override(*m, config.MaxConnections)
	}
	return o, nil
}

// override is nil where what is wanted is what is configured.
func override[T comparable](wanted, configured T) *T {
	if wanted == configured {
		return nil
	}
	return &wanted
}

// apply returns the backend as the operator wants it, in the given state.
func (o *Order) apply(config Backend, s State) Backend {
	config.State = s
	if o.Weight != nil {
		config.Weight = *o.Weight
	}
	if o.MaxConnections != nil {
		config.MaxConnections = *o.MaxConnections
	}
	return config
}
