package xdp

import (
	"errors"
	"fmt"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// An adder changes counts in the loads while the program does: writing a whole
// entry from here would undo what was counted between reading and writing.
type adder struct{ prog *ebpf.Program }

// addRequest is the test packet of one run.
type addRequest struct {
	Service uint32
	Offset  uint32 // from the first count, bytes
	Delta   int64
}

// countsAt is where the counts of a loadRow begin: behind the lock.
const countsAt = int32(unsafe.Offsetof(loadRow{}.Active))

func newAdder(loads *ebpf.Map) (*adder, error) {
	const data, end = asm.R7, asm.R8
	last := int32(loads.ValueSize()) - countsAt - 8
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "add", Type: ebpf.XDP, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.LoadMem(data, asm.R1, 0, asm.Word), // ctx->data
			asm.LoadMem(end, asm.R1, 4, asm.Word),  // ctx->data_end
			asm.Mov.Reg(asm.R2, data),
			asm.Add.Imm(asm.R2, int32(unsafe.Sizeof(addRequest{}))),
			asm.Mov.Imm(asm.R0, 0), // XDP_ABORTED
			asm.JGT.Reg(asm.R2, end, "out"),
			asm.LoadMapPtr(asm.R1, loads.FD()),
			asm.Mov.Reg(asm.R2, data),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "out"),
			asm.Mov.Reg(asm.R3, asm.R0),
			asm.Mov.Imm(asm.R0, 0),
			asm.LoadMem(asm.R1, data, 4, asm.Word),
			asm.And.Imm(asm.R1, 0x7ffffff8),
			asm.JGT.Imm(asm.R1, last, "out"),
			asm.Add.Reg(asm.R3, asm.R1),
			asm.LoadMem(asm.R2, data, 8, asm.DWord),
			asm.AddAtomic.Mem(asm.R3, asm.R2, asm.DWord, int16(countsAt)),
			asm.Mov.Imm(asm.R0, xdpPass),
			asm.Return().WithSymbol("out"),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("loading the program that corrects counts: %w", err)
	}
	return &adder{prog}, nil
}

// Close may be called on nil.
func (a *adder) Close() error {
	if a == nil {
		return nil
	}
	return a.prog.Close()
}

func (a *adder) add(service, offset uint32, delta int64) error {
	if _, err := control(a.prog, []addRequest{{service, offset, delta}}); err != nil {
		return fmt.Errorf("correcting a count: %w", err)
	}
	return nil
}

// active adds to the active count of a backend.
func (a *adder) active(backend uint32, delta int64) error {
	return a.add(backend/lb.MaxBackends, backend%lb.MaxBackends*8, delta)
}

// totals adds to a service's other counts what they have grown by.
func (a *adder) totals(service uint32, was, is *loadRow) error {
	var errs []error
	counts := func(offset uintptr, was, is *[lb.MaxBackends]uint64) {
		for i := range is {
			if grown := int64(is[i] - was[i]); grown != 0 {
				errs = append(errs, a.add(service, uint32(offset)-uint32(countsAt)+uint32(i)*8, grown))
			}
		}
	}
	counts(unsafe.Offsetof(is.Total), &was.Total, &is.Total)
	counts(unsafe.Offsetof(is.Refused), &was.Refused, &is.Refused)
	counts(unsafe.Offsetof(is.Redispatched), &was.Redispatched, &is.Redispatched)
	counts(unsafe.Offsetof(is.Resets), &was.Resets, &is.Resets)
	counts(unsafe.Offsetof(is.Evicted), &was.Evicted, &is.Evicted)
	return errors.Join(errs...)
}
