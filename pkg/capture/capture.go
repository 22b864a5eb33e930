// Package capture watches the packets of the running XDP program: each as it
// came and as it was sent, with its verdict. A packet socket, and so tcpdump,
// sees nothing of what an XDP program sends or drops.
//
// It stands on two tracing programs (bpf/capture.bpf.c) that exist only while
// somebody captures. They are held by file descriptors of this process alone:
// whichever way it ends, nothing of them stays.
package capture

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// recheck is how often Run looks whether the program is still the one that it
// watches: a daemon that starts exchanges it.
const recheck = 500 * time.Millisecond

// A Packet is one packet's way through the XDP program.
type Packet struct {
	ID      uint64 // 1 for the first that was captured
	Verdict string // "tx_forward", as pgsteer counter show has it
	Action  uint32 // enum xdp_action of linux/bpf.h
	In      Frame  // as it came
	Out     Frame  // as it was sent; its Len is 0 when it was not
}

// A Frame is an Ethernet frame.
type Frame struct {
	Time time.Time
	Len  int    // bytes on the wire
	Data []byte // the first of these; valid until the next packet
}

// Counts are packets since the capture was opened.
type Counts struct {
	Seen     uint64 // that the XDP program got
	Accepted uint64 // of these, by the filter
	Lost     uint64 // of these, because nobody read them in time
}

// A Sink takes what is captured.
type Sink interface {
	// Packet takes one packet, whose bytes it may not keep.
	Packet(*Packet) error
	// Flush is called whenever there is no other packet to be had at once.
	Flush() error
}

// captureMaps are the maps of a capture's own, which outlive what it is attached
// to.
type captureMaps struct {
	Events    *ebpf.Map `ebpf:"events"`
	Scratches *ebpf.Map `ebpf:"scratches"`
	Tallies   *ebpf.Map `ebpf:"tallies"`
}

// A Capture is attached to the XDP program from Open to the end of Run.
type Capture struct {
	cfg      Config
	wanted   verdicts
	maps     captureMaps
	reader   *ringbuf.Reader
	attached *attachment
	boot     time.Time // when CLOCK_MONOTONIC was zero
}

// Open attaches to the program whose link is pinned under cfg.PinPath. The
// error matches ErrNotAttached when there is none, os.ErrPermission when this
// process may not look at it, and ErrRefused when nobody may.
func Open(cfg Config) (*Capture, error) {
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	if cfg.SnapLen == 0 {
		cfg.SnapLen = DefaultSnapLen
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("lifting the limit of locked memory: %w", err)
	}
	c := &Capture{cfg: cfg, boot: bootTime()}
	if err := c.open(); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (c *Capture) open() error {
	target, err := findTarget(c.cfg.PinPath)
	if err != nil {
		return err
	}
	spec, err := loadProbe()
	if err != nil {
		return err
	}
	if err := spec.LoadAndAssign(&c.maps, nil); err != nil {
		return fmt.Errorf("making the maps of the capture: %w", err)
	}
	if c.reader, err = ringbuf.NewReader(c.maps.Events); err != nil {
		return fmt.Errorf("reading the ring: %w", err)
	}
	return c.attach(target)
}

// attach puts the programs of the capture on the target's.
func (c *Capture) attach(target target) error {
	names, err := verdictNames(target.program)
	if err != nil {
		return err
	}
	if c.wanted, err = c.cfg.pick(names); err != nil {
		return err
	}
	a, err := attach(target, &c.cfg, names, c.wanted, &c.maps)
	if err != nil {
		return err
	}
	c.attached = a
	return nil
}

// Interface is the name of the interface that the XDP program is attached to.
func (c *Capture) Interface() string { return c.attached.target.iface }

// Program is the kernel's number of the XDP program.
func (c *Capture) Program() uint32 { return uint32(c.attached.target.program) }

// Run hands packets to the sink until ctx ends, cfg.Count packets were handed
// over, or the sink returns an error. It detaches, hands over what is still in
// the ring, and returns nil when ctx or the count ended it. When the daemon
// exchanges the program Run follows; when the program is detached it returns
// an error that matches ErrNotAttached.
func (c *Capture) Run(ctx context.Context, sink Sink) error {
	stop := context.AfterFunc(ctx, func() {
		_ = c.reader.Flush() // fails only when the reader is closed
	})
	defer stop()
	r := reading{Capture: c, sink: sink}
	err := r.until(ctx)
	detached := c.detach()
	if !errors.Is(err, errEnough) && !r.sinkFailed {
		err = errors.Join(err, r.drain())
	}
	if r.sinkFailed {
		return errors.Join(err, detached) // it is not asked again
	}
	if errors.Is(err, errEnough) {
		err = nil
	}
	return errors.Join(err, detached, sink.Flush())
}

func (c *Capture) detach() error {
	if c.attached == nil {
		return nil
	}
	err := c.attached.close()
	c.attached.links = nil
	if err != nil {
		return fmt.Errorf("detaching: %w", err)
	}
	return nil
}

// Counts reads what was counted so far, also after Run.
func (c *Capture) Counts() (Counts, error) {
	var perCPU []probeTally
	if err := c.maps.Tallies.Lookup(uint32(0), &perCPU); err != nil {
		return Counts{}, fmt.Errorf("reading the counts: %w", err)
	}
	var sum Counts
	for _, t := range perCPU {
		sum.Seen += t.Seen
		sum.Accepted += t.Accepted
		sum.Lost += t.Lost
	}
	return sum, nil
}

// Close detaches and releases everything.
func (c *Capture) Close() error {
	errs := []error{c.detach()}
	if c.reader != nil {
		errs = append(errs, c.reader.Close())
	}
	if c.maps.Events != nil {
		errs = append(errs, c.maps.Events.Close(), c.maps.Scratches.Close(), c.maps.Tallies.Close())
	}
	return errors.Join(errs...)
}

// errEnough ends reading when the count is reached.
var errEnough = errors.New("enough packets")

// reading is one Run.
type reading struct {
	*Capture
	sink       Sink
	record     ringbuf.Record
	packet     Packet
	sinkFailed bool
}

// until reads until ctx ends, which is no error, or something fails.
func (r *reading) until(ctx context.Context) error {
	next := time.Now().Add(recheck)
	r.reader.SetDeadline(next)
	for ctx.Err() == nil {
		err := r.reader.ReadInto(&r.record)
		switch {
		case errors.Is(err, ringbuf.ErrFlushed):
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded):
		case err != nil:
			return fmt.Errorf("reading the ring: %w", err)
		default:
			if err := r.deliver(); err != nil {
				return err
			}
		}
		if now := time.Now(); now.After(next) {
			if err := r.follow(); err != nil {
				return err
			}
			next = now.Add(recheck)
			r.reader.SetDeadline(next)
		}
	}
	return nil
}

