package xdp

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// programs are what Open loads. Some of the maps are not pinned by name: the
// scratch space; the array of programs, which is made anew and takes the old
// one's place together with the program on the interface; and what is told to
// another node, which gets a full copy from each new program anyway.
type programs struct {
	Balancer  *ebpf.Program `ebpf:"balancer"`
	Reap      *ebpf.Program `ebpf:"reap"`
	ClearSlot *ebpf.Program `ebpf:"clear_slot"`
	ReadClock *ebpf.Program `ebpf:"read_clock"`
	Replicate *ebpf.Program `ebpf:"replicate"`
	Next      *ebpf.Map     `ebpf:"programs"`
	Buckets   *ebpf.Map     `ebpf:"buckets"`
	Events    *ebpf.Map     `ebpf:"events"`
	Lost      *ebpf.Map     `ebpf:"lost_events"`
}

// programs6 are those for IPv6.
type programs6 struct {
	Balancer6 *ebpf.Program `ebpf:"balancer6"`
	Reap      *ebpf.Program `ebpf:"reap"`
	Replicate *ebpf.Program `ebpf:"replicate"`
	Events    *ebpf.Map     `ebpf:"events6"`
	Lost      *ebpf.Map     `ebpf:"lost_events6"`
}

// Close may be called on programs that were not all loaded.
func (p *programs) Close() error {
	return errors.Join(p.Balancer.Close(), p.Reap.Close(), p.ClearSlot.Close(), p.ReadClock.Close(), p.Replicate.Close(),
		p.Next.Close(), p.Buckets.Close(), p.Events.Close(), p.Lost.Close())
}

// Close is like that of programs.
func (p *programs6) Close() error {
	return errors.Join(p.Balancer6.Close(), p.Reap.Close(), p.Replicate.Close(), p.Events.Close(), p.Lost.Close())
}

// unpinned are the maps that live and die with the program.
var unpinned = map[string]bool{
	balancerMapScratches: true, balancerMapPrograms: true,
	balancerMapEvents: true, balancerMapLostEvents: true, balancer6MapEvents6: true, balancer6MapLostEvents6: true,
}

// pinned says whether a map of a specification is pinned by its name; sections
// of variables, whose names begin with a dot, are not.
func pinned(name string) bool { return name[0] != '.' && !unpinned[name] }

// A step of Open. Whoever dies between two leaves what the next Open, and the
// packets meanwhile, can go on with.
type step struct {
	what string // what is being done, for the error
	do   func() error
}

// steps are all that Open does to pins and interface, in order.
func (b *Balancer) steps() []step {
	u := &b.upgrade
	return []step{
		{"finishing an interrupted upgrade", b.finishInterrupted},
		{"looking at the pinned tables", b.planUpgrade},
		{"making new tables", u.prepare},
		{"loading the program", b.load},
		{"copying the tables", func() error { return u.copyAll(&b.tables) }},
		{"copying what has changed", func() error { return u.copyAgain(&b.tables) }},
		{"pinning the program", b.mark},
		{"putting the program on the interface", b.attach},
		{"copying what has changed last", b.settle},
		{"replacing the pins", func() error { return commit(b.cfg.PinPath) }},
		{"clearing away what nothing uses any more", b.clearObsolete},
	}
}

// planUpgrade sets the program's knobs, which the sizes of tables are among,
// and compares with what is pinned.
func (b *Balancer) planUpgrade() error {
	loaders := []func() (*ebpf.CollectionSpec, error){loadBalancer}
	if b.cfg.IPv6 {
		loaders = append(loaders, loadBalancer6)
	}
	for _, load := range loaders {
		spec, err := b.specification(load)
		if err != nil {
			return err
		}
		b.upgrade.specs = append(b.upgrade.specs, spec)
	}
	if err := b.upgrade.plan(); err != nil {
		return err
	}
	if len(b.upgrade.moved) > 0 {
		b.log.Info("tables have another layout or size than those that are pinned: they are carried over", "tables", len(b.upgrade.moved))
	}
	return nil
}

func (b *Balancer) load() error {
	if err := b.loadInto(b.upgrade.specs[0], &b.progs); err != nil {
		return err
	}
	if b.cfg.IPv6 {
		if err := b.loadInto(b.upgrade.specs[1], &b.progs6); err != nil {
			return err
		}
		if err := b.progs.Next.Put(uint32(programIPv6), b.progs6.Balancer6); err != nil {
			return fmt.Errorf("installing the IPv6 program: %w", err)
		}
	}
	var err error
	b.tables, err = openTables(func(name string) (string, error) { return b.upgrade.pinOf(name), nil }, false)
	if err != nil {
		return err
	}
	b.tables.hasSix = b.cfg.IPv6 // whatever an earlier life has left
	b.tables.four.reapProg, b.tables.six.reapProg = b.progs.Reap, b.progs6.Reap
	b.tables.four.replicateProg, b.tables.six.replicateProg = b.progs.Replicate, b.progs6.Replicate
	b.tables.clockProg = b.progs.ReadClock
	return nil
}

