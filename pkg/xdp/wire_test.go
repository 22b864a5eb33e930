package xdp

import (
	"encoding/binary"
	"slices"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// wire is the far end of the cable, frames as they are.
type wire struct {
	f  *fixture
	fd int
}

// newWire opens it at lan1.
func newWire(f *fixture) *wire {
	f.t.Helper()
	w := &wire{f: f, fd: -1}
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // network order
	inNamespace(f.t, f.ns, func() error {
		lan1, err := netlink.LinkByName("lan1")
		if err != nil {
			return err
		}
		if w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all); err != nil {
			return err
		}
		// The kernel takes the outer tag out of the frame and tells it beside.
		if err := unix.SetsockoptInt(w.fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1); err != nil {
			return err
		}
		if err := unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
			return err
		}
		return unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: lan1.Attrs().Index})
	})
	f.t.Cleanup(func() { unix.Close(w.fd) })
	return w
}

// exchange sends a segment and returns what comes back from the balancer.
func (w *wire) exchange(s segment) segment {
	w.f.t.Helper()
	if _, err := unix.Write(w.fd, s.frame()); err != nil {
		w.f.t.Fatalf("sending: %v", err)
	}
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		b, aux := make([]byte, 2048), make([]byte, 128)
		n, auxLen, _, from, err := unix.Recvmsg(w.fd, b, aux, 0)
		if err != nil {
			w.f.t.Fatalf("nothing came back: %v", err)
		}
		if l, ok := from.(*unix.SockaddrLinklayer); ok && l.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		frame := w.retag(b[:n], aux[:auxLen])
		if macAddr(frame[6:12]) == lbMAC && isTCP(frame) {
			return decode(w.f.t, frame)
		}
	}
	w.f.t.Fatal("nothing of ours came back")
	return segment{}
}

// isTCP looks behind the tags.
func isTCP(b []byte) bool {
	switch at, proto := behindTags(b, 4); proto {
	case 0x0800:
		return b[at+9] == unix.IPPROTO_TCP
	case 0x86dd:
		return b[at+6] == unix.IPPROTO_TCP
	}
	return false
}

// retag puts the outer tag back.
func (w *wire) retag(frame, aux []byte) []byte {
	w.f.t.Helper()
	messages, err := unix.ParseSocketControlMessage(aux)
	w.f.must(err)
	for _, m := range messages {
		if m.Header.Type != unix.PACKET_AUXDATA {
			continue
		}
		data := (*unix.TpacketAuxdata)(unsafe.Pointer(&m.Data[0]))
		if data.Status&unix.TP_STATUS_VLAN_VALID == 0 {
			continue
		}
		tag := binary.BigEndian.AppendUint16(nil, data.Vlan_tpid)
		tag = binary.BigEndian.AppendUint16(tag, data.Vlan_tci)
		return slices.Concat(frame[:12], tag, frame[12:])
	}
	return frame
}

// Through the interface, in each mode: what a test run does not show is whether
// the driver sends it.
func TestOnTheWire(t *testing.T) {
	for _, mode := range []struct{ name, mode, tx string }{
		{"native", ModeNative, "tx"}, {"native, redirect", ModeNative, "redirect"},
		{"generic", ModeGeneric, "tx"}, {"generic, redirect", ModeGeneric, "redirect"},
	} {
		t.Run(mode.name, func(t *testing.T) {
			f := newDualFixture(t, func(c *Config) { c.Mode, c.TX = mode.mode, mode.tx })
			if f.Mode() != mode.mode {
				t.Fatalf("attached in %s mode", f.Mode())
			}
			inNamespace(t, f.ns, func() error {
				lan1, err := netlink.LinkByName("lan1")
				if err != nil {
					return err
				}
				return AttachPass(lan1.Attrs().Index)
			})
			f.each(casts(), testOnTheWire)
		})
	}
}

func testOnTheWire(f *fixture, c cast) {
	w := newWire(f)
	s := c.service(3)
	s.ClientAddress = true
	f.must(f.SetServices([]lb.Service{s}))
	in := c.syn(1)
	in.options = linuxOptions
	got := w.exchange(in)
	f.wantSYN(c, got, in, clientOption(in.src)+linuxOptions, c.label(in.src))
	got = w.exchange(got.answer(rst | ack)) // refused: to another
	f.wantSYN(c, got, in, clientOption(in.src)+linuxOptions, c.label(in.src))
	back := w.exchange(got.answer(syn | ack))
	if back.src != c.vip || back.dst != in.src || back.tags != c.tags || back.dstMAC != clientMAC {
		f.t.Errorf("the client is answered by %+v", back)
	}
	in.flags, in.seq, in.options, in.payload = ack|psh, in.seq+1, "", string(make([]byte, 1200))
	if got := w.exchange(in); got.payload != in.payload || got.dst != back.answer(0).dst && c.slot(got.dst) < 0 || got.tags != c.tags {
		f.t.Errorf("data arrives as %+v", got)
	}
	f.wantState(c, in.src, "established")
	f.wantActive(0, 0, 1)
	unknown := c.sends(ack)
	unknown.payload = "select 1"
	if got := w.exchange(unknown); got.flags != rst || got.seq != unknown.ack || got.dst != c.client || got.tags != c.tags {
		f.t.Errorf("an unknown segment is answered by %+v", got)
	}
}