// drain delivers what was in the ring when the programs were detached.
func (r *reading) drain() error {
	r.reader.SetDeadline(time.Now())
	for {
		err := r.reader.ReadInto(&r.record)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if errors.Is(err, ringbuf.ErrFlushed) {
			continue
		}
		if err != nil {
			return fmt.Errorf("reading the ring: %w", err)
		}
		if err := r.deliver(); err != nil {
			return err
		}
	}
}

// follow looks whether the program is still the one that is watched, and goes
// over to its successor. What the old one left in the ring goes first: its
// verdicts may have had other numbers.
func (r *reading) follow() error {
	target, err := findTarget(r.cfg.PinPath)
	if err != nil || target.is(r.attached.target) {
		return err
	}
	if err := r.detach(); err != nil {
		return err
	}
	if err := r.drain(); err != nil {
		return err
	}
	err = r.attach(target)
	if errors.Is(err, os.ErrNotExist) {
		return nil // gone again already: the next look finds its successor
	}
	if err != nil {
		return err
	}
	if r.cfg.Notice != nil {
		r.cfg.Notice(fmt.Sprintf("the XDP program was exchanged; now capturing from program %d", r.Program()))
	}
	return nil
}

// deliver decodes the record at hand and gives it to the sink.
func (r *reading) deliver() error {
	id := r.packet.ID + 1
	if err := r.decode(r.record.RawSample, &r.packet); err != nil {
		return err
	}
	r.packet.ID = id
	err := r.sink.Packet(&r.packet)
	if err == nil && r.record.Remaining == 0 {
		err = r.sink.Flush()
	}
	if err != nil {
		r.sinkFailed = true
		return err
	}
	if r.cfg.Count > 0 && id == r.cfg.Count {
		return errEnough
	}
	return nil
}

// eventSize is what precedes the bytes of the packet.
const eventSize = int(unsafe.Sizeof(probeEvent{}))

// decode reads a record of the ring; the packet's bytes are those of the record.
func (c *Capture) decode(record []byte, p *Packet) error {
	if len(record) < eventSize {
		return fmt.Errorf("a record of %d bytes in the ring", len(record))
	}
	var e probeEvent
	if _, err := binary.Decode(record, binary.NativeEndian, &e); err != nil {
		return fmt.Errorf("decoding a record of the ring: %w", err)
	}
	data := record[eventSize:]
	if uint64(e.In.Captured)+uint64(e.Out.Captured) != uint64(len(data)) {
		return fmt.Errorf("a record of %d bytes in the ring says that %d and %d follow", len(record), e.In.Captured, e.Out.Captured)
	}
	*p = Packet{
		Verdict: c.wanted[e.Verdict],
		Action:  e.Action,
		In:      c.frame(e.Received, e.In.Len, data[:e.In.Captured]),
		Out:     c.frame(e.Left, e.Out.Len, data[e.In.Captured:][:e.Out.Captured]),
	}
	return nil
}

func (c *Capture) frame(at uint64, size uint32, data []byte) Frame {
	return Frame{Time: c.boot.Add(time.Duration(at)), Len: int(size), Data: data}
}

// bootTime is the wall clock's time when CLOCK_MONOTONIC, which the programs
// read, was zero.
func bootTime() time.Time {
	var ts unix.Timespec
	// Fails only for a clock that does not exist.
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return time.Now().Round(0).Add(-time.Duration(ts.Nano()))
}