// programIPv6 is PROGRAM_IPV6 of bpf/maps.h.
const programIPv6 = 0

func (b *Balancer) loadInto(spec *ebpf.CollectionSpec, to any) error {
	err := spec.LoadAndAssign(to, &ebpf.CollectionOptions{
		Maps:            ebpf.MapOptions{PinPath: b.cfg.PinPath},
		MapReplacements: b.upgrade.replacements(spec),
	})
	var verifier *ebpf.VerifierError
	if errors.As(err, &verifier) {
		b.log.Debug("verifier log", "log", fmt.Sprintf("%+v", verifier))
	}
	return err
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
		balancerVarRstRate:       b.cfg.ResetRate,
		balancerVarRstBurst:      max(b.cfg.ResetRate/5, 1),
		balancerVarSnatLow:       uint32(b.cfg.SNATLow),
		balancerVarSnatCount:     uint32(b.cfg.SNATHigh) - uint32(b.cfg.SNATLow) + 1,
		balancerVarTxRedirect:    b.cfg.TX == "redirect",
		balancerVarJiffy:         uint64(jiffy),
		balancerVarHalfOpenMask:  b.cfg.HalfOpenFlows - 1,
		balancerVarSynSourceRate: b.cfg.SYNRatePerSource,
		balancerVarSynTotalRate:  cmp.Or(b.cfg.SYNRateTotal, unlimited),
		balancerVarSynTotalBurst: cmp.Or(min(b.cfg.SYNRateTotal, b.cfg.HalfOpenFlows/2), unlimited),
		balancerVarSeed:          rand.Uint32(),
		balancerVarFrags:         b.frags,
		balancerVarReplicating:   b.cfg.Replicate,
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return nil, fmt.Errorf("setting %s: %w", name, err)
		}
	}
	if b.frags {
		// All or none: a program of one kind cannot call one of the other.
		for _, p := range spec.Programs {
			p.Flags |= unix.BPF_F_XDP_HAS_FRAGS
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
		case balancerMapEvents, balancer6MapEvents6:
			if !b.cfg.Replicate {
				m.MaxEntries = uint32(os.Getpagesize())
			} else if b.cfg.eventRing > 0 {
				m.MaxEntries = uint32(b.cfg.eventRing)
			}
		}
	}
	return spec, nil
}

// mark pins the new program, which says that an upgrade is under way, and its
// array of programs, which would be emptied when the daemon ends without a pin.
func (b *Balancer) mark() error {
	if err := b.progs.Next.Pin(filepath.Join(b.cfg.PinPath, balancerMapPrograms+newSuffix)); err != nil {
		return fmt.Errorf("pinning the array of programs: %w", err)
	}
	return b.progs.Balancer.Pin(marker(b.cfg.PinPath))
}

// settle brings the new tables up to date when the new program has taken over.
func (b *Balancer) settle() error {
	if len(b.upgrade.moved) == 0 {
		return nil
	}
	if err := b.upgrade.settle(&b.tables); err != nil {
		return err
	}
	if n := b.upgrade.lost; n > 0 {
		b.log.Error("the new flow table has filled up: connections that were opened last are reset", "connections", n)
	}
	return b.hold(0)
}

// hold keeps the program for a while from opening flows, whose ports might be
// those of flows that are still to be copied, and from answering unknown
// segments, which might be theirs. Both are sent again: a SYN after 1 s, others
// after 200 ms. It ends by itself, should the daemon die.
func (b *Balancer) hold(d time.Duration) error {
	clock, err := b.tables.clock()
	if err != nil {
		return err
	}
	for _, i := range []uint32{resetBucket, synBucket} {
		if err := b.progs.Buckets.Put(i, tokenBucket{Refilled: clock.after(d)}); err != nil {
			return fmt.Errorf("holding new flows: %w", err)
		}
	}
	return nil
}

// BUCKET_RST and BUCKET_SYN of bpf/maps.h.
const (
	resetBucket = iota
	synBucket
)

// To copy what has changed last takes 0.2 s with 100,000 flows in use, 2.5 s
// with a million (measured), and about as long as copying what changed before
// that did. Several times as long, and a second, is enough on a busy machine.
const (
	holdAtLeast = time.Second
	holdFactor  = 4
)

// unlimited stands for a rate that is not limited: the program has to ask the
// bucket all the same, which is how it is held.
const unlimited = math.MaxInt32
