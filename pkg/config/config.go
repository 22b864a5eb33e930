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
	// Stats configures the stats page and the metrics. Key: stats.
	Stats Stats
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
	// FIN is for a connection that one side has closed. Key: fin. Default: 120s.
	FIN time.Duration
	// TimeWait is for a connection that both sides have closed. Key: time_wait.
	// Default: 60s, which is Linux's own TIME_WAIT.
	TimeWait time.Duration
	// Reset is for a connection that was reset. Key: reset. Default: 10s.
	Reset time.Duration
}

// Service is one balanced address.
type Service struct {
	// Name is unique among the services. Key: name. Required; letters, digits,
	// '.', '_' and '-', at most 31 bytes.
	Name string
	// Addr is the address and port that clients connect to; its address must
	// be one of a virtual router's. IPv4 only. Key: address. Required.
	Addr netip.AddrPort
	// Scheduler picks the backend of a new connection. Key: scheduler.
	// Default: leastconn, the only one.
	Scheduler lb.Scheduler
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
	// Addr is where it listens, unique in the file. IPv4 only. Key: address.
	// Required.
	Addr netip.AddrPort
	// Weight is its share of the connections relative to the other backends.
	// Key: weight; 1 to 256. Default: 1.
	Weight uint16
}

// VirtualRouter is one VRRP virtual router (RFC 9568), which moves its
// addresses between the balancer nodes as one.
type VirtualRouter struct {
	// Name is unique among the virtual routers. Key: name. Required; letters,
	// digits, '.', '_' and '-', at most 31 bytes.
	Name string
	// VRID is the virtual router identifier, the same on all its nodes.
	// Key: vrid; 1 to 255. Required.
	VRID uint8
	// Priority elects the active node: the highest wins. Key: priority; 1 to
	// 254, or 255 for the owner of the addresses. Default: 100 (RFC 9568, 5.2.4).
	Priority uint8
	// AdvertInterval is the time between two adverts; a node is taken for dead
	// after a little more than three. Key: advert_interval; 10ms to 40.95s in
	// steps of 10ms, which is what the field on the wire holds (RFC 9568,
	// 5.2.7). Default: 100ms.
	AdvertInterval time.Duration
	// Preempt lets a node of higher priority take the addresses from an active
	// node that works. Key: preempt. Default: false.
	Preempt bool
	// Addresses are the virtual addresses, 1 to 255 (the advert counts them in
	// one byte), unique in the file; without a prefix length, /32. IPv4 only.
	// Key: addresses. Required.
	Addresses []netip.Prefix
	// Source is this node's own address for adverts. Key: source. Required.
	Source netip.Addr
	// Peers are the other nodes' addresses; adverts are sent to each of them
	// and taken from no one else. Without peers, adverts are multicast to
	// 224.0.0.18. Key: peers. Default: none.
	Peers []netip.Addr
	// ChecksumPseudoHeader computes the checksum of adverts as RFC 5798 was
	// widely read, which is keepalived's default for version 3, instead of as
	// RFC 9568 has it. Both are accepted. Key: checksum_pseudo_header.
	// Default: false.
	ChecksumPseudoHeader bool
}

// Stats configures the HTTP server of the stats page and the metrics.
type Stats struct {
	// Listen is the address and port; without an address, all of the node's.
	// Key: listen. Default: ":8404".
	Listen string
	// Port is the port in Listen.
	Port uint16
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
