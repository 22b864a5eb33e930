package vrrp

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/ethernet"
	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// takeoverLimit is the down interval of priority 100 at 100 ms, 361 ms, and
// what a busy test machine may add.
const takeoverLimit = 700 * ms

// capture listens to ARP on a host.
func capture(h *host) *arp.Client {
	h.t.Helper()
	var client *arp.Client
	within(h.t, h.ns, func() {
		ifi, err := net.InterfaceByName("eth0")
		must(h.t, "finding eth0", err)
		socket, err := packet.Listen(ifi, packet.Raw, unix.ETH_P_ARP, nil)
		must(h.t, "opening a packet socket", err)
		client, err = arp.New(ifi, socket)
		must(h.t, "opening an ARP client", err)
	})
	h.t.Cleanup(func() { client.Close() })
	return client
}

// gratuitousForms reads frames until both forms have come from mac.
func gratuitousForms(t *testing.T, client *arp.Client, mac string) {
	t.Helper()
	must(t, "setting a deadline", client.SetReadDeadline(time.Now().Add(2*time.Second)))
	var request, reply bool
	for !request || !reply {
		p, frame, err := client.Read()
		if err != nil {
			t.Fatalf("waiting for gratuitous ARP of %s (request seen %v, reply seen %v): %v", mac, request, reply, err)
		}
		if frame.Source.String() != mac || p.SenderIP != vip {
			continue
		}
		if slices.Compare(frame.Destination, ethernet.Broadcast) != 0 || p.TargetIP != vip || p.SenderHardwareAddr.String() != mac {
			continue // an answer to somebody
		}
		switch {
		case p.Operation == arp.OperationRequest && slices.Compare(p.TargetHardwareAddr, ethernet.Broadcast) == 0:
			request = true
		case p.Operation == arp.OperationReply && p.TargetHardwareAddr.String() == mac:
			reply = true
		default:
			t.Errorf("gratuitous ARP of a third form: %+v", p)
		}
	}
}

// TestNetnsFailover is two nodes and a client on a LAN: election, resignation
// and return, with the client's ARP entry as the measure.
func TestNetnsFailover(t *testing.T) {
	for _, mode := range []string{"unicast", "multicast"} {
		t.Run(mode, func(t *testing.T) {
			hosts := newLAN(t, node1, node2, clientAddr)
			h1, h2, client := hosts[0], hosts[1], hosts[2]
			var peers1, peers2 []netip.Addr
			if mode == "unicast" {
				peers1, peers2 = []netip.Addr{node2}, []netip.Addr{node1}
			}
			wire := capture(client)
			r1 := h1.route(h1.config(101, peers1...))
			eventually(t, 2*time.Second, "node 1 owns the address", h1.hasVIP)
			gratuitousForms(t, wire, h1.mac())
			r2 := h2.route(h2.config(100, peers2...))
			eventually(t, time.Second, "node 2 hears node 1", func() bool { return r2.Snapshot().Received > 3 })
			client.connect()
			eventually(t, time.Second, "the client reaches node 1", func() bool { return client.neighbour() == h1.mac() })

			began := time.Now()
			r1.stop()
			eventually(t, takeoverLimit, "the client reaches node 2", func() bool { return client.neighbour() == h2.mac() })
			t.Logf("resignation to the client's new entry: %v", time.Since(began))
			if h1.hasVIP() || !h2.hasVIP() {
				t.Error("the address is not on node 2 alone")
			}
			gratuitousForms(t, wire, h2.mac())

			// Without preemption the better node stays a backup.
			r1 = h1.route(h1.config(101, peers1...))
			eventually(t, 2*time.Second, "node 1 hears node 2", func() bool { return r1.Snapshot().Received > 8 })
			if h1.hasVIP() || r2.Snapshot().State != Active {
				t.Error("node 1 took the address back without preemption")
			}
			for _, s := range []Snapshot{r1.Snapshot(), r2.Snapshot()} {
				for _, c := range s.Refused {
					if c.Count != 0 {
						t.Errorf("%s: %d packets refused: %s", s.Source, c.Count, c.Reason)
					}
				}
			}
		})
	}
}

// TestNetnsKillAndFreeze does to a node's process what operators and kernels do.
func TestNetnsKillAndFreeze(t *testing.T) {
	t.Run("IPv4", func(t *testing.T) { killAndFreeze(t, node1, node2, clientAddr) })
	t.Run("IPv6", func(t *testing.T) { killAndFreeze(t, global1, global2, globalClient) })
}

