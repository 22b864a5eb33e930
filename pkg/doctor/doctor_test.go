package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/vrrp"
)

// at is an examination of a made-up machine.
func at(t *testing.T, files map[string]string) *examination {
	t.Helper()
	e := &examination{root: t.TempDir()}
	e.Interface = "eth0"
	for name, text := range files {
		path := filepath.Join(e.root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if target, ok := strings.CutPrefix(text, "-> "); ok {
			if err := os.Symlink(target, path); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return e
}

// want compares the severities and what is said.
func (e *examination) want(t *testing.T, code string, severity Severity, part string) {
	t.Helper()
	for _, f := range e.findings {
		if f.Code == code && f.Severity == severity && strings.Contains(f.What+" "+f.Mend, part) {
			return
		}
	}
	t.Errorf("no %v %s with %q among %+v", severity, code, part, e.findings)
}

func TestEachFindingHasACode(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for part := range strings.SplitSeq(string(text), `e.add("`) {
			code, _, _ := strings.Cut(part, `"`)
			used[code] = true
		}
	}
	for _, c := range Codes() {
		if !used[c.Name] {
			t.Errorf("nothing finds %s", c.Name)
		}
		delete(used, c.Name)
	}
	for code := range used {
		if len(code) < 20 && !strings.Contains(code, " ") && code != "package doctor\n" && !strings.Contains(code, "\n") {
			t.Errorf("%q is not in the list of codes", code)
		}
	}
}

func TestMemory(t *testing.T) {
	if got := tableBytes(524288, []int{4}); got != 524288*(128+16) {
		t.Errorf("a table of IPv4 takes %d bytes", got)
	}
	if got := tableBytes(1000, []int{4, 6}); got != 1000*(128+176)+2*1024*16 {
		t.Errorf("two small tables take %d bytes", got)
	}
	for _, tt := range []struct {
		kib      string
		severity Severity
	}{{"65536", Error}, {"131072", Warning}, {"1048576", OK}} {
		e := at(t, map[string]string{"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:  " + tt.kib + " kB\n"})
		e.FlowTableSize, e.Families = 524288, []int{4}
		e.memory()
		e.want(t, "memory", tt.severity, "72")
	}
}

func TestClassic(t *testing.T) {
	e := at(t, map[string]string{
		"proc/self/ns/net": "-> net:[1]",
		"proc/17/comm":     "keepalived\n", "proc/17/ns/net": "-> net:[1]",
		"proc/18/comm": "haproxy\n", "proc/18/ns/net": "-> net:[2]", // a container's
		"proc/19/comm": "postgres\n", "proc/19/ns/net": "-> net:[1]",
	})
	e.classic()
	e.want(t, "classic", Warning, "17")
	if len(e.findings) != 1 {
		t.Errorf("%+v", e.findings)
	}
}

func TestSettings(t *testing.T) {
	const conf = "proc/sys/net/ipv4/conf/"
	for _, tt := range []struct {
		all, own string
		severity Severity
	}{{"0", "0", Warning}, {"2", "0", OK}, {"0", "2", OK}} {
		e := at(t, map[string]string{
			conf + "all/arp_ignore": tt.all, conf + "eth0/arp_ignore": tt.own,
			conf + "all/arp_announce": tt.all, conf + "eth0/arp_announce": tt.own,
			conf + "all/rp_filter": "1", conf + "eth0/rp_filter": "0",
		})
		e.sysctls()
		e.want(t, "arp", tt.severity, "arp_ignore")
		e.want(t, "rp_filter", Info, "strict")
	}
}

func TestLockdownAndPins(t *testing.T) {
	e := at(t, map[string]string{"sys/kernel/security/lockdown": "none integrity [confidentiality]\n"})
	e.PinPath = filepath.Join(e.root, "not/there")
	e.lockdown()
	e.pins()
	e.want(t, "lockdown", Error, "confidentiality")
	e.want(t, "bpffs", Error, "mount -t bpf")
	e = at(t, map[string]string{"sys/kernel/security/lockdown": "[none] integrity confidentiality\n"})
	e.lockdown()
	e.want(t, "lockdown", OK, "")
}

func TestSpeakers(t *testing.T) {
	peer, stranger := netip.MustParseAddr("192.168.1.11"), netip.MustParseAddr("192.168.1.77")
	unicast := Router{Name: "main", VRID: 51, Source: netip.MustParseAddr("192.168.1.10"), Peers: []netip.Addr{peer}}
	multicast := unicast
	multicast.Peers = nil
	for _, tt := range []struct {
		router   Router
		speaker  vrrp.Speaker
		severity Severity
		part     string
	}{
		{unicast, vrrp.Speaker{Source: peer, VRID: 51, Priority: 100, Version: 3}, OK, "the peer of main"},
		{unicast, vrrp.Speaker{Source: stranger, VRID: 51}, Warning, "choose another vrid"},
		{unicast, vrrp.Speaker{Source: stranger, VRID: 52}, Info, "none of ours"},
		{multicast, vrrp.Speaker{Source: stranger, VRID: 51}, Info, "if it is not the other node"},
		{multicast, vrrp.Speaker{Source: netip.MustParseAddr("fe80::1"), VRID: 51}, Info, "none of ours"},
	} {
		e := at(t, nil)
		e.Routers = []Router{tt.router}
		e.speaker(tt.speaker)
		e.want(t, "vrrp", tt.severity, tt.part)
	}
}

func TestVIP(t *testing.T) {
	peer, addr := netip.MustParseAddr("192.168.1.11"), netip.MustParseAddr("192.168.1.100")
	r := Router{Name: "main", VRID: 51, Peers: []netip.Addr{peer}, Addresses: []netip.Addr{addr}}
	one, two := net.HardwareAddr{2, 0, 0, 0, 0, 1}, net.HardwareAddr{2, 0, 0, 0, 0, 2}
	advert := []vrrp.Speaker{{Source: peer, VRID: 51}}
	other := []vrrp.Speaker{{Source: netip.MustParseAddr("192.168.1.77"), VRID: 51}}
	for _, tt := range []struct {
		ours     bool
		heard    []vrrp.Speaker
		holders  []net.HardwareAddr
		err      error
		severity Severity
		part     string
	}{
		{false, nil, nil, nil, OK, "nobody has it"},
		{true, nil, nil, nil, OK, "this node has it"},
		{true, nil, []net.HardwareAddr{one}, nil, Error, "and this one"},
		{false, advert, []net.HardwareAddr{one}, nil, OK, "the other node has it"},
		{false, advert, []net.HardwareAddr{one, two}, nil, Error, "more than one host"},
		{false, nil, []net.HardwareAddr{one}, nil, Error, "no peer of main"},
		{false, other, []net.HardwareAddr{one}, nil, Error, "no peer of main"},
		{false, nil, nil, errors.New("broken"), Info, "broken"},
	} {
		e := at(t, nil)
		e.vip(r, addr, tt.ours, tt.heard, tt.holders, tt.err)
		e.want(t, "vip", tt.severity, tt.part)
	}
}

func TestBackends(t *testing.T) {
	e := at(t, nil)
	e.Interface = "lo"
	well := func(context.Context, netip.AddrPort) error { return nil }
	ill := func(context.Context, netip.AddrPort) error { return errors.New("refused") }
	home := netip.MustParseAddrPort("127.0.0.1:6432")
	e.Backends = []Backend{
		{Service: "a", Name: "one", Addr: home, Check: well, Timeout: time.Second},
		{Service: "a", Name: "two", Addr: home, Check: ill, Timeout: time.Second},
		{Service: "b", Name: "one", Addr: home, Check: ill, Timeout: time.Second},
	}
	e.backends(t.Context())
	e.want(t, "backend", OK, "works")
	e.want(t, "backend", Warning, "refused")
	e.want(t, "service", OK, "1 poolers work")
	e.want(t, "service", Error, "none of its poolers works")
}

func TestKeysPortsAndPeer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	taken := l.Addr().String()
	e := at(t, map[string]string{"open": "x"})
	e.StatsListen = taken
	e.Sync = &Sync{Listen: netip.MustParseAddrPort("127.0.0.1:0"), Peer: netip.MustParseAddrPort(taken), Key: errors.New("too open")}
	e.Routers = []Router{{KeyFiles: []string{filepath.Join(e.root, "open"), filepath.Join(e.root, "none")}}}
	e.ports()
	e.keys()
	e.peer(t.Context())
	e.want(t, "port", Error, "listens there already")
	e.want(t, "port", OK, "free")
	e.want(t, "key", Error, "too open")
	e.want(t, "key", Warning, "chmod 600")
	e.want(t, "key", Error, "no such file")
	e.want(t, "peer", OK, "listens")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	e.peer(t.Context())
	e.want(t, "peer", Info, "nobody listens")
}

func TestMissingInterface(t *testing.T) {
	findings := Examine(t.Context(), Node{Interface: "no-such-device", Mode: "auto"}, Options{Listen: time.Millisecond})
	i := slices.IndexFunc(findings, func(f Finding) bool { return f.Code == "interface" })
	if i < 0 || findings[i].Severity != Error || Worst(findings) != Error {
		t.Errorf("%+v", findings)
	}
	if !slices.IsSortedFunc(findings, func(a, b Finding) int { return rank(a.Code) - rank(b.Code) }) {
		t.Errorf("not in order: %+v", findings)
	}
}

func TestSeverityText(t *testing.T) {
	for s := OK; s <= Error; s++ {
		text, err := json.Marshal(s)
		var back Severity
		if err != nil || json.Unmarshal(text, &back) != nil || back != s {
			t.Errorf("%v became %s and %v", s, text, back)
		}
	}
	if new(Severity).UnmarshalText([]byte("bad")) == nil {
		t.Error("an unknown severity was taken")
	}
}
