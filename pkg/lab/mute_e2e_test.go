package lab_test

import (
	"net"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/pkg/lab"
)

// muteVRRP has the switch drop what the balancers say to each other by VRRP, in
// both directions, and nothing else, until the function that it returns is
// called. It needs Linux 6.6.
func muteVRRP(t *testing.T, l *lab.Lab) (unmute func() error) {
	t.Helper()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "drop_vrrp", Type: ebpf.SchedCLS, License: "GPL", Instructions: dropVRRP()})
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close() // the links keep it
	var links []link.Link
	unmute = func() error {
		for _, at := range links {
			if err := at.Close(); err != nil {
				return err
			}
		}
		links = nil
		return nil
	}
	t.Cleanup(func() {
		if err := unmute(); err != nil {
			t.Error(err)
		}
	})
	for _, balancer := range lab.Balancers() {
		err := l.OnSwitch(balancer, func(port string) error {
			ifi, err := net.InterfaceByName(port)
			if err != nil {
				return err
			}
			at, err := link.AttachTCX(link.TCXOptions{Interface: ifi.Index, Program: prog, Attach: ebpf.AttachTCXIngress})
			if err == nil {
				links = append(links, at)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return unmute
}

// dropVRRP drops IP packets of protocol 112, of either family.
func dropVRRP() asm.Instructions {
	const (
		next, drop = -1, 2 // linux/bpf.h, enum tcx_action_base
		vrrp       = 112
		eth        = 14
	)
	return asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1), // where LoadAbs expects the packet
		asm.LoadAbs(12, asm.Half),
		asm.JEq.Imm(asm.R0, unix.ETH_P_IPV6, "ipv6"),
		asm.JNE.Imm(asm.R0, unix.ETH_P_IP, "next"),
		asm.LoadAbs(eth+9, asm.Byte),
		asm.Ja.Label("judge"),
		asm.LoadAbs(eth+6, asm.Byte).WithSymbol("ipv6"),
		asm.JNE.Imm(asm.R0, vrrp, "next").WithSymbol("judge"),
		asm.Mov.Imm(asm.R0, drop),
		asm.Return(),
		asm.Mov.Imm(asm.R0, next).WithSymbol("next"),
		asm.Return(),
	}
}
