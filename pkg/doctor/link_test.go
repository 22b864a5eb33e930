package doctor

import (
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/pgsteer/pgsteer/pkg/health"
)

// TestExamine examines a machine with a network card of its own: a namespace
// with one end of a cable.
func TestExamine(t *testing.T) {
	if testing.Short() || os.Getuid() != 0 {
		t.Skip("needs root for network namespaces and raw sockets")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := netns.Set(home); err != nil {
			t.Fatal(err)
		}
		ns.Close()
	}()
	card := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "far"}
	if err := netlink.LinkAdd(card); err != nil {
		t.Fatal(err)
	}
	own, err := netlink.ParseAddr("192.168.1.10/24")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"eth0", "far", "lo"} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if name == "eth0" {
			err = netlink.AddrAdd(l, own)
		}
		if err == nil {
			err = netlink.LinkSetUp(l)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	e := &examination{root: "/", Options: Options{Listen: 200 * time.Millisecond}}
	e.Node = Node{
		Interface: "eth0", Mode: "auto", PinPath: "/sys/fs/bpf/pgsteer-doctor-test", StatsListen: "127.0.0.1:8404",
		Routers: []Router{{Name: "main", VRID: 51, Source: netip.MustParseAddr("192.168.1.10"), Addresses: []netip.Addr{netip.MustParseAddr("192.168.1.100")}}},
		Backends: []Backend{
			{Service: "s", Name: "elsewhere", Addr: netip.MustParseAddrPort("127.0.0.1:1"), Check: health.TCP(), Timeout: time.Second},
		},
	}
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		ifi, err := net.InterfaceByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		if ifi.Flags&net.FlagRunning != 0 {
			break // the kernel finds the carrier a moment after the link is up
		}
		if time.Since(began) > 10*time.Second {
			t.Fatal("the cable has no carrier")
		}
	}
	if !e.link(true) {
		t.Fatalf("%+v", e.findings)
	}
	e.sysctls()
	e.neighbourhoodHere(t)
	e.backends(t.Context())
	e.ports()
	e.want(t, "interface", OK, card.Attrs().HardwareAddr.String())
	e.want(t, "carrier", OK, "there")
	e.want(t, "driver", OK, "veth")
	e.want(t, "mtu", OK, "1500")
	e.want(t, "xdp", OK, "no XDP program")
	e.want(t, "vip", OK, "nobody has it")
	e.want(t, "vrrp", OK, "nobody else")
	e.want(t, "backend", Warning, "refused")
	e.want(t, "route", Error, "not an address of eth0")
	e.want(t, "port", OK, "free")

	e.findings = nil
	if err := netlink.LinkSetDown(card); err != nil {
		t.Fatal(err)
	}
	e.Routers[0].Source = netip.MustParseAddr("192.168.1.12")
	if e.link(true) {
		t.Error("an interface without the source address was taken")
	}
	e.want(t, "interface", Error, "192.168.1.12 is not an address of eth0")
	e.findings, e.Routers = nil, nil
	e.link(true)
	e.want(t, "carrier", Error, "ip link set eth0 up")
}

// neighbourhoodHere is neighbourhood on this thread, which alone is in the
// namespace.
func (e *examination) neighbourhoodHere(t *testing.T) {
	t.Helper()
	heard := e.routersHeard(t.Context())
	for _, r := range e.Routers {
		e.vip(r, r.Addresses[0], e.local()[r.Addresses[0]], heard, []net.HardwareAddr(nil), nil)
	}
}
