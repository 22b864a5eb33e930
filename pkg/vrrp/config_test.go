package vrrp

import (
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestConfig(t *testing.T) {
	good := func() Config {
		return Config{
			Name: "main", Interface: "eth0", VRID: 51, Addresses: []netip.Prefix{netip.PrefixFrom(vip, 32)},
			Source: node1, Peers: []netip.Addr{node2}, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		}
	}
	c, err := good().withDefaults()
	if err != nil || c.Priority != 100 || c.AdvertInterval != 100*time.Millisecond {
		t.Errorf("defaults: %+v, %v", c, err)
	}
	for _, tc := range []struct {
		change func(*Config)
		want   string
	}{
		{func(c *Config) { c.Log = nil }, "a logger is required"},
		{func(c *Config) { c.Interface = "" }, "an interface is required"},
		{func(c *Config) { c.VRID = 0 }, "virtual router id 0 is reserved"},
		{func(c *Config) { c.AdvertInterval = time.Millisecond }, "advertisement interval 1ms"},
		{func(c *Config) { c.AdvertInterval = 41 * time.Second }, "advertisement interval 41s"},
		{func(c *Config) { c.AdvertInterval = 105 * time.Millisecond }, "must be a multiple of 10ms"},
		{func(c *Config) { c.Addresses = nil }, "0 virtual addresses"},
		{func(c *Config) { c.Addresses = make([]netip.Prefix, 256) }, "256 virtual addresses"},
		{func(c *Config) { c.Addresses[0] = netip.Prefix{} }, "virtual address invalid Prefix"},
		{func(c *Config) { c.Addresses[0] = netip.MustParsePrefix("fe80::1/128") }, "virtual address fe80::1/128 is not an IPv4"},
		{func(c *Config) { c.Addresses[0] = netip.MustParsePrefix("224.0.0.1/32") }, "virtual address 224.0.0.1/32 is not an IPv4 unicast"},
		{func(c *Config) { c.Addresses[0] = netip.PrefixFrom(node1, 24) }, "is the source address too"},
		{func(c *Config) { c.Addresses = append(c.Addresses, netip.PrefixFrom(vip, 24)) }, "virtual address 192.168.1.100 is given twice"},
		{func(c *Config) { c.Source = netip.MustParseAddr("::1") }, "source ::1 is not an IPv4 unicast address"},
		{func(c *Config) { c.Peers[0] = netip.IPv4Unspecified() }, "peer 0.0.0.0 is not an IPv4 unicast address"},
		{func(c *Config) { c.Peers[0] = netip.MustParseAddr("255.255.255.255") }, "peer 255.255.255.255 is not"},
		{func(c *Config) { c.Peers[0] = node1 }, "peer 192.168.1.10 is this node's own source address"},
		{func(c *Config) { c.Peers[0] = vip }, "peer 192.168.1.100 is a virtual address"},
		{func(c *Config) { c.Peers = append(c.Peers, node2) }, "peer 192.168.1.11 is given twice"},
	} {
		c := good()
		tc.change(&c)
		if _, err := Open(c); err == nil || !strings.HasPrefix(err.Error(), "virtual router main: ") || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%v, want %q", err, tc.want)
		}
	}
}
