package classic

import (
	"net/netip"
	"strings"
	"testing"
)

func TestHAProxyConfig(t *testing.T) {
	b, err := HAProxyConfig(netip.MustParseAddrPort("0.0.0.0:5432"), netip.MustParseAddrPort("127.0.0.1:8404"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"bind 0.0.0.0:5432\n", "bind 127.0.0.1:8404\n", "balance leastconn\n", "inter 2s fall 3 rise 2\n",
		"    server pooler0 192.168.1.5:6432 check\n", "    server pooler2 192.168.1.5:6434 check\n",
	} {
		if !strings.Contains(string(b), want) {
			t.Errorf("no %q in:\n%s", want, b)
		}
	}
}

func TestKeepalivedConfig(t *testing.T) {
	k := Keepalived{Node: "a", State: "MASTER", Priority: 101, VIP: netip.MustParsePrefix("192.168.1.200/32"), Check: "/x/check"}
	b, err := k.Config()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"router_id a\n", "state MASTER\n", "priority 101\n", "        192.168.1.200/32\n", `script "/x/check"`,
		"virtual_router_id 51\n", "advert_int 1\n", "interval 2\n", "weight 2\n",
	} {
		if !strings.Contains(string(b), want) {
			t.Errorf("no %q in:\n%s", want, b)
		}
	}
}

func TestProgram(t *testing.T) {
	if path, err := Program("sh"); err != nil || !strings.HasPrefix(path, "/") {
		t.Errorf("%q, %v", path, err)
	}
	if _, err := Program("no-such-program"); err == nil || !strings.Contains(err.Error(), "apt-get install") {
		t.Error(err)
	}
}
