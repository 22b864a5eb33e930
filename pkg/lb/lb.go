// Package lb is the balancer's domain: services, their backends, and the
// controller that turns desired state (configuration, health, the operator's
// word) into what the datapath is told.
//
// It knows nothing of BPF, YAML or Prometheus. The datapath is an interface
// that pkg/xdp implements; everything observable leaves as a Snapshot.
package lb

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Limits of the datapath's tables. The C side has the same numbers in
// bpf/config.h; a test in pkg/xdp holds the two against each other.
const (
	// MaxServices is the number of services one node can balance.
	MaxServices = 256
	// MaxBackends is the number of backends one service can have. A scan of
	// 64 slots at SYN costs 57 ns (measured), which is why there is a bound.
	MaxBackends = 64
	// MaxNATAddrs is the number of further source addresses of one service.
	MaxNATAddrs = 7
	// MaxVIPs is the number of virtual addresses of one family.
	MaxVIPs = 256
	// MaxAllowed is the number of client networks of one family, over all
	// services.
	MaxAllowed = 16384
	// MaxNameLen is the longest service or backend name, in bytes: names are
	// kept in the pinned maps so that tools can read them without the daemon.
	MaxNameLen = 31
)

// State is a backend's operational state as the datapath understands it.
type State uint8

// The states of a backend. The zero value is Down: a backend takes no traffic
// before its first successful check.
const (
	Down        State = iota // failed its health check; takes no new flows
	Up                       // takes new flows
	Draining                 // takes no new flows, the established ones live on
	Maintenance              // taken out by an operator, whatever the checks say
)

var stateNames = [...]string{Down: "down", Up: "up", Draining: "draining", Maintenance: "maint"}

// String returns the name used in the CLI, the metrics and the stats page.
func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// MarshalText implements encoding.TextMarshaler.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler. The error names the word
// that is no state.
func (s *State) UnmarshalText(text []byte) error {
	i := slices.Index(stateNames[:], string(text))
	if i < 0 {
		return fmt.Errorf("%q is not one of %s", text, strings.Join(stateNames[:], ", "))
	}
	*s = State(i)
	return nil
}

// Scheduler selects a backend for a new flow.
type Scheduler uint8

// The schedulers. The numbers are those of bpf/types.h.
const (
	LeastConn  Scheduler = iota // the fewest flows per unit of weight
	RoundRobin                  // in turn, as often as the weight says, evenly spread
	RandomTwo                   // the less loaded of two that are drawn at random
)

var schedulerNames = [...]string{LeastConn: "leastconn", RoundRobin: "roundrobin", RandomTwo: "random2"}

// String returns the scheduler's name as written in the configuration.
func (s Scheduler) String() string {
	if int(s) < len(schedulerNames) {
		return schedulerNames[s]
	}
	return fmt.Sprintf("scheduler(%d)", uint8(s))
}

// MarshalText implements encoding.TextMarshaler.
func (s Scheduler) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Backend is one pooler behind a service.
type Backend struct {
	Name   string         // unique within its service, at most MaxNameLen bytes
	Addr   netip.AddrPort // of the family of its service's address
	Weight uint16         // relative capacity, 1-256; 1 is the default
	// MaxConnections is how many flows it has at the most; 0 is no limit. One
	// that is full is passed over.
	MaxConnections uint32
	// Backup backends take new flows only while no other is up.
	Backup bool
	State  State
}

// Service is a virtual address and the backends that it is balanced over.
// The order of Backends is the slot order in the datapath and stays fixed for
// the life of a slot: flows refer to slots.
type Service struct {
	Name      string         // unique, at most MaxNameLen bytes
	Addr      netip.AddrPort // VIP and port, IPv4 or IPv6
	Scheduler Scheduler
	// SlowStart is how long the share of a backend that comes up grows from
	// nothing to what its weight says; 0 is no such time.
	SlowStart time.Duration
	// DropWhenFull has a SYN for which all backends are full dropped, so that
	// the client tries again; else it is answered by a reset.
	DropWhenFull bool
	// Allow are the networks that clients may come from; none means all.
	Allow []netip.Prefix
	// NATAddrs are further addresses, beside the VIP, that flows have as their
	// source towards the backends: each gives 55,296 more flows to each
	// backend. They are virtual addresses of this node, of the VIP's family,
	// MaxNATAddrs at the most.
	NATAddrs []netip.Addr
	// ClientAddress has the client's address written into its SYN as a TCP
	// option, which the pooler reads.
	ClientAddress bool
	// ResetOnDown has the flows of a backend that is found to be down reset on
	// both sides: clients connect anew at once instead of waiting for a frozen
	// server until their own time-outs.
	ResetOnDown bool
	// DrainTimeout is how long the flows of a backend that is told to drain are
	// left to end by themselves, if whoever tells it does not say; 0 is for
	// ever. The datapath has no use for it.
	DrainTimeout time.Duration
	Backends     []Backend
}

// Datapath is what the controller needs of whatever forwards the packets.
type Datapath interface {
	// SetServices replaces the set of services. Active counts of backends
	// that stay (same service name, same backend address) are kept.
	SetServices([]Service) error
	// SetBackend changes state, weight, limit and standing of one backend, found
	// by its name; its address must be the one that it has. Flows that exist are
	// not touched. A change to Up begins its slow start.
	SetBackend(service string, b Backend) error
	// ResetFlows ends the established flows of a backend, which takes no new
	// ones, by a reset to both sides, at a bounded rate. It returns before that
	// is done, and leaves off when the backend is Up again meanwhile.
	ResetFlows(service, backend string) error
}

