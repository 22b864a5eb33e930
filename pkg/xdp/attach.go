package xdp

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Values of Config.Mode; Balancer.Mode returns one of the last two.
const (
	ModeAuto    = "auto"
	ModeNative  = "native"
	ModeGeneric = "generic"
)

// pinnedLink opens the link of an earlier life: nil when there is none or its
// interface is gone. program is the id of the program that it holds.
func pinnedLink(pinPath string) (l link.Link, ifindex uint32, program ebpf.ProgramID, err error) {
	l, err = link.LoadPinnedLink(linkPin(pinPath), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, 0, nil
	}
	if err != nil {
		return nil, 0, 0, fmt.Errorf("opening the pinned link: %w", err)
	}
	info, err := l.Info()
	if err != nil {
		return nil, 0, 0, errors.Join(fmt.Errorf("asking for the pinned link: %w", err), l.Close())
	}
	if info.XDP() == nil {
		return nil, 0, 0, errors.Join(fmt.Errorf("%s is not an XDP link", linkPin(pinPath)), l.Close())
	}
	return l, info.XDP().Ifindex, info.Program, nil
}

// attach takes over the pinned link, exchanging the program under it without a
// gap, or makes a new one. A link whose interface was deleted is dropped.
func (b *Balancer) attach() error {
	if len(b.upgrade.copiers) > 0 {
		if err := b.hold(holdAtLeast + holdFactor*b.upgrade.took); err != nil {
			return err
		}
	}
	l, ifindex, _, err := pinnedLink(b.cfg.PinPath)
	if err != nil {
		return err
	}
	if l != nil && int(ifindex) == b.iface.Attrs().Index {
		if err := l.Update(b.progs.Balancer); err != nil {
			return errors.Join(fmt.Errorf("exchanging the program on %s: %w", b.cfg.Interface, err), l.Close())
		}
		b.link = l
		return b.learnMode()
	}
	if l != nil {
		if ifindex != 0 {
			return errors.Join(fmt.Errorf("the pins in %s belong to interface number %d, not to %s", b.cfg.PinPath, ifindex, b.cfg.Interface), l.Close())
		}
		if err := errors.Join(l.Unpin(), l.Close()); err != nil {
			return fmt.Errorf("dropping the link of an interface that is gone: %w", err)
		}
	}
	if b.link, err = b.attachNew(); err != nil {
		return err
	}
	if err := b.link.Pin(linkPin(b.cfg.PinPath)); err != nil {
		return fmt.Errorf("pinning the link: %w", err)
	}
	return b.learnMode()
}

func (b *Balancer) attachNew() (link.Link, error) {
	opts := link.XDPOptions{Program: b.progs.Balancer, Interface: b.iface.Attrs().Index}
	var native error
	if b.cfg.Mode != ModeGeneric {
		opts.Flags = link.XDPDriverMode
		l, err := link.AttachXDP(opts)
		if err == nil {
			return l, nil
		}
		native = b.explainMTU(err)
		if b.cfg.Mode == ModeNative {
			return nil, fmt.Errorf("attaching to %s in native mode: %w", b.cfg.Interface, native)
		}
	}
	opts.Flags = link.XDPGenericMode
	l, err := link.AttachXDP(opts)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("attaching to %s in generic mode: %w", b.cfg.Interface, err), native)
	}
	if native != nil {
		b.log.Warn("native XDP refused, running in generic mode: correct, but several times slower",
			"interface", b.cfg.Interface, "reason", native)
	}
	return l, nil
}

// explainMTU says what to do about a refusal that comes from the MTU.
func (b *Balancer) explainMTU(err error) error {
	mtu := b.iface.Attrs().MTU
	if mtu <= maxMTU || b.frags {
		return err
	}
	return fmt.Errorf("%w: %w", err, tooLarge(mtu))
}

func tooLarge(mtu int) error {
	return fmt.Errorf("its MTU is %d, and this kernel takes packets of more than a page in generic mode only (native: 5.18): lower it to %d", mtu, maxMTU)
}

// CheckMTU says why an interface with that MTU, in bytes, cannot have the
// program in native mode.
func CheckMTU(mtu int) error {
	if needs, can := needsFrags(mtu); needs && !can {
		return tooLarge(mtu)
	}
	return nil
}

