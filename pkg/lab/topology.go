package lab

import (
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
)

// The hosts of the picture. Each is a network namespace of its own, called
// <lab>-<host>, with one interface, eth0, on the LAN.
const (
	Client = "client" // where clients of the service live
	LB1    = "lb1"    // the preferred balancer, priority 101
	LB2    = "lb2"    // the other balancer, priority 100
	Pooler = "pooler" // the machine of the three poolers
	DB     = "db"     // PostgreSQL
)

// lanHost is the namespace that holds the bridge, the LAN's switch. Nothing
// runs in it.
const lanHost = "lan"

// The figures of the picture.
const (
	// Service is the address that clients connect to.
	Service = "192.168.1.100:5432"
	// ServiceName is its name in the balancers' configuration.
	ServiceName = "postgres"
	// RouterID is the virtual router id that both balancers share.
	RouterID = 51
	// Service6, ServiceName6 and RouterID6 are the same for clients that use
	// IPv6, before the same poolers.
	Service6     = "[fd00:1::100]:5432"
	ServiceName6 = "postgres6"
	RouterID6    = 52
	// StatsPort is where each balancer serves /stats and /metrics.
	StatsPort = 8404
	// Database is the name of the database and of the role that owns it.
	Database = "bench"
	// PoolerCount is the number of poolers.
	PoolerCount = 3

	vipAddr     = "192.168.1.100"
	lanBits     = 24
	lanBits6    = 64
	lanMTU      = 1500
	servicePort = 5432
	poolerPort  = 6432 // the first pooler's; the others follow
	dbPort      = 5432
	checkUser   = "pgsteer_check"
)

// host is one machine of the picture.
type host struct {
	name     string
	addr     netip.Addr
	addr6    netip.Addr // of fd00:1::/64, a private network (RFC 4193)
	priority uint8      // VRRP priority, zero where no balancer runs
}

var hosts = []host{
	{name: Client, addr: netip.MustParseAddr("192.168.1.50"), addr6: netip.MustParseAddr("fd00:1::50")},
	{name: LB1, addr: netip.MustParseAddr("192.168.1.10"), addr6: netip.MustParseAddr("fd00:1::10"), priority: 101},
	{name: LB2, addr: netip.MustParseAddr("192.168.1.11"), addr6: netip.MustParseAddr("fd00:1::11"), priority: 100},
	{name: Pooler, addr: netip.MustParseAddr("192.168.1.5"), addr6: netip.MustParseAddr("fd00:1::5")},
	{name: DB, addr: netip.MustParseAddr("192.168.1.6"), addr6: netip.MustParseAddr("fd00:1::6")},
}

// The hosts that Options.Spares adds: plain machines, with no XDP on their way to
// the switch.
const (
	Spare1 = "spare1"
	Spare2 = "spare2"
)

var spareHosts = []host{
	{name: Spare1, addr: netip.MustParseAddr("192.168.1.12"), addr6: netip.MustParseAddr("fd00:1::12")},
	{name: Spare2, addr: netip.MustParseAddr("192.168.1.13"), addr6: netip.MustParseAddr("fd00:1::13")},
}

// everything is all that a lab can have.
var everything = Options{Routed: true, Spares: true}

// Hosts returns the names of the hosts that commands can be run on. A routed lab
// has Remote, Gateway and Router as well, one with spares Spare1 and Spare2.
func Hosts() []string {
	names := make([]string, 0, len(hosts))
	for _, h := range hosts {
		names = append(names, h.name)
	}
	return names
}

// Balancers returns the names of the hosts that run pgsteerd.
func Balancers() []string { return []string{LB1, LB2} }

// Poolers returns the names of the poolers, as they are called in the
// balancers' configuration and as processes of the lab.
func Poolers() []string {
	names := make([]string, 0, PoolerCount)
	for i := range PoolerCount {
		names = append(names, poolerName(i))
	}
	return names
}

// Address returns the IPv4 address of a host on the LAN.
func Address(name string) (netip.Addr, error) {
	h, err := findHost(name)
	return h.addr, err
}

// Address6 returns the IPv6 address of a host on the LAN. It has a link-local
// one beside it.
func Address6(name string) (netip.Addr, error) {
	h, err := findHost(name)
	return h.addr6, err
}

// HardwareAddr returns the MAC address of a host.
func HardwareAddr(name string) (net.HardwareAddr, error) {
	h, err := findHost(name)
	if err != nil {
		return nil, err
	}
	return h.mac(), nil
}

func poolerName(i int) string { return fmt.Sprintf("pooler%d", i+1) }

// hosts returns what is plugged into the LAN's switch.
func (o Options) hosts() []host {
	all := slices.Clone(hosts)
	if o.Routed {
		all = append(all, routedHosts...)
	}
	if o.Spares {
		all = append(all, spareHosts...)
	}
	return all
}

// findHost finds a host by its name, also one that not every lab has.
func findHost(name string) (host, error) {
	for _, h := range append(everything.hosts(), remoteHost) {
		if h.name == name {
			return h, nil
		}
	}
	return host{}, fmt.Errorf("there is no host %q in the lab, only %v", name, Hosts())
}

func mustHost(name string) host {
	h, err := findHost(name)
	if err != nil {
		panic(err) // only called with the constants above
	}
	return h
}

// peerOf returns the balancer that is not h.
func peerOf(h host) host {
	i := slices.IndexFunc(hosts, func(o host) bool { return o.priority != 0 && o.name != h.name })
	return hosts[i]
}

// mac returns the host's fixed hardware address: locally administered
// (02:00, RFC 9542 section 2.1), then the IPv4 address, so that it is
// recognised at once in a capture.
func (h host) mac() net.HardwareAddr {
	a := h.addr.As4()
	return net.HardwareAddr{0x02, 0x00, a[0], a[1], a[2], a[3]}
}

// port is the name of the bridge port that the host is plugged into.
func (h host) port() string { return "p-" + h.name }

// validName keeps lab names usable as directory names and as the front part
// of a namespace's name.
var validName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,30}$`)

func checkName(name string) error {
	if !validName.MatchString(name) {
		return fmt.Errorf("%q cannot be a lab's name: 1-31 lower-case letters, digits and hyphens, not beginning with a hyphen", name)
	}
	return nil
}