// ConnectTimeBuckets is the number of buckets of BackendStats.ConnectTime.
const ConnectTimeBuckets = 24

// BackendStats is what the datapath counted for one backend.
type BackendStats struct {
	Name      string         `json:"name"`
	Addr      netip.AddrPort `json:"address"`
	State     State          `json:"state"`
	Weight    uint16         `json:"weight"`
	Limit     uint32         `json:"max_connections"` // 0 is no limit
	Backup    bool           `json:"backup"`
	Reachable bool           `json:"reachable"` // its next hop's MAC address is known
	MAC       string         `json:"mac"`       // next hop's MAC address, empty when unknown
	Active    int64          `json:"active"`    // flows open now; exact
	Total     uint64         `json:"total"`     // flows ever scheduled to it
	Closed    uint64         `json:"closed"`    // of these, flows that are over
	Refused   uint64         `json:"refused"`   // SYNs it answered by a reset or an ICMP error; others were asked
	// Redispatched counts the flows that were taken from it, because it refused
	// or did not answer, and offered to others.
	Redispatched uint64 `json:"redispatched"`
	// Resets counts the flows that ended by a reset, from either side.
	Resets uint64 `json:"resets"`
	// Evicted counts the half-open flows that gave way to newer ones.
	Evicted uint64 `json:"evicted"`
	// ConnectTime counts handshakes by the time from SYN to SYN-ACK: bucket 0
	// those below 1 microsecond, bucket n those below 2^n; the last one all
	// that took longer.
	ConnectTime [ConnectTimeBuckets]uint64 `json:"connect_time"`
	// ConnectTimeSum is the sum of these times.
	ConnectTimeSum time.Duration `json:"connect_time_sum"`
	PacketsIn      uint64        `json:"packets_in"`  // client to backend
	BytesIn        uint64        `json:"bytes_in"`    // IP bytes, client to backend
	PacketsOut     uint64        `json:"packets_out"` // backend to client
	BytesOut       uint64        `json:"bytes_out"`   // IP bytes, backend to client
}

// ServiceStats is a service with the counts of its backends.
type ServiceStats struct {
	Name      string         `json:"name"`
	Addr      netip.AddrPort `json:"address"`
	Scheduler Scheduler      `json:"scheduler"`
	Backends  []BackendStats `json:"backends"`
}

// VerdictCount is one row of the datapath's verdict table: each packet that
// the program saw is counted under exactly one name.
type VerdictCount struct {
	Name   string `json:"name"`   // snake_case, stable
	Action string `json:"action"` // "tx", "pass" or "drop"
	Count  uint64 `json:"count"`
}

// VIPStats is one virtual address as the datapath knows it.
type VIPStats struct {
	Addr     netip.Addr    `json:"address"`
	Router   string        `json:"router"`   // name of the virtual router that owns it
	VRID     uint8         `json:"vrid"`     // virtual router id
	Priority uint8         `json:"priority"` // this node's priority
	State    string        `json:"state"`    // init, backup, active
	Since    time.Duration `json:"since"`    // age of State, nanoseconds
	// Lease is the time left in which the program answers for the address;
	// zero or less means that this node is silent about it.
	Lease time.Duration `json:"lease"`
}

// Flow is one TCP connection through the balancer.
type Flow struct {
	Client  netip.AddrPort `json:"client"`
	Service netip.AddrPort `json:"service"`
	SNAT    netip.AddrPort `json:"snat"` // source that the backend sees: the VIP and a reserved port
	Backend netip.AddrPort `json:"backend"`
	// State is syn_sent, syn_received, established, fin_client, fin_backend,
	// time_wait (the backend closed first and holds the port for a minute),
	// closed or reset.
	State string        `json:"state"`
	Age   time.Duration `json:"age"`
	Idle  time.Duration `json:"idle"`
	// Packets and Bytes are counted on the IP layer, in the direction named.
	PacketsIn  uint64 `json:"packets_in"`
	BytesIn    uint64 `json:"bytes_in"`
	PacketsOut uint64 `json:"packets_out"`
	BytesOut   uint64 `json:"bytes_out"`
}

// Audit is the result of the last recount of the flow table.
type Audit struct {
	Flows    int   `json:"flows"`     // flow pairs in the table, closed ones included
	Live     int   `json:"live"`      // of these, flows that count as active
	Drift    int64 `json:"drift"`     // sum over backends of |active - recount| seen in two sweeps running; target 0
	Orphans  int   `json:"orphans"`   // entries whose other half was missing
	Capacity int   `json:"capacity"`  // entries the tables can hold (two per flow)
	Memory   int64 `json:"memory"`    // bytes that all tables take together
	SweptAgo int64 `json:"swept_ago"` // age of this recount, nanoseconds
	// Probed counts the idle flows whose ends were asked whether they live,
	// since the daemon started, and Dead those that were given up then.
	Probed uint64 `json:"probed"`
	Dead   uint64 `json:"dead"`
}

// DatapathStats is everything that the datapath can tell about itself.
type DatapathStats struct {
	Interface string         `json:"interface"`
	Mode      string         `json:"mode"` // "native", "generic", or "" when the daemon that knows is not running
	Services  []ServiceStats `json:"services"`
	VIPs      []VIPStats     `json:"vips"`
	Verdicts  []VerdictCount `json:"verdicts"`
	Audit     Audit          `json:"audit"`
}
