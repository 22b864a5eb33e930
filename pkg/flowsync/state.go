package flowsync

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// State is what a node tells its peer of itself with each heartbeat.
type State struct {
	Node     string         `json:"node"` // set by the link
	Routers  []RouterState  `json:"routers,omitempty"`
	Backends []BackendState `json:"backends,omitempty"`
	// Synced says that the node has a full copy of its peer's flows; set by the
	// link.
	Synced   bool `json:"synced"`
	Draining bool `json:"draining"` // it is being taken out of service
	// Said is what the node has told people, in the words of its notifier, with
	// its own version. The link carries it, and does not look into it.
	Said json.RawMessage `json:"said,omitempty"`
}

// RouterState is a virtual router as its node sees it.
type RouterState struct {
	Name  string `json:"name"`
	VRID  uint8  `json:"vrid"`
	V6    bool   `json:"v6"`
	State string `json:"state"` // init, backup or active
	// Leased says that the node may serve the addresses now.
	Leased bool `json:"leased"`
	// Addresses are the virtual ones. Without them the flows of a leased router
	// are sent, but the peer never forgets any at the end of a full copy.
	Addresses []netip.Addr  `json:"addresses,omitempty"`
	Priority  uint8         `json:"priority"`
	Reason    string        `json:"reason"`
	Age       time.Duration `json:"age"` // of State, nanoseconds
	// Run tells one life of the node from the next, in which Moves are numbered
	// anew. Moves are the last changes of its state, the oldest first.
	Run   uint64 `json:"run,omitempty"`
	Moves []Move `json:"moves,omitempty"`
}

// Move is a change of a virtual router's state, and what its node knew then.
type Move struct {
	Number   uint64        `json:"number"` // from 1
	Ago      time.Duration `json:"ago"`    // nanoseconds
	From     string        `json:"from"`   // init, backup or active
	To       string        `json:"to"`
	Reason   string        `json:"reason"`
	Priority uint8         `json:"priority"` // its own
	// Heard is whom it had heard last, the zero value for nobody; with that one's
	// priority, and how long before.
	Heard         netip.Addr    `json:"heard,omitzero"`
	HeardPriority uint8         `json:"heard_priority,omitempty"`
	HeardBefore   time.Duration `json:"heard_before,omitempty"`
}

// BackendState is what a node's own health checks say of a backend.
type BackendState struct {
	Service string `json:"service"`
	Backend string `json:"backend"`
	Up      bool   `json:"up"`
	Known   bool   `json:"known"` // it has been checked
	Reason  string `json:"reason"`
}

// Router returns a virtual router of the node, by the number and family that
// both nodes know it by.
func (s *State) Router(vrid uint8, v6 bool) (r RouterState, ok bool) {
	i := slices.IndexFunc(s.Routers, func(r RouterState) bool { return r.VRID == vrid && r.V6 == v6 })
	if i < 0 {
		return r, false
	}
	return s.Routers[i], true
}

// maxState is the longest state sent or accepted. It fits some 500 backends.
const maxState = 64 << 10

// serves returns the addresses that the node holds the lease for, in order.
func (s *State) serves() []netip.Addr {
	var out []netip.Addr
	for _, r := range s.Routers {
		if r.Leased {
			out = append(out, r.Addresses...)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// appendState appends the frame of a state. One that is too long goes without
// the moves, and then without the backends and what was said: what the election needs comes first.
// Whole is false if something had to go.
func appendState(dst []byte, s State) (out []byte, whole bool, err error) {
	body, err := json.Marshal(s)
	if err == nil && len(body) > maxState {
		s.Routers = slices.Clone(s.Routers)
		for i := range s.Routers {
			s.Routers[i].Moves = nil
		}
		body, err = json.Marshal(s)
		if err == nil && len(body) <= maxState {
			f := beginFrame(dst, kindState)
			return endFrame(append(f, body...), len(dst)), false, nil
		}
	}
	if err == nil && len(body) > maxState {
		s.Said, s.Backends = nil, nil
		body, err = json.Marshal(s)
	} else {
		whole = true
	}
	if err != nil {
		return dst, false, fmt.Errorf("encoding the state: %w", err)
	}
	if len(body) > maxState {
		return dst, false, fmt.Errorf("encoding the state: its %d bytes are more than %d", len(body), maxState)
	}
	f := beginFrame(dst, kindState)
	return endFrame(append(f, body...), len(dst)), whole, nil
}

// parseState is the inverse. Fields that it does not know are of a newer peer.
func parseState(body []byte) (State, error) {
	var s State
	if len(body) > maxState {
		return s, fmt.Errorf("decoding the state: its %d bytes are more than %d", len(body), maxState)
	}
	if err := json.Unmarshal(body, &s); err != nil {
		return s, fmt.Errorf("decoding the state: %w", err)
	}
	return s, nil
}

// without returns the addresses of a that are not in b.
func without(a, b []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, addr := range a {
		if !slices.Contains(b, addr) {
			out = append(out, addr)
		}
	}
	return out
}

// common returns the addresses of a that are in b too.
func common(a, b []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, addr := range a {
		if slices.Contains(b, addr) {
			out = append(out, addr)
		}
	}
	return out
}
