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
	verdictEnum = "verdict"  // the enum of its verdicts
	verdictsEnd = "VERDICTS" // the enum's last value, which is their number
)

// target is what there is to watch: the program that the packets come to. What
// it hands them on to by a tail call returns to where that one was called.
type target struct {
	ifindex int
	iface   string // "if7" when it is in another network namespace
	program ebpf.ProgramID
}

// is reports whether two targets are one: a name depends on who asks.
func (t target) is(other target) bool {
	return t.ifindex == other.ifindex && t.program == other.program
}

// findTarget finds the running program through the pins.
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
		ifindex: int(xdp.Ifindex),
		iface:   fmt.Sprintf("if%d", xdp.Ifindex),
		program: info.Program,
	}
	// Numbers of interfaces mean something in their own namespace only.
	if iface, err := netlink.LinkByIndex(t.ifindex); err == nil {
		if x := iface.Attrs().Xdp; x != nil && x.ProgId == uint32(info.Program) {
			t.iface = iface.Attrs().Name
		}
	}
	return t, nil
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
	var enum *btf.Enum
	if err := spec.TypeByName(verdictEnum, &enum); err != nil {
		return nil, fmt.Errorf("XDP program %d cannot be watched; it is not pgsteerd's: %w", id, err)
	}
	names := make(verdicts, len(enum.Values))
	for _, v := range enum.Values {
		if v.Name != verdictsEnd {
			names[uint32(v.Value)] = strings.ToLower(v.Name)
		}
	}
	return names, nil
}

// attachment is the programs of a capture on that of a target.
type attachment struct {
	target target
	links  []link.Link // to be closed in the opposite order
}

// attach puts the programs of the capture on the target's. The exit comes before
// the entry and stays until after it: a packet that was noted at the entry and
// not crossed out at the exit would be taken for another one.
func attach(t target, cfg *Config, names, wanted verdicts, maps *captureMaps) (_ *attachment, err error) {
	program, err := ebpf.NewProgramFromID(t.program)
	if err != nil {
		return nil, fmt.Errorf("opening XDP program %d: %w", t.program, err)
	}
	defer program.Close()
	noted, err := openVerdicts(cfg.PinPath, len(names))
	if err != nil {
		return nil, err
	}
	defer noted.Close()
	spec, err := loadProbe()
	if err != nil {
		return nil, err
	}
	if err := cfg.setKnobs(spec, names, wanted); err != nil {
		return nil, err
	}
	spec.Maps[probeMapVerdicts].MaxEntries = noted.MaxEntries()
	for _, p := range spec.Programs {
		p.AttachTarget = program
	}
	loaded, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{
		MapReplacements: map[string]*ebpf.Map{
			probeMapEvents:    maps.Events,
			probeMapScratches: maps.Scratches,
			probeMapTallies:   maps.Tallies,
			probeMapVerdicts:  noted,
		},
	})
	if err != nil {
		return nil, explainLoad(err)
	}
	defer loaded.Close() // the links hold what they need
	a := &attachment{target: t}
	for _, name := range []string{probeProgPacketOut, probeProgPacketIn} {
		l, err := link.AttachTracing(link.TracingOptions{Program: loaded.Programs[name]})
		if err != nil {
			return nil, errors.Join(fmt.Errorf("attaching %s to XDP program %d: %w", name, t.program, err), a.close())
		}
		a.links = append(a.links, l)
	}
	return a, nil
}

// openVerdicts opens the table in which the program that is pinned counts its
// verdicts. Behind them it has to have the last one.
func openVerdicts(pinPath string, count int) (*ebpf.Map, error) {
	m, err := ebpf.LoadPinnedMap(filepath.Join(pinPath, probeMapVerdicts), nil)
	if err != nil {
		return nil, fmt.Errorf("opening the pinned verdicts in %s: %w", pinPath, err)
	}
	if int(m.MaxEntries()) != count+1 {
		return nil, errors.Join(errors.New("the XDP program cannot be watched: it is an older pgsteerd's"), m.Close())
	}
	return m, nil
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
