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
		{func(c *Config) { c.Addresses[0] = netip.MustParsePrefix("fe80::1/128") }, "source 192.168.1.10 is not an IPv6 unicast address without a zone"},
		{func(c *Config) { c.Addresses[0] = netip.MustParsePrefix("224.0.0.1/32") }, "virtual address 224.0.0.1/32 is not an IPv4 unicast"},
		{func(c *Config) { c.Addresses[0] = netip.PrefixFrom(node1, 24) }, "is the source address too"},
		{func(c *Config) { c.Addresses = append(c.Addresses, netip.PrefixFrom(vip, 24)) }, "virtual address 192.168.1.100 is given twice"},
		{func(c *Config) { c.Source = netip.MustParseAddr("::1") }, "source ::1 is not an IPv4 unicast address"},
		{func(c *Config) { c.Peers[0] = netip.IPv4Unspecified() }, "peer 0.0.0.0 is not an IPv4 unicast address"},
		{func(c *Config) { c.Peers[0] = netip.MustParseAddr("255.255.255.255") }, "peer 255.255.255.255 is not"},
		{func(c *Config) { c.Peers[0] = node1 }, "peer 192.168.1.10 is this node's own source address"},
		{func(c *Config) { c.Peers[0] = vip }, "peer 192.168.1.100 is a virtual address"},
		{func(c *Config) { c.Peers = append(c.Peers, node2) }, "peer 192.168.1.11 is given twice"},
		{func(c *Config) { c.Addresses = append(c.Addresses, netip.PrefixFrom(vip6, 128)) }, "virtual address fd00:1::100/128 is not an IPv4 unicast"},
		{func(c *Config) { c.Peers[0] = local2 }, "peer fe80::11 is not an IPv4 unicast address"},
		{func(c *Config) { c.PreemptDelay = -1 }, "preemption delay -1ns is negative"},
		{func(c *Config) { c.WitnessTimeout = -1 }, "timeout -1ns of the witness is negative"},
		{func(c *Config) { c.Lone = true }, "a lone node has no peers, and needs no witness"},
		{func(c *Config) { c.Checksum = 7 }, "checksum(7) is no form of checksum"},
		{func(c *Config) { c.Version = 1 }, "version 1: VRRP has versions 2 and 3"},
		{func(c *Config) { c.Version, c.AdvertInterval = 2, 100*ms }, "advertisement interval 100ms: version 2 has whole seconds"},
		{func(c *Config) { c.Version, c.AdvertInterval = 2, 256*time.Second }, "advertisement interval 4m16s: version 2 has"},
		{func(c *Config) { c.Auth = "1111" }, "a password is for version 2 only"},
		{func(c *Config) { c.HMAC = &HMAC{} }, "HMAC without a key"},
		{func(c *Config) { c.HMAC = &HMAC{Keys: map[uint8]Secret{0: key1}} }, "HMAC key id 0"},
		{func(c *Config) { c.HMAC = &HMAC{Keys: map[uint8]Secret{1: "short"}} }, "HMAC key 1 has 5 bytes: use 32 to 64"},
		{func(c *Config) { c.HMAC = &HMAC{Keys: map[uint8]Secret{1: key1}, SendKey: 2} }, "HMAC key 2 to send with is not among the keys"},
		{func(c *Config) { c.HMAC = &HMAC{Keys: map[uint8]Secret{1: key1}, Mode: 7} }, "hmac_mode(7) is no mode"},
	} {
		c := good()
		tc.change(&c)
		if _, err := Open(c); err == nil || !strings.HasPrefix(err.Error(), "virtual router main: ") || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%v, want %q", err, tc.want)
		}
	}
}

func TestConfigIPv6(t *testing.T) {
	good := func() Config {
		return Config{
			Name: "main6", Interface: "eth0", VRID: 52, Addresses: []netip.Prefix{netip.PrefixFrom(localVIP, 128), netip.PrefixFrom(vip6, 128)},
			Source: local1, Peers: []netip.Addr{local2}, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		}
	}
	c, err := good().withDefaults()
	if err != nil || !c.ipv6() || c.checksum() != ChecksumPseudo {
		t.Errorf("a good configuration: %+v, %v", c, err)
	}
	global := good()
	global.Addresses = global.Addresses[1:] // no link-local address
	if _, err := global.withDefaults(); err != nil {
		t.Error(err)
	}
	for _, tc := range []struct {
		change func(*Config)
		want   string
	}{
		{func(c *Config) { c.Version = 2 }, "version 2 is for IPv4 only"},
		{func(c *Config) { c.Addresses[1] = netip.PrefixFrom(vip, 32) }, "virtual address 192.168.1.100/32 is not an IPv6 unicast"},
		{func(c *Config) { c.Addresses[0] = netip.MustParsePrefix("ff02::1/128") }, "virtual address ff02::1/128 is not an IPv6 unicast"},
		{func(c *Config) { c.Addresses[0] = netip.MustParsePrefix("::1/128") }, "virtual address ::1/128 is not an IPv6 unicast"},
		{func(c *Config) { c.Addresses[0] = netip.MustParsePrefix("::ffff:192.168.1.1/128") }, "is not an IPv6 unicast"},
		{func(c *Config) { c.Source = local1.WithZone("eth0") }, "source fe80::10%eth0 is not an IPv6 unicast address without a zone"},
		{func(c *Config) { c.Peers[0] = local2.WithZone("eth0") }, "peer fe80::11%eth0 is not an IPv6 unicast address without a zone"},
		{func(c *Config) { c.Peers[0] = node2 }, "peer 192.168.1.11 is not an IPv6 unicast"},
		{func(c *Config) { c.Peers[0] = localVIP }, "peer fe80::100 is a virtual address"},
		{func(c *Config) { c.Source, c.Peers = netip.MustParseAddr("fd00:1::10"), nil }, "source fd00:1::10 is not link-local, as IPv6 multicast needs"},
	} {
		c := good()
		tc.change(&c)
		if _, err := Open(c); err == nil || !strings.HasPrefix(err.Error(), "virtual router main6: ") || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%v, want %q", err, tc.want)
		}
	}
}

func TestLifetime(t *testing.T) {
	for _, tc := range []struct {
		interval time.Duration
		lone     bool
		want     int
	}{{100 * ms, false, 4}, {time.Second, false, 6}, {1500 * ms, false, 8}, {100 * ms, true, 0}} {
		c := Config{AdvertInterval: tc.interval, Lone: tc.lone}
		if got := c.lifetime(); got != tc.want {
			t.Errorf("interval %v, lone %v: %d s, want %d s", tc.interval, tc.lone, got, tc.want)
		}
	}
}
