package pooler

import "github.com/pgsteer/pgsteer/pkg/pgwire"

// serverError handles an ErrorResponse.
func (m *machine) serverError(sv *server, b []byte, whole bool) {
	if sv.expects.n == 0 {
		// Out of turn: the server is about to close (section 53.2.3). Whoever
		// has it in a transaction is told, nobody else.
		sv.tainted = true
		m.relay(sv, pgwire.MsgErrorResponse, b, sv.client != nil && sv.touched)
		return
	}
	head := *sv.expects.at(0)
	if head.kind == expectOwnQuery {
		sv.setError = errSettings
		if whole {
			if e, err := pgwire.ParseError(b[pgwire.HeaderLen:]); err == nil {
				sv.setError = e
			}
		}
		return
	}
	code := ""
	if whole && (head.kind == expectDuplicate || head.kind == expectParse || head.kind == expectOwnParse) {
		if e, err := pgwire.ParseError(b[pgwire.HeaderLen:]); err == nil {
			code = e.Code
		}
	}
	switch {
	case head.kind == expectDuplicate && code == pgwire.CodeDuplicateStatement:
		m.answer(sv, duplicateError(head.name))
	default:
		if code == pgwire.CodeDuplicateStatement {
			// The server has a statement of ours that we think it has not:
			// somebody meddled by SQL. It heals by being replaced.
			sv.tainted = true
		}
		m.relay(sv, pgwire.MsgErrorResponse, b, sv.client != nil)
	}
	m.copyOver(sv, true)
	if sv.state == serverGone || sv.expects.n == 0 || !sv.expects.at(0).kind.extended() {
		return
	}
	m.skipToSync(sv)
}

var errSettings = pgwire.NewError(pgwire.SeverityFatal, pgwire.CodeProtocolViolation, "invalid server parameter")

// skipToSync follows the server, which after an error in the extended protocol
// ignores everything up to the next Sync (section 53.2.3).
func (m *machine) skipToSync(sv *server) {
	sync := sv.expects.find(expectSync, 0)
	last := sync - 1
	if sync < 0 {
		// The client has not sent it yet.
		last = sv.expects.n - 1
		sv.skipping, sv.flight = true, true
	}
	undo := func(x expect) { m.undo(sv, x) }
	if last > 0 {
		sv.expects.cut(last, undo)
	}
	undo(*sv.expects.at(0))
	m.answered(sv)
}

// statementsDropped: the session's prepared statements are gone, by the
// client's own command. Those that are parsed later in the same pipeline stay.
func (m *machine) statementsDropped(sv *server) {
	for p := sv.prepared.used.head; p != nil; {
		next := p.lk.next
		if !m.parseDue(sv, p.st) {
			m.unplace(sv, p.st)
		}
		p = next
	}
	sv.unnamedSeq = unnamedUnknown
	cl := sv.client
	if cl == nil {
		return
	}
	m.dropUnnamed(cl)
	m.stmts.unnameAll(cl, func(name string) bool { return !m.nameDue(sv, name) })
}

// parseDue reports whether a Parse of st is still on its way to the server.
func (m *machine) parseDue(sv *server, st *stmt) bool {
	for i := range sv.expects.n {
		if x := sv.expects.at(i); x.st == st && (x.kind == expectParse || x.kind == expectOwnParse) {
			return true
		}
	}
	return false
}

// nameDue reports whether the client has parsed the name in what is not yet
// answered.
func (m *machine) nameDue(sv *server, name string) bool {
	for i := range sv.expects.n {
		if x := sv.expects.at(i); x.name == name && (x.kind == expectParse || x.kind == fakeParse) {
			return true
		}
	}
	return false
}

// copyInStarts: the server waits for data of a COPY FROM STDIN.
func (m *machine) copyInStarts(sv *server, b []byte) {
	if sv.expects.n == 0 || sv.copyIn {
		m.serverBroken(sv, "COPY without a request")
		return
	}
	sv.copyIn = true
	m.relay(sv, pgwire.MsgCopyInResponse, b, m.visible(sv))
	m.unstall(sv)
	switch {
	case sv.client != nil:
	case sv.cut:
		m.atRest(sv)
	default:
		m.failCopy(sv)
	}
}

// copyOver: the COPY FROM STDIN, if there is one, is over, by CommandComplete
// or an error. What the client sent up to its end, the server has ignored:
// Flush and Sync among it, for which no ReadyForQuery comes (section 53.2.7).
//
// After an error it cannot be told whether a Sync was taken before it, and so
// ignored, or after it, and is still to be answered. We take it for ignored,
// as it nearly always is, and do not use the server again.
func (m *machine) copyOver(sv *server, failed bool) {
	if !sv.copyIn {
		return
	}
	sv.copyIn = false
	end := sv.expects.find(copyEnd, 1)
	if end < 0 {
		// The client is still sending. What it sent so far belongs to the COPY.
		end = sv.expects.n - 1
		sv.tainted = sv.tainted || end > 0
	}
	if end < 1 {
		return
	}
	for i := 1; i <= end; i++ {
		if k := sv.expects.at(i).kind; failed && k != expectSync && k != copyEnd {
			// A client may not do this, and whether the server has taken it
			// for part of the COPY cannot be told.
			m.breakUp(sv, "client sent other messages during COPY", refusedProtocol, errDuringCopy)
			return
		}
	}
	sv.tainted = sv.tainted || failed && end > 1
	sv.expects.cut(end, func(x expect) { m.undo(sv, x) })
	if sv.expects.at(0).kind.extended() && sv.expects.find(expectSync, 1) < 0 {
		sv.flight = true // the Sync that seemed to end it was ignored
	}
}
