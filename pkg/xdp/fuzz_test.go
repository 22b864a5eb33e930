package xdp

import (
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// FuzzPacket sends arbitrary frames: each gets one verdict, none aborts the
// program, and a TCP segment to the service never reaches the kernel, which
// would answer it with a reset.
func FuzzPacket(f *testing.F) {
	if testing.Short() || os.Getuid() != 0 {
		f.Skip("loading BPF programs needs root, and is left out of the short tests")
	}
	f.Add(fromClient(syn).frame())
	f.Add(fromClient(ack).frame())
	f.Add(fromClient(rst).frame()[:40])
	f.Add(segment{srcMAC: poolerMAC, dstMAC: lbMAC, src: pooler, dst: vip, flags: ack}.frame())
	f.Add(arp("192.168.1.50", "192.168.1.100"))

	spec, err := loadBalancer()
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
	spec.Maps[balancerMapFlows].MaxEntries = 1024
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		f.Fatal(err)
	}
	defer coll.Close()
	t := tables{
		loads: coll.Maps[balancerMapLoads], schedules: coll.Maps[balancerMapSchedules],
		verdicts: coll.Maps[balancerMapVerdicts], clockProg: coll.Programs[balancerProgReadClock],
	}
	for name, m := range t.four.byName() {
		*m = coll.Maps[name]
	}
	b := Balancer{tables: t}
	for _, err := range []error{
		b.SetVIPs([]lb.VIPStats{{Addr: vip.Addr()}}),
		b.RenewLease(vip.Addr(), 1<<60),
		t.four.putBackend(0, backendHead{addr: pooler, name: "pooler1"}),
		t.four.putService(vip, serviceHead{nat: []natAddr{{vip.Addr(), 0}}, name: "postgres"}),
		t.schedules.Put(uint32(0), scheduleRow{Slots: [64]slotRow{{
			Weight: weightUnit, Cost: costUnit / weightUnit, Limit: limitless,
			State: uint8(lb.Up), Flags: uint8(balancerSlotFlagSLOT_REACHABLE),
		}}}),
	} {
		if err != nil {
			f.Fatal(err)
		}
	}
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
		action, err := coll.Programs[balancerProgBalancer].Run(&opts)
		if err != nil {
			t.Fatal(err)
		}
		if after := sum(t); after != before+1 {
			t.Errorf("counted %d times", after-before)
		}
		switch action {
		case xdpTX:
			out := opts.DataOut
			// A broken checksum stays broken: only ours must be right.
			if in := frame[14:]; onesSum(0, in[:20]) == 0xffff && onesSum(0, out[14:34]) != 0xffff {
				t.Errorf("the IP checksum was broken: %x", out)
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

// toService says whether the kernel would take the frame for a TCP segment to
// the service.
func toService(b []byte) bool {
	if len(b) < 38 || b[12] != 8 || b[13] != 0 || macAddr(b[:6]) != lbMAC || b[14] != 0x45 || b[23] != unix.IPPROTO_TCP {
		return false
	}
	addr := vip.Addr().As4()
	return [4]byte(b[30:34]) == addr && uint16(b[36])<<8|uint16(b[37]) == vip.Port()
}
