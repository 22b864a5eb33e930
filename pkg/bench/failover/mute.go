package failover

import (
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/pkg/lab"
)

// Verdicts of a program on tcx (linux/bpf.h, enum tcx_action_base).
const (
	tcxNext = -1
	tcxDrop = 2
)

// dropVRRP drops what a host sends of IP protocol 112 and lets all else through.
// It looks at the Ethernet header and at the protocol's or next header's byte.
var dropVRRP = asm.Instructions{
	asm.Mov.Reg(asm.R6, asm.R1), // where LoadAbs expects the packet
	asm.LoadAbs(12, asm.Half),
	asm.JEq.Imm(asm.R0, unix.ETH_P_IPV6, "ipv6"),
	asm.JNE.Imm(asm.R0, unix.ETH_P_IP, "next"),
	asm.LoadAbs(14+9, asm.Byte),
	asm.Ja.Label("judge"),
	asm.LoadAbs(14+6, asm.Byte).WithSymbol("ipv6"),
	asm.JNE.Imm(asm.R0, vrrpProtocol, "next").WithSymbol("judge"),
	asm.Mov.Imm(asm.R0, tcxDrop),
	asm.Return(),
	asm.Mov.Imm(asm.R0, tcxNext).WithSymbol("next"),
	asm.Return(),
}

const vrrpProtocol = 112

// mutes is a program at some of the switch's ports.
type mutes []io.Closer

// muteVRRP keeps the LAN from carrying what the hosts say to each other about
// who is active: their multicast and their unicast. Nothing else is touched.
// It needs Linux 6.6.
func muteVRRP(l *lab.Lab, hosts []string) (m mutes, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Close())
		}
	}()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "drop_vrrp", Type: ebpf.SchedCLS, License: "GPL", Instructions: dropVRRP})
	if err != nil {
		return nil, fmt.Errorf("loading the program that drops VRRP: %w", err)
	}
	m = append(m, prog)
	for _, host := range hosts {
		err := l.OnSwitch(host, func(port string) error {
			ifi, err := net.InterfaceByName(port)
			if err != nil {
				return fmt.Errorf("finding port %s: %w", port, err)
			}
			at, err := link.AttachTCX(link.TCXOptions{Interface: ifi.Index, Program: prog, Attach: ebpf.AttachTCXIngress})
			if err != nil {
				return fmt.Errorf("dropping VRRP at port %s: %w", port, err)
			}
			m = append(m, at)
			return nil
		})
		if err != nil {
			return m, err
		}
	}
	return m, nil
}

// Close lets them talk again.
func (m mutes) Close() error {
	var errs []error
	for _, c := range m {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}
