// Package xdp is the datapath: it loads, attaches and feeds the XDP program
// of bpf/ and reads back what it counted. It implements lb.Datapath and is the
// only importer of cilium/ebpf.
//
// All state that matters lives in pinned maps and a pinned link. The daemon
// may die and come back, or be replaced by a newer one, without a packet or a
// flow being lost: Open adopts what it finds.
package xdp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

var _ lb.Datapath = (*Balancer)(nil)

// Timeouts says for how long an idle flow is remembered, by what it has seen.
type Timeouts struct {
	SYN         time.Duration // handshake not complete
	Established time.Duration // no FIN seen
	FIN         time.Duration // one side has closed
	TimeWait    time.Duration // both have, the backend first: it holds the port
	Closed      time.Duration // both have, the client first: the backend is free
	Reset       time.Duration // reset by either side
}

// DefaultTimeouts are for poolers, whose clients idle for hours: Linux' own
// keepalive comes after 2 h 11 min, so anything below that breaks sessions.
// TimeWait is Linux' TCP_TIMEWAIT_LEN. Who closes second forgets at the last
// acknowledgement; Closed is long enough for that to be lost and sent again.
var DefaultTimeouts = Timeouts{
	SYN:         10 * time.Second,
	Established: 24 * time.Hour,
	FIN:         120 * time.Second,
	TimeWait:    60 * time.Second,
	Closed:      3 * time.Second,
	Reset:       10 * time.Second,
}

// Config says where and how the program runs. The zero value of each optional
// field takes the default that its comment names.
type Config struct {
	Interface string // the LAN interface
	// Mode is "auto" (native, else generic with a warning; the default),
	// "native" or "generic".
	Mode string
	// TX is "tx" (XDP_TX, the default) or "redirect" (bpf_redirect to the same
	// interface), for virtual peers that take only one of them.
	TX string
	// PinPath is a directory on a BPF file system, made if it is missing.
	PinPath string
	// FlowTableSize is the number of flow table entries, two per flow; 524288
	// is the default. Table memory is in Stats.
	FlowTableSize uint32
	// HalfOpenFlows is how many flows may be half-open, a power of two; the
	// oldest gives way. 32768 is the default.
	HalfOpenFlows uint32
	// SYNRatePerSource and SYNRateTotal bound the flows that are opened, per
	// second, by one source and by all that are not known; 0 is no limit.
	SYNRatePerSource, SYNRateTotal uint32
	// ResetRate bounds the resets that answer segments of unknown flows, per
	// second; a fifth of it may come at once. 20,000 is the default.
	ResetRate uint32
	// Replicate has the program tell of each change of a flow, see Changes: there
	// is another node, which is to go on with the flows. Flows to an address
	// that this node has no lease on are kept then, whatever their age.
	Replicate bool
	// IPv6 has the program for IPv6 loaded, with tables of the same size.
	IPv6 bool
	// SNATLow and SNATHigh bound the ports used towards backends, inclusive;
	// 10240 and 65535 are the default.
	SNATLow, SNATHigh uint16
	Timeouts          Timeouts
	// ProbeInterval and ProbeCount say how often the ends of an established
	// flow that was idle for its time are asked whether they are alive, before
	// it is given up; 10 s and 5 are the default.
	ProbeInterval time.Duration
	ProbeCount    int
	SweepInterval time.Duration // between two passes over the flow table; 1 s

	eventRing int // bytes of the ring of changes, if it is not what bpf/config.h says
	Log       *slog.Logger
}

