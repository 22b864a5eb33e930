package xdp

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// attached is the program that is on the interface now.
func (f *fixture) attached() *ebpf.Program {
	f.t.Helper()
	var id ebpf.ProgramID
	inNamespace(f.t, f.ns, func() error {
		l, _, program, err := pinnedLink(f.config.PinPath)
		if err != nil {
			return err
		}
		id = program
		return l.Close()
	})
	prog, err := ebpf.NewProgramFromID(id)
	f.must(err)
	return prog
}

// onWire sends a segment through the program that is on the interface, whose
// daemon is gone, and returns what becomes of it.
func (f *fixture) onWire(s segment) segment {
	f.t.Helper()
	prog := f.attached()
	defer prog.Close()
	frame := s.frame()
	opts := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256)}
	action, err := prog.Run(&opts)
	f.must(err)
	// A SYN may be sent again for a while: see hold.
	for deadline := time.Now().Add(20 * time.Second); action == xdpDrop && s.flags == syn && time.Now().Before(deadline); {
		opts = ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256)}
		action, err = prog.Run(&opts)
		f.must(err)
	}
	if action != xdpTX {
		f.t.Fatalf("action %d for %+v", action, s)
	}
	out := decode(f.t, opts.DataOut)
	if out.flags&rst != 0 {
		f.t.Fatalf("a reset for %+v", s)
	}
	return out
}

// connectOnWire is connect through the program that is on the interface.
func (f *fixture) connectOnWire(n int) segment {
	f.t.Helper()
	c := fromClient(syn)
	c.src = clientNumber(n)
	f.onWire(f.onWire(c).answer(syn | ack))
	c.flags, c.seq = ack, c.seq+1
	f.onWire(c)
	return c
}

// wantCounted wants the active counts to add up to what the flow table holds.
func (f *fixture) wantCounted(live int64) {
	f.t.Helper()
	f.must(f.sweep())
	f.must(f.sweep())
	s, err := f.Stats()
	f.must(err)
	var active int64
	for _, b := range s.Services[0].Backends {
		active += b.Active
	}
	if s.Audit.Drift != 0 || s.Audit.Orphans != 0 || active != live || int64(s.Audit.Live) != live {
		f.t.Errorf("%d active, want %d; audit %+v", active, live, s.Audit)
	}
}

func (f *fixture) wantNoLeftovers() {
	f.t.Helper()
	names, err := newNames(f.config.PinPath)
	f.must(err)
	if len(names) > 0 {
		f.t.Errorf("left behind: %v", names)
	}
}

func TestAnotherSizeOfTables(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*Config)
	}{
		{"more flows", func(c *Config) { c.FlowTableSize = 8192 }},
		{"fewer flows", func(c *Config) { c.FlowTableSize = 256 }},
		{"more half-open flows", func(c *Config) { c.HalfOpenFlows *= 2 }},
		{"fewer half-open flows", func(c *Config) { c.HalfOpenFlows = 64 }},
		{"all of it", func(c *Config) { c.FlowTableSize, c.HalfOpenFlows, c.IPv6 = 2048, 1024, true }},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFixture(t, func(c *Config) {
				c.HalfOpenFlows, c.Timeouts = 512, DefaultTimeouts
				c.Timeouts.SYN = time.Hour // an emulated machine takes its time
			})
			const flows = 60
			var clients, backends [flows]segment
			for n := range flows {
				clients[n], backends[n] = f.connect(clientNumber(n))
			}
			// One is being closed, one is closed, one is not yet open.
			clients[0].flags = fin | ack
			f.expect(clients[0], "tx_forward")
			clients[1].flags = rst
			f.expect(clients[1], "tx_forward")
			opening := fromClient(syn)
			opening.src = clientNumber(flows)
			toBackend := f.expect(opening, "tx_new")
			before := f.backends()
			f.must(f.Close())

			cfg := f.config
			test.change(&cfg)
			f = open(t, cfg, f.ns)
			f.wantNoLeftovers()
			for i, b := range f.backends() {
				if b.Active != before[i].Active || b.Total != before[i].Total || b.PacketsIn != before[i].PacketsIn || b.Name != before[i].Name {
					t.Errorf("%+v, was %+v", b, before[i])
				}
			}
			f.wantCounted(flows) // one is closed, one half-open
			for n := 2; n < flows; n++ {
				f.expect(clients[n], "tx_forward")
				f.expect(backends[n].answer(ack), "tx_reverse")
			}
			// The half-open one has kept its SYN, for another backend.
			if out := f.expect(toBackend.answer(rst|ack), "tx_redispatch_refused"); out.dst == toBackend.dst {
				t.Errorf("offered to the same backend again: %+v", out)
			}
			f.expect(backends[0].answer(fin|ack), "tx_reverse")
			f.wantCounted(flows - 1)
			s := fromClient(ack)
			s.src = clientNumber(9999)
			f.expect(s, "tx_rst_client") // they are allowed again
		})
	}
}

