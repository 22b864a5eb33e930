package config

import (
	"math"
	"net/netip"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// defaultSNAT leaves the ports below 10240 to the node's own services: a
// packet to the virtual address at a port of the range is taken for an answer
// of a backend.
var defaultSNAT = portRange{10240, 65535}

// maxRouters is the number of virtual router ids.
const maxRouters = 255

// Parse validates data, the contents of the file called file, which is used in
// messages only. The error joins one *Error for each fault found.
func Parse(file string, data []byte) (*Config, error) {
	d := &decoder{file: file}
	root, ok := d.document(data)
	if !ok {
		return nil, d.err()
	}
	s := root.section("node", "interface", "xdp", "timeouts", "services", "virtual_routers", "stats", "log")
	c := &Config{
		Node:      need(s, "node", name),
		Interface: need(s, "interface", interfaceName),
		XDP:       parseXDP(s),
		Timeouts:  parseTimeouts(s),
		Stats:     parseStats(s),
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
	s := root.sub("xdp", "mode", "tx", "pin_path", "flow_table_size", "snat_ports", "sweep_interval")
	snat := get(s, "snat_ports", defaultSNAT, ports)
	return XDP{
		Mode:    get(s, "mode", "auto", oneOf("auto", "native", "generic")),
		TX:      get(s, "tx", "tx", oneOf("tx", "redirect")),
		PinPath: get(s, "pin_path", "/sys/fs/bpf/pgsteer", path),
		// 16 Mi entries are about 2 GB of locked memory; a larger number is a slip.
		FlowTableSize: get(s, "flow_table_size", 524288, number[uint32](1024, 1<<24)),
		SNATLow:       snat.low,
		SNATHigh:      snat.high,
		SweepInterval: get(s, "sweep_interval", time.Second, duration(10*time.Millisecond, time.Minute)),
	}
}

func parseTimeouts(root section) Timeouts {
	s := root.sub("timeouts", "syn", "established", "fin", "time_wait", "reset")
	positive := duration(time.Millisecond, 0)
	return Timeouts{
		SYN:         get(s, "syn", 10*time.Second, positive),
		Established: get(s, "established", 24*time.Hour, positive),
		FIN:         get(s, "fin", 120*time.Second, positive),
		TimeWait:    get(s, "time_wait", 60*time.Second, positive),
		Reset:       get(s, "reset", 10*time.Second, positive),
	}
}

func parseService(n node) Service {
	s := n.section("name", "address", "scheduler", "on_marked_down", "check", "backends")
	svc := Service{
		Name:         need(s, "name", name),
		Addr:         need(s, "address", addrPort),
		Scheduler:    get(s, "scheduler", lb.LeastConn, scheduler),
		OnMarkedDown: get(s, "on_marked_down", "reset", oneOf("reset", "keep")),
		Check:        parseCheck(s),
	}
	for _, n := range s.list("backends", 1, lb.MaxBackends) {
		b := n.section("name", "address", "weight")
		svc.Backends = append(svc.Backends, Backend{
			Name:   need(b, "name", name),
			Addr:   need(b, "address", addrPort),
			Weight: get(b, "weight", 1, number[uint16](1, 256)),
		})
	}
	return svc
}

func parseCheck(service section) Check {
	s := service.sub("check", "type", "interval", "timeout", "fall", "rise", "user", "database")
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

func parseRouter(n node) VirtualRouter {
	s := n.section("name", "vrid", "priority", "advert_interval", "preempt", "addresses", "source", "peers", "checksum_pseudo_header")
	r := VirtualRouter{
		Name:                 need(s, "name", name),
		VRID:                 need(s, "vrid", number[uint8](1, math.MaxUint8)),
		Priority:             get(s, "priority", 100, number[uint8](1, math.MaxUint8)),
		AdvertInterval:       get(s, "advert_interval", 100*time.Millisecond, advertInterval),
		Preempt:              get(s, "preempt", false, boolean),
		Source:               need(s, "source", addr),
		ChecksumPseudoHeader: get(s, "checksum_pseudo_header", false, boolean),
	}
	const maxAddresses, maxPeers = 255, 255
	for _, n := range s.list("addresses", 1, maxAddresses) {
		r.Addresses = append(r.Addresses, scalar(n, prefix))
	}
	for _, n := range s.list("peers", 0, maxPeers) {
		r.Peers = append(r.Peers, scalar[netip.Addr](n, addr))
	}
	return r
}

func parseStats(root section) Stats {
	s := root.sub("stats", "listen")
	return get(s, "listen", Stats{Listen: ":8404", Port: 8404}, listenAddr)
}

func parseLog(root section) Log {
	s := root.sub("log", "level", "format")
	return Log{
		Level:  get(s, "level", "info", oneOf("debug", "info", "warn", "error")),
		Format: get(s, "format", "text", oneOf("text", "json")),
	}
}
