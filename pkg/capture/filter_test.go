package capture

import (
	"encoding/hex"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

var someVerdicts = verdicts{0: "pass_arp", 1: "tx_new", 2: "tx_forward", 3: "drop_ttl", 4: "drop_race"}

func TestPick(t *testing.T) {
	for _, tt := range []struct {
		name   string
		config Config
		want   string
		err    string
	}{
		{"default", Config{}, "drop_race drop_ttl tx_forward tx_new", ""},
		{"all", Config{All: true}, "drop_race drop_ttl pass_arp tx_forward tx_new", ""},
		{"one", Config{Verdicts: []string{"pass_arp"}}, "pass_arp", ""},
		{"two patterns", Config{Verdicts: []string{"*_race", "tx_f*"}}, "drop_race tx_forward", ""},
		{"only sent", Config{Verdicts: []string{"*_*"}, Side: Out}, "tx_forward tx_new", ""},
		{"nothing like it", Config{Verdicts: []string{"tx_new", "tx_gnu"}}, "", `no verdict is like "tx_gnu"; there are drop_race, drop_ttl, pass_arp, tx_forward, tx_new`},
		{"never sent", Config{Verdicts: []string{"drop_*"}, Side: Out}, "", "packets with a verdict like drop_* are not sent, and only those that are have a side out"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.config.pick(someVerdicts)
			if tt.err != "" {
				if err == nil || err.Error() != tt.err {
					t.Errorf("got %v, want %s", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if names := strings.Join(slices.Sorted(maps.Values(got)), " "); names != tt.want {
				t.Errorf("got %s, want %s", names, tt.want)
			}
		})
	}
	if _, err := (&Config{}).pick(verdicts{1: "tx_new", verdictsMax: "tx_far"}); err == nil {
		t.Error("a verdict with a number too large was taken")
	}
}

func TestCheck(t *testing.T) {
	prefix := netip.MustParsePrefix
	for _, tt := range []struct {
		name   string
		config Config
		err    string
	}{
		{"nothing", Config{}, ""},
		{"a byte", Config{SnapLen: 1}, ""},
		{"a page", Config{SnapLen: 4096}, ""},
		{"more than a page", Config{SnapLen: 4097}, "snapshot length 4097 is not from 1 to 4096 bytes"},
		{"less than nothing", Config{SnapLen: -1}, "snapshot length -1 is not from 1 to 4096 bytes"},
		{"all of two", Config{All: true, Verdicts: []string{"tx_*"}}, "either all verdicts are wanted or those of a pattern"},
		{"pattern", Config{Verdicts: []string{"tx_["}}, `verdict pattern "tx_[": syntax error in pattern`},
		{"IPv4", Config{Host: prefix("10.0.0.0/8")}, ""},
		{"all of IPv4", Config{Host: prefix("0.0.0.0/0")}, ""},
		{"IPv6", Config{Host: prefix("fd00::/8")}, ""},
		{"all of IPv6", Config{Host: prefix("::/0")}, "host ::/0 is too wide a prefix: it holds all of IPv4"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.config.Check()
			if tt.err == "" && err != nil || tt.err != "" && (err == nil || err.Error() != tt.err) {
				t.Errorf("got %v, want %q", err, tt.err)
			}
		})
	}
}

func TestHostMask(t *testing.T) {
	for _, tt := range []struct{ prefix, host, mask string }{
		{"192.168.1.50/32", "00000000000000000000ffffc0a80132", "ffffffffffffffffffffffffffffffff"},
		{"192.168.1.50/20", "00000000000000000000ffffc0a80000", "fffffffffffffffffffffffffffff000"},
		{"0.0.0.0/0", "00000000000000000000ffff00000000", "ffffffffffffffffffffffff00000000"},
		{"fd00::1/9", "fd000000000000000000000000000000", "ff800000000000000000000000000000"},
		{"fd00::1/128", "fd000000000000000000000000000001", "ffffffffffffffffffffffffffffffff"},
	} {
		host, mask := (&Config{Host: netip.MustParsePrefix(tt.prefix)}).hostMask()
		if h, m := hex.EncodeToString(host[:]), hex.EncodeToString(mask[:]); h != tt.host || m != tt.mask {
			t.Errorf("%s: %s and %s, want %s and %s", tt.prefix, h, m, tt.host, tt.mask)
		}
	}
	if host, mask := (&Config{}).hostMask(); host != [16]byte{} || mask != [16]byte{} {
		t.Errorf("no host: %x and %x", host, mask)
	}
}

func TestConfigString(t *testing.T) {
	for _, tt := range []struct {
		config Config
		want   string
	}{
		{Config{}, "side both, verdict tx_* or drop_*"},
		{Config{All: true, Side: In, Port: 5432}, "side in, every verdict, port 5432"},
		{Config{Verdicts: []string{"tx_new"}, Host: netip.MustParsePrefix("10.0.0.1/32")}, "side both, verdict tx_new, host 10.0.0.1"},
		{Config{Host: netip.MustParsePrefix("fd00::/8")}, "side both, verdict tx_* or drop_*, host fd00::/8"},
	} {
		if got := tt.config.String(); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}
