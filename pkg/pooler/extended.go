package pooler

import (
	"errors"
	"fmt"
	"strings"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// maxNames is how far into a Bind its two names may reach. PostgreSQL cuts
// identifiers to 63 bytes, but lets names of portals and statements be longer.
const maxNames = 8 << 10

// clientParse handles a Parse. A named statement is given our name for its
// text; on a server that has it already, nothing is sent at all.
func (m *machine) clientParse(cl *client, b []byte, total int) (used, need int) {
	if len(b) == pgwire.HeaderLen && total > len(b) {
		return 0, pgwire.HeaderLen + 1
	}
	if total > pgwire.HeaderLen && b[pgwire.HeaderLen] == 0 {
		return m.clientParseUnnamed(cl, b, total)
	}
	sv := cl.server
	if sv.expects.unsure(unsureNamed) && !sv.copyIn {
		return m.stall(sv)
	}
	if !cl.renames {
		m.expect(sv, expect{kind: expectReplies, n: 1})
		sv.flight = true
		return m.take(cl, b, total, false)
	}
	if total > maxNamedParse {
		m.refuseClient(cl, refusedMemory, errStmtTooLong)
		return 0, 0
	}
	if len(b) < total {
		return 0, total
	}
	body := b[pgwire.HeaderLen:total]
	names, err := pgwire.ParseNames(pgwire.MsgParse, body)
	switch {
	case err != nil:
		m.refuseClient(cl, refusedProtocol, errBadMessage)
		return 0, 0
	case names.Statement.Len() > maxNames:
		m.refuseClient(cl, refusedProtocol, errNameTooLong)
		return 0, 0
	}
	cl.pool.stats.ClientParses++
	sv.flight, sv.touched = true, true
	cl.in.left = 0
	name := names.Statement.Of(body)
	if st := cl.names[string(name)]; st != nil {
		// The new text under the old name: the server finds what is wrong
		// with the text first, and then refuses the name.
		m.prepare(sv, st)
		m.expect(sv, expect{kind: expectDuplicate, st: st, name: string(name)})
		tail := body[names.Tail:]
		m.toServer(sv, pgwire.AppendParse(m.arena.scratch(pgwire.HeaderLen+len(st.name)+1+len(tail)), st.name, tail))
		return total, 0
	}
	st, ok := m.stmts.intern(body[names.Tail:])
	if !ok {
		m.refuseClient(cl, refusedMemory, errStmtMemory)
		return 0, 0
	}
	own := string(name)
	m.stmts.name(cl, own, st)
	if sv.prepared.touch(st) {
		m.fake(sv, expect{kind: fakeParse, st: st, name: own})
		return total, 0
	}
	m.evict(sv)
	m.place(sv, st)
	m.expect(sv, expect{kind: expectParse, st: st, name: own})
	m.toServer(sv, st.parse)
	return total, 0
}

// clientParseUnnamed passes a Parse of the unnamed statement on, and keeps it:
// its Bind may find another server.
func (m *machine) clientParseUnnamed(cl *client, b []byte, total int) (used, need int) {
	keep := total <= maxUnnamed
	if keep && len(b) < total {
		return 0, total
	}
	if cl.watched {
		cl.unnamedLeft = leftAny
		if len(b) >= min(total, pgwire.HeaderLen+1+lookLen) {
			cl.unnamedLeft = lookAt(text(b[min(total, pgwire.HeaderLen+1):min(total, len(b))]))
		}
	}
	cl.unnamed = cl.unnamed[:0]
	if keep {
		cl.unnamed = append(cl.unnamed, b[:total]...)
	}
	m.nextSeq++
	sv := cl.server
	cl.unnamedSeq, sv.unnamedSeq, sv.unnamedFlight = m.nextSeq, m.nextSeq, sv.flightNo
	m.expect(sv, expect{kind: expectUnnamed, seq: m.nextSeq})
	sv.flight = true
	return m.take(cl, b, total, false)
}

// dropUnnamed forgets a client's unnamed statement.
func (m *machine) dropUnnamed(cl *client) {
	cl.unnamedSeq = 0
	if cap(cl.unnamed) > unnamedKeep {
		cl.unnamed = nil
	}
}

// clientBind handles a Bind: the statement's name is replaced, the parameters
// behind it stream through.
func (m *machine) clientBind(cl *client, b []byte, total int) (used, need int) {
	head := b[pgwire.HeaderLen:min(total, len(b))]
	names, err := pgwire.ParseNames(pgwire.MsgBind, head)
	if err != nil {
		switch want := min(total, pgwire.HeaderLen+maxNames); {
		case len(b) < want:
			return 0, want
		case want < total:
			m.refuseClient(cl, refusedProtocol, errNameTooLong)
		default:
			m.refuseClient(cl, refusedProtocol, errBadMessage)
		}
		return 0, 0
	}
	return m.useStatement(cl, pgwire.MsgBind, b, total, names)
}

// clientDescribeClose handles a Describe or Close, of a statement or a portal.
func (m *machine) clientDescribeClose(cl *client, typ byte, b []byte, total int) (used, need int) {
	if len(b) < total {
		return 0, total
	}
	body := b[pgwire.HeaderLen:total]
	names, err := pgwire.ParseNames(typ, body)
	switch {
	case errors.Is(err, pgwire.ErrNamesKind):
		// PostgreSQL has an ERROR for it, and goes on: let it.
		names = pgwire.Names{Kind: 'P'}
	case err != nil || names.Tail != len(body):
		m.refuseClient(cl, refusedProtocol, errBadMessage)
		return 0, 0
	}
	sv := cl.server
	switch {
	case names.Kind == 'P':
		sv.flight = true
		m.expect(sv, expect{kind: expectReplies, n: 1})
		return m.take(cl, b, total, false)
	case typ == pgwire.MsgDescribe:
		return m.useStatement(cl, typ, b, total, names)
	}
	name := names.Statement.Of(body)
	if m.mustStall(cl, sv, name) {
		return m.stall(sv)
	}
	if len(name) == 0 {
		m.dropUnnamed(cl)
		sv.unnamedSeq = unnamedUnknown // empty once the Close is carried out
	} else if st := cl.names[string(name)]; st != nil {
		// The client's name goes; the statement stays for others. The list
		// of answers holds it until the Close is sure not to be skipped.
		own := string(name)
		m.stmts.unname(cl, own)
		sv.flight, sv.touched = true, true
		cl.in.left = 0
		m.fake(sv, expect{kind: fakeClose, st: st, name: own})
		return total, 0
	}
	return m.passUnknown(cl, typ, b, total, names)
}

// mustStall reports whether it is uncertain what a statement's name means,
// because an earlier flight that has to do with it has not been answered. Inside
// a COPY such messages are an error, whatever they mean.
func (m *machine) mustStall(cl *client, sv *server, name []byte) bool {
	if sv.copyIn {
		return false
	}
	if len(name) > 0 {
		return sv.expects.unsure(unsureNamed)
	}
	here := cl.unnamedSeq != 0 && sv.unnamedSeq == cl.unnamedSeq && sv.unnamedFlight == sv.flightNo
	return !here && sv.expects.unsure(unsureUnnamed)
}

// useStatement passes a Bind or Describe on, after making sure that the server
// has the statement that the client means.
func (m *machine) useStatement(cl *client, typ byte, b []byte, total int, names pgwire.Names) (used, need int) {
	sv := cl.server
	body := b[pgwire.HeaderLen:min(total, len(b))]
	name := names.Statement.Of(body)
	if m.mustStall(cl, sv, name) {
		return m.stall(sv)
	}
	if typ == pgwire.MsgBind {
		cl.pool.stats.Binds++
	}
	if len(name) == 0 {
		if cl.unnamedLeft != 0 && typ == pgwire.MsgBind && !m.leaves(cl, sv, cl.unnamedLeft) {
			return 0, 0
		}
		m.prepareUnnamed(cl, sv)
		sv.flight = true
		m.expect(sv, expect{kind: expectReplies, n: 1})
		return m.take(cl, b, total, false)
	}
	st := cl.names[string(name)]
	if st == nil {
		return m.passUnknown(cl, typ, b, total, names)
	}
	if st.left != 0 && typ == pgwire.MsgBind && cl.watched && !m.leaves(cl, sv, st.left) {
		return 0, 0
	}
	m.prepare(sv, st)
	return m.passRenamed(cl, typ, b, total, names, st.name)
}

// passUnknown passes a message about a statement that we do not know: the
// server's answer, an error as a rule, is right. (PREPARE in SQL makes
// statements that only the server knows.) Names like ours are bent, lest they
// reach a statement of another client.
func (m *machine) passUnknown(cl *client, typ byte, b []byte, total int, names pgwire.Names) (used, need int) {
	name := names.Statement.Of(b[pgwire.HeaderLen:])
	if len(name) >= len(stmtPrefix) && string(name[:len(stmtPrefix)]) == stmtPrefix && cl.renames {
		return m.passRenamed(cl, typ, b, total, names, string(name)+"_")
	}
	cl.server.flight = true
	m.expect(cl.server, expect{kind: expectReplies, n: 1})
	return m.take(cl, b, total, false)
}

// passRenamed passes a message on under another name.
func (m *machine) passRenamed(cl *client, typ byte, b []byte, total int, names pgwire.Names, name string) (used, need int) {
	sv := cl.server
	n := min(total, len(b))
	body := b[pgwire.HeaderLen:n]
	// The rest of a short message is copied along, a long one is sent from
	// where it lies.
	head, rest := body, body[len(body):]
	if len(body)-names.Tail > smallCopy {
		head, rest = body[:names.Tail], body[names.Tail:]
	}
	msg := m.arena.scratch(pgwire.HeaderLen + len(head) - names.Statement.Len() + len(name))
	msg, err := pgwire.AppendRenamed(msg, typ, total-pgwire.HeaderLen, head, names, name)
	if err != nil {
		m.refuseClient(cl, refusedProtocol, errBadMessage)
		return 0, 0
	}
	sv.flight = true
	m.expect(sv, expect{kind: expectReplies, n: 1})
	m.toServer(sv, msg)
	m.toServer(sv, rest)
	cl.in.left, cl.in.drop = total-n, false
	return n, 0
}

// prepare makes sure that a server has a statement.
func (m *machine) prepare(sv *server, st *stmt) {
	if sv.prepared.touch(st) {
		return
	}
	m.evict(sv)
	m.place(sv, st)
	m.expect(sv, expect{kind: expectOwnParse, st: st})
	m.toServer(sv, st.parse)
	sv.flight = true
}

// place notes that a Parse of st is on its way to the server.
func (m *machine) place(sv *server, st *stmt) {
	sv.pool.stats.ServerParses++
	m.stmts.hold(st)
	sv.prepared.add(st)
}

// evict makes room for one more statement on a server.
func (m *machine) evict(sv *server) {
	for len(sv.prepared.byStmt) >= max(m.limits.maxPrepared, 1) {
		st := sv.prepared.oldest()
		sv.prepared.remove(st)
		m.expect(sv, expect{kind: expectOwnClose, st: st}) // holds the reference
		m.toServer(sv, pgwire.AppendClose(m.arena.scratch(pgwire.HeaderLen+2+len(st.name)), 'S', st.name))
	}
}

// prepareUnnamed makes sure that a server's unnamed statement is the client's.
func (m *machine) prepareUnnamed(cl *client, sv *server) {
	switch {
	case cl.unnamedSeq != 0 && sv.unnamedSeq == cl.unnamedSeq:
	case cl.unnamedSeq != 0 && len(cl.unnamed) > 0:
		m.expect(sv, expect{kind: expectOwnUnnamed, seq: cl.unnamedSeq})
		m.toServer(sv, m.arena.copied(cl.unnamed)) // the client may parse another one before it is sent
		sv.unnamedSeq, sv.unnamedFlight = cl.unnamedSeq, sv.flightNo
	case sv.unnamedSeq != unnamedNone:
		// The client has none, or one that was too long to keep. Another
		// client's must not be used in its place: the server shall say that
		// there is none.
		m.expect(sv, expect{kind: expectOwnClose})
		m.toServer(sv, closeUnnamed)
		sv.unnamedSeq = unnamedNone
	}
}

var closeUnnamed = pgwire.AppendClose(nil, 'S', "")

// fake answers in the server's place, in order.
func (m *machine) fake(sv *server, x expect) {
	m.expect(sv, x)
	if sv.expects.n == 1 {
		m.sendFakes(sv)
	}
}

// sendFakes sends the answers that are due from us at the head of the list, and
// removes marks that have lost their meaning. It does nothing while a message
// of the server's is on its way to the client in parts: serverData calls it
// again at the end of that.
func (m *machine) sendFakes(sv *server) {
	for sv.expects.n > 0 && sv.in.atBoundary() {
		switch sv.expects.at(0).kind {
		case fakeParse:
			sv.expects.pop()
			m.answer(sv, parseComplete)
		case fakeClose:
			m.stmts.release(sv.expects.pop().st)
			m.answer(sv, closeComplete)
		case copyEnd:
			if sv.copyIn {
				return
			}
			sv.expects.pop()
		default:
			return
		}
	}
}

var (
	parseComplete = pgwire.AppendParseComplete(nil)
	closeComplete = pgwire.AppendCloseComplete(nil)
)

// answer sends a message of ours to the server's client.
func (m *machine) answer(sv *server, msg []byte) {
	if sv.client != nil {
		m.emit(&sv.client.conn, msg)
	}
}

// undo takes back what was assumed of a message that the server skipped, or
// that failed.
func (m *machine) undo(sv *server, x expect) {
	switch x.kind {
	case expectParse, fakeParse:
		if x.kind == expectParse {
			m.unplace(sv, x.st)
		}
		if cl := sv.client; cl != nil && cl.names[x.name] == x.st {
			m.stmts.unname(cl, x.name)
			m.stmts.release(x.st)
		}
	case expectOwnParse:
		m.unplace(sv, x.st)
	case expectUnnamed, expectOwnUnnamed:
		if cl := sv.client; cl != nil && cl.unnamedSeq == x.seq && x.kind == expectUnnamed {
			m.dropUnnamed(cl)
		}
		if sv.unnamedSeq == x.seq {
			sv.unnamedSeq = unnamedUnknown
		}
	case expectOwnClose:
		switch {
		case x.st == nil:
			if sv.unnamedSeq == unnamedNone {
				sv.unnamedSeq = unnamedUnknown
			}
		case sv.prepared.touch(x.st):
			m.stmts.release(x.st)
		default:
			sv.prepared.add(x.st) // with the reference that the entry held
		}
	case fakeClose:
		if cl := sv.client; cl != nil && cl.names[x.name] == nil {
			m.stmts.name(cl, x.name, x.st)
		} else {
			m.stmts.release(x.st)
		}
	}
}

// unplace notes that a server does not have a statement after all.
func (m *machine) unplace(sv *server, st *stmt) {
	if sv.prepared.remove(st) {
		m.stmts.release(st)
	}
}

// duplicateError is the answer to a Parse of a name that exists.
func duplicateError(name string) []byte {
	name = strings.ToValidUTF8(name, "?")
	return pgwire.AppendError(nil, pgwire.SeverityError, pgwire.CodeDuplicateStatement,
		fmt.Sprintf("prepared statement %q already exists", name))
}
