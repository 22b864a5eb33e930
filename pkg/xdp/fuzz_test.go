package xdp

import (
	"encoding/binary"
	"net/netip"
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// FuzzPacket sends arbitrary frames of both families: each gets one verdict,
// none aborts the program, what was right stays right, and a TCP segment to the
// service never reaches the kernel, which would answer it with a reset.
func FuzzPacket(f *testing.F) {
	if testing.Short() || os.Getuid() != 0 {
		f.Skip("loading BPF programs needs root, and is left out of the short tests")
	}
	for _, c := range casts() {
		withOptions := c.syn(1)
		withOptions.options = linuxOptions
		f.Add(c.sends(syn).frame())
		f.Add(withOptions.frame())
		f.Add(c.sends(ack).frame())
		f.Add(c.sends(rst).frame()[:40])
		f.Add(c.stray(ack).frame())
		f.Add(c.resolution(c.client.Addr(), c.vip.Addr()))
		extended := c.sends(syn).frame()
		extended[14+len(c.tags)+6] = unix.IPPROTO_HOPOPTS
		f.Add(extended)
	}
	t, program := loadForFuzzing(f)
	sum := func(tb testing.TB) (n uint64) {
		counts, err := t.verdictCounts()
		if err != nil {
			tb.Fatal(err)
		}
		for _, v := range counts {
			n += v.Count
		}
		return n
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) < 14 || len(frame) > 1514 { // the kernel refuses the test run
			return
		}
		before := sum(t)
		opts := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256)}
		action, err := program.Run(&opts)
		if err != nil {
			t.Fatal(err)
		}
		if after := sum(t); after != before+1 {
			t.Errorf("counted %d times", after-before)
		}
		switch action {
		case xdpTX:
			// A broken checksum stays broken: only ours must be right.
			if sumsAreRight(frame) && !sumsAreRight(opts.DataOut) {
				t.Errorf("a checksum was broken: %x", opts.DataOut)
			}
		case xdpPass:
			if toService(frame) {
				t.Errorf("a segment for the service was passed: %x", frame)
			}
		case xdpDrop:
		default:
			t.Errorf("action %d", action)
		}
	})
}

// loadForFuzzing loads both programs, attached to nothing, with a service of
// one pooler in each family.
func loadForFuzzing(f *testing.F) (*tables, *ebpf.Program) {
	f.Helper()
	load := func(load func() (*ebpf.CollectionSpec, error), shared map[string]*ebpf.Map) *ebpf.Collection {
		spec, err := load()
		if err != nil {
			f.Fatal(err)
		}
		for name, value := range map[string]any{
			balancerVarOwnMacHead: [4]byte(lbMAC[:4]),
			balancerVarOwnMacTail: [2]byte(lbMAC[4:]),
		} {
			if err := spec.Variables[name].Set(value); err != nil {
				f.Fatal(err)
			}
		}
		replace := make(map[string]*ebpf.Map)
		for name, m := range spec.Maps {
			if shared[name] != nil && name[0] != '.' && name != balancerMapPrograms && name != balancerMapScratches {
				replace[name] = shared[name]
			}
			if name == balancerMapFlows || name == balancer6MapFlows6 {
				m.MaxEntries = 1024
			}
		}
		coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replace})
		if err != nil {
			f.Fatal(err)
		}
		f.Cleanup(coll.Close)
		return coll
	}
	four := load(loadBalancer, nil)
	six := load(loadBalancer6, four.Maps)
	t := tables{
		hasSix: true,
		loads:  four.Maps[balancerMapLoads], schedules: four.Maps[balancerMapSchedules],
		verdicts: four.Maps[balancerMapVerdicts], clockProg: four.Programs[balancerProgReadClock],
	}
	for name, m := range t.four.byName() {
		*m = four.Maps[name]
	}
	for name, m := range t.six.byName() {
		*m = six.Maps[name]
	}
	if err := four.Maps[balancerMapPrograms].Put(uint32(programIPv6), six.Programs[balancer6ProgBalancer6]); err != nil {
		f.Fatal(err)
	}
	b := Balancer{tables: t, took: make(map[netip.Addr]uint32)}
	if err := b.SetVIPs([]lb.VIPStats{{Addr: cast4.vip.Addr()}, {Addr: cast6.vip.Addr()}}); err != nil {
		f.Fatal(err)
	}
	for id, c := range families {
		of, err := t.of(c.vip.Addr())
		if err != nil {
			f.Fatal(err)
		}
		for _, err := range []error{
			b.RenewLease(c.vip.Addr(), 1<<60),
			of.putBackend(index(uint32(id), 0), backendHead{addr: c.pooler, name: "pooler1"}),
			of.putService(c.vip, serviceHead{
				id: uint32(id), flags: balancerServiceFlagSERVICE_CLIENT_ADDRESS, nat: []natAddr{{c.vip.Addr(), 0}}, name: "postgres",
			}),
			t.schedules.Put(uint32(id), scheduleRow{Slots: [64]slotRow{{
				Weight: weightUnit, Cost: costUnit / weightUnit, Limit: limitless,
				State: uint8(lb.Up), Flags: uint8(balancerSlotFlagSLOT_REACHABLE),
			}}}),
		} {
			if err != nil {
				f.Fatal(err)
			}
		}
	}
	return &t, four.Programs[balancerProgBalancer]
}

// ipOf is what is behind at most two tags: the IP header and the segment, nil
// where they are not whole. IPv6 is wanted without extension headers.
func ipOf(b []byte) (ip, tcp []byte) {
	at, proto := behindTags(b, 2)
	switch {
	case proto == 0x0800 && len(b) >= at+20 && b[at]>>4 == 4:
		ip = b[at:]
		header, total := int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:]))
		if ip[9] == unix.IPPROTO_TCP && header >= 20 && total >= header+20 && total <= len(ip) {
			return ip[:header], ip[header:total]
		}
	case proto == 0x86dd && len(b) >= at+40 && b[at]>>4 == 6:
		ip = b[at:]
		total := 40 + int(binary.BigEndian.Uint16(ip[4:]))
		if ip[6] == unix.IPPROTO_TCP && total >= 60 && total <= len(ip) {
			return ip[:40], ip[40:total]
		}
	}
	return nil, nil
}

func sumsAreRight(b []byte) bool {
	ip, tcp := ipOf(b)
	return tcp != nil && (ip[0]>>4 == 6 || onesSum(0, ip) == 0xffff) && tcpSum(ip, tcp) == 0xffff
}

// toService says whether the kernel would take the frame for a TCP segment to
// the service.
func toService(b []byte) bool {
	ip, tcp := ipOf(b)
	if tcp == nil || macAddr(b[:6]) != lbMAC {
		return false
	}
	var c cast
	var dst []byte
	if ip[0]>>4 == 4 {
		c, dst = cast4, ip[16:20]
	} else {
		c, dst = cast6, ip[24:40]
	}
	return string(dst) == string(c.vip.Addr().AsSlice()) && binary.BigEndian.Uint16(tcp[2:]) == c.vip.Port()
}