func killAndFreeze(t *testing.T, node1, node2, clientAddr netip.Addr) {
	hosts := newLAN(t, node1, node2, clientAddr)
	h1, h2, client := hosts[0], hosts[1], hosts[2]
	p1 := h1.process(101, 0, node2)
	eventually(t, 3*time.Second, "node 1 owns the address", h1.hasVIP)
	r2 := h2.route(h2.config(100, node1))
	eventually(t, time.Second, "node 2 hears node 1", func() bool { return r2.Snapshot().Received > 3 })
	client.connect()
	eventually(t, time.Second, "the client reaches node 1", func() bool { return client.neighbour() == h1.mac() })

	began := time.Now()
	must(t, "stopping node 1", p1.Process.Signal(syscall.SIGSTOP))
	eventually(t, takeoverLimit, "the client reaches node 2", func() bool { return client.neighbour() == h2.mac() })
	t.Logf("freeze to the client's new entry: %v", time.Since(began))
	must(t, "waking node 1", p1.Process.Signal(syscall.SIGCONT))
	eventually(t, time.Second, "node 1 gives the address up", func() bool { return !h1.hasVIP() })
	received := r2.Snapshot().Received
	if s := r2.Snapshot(); s.State != Active || s.BecameActive != 1 {
		t.Errorf("waking node 1 disturbed node 2: %+v", s)
	}

	r2.stop()
	eventually(t, takeoverLimit, "the client reaches node 1", func() bool { return client.neighbour() == h1.mac() })
	if got := r2.Snapshot().Received; got != received {
		t.Errorf("node 1 sent %d advertisements although it was not active", got-received)
	}
	r2 = h2.route(h2.config(100, node1))
	eventually(t, time.Second, "node 2 hears node 1", func() bool { return r2.Snapshot().Received > 3 })

	began = time.Now()
	must(t, "killing node 1", p1.Process.Kill())
	if err := p1.Wait(); err == nil {
		t.Error("a killed node ended well")
	}
	eventually(t, takeoverLimit, "the client reaches node 2", func() bool { return client.neighbour() == h2.mac() })
	t.Logf("kill to the client's new entry: %v", time.Since(began))
	if !h1.hasVIP() {
		t.Error("the killed node's address is gone: nothing for the next start to clean up")
	}
	p1 = h1.process(101, 0, node2)
	eventually(t, 3*time.Second, "the new node 1 removes what the killed one left", func() bool { return !h1.hasVIP() })
	must(t, "terminating node 1", p1.Process.Signal(syscall.SIGTERM))
	must(t, "waiting for node 1", p1.Wait())
}

// TestNetnsPartition cuts the cable, which makes two active nodes, and mends it.
func TestNetnsPartition(t *testing.T) {
	hosts := newLAN(t, node1, node2, clientAddr)
	h1, h2, client := hosts[0], hosts[1], hosts[2]
	r1 := h1.route(h1.config(101, node2))
	eventually(t, 2*time.Second, "node 1 owns the address", h1.hasVIP)
	r2 := h2.route(h2.config(100, node1))
	eventually(t, time.Second, "node 2 hears node 1", func() bool { return r2.Snapshot().Received > 3 })
	client.connect()
	eventually(t, time.Second, "the client reaches node 1", func() bool { return client.neighbour() == h1.mac() })
	must(t, "cutting node 1's cable", h1.lan.LinkSetDown(h1.port))
	eventually(t, takeoverLimit, "the client reaches node 2", func() bool { return client.neighbour() == h2.mac() })
	must(t, "mending it", h1.lan.LinkSetUp(h1.port))
	eventually(t, 2*time.Second, "one node remains", func() bool { return h1.hasVIP() != h2.hasVIP() })
	eventually(t, time.Second, "the client reaches the better node", func() bool { return client.neighbour() == h1.mac() })
	if s := r2.Snapshot(); s.State != Backup || r1.Snapshot().State != Active {
		t.Errorf("node 1 is %v, node 2 is %v", r1.Snapshot().State, s.State)
	}
}

