package pooler

// Sizes of the loop's buffers, in bytes.
const (
	// arenaSize is what one round may receive at the most. At 1 MB a round
	// lasts well below a millisecond, so batching adds no delay that shows.
	arenaSize = 1 << 20
	// readSize is what one connection may deliver in its turn: large enough
	// that big results cost few system calls (16-64 KB reads halved the CPU
	// time of 15 KB results against 4 KB ones when measured), small enough
	// that one bulk COPY does not hold up thousands of short queries.
	readSize = 32 << 10
)

// arena is the memory of one round: what was received, and what the machine
// composes itself. Slices of it are valid until reset.
type arena struct {
	buf []byte
	off int
}

// window returns room for a receive of up to n bytes, or nil if less is left.
// What was received is kept by a call of commit.
func (a *arena) window(n int) []byte {
	if len(a.buf)-a.off < n {
		return nil
	}
	return a.buf[a.off : a.off+n]
}

// commit keeps the first n bytes of the last window.
func (a *arena) commit(n int) { a.off += n }

// scratch returns an empty slice to append at most n bytes to. When the arena
// is full it comes from the heap.
func (a *arena) scratch(n int) []byte {
	if len(a.buf)-a.off < n {
		return make([]byte, 0, n)
	}
	s := a.buf[a.off : a.off : a.off+n]
	a.off += n
	return s
}

// copied returns a copy of b.
func (a *arena) copied(b []byte) []byte { return append(a.scratch(len(b)), b...) }

// extend appends b to s in place if s ends where the arena's free room begins.
func (a *arena) extend(s, b []byte) ([]byte, bool) {
	if len(s) == 0 || a.off == 0 || a.off+len(b) > len(a.buf) || &s[len(s)-1] != &a.buf[a.off-1] {
		return s, false
	}
	a.off += copy(a.buf[a.off:], b)
	// The slice may have been cut to its length: make it anew from the arena.
	return a.buf[a.off-len(s)-len(b) : a.off], true
}

func (a *arena) reset() { a.off = 0 }
