// Package config reads the configuration file of pgsteerd and turns it into
// values that nobody has to check again.
//
// The file is YAML, read strictly: a key that is unknown or stands twice, a
// value of the wrong type or out of its range, and a missing key are all
// refused with the file, the line and the path of the value. Nothing is
// opened, resolved or touched here; what only the running system can tell
// (does the interface exist?) is for pgsteerd to find out.
package config

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// maxFileSize bounds what Load reads, in bytes. The largest valid
// configuration (256 services of 64 backends, one line each) has about 1.5 MiB.
const maxFileSize = 4 << 20

// Config is a validated configuration of one balancer node.
type Config struct {
	// Node is this balancer's name in logs, metrics and on the stats page.
	// Key: node. Required; letters, digits, '.', '_' and '-', at most 31 bytes.
	Node string
	// Interface is the network interface that carries the virtual addresses,
	// the XDP program and the VRRP adverts.
	// Key: interface. Required; at most 15 bytes.
	Interface string
	// XDP configures the datapath. Key: xdp.
	XDP XDP
	// Timeouts are the idle times after which a flow is given up. Key: timeouts.
	Timeouts Timeouts
	// Services are the balanced addresses, 1 to 256. Key: services. Required.
	Services []Service
	// VirtualRouters hold the virtual addresses, at least one.
	// Key: virtual_routers. Required.
	VirtualRouters []VirtualRouter
	// Sync replicates the connections to the other node. Key: sync. Default: nil,
	// they are not, and end when the addresses move.
	Sync *Sync
	// Stats configures the stats page and the metrics. Key: stats.
	Stats Stats
	// Admin configures how the running daemon is told what to do. Key: admin.
	Admin Admin
	// Notify says who is told what happens. Key: notify.
	Notify Notify
	// Log configures what goes to standard error. Key: log.
	Log Log
}

// XDP configures how the XDP program is loaded and how large its tables are.
type XDP struct {
	// Mode is how the program is attached: "native" in the driver, "generic"
	// in the network stack (slower), or "auto": native if the driver can, else
	// generic with a warning. Key: mode. Default: auto.
	Mode string
	// TX is how a packet leaves: "tx" back through the queue on which it came,
	// or "redirect" through the device's transmit function, for drivers whose
	// XDP_TX does not work. Key: tx. Default: tx.
	TX string
	// PinPath is the directory on a BPF file system where program, link and
	// maps are pinned, so that flows outlive the daemon. Key: pin_path;
	// absolute. Default: /sys/fs/bpf/pgsteer.
	PinPath string
	// FlowTableSize is the number of entries of the flow table; a flow takes
	// two. Key: flow_table_size; 1024 to 16777216. Default: 524288.
	FlowTableSize uint32
	// HalfOpenFlows is the number of flows whose handshake is not complete; one
	// more takes the place of the oldest. Key: half_open_flows; a power of two
	// from 1024 to 1048576. Default: 32768.
	HalfOpenFlows uint32
	// SYNRate bounds how many flows can be begun. Key: syn_rate.
	SYNRate SYNRate
	// ResetRate bounds the resets that answer segments of unknown connections,
	// a second; a fifth of it may come at once. Key: reset_rate.
	ResetRate uint32
	// SNATLow and SNATHigh are the first and the last source port that the
	// balancer uses towards the backends. Key: snat_ports, as LOW-HIGH; 1024 at
	// the lowest, and holding neither a service's port nor the stats port,
	// because packets to the virtual address are told apart by that port.
	// Default: 10240-65535.
	SNATLow, SNATHigh uint16
	// SweepInterval is the time between two sweeps of the flow table, in which
	// dead flows are removed and the active counts are audited.
	// Key: sweep_interval; 10ms to 1m. Default: 1s.
	SweepInterval time.Duration
}