// TestNetnsAddressRemoved takes the address away under an active node.
func TestNetnsAddressRemoved(t *testing.T) {
	h := newLAN(t, node1)[0]
	r := h.route(h.config(101, node2))
	eventually(t, 2*time.Second, "the address is there", h.hasVIP)
	must(t, "removing the address", h.nl.AddrDel(h.eth0, &netlink.Addr{IPNet: toIPNet(vipPrefix)}))
	// Sooner than the audit: the kernel told.
	took := eventually(t, auditInterval/2, "the address is back", h.hasVIP)
	t.Logf("restored after %v", took)
	eventually(t, time.Second, "it is counted", func() bool { return r.Snapshot().Restored == 1 })
	// The address brings no route and is not chosen as a source.
	within(t, h.ns, func() {
		c, err := net.Dial("udp4", "192.168.1.6:9")
		must(t, "connecting", err)
		defer c.Close()
		if got := c.LocalAddr().(*net.UDPAddr).IP.String(); got != node1.String() {
			t.Errorf("the node's own traffic comes from %s", got)
		}
	})
}

// TestNetnsWire looks at what is sent, bit by bit.
func TestNetnsWire(t *testing.T) {
	hosts := newLAN(t, node1, node2)
	h1, h2 := hosts[0], hosts[1]
	var c2 *conn
	within(t, h2.ns, func() {
		var err error
		c2, err = listen("eth0", h2.eth0.Attrs().Index, node2, true)
		must(t, "listening", err)
	})
	defer c2.close()
	h1.route(h1.config(101, node2))
	var packets [][]byte
	eventually(t, 2*time.Second, "an advertisement arrives", func() bool {
		var err error
		packets, _, err = c2.take()
		must(t, "receiving", err)
		return len(packets) > 0
	})
	p := packets[0]
	if p[0] != 0x45 || p[1] != protocolTOS || p[6]&0x40 != 0 || p[8] != 255 || p[9] != 112 {
		t.Errorf("IP header %x", p[:20])
	}
	if got, want := p[20:], unhex(t, "31336501 000aa7b4 c0a80164"); !slices.Equal(got, want) {
		t.Errorf("message %x, want %x", got, want)
	}
}

func TestNetnsOpenRefuses(t *testing.T) {
	h := newLAN(t, node1)[0]
	lo, err := h.nl.LinkByName("lo")
	must(t, "finding lo", err)
	must(t, "adding an interface without an address", h.nl.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "ha-bare"}, PeerName: "ha-bare-peer",
	}))
	for _, tc := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"no such interface", func(c *Config) { c.Interface = "eth7" }, "looking up interface eth7"},
		{"no Ethernet", func(c *Config) { c.Interface, c.Source = "lo", netip.Addr{} }, "interface lo has no Ethernet address"},
		{"no address", func(c *Config) { c.Interface, c.Source = "ha-bare", netip.Addr{} }, "interface ha-bare has no IPv4 address to send from"},
		{"foreign source", func(c *Config) { c.Source = node2 }, "source 192.168.1.11 is not an address of interface eth0"},
		{"peer is ourselves", func(c *Config) { c.Source, c.Peers = netip.Addr{}, []netip.Addr{node1} }, "peer 192.168.1.10 is this node's own source address"},
		{"address elsewhere", func(c *Config) {
			must(t, "adding the address to lo", h.nl.AddrAdd(lo, &netlink.Addr{IPNet: toIPNet(vipPrefix)}))
		}, "virtual address 192.168.1.100 is already on interface lo"},
	} {
		c := h.config(100)
		tc.change(&c)
		within(t, h.ns, func() {
			r, err := Open(c)
			if err == nil {
				r.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.HasPrefix(err.Error(), "virtual router main: ") {
				t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
			}
		})
	}
}

// TestListenWithoutPrivilege gives up CAP_NET_RAW, on a thread that ends with it.
func TestListenWithoutPrivilege(t *testing.T) {
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil {
			result <- err
			return
		}
		_, err := listen("lo", 1, netip.MustParseAddr("127.0.0.1"), true)
		result <- err
	}()
	if err := <-result; !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "CAP_NET_RAW") {
		t.Errorf("listen: %v", err)
	}
}

// TestNetnsNoWarnings runs a healthy pair for a while.
func TestNetnsNoWarnings(t *testing.T) {
	hosts := newLAN(t, node1, node2)
	var log lockedBuffer
	logger := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))
	c1, c2 := hosts[0].config(101, node2), hosts[1].config(100, node1)
	c1.Log, c2.Log = logger, logger
	r1, r2 := hosts[0].route(c1), hosts[1].route(c2)
	eventually(t, 3*time.Second, "ten advertisements were heard", func() bool {
		return r1.Snapshot().Received+r2.Snapshot().Received > 10
	})
	r1.stop()
	r2.stop()
	if log.String() != "" {
		t.Errorf("warnings of a healthy pair:\n%s", &log)
	}
}
