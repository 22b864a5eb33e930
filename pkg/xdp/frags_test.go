package xdp

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// setMTU makes both ends of the cable take frames of a size.
func setMTU(t *testing.T, ns netns.NsHandle, mtu int) {
	t.Helper()
	inNamespace(t, ns, func() error {
		for _, name := range []string{"lan0", "lan1"} {
			iface, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			if err := netlink.LinkSetMTU(iface, mtu); err != nil {
				return err
			}
		}
		return nil
	})
}

// needFrags skips on kernels before 5.18.
func needFrags(t *testing.T) {
	t.Helper()
	if _, can := needsFrags(9000); !can {
		t.Skip("this kernel has packets in one piece only")
	}
}

// jumboFixture serves both families on a cable with an MTU of 9000, in native
// mode.
func jumboFixture(t *testing.T) *fixture {
	t.Helper()
	f := newDualFixture(t)
	needFrags(t)
	f.must(f.Close())
	inNamespace(t, f.ns, func() error { return Detach(f.config.PinPath) })
	setMTU(t, f.ns, 9000)
	f = open(t, f.config, f.ns)
	var vips []lb.VIPStats
	for _, c := range families {
		f.neighbours[c.pooler.Addr()] = poolerMAC
		vips = append(vips, lb.VIPStats{Addr: c.vip.Addr()})
	}
	f.must(f.SetVIPs(vips))
	for _, v := range vips {
		f.must(f.RenewLease(v.Addr, time.Hour))
	}
	return f
}

func TestJumboFrames(t *testing.T) {
	jumboFixture(t).each(families, func(f *fixture, c cast) {
		s := c.service(2)
		s.ClientAddress = true
		f.serve(s)
		long := strings.Repeat("0123456789abcdef", 500)
		k := f.establish(c.syn(1))
		if out := f.clientSays(&k, ack, long); out.payload != long {
			f.t.Errorf("%d bytes to the backend", len(out.payload))
		}
		if out := f.backendSays(&k, ack, long+"odd"); out.payload != long+"odd" {
			f.t.Errorf("%d bytes to the client", len(out.payload))
		}
		// A reset is short, whatever it answers.
		stray := c.sends(ack)
		stray.src, stray.payload = c.number(99), long
		if out := f.expect(stray, "tx_rst_client"); out.flags != rst || out.payload != "" || out.padding != 0 {
			f.t.Errorf("%+v", out)
		}
		stray = c.stray(ack)
		stray.payload = long
		if out := f.expect(stray, "tx_rst_backend"); out.flags != rst || out.payload != "" {
			f.t.Errorf("%+v", out)
		}
		// A refusal becomes the client's SYN again.
		in := c.syn(2)
		in.options = "\x02\x04\x23\x28"
		first := f.expect(in, "tx_new")
		refusal := first.answer(rst | ack)
		second := f.expect(refusal, "tx_redispatch_refused")
		if second.flags != syn || second.payload != "" || second.dst == first.dst || !strings.HasSuffix(second.options, in.options) {
			f.t.Errorf("%+v", second)
		}
	})
}

// The same on a real cable, where the driver cuts the frames into pieces.
func TestJumboFramesOnACable(t *testing.T) {
	cfg, ns := newHost(t)
	needFrags(t)
	setMTU(t, ns, 9000)
	f := open(t, cfg, ns)
	f.must(f.SetVIPs([]lb.VIPStats{{Addr: vip.Addr()}}))
	f.must(f.RenewLease(vip.Addr(), time.Hour))
	f.must(f.SetServices([]lb.Service{threePoolers()}))
	if f.Mode() != ModeNative {
		t.Fatalf("mode %s", f.Mode())
	}
	c, b := f.connect(client)
	w := openCable(f)
	for _, s := range []segment{c, b.answer(ack)} {
		s.payload = strings.Repeat("x", 8000)
		lost := 0
		out, err := w.exchange(s, &lost)
		f.must(err)
		if out.payload != s.payload {
			t.Errorf("%d bytes arrived", len(out.payload))
		}
	}
	stray := c
	stray.src, stray.payload = clientNumber(7), strings.Repeat("x", 8000)
	f.must(w.send(stray))
	out, ok, err := w.receive(5 * time.Second)
	f.must(err)
	if !ok || out.flags&rst == 0 || out.dst != stray.src {
		t.Errorf("%v, %+v", ok, out)
	}
}

// Where a kernel cannot, it is said what to do.
func TestAnMTUThatIsTooLarge(t *testing.T) {
	cfg, ns := newHost(t)
	setMTU(t, ns, 9000)
	cfg.Mode = ModeNative
	inNamespace(t, ns, func() error {
		b, err := prepared(cfg)
		if err != nil {
			return err
		}
		b.frags = false // as before 5.18
		err = b.open()
		if err == nil || !strings.Contains(err.Error(), "its MTU is 9000, and this kernel takes packets of more than a page in generic mode only (native: 5.18): lower it to 3506") {
			t.Errorf("error %v", err)
		}
		return errors.Join(b.Close())
	})
	// And that is what the driver itself says.
	setMTU(t, ns, maxMTU)
	f := open(t, cfg, ns)
	if f.frags || f.Mode() != ModeNative {
		t.Errorf("several pieces: %v; mode %s", f.frags, f.Mode())
	}
	f.must(f.Close())
}
