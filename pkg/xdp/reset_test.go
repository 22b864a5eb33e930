package xdp

import (
	"context"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

func TestResetPacket(t *testing.T) {
	p := bareSegment(vip, client, 0xfffffff0, 0, tcpRST)
	// The kernel's part.
	binary.BigEndian.PutUint16(p[10:], ^onesSum(0, p[:20]))
	got := decode(t, append(make([]byte, 14), p[:]...))
	if got.src != vip || got.dst != client || got.flags != rst || got.seq != 0xfffffff0 || got.ack != 0 || got.payload != "" {
		t.Errorf("got %+v", got)
	}
}

// listen captures what leaves the host: TCP resets that arrive at lan1.
func (f *fixture) listen() (next func() segment) {
	f.t.Helper()
	fd := -1
	inNamespace(f.t, f.ns, func() error {
		lan1, err := netlink.LinkByName("lan1")
		if err != nil {
			return err
		}
		for _, ip := range []netip.Addr{client.Addr(), pooler.Addr()} {
			err := netlink.NeighSet(&netlink.Neigh{
				LinkIndex: f.iface.Attrs().Index, State: netlink.NUD_PERMANENT, IP: ip.AsSlice(), HardwareAddr: lan1.Attrs().HardwareAddr,
			})
			if err != nil {
				return err
			}
		}
		const proto = unix.ETH_P_IP<<8&0xff00 | unix.ETH_P_IP>>8 // network order
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto); err != nil {
			return err
		}
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: proto, Ifindex: lan1.Attrs().Index})
	})
	f.t.Cleanup(func() { unix.Close(fd) })
	return func() segment {
		f.t.Helper()
		for {
			b := make([]byte, 2048)
			n, err := unix.Read(fd, b)
			if err != nil {
				f.t.Fatalf("no reset arrived: %v", err)
			}
			if n >= 54 && b[23] == unix.IPPROTO_TCP {
				return decode(f.t, b[:n])
			}
		}
	}
}

func TestFlowsOfADeadBackendAreReset(t *testing.T) {
	f := newFixture(t)
	next := f.listen()
	c, _ := f.connect(clientNumber(0))
	// What each has acknowledged is what the other's reset must carry.
	c.src = netip.AddrPortFrom(client.Addr(), 40001)
	c.flags, c.seq, c.ack = syn, 5000, 0
	b := f.expect(c, "tx_new")
	reply := b.answer(syn | ack)
	reply.seq, reply.ack = 9000, 5001
	f.expect(reply, "tx_reverse")
	c.flags, c.seq, c.ack = ack, 5001, 9001
	b = f.expect(c, "tx_forward")
	f.expect(synWithOptions(7), "tx_new") // half-open: left alone

	name := threePoolers().Backends[b.dst.Port()-6432].Name
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	f.must(f.setState(name, lb.Down))
	f.must(f.ResetFlows("postgres", name))
	first, second := next(), next()
	if first.src != vip || first.dst != c.src || first.seq != 9001 || first.flags != rst {
		t.Errorf("the client gets %+v", first)
	}
	if second.src != b.src || second.dst != b.dst || second.seq != 5001 || second.flags != rst {
		t.Errorf("the backend gets %+v", second)
	}
	// Those of the others live on, and the table is as it should be.
	for deadline := time.Now().Add(5 * time.Second); f.entries() != 4; {
		if time.Now().After(deadline) {
			t.Fatalf("%d entries are left", f.entries())
		}
	}
	f.wantActive(0, 1, 1)
	f.expect(c, "tx_rst_client")
	f.must(f.setState(name, lb.Up))
	if err := f.ResetFlows("postgres", "nobody"); err == nil {
		t.Error("an unknown backend was accepted")
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run returned %v", err)
	}
}

func TestNothingIsResetWithoutNeed(t *testing.T) {
	f := newFixture(t)
	_, b := f.connect(clientNumber(0))
	place := f.placed[b.dst.Port()-6432]
	reset := func() int {
		n, err := f.resetBackend(t.Context(), place)
		f.must(err)
		return n
	}
	if n := reset(); n != 0 {
		t.Errorf("%d flows of a backend that is up were reset", n)
	}
	f.must(f.setState(place.name, lb.Down))
	f.must(f.RevokeLease(vip.Addr()))
	if n := reset(); n != 0 {
		t.Errorf("%d flows were reset while another node owns the address", n)
	}
	f.must(f.RenewLease(vip.Addr(), time.Hour))
	if n := reset(); n != 1 {
		t.Errorf("%d flows were reset", n)
	}
}
