package datapath

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// maxTuples is MAX_TUPLES of bpf/bench/harness.bpf.c.
const maxTuples = 1 << 17

// XDP actions of linux/bpf.h.
const (
	xdpPass = 2
	xdpTX   = 3
)

// harness times a program that changes its packet: see bpf/bench.
type harness struct {
	objs  harnessObjects
	frame []byte // the packet that a batch begins with
}

// newHarness returns one that sends the program the frames in turn, which
// differ in addresses, ports and checksums only.
func newHarness(frames [][]byte) (*harness, error) {
	headers, err := headerLen(frames)
	if err != nil {
		return nil, err
	}
	spec, err := loadHarness()
	if err != nil {
		return nil, err
	}
	h := &harness{frame: frames[0]}
	vars := spec.Variables
	err = errors.Join(
		vars["frame_len"].Set(uint32(len(h.frame))),
		vars["options"].Set(headers != plainLen),
		vars["varying"].Set(len(frames) > 1),
	)
	if err != nil {
		return nil, fmt.Errorf("preparing the harness: %w", err)
	}
	if err := spec.LoadAndAssign(&h.objs, nil); err != nil {
		return nil, fmt.Errorf("loading the harness: %w", err)
	}
	var header [80]byte
	copy(header[:], h.frame[:headers])
	tuples := make([]harnessTuple, maxTuples)
	for i, f := range frames {
		tuples[i] = tupleOf(f)
	}
	err = errors.Join(
		h.objs.Header.Set(header),
		h.objs.Tuples.Set(tuples),
		h.objs.TupleCount.Set(uint32(len(frames))),
	)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("filling the harness: %w", err), h.objs.Close())
	}
	return h, nil
}

// headerLen returns how many bytes of the frames the harness restores.
func headerLen(frames [][]byte) (int, error) {
	if len(frames) == 0 || len(frames) > maxTuples {
		return 0, fmt.Errorf("%d flows: the harness takes 1 to %d", len(frames), maxTuples)
	}
	switch n := offTCP + int(frames[0][offTCP+12]>>4)*4; n {
	case plainLen, plainLen + len(synOptions):
		return n, nil
	default:
		return 0, fmt.Errorf("headers of %d bytes: the harness restores %d or %d", n, plainLen, plainLen+len(synOptions))
	}
}

// tupleOf copies the bytes as they are on the wire.
func tupleOf(frame []byte) (t harnessTuple) {
	b := (*[unsafe.Sizeof(t)]byte)(unsafe.Pointer(&t))
	copy(b[0:8], frame[offSource:])
	copy(b[8:12], frame[offTCP:])
	copy(b[12:14], frame[offIPCheck:])
	copy(b[14:16], frame[offTCPCheck:])
	return t
}

// time sends n packets to the program, beginning with the flow of that number,
// and returns the mean nanoseconds that a packet took, harness included, and
// what the program said to the last one.
func (h *harness) time(to *ebpf.Program, n, first int) (float64, uint32, error) {
	if err := h.objs.Target.Put(uint32(0), to); err != nil {
		return 0, 0, fmt.Errorf("aiming the harness: %w", err)
	}
	if err := h.objs.NextTuple.Set(uint32(first)); err != nil {
		return 0, 0, fmt.Errorf("rewinding the harness: %w", err)
	}
	return timeProgram(h.objs.Harness, h.frame, n)
}

func (h *harness) Close() error { return h.objs.Close() }

// errInterrupted means that a signal came while packets were sent: some may
// have been sent twice.
var errInterrupted = errors.New("a signal interrupted the run")

// timeProgram runs a program n times on a frame. The time is the kernel's own,
// in whole nanoseconds, the fraction cut off.
func timeProgram(p *ebpf.Program, frame []byte, n int) (float64, uint32, error) {
	interrupted := false
	action, took, err := p.Benchmark(frame, n, func() { interrupted = true })
	switch {
	case err != nil:
		return 0, 0, fmt.Errorf("running the program: %w", err)
	case interrupted:
		return 0, 0, errInterrupted
	}
	return float64(took.Nanoseconds()), action, nil
}

// onOneCPU runs fn on a thread that stays on one CPU, so that rounds find the
// caches as the rounds before have left them.
func onOneCPU(fn func() error) error {
	done := make(chan error)
	go func() {
		// Never unlocked: the thread ends with the goroutine, and with it its
		// affinity.
		runtime.LockOSThread()
		var one unix.CPUSet
		if err := unix.SchedGetaffinity(0, &one); err != nil {
			done <- fmt.Errorf("reading the CPUs of this thread: %w", err)
			return
		}
		// The last one: the first is where most interrupts are handled.
		last := -1
		for cpu := range len(one) * int(unsafe.Sizeof(one[0])) * 8 {
			if one.IsSet(cpu) {
				last = cpu
			}
		}
		one.Zero()
		one.Set(last)
		if err := unix.SchedSetaffinity(0, &one); err != nil {
			done <- fmt.Errorf("staying on CPU %d: %w", last, err)
			return
		}
		done <- fn()
	}()
	return <-done
}
