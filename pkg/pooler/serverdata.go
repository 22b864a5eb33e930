package pooler

import (
	"encoding/binary"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// maxSeen bounds the server's messages of which more than the header is looked
// at, in bytes: errors and parameters. A longer one passes unseen.
const maxSeen = 16 << 10

// serverData relays what a server sent.
func (m *machine) serverData(sv *server, b []byte) {
	f := &sv.in
	for len(b) > 0 && sv.state != serverGone {
		if f.left > 0 {
			n := min(f.left, len(b))
			if !f.drop && sv.client != nil {
				m.emit(&sv.client.conn, b[:n])
			}
			f.left -= n
			b = b[n:]
			m.sendFakes(sv)
			continue
		}
		if len(f.gather) > 0 {
			msg, rest := f.more(b, &m.arena)
			if msg == nil {
				return
			}
			if _, need := m.serverMessage(sv, msg); need > 0 {
				f.start(msg, need)
			}
			b = rest
			continue
		}
		// Rows make up most of what comes: pass runs of them at once.
		n := m.passRows(sv, b)
		if n > 0 {
			b = b[n:]
			continue
		}
		used, need := m.serverMessage(sv, b)
		if need > 0 {
			f.start(b, need)
			return
		}
		b = b[used:]
	}
}

// passRows relays the DataRow and CopyData messages at the front of b.
func (m *machine) passRows(sv *server, b []byte) int {
	n := 0
	for len(b)-n >= pgwire.HeaderLen && (b[n] == pgwire.MsgDataRow || b[n] == pgwire.MsgCopyData) {
		size := binary.BigEndian.Uint32(b[n+1:])
		if size < 4 || size > pgwire.MaxLargeLen {
			break // serverMessage says so
		}
		n += 1 + int(size)
	}
	if n == 0 || sv.expects.n == 0 {
		return 0
	}
	sv.in.drop = !m.visible(sv)
	if n > len(b) {
		sv.in.left = n - len(b)
		n = len(b)
	}
	if !sv.in.drop {
		sv.lastType = pgwire.MsgDataRow
		m.emit(&sv.client.conn, b[:n])
	} else {
		sv.ownRows = true
	}
	return n
}

// visible reports whether the client is to see the answer that is coming in.
func (m *machine) visible(sv *server) bool {
	return sv.client != nil && sv.expects.n > 0 && sv.expects.at(0).kind != expectOwnQuery
}

// serverMessage handles the message at the front of b as clientMessage does for
// clients.
func (m *machine) serverMessage(sv *server, b []byte) (used, need int) {
	typ, bodyLen, ok := pgwire.Header(b)
	if !ok {
		return 0, pgwire.HeaderLen
	}
	if bodyLen < 0 || bodyLen > pgwire.MaxLargeLen {
		m.serverBroken(sv, "invalid message length")
		return 0, 0
	}
	total := pgwire.HeaderLen + bodyLen
	if want := seen(typ, bodyLen); len(b) < want {
		return 0, want
	}
	n := min(total, len(b))
	body := b[pgwire.HeaderLen:n]
	whole := n == total
	sv.in.left, sv.in.drop = total-n, true
	switch typ {
	case pgwire.MsgNoticeResponse:
		m.relay(sv, typ, b[:n], m.visible(sv) || m.inSession(sv))
	case pgwire.MsgNotification:
		if m.inSession(sv) {
			m.relay(sv, typ, b[:n], true)
			break
		}
		sv.pool.stats.Notifications++
	case pgwire.MsgParameterStatus:
		visible := m.visible(sv) || sv.client != nil && sv.expects.n == 0
		if whole {
			visible = m.serverParameter(sv, body) && visible
		}
		m.relay(sv, typ, b[:n], visible)
	case pgwire.MsgErrorResponse:
		m.serverError(sv, b[:n], whole)
		if sv.tainted && (sv.state == serverIdle || sv.state == serverUsed) {
			m.closeServer(sv, "server is going")
		}
	case pgwire.MsgReadyForQuery:
		if bodyLen != 1 {
			m.serverBroken(sv, "invalid message length")
			break
		}
		m.serverReady(sv, b[:n])
	case pgwire.MsgParseComplete, pgwire.MsgBindComplete, pgwire.MsgCloseComplete, pgwire.MsgNoData,
		pgwire.MsgRowDescription, pgwire.MsgCommandComplete, pgwire.MsgEmptyQueryResponse, pgwire.MsgPortalSuspended:
		m.serverReply(sv, typ, b[:n])
	case pgwire.MsgDataRow, pgwire.MsgParameterDescription, pgwire.MsgCopyData, pgwire.MsgCopyDone,
		pgwire.MsgCopyOutResponse, pgwire.MsgFunctionCallResponse:
		if sv.expects.n == 0 {
			m.serverBroken(sv, "data without a request")
			break
		}
		m.relay(sv, typ, b[:n], m.visible(sv))
	case pgwire.MsgCopyInResponse:
		m.copyInStarts(sv, b[:n])
	default: // CopyBothResponse too: replication does not get this far
		m.serverBroken(sv, "unexpected message type")
	}
	return n, 0
}

// seen returns how much of a message is needed to handle it, in bytes with the
// header.
func seen(typ byte, bodyLen int) int {
	switch typ {
	case pgwire.MsgReadyForQuery, pgwire.MsgParameterStatus, pgwire.MsgErrorResponse:
		if bodyLen <= maxSeen {
			return pgwire.HeaderLen + bodyLen
		}
	case pgwire.MsgCommandComplete:
		if bodyLen == len(tagDeallocateAll) || bodyLen == len(tagDiscardAll) || bodyLen == len(tagReset) {
			return pgwire.HeaderLen + bodyLen
		}
	}
	return pgwire.HeaderLen
}

// Tags of commands that drop what a session has, with their terminator.
const (
	tagDeallocateAll = "DEALLOCATE ALL\x00"
	tagDiscardAll    = "DISCARD ALL\x00"
	tagReset         = "RESET\x00"
)

// relay passes the front of a message to the client, or swallows it.
func (m *machine) relay(sv *server, typ byte, b []byte, visible bool) {
	if visible {
		sv.in.drop = false
		sv.lastType = typ
		m.emit(&sv.client.conn, b)
	}
}

// serverReply handles a message that is, in the extended protocol, the one
// answer to a message.
func (m *machine) serverReply(sv *server, typ byte, b []byte) {
	if sv.expects.n == 0 {
		m.serverBroken(sv, "answer without a request")
		return
	}
	if typ == pgwire.MsgCommandComplete {
		switch tag := b[pgwire.HeaderLen:]; string(tag) {
		case tagDeallocateAll:
			m.statementsDropped(sv)
		case tagDiscardAll:
			m.statementsDropped(sv)
			m.parametersReset(sv)
			if sv.pinned {
				sv.left |= leftUnknown
			}
		case tagReset:
			switch {
			case sv.state == serverTesting:
				m.parametersReset(sv) // ours, and of all
			case sv.rest != "":
				sv.left |= leftSet // which ones, the tag does not say
			}
		}
	}
	head := sv.expects.at(0)
	switch head.kind {
	case expectQuery, expectOwnQuery:
		if typ == pgwire.MsgParseComplete || typ == pgwire.MsgBindComplete || typ == pgwire.MsgCloseComplete {
			m.serverBroken(sv, "extended answer to a simple query")
			return
		}
		if typ == pgwire.MsgCommandComplete {
			m.copyOver(sv, false)
		}
		m.relay(sv, typ, b, m.visible(sv))
	case expectReplies:
		m.relay(sv, typ, b, sv.client != nil)
		if typ == pgwire.MsgCommandComplete {
			m.copyOver(sv, false)
		}
		if head = sv.expects.at(0); head.n > 1 {
			head.n--
			return
		}
		m.answered(sv)
	case expectUnnamed, expectParse, expectDuplicate:
		if typ != pgwire.MsgParseComplete {
			m.serverBroken(sv, "no answer to a Parse")
			return
		}
		if head.kind == expectDuplicate {
			// The statement was not there after all, and the client believes
			// that its name is another's: nothing is certain any more.
			m.serverBroken(sv, "Parse of a name that exists succeeded")
			return
		}
		m.relay(sv, typ, b, sv.client != nil)
		m.answered(sv)
	case expectOwnParse, expectOwnUnnamed:
		if typ != pgwire.MsgParseComplete {
			m.serverBroken(sv, "no answer to a Parse")
			return
		}
		m.answered(sv)
	case expectOwnClose:
		if typ != pgwire.MsgCloseComplete {
			m.serverBroken(sv, "no answer to a Close")
			return
		}
		if head.st != nil {
			m.stmts.release(head.st)
		}
		m.answered(sv)
	default: // expectSync: after it nothing may come but its ReadyForQuery
		m.serverBroken(sv, "answer to a Sync")
	}
}

// answered removes the head of the list of expected answers.
func (m *machine) answered(sv *server) {
	sv.expects.pop()
	m.sendFakes(sv)
	m.unstall(sv)
}

// serverReady handles ReadyForQuery, the only place where a transaction ends.
func (m *machine) serverReady(sv *server, b []byte) {
	status := b[pgwire.HeaderLen]
	if status != pgwire.TxIdle && status != pgwire.TxActive && status != pgwire.TxFailed {
		m.serverBroken(sv, "invalid transaction status")
		return
	}
	if sv.expects.n == 0 || sv.expects.at(0).kind.extended() {
		// After a COPY that failed, it cannot be told which Syncs the server
		// has ignored; see copyOver.
		if !sv.tainted {
			m.serverBroken(sv, "ready without a request")
			return
		}
		sv.status = status
		m.relay(sv, pgwire.MsgReadyForQuery, b, sv.client != nil)
		m.atRest(sv)
		return
	}
	kind := sv.expects.at(0).kind
	if kind == copyEnd {
		m.serverBroken(sv, "ready within COPY")
		return
	}
	sv.status = status
	cl := sv.client
	if kind != expectOwnQuery {
		if status != pgwire.TxIdle && cl != nil && cl.mode == PoolStatement {
			m.breakUp(sv, errStatementPooling.Message, refusedStatement, errStatementPooling)
			return
		}
		if cl != nil {
			m.relay(sv, pgwire.MsgReadyForQuery, b, true)
			cl.pool.stats.Queries++
		}
		sv.pool.stats.QueryTime += m.now - sv.busyAt
		sv.pool.stats.QueryTimes.add(m.now - sv.busyAt)
		sv.busyAt = m.now
	}
	m.answered(sv)
	if kind == expectOwnQuery && cl != nil {
		if status != pgwire.TxIdle {
			m.serverBroken(sv, "transaction left open by SET")
			return
		}
		m.setDone(cl, sv)
		return // the client is yet to be read
	}
	m.atRest(sv)
}

// atRest looks whether a server has nothing more to do: a client's is released
// at the end of its transaction, one without a client is settled.
func (m *machine) atRest(sv *server) {
	if sv.state == serverSettling && sv.cut && (sv.copyIn || !sv.expects.readyDue()) {
		m.settled(sv) // what is left is the message that will never be whole
		return
	}
	if sv.expects.n > 0 || sv.flight || sv.copyIn {
		return
	}
	if m.heir != nil {
		m.note(&sv.conn)
	}
	switch {
	case sv.state == serverTesting:
		m.tested(sv)
	case sv.state != serverActive && sv.state != serverSettling:
	case sv.client == nil:
		m.settled(sv)
	case sv.status != pgwire.TxIdle || !sv.client.in.atBoundary() || sv.client.state != clientActive:
	case sv.client.mode == PoolSession && sv.touched:
		m.sessionRests(sv.client)
	case sv.left != 0 && m.keeps(sv.client, sv):
	default:
		m.release(sv.client, sv)
	}
}

// serverBroken ends a server that cannot be understood, and its client.
func (m *machine) serverBroken(sv *server, why string) {
	m.log.Error("server is out of step: "+why, "server", sv.key.PID,
		"database", sv.pool.key.database, "user", sv.pool.key.user)
	m.breakUp(sv, "out of step", refusedServerLost, errServerGarbage)
}

// breakUp closes a server whose state is not known, and its client with an
// error.
func (m *machine) breakUp(sv *server, why string, counted refusal, e *pgwire.Error) {
	sv.in.left = 0
	if cl := sv.client; cl != nil {
		cl.server, sv.client = nil, nil
		m.refuseClient(cl, counted, e)
	}
	m.serverGone(sv, why)
}

// serverEnded: the server closed its connection, or it broke.
func (m *machine) serverEnded(sv *server) {
	cl := sv.client
	if cl == nil {
		sv.pool.stats.ServersLost++
		m.serverGone(sv, "server connection closed")
		return
	}
	sv.pool.stats.ServersLost++
	sv.client, cl.server = nil, nil
	switch {
	case !sv.touched:
		// Not a byte of the client's was sent: another server will do.
		if cl.cancelWanted {
			m.refuseRequest(cl)
			break
		}
		m.moveClient(cl, clientWaiting)
		cl.pool.waiting.remove(cl)
		cl.pool.waiting.pushFront(cl)
	case sv.in.left > 0 && !sv.in.drop:
		m.refusals[refusedServerLost]++
		m.closeClient(cl) // in the middle of a message there is nothing to be said
	case sv.lastType == pgwire.MsgErrorResponse:
		m.closeClient(cl) // the server has said why
	default:
		m.refuseClient(cl, refusedServerLost, errServerLost)
	}
	m.serverGone(sv, "server connection closed")
	if cl.state == clientWaiting {
		m.requeued(cl.pool)
	}
}

// requeued serves the head of the queue after a client returned to it.
func (m *machine) requeued(p *pool) {
	if sv := m.pick(p, p.waiting.head); sv != nil {
		m.handOut(sv)
		return
	}
	m.grow(p)
}
