package xdp

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// A gatherer looks up many keys of a hash by one system call: a program that
// the kernel is asked to run, with the keys as its packet. A million lookups
// one by one take more than 10 s, in this way less than one (measured). It is
// put together here and not in C because it fits any table, also one of an
// earlier layout that C no longer knows. It only reads.
type gatherer struct {
	prog      *ebpf.Program
	keySize   int
	valueSize int
	valueAt   int // in an item: the key, padded; whether it was found; the value
	stride    int // bytes an item
	batch     int // items a run
}

// gatherBytes is how much travels in a run: what fits into the one page that a
// kernel before 5.18 gives the test packet, beside 256 bytes of headroom and
// some 320 for the kernel itself.
const gatherBytes = 3072

func align8(n int) int { return (n + 7) &^ 7 }

// newGatherer makes one for a hash. Its values must not hold locks.
func newGatherer(m *ebpf.Map) (*gatherer, error) {
	g := &gatherer{keySize: int(m.KeySize()), valueSize: int(m.ValueSize())}
	g.valueAt = align8(g.keySize) + 8
	g.stride = g.valueAt + align8(g.valueSize)
	if g.batch = gatherBytes / g.stride; g.batch == 0 {
		return nil, fmt.Errorf("entries of %d bytes are too long to be looked up together", g.stride)
	}
	var err error
	g.prog, err = ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "gather", Type: ebpf.XDP, License: "Dual BSD/GPL", Instructions: g.instructions(m.FD()),
	})
	if err != nil {
		return nil, fmt.Errorf("loading the program that looks up flows: %w", err)
	}
	return g, nil
}

// Close may be called on nil.
func (g *gatherer) Close() error {
	if g == nil {
		return nil
	}
	return g.prog.Close()
}

// instructions are an unrolled loop over the items.
func (g *gatherer) instructions(fd int) asm.Instructions {
	const data, end = asm.R7, asm.R8
	code := asm.Instructions{
		asm.LoadMem(data, asm.R1, 0, asm.Word), // ctx->data
		asm.LoadMem(end, asm.R1, 4, asm.Word),  // ctx->data_end
		asm.Mov.Reg(asm.R2, data),
		asm.Add.Imm(asm.R2, int32(g.batch*g.stride)),
		asm.Mov.Imm(asm.R0, 0), // XDP_ABORTED
		asm.JGT.Reg(asm.R2, end, "out"),
	}
	for i := range g.batch {
		item, next := i*g.stride, fmt.Sprintf("after%d", i)
		code = append(code,
			asm.LoadMapPtr(asm.R1, fd),
			asm.Mov.Reg(asm.R2, data),
			asm.Add.Imm(asm.R2, int32(item)),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, next),
		)
		for at := 0; at < g.valueSize; {
			size := asm.DWord
			for size.Sizeof() > g.valueSize-at {
				size = map[asm.Size]asm.Size{asm.DWord: asm.Word, asm.Word: asm.Half, asm.Half: asm.Byte}[size]
			}
			code = append(code,
				asm.LoadMem(asm.R1, asm.R0, int16(at), size),
				asm.StoreMem(data, int16(item+g.valueAt+at), asm.R1, size))
			at += size.Sizeof()
		}
		code = append(code,
			asm.StoreImm(data, int16(item+g.valueAt-8), 1, asm.Word),
			asm.Mov.Imm(asm.R0, 0).WithSymbol(next))
	}
	return append(code,
		asm.Mov.Imm(asm.R0, xdpPass),
		asm.Return().WithSymbol("out"))
}

// look looks up keys, which lie one behind the other, and calls fn for each in
// turn with its value, or nil when there is none, until fn returns false. The
// value is overwritten after the call.
func (g *gatherer) look(keys []byte, fn func(i int, value []byte) bool) error {
	in := make([]byte, g.batch*g.stride)
	out := make([]byte, len(in))
	for base := 0; base*g.keySize < len(keys); base += g.batch {
		clear(in)
		n := min(g.batch, len(keys)/g.keySize-base)
		for i := range n {
			copy(in[i*g.stride:], keys[(base+i)*g.keySize:][:g.keySize])
		}
		opts := ebpf.RunOptions{Data: in, DataOut: out}
		verdict, err := g.prog.Run(&opts)
		if err != nil {
			return fmt.Errorf("looking up flows: %w", err)
		}
		if verdict != xdpPass || len(opts.DataOut) != len(in) {
			return errors.New("looking up flows: the program did not take the request")
		}
		for i := range n {
			item := opts.DataOut[i*g.stride:][:g.stride]
			var value []byte
			if item[g.valueAt-8] == 1 {
				value = item[g.valueAt:][:g.valueSize]
			}
			if !fn(base+i, value) {
				return nil
			}
		}
	}
	return nil
}
