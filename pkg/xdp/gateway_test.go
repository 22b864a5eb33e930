package xdp

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// logBuffer is for a logger that several goroutines use.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// background has the balancer run until the test ends.
func (f *fixture) background() {
	ctx, cancel := context.WithCancel(f.t.Context())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	f.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			f.t.Errorf("Run returned %v", err)
		}
	})
}

// eventually wants something to become what it should be.
func eventually(t *testing.T, want string, is func() string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); is() != want; {
		if time.Now().After(deadline) {
			t.Fatalf("%s, want %s", is(), want)
		}
	}
}

func TestGateways(t *testing.T) {
	log := new(logBuffer)
	f := newDualFixture(t, func(c *Config) { c.Log = slog.New(slog.NewTextHandler(log, nil)) })
	far := []lb.Service{
		{Name: "four", Addr: cast4.vip, Backends: []lb.Backend{{Name: "far4", Addr: netip.MustParseAddrPort("10.9.0.5:6432"), Weight: 1, State: lb.Up}}},
		{Name: "six", Addr: cast6.vip, Backends: []lb.Backend{{Name: "far6", Addr: netip.MustParseAddrPort("[fd00:9::5]:6432"), Weight: 1, State: lb.Up}}},
	}
	gateways := map[string]macAddr{
		"192.168.1.1": {2, 0, 0, 0, 1, 1}, "192.168.1.2": {2, 0, 0, 0, 1, 2},
		"fd00:1::1": {2, 0, 0, 0, 6, 1}, "fd00:1::2": {2, 0, 0, 0, 6, 2},
	}
	link := f.iface.Attrs().Index
	inNamespace(t, f.ns, func() error {
		for gw, mac := range gateways {
			err := netlink.NeighSet(&netlink.Neigh{LinkIndex: link, State: netlink.NUD_PERMANENT, IP: net.ParseIP(gw), HardwareAddr: mac[:]})
			if err != nil {
				return err
			}
		}
		return nil
	})
	route := func(to, via string, link int) {
		t.Helper()
		inNamespace(t, f.ns, func() error {
			_, dst, err := net.ParseCIDR(to)
			if err != nil {
				return err
			}
			return netlink.RouteReplace(&netlink.Route{Dst: dst, Gw: net.ParseIP(via), LinkIndex: link})
		})
	}
	nextHop := func(service int) string {
		s, err := f.Stats()
		f.must(err)
		b := s.Services[service].Backends[0]
		return fmt.Sprint(b.MAC, " ", b.Reachable)
	}
	f.must(f.SetServices(far))
	f.background()
	// Back and forth, in less time altogether than between two looks by the
	// clock: the changes themselves are seen.
	began := time.Now()
	turns := 0
	for ; turns < 10 && time.Since(began) < routeCheck/2; turns++ {
		n := turns%2 + 1
		via4, via6 := fmt.Sprintf("192.168.1.%d", n), fmt.Sprintf("fd00:1::%d", n)
		route("10.9.0.0/24", via4, link)
		route("fd00:9::/64", via6, link)
		mac4, mac6 := gateways[via4], gateways[via6]
		eventually(t, net.HardwareAddr(mac4[:]).String()+" true", func() string { return nextHop(0) })
		eventually(t, net.HardwareAddr(mac6[:]).String()+" true", func() string { return nextHop(1) })
	}
	if took := time.Since(began); turns < 3 {
		t.Errorf("%d changes of routes took %v", turns, took)
	}
	// Over another interface there is nothing that the program can do.
	mac := gateways[fmt.Sprintf("192.168.1.%d", (turns-1)%2+1)]
	inNamespace(t, f.ns, func() error {
		lan1, err := netlink.LinkByName("lan1")
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr("10.8.0.1/24")
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(lan1, addr); err != nil {
			return err
		}
		link = lan1.Attrs().Index
		return nil
	})
	route("10.9.0.0/24", "10.8.0.7", link)
	eventually(t, net.HardwareAddr(mac[:]).String()+" false", func() string { return nextHop(0) })
	eventually(t, "1", func() string {
		return fmt.Sprint(strings.Count(log.String(), `backend=far4 addr=10.9.0.5:6432 interface=lan0 reason="the route to it leads over lan1"`))
	})
	f.mu.Lock()
	err := f.refreshNextHops()
	f.mu.Unlock()
	f.must(err)
	if n := strings.Count(log.String(), "leads over lan1"); n != 1 {
		t.Errorf("said %d times", n)
	}
}

// A gateway that nobody else talks to: the health checks alone make the kernel
// ask for its MAC address, and notice that it has changed.
func TestGatewayIsResolvedByHealthChecks(t *testing.T) {
	f := newFixture(t)
	remote := newNamespace(t)
	inNamespace(t, f.ns, func() error {
		lan1, err := netlink.LinkByName("lan1")
		if err != nil {
			return err
		}
		if err := AttachPass(lan1.Attrs().Index); err != nil {
			return err
		}
		return netlink.LinkSetNsFd(lan1, int(remote))
	})
	gatewayMAC := func(mac macAddr) {
		inNamespace(t, remote, func() error {
			lan1, err := netlink.LinkByName("lan1")
			if err != nil {
				return err
			}
			return netlink.LinkSetHardwareAddr(lan1, mac[:])
		})
	}
	inNamespace(t, remote, func() error {
		lan1, err := netlink.LinkByName("lan1")
		if err != nil {
			return err
		}
		for _, a := range []string{"192.168.1.1/24", "10.9.0.5/32"} {
			addr, err := netlink.ParseAddr(a)
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(lan1, addr); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(lan1)
	})
	inNamespace(t, f.ns, func() error {
		// What the kernel takes a minute for by default.
		for _, knob := range [][2]string{
			{"base_reachable_time_ms", "500"}, {"delay_first_probe_time", "1"}, {"retrans_time_ms", "100"}, {"ucast_solicit", "1"},
		} {
			if err := os.WriteFile("/proc/sys/net/ipv4/neigh/lan0/"+knob[0], []byte(knob[1]), 0); err != nil {
				return err
			}
		}
		_, dst, err := net.ParseCIDR("10.9.0.0/24")
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: net.ParseIP("192.168.1.1"), LinkIndex: f.iface.Attrs().Index})
	})
	far := netip.MustParseAddrPort("10.9.0.5:6432")
	f.must(f.SetServices([]lb.Service{{Name: "postgres", Addr: vip, Backends: []lb.Backend{{Name: "far", Addr: far, Weight: 1, State: lb.Up}}}}))
	f.background()
	check := func() string {
		inNamespace(t, f.ns, func() error {
			if c, err := net.DialTimeout("tcp", far.String(), time.Second); err == nil {
				c.Close() // it is refused, which is an answer too
			}
			return nil
		})
		b := f.backends()[0]
		return fmt.Sprint(b.MAC, " ", b.Reachable)
	}
	for _, mac := range []macAddr{{2, 0, 0, 0, 7, 1}, {2, 0, 0, 0, 7, 2}} {
		gatewayMAC(mac)
		eventually(t, net.HardwareAddr(mac[:]).String()+" true", check)
	}
}