// SYNRate is the number of SYNs a second that make flows; the rest is dropped.
// A second's worth may come at once, of Total half of HalfOpenFlows at the most.
// 0 is no bound, 10000000 the most.
type SYNRate struct {
	// PerSource is for one client address, or one IPv6 network of 64 bits; some
	// share a budget. Key: per_source. Default: 10000.
	PerSource uint32
	// Total is for all sources together from which no handshake was completed
	// in the last ten minutes: they may be made up. Key: total. Default: 20000.
	Total uint32
}

// Timeouts are the idle times after which a flow of the named state is
// removed; all are greater than zero.
type Timeouts struct {
	// SYN is for a connection that was never established. Key: syn.
	// Default: 10s, so that the third SYN of a client (sent 3 s after the
	// first, RFC 6298) still finds its flow.
	SYN time.Duration
	// Established is for an open connection without traffic. Key: established.
	// Default: 24h, since a pooled connection may idle for a working day.
	Established time.Duration
	// Probe says how both ends of such a connection are asked whether it lives
	// before it is given up. Key: probe.
	Probe Probe
	// FIN is for a connection that one side has closed. Key: fin. Default: 120s.
	FIN time.Duration
	// TimeWait is for a connection that both sides have closed, the backend
	// first: it holds the port for that long. Key: time_wait. Default: 60s,
	// which is Linux's own TIME_WAIT.
	TimeWait time.Duration
	// Closed is for a connection that both sides have closed, the client first:
	// the backend has forgotten it, and its port is free again after the last
	// segments have gone by. Key: closed. Default: 3s.
	Closed time.Duration
	// Reset is for a connection that was reset. Key: reset. Default: 10s.
	Reset time.Duration
}

// Probe is the keep-alive of an idle connection.
type Probe struct {
	// Interval is the time between two probes. Key: interval; 100ms to 1h.
	// Default: 10s.
	Interval time.Duration
	// Count is the number of probes without an answer after which the
	// connection is dead. Key: count; 1 to 100. Default: 5.
	Count int
}

// Service is one balanced address.
type Service struct {
	// Name is unique among the services. Key: name. Required; letters, digits,
	// '.', '_' and '-', at most 31 bytes.
	Name string
	// Addr is the address and port that clients connect to; its address must
	// be one of a virtual router's. Key: address. Required.
	Addr netip.AddrPort
	// Scheduler picks the backend of a new connection: leastconn, roundrobin or
	// random2. Key: scheduler. Default: leastconn.
	Scheduler lb.Scheduler
	// SlowStart is the time in which the share of a backend that comes up grows
	// to what its weight says. Key: slow_start; up to 1h. Default: 0s.
	SlowStart time.Duration
	// WhenFull says what becomes of a new connection when all backends have
	// their max_connections: "reset", the client is told at once, or "drop", it
	// tries again after a second or more. Key: when_full. Default: reset.
	WhenFull string
	// Allow are the networks that clients may come from, of the service's
	// family, up to 1024; none means everybody. Key: allow. Default: none.
	Allow []netip.Prefix
	// NATAddrs are further addresses, beside the service's, that connections
	// have towards the backends: other addresses of the same virtual router, up
	// to 7. Key: nat_addresses. Default: none.
	NATAddrs []netip.Addr
	// ClientAddress has the client's address written into its SYN as a TCP
	// option that the pooler reads. Key: client_address. Default: true.
	ClientAddress bool
	// DrainTimeout is how long the connections of a draining backend are left
	// alone where the operator does not say; 0 is for ever.
	// Key: drain_timeout. Default: 0s.
	DrainTimeout time.Duration
	// OnMarkedDown says what becomes of the connections of a backend that is
	// found to be down: "reset", both sides are told at once, or "keep", they
	// are left to themselves. Key: on_marked_down. Default: reset.
	OnMarkedDown string
	// Check says how the backends are watched. Key: check.
	Check Check
	// Backends take the connections, 1 to 64. Key: backends. Required.
	Backends []Backend
}

