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

const vrrpProtocol = 112

// dropVRRP drops what a host sends of IP protocol 112, while the one value of the
// map is not zero, and lets all else through. It looks at the Ethernet header and
// at the protocol's or next header's byte.
func dropVRRP(on *ebpf.Map) asm.Instructions {
	return asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1), // where LoadAbs expects the packet
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, on.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "next"),
		asm.LoadMem(asm.R0, asm.R0, 0, asm.Word),
		asm.JEq.Imm(asm.R0, 0, "next"),
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
}

// mute is a program at some of the switch's ports that keeps the LAN from carrying
// what their hosts say to each other about who is active: their multicast and
// their unicast. Nothing else is touched.
type mute struct {
	// on switches it at all ports at once. To detach it from one port takes some
	// ten milliseconds, in which one node would hear the other and not be heard;
	// and who hears first matters.
	on    *ebpf.Map
	parts []io.Closer
}

// muteVRRP needs Linux 6.6.
func muteVRRP(l *lab.Lab, hosts []string) (m *mute, err error) {
	m = &mute{}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Close())
		}
	}()
	prog, err := m.load()
	if err != nil {
		return m, err
	}
	for _, host := range hosts {
		err := l.OnSwitch(host, func(port string) error {
			ifi, err := net.InterfaceByName(port)
			if err != nil {
				return fmt.Errorf("finding port %s: %w", port, err)
			}
			at, err := link.AttachTCX(link.TCXOptions{Interface: ifi.Index, Program: prog, Attach: ebpf.AttachTCXIngress})
			if err != nil {
				return fmt.Errorf("attaching the program that drops VRRP to port %s: %w", port, err)
			}
			m.parts = append(m.parts, at)
			return nil
		})
		if err != nil {
			return m, err
		}
	}
	return m, m.set(1)
}

// load loads the program with its map, switched off.
func (m *mute) load() (*ebpf.Program, error) {
	var err error
	m.on, err = ebpf.NewMap(&ebpf.MapSpec{Name: "mute", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		return nil, fmt.Errorf("making the switch of the program that drops VRRP: %w", err)
	}
	m.parts = append(m.parts, m.on)
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "drop_vrrp", Type: ebpf.SchedCLS, License: "GPL", Instructions: dropVRRP(m.on)})
	if err != nil {
		return nil, fmt.Errorf("loading the program that drops VRRP: %w", err)
	}
	m.parts = append(m.parts, prog)
	return prog, nil
}

func (m *mute) set(on uint32) error {
	if err := m.on.Put(uint32(0), on); err != nil {
		return fmt.Errorf("switching the program that drops VRRP: %w", err)
	}
	return nil
}

// Close lets them talk again.
func (m *mute) Close() error {
	var errs []error
	if m.on != nil {
		errs = append(errs, m.set(0))
	}
	for _, c := range m.parts {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}