func TestTooSmallATable(t *testing.T) {
	f := newFixture(t)
	c, _ := f.connect(clientNumber(0))
	for n := range 20 {
		f.connect(clientNumber(n + 1))
	}
	f.must(f.Close())
	cfg := f.config
	cfg.FlowTableSize = 32
	f.wantRefusal(cfg, "a table for 16 flows is too small for the 21 that there are; make it larger, or stop the daemon and detach")
	f.onWire(c)
	open(t, f.config, f.ns).expect(c, "tx_forward")
}

// wantRefusal wants Open to refuse, and to leave nothing.
func (f *fixture) wantRefusal(cfg Config, want string) {
	f.t.Helper()
	inNamespace(f.t, f.ns, func() error {
		b, err := Open(cfg)
		if err == nil {
			return errors.Join(errors.New("accepted"), b.Close())
		}
		if !errors.Is(err, ErrTables) || !strings.Contains(err.Error(), want) {
			f.t.Errorf("error %q, want %q", err, want)
		}
		return nil
	})
	f.wantNoLeftovers()
}

// relayout gives a pinned table another layout, as an earlier version might
// have left it: entries and description.
func (f *fixture) relayout(name string, change func(value *shape)) {
	f.t.Helper()
	path := filepath.Join(f.config.PinPath, name)
	described := filepath.Join(f.config.PinPath, descriptionPin)
	d, err := readDescription(described)
	f.must(err)
	is := d.Tables[name]
	was := is
	was.Value.Fields = append([]field(nil), is.Value.Fields...)
	change(&was.Value)
	m, err := openPinned(path)
	f.must(err)
	defer m.Close()
	old, err := ebpf.NewMap(&ebpf.MapSpec{Type: m.Type(), KeySize: m.KeySize(), ValueSize: was.Value.Size, MaxEntries: m.MaxEntries(), Flags: m.Flags()})
	f.must(err)
	defer old.Close()
	var key, value []byte
	it := m.Iterate()
	for it.Next(&key, &value) {
		raw := make([]byte, was.Value.Size)
		f.must(convert(&was.Value, &is.Value, raw, value))
		f.must(old.Put(key, raw))
	}
	f.must(it.Err())
	f.must(os.Remove(path))
	f.must(old.Pin(path))
	d.Tables[name] = was
	f.must(d.pin(described))
}

func TestAnotherLayout(t *testing.T) {
	f := newFixture(t)
	c, b := f.connect(client)
	f.must(f.SetVIPState(vip.Addr(), "active", 101))
	before := f.row(client)
	f.must(f.Close())
	f.relayout(balancerMapFlows, func(v *shape) { // other places, other sizes, one field less and one more
		v.Fields = append([]field{{Name: "colour", Shape: shape{Size: 8}}}, v.Fields...)
		offset := uint32(0)
		kept := v.Fields[:0]
		for _, fl := range v.Fields {
			switch fl.Name {
			case "ack":
				continue
			case "backend":
				fl.Shape.Size = 8
			case "packets", "bytes":
				fl.Shape.Size = 4
			}
			fl.Offset = offset
			offset += fl.Shape.Size
			kept = append(kept, fl)
		}
		v.Fields, v.Size = kept, uint32(align8(int(offset)))
	})
	f.relayout(balancerMapVips, func(v *shape) {
		for i := range v.Fields {
			v.Fields[i].Offset += 8
		}
		v.Size += 8
	})
	f = open(t, f.config, f.ns)
	before.Ack = 0
	if row := f.row(client); row != before {
		t.Errorf("%+v, was %+v", row, before)
	}
	if v, err := f.tables.vipStats(); err != nil || v[0].State != "active" || v[0].Router != "main" {
		t.Errorf("%+v, %v", v, err)
	}
	f.wantCounted(1)
	f.expect(c, "tx_forward")
	f.expect(b.answer(ack), "tx_reverse")
}

