package pooler

import (
	"strconv"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// stmtPrefix begins the names of prepared statements on servers.
const stmtPrefix = "PGSTEER_"

// Bounds of what is remembered of prepared statements, in bytes.
const (
	// maxNamedParse bounds the Parse of a named statement: it is held in
	// memory. Larger texts pass as simple queries or unnamed statements, which
	// stream.
	maxNamedParse = 1 << 20
	// maxStmtMemory bounds all of them together: an eighth of the 512 MB that
	// an instance is meant to have.
	maxStmtMemory = 64 << 20
	// stmtOverhead is what a statement costs beside its text (two map entries,
	// the struct, the server's entry); an estimate from the sizes of these.
	stmtOverhead = 256
	// nameOverhead is what a client's name for a statement costs beside the
	// name: its share of a map, estimated.
	nameOverhead = 128
	// maxUnnamed bounds the unnamed statement that is kept for a client, to be
	// repeated on another server. A longer one passes but is not kept: used on
	// another server, it does not exist.
	maxUnnamed = 8 << 10
	// unnamedKeep is the capacity of a client's buffer for it that survives a
	// simple query: clients alternate BEGIN and an unnamed statement.
	unnamedKeep = 1 << 10
)

// stmt is a prepared statement: a query text with parameter types, whoever
// prepared it. Clients that prepare the same share it. Its Parse message is
// what servers get; it never changes, so it is sent from where it lies.
type stmt struct {
	name  string // on servers: never used for another text (a counter, no hash)
	key   string // query text, NUL, parameter types
	parse []byte
	left  leftovers // what its execution may leave behind
	refs  int       // names of clients and servers' entries
}

func (s *stmt) size() int { return len(s.key) + len(s.parse) + stmtOverhead }

// stmts is the table of statements.
type stmts struct {
	byKey  map[string]*stmt
	next   uint64
	memory int // bytes, of statements and of clients' names for them
	// generation counts the processes that took over from one another.
	generation uint64
}

// intern returns the statement with the tail of a Parse, and holds it. Ok is
// false when there is no memory for another one and its name.
func (t *stmts) intern(tail []byte) (s *stmt, ok bool) {
	if t.memory+2*len(tail)+stmtOverhead+nameOverhead+maxNames > maxStmtMemory {
		return nil, false
	}
	if s := t.byKey[string(tail)]; s != nil {
		s.refs++
		return s, true
	}
	t.next++
	s = newStmt(stmtPrefix+strconv.FormatUint(t.next, 10), string(tail))
	t.byKey[s.key] = s
	t.memory += s.size()
	return s, true
}

// adopt returns a statement that another process has named, and holds it.
func (t *stmts) adopt(name, key string) *stmt {
	if s := t.byKey[key]; s != nil && s.name == name {
		s.refs++
		return s
	}
	s := newStmt(name, key)
	t.memory += s.size()
	if t.byKey[key] == nil {
		t.byKey[key] = s
	}
	return s
}

// newStmt makes a statement with one reference.
func newStmt(name, key string) *stmt {
	s := &stmt{name: name, key: key, left: lookAt(text([]byte(key))), refs: 1}
	s.parse = pgwire.AppendParse(make([]byte, 0, pgwire.HeaderLen+len(name)+1+len(key)), name, []byte(key))
	return s
}

// hold adds a reference. A statement that nobody held any more returns to the
// table, unless a newer one with its text has taken its place there.
func (t *stmts) hold(s *stmt) {
	if s.refs == 0 {
		t.memory += s.size()
		if t.byKey[s.key] == nil {
			t.byKey[s.key] = s
		}
	}
	s.refs++
}

// release gives a reference back.
func (t *stmts) release(s *stmt) {
	s.refs--
	if s.refs > 0 {
		return
	}
	t.memory -= s.size()
	if t.byKey[s.key] == s {
		delete(t.byKey, s.key)
	}
}

// name gives a client's name a statement, with the reference that the caller
// has.
func (t *stmts) name(cl *client, name string, s *stmt) {
	if cl.names == nil {
		cl.names = make(map[string]*stmt)
	}
	cl.names[name] = s
	t.memory += len(name) + nameOverhead
}

// unname takes a client's name away. The reference is the caller's again.
func (t *stmts) unname(cl *client, name string) {
	delete(cl.names, name)
	t.memory -= len(name) + nameOverhead
}

// unnameAll takes all names away that gone picks, and the references.
func (t *stmts) unnameAll(cl *client, gone func(name string) bool) {
	for name, s := range cl.names {
		if gone(name) {
			t.unname(cl, name)
			t.release(s)
		}
	}
}

// prepared is a statement on a server.
type prepared struct {
	st *stmt
	lk link[prepared]
}

// prepareds are the statements on a server, most recently used first.
type prepareds struct {
	byStmt map[*stmt]*prepared
	used   list[prepared]
}

func newPrepareds() prepareds {
	return prepareds{used: list[prepared]{at: func(p *prepared) *link[prepared] { return &p.lk }}}
}

// touch reports whether s is on the server, and notes its use.
func (p *prepareds) touch(s *stmt) bool {
	e := p.byStmt[s]
	if e == nil {
		return false
	}
	if p.used.head != e {
		p.used.remove(e)
		p.used.pushFront(e)
	}
	return true
}

func (p *prepareds) add(s *stmt) {
	if p.byStmt == nil {
		p.byStmt = make(map[*stmt]*prepared)
	}
	e := &prepared{st: s}
	p.byStmt[s] = e
	p.used.pushFront(e)
}

func (p *prepareds) remove(s *stmt) bool {
	e := p.byStmt[s]
	if e == nil {
		return false
	}
	delete(p.byStmt, s)
	p.used.remove(e)
	return true
}

// oldest returns the least recently used statement.
func (p *prepareds) oldest() *stmt { return p.used.tail.st }
