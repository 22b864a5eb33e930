package xdp

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

func TestLimitsAgreeWithTheProgram(t *testing.T) {
	spec, err := loadBalancer()
	if err != nil {
		t.Fatal(err)
	}
	var load loadRow
	var row serviceRow[addr4]
	if len(load.Active) != lb.MaxBackends || len(row.Name) != lb.MaxNameLen+1 {
		t.Errorf("%d backends, names of %d bytes", len(load.Active), len(row.Name))
	}
	if n := spec.Maps[balancerMapServices].MaxEntries; n != lb.MaxServices {
		t.Errorf("%d services", n)
	}
	if spec.Programs[balancerProgBalancer].License != "Dual BSD/GPL" {
		t.Errorf("licence %q", spec.Programs[balancerProgBalancer].License)
	}
	names, err := verdictNames()
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range names {
		action, _, _ := strings.Cut(name, "_")
		want := "tx"
		switch v := balancerVerdict(i); {
		case v < balancerVerdictTX_NEW:
			want = "pass"
		case v >= balancerVerdictDROP_FENCED:
			want = "drop"
		}
		if action != want {
			t.Errorf("verdict %d is called %q, its action is %s", i, name, want)
		}
	}
}

func TestSweepRemovesWhatIsOver(t *testing.T) {
	f := newFixture(t)
	f.connect(clientNumber(0)) // stays
	closed, backend := f.connect(clientNumber(1))
	closed.flags = fin | ack
	f.expect(closed, "tx_forward")
	f.expect(backend.answer(fin|ack), "tx_reverse")
	reset, _ := f.connect(clientNumber(2))
	reset.flags = rst
	f.expect(reset, "tx_forward")
	s := fromClient(syn)
	s.src = clientNumber(3)
	f.expect(s, "tx_new")
	oneFIN, _ := f.connect(clientNumber(4))
	oneFIN.flags = fin | ack
	f.expect(oneFIN, "tx_forward")

	f.cfg.Timeouts = Timeouts{SYN: time.Hour, Established: time.Hour, FIN: time.Hour, TimeWait: time.Hour, Closed: time.Hour, Reset: time.Hour}
	for _, step := range []struct {
		what    string
		timeout *time.Duration
		entries int
		active  int64
	}{
		{"nothing", new(time.Duration), 10, 3},
		{"TIME-WAIT", &f.cfg.Timeouts.TimeWait, 10, 3},
		{"closed", &f.cfg.Timeouts.Closed, 8, 3},
		{"reset", &f.cfg.Timeouts.Reset, 6, 3},
		{"half-open", &f.cfg.Timeouts.SYN, 4, 2},
		{"one FIN", &f.cfg.Timeouts.FIN, 2, 1},
		{"established, which is asked first", &f.cfg.Timeouts.Established, 2, 1},
	} {
		*step.timeout = -time.Hour // however coarse the program's clock is
		f.must(f.sweep())
		got := f.active()
		if n := f.entries(); n != step.entries || got[0]+got[1]+got[2] != step.active {
			t.Errorf("%s: %d entries left, active counts %v", step.what, n, got)
		}
	}
}

func TestBusyFlowIsNotReaped(t *testing.T) {
	f := newFixture(t)
	_, b := f.connect(client)
	clock, err := f.tables.clock()
	f.must(err)
	f.expect(b.answer(ack), "tx_reverse")
	// The forward half is old enough, the reverse half is not: long replies.
	row := f.row(client)
	row.Seen = 0
	f.put(client, row)
	four := &f.tables.four
	n, err := four.run([]reapRequest[addr4]{{Key: four.keyOf(client, vip), Seen: clock.before(time.Second)}})
	f.must(err)
	if n != 0 || f.entries() != 2 {
		t.Errorf("%d reaped, %d entries", n, f.entries())
	}
}

func TestAuditSeesDriftThatLasts(t *testing.T) {
	f := newFixture(t)
	f.connect(client)
	sweep := func() lb.Audit {
		f.must(f.sweep())
		s, err := f.Stats()
		f.must(err)
		return s.Audit
	}
	if a := sweep(); a.Drift != 0 || a.Flows != 1 || a.Live != 1 || a.Orphans != 0 {
		t.Errorf("audit %+v", a)
	}
	// A decrement that never happens: the flow is taken out behind our back.
	var keys []flowKey[addr4]
	f.must(f.tables.four.scan.each(func(k *flowKey[addr4], _ *flowRow[addr4]) bool { keys = append(keys, *k); return true }))
	for _, k := range keys {
		f.must(f.tables.four.flows.Delete(k))
	}
	if a := sweep(); a.Drift != 0 {
		t.Errorf("drift at first sight: %+v", a)
	}
	if a := sweep(); a.Drift != 1 {
		t.Errorf("lasting drift not seen: %+v", a)
	}
}

