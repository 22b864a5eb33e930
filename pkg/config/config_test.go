package config

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

var update = flag.Bool("update", false, "write the messages of the bad files to testdata")

var comparers = cmp.Options{
	cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}, netip.Prefix{}),
}

func vip(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func TestLoadFull(t *testing.T) {
	c, err := Load("testdata/full.yaml")
	if err != nil {
		t.Fatal(err)
	}
	check := Check{Type: "postgres", Interval: 3 * time.Second, FastInterval: 250 * time.Millisecond, Timeout: 500 * time.Millisecond, Fall: 4, Rise: 1, User: "probe", Database: "app"}
	want := &Config{
		Node:      "lb1",
		Interface: "ens18",
		XDP: XDP{
			Mode: "native", TX: "redirect", PinPath: "/sys/fs/bpf/other", FlowTableSize: 65536,
			HalfOpenFlows: 2048, SYNRate: SYNRate{PerSource: 500, Total: 20000}, ResetRate: 3000,
			SNATLow: 20000, SNATHigh: 29999, SweepInterval: 500 * time.Millisecond,
		},
		Timeouts: Timeouts{
			SYN: 5 * time.Second, Established: 2 * time.Hour,
			Probe: Probe{Interval: 2 * time.Second, Count: 3},
			FIN:   30 * time.Second, TimeWait: 15 * time.Second, Closed: 2 * time.Second, Reset: time.Second,
		},
		Services: []Service{
			{
				Name: "postgres", Addr: vip("192.168.1.100:5432"), Scheduler: lb.RoundRobin, SlowStart: 20 * time.Second, WhenFull: "drop",
				Allow:        []netip.Prefix{netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("10.0.0.7/32")},
				NATAddrs:     []netip.Addr{netip.MustParseAddr("192.168.1.101")},
				OnMarkedDown: "keep", DrainTimeout: 90 * time.Second, Check: check,
				Backends: []Backend{
					{Name: "pooler1", Addr: vip("192.168.1.5:6432"), Weight: 1, MaxConnections: 4000},
					{Name: "pooler2", Addr: vip("192.168.1.5:6433"), Weight: 256, Backup: true},
				},
			},
			{
				Name: "reports", Addr: vip("192.168.1.101:5432"), Scheduler: lb.RandomTwo, WhenFull: "reset", ClientAddress: true,
				OnMarkedDown: "reset", Check: check, Backends: []Backend{{Name: "pooler1", Addr: vip("192.168.1.5:6434"), Weight: 1}},
			},
			{
				Name: "plain", Addr: vip("192.168.1.100:5433"), WhenFull: "reset", ClientAddress: true, OnMarkedDown: "reset",
				Check:    Check{Type: "tcp", Interval: 500 * time.Millisecond, FastInterval: 500 * time.Millisecond, Timeout: 500 * time.Millisecond, Fall: 3, Rise: 2},
				Backends: []Backend{{Name: "pooler1", Addr: vip("192.168.1.5:6435"), Weight: 1}},
			},
			{
				Name: "postgres6", Addr: vip("[2001:db8::100]:5432"), WhenFull: "reset", ClientAddress: true, OnMarkedDown: "reset",
				Allow:    []netip.Prefix{netip.MustParsePrefix("2001:db8::/32")},
				NATAddrs: []netip.Addr{netip.MustParseAddr("2001:db8::101")}, Check: check,
				Backends: []Backend{{Name: "pooler1", Addr: vip("[2001:db8::5]:6432"), Weight: 1}},
			},
		},
		VirtualRouters: []VirtualRouter{{
			Name: "main", VRID: 51, Priority: 101, Version: 3, AdvertInterval: time.Second, Preempt: true, PreemptDelay: 30 * time.Second,
			Addresses: []netip.Prefix{netip.MustParsePrefix("192.168.1.100/24"), netip.MustParsePrefix("192.168.1.101/32")},
			Source:    netip.MustParseAddr("192.168.1.10"),
			Peers:     []netip.Addr{netip.MustParseAddr("192.168.1.11"), netip.MustParseAddr("192.168.1.12")},
			Checksum:  "pseudo_header",
			HMAC:      &HMAC{Mode: "permissive", SendKey: 7, Keys: map[uint8]string{3: "/etc/pgsteer/vrrp-3.key", 7: "/etc/pgsteer/vrrp-7.key"}},
		}, {
			Name: "main6", VRID: 51, Priority: 100, Version: 3, Checksum: "auto", AdvertInterval: 100 * time.Millisecond,
			Addresses: []netip.Prefix{
				netip.MustParsePrefix("fe80::100/64"), netip.MustParsePrefix("2001:db8::100/128"), netip.MustParsePrefix("2001:db8::101/128"),
			},
			Source: netip.MustParseAddr("fe80::10"),
		}, {
			Name: "old", VRID: 52, Priority: 100, Version: 2, Checksum: "auto", Password: "1111", AdvertInterval: 2 * time.Second,
			Addresses: []netip.Prefix{netip.MustParsePrefix("192.168.1.102/32")}, Source: netip.MustParseAddr("192.168.1.10"),
		}},
		Sync: &Sync{
			Listen: netip.MustParseAddrPort("192.168.1.10:5480"), Peer: netip.MustParseAddrPort("192.168.1.11:5480"),
			KeyFile: "/etc/pgsteer/sync.key", Heartbeat: 50 * time.Millisecond,
		},
		Stats: Stats{Listen: "127.0.0.1:9000", Port: 9000},
		Admin: Admin{Socket: "/run/other/admin.sock", StateFile: "/var/lib/other/orders.json", HAProxySocket: "/run/other/haproxy.sock"},
		Notify: Notify{
			StatsURL: "https://lb.example.com/stats", StateFile: "/var/lib/other/notify.json", Coalesce: 5 * time.Second,
			Slack:   &NotifyURL{URL: Secret{Credential: "slack-url"}, Timeout: 3 * time.Second},
			Webhook: &NotifyURL{URL: Secret{File: "/etc/pgsteer/webhook-url"}, Key: Secret{File: "/etc/pgsteer/webhook-key"}, Timeout: 10 * time.Second},
			Exec:    &NotifyExec{Command: []string{"/usr/local/bin/tell", "--loud", ""}, Timeout: time.Second},
		},
		Log: Log{Level: "debug", Format: "json"},
	}
	if diff := cmp.Diff(want, c, comparers); diff != "" {
		t.Errorf("full.yaml (-want +got):\n%s", diff)
	}
}

// TestMinimal holds the defaults against what the doc comments promise.
func TestMinimal(t *testing.T) {
	c, err := Parse("minimal.yaml", []byte(Minimal))
	if err != nil {
		t.Fatal(err)
	}
	want := &Config{
		Node:      "lb1",
		Interface: "eth0",
		XDP: XDP{
			Mode: "auto", TX: "tx", PinPath: "/sys/fs/bpf/pgsteer", FlowTableSize: 524288,
			HalfOpenFlows: 32768, SYNRate: SYNRate{PerSource: 10000, Total: 20000}, ResetRate: 20000,
			SNATLow: 10240, SNATHigh: 65535, SweepInterval: time.Second,
		},
		Timeouts: Timeouts{
			SYN: 10 * time.Second, Established: 24 * time.Hour,
			Probe: Probe{Interval: 10 * time.Second, Count: 5},
			FIN:   2 * time.Minute, TimeWait: time.Minute, Closed: 3 * time.Second, Reset: 10 * time.Second,
		},
		Services: []Service{{
			Name: "postgres", Addr: vip("192.168.1.100:5432"), WhenFull: "reset", ClientAddress: true, OnMarkedDown: "reset",
			Check: Check{
				Type: "postgres", Interval: 2 * time.Second, FastInterval: 500 * time.Millisecond, Timeout: time.Second, Fall: 3, Rise: 2,
				User: "pgsteer_check", Database: "postgres",
			},
			Backends: []Backend{{Name: "pooler1", Addr: vip("192.168.1.5:6432"), Weight: 1}},
		}},
		VirtualRouters: []VirtualRouter{{
			Name: "main", VRID: 51, Priority: 100, Version: 3, Checksum: "auto", AdvertInterval: 100 * time.Millisecond,
			Addresses: []netip.Prefix{netip.MustParsePrefix("192.168.1.100/32")},
			Source:    netip.MustParseAddr("192.168.1.10"),
		}},
		Stats: Stats{Listen: ":8404", Port: 8404},
		Admin: Admin{Socket: "/run/pgsteer/admin.sock", StateFile: "/var/lib/pgsteer/orders.json"},
		Notify: Notify{
			StatsURL: "http://192.168.1.10:8404/stats", StateFile: "/var/lib/pgsteer/notify.json",
			Coalesce: 2 * time.Second, Remind: time.Hour,
		},
		Log: Log{Level: "info", Format: "text"},
	}
	if diff := cmp.Diff(want, c, comparers); diff != "" {
		t.Errorf("Minimal (-want +got):\n%s", diff)
	}
}

// wantPrefix begins the lines at the end of a bad file that hold its message.
const wantPrefix = "#! "

// TestBad checks that each bad file is refused with exactly the message that
// stands in its last lines.
func TestBad(t *testing.T) {
	files, err := filepath.Glob("testdata/bad-*.yaml")
	if err != nil || len(files) < 100 {
		t.Fatalf("found %d bad files (%v); want at least 100", len(files), err)
	}
	for _, file := range files {
		base := filepath.Base(file)
		t.Run(strings.TrimSuffix(strings.TrimPrefix(base, "bad-"), ".yaml"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var body, want []string
			for line := range strings.Lines(string(data)) {
				if msg, ok := strings.CutPrefix(line, wantPrefix); ok {
					want = append(want, strings.TrimSuffix(msg, "\n"))
				} else {
					body = append(body, line)
				}
			}
			c, err := Parse(base, data)
			if err == nil {
				t.Fatalf("accepted as %+v", c)
			}
			if c != nil {
				t.Error("an error came with a configuration")
			}
			if *update {
				msg := wantPrefix + strings.ReplaceAll(err.Error(), "\n", "\n"+wantPrefix) + "\n"
				if err := os.WriteFile(file, []byte(strings.Join(body, "")+msg), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got := err.Error(); got != strings.Join(want, "\n") {
				t.Errorf("\n got: %s\nwant: %s", got, strings.Join(want, "\n"))
			}
		})
	}
}

func TestLoadErrors(t *testing.T) {
	dir := t.TempDir()
	large := filepath.Join(dir, "large.yaml")
	if err := os.WriteFile(large, bytes.Repeat([]byte("#\n"), maxFileSize), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct{ name, path, want string }{
		{"absent", filepath.Join(dir, "none.yaml"), "reading the configuration: open " + dir + "/none.yaml: no such file or directory"},
		{"directory", dir, "reading the configuration: read " + dir + ": is a directory"},
		{"too large", large, large + ": file is larger than 4194304 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Load(tt.path)
			if err == nil || err.Error() != tt.want {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
}

// TestErrorIsTyped checks that a caller can ask an error for its place.
func TestErrorIsTyped(t *testing.T) {
	_, err := Parse("x.yaml", []byte("node: 'a b'\n"+strings.SplitAfterN(Minimal, "\n", 2)[1]))
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("%v holds no *Error", err)
	}
	if e.File != "x.yaml" || e.Line != 1 || e.Path != "node" {
		t.Errorf("got %+v", e)
	}
}

// TestSizes checks the limits of the tables, at which a file is too large to be
// a fixture.
func TestSizes(t *testing.T) {
	routers := func(addresses int) string {
		var b strings.Builder
		b.WriteString("virtual_routers:\n")
		for i := range 2 {
			fmt.Fprintf(&b, "  - {name: r%d, vrid: %d, source: 192.168.1.10, addresses: [", i, i+1)
			for j := range addresses / 2 {
				fmt.Fprintf(&b, "10.%d.0.%d, ", i, j+1)
			}
			b.WriteString("]}\n")
		}
		return b.String()
	}
	services := func(n, networks int) string {
		var b strings.Builder
		b.WriteString("services:\n")
		for i := range n {
			fmt.Fprintf(&b, "  - {name: s%d, address: 10.0.0.1:%d, backends: [{name: b, address: 192.168.1.5:%d}], allow: [", i, 1000+i, 1000+i)
			for j := range networks {
				fmt.Fprintf(&b, "172.16.%d.%d, ", j/256, j%256)
			}
			b.WriteString("]}\n")
		}
		return b.String()
	}
	const head = "node: lb1\ninterface: eth0\n"
	for _, tt := range []struct{ name, text, want string }{
		{"all that is possible", services(16, 1024) + routers(256), ""},
		{"addresses", services(1, 0) + routers(258), "x.yaml:6: virtual_routers: they have 258 IPv4 addresses together; 256 is the limit"},
		{"networks", services(17, 1000) + routers(2), "x.yaml:4: services: they allow 17000 IPv4 networks together; 16384 is the limit"},
	} {
		got := ""
		if _, err := Parse("x.yaml", []byte(head+tt.text)); err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%s: got %q", tt.name, got)
		}
	}
}

// TestManyFaults checks that a hopeless file does not flood the terminal.
func TestManyFaults(t *testing.T) {
	_, err := Parse("x.yaml", []byte(strings.Repeat("a: b\n", 1000)))
	if err == nil {
		t.Fatal("accepted")
	}
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != maxErrors+1 || lines[maxErrors] != "x.yaml: and 984 more errors" {
		t.Errorf("%d lines, the last: %s", len(lines), lines[len(lines)-1])
	}
}

// FuzzParse checks that no input panics, and that what is accepted keeps the
// promises that the daemon relies on.
func FuzzParse(f *testing.F) {
	f.Add([]byte(Minimal))
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		f.Fatalf("no seeds: %v", err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse("fuzz.yaml", data)
		if err != nil {
			if c != nil || err.Error() == "" {
				t.Fatalf("refused with %v and %v", c, err)
			}
			return
		}
		vips := map[netip.Addr]string{}
		for _, r := range c.VirtualRouters {
			if r.VRID == 0 || r.Priority == 0 || r.AdvertInterval < 10*time.Millisecond || !r.Source.IsValid() || len(r.Addresses) == 0 {
				t.Fatalf("bad router accepted: %+v", r)
			}
			for _, p := range r.Addresses {
				vips[p.Addr()] = r.Name
				if p.Addr().Is4() != r.Source.Is4() {
					t.Fatalf("router of two families accepted: %+v", r)
				}
			}
		}
		if len(c.Services) == 0 || c.XDP.SNATLow < 1024 || c.XDP.SNATLow >= c.XDP.SNATHigh {
			t.Fatalf("bad configuration accepted: %+v", c)
		}
		for _, s := range c.Services {
			if vips[s.Addr.Addr()] == "" || s.Addr.Port() == 0 || len(s.Backends) == 0 || s.Check.Timeout > s.Check.Interval || s.Check.Timeout <= 0 {
				t.Fatalf("bad service accepted: %+v", s)
			}
			for _, b := range s.Backends {
				if vips[b.Addr.Addr()] != "" || b.Addr.Addr().Is4() != s.Addr.Addr().Is4() || b.Addr.Port() == 0 || b.Weight == 0 || b.Weight > 256 {
					t.Fatalf("bad backend accepted: %+v", b)
				}
			}
			for _, a := range s.NATAddrs {
				if vips[a] != vips[s.Addr.Addr()] || a == s.Addr.Addr() {
					t.Fatalf("bad NAT address accepted: %+v", s)
				}
			}
			for _, p := range s.Allow {
				if p.Addr().Is4() != s.Addr.Addr().Is4() || p != p.Masked() {
					t.Fatalf("bad network accepted: %+v", s)
				}
			}
		}
	})
}