// Check is the health check of a service's backends.
type Check struct {
	// Type is "tcp", a connection that opens, or "postgres", a server that
	// answers a StartupMessage with an authentication request. Key: type.
	// Default: postgres.
	Type string
	// Interval is the time between the starts of two checks of one backend.
	// Key: interval; 10ms to 1h. Default: 2s.
	Interval time.Duration
	// FastInterval takes the place of Interval after a check that was made
	// because clients were refused, and failed, until Fall or Rise decide.
	// Key: fast_interval; 10ms to the interval. Default: 500ms, or the interval
	// where that is shorter.
	FastInterval time.Duration
	// Timeout is the time in which a check must succeed. Key: timeout; 1ms at
	// least and at most the interval. Default: 1s, or the interval where that
	// is shorter.
	Timeout time.Duration
	// Fall is the number of failures in a row that take a backend down.
	// Key: fall; 1 to 100. Default: 3.
	Fall int
	// Rise is the number of successes in a row that bring it back.
	// Key: rise; 1 to 100. Default: 2.
	Rise int
	// User and Database are named in the StartupMessage; no password is sent.
	// Keys: user, database; only with type postgres, 1 to 63 bytes (what
	// PostgreSQL keeps of a name). Defaults: pgsteer_check, postgres.
	User, Database string
}

// Backend is one pooler.
type Backend struct {
	// Name is unique within the service. Key: name. Required; letters, digits,
	// '.', '_' and '-', at most 31 bytes.
	Name string
	// Addr is where it listens, unique in the file, of the service's family.
	// Key: address. Required.
	Addr netip.AddrPort
	// Weight is its share of the connections relative to the other backends.
	// Key: weight; 1 to 256. Default: 1.
	Weight uint16
	// MaxConnections is the most connections that it has at a time; 0 is no
	// limit. Key: max_connections; up to 16777216. Default: 0.
	MaxConnections uint32
	// Backup backends take connections only while no other is up. At least one
	// of a service is none. Key: backup. Default: false.
	Backup bool
}

// Stats configures the HTTP server of the stats page and the metrics.
type Stats struct {
	// Listen is the address and port; without an address, all of the node's.
	// Key: listen. Default: ":8404".
	Listen string
	// Port is the port in Listen.
	Port uint16
}

// Admin configures the socket on which the daemon takes orders.
type Admin struct {
	// Socket is its path; root and the group pgsteer may use it. Key: socket;
	// absolute, at most 107 bytes. Default: /run/pgsteer/admin.sock.
	Socket string
	// StateFile is where the orders are kept, so that no restart puts a backend
	// into use again that an operator took out. Key: state_file; absolute.
	// Default: /var/lib/pgsteer/orders.json.
	StateFile string
	// HAProxySocket is the path of a second socket, for the same people, that
	// answers the commands of HAProxy's runtime socket. Key: haproxy_socket;
	// absolute, at most 107 bytes. Default: "", none.
	HAProxySocket string
}

// Log configures the log.
type Log struct {
	// Level is the least severe level that is written: debug, info, warn or
	// error. Key: level. Default: info.
	Level string
	// Format is text or json. Key: format. Default: text.
	Format string
}

// Minimal is the smallest useful file: what is left out has its default.
const Minimal = `node: lb1
interface: eth0
services:
  - name: postgres
    address: 192.168.1.100:5432
    backends:
      - {name: pooler1, address: 192.168.1.5:6432}
virtual_routers:
  - {name: main, vrid: 51, addresses: [192.168.1.100], source: 192.168.1.10}
`

// Load reads and validates the file at path. Each line of the error it returns
// has the form "FILE:LINE: PATH: REASON".
func Load(path string) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	if len(data) > maxFileSize {
		return nil, fmt.Errorf("%s: file is larger than %d bytes", path, maxFileSize)
	}
	return Parse(path, data)
}