func TestFlowsAndCountsSurviveARestart(t *testing.T) {
	f := newFixture(t)
	c, b := f.connect(client)
	f.must(f.Close())
	again := open(t, f.config, f.ns)
	if again.Mode() != ModeNative {
		t.Errorf("mode %s", again.Mode())
	}
	f = again
	f.expect(c, "tx_forward")
	f.expect(b.answer(ack), "tx_reverse")
	f.must(f.SetVIPs([]lb.VIPStats{{Addr: vip.Addr(), Router: "main", VRID: 51, Priority: 101}}))
	f.must(f.SetServices([]lb.Service{threePoolers()}))
	f.expect(c, "tx_forward")
	f.wantActive(0, 0, 1)
	if n, err := f.FlushFlows(vip.Addr()); err != nil || n != 1 {
		t.Errorf("flushed %d, %v", n, err)
	}
	f.wantActive(0, 0, 0)
}

func TestDetachLeavesNothing(t *testing.T) {
	f := newFixture(t)
	f.must(f.Close())
	inNamespace(t, f.ns, func() error {
		if err := Detach(f.config.PinPath); err != nil {
			return err
		}
		iface, err := netlink.LinkByName("lan0")
		if err != nil {
			return err
		}
		if x := iface.Attrs().Xdp; x != nil && x.Attached {
			return errors.New("the program is still attached")
		}
		return Detach(f.config.PinPath) // nothing there: no error
	})
	if _, err := os.Stat(f.config.PinPath); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the pin directory: %v", err)
	}
}

func TestAnInterfaceMadeAnewIsAttachedAnew(t *testing.T) {
	f := newFixture(t)
	f.must(f.Close())
	inNamespace(t, f.ns, func() error {
		iface, err := netlink.LinkByName("lan0")
		if err != nil {
			return err
		}
		if err := netlink.LinkDel(iface); err != nil {
			return err
		}
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "lan0", HardwareAddr: lbMAC[:]}, PeerName: "lan1"})
	})
	if again := open(t, f.config, f.ns); again.Mode() != ModeNative {
		t.Errorf("mode %q", again.Mode())
	}
}

func TestRefusals(t *testing.T) {
	cfg, ns := newHost(t)
	inNamespace(t, ns, func() error {
		lan1, err := netlink.LinkByName("lan1")
		if err != nil {
			return err
		}
		return AttachPass(lan1.Attrs().Index)
	})
	edit := func(fn func(*Config)) Config { c := cfg; fn(&c); return c }
	plain := filepath.Join(t.TempDir(), "pins")
	for _, test := range []struct {
		name string
		cfg  Config
		want string
	}{
		{"no such interface", edit(func(c *Config) { c.Interface = "lan7" }), "finding interface lan7: Link not found"},
		{"not Ethernet", edit(func(c *Config) { c.Interface = "lo" }), "interface lo is not Ethernet"},
		{"somebody's program", edit(func(c *Config) { c.Interface, c.PinPath = "lan1", c.PinPath+"-foreign" }), "another XDP program is attached on lan1"},
		{"not a BPF file system", edit(func(c *Config) { c.PinPath = plain }), "is not on a BPF file system"},
		{"mode", edit(func(c *Config) { c.Mode = "warp" }), `unknown XDP mode "warp"`},
		{"way to send", edit(func(c *Config) { c.TX = "warp" }), `unknown way to send "warp"`},
		{"ports", edit(func(c *Config) { c.SNATLow, c.SNATHigh = 5, 4 }), "SNAT ports 5-4 are not a range"},
		{"no pin path", edit(func(c *Config) { c.PinPath = "" }), "no pin path"},
	} {
		t.Run(test.name, func(t *testing.T) {
			inNamespace(t, ns, func() error {
				b, err := Open(test.cfg)
				if err == nil {
					b.Close()
					return errors.New("accepted")
				}
				if !strings.Contains(err.Error(), test.want) {
					return fmt.Errorf("error %q, want %q", err, test.want)
				}
				return nil
			})
		})
	}
	for _, dir := range []string{plain, cfg.PinPath + "-foreign"} {
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the refused pin directory was left behind: %v", err)
		}
	}
}

func TestGenericModeIsAFallback(t *testing.T) {
	cfg, ns := newHost(t)
	cfg.Mode = ModeAuto
	setMTU(t, ns, 9000)
	inNamespace(t, ns, func() error {
		b, err := prepared(cfg)
		if err != nil {
			return err
		}
		// As on a kernel before 5.18: a veth whose MTU is beyond a page then
		// refuses native mode.
		b.frags = false
		if err := b.open(); err != nil {
			return err
		}
		if b.Mode() != ModeGeneric {
			t.Errorf("mode %s", b.Mode())
		}
		return b.Close()
	})
}

