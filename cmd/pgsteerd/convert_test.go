package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/pgsteer/pgsteer/pkg/admin"
	"github.com/pgsteer/pgsteer/pkg/config"
	"github.com/pgsteer/pgsteer/pkg/lb"
)

// full is the configuration in which every key has a value of its own.
func full(t *testing.T) *config.Config {
	t.Helper()
	path := filepath.Join("..", "..", "pkg", "config", "testdata", "full.yaml")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Parse(path, data)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// missing lists the fields of a struct that have their zero value.
func missing(v any, except ...string) []string {
	var names []string
	value := reflect.ValueOf(v)
fields:
	for i := range value.NumField() {
		name := value.Type().Field(i).Name
		for _, e := range except {
			if name == e {
				continue fields
			}
		}
		if value.Field(i).IsZero() {
			names = append(names, name)
		}
	}
	return names
}

// TestNothingIsForgotten checks that every field of what the parts are
// configured with comes from the configuration.
func TestNothingIsForgotten(t *testing.T) {
	cfg := full(t)
	x := balancerConfig(cfg, discard)
	if m := missing(x, "eventRing"); len(m) > 0 {
		t.Errorf("xdp.Config: %v", m)
	}
	if m := missing(x.Timeouts); len(m) > 0 {
		t.Errorf("xdp.Timeouts: %v", m)
	}
	_, f := testFence()
	d := &balancerDaemon{cfg: cfg, log: discard, sync: &replication{}}
	main := cfg.VirtualRouters[0]
	for id := range main.HMAC.Keys {
		path := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(path, []byte(strings.Repeat("k", 32)+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		main.HMAC.Keys[id] = path
	}
	r, err := d.routerConfig(main, f)
	if err != nil {
		t.Fatal(err)
	}
	if m := missing(r, "Auth", "Lone", "ChecksumPseudoHeader"); len(m) > 0 {
		t.Errorf("vrrp.Config: %v", m)
	}
	if m := missing(*r.HMAC); len(m) > 0 || len(r.HMAC.Keys[7]) != 32 {
		t.Errorf("vrrp.HMAC: %v, %v", m, r.HMAC)
	}
	main.HMAC.Keys[7] = "/nowhere/key"
	if _, err := d.routerConfig(main, f); err == nil || err.Error() != "reading VRRP key 7: open /nowhere/key: no such file or directory" {
		t.Errorf("a key that is not there: %v", err)
	}
	if r, err := d.routerConfig(cfg.VirtualRouters[2], f); err != nil || r.Auth == "" || r.Version != 2 {
		t.Errorf("version 2: %+v, %v", r, err)
	}
	for _, target := range targets(cfg) {
		if m := missing(target); len(m) > 0 {
			t.Errorf("health.Target: %v", m)
		}
	}
	for _, s := range services(cfg) {
		except := []string{"Scheduler", "ResetOnDown", "ClientAddress"}
		if s.Name != "postgres" { // the one that says something about everything
			except = append(except, "SlowStart", "DropWhenFull", "Allow", "NATAddrs", "DrainTimeout")
		}
		if m := missing(s, except...); len(m) > 0 {
			t.Errorf("lb.Service: %v", m)
		}
		if want := s.Name != "postgres"; s.ResetOnDown != want || s.ClientAddress != want { // that one says keep, and false
			t.Errorf("%s: ResetOnDown is %v, ClientAddress %v", s.Name, s.ResetOnDown, s.ClientAddress)
		}
		for _, b := range s.Backends {
			if m := missing(b, "State", "MaxConnections", "Backup"); len(m) > 0 {
				t.Errorf("lb.Backend: %v", m)
			}
		}
	}
	for _, v := range vips(cfg) {
		if m := missing(v, "State", "Since", "Lease"); len(m) > 0 {
			t.Errorf("lb.VIPStats: %v", m)
		}
	}
}

// TestDefaultSocket: the daemon listens where its clients look for it.
func TestDefaultSocket(t *testing.T) {
	cfg, err := config.Parse("minimal", []byte(config.Minimal))
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Admin.Socket != admin.DefaultSocket {
		t.Errorf("the daemon listens on %s, clients look for %s", cfg.Admin.Socket, admin.DefaultSocket)
	}
}

func TestConversion(t *testing.T) {
	cfg := full(t)
	got := services(cfg)
	if len(got) != 4 || got[0].Name != "postgres" || got[0].Addr != cfg.Services[0].Addr || got[0].Scheduler != lb.RoundRobin ||
		!got[0].DropWhenFull || got[1].DropWhenFull || got[3].Allow[0] != netip.MustParsePrefix("2001:db8::/32") ||
		got[0].Backends[0].MaxConnections != 4000 || got[0].Backends[1] != (lb.Backend{
		Name: "pooler2", Addr: cfg.Services[0].Backends[1].Addr, Weight: 256, Backup: true,
	}) {
		t.Errorf("services: %+v", got)
	}
	all := targets(cfg)
	if len(all) != 5 {
		t.Fatalf("%d targets", len(all))
	}
	if v := all[3]; v.Service != "plain" || v.Backend != "pooler1" || v.CheckName != "tcp" {
		t.Errorf("last target: %+v", v)
	}
	if v := vips(cfg); len(v) != 6 || v[4].Addr != netip.MustParseAddr("2001:db8::101") || v[4].Router != "main6" || v[1].Addr != vip2 || v[1].Router != "main" || v[1].VRID != 51 || v[1].Priority != 101 {
		t.Errorf("virtual addresses: %+v", v)
	}
}
