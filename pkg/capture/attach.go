package capture

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrNotAttached means that there is no XDP program to watch.
var ErrNotAttached = errors.New("no XDP program is attached")

// ErrRefused means that this kernel lets nobody trace programs.
var ErrRefused = errors.New("this kernel refuses tracing programs even to root: a security module or a lockdown forbids them")

// Names in bpf/, which the sections of capture.bpf.c have, too.
const (
	linkPin     = "link"     // the pinned link of the XDP program
	tailPin     = "programs" // the pinned array of the programs that it calls
	exitFunc    = "finish"   // what tells the verdict of a packet that leaves
	verdictEnum = "verdict"  // the enum of what finish is told
)

// target is what there is to watch: the program that the packets come to,
// first, and those that it hands them on to.
type target struct {
	ifindex  int
	iface    string // "if7" when it is in another network namespace
	programs []ebpf.ProgramID
}

func (t target) equal(other target) bool {
	return t.ifindex == other.ifindex && slices.Equal(t.programs, other.programs)
}

// findTarget finds the running programs through the pins.
func findTarget(pinPath string) (target, error) {
	l, err := link.LoadPinnedLink(filepath.Join(pinPath, linkPin), nil)
	if errors.Is(err, os.ErrNotExist) {
		return target{}, fmt.Errorf("%w: nothing is pinned in %s", ErrNotAttached, pinPath)
	}
	if err != nil {
		return target{}, fmt.Errorf("opening the pinned link in %s: %w", pinPath, err)
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return target{}, fmt.Errorf("asking for the pinned link in %s: %w", pinPath, err)
	}
	xdp := info.XDP()
	if xdp == nil {
		return target{}, fmt.Errorf("%s is not an XDP link", filepath.Join(pinPath, linkPin))
	}
	if xdp.Ifindex == 0 {
		return target{}, fmt.Errorf("%w: the interface of the link in %s is gone", ErrNotAttached, pinPath)
	}
	t := target{
		ifindex:  int(xdp.Ifindex),
		iface:    fmt.Sprintf("if%d", xdp.Ifindex),
		programs: []ebpf.ProgramID{info.Program},
	}
	// Numbers of interfaces mean something in their own namespace only.
	if iface, err := netlink.LinkByIndex(t.ifindex); err == nil {
		if x := iface.Attrs().Xdp; x != nil && x.ProgId == uint32(info.Program) {
			t.iface = iface.Attrs().Name
		}
	}
	called, err := tailCalled(pinPath)
	t.programs = append(t.programs, called...)
	return t, err
}

// tailCalled returns the programs that the first one hands packets on to: none
// where it does it all.
func tailCalled(pinPath string) ([]ebpf.ProgramID, error) {
	array, err := ebpf.LoadPinnedMap(filepath.Join(pinPath, tailPin), &ebpf.LoadPinOptions{ReadOnly: true})
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("opening the pinned programs in %s: %w", pinPath, err)
	}
	defer array.Close()
	var ids []ebpf.ProgramID
	for i := range array.MaxEntries() {
		var id uint32
		err := array.Lookup(i, &id)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading the pinned programs in %s: %w", pinPath, err)
		}
		ids = append(ids, ebpf.ProgramID(id))
	}
	return ids, nil
}

// verdictNames takes the names of the verdicts from the type information of the
// program itself: it may be of another version than this one.
func verdictNames(id ebpf.ProgramID) (verdicts, error) {
	program, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return nil, fmt.Errorf("opening XDP program %d: %w", id, err)
	}
	defer program.Close()
	handle, err := program.Handle()
	if err != nil {
		return nil, fmt.Errorf("opening the type information of XDP program %d: %w", id, err)
	}
	defer handle.Close()
	spec, err := handle.Spec(nil)
	if err != nil {
		return nil, fmt.Errorf("reading the type information of XDP program %d: %w", id, err)
	}
	var exit *btf.Func
	var enum *btf.Enum
	if err := errors.Join(spec.TypeByName(exitFunc, &exit), spec.TypeByName(verdictEnum, &enum)); err != nil {
		return nil, fmt.Errorf("XDP program %d cannot be watched; it is an older pgsteerd's, or not pgsteerd's at all: %w", id, err)
	}
	names := make(verdicts, len(enum.Values))
	for _, v := range enum.Values {
		// The last value counts the others: VERDICTS.
		if _, _, ok := strings.Cut(v.Name, "_"); ok {
			names[uint32(v.Value)] = strings.ToLower(v.Name)
		}
	}
	return names, nil
}

// attachment is the programs of a capture on those of a target.
type attachment struct {
	target target
	links  []link.Link // to be closed in the opposite order
}

// attach loads the programs of the capture, once for each program of the
// target: what a tracing program is attached to is fixed when it is loaded. All
// exits come before the entry and stay until after it: a packet that was noted
// at the entry and not crossed out at its exit would be taken for another one.
func attach(t target, cfg *Config, names, wanted verdicts, maps *probeMaps) (*attachment, error) {
	a := &attachment{target: t}
	for i, id := range slices.Backward(t.programs) {
		if err := a.add(id, i == 0, cfg, names, wanted, maps); err != nil {
			return nil, errors.Join(err, a.close())
		}
	}
	return a, nil
}

// add attaches to one program. Only the first one has an entry, which a tail
// call jumps past, and an end: what it calls returns to there.
func (a *attachment) add(id ebpf.ProgramID, first bool, cfg *Config, names, wanted verdicts, maps *probeMaps) error {
	program, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return fmt.Errorf("opening XDP program %d: %w", id, err)
	}
	defer program.Close()
	spec, err := loadProbe()
	if err != nil {
		return err
	}
	if err := cfg.setKnobs(spec, names, wanted); err != nil {
		return err
	}
	if !first {
		delete(spec.Programs, probeProgPacketIn)
		delete(spec.Programs, probeProgPacketEnd)
	}
	for _, p := range spec.Programs {
		p.AttachTarget = program
	}
	loaded, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{
		MapReplacements: map[string]*ebpf.Map{
			probeMapEvents:    maps.Events,
			probeMapScratches: maps.Scratches,
			probeMapTallies:   maps.Tallies,
		},
	})
	if err != nil {
		return explainLoad(err)
	}
	defer loaded.Close() // the links hold what they need
	for _, name := range []string{probeProgPacketOut, probeProgPacketEnd, probeProgPacketIn} {
		p := loaded.Programs[name]
		if p == nil {
			continue
		}
		l, err := link.AttachTracing(link.TracingOptions{Program: p})
		if err != nil {
			return fmt.Errorf("attaching %s to XDP program %d: %w", name, id, err)
		}
		a.links = append(a.links, l)
	}
	return nil
}

// explainLoad tells a kernel that refuses all such programs, to a process that
// has just opened another one, from one whose verifier refuses these: the
// latter must not look like a lack of permission.
func explainLoad(err error) error {
	var verifier *ebpf.VerifierError
	switch {
	case errors.As(err, &verifier):
		return fmt.Errorf("loading the programs of the capture: %v", err)
	case errors.Is(err, unix.EPERM):
		return ErrRefused
	}
	return fmt.Errorf("loading the programs of the capture: %w", err)
}

func (a *attachment) close() error {
	var errs []error
	for _, l := range slices.Backward(a.links) {
		errs = append(errs, l.Close())
	}
	a.links = nil
	return errors.Join(errs...)
}
