// Package deploy holds what goes onto machines. Its tests keep the example
// configurations true: the programs' own parsers accept them, they carry the
// figures they promise, and they agree with each other and with the VM lab.
package deploy

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.yaml.in/yaml/v3"

	"github.com/pgsteer/pgsteer/pkg/config"
	"github.com/pgsteer/pgsteer/pkg/config/bouncer"
)

var (
	vipAddr    = netip.MustParseAddr("192.168.1.100")
	lb1Addr    = netip.MustParseAddr("192.168.1.10")
	lb2Addr    = netip.MustParseAddr("192.168.1.11")
	poolerAddr = netip.MustParseAddr("192.168.1.5")
	dbAddr     = netip.MustParseAddr("192.168.1.6")
	clientAddr = netip.MustParseAddr("192.168.1.50")
)

// addresses has cmp look at addresses from outside.
var addresses = cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}, netip.Prefix{})

func loadBalancer(t *testing.T, name string) *config.Config {
	t.Helper()
	cfg, err := config.Load(filepath.Join("examples", name))
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func TestBalancerExamples(t *testing.T) {
	for _, tt := range []struct {
		node         string
		source, peer netip.Addr
		priority     uint8
	}{
		{"lb1", lb1Addr, lb2Addr, 101},
		{"lb2", lb2Addr, lb1Addr, 100},
	} {
		t.Run(tt.node, func(t *testing.T) {
			cfg := loadBalancer(t, tt.node+".yaml")
			if cfg.Node != tt.node {
				t.Errorf("node is %q", cfg.Node)
			}
			if len(cfg.Services) != 1 || len(cfg.VirtualRouters) != 1 {
				t.Fatalf("%d services and %d virtual routers, want one of each", len(cfg.Services), len(cfg.VirtualRouters))
			}

			s := cfg.Services[0]
			if want := netip.AddrPortFrom(vipAddr, 5432); s.Addr != want {
				t.Errorf("service address is %v, want %v", s.Addr, want)
			}
			if c := s.Check; c.Type != "postgres" || c.Interval != 2*time.Second || c.Fall != 3 || c.Rise != 2 {
				t.Errorf("check is %+v, want postgres every 2 s, fall 3, rise 2", c)
			}
			var addrs []netip.AddrPort
			for _, b := range s.Backends {
				addrs = append(addrs, b.Addr)
			}
			if diff := cmp.Diff(poolerAddrs(), addrs, addresses); diff != "" {
				t.Errorf("backends (-want +got):\n%s", diff)
			}

			r := cfg.VirtualRouters[0]
			if r.VRID != 51 || r.Priority != tt.priority || r.Source != tt.source {
				t.Errorf("virtual router %d, priority %d, source %v; want 51, %d, %v", r.VRID, r.Priority, r.Source, tt.priority, tt.source)
			}
			if diff := cmp.Diff([]netip.Addr{tt.peer}, r.Peers, addresses); diff != "" {
				t.Errorf("peers (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff([]netip.Prefix{netip.PrefixFrom(vipAddr, 32)}, r.Addresses, addresses); diff != "" {
				t.Errorf("addresses (-want +got):\n%s", diff)
			}
			if y := cfg.Sync; y == nil || y.Listen != netip.AddrPortFrom(tt.source, 5480) || y.Peer != netip.AddrPortFrom(tt.peer, 5480) {
				t.Errorf("sync is %+v, want from %v to %v, port 5480", y, tt.source, tt.peer)
			}
			if cfg.Stats.Port != 8404 {
				t.Errorf("stats port is %d, want 8404", cfg.Stats.Port)
			}
		})
	}
}

// TestBalancersAgree: what is not the node's own must be the same on both, or
// a failover changes the service.
func TestBalancersAgree(t *testing.T) {
	first, second := loadBalancer(t, "lb1.yaml"), loadBalancer(t, "lb2.yaml")
	own := cmp.Options{
		cmpopts.IgnoreFields(config.Config{}, "Node"),
		cmpopts.IgnoreFields(config.VirtualRouter{}, "Priority", "Source", "Peers"),
		cmpopts.IgnoreFields(config.Sync{}, "Listen", "Peer"),
		cmpopts.IgnoreFields(config.Notify{}, "StatsURL"),
		addresses,
	}
	if diff := cmp.Diff(first, second, own); diff != "" {
		t.Errorf("lb1.yaml and lb2.yaml differ (-lb1 +lb2):\n%s", diff)
	}
}

// TestEveryKeyIsShown holds the example to its word against the documentation
// of the configuration, where each field names its key.
func TestEveryKeyIsShown(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("..", "pkg", "config", "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	var source []byte
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		source = append(source, b...)
	}
	example, err := os.ReadFile(filepath.Join("examples", "lb1.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	// "Key: xdp." and "Keys: user, database;", perhaps broken over two lines.
	named := regexp.MustCompile(`\bKeys?:[\s/]+([a-z_]+)(?:, ([a-z_]+))?[.;]`).FindAllStringSubmatch(string(source), -1)
	if len(named) < 50 {
		t.Fatalf("only %d keys found in the documentation, so its form has changed", len(named))
	}
	for _, m := range named {
		for _, key := range m[1:] {
			if key != "" && !regexp.MustCompile(`\b`+key+`:`).Match(example) {
				t.Errorf("lb1.yaml does not show the key %s", key)
			}
		}
	}
}

// TestHMACExample: what is a comment because it needs a key file is right all
// the same.
func TestHMACExample(t *testing.T) {
	example, err := os.ReadFile(filepath.Join("examples", "lb1.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "lb1.yaml")
	if err := os.WriteFile(path, []byte(strings.Replace(string(example), "# hmac: ", "hmac: ", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	want := &config.HMAC{Mode: "enforce", SendKey: 1, Keys: map[uint8]string{1: "/etc/pgsteer/vrrp.key"}}
	if diff := cmp.Diff(want, cfg.VirtualRouters[0].HMAC); diff != "" {
		t.Errorf("hmac (-want +got):\n%s", diff)
	}
}

// TestNotifyExample is the same for the sinks of notifications.
func TestNotifyExample(t *testing.T) {
	for _, name := range []string{"lb1.yaml", "lb2.yaml"} {
		example, err := os.ReadFile(filepath.Join("examples", name))
		if err != nil {
			t.Fatal(err)
		}
		text := regexp.MustCompile(`(?m)^  # (slack|webhook|exec):`).ReplaceAllString(string(example), "  $1:")
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		cfg, err := config.Load(path)
		if err != nil {
			t.Fatal(err)
		}
		if n := cfg.Notify; n.Slack == nil || n.Webhook == nil || n.Webhook.Key.File == "" || n.Exec == nil {
			t.Errorf("%s: %+v", name, n)
		}
	}
}

func poolerAddrs() []netip.AddrPort {
	return []netip.AddrPort{
		netip.AddrPortFrom(poolerAddr, 6432),
		netip.AddrPortFrom(poolerAddr, 6433),
		netip.AddrPortFrom(poolerAddr, 6434),
	}
}

func TestPoolerExamples(t *testing.T) {
	// On a machine it is readable for the poolers alone, as tmpfiles.d has it.
	userlist := filepath.Join(t.TempDir(), "userlist.txt")
	users, err := os.ReadFile(filepath.Join("examples", "userlist.txt"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(userlist, users, 0o600); err != nil {
		t.Fatal(err)
	}
	for i, listen := range poolerAddrs() {
		name := fmt.Sprintf("pooler-%d.ini", i+1)
		t.Run(name, func(t *testing.T) {
			example, err := os.ReadFile(filepath.Join("examples", name))
			if err != nil {
				t.Fatal(err)
			}
			// The user list that the example names is on the pooler machine.
			const installed = "auth_file = /etc/pgsteer/userlist.txt\n"
			if strings.Count(string(example), installed) != 1 {
				t.Fatalf("there is no line %q", installed)
			}
			local := strings.Replace(string(example), installed, "auth_file = "+userlist+"\n", 1)
			path := filepath.Join(t.TempDir(), name)
			if err := os.WriteFile(path, []byte(local), 0o600); err != nil {
				t.Fatal(err)
			}

			cfg, warnings, err := bouncer.Load(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, w := range warnings {
				t.Errorf("warning: %v", w)
			}
			if diff := cmp.Diff([]string{listen.Addr().String()}, cfg.ListenAddr); diff != "" || cfg.ListenPort != int(listen.Port()) {
				t.Errorf("listens on %v, port %d, want %v", cfg.ListenAddr, cfg.ListenPort, listen)
			}
			if cfg.DefaultPoolSize != 70 || cfg.MaxClientConn != 4000 {
				t.Errorf("pool size %d and %d clients, want 70 and 4000", cfg.DefaultPoolSize, cfg.MaxClientConn)
			}
			if cfg.AuthType != bouncer.AuthSCRAM {
				t.Errorf("auth_type is %s", cfg.AuthType)
			}
			if f := cfg.Fallback; f == nil || f.Host != dbAddr.String() || f.Port != 5432 {
				t.Errorf("the server of every database is %+v, want %v:5432", f, dbAddr)
			}
			if len(cfg.Users) == 0 || cfg.Users[0].Name != "bench" {
				t.Errorf("users are %v, want bench first", cfg.Users)
			}
		})
	}
}

// TestTopology holds the VM lab's machines against the examples that they are
// given.
func TestTopology(t *testing.T) {
	f, err := os.Open(filepath.Join("..", "vagrant", "topology.yml"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var topology struct {
		LAN struct {
			Name    string
			Netmask string
		}
		VIP   string
		Hosts []struct {
			Name, Role, Address  string
			Memory, CPUs, Queues int
		}
	}
	d := yaml.NewDecoder(f)
	d.KnownFields(true)
	if err := d.Decode(&topology); err != nil {
		t.Fatal(err)
	}

	if topology.VIP != vipAddr.String() {
		t.Errorf("vip is %s, want %v", topology.VIP, vipAddr)
	}
	got := map[string]string{}
	for _, h := range topology.Hosts {
		got[h.Name] = h.Address
		if h.Queues < 2*h.CPUs {
			t.Errorf("%s has %d queues for %d CPUs; XDP_TX needs two for each", h.Name, h.Queues, h.CPUs)
		}
		script := filepath.Join("..", "vagrant", "provision", h.Role+".sh")
		if info, err := os.Stat(script); err != nil || info.Mode()&0o111 == 0 {
			t.Errorf("%s: role %s has no executable %s", h.Name, h.Role, script)
		}
	}
	want := map[string]string{
		"lb1": lb1Addr.String(), "lb2": lb2Addr.String(), "pooler": poolerAddr.String(),
		"db": dbAddr.String(), "client": clientAddr.String(),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("hosts (-want +got):\n%s", diff)
	}
}
