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
	if err := spec.Variables[balancerVarOwnMac].Set(lbMAC); err != nil {
		f.Fatal(err)
	}
	spec.Maps[balancerMapFlows].MaxEntries = 1024
	var objs balancerObjects
	if err := spec.LoadAndAssign(&objs, nil); err != nil {
		f.Fatal(err)
	}
	defer objs.Close()
	b := Balancer{objs: objs}
	if err := b.SetVIPs([]lb.VIPStats{{Addr: vip.Addr()}}); err != nil {
		f.Fatal(err)
	}
	if err := b.RenewLease(vip.Addr(), 1<<60); err != nil {
		f.Fatal(err)
	}
	schedule := balancerSchedule{}
	schedule.Slots[0] = balancerSlot{Weight: 1, State: uint8(lb.Up), Reachable: 1}
	place := placedBackend{name: "pooler1", addr: pooler}
	for _, err := range []error{
		b.writeBackend(place),
		objs.Schedules.Put(uint32(0), schedule),
		objs.Services.Put(serviceKey(vip), balancerService{Name: nameBytes("postgres")}),
	} {
		if err != nil {
			f.Fatal(err)
		}
	}
	t := tables{verdicts: objs.Verdicts}
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
		action, err := objs.Balancer.Run(&opts)
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
