package capture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
)

// MaxSnapLen is SNAPLEN_MAX of bpf/capture.bpf.c.
const MaxSnapLen = 4096

// DefaultSnapLen has room for the headers and the beginning of a query.
const DefaultSnapLen = 256

// A Side says which of a packet's two looks are wanted.
type Side int

// The sides.
const (
	Both Side = iota // as it came, and as it was sent if it was
	In               // as it came
	Out              // as it was sent: only packets that were
)

// ParseSide reads "in", "out" or "both".
func ParseSide(s string) (Side, error) {
	if i := slices.Index(sideNames[:], s); i >= 0 {
		return Side(i), nil
	}
	return 0, fmt.Errorf("unknown side %q; want in, out or both", s)
}

var sideNames = [...]string{Both: "both", In: "in", Out: "out"}

// String returns "in", "out" or "both".
func (s Side) String() string { return sideNames[s] }

// Config says what is captured. A packet must pass all of the filters.
type Config struct {
	// PinPath is the directory in which pgsteerd pinned its program.
	PinPath string
	// SnapLen is how many bytes of a frame are kept, 1 to MaxSnapLen;
	// DefaultSnapLen when it is zero.
	SnapLen int
	Side    Side
	// Verdicts are patterns of package path, such as "drop_*". Without any,
	// packets that were sent or dropped are captured, but not those that went
	// on to the kernel, which a packet socket sees.
	Verdicts []string
	// All captures packets of every verdict.
	All bool
	// Host wants packets from or to an address in this prefix, whether before
	// or after they were rewritten; the zero value wants all.
	Host netip.Prefix
	// Port wants packets from or to this TCP or UDP port, likewise.
	Port uint16
	// Count ends the capture after so many packets; 0 never does.
	Count uint64
	// Notice is told what an operator should know of meanwhile: that the
	// program was exchanged. Nobody is told without it.
	Notice func(text string)
}

// Check says what is wrong with a configuration, as Open would.
func (c *Config) Check() error {
	if c.SnapLen < 0 || c.SnapLen > MaxSnapLen {
		return fmt.Errorf("snapshot length %d is not from 1 to %d bytes", c.SnapLen, MaxSnapLen)
	}
	if c.All && len(c.Verdicts) > 0 {
		return errors.New("either all verdicts are wanted or those of a pattern")
	}
	for _, pattern := range c.Verdicts {
		if _, err := path.Match(pattern, ""); err != nil {
			return fmt.Errorf("verdict pattern %q: %w", pattern, err)
		}
	}
	// IPv4 is a part of IPv6 to the programs.
	if p := c.Host; p.IsValid() && p.Bits() < 96 && p.Contains(netip.AddrFrom16(netip.IPv4Unspecified().As16())) {
		return fmt.Errorf("host %s is too wide a prefix: it holds all of IPv4", p)
	}
	return nil
}

// String is the filter in words: "side both, verdict drop_*, host 10.0.0.0/8".
func (c *Config) String() string {
	words := []string{"side " + c.Side.String()}
	switch {
	case c.All:
		words = append(words, "every verdict")
	case len(c.Verdicts) > 0:
		words = append(words, "verdict "+strings.Join(c.Verdicts, " or "))
	default:
		words = append(words, "verdict "+strings.Join(defaultVerdicts, " or "))
	}
	switch {
	case c.Host.IsValid() && c.Host.IsSingleIP():
		words = append(words, "host "+c.Host.Addr().String())
	case c.Host.IsValid():
		words = append(words, "host "+c.Host.String())
	}
	if c.Port != 0 {
		words = append(words, fmt.Sprintf("port %d", c.Port))
	}
	return strings.Join(words, ", ")
}

// defaultVerdicts are those whose packets a packet socket does not see.
var defaultVerdicts = []string{"tx_*", "drop_*"}

// verdicts are names of verdicts by the program's numbers.
type verdicts map[uint32]string

// verdictsMax is VERDICTS_MAX of bpf/capture.bpf.c.
const verdictsMax = 256

// pick takes those that are wanted from the verdicts that the program has.
func (c *Config) pick(names verdicts) (verdicts, error) {
	patterns := c.Verdicts
	switch {
	case c.All:
		patterns = []string{"*"}
	case len(patterns) == 0:
		patterns = defaultVerdicts
	}
	for verdict, name := range names {
		if verdict >= verdictsMax {
			return nil, fmt.Errorf("verdict %s has the number %d, which is more than a capture knows", name, verdict)
		}
	}
	w := make(verdicts)
	for _, pattern := range patterns {
		found := false
		for verdict, name := range names {
			// The patterns were checked.
			if ok, _ := path.Match(pattern, name); !ok {
				continue
			}
			found = true
			if c.Side != Out || strings.HasPrefix(name, "tx_") {
				w[verdict] = name
			}
		}
		if !found {
			return nil, fmt.Errorf("no verdict is like %q; there are %s", pattern, strings.Join(slices.Sorted(maps.Values(names)), ", "))
		}
	}
	if len(w) == 0 {
		return nil, fmt.Errorf("packets with a verdict like %s are not sent, and only those that are have a side out", strings.Join(patterns, " or "))
	}
	return w, nil
}

// unnoted is the verdict of packets that leave the program early, without a
// note of it.
const unnoted = "pass_not_vip"

// number is the program's number of the verdict with that name.
func (v verdicts) number(name string) (uint32, error) {
	for number, n := range v {
		if n == name {
			return number, nil
		}
	}
	return 0, fmt.Errorf("the XDP program cannot be watched: it has no verdict %s", name)
}

// setKnobs gives the filter to the programs of the capture. Of all verdicts,
// names, those in wanted are.
func (c *Config) setKnobs(spec *ebpf.CollectionSpec, names, wanted verdicts) error {
	early, err := names.number(unnoted)
	if err != nil {
		return err
	}
	in, out := uint32(c.SnapLen), uint32(c.SnapLen)
	switch c.Side {
	case In:
		out = 0
	case Out:
		in = 0
	}
	var flags [verdictsMax]bool
	for verdict := range wanted {
		flags[verdict] = true
	}
	host, mask := c.hostMask()
	for _, v := range []struct {
		name  string
		value any
	}{
		{probeVarSnaplenIn, in},
		{probeVarSnaplenOut, out},
		{probeVarWanted, flags},
		{probeVarUnnoted, early},
		{probeVarLastVerdict, uint32(len(names))},
		{probeVarHost, host},
		{probeVarHostMask, mask},
		{probeVarPort, binary.NativeEndian.Uint16([]byte{byte(c.Port >> 8), byte(c.Port)})},
	} {
		if err := spec.Variables[v.name].Set(v.value); err != nil {
			return fmt.Errorf("setting %s: %w", v.name, err)
		}
	}
	return nil
}

// hostMask is the prefix as the programs compare it: IPv4 as ::ffff:a.b.c.d.
func (c *Config) hostMask() (host, mask [16]byte) {
	if !c.Host.IsValid() {
		return host, mask
	}
	bits := c.Host.Bits()
	if c.Host.Addr().Is4() {
		bits += 96
	}
	host = c.Host.Masked().Addr().As16()
	for i := range bits {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return host, mask
}
