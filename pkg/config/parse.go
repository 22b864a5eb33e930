package config

import (
	"net/netip"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// defaultSNAT leaves the ports below 10240 to the node's own services: a
// packet to the virtual address at a port of the range is taken for an answer
// of a backend.
var defaultSNAT = portRange{10240, 65535}

// maxRouters is the number of virtual router ids, 255 for each family.
const maxRouters = 2 * 255

// maxAllow bounds the client networks of a service. More are better told to a
// firewall.
const maxAllow = 1024

// Parse validates data, the contents of the file called file, which is used in
// messages only. The error joins one *Error for each fault found.
func Parse(file string, data []byte) (*Config, error) {
	d := &decoder{file: file}
	root, ok := d.document(data)
	if !ok {
		return nil, d.err()
	}
	s := root.section("node", "interface", "xdp", "timeouts", "services", "virtual_routers", "sync", "stats", "admin", "notify", "log")
	c := &Config{
		Node:      need(s, "node", name),
		Interface: need(s, "interface", interfaceName),
		XDP:       parseXDP(s),
		Timeouts:  parseTimeouts(s),
		Sync:      parseSync(s),
		Stats:     parseStats(s),
		Admin:     parseAdmin(s),
		Notify:    parseNotify(s),
		Log:       parseLog(s),
	}
	services := s.list("services", 1, lb.MaxServices)
	for _, n := range services {
		c.Services = append(c.Services, parseService(n))
	}
	routers := s.list("virtual_routers", 1, maxRouters)
	for _, n := range routers {
		c.VirtualRouters = append(c.VirtualRouters, parseRouter(n))
	}
	if r := c.VirtualRouters; c.Notify.StatsURL == "" && len(r) > 0 {
		c.Notify.StatsURL = "http://" + netip.AddrPortFrom(r[0].Source, c.Stats.Port).String() + "/stats"
	}
	// Rules that tie values together would only repeat what is wrong with
	// the values themselves.
	if len(d.errors) == 0 {
		v := &validator{c: c, root: s, services: services, routers: routers}
		v.validate()
	}
	if err := d.err(); err != nil {
		return nil, err
	}
	return c, nil
}

func parseXDP(root section) XDP {
	s := root.sub("xdp", "mode", "tx", "pin_path", "flow_table_size", "half_open_flows", "syn_rate", "reset_rate", "snat_ports", "sweep_interval")
	snat := get(s, "snat_ports", defaultSNAT, ports)
	return XDP{
		Mode:    get(s, "mode", "auto", oneOf("auto", "native", "generic")),
		TX:      get(s, "tx", "tx", oneOf("tx", "redirect")),
		PinPath: get(s, "pin_path", "/sys/fs/bpf/pgsteer", path),
		// 16 Mi entries are about 2 GB of locked memory; a larger number is a slip.
		FlowTableSize: get(s, "flow_table_size", 524288, number[uint32](1024, 1<<24)),
		HalfOpenFlows: get(s, "half_open_flows", 32768, powerOfTwo(1024, 1<<20)),
		SYNRate:       parseSYNRate(s),
		ResetRate:     get(s, "reset_rate", 20_000, number[uint32](1, 10_000_000)),
		SNATLow:       snat.low,
		SNATHigh:      snat.high,
		SweepInterval: get(s, "sweep_interval", time.Second, duration(10*time.Millisecond, time.Minute)),
	}
}

func parseSYNRate(xdp section) SYNRate {
	s := xdp.sub("syn_rate", "per_source", "total")
	// Above that a CPU has no time to look at the rate.
	rate := number[uint32](0, 10_000_000)
	return SYNRate{
		PerSource: get(s, "per_source", 10_000, rate),
		Total:     get(s, "total", 20_000, rate),
	}
}

func parseTimeouts(root section) Timeouts {
	s := root.sub("timeouts", "syn", "established", "probe", "fin", "time_wait", "closed", "reset")
	probe := s.sub("probe", "interval", "count")
	positive := duration(time.Millisecond, 0)
	return Timeouts{
		SYN:         get(s, "syn", 10*time.Second, positive),
		Established: get(s, "established", 24*time.Hour, positive),
		Probe: Probe{
			Interval: get(probe, "interval", 10*time.Second, duration(100*time.Millisecond, time.Hour)),
			Count:    get(probe, "count", 5, number(1, 100)),
		},
		FIN:      get(s, "fin", 120*time.Second, positive),
		TimeWait: get(s, "time_wait", 60*time.Second, positive),
		Closed:   get(s, "closed", 3*time.Second, positive),
		Reset:    get(s, "reset", 10*time.Second, positive),
	}
}

func parseService(n node) Service {
	s := n.section("name", "address", "scheduler", "slow_start", "when_full", "allow", "nat_addresses", "client_address",
		"on_marked_down", "drain_timeout", "check", "backends")
	svc := Service{
		Name:          need(s, "name", name),
		Addr:          need(s, "address", addrPort),
		Scheduler:     get(s, "scheduler", lb.LeastConn, scheduler),
		SlowStart:     get(s, "slow_start", 0, duration(0, time.Hour)),
		WhenFull:      get(s, "when_full", "reset", oneOf("reset", "drop")),
		ClientAddress: get(s, "client_address", true, boolean),
		OnMarkedDown:  get(s, "on_marked_down", "reset", oneOf("reset", "keep")),
		DrainTimeout:  get(s, "drain_timeout", 0, duration(0, 0)),
		Check:         parseCheck(s),
	}
	for _, n := range s.list("allow", 0, maxAllow) {
		svc.Allow = append(svc.Allow, scalar(n, network))
	}
	for _, n := range s.list("nat_addresses", 0, lb.MaxNATAddrs) {
		svc.NATAddrs = append(svc.NATAddrs, scalar[netip.Addr](n, addr))
	}
	for _, n := range s.list("backends", 1, lb.MaxBackends) {
		b := n.section("name", "address", "weight", "max_connections", "backup")
		svc.Backends = append(svc.Backends, Backend{
			Name:           need(b, "name", name),
			Addr:           need(b, "address", addrPort),
			Weight:         get(b, "weight", 1, number[uint16](1, 256)),
			MaxConnections: get(b, "max_connections", 0, number[uint32](0, 1<<24)),
			Backup:         get(b, "backup", false, boolean),
		})
	}
	return svc
}

func parseCheck(service section) Check {
	s := service.sub("check", "type", "interval", "fast_interval", "timeout", "fall", "rise", "user", "database")
	c := Check{
		Type:     get(s, "type", "postgres", oneOf("tcp", "postgres")),
		Interval: get(s, "interval", 2*time.Second, duration(10*time.Millisecond, time.Hour)),
		Fall:     get(s, "fall", 3, number(1, 100)),
		Rise:     get(s, "rise", 2, number(1, 100)),
	}
	c.Timeout = get(s, "timeout", min(time.Second, c.Interval), duration(time.Millisecond, time.Hour))
	if c.Timeout > c.Interval && c.Interval > 0 {
		s.at("timeout").fail("%s is longer than the interval of %s", brief(c.Timeout), brief(c.Interval))
	}
	c.FastInterval = get(s, "fast_interval", min(500*time.Millisecond, c.Interval), duration(10*time.Millisecond, time.Hour))
	if c.FastInterval > c.Interval && c.Interval > 0 {
		s.at("fast_interval").fail("%s is longer than the interval of %s", brief(c.FastInterval), brief(c.Interval))
	}
	const nameLen = 63 // NAMEDATALEN - 1 of PostgreSQL
	if c.Type == "tcp" {
		for _, key := range []string{"user", "database"} {
			if s.has(key) {
				s.at(key).fail("has no meaning for a check of type tcp")
			}
		}
		return c
	}
	c.User = get(s, "user", "pgsteer_check", text(nameLen))
	c.Database = get(s, "database", "postgres", text(nameLen))
	return c
}

func parseStats(root section) Stats {
	s := root.sub("stats", "listen")
	return get(s, "listen", Stats{Listen: ":8404", Port: 8404}, listenAddr)
}

func parseAdmin(root section) Admin {
	s := root.sub("admin", "socket", "state_file", "haproxy_socket")
	a := Admin{
		Socket:    get(s, "socket", "/run/pgsteer/admin.sock", socketPath),
		StateFile: get(s, "state_file", "/var/lib/pgsteer/orders.json", path),

		HAProxySocket: get(s, "haproxy_socket", "", socketPath),
	}
	if a.HAProxySocket != "" && a.HAProxySocket == a.Socket {
		s.at("haproxy_socket").fail("%s is the admin socket itself", a.Socket)
	}
	return a
}

func parseLog(root section) Log {
	s := root.sub("log", "level", "format")
	return Log{
		Level:  get(s, "level", "info", oneOf("debug", "info", "warn", "error")),
		Format: get(s, "format", "text", oneOf("text", "json")),
	}
}
