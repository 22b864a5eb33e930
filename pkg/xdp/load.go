package xdp

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
)

// programs are what Open loads. Two of the maps are not pinned by name: the
// scratch space, and the array of programs, which is made anew and takes the
// old one's place together with the program on the interface.
type programs struct {
	Balancer  *ebpf.Program `ebpf:"balancer"`
	Reap      *ebpf.Program `ebpf:"reap"`
	ClearSlot *ebpf.Program `ebpf:"clear_slot"`
	ReadClock *ebpf.Program `ebpf:"read_clock"`
	Next      *ebpf.Map     `ebpf:"programs"`
}

// programs6 are those for IPv6.
type programs6 struct {
	Balancer6 *ebpf.Program `ebpf:"balancer6"`
	Reap      *ebpf.Program `ebpf:"reap"`
}

// Close may be called on programs that were not all loaded.
func (p *programs) Close() error {
	return errors.Join(p.Balancer.Close(), p.Reap.Close(), p.ClearSlot.Close(), p.ReadClock.Close(), p.Next.Close())
}

// Close is like that of programs.
func (p *programs6) Close() error { return errors.Join(p.Balancer6.Close(), p.Reap.Close()) }

// unpinned are the maps that live and die with the program.
var unpinned = map[string]bool{balancerMapScratches: true, balancerMapPrograms: true}

// pinned says whether a map of a specification is pinned by its name; sections
// of variables, whose names begin with a dot, are not.
func pinned(name string) bool { return name[0] != '.' && !unpinned[name] }

// nextPin is where the array of programs is pinned: without a pin it is emptied
// when the daemon ends.
func nextPin(pinPath string) string { return filepath.Join(pinPath, balancerMapPrograms) }

// nextSuffix has no dot: a BPF file system reserves names with one.
const nextSuffix = "_new"

func (b *Balancer) load() error {
	spec, err := b.specification(loadBalancer)
	if err != nil {
		return err
	}
	if err := b.loadInto(spec, &b.progs); err != nil {
		return err
	}
	if b.cfg.IPv6 {
		spec6, err := b.specification(loadBalancer6)
		if err != nil {
			return err
		}
		if err := b.loadInto(spec6, &b.progs6); err != nil {
			return err
		}
		if err := b.progs.Next.Put(uint32(programIPv6), b.progs6.Balancer6); err != nil {
			return fmt.Errorf("installing the IPv6 program: %w", err)
		}
	}
	b.tables, err = openTables(b.cfg.PinPath, false)
	if err != nil {
		return err
	}
	b.tables.hasSix = b.cfg.IPv6 // whatever an earlier life has left
	b.tables.four.reapProg, b.tables.six.reapProg = b.progs.Reap, b.progs6.Reap
	b.tables.clockProg = b.progs.ReadClock
	return nil
}

// programIPv6 is PROGRAM_IPV6 of bpf/maps.h.
const programIPv6 = 0

func (b *Balancer) loadInto(spec *ebpf.CollectionSpec, to any) error {
	err := spec.LoadAndAssign(to, &ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: b.cfg.PinPath}})
	if errors.Is(err, ebpf.ErrMapIncompatible) {
		return fmt.Errorf("the pinned tables in %s have another layout or size; detach first, which ends their flows: %w", b.cfg.PinPath, err)
	}
	var verifier *ebpf.VerifierError
	if errors.As(err, &verifier) {
		b.log.Debug("verifier log", "log", fmt.Sprintf("%+v", verifier))
	}
	if err != nil {
		return fmt.Errorf("loading the XDP program: %w", err)
	}
	return nil
}

// specification is a family's program with its knobs set.
func (b *Balancer) specification(load func() (*ebpf.CollectionSpec, error)) (*ebpf.CollectionSpec, error) {
	spec, err := load()
	if err != nil {
		return nil, err
	}
	jiffy, err := jiffyLength()
	if err != nil {
		return nil, err
	}
	mac := [6]uint8(b.iface.Attrs().HardwareAddr)
	for name, value := range map[string]any{
		balancerVarOwnMacHead:    [4]byte(mac[:4]),
		balancerVarOwnMacTail:    [2]byte(mac[4:]),
		balancerVarSnatLow:       uint32(b.cfg.SNATLow),
		balancerVarSnatCount:     uint32(b.cfg.SNATHigh) - uint32(b.cfg.SNATLow) + 1,
		balancerVarTxRedirect:    b.cfg.TX == "redirect",
		balancerVarJiffy:         uint64(jiffy),
		balancerVarHalfOpenMask:  b.cfg.HalfOpenFlows - 1,
		balancerVarSynSourceRate: b.cfg.SYNRatePerSource,
		balancerVarSynTotalRate:  b.cfg.SYNRateTotal,
		balancerVarSeed:          rand.Uint32(),
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return nil, fmt.Errorf("setting %s: %w", name, err)
		}
	}
	for name, m := range spec.Maps {
		if pinned(name) {
			m.Pinning = ebpf.PinByName
		}
		switch name {
		case balancerMapFlows, balancer6MapFlows6:
			m.MaxEntries = b.cfg.FlowTableSize
		case balancerMapHandshakes, balancer6MapHandshakes6:
			m.MaxEntries = b.cfg.HalfOpenFlows
		}
	}
	return spec, nil
}

// pinNext pins the new array of programs beside the old one, and returns what
// puts it in its place: to be called when the new program is on the interface.
func (b *Balancer) pinNext() (replace func() error, err error) {
	pin := nextPin(b.cfg.PinPath)
	next := pin + nextSuffix
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("removing what an interrupted start has left: %w", err)
	}
	if err := b.progs.Next.Pin(next); err != nil {
		return nil, fmt.Errorf("pinning the array of programs: %w", err)
	}
	return func() error {
		if err := os.Rename(next, pin); err != nil {
			return fmt.Errorf("replacing the array of programs: %w", err)
		}
		return nil
	}, nil
}
