package pooler

// expectKind says what answer is due and what becomes of it.
type expectKind uint8

const (
	// expectReplies: n answers to messages of the extended protocol, relayed.
	expectReplies expectKind = iota
	// expectUnnamed: the answer to the client's Parse of the unnamed statement
	// with number seq.
	expectUnnamed
	// expectParse: the answer to a Parse that gave the client's name a
	// statement and this server the statement.
	expectParse
	// expectDuplicate: the answer to a Parse of a name that the client has
	// already given. The server is made to refuse it, so that the flight fails
	// as it would have; its error names our statement and is reworded.
	expectDuplicate
	// expectOwnParse, expectOwnUnnamed, expectOwnClose: answers to messages of
	// ours, swallowed.
	expectOwnParse
	expectOwnUnnamed
	expectOwnClose
	// fakeParse, fakeClose: no answer is due; ours is sent when everything
	// before it has been answered.
	fakeParse
	fakeClose
	// expectSync, expectQuery: a ReadyForQuery, relayed. Query is also a
	// FunctionCall.
	expectSync
	expectQuery
	// expectOwnQuery: the answers to a simple query of ours, swallowed.
	expectOwnQuery
	// copyEnd marks where the client ended a COPY FROM STDIN: what it sent
	// between the start of the COPY and here, the server ignores or refuses.
	copyEnd
)

// The statements that the outcome of a message leaves uncertain while it has
// not been answered.
const (
	unsureNamed = iota
	unsureUnnamed
	numUnsure
)

// unsure returns what is uncertain while an entry stands in the list.
func (x *expect) unsure() (which int, yes bool) {
	switch x.kind {
	case expectUnnamed, expectOwnUnnamed:
		return unsureUnnamed, true
	case expectParse, expectDuplicate, expectOwnParse, fakeParse, fakeClose:
		return unsureNamed, true
	case expectOwnClose:
		if x.st == nil {
			return unsureUnnamed, true
		}
		return unsureNamed, true
	}
	return 0, false
}

// extended reports whether the answer belongs to the extended protocol, where
// an error makes the server skip everything up to the next Sync.
func (k expectKind) extended() bool { return k <= expectOwnClose }

// expect is one entry, or a run of equal ones, in the list of answers that a
// server owes.
type expect struct {
	kind expectKind
	n    uint32 // how many, for expectReplies
	seq  uint64 // which unnamed statement
	st   *stmt  // which named one
	name string // the client's name for it
}

// maxExpected bounds the list. A client that pipelines deeper waits: its socket
// is left unread until answers have come. An entry has 48 bytes, so this is at
// the most 400 KB a server.
const maxExpected = 8192

// expects is the list, a ring.
type expects struct {
	ring []expect // length a power of two
	head int
	n    int
	// How many entries leave statements uncertain: in flights whose Sync was
	// sent, and in the flight since. Within a flight nothing need be certain:
	// if a message fails, those behind it are skipped.
	closed, open [numUnsure]int
}

// unsure reports whether an earlier flight may yet fail in a way that changes
// which statements there are.
func (e *expects) unsure(which int) bool { return e.closed[which] > 0 }

// closeFlight is called for a Sync, and for a query, which ends a flight too.
func (e *expects) closeFlight() {
	for i := range e.open {
		e.closed[i] += e.open[i]
		e.open[i] = 0
	}
}

// gone accounts for an entry that leaves the list. Those of earlier flights
// leave first.
func (e *expects) gone(x *expect) {
	which, yes := x.unsure()
	switch {
	case !yes:
	case e.closed[which] > 0:
		e.closed[which]--
	default:
		e.open[which]--
	}
}

func (e *expects) at(i int) *expect { return &e.ring[(e.head+i)&(len(e.ring)-1)] }

func (e *expects) push(x expect) {
	switch which, yes := x.unsure(); {
	case yes:
		e.open[which]++
	case x.kind == expectSync || x.kind == expectQuery:
		e.closeFlight()
	}
	if x.kind == expectReplies && e.n > 0 {
		if last := e.at(e.n - 1); last.kind == expectReplies {
			last.n += x.n
			return
		}
	}
	if e.n == len(e.ring) {
		grown := make([]expect, max(8, 2*len(e.ring)))
		for i := range e.n {
			grown[i] = *e.at(i)
		}
		e.ring, e.head = grown, 0
	}
	e.n++
	*e.at(e.n - 1) = x
}

func (e *expects) pop() expect {
	x := *e.at(0)
	e.gone(&x)
	e.drop()
	return x
}

func (e *expects) drop() {
	*e.at(0) = expect{}
	e.head = (e.head + 1) & (len(e.ring) - 1)
	e.n--
}

// full reports whether the client must wait.
func (e *expects) full() bool { return e.n >= maxExpected }

// shrink gives back the memory of a deep pipeline. The list must be empty.
func (e *expects) shrink() {
	if len(e.ring) > 64 {
		*e = expects{}
	}
}

// cut removes entries 1 to i, the head stays. Undo gets each, the last first.
func (e *expects) cut(i int, undo func(expect)) {
	for j := i; j > 0; j-- {
		undo(*e.at(j))
	}
	head := *e.at(0)
	e.drop()
	for range i {
		e.pop()
	}
	e.head = (e.head - 1) & (len(e.ring) - 1)
	e.n++
	*e.at(0) = head
}

// readyDue reports whether a ReadyForQuery is due for anything but the last
// message sent.
func (e *expects) readyDue() bool {
	for i := range e.n - 1 {
		if k := e.at(i).kind; k == expectSync || k == expectQuery || k == expectOwnQuery {
			return true
		}
	}
	return false
}

// find returns the place of the first entry of a kind at or behind from, or -1.
func (e *expects) find(kind expectKind, from int) int {
	for i := from; i < e.n; i++ {
		if e.at(i).kind == kind {
			return i
		}
	}
	return -1
}