func (b *Balancer) learnMode() error {
	iface, err := netlink.LinkByIndex(b.iface.Attrs().Index)
	if err != nil {
		return fmt.Errorf("looking at %s: %w", b.cfg.Interface, err)
	}
	b.mode = attachMode(iface)
	return nil
}

// Attached returns the mode in which our program is attached to an interface,
// "" when there is none, and an error when somebody else's is. It changes
// nothing.
func Attached(device, pinPath string) (mode string, err error) {
	iface, err := netlink.LinkByName(device)
	if err != nil {
		return "", fmt.Errorf("looking at %s: %w", device, err)
	}
	if err := checkForeign(iface, pinPath); err != nil {
		return "", err
	}
	return attachMode(iface), nil
}

// attachMode returns "" when nothing is attached.
func attachMode(iface netlink.Link) string {
	x := iface.Attrs().Xdp
	switch {
	case x == nil || !x.Attached:
		return ""
	case x.AttachMode == xdpAttachedGeneric:
		return ModeGeneric
	default:
		return ModeNative
	}
}

// xdpAttachedGeneric is XDP_ATTACHED_SKB of linux/if_link.h.
const xdpAttachedGeneric = 2

// Detach removes the program and all that is pinned in the directory. Flows
// that it carried end. It is no error when nothing is there.
func Detach(pinPath string) error {
	l, ifindex, _, err := pinnedLink(pinPath)
	if err != nil {
		return err
	}
	if l != nil {
		if ifindex != 0 {
			err = l.Detach()
		}
		if err := errors.Join(err, l.Unpin(), l.Close()); err != nil {
			return fmt.Errorf("detaching: %w", err)
		}
	}
	names, err := pinNames(pinPath)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := removePin(filepath.Join(pinPath, name)); err != nil {
			return err
		}
	}
	if err := os.Remove(pinPath); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
		return fmt.Errorf("removing the pin directory: %w", err)
	}
	return nil
}

// pinNames are the names of everything but the link that Open pins, or that the
// description says an earlier version has pinned. The description is last: it
// is what the others are found by.
func pinNames(dir string) ([]string, error) {
	names := []string{balancerMapPrograms}
	specs, err := bothSpecifications()
	if err != nil {
		return nil, err
	}
	for _, spec := range specs {
		for name := range spec.Maps {
			if pinned(name) {
				names = append(names, name)
			}
		}
	}
	unfinished, err := newNames(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	was, err := readDescription(filepath.Join(dir, descriptionPin))
	if err != nil {
		return nil, err
	}
	if was != nil {
		names = slices.AppendSeq(names, maps.Keys(was.Tables))
	}
	return append(append(names, unfinished...), descriptionPin), nil
}

// AttachPass attaches a program that lets everything through, in native mode,
// until the interface goes away. The far end of a virtual cable needs one: a
// veth driver takes frames of XDP_TX only towards a peer that runs XDP itself.
func AttachPass(ifindex int) error {
	spec, err := loadBalancer()
	if err != nil {
		return err
	}
	iface, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		return fmt.Errorf("finding interface number %d: %w", ifindex, err)
	}
	pass := spec.Programs[balancerProgPass]
	if _, can := needsFrags(iface.Attrs().MTU); can {
		pass.Flags |= unix.BPF_F_XDP_HAS_FRAGS
	}
	prog, err := ebpf.NewProgram(pass)
	if err != nil {
		return fmt.Errorf("loading the pass program: %w", err)
	}
	defer prog.Close()
	// By netlink and not by a link, whose life would end with this process.
	if err := netlink.LinkSetXdpFdWithFlags(iface, prog.FD(), unix.XDP_FLAGS_DRV_MODE); err != nil {
		return fmt.Errorf("attaching the pass program to %s: %w", iface.Attrs().Name, err)
	}
	return nil
}

// Fitness says whether the interface has carrier and is up, and whether our
// program is on it: without either, packets for the virtual addresses do not
// come to the program. It is one question to the kernel.
func (b *Balancer) Fitness() (carrier, attached bool, err error) {
	iface, err := b.nl.LinkByIndex(b.iface.Attrs().Index)
	if err != nil {
		return false, false, fmt.Errorf("looking at %s: %w", b.cfg.Interface, err)
	}
	const up = unix.IFF_UP | unix.IFF_LOWER_UP
	a := iface.Attrs()
	return a.RawFlags&up == up, a.Xdp != nil && a.Xdp.Attached, nil
}