func TestReconfigurationKeepsSlots(t *testing.T) {
	f := newFixture(t)
	var from [3]segment
	for n := range 3 {
		c, b := f.connect(clientNumber(n))
		from[b.dst.Port()-6432] = c
	}
	s := threePoolers()
	// The first goes, one joins, the order changes.
	s.Backends[0] = lb.Backend{Name: "pooler4", Addr: netip.AddrPortFrom(pooler.Addr(), 6435), Weight: 1, State: lb.Up}
	s.Backends[1], s.Backends[2] = s.Backends[2], s.Backends[1]
	f.must(f.SetServices([]lb.Service{s}))
	f.expect(from[0], "tx_rst_client")
	f.expect(from[1], "tx_forward")
	f.expect(from[2], "tx_forward")
	stats, err := f.Stats()
	f.must(err)
	for _, b := range stats.Services[0].Backends {
		want := int64(1)
		if b.Name == "pooler4" {
			want = 0
		}
		if b.Active != want || b.Total != uint64(want) || !b.Reachable || b.MAC != net.HardwareAddr(poolerMAC[:]).String() {
			t.Errorf("%+v", b)
		}
	}
	if _, out := f.connect(clientNumber(9)); out.dst.Port() != 6435 {
		t.Errorf("the new backend was passed over for %s", out.dst)
	}
	f.must(f.SetServices(nil))
	if n := f.entries(); n != 0 {
		t.Errorf("%d entries after the service was removed", n)
	}
	if _, _, v := f.run(from[1].frame()); v != "pass_port" {
		t.Errorf("verdict %s", v)
	}
}

func TestNeighboursAreFollowed(t *testing.T) {
	f := newFixture(t)
	delete(f.neighbours, pooler.Addr())
	f.must(f.SetServices([]lb.Service{threePoolers()}))
	f.expect(fromClient(syn), "tx_rst_no_backend")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- f.Run(ctx) }()
	neighbour := func(mac macAddr, state int) {
		inNamespace(t, f.ns, func() error {
			return netlink.NeighSet(&netlink.Neigh{
				LinkIndex: f.iface.Attrs().Index, State: state, IP: pooler.Addr().AsSlice(), HardwareAddr: mac[:],
			})
		})
	}
	macs := func() string {
		s, err := f.Stats()
		f.must(err)
		b := s.Services[0].Backends[0]
		return fmt.Sprint(b.MAC, b.Reachable)
	}
	wait := func(want string) {
		t.Helper()
		for deadline := time.Now().Add(5 * time.Second); macs() != want; {
			if time.Now().After(deadline) {
				t.Fatalf("next hop %s, want %s", macs(), want)
			}
		}
	}
	neighbour(poolerMAC, netlink.NUD_PERMANENT)
	wait(net.HardwareAddr(poolerMAC[:]).String() + "true")
	other := macAddr{0x02, 0, 0, 0, 0, 0x06}
	neighbour(other, netlink.NUD_PERMANENT)
	wait(net.HardwareAddr(other[:]).String() + "true")
	neighbour(other, netlink.NUD_FAILED)
	wait(net.HardwareAddr(other[:]).String() + "false")
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run returned %v", err)
	}
}

func TestReaderSeesWhatTheDaemonSees(t *testing.T) {
	f := newFixture(t)
	f.connect(client)
	f.must(f.SetVIPState(vip.Addr(), "active", 101))
	f.must(f.Close())
	inNamespace(t, f.ns, func() error {
		r, err := OpenPins(f.config.PinPath)
		if err != nil {
			return err
		}
		defer r.Close()
		s, err := r.Stats()
		if err != nil {
			return err
		}
		if s.Interface != "lan0" || s.Mode != ModeNative || s.Audit.Capacity != 4096 || s.Audit.Memory == 0 {
			t.Errorf("stats %+v", s)
		}
		if a, err := r.Audit(); err != nil || a.Flows != 1 || a.Backends[0].Counted != 1 || a.Backends[0].Active != 1 {
			t.Errorf("audit %+v, %v", a, err)
		}
		if v := s.VIPs[0]; v.Addr != vip.Addr() || v.State != "active" || v.Router != "main" || v.VRID != 51 || v.Lease < time.Minute {
			t.Errorf("virtual address %+v", v)
		}
		if s.Services[0].Name != "postgres" || len(s.Services[0].Backends) != 3 {
			t.Errorf("services %+v", s.Services)
		}
		return r.Flows(func(fl lb.Flow) bool {
			if fl.Client != client || fl.Service != vip || fl.State != "established" || fl.PacketsIn != 2 || fl.PacketsOut != 1 || fl.BytesIn != 80 {
				t.Errorf("flow %+v", fl)
			}
			return true
		})
	})
	if _, err := OpenPins(t.TempDir()); !errors.Is(err, ErrNoPins) && !errors.Is(err, unix.EPERM) {
		t.Errorf("opening what is not there: %v", err)
	}
}