func TestALayoutThatCannotBeCarriedOver(t *testing.T) {
	f := newFixture(t)
	c, _ := f.connect(client)
	f.must(f.Close())
	cfg := f.config
	// Each change makes it worse, and the first that is found is named.
	f.relayout(balancerMapFlows, func(v *shape) {
		for i := range v.Fields {
			if v.Fields[i].Name == "vip" {
				v.Fields[i].Name = "lease"
			}
		}
	})
	f.wantRefusal(cfg, "table flows has no vip; stop the daemon and detach the program (pgsteerd -detach), which ends their flows")
	f.onWire(c)
	path := filepath.Join(cfg.PinPath, descriptionPin)
	d, err := readDescription(path)
	f.must(err)
	d.Meaning++
	f.must(d.pin(path))
	f.wantRefusal(cfg, "meant something else by the same names")
	if _, err := OpenPins(cfg.PinPath); !errors.Is(err, ErrTables) {
		t.Errorf("a reader of other tables: %v", err)
	}
	f.onWire(c)
	d.Meaning--
	d.Tables[balancerMapFlows] = tableDescription{}
	f.must(d.pin(path))
	f.wantRefusal(cfg, "table flows is not what its description says")
	f.onWire(c)
}

// Tables that were pinned before there was a description are described by the
// kernel.
func TestTablesWithoutADescription(t *testing.T) {
	f := newFixture(t)
	c, _ := f.connect(client)
	f.must(f.Close())
	f.must(os.Remove(filepath.Join(f.config.PinPath, descriptionPin)))
	cfg := f.config
	cfg.FlowTableSize *= 2
	f = open(t, cfg, f.ns)
	f.expect(c, "tx_forward")
	f.wantCounted(1)
	for _, v := range f.verdictCounts() {
		if v.Name == "tx_new" && v.Count != 1 {
			t.Errorf("%+v", v)
		}
	}
}

func TestIPv6SwitchedOnAndOff(t *testing.T) {
	f := newFixture(t)
	c, _ := f.connect(client)
	six := lb.Service{Name: "six", Addr: netip.MustParseAddrPort("[2001:db8::100]:5432"), Backends: []lb.Backend{
		{Name: "pooler6", Addr: netip.MustParseAddrPort("[2001:db8::5]:6432"), Weight: 1, State: lb.Up},
	}}
	with := f.config
	with.IPv6 = true
	for range 2 {
		f.must(f.Close())
		f = open(t, with, f.ns)
		f.expect(c, "tx_forward")
		f.must(f.SetVIPs([]lb.VIPStats{{Addr: vip.Addr()}, {Addr: six.Addr.Addr()}}))
		f.must(f.SetServices([]lb.Service{threePoolers(), six}))
		head, err := f.tables.six.services()
		f.must(err)
		id := head[six.Addr].id
		f.must(f.tables.loads.Put(id, loadRow{Active: [64]int64{7}, Total: [64]uint64{9}}))
		without := f.config
		without.IPv6 = false
		f.must(f.Close())
		f = open(t, without, f.ns)
		f.expect(c, "tx_forward")
		for _, name := range []string{balancer6MapFlows6, balancer6MapServices6} {
			if there, err := exists(filepath.Join(without.PinPath, name)); err != nil || there {
				t.Errorf("%s is still pinned (%v)", name, err)
			}
		}
		var load loadRow
		var schedule scheduleRow
		f.must(errors.Join(f.tables.loads.Lookup(id, &load), f.tables.schedules.Lookup(id, &schedule)))
		if load != (loadRow{}) || schedule != (scheduleRow{}) {
			t.Errorf("the number of a service that is gone still counts: %v", load.Active[0])
		}
		f.wantCounted(1)
	}
}