func (c *Config) setDefaults() error {
	if c.Mode == "" {
		c.Mode = ModeAuto
	}
	if c.TX == "" {
		c.TX = "tx"
	}
	if c.FlowTableSize == 0 {
		c.FlowTableSize = 524288
	}
	if c.SNATLow == 0 && c.SNATHigh == 0 {
		c.SNATLow, c.SNATHigh = 10240, 65535
	}
	if c.ResetRate == 0 {
		c.ResetRate = 20000
	}
	if c.HalfOpenFlows == 0 {
		c.HalfOpenFlows = 32768
	}
	if c.Timeouts == (Timeouts{}) {
		c.Timeouts = DefaultTimeouts
	}
	if c.ProbeInterval == 0 {
		c.ProbeInterval = 10 * time.Second
	}
	if c.ProbeCount == 0 {
		c.ProbeCount = 5
	}
	if c.SweepInterval == 0 {
		c.SweepInterval = time.Second
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	switch {
	case c.Mode != ModeAuto && c.Mode != ModeNative && c.Mode != ModeGeneric:
		return fmt.Errorf("unknown XDP mode %q", c.Mode)
	case c.TX != "tx" && c.TX != "redirect":
		return fmt.Errorf("unknown way to send %q", c.TX)
	case c.SNATLow == 0 || c.SNATLow > c.SNATHigh:
		return fmt.Errorf("SNAT ports %d-%d are not a range", c.SNATLow, c.SNATHigh)
	case c.HalfOpenFlows&(c.HalfOpenFlows-1) != 0:
		return fmt.Errorf("%d half-open flows are no power of two", c.HalfOpenFlows)
	case c.PinPath == "":
		return errors.New("no pin path")
	}
	return nil
}

// Balancer owns the program on one interface.
type Balancer struct {
	cfg     Config
	log     *slog.Logger
	progs   programs
	progs6  programs6
	tables  tables
	upgrade upgrade // while Open is at it
	link    link.Link
	iface   netlink.Link
	mode    string
	frags   bool            // packets may come in several pieces
	ns      netns.NsHandle  // where Open was called: Run's goroutines are on other threads
	nl      *netlink.Handle // bound to ns

	mu         sync.Mutex // guards the maps that Go writes, and what follows
	resets     *resetter
	placed     []placedBackend
	neighbours map[netip.Addr]macAddr
	took       map[netip.Addr]uint32     // since when this node answers for an address; age units
	trouble    map[netip.AddrPort]string // why backends have no next hop, as it was logged

	audit  atomic.Pointer[auditResult]
	probes prober // the sweeper's
	drift  map[uint32]int64
}

// placedBackend is a backend with its place in the tables.
type placedBackend struct {
	service string
	vip     netip.AddrPort // of the service
	name    string
	addr    netip.AddrPort
	id      uint32 // of the service
	slot    uint32

	weight    uint16
	slowUntil time.Time     // its share grows until then
	slowStart time.Duration // and has done so for that long by then
}

func (p placedBackend) index() uint32 { return index(p.id, p.slot) }

// Open loads the program, adopting pinned maps and a pinned link of an earlier
// life, and attaches it. It fails, having changed nothing on the interface,
// when that does not exist, carries somebody else's program, or the pins do
// not fit.
func Open(cfg Config) (*Balancer, error) {
	b, err := prepared(cfg)
	if err != nil {
		return nil, err
	}
	if err := b.open(); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

// prepared is a Balancer that has looked around but changed nothing.
func prepared(cfg Config) (*Balancer, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	iface, err := netlink.LinkByName(cfg.Interface)
	if err != nil {
		return nil, fmt.Errorf("finding interface %s: %w", cfg.Interface, err)
	}
	if len(iface.Attrs().HardwareAddr) != 6 {
		return nil, fmt.Errorf("interface %s is not Ethernet", cfg.Interface)
	}
	if err := checkForeign(iface, cfg.PinPath); err != nil {
		return nil, err
	}
	if err := makePinDir(cfg.PinPath); err != nil {
		return nil, err
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("lifting the limit of locked memory: %w", err)
	}
	warnings, err := CheckKernel()
	if err != nil {
		return nil, err
	}
	for _, w := range warnings {
		cfg.Log.Warn(w)
	}
	b := &Balancer{
		cfg:        cfg,
		log:        cfg.Log,
		upgrade:    upgrade{dir: cfg.PinPath},
		iface:      iface,
		ns:         netns.None(),
		neighbours: make(map[netip.Addr]macAddr),
		took:       make(map[netip.Addr]uint32),
		drift:      make(map[uint32]int64),
		resets:     newResetter(),
	}
	// In generic mode the kernel puts the pieces together.
	if cfg.Mode != ModeGeneric {
		_, b.frags = needsFrags(iface.Attrs().MTU)
	}
	if err := b.acquire(); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

func (b *Balancer) acquire() error {
	var err error
	if b.ns, err = netns.Get(); err != nil {
		return fmt.Errorf("opening the network namespace: %w", err)
	}
	if b.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("opening a netlink socket: %w", err)
	}
	b.resets.raw, err = openRawSockets()
	return err
}

func (b *Balancer) open() error {
	for _, s := range b.steps() {
		if err := s.do(); err != nil {
			return errors.Join(fmt.Errorf("%s: %w", s.what, err), b.abandon())
		}
	}
	var err error
	b.placed, err = b.tables.placements()
	return errors.Join(err, b.upgrade.Close())
}

// Mode returns how the program is attached: "native" or "generic".
func (b *Balancer) Mode() string { return b.mode }

// Run keeps next hops' MAC addresses current, sweeps the flow table and resets
// the flows of dead backends until ctx ends; it then returns nil. The program forwards with or without it.
func (b *Balancer) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return b.watchNeighbours(ctx) })
	g.Go(func() error { return b.sweepLoop(ctx) })
	g.Go(func() error { return b.resetLoop(ctx) })
	g.Go(func() error { return b.slowStartLoop(ctx) })
	return g.Wait()
}

// Close lets go of the program, which stays attached and pinned with its flows.
func (b *Balancer) Close() error {
	if b.nl != nil {
		b.nl.Close()
	}
	var errs []error
	if b.ns.IsOpen() {
		errs = append(errs, b.ns.Close())
	}
	errs = append(errs, b.resets.raw.Close())
	if b.link != nil {
		errs = append(errs, b.link.Close())
	}
	errs = append(errs, b.upgrade.Close(), b.progs.Close(), b.progs6.Close(), b.tables.Close())
	return errors.Join(errs...)
}

// makePinDir makes the directory, and makes sure that it can hold pins: on
// any other file system pinning would fail with a puzzling EPERM.
func makePinDir(path string) error {
	if err := os.MkdirAll(path, 0o750); err != nil {
		return fmt.Errorf("making the pin directory: %w", err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return fmt.Errorf("looking at %s: %w", path, err)
	}
	if int64(fs.Type) != unix.BPF_FS_MAGIC {
		_ = os.Remove(path) // only if it is empty: ours
		return fmt.Errorf("%s is not on a BPF file system (mount one: mount -t bpf bpf /sys/fs/bpf)", path)
	}
	return nil
}

func linkPin(pinPath string) string { return filepath.Join(pinPath, "link") }
