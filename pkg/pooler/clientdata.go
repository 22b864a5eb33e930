package pooler

import (
	"bytes"
	"errors"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// maxServerOut is how much may be queued for a server in one round before its
// client's input is set aside: statements that we add can make it much longer
// than what the client sent.
const maxServerOut = 256 << 10

// admit reports whether a client's socket may be read now. If the client has
// no server, it gets one or is put in the queue, where its data stay in the
// socket.
func (m *machine) admit(cl *client) bool {
	if m.heir != nil && m.clientRests(cl) {
		m.note(&cl.conn)
		return false
	}
	switch cl.state {
	case clientIdle:
		switch {
		case len(cl.spill) > 0:
			return false // it does not read; drained wakes it
		case m.preview(cl):
			return true
		case m.stopping:
			m.refuseClient(cl, refusedShutdown, errShutdown)
			return false
		}
		return m.attach(cl)
	case clientWaiting, clientSetting:
		return m.preview(cl)
	case clientActive:
		return len(cl.server.spill) == 0 && !cl.server.stalled
	case clientRefusing, clientClosing:
		return true
	case clientGreeting:
		return cl.ended
	}
	return false
}

// maxHeld bounds the input of clients that are about to go, in bytes.
const maxHeld = 16 << 20

// preview reports whether a client without a server is to be read all the same:
// it has closed its side, and what it said before may be no more than goodbye,
// which need not cost a server.
func (m *machine) preview(cl *client) bool {
	return cl.ended && !cl.heldEnd && len(cl.held) < readSize && m.heldBytes < maxHeld
}

// clientReceived takes what came from a client.
func (m *machine) clientReceived(cl *client, b []byte) {
	cl.pool.stats.BytesReceived += uint64(len(b))
	switch cl.state {
	case clientActive, clientRefusing:
		m.feed(cl, b)
	case clientIdle, clientWaiting, clientSetting:
		m.hold(cl, append(cl.held[:len(cl.held):len(cl.held)], b...))
	case clientGreeting:
		// The first bytes after a login, of a client that is closing: it will
		// not wait for an answer.
	}
}

// turn is a connection's turn: it processes input set aside, and reports
// whether the socket is to be read.
func (m *machine) turn(c *conn) (read bool) {
	if m.suspended && m.park(c) {
		return false
	}
	cl := c.cl
	if cl == nil {
		// What a server sends is read unless its client has to take in
		// something first.
		sv := c.sv
		return sv.client == nil || len(sv.client.spill) == 0
	}
	if !m.admit(cl) {
		if c.broken && cl.state == clientActive {
			m.clientGone(cl, "client connection broken")
		}
		return false
	}
	if cl.state != clientActive && cl.state != clientRefusing || len(cl.held) == 0 && !cl.heldEnd {
		return true
	}
	if len(cl.held) == 0 {
		m.clientEnded(cl)
		return false
	}
	b := cl.held
	m.hold(cl, nil)
	m.feed(cl, b)
	m.wake(&cl.conn)
	return false
}

// feed processes input, and sets aside what cannot be processed now.
func (m *machine) feed(cl *client, b []byte) {
	rest := m.clientData(cl, b)
	if cl.state == clientGone || cl.state == clientClosing {
		return
	}
	if len(rest) > 0 {
		m.hold(cl, bytes.Clone(rest))
	}
	if sv := cl.server; sv != nil {
		m.atRest(sv)
	}
	m.wake(&cl.conn)
}

// stall sets a client's input aside until its server has answered more: the
// list of expected answers is full, or the next message is about a statement
// whose existence hangs on the outcome of an earlier flight. Used and need are
// 0 to say so.
func (m *machine) stall(sv *server) (used, need int) {
	sv.stalled = true
	return 0, 0
}

// unstall looks whether a stalled client may go on. The answers to earlier
// flights come without its doing, since their Sync was sent; not so in a COPY.
func (m *machine) unstall(sv *server) {
	if !sv.stalled || sv.stalledDry && sv.expects.n > 0 || sv.expects.n >= maxExpected/2 || !sv.copyIn && (sv.expects.unsure(unsureNamed) || sv.expects.unsure(unsureUnnamed)) {
		return
	}
	sv.stalled, sv.stalledDry = false, false
	if sv.client != nil {
		m.wake(&sv.client.conn)
	}
}

// clientData relays what a client sent, and returns what it left: when the
// server's queue is long, the client stalled, or it is done with a request that
// was refused.
func (m *machine) clientData(cl *client, b []byte) (rest []byte) {
	f := &cl.in
	for len(b) > 0 {
		if f.left > 0 {
			n := min(f.left, len(b))
			if !f.drop {
				m.emit(&cl.server.conn, b[:n])
			}
			f.left -= n
			b = b[n:]
			continue
		}
		switch cl.state {
		case clientActive:
			if sv := cl.server; sv.expects.full() {
				m.stall(sv)
				return b
			} else if sv.out != nil && sv.out.size > maxServerOut {
				return b
			}
		case clientRefusing:
		default:
			return b
		}
		msg, behind := b, b[:0]
		gathered := len(f.gather) > 0
		if gathered {
			if msg, behind = m.gatherMore(cl, b); msg == nil {
				return nil
			}
		}
		used, need := m.clientMessage(cl, msg)
		switch {
		case cl.state == clientGone || cl.state == clientClosing:
			return nil
		case need > 0:
			f.start(msg, need)
			m.countGathered(f, 0)
			b = behind
		case used == 0: // stalled
			if gathered {
				return append(bytes.Clone(msg), behind...)
			}
			return msg
		case gathered:
			b = behind // a gathered message is used up
		default:
			b = msg[used:]
		}
	}
	return nil
}

// gatherMore completes a message that must be seen whole. Msg is nil if it is
// not complete yet, or the client had to go.
func (m *machine) gatherMore(cl *client, b []byte) (msg, rest []byte) {
	f := &cl.in
	before := len(f.gather)
	msg, rest = f.more(b, &m.arena)
	if msg != nil {
		if before > len(f.small) {
			m.gathered -= before
		}
		return msg, rest
	}
	m.countGathered(f, before)
	if m.gathered > m.limits.gatherBudget {
		m.refuseClient(cl, refusedMemory, errGatherMemory)
	}
	return nil, nil
}

// countGathered accounts for a gather buffer that had before bytes.
func (m *machine) countGathered(f *framer, before int) {
	if before > len(f.small) {
		m.gathered -= before
	}
	if len(f.gather) > len(f.small) {
		m.gathered += len(f.gather)
	}
}

// clientMessage handles the message at the front of b, of which the end may not
// have come. It returns how many bytes it used; the rest of the message is
// f.left. Or it returns how many bytes it needs to see, and used none.
func (m *machine) clientMessage(cl *client, b []byte) (used, need int) {
	typ, bodyLen, ok := pgwire.Header(b)
	if !ok {
		return 0, pgwire.HeaderLen
	}
	if err := pgwire.CheckFrontend(typ, bodyLen); err != nil {
		m.clientProtocolError(cl, err)
		return 0, 0
	}
	total := pgwire.HeaderLen + bodyLen
	if limit := m.limits.maxPacket; limit > 0 && total > limit {
		m.refuseClient(cl, refusedProtocol, errPacketSize)
		return 0, 0
	}
	if typ == pgwire.MsgTerminate {
		m.clientTerminated(cl)
		return 0, 0
	}
	if cl.state == clientRefusing {
		return m.refuseMessage(cl, typ, b, total)
	}
	sv := cl.server
	if sv.skipping && typ != pgwire.MsgSync {
		return m.take(cl, b, total, true)
	}
	switch typ {
	case pgwire.MsgQuery:
		if cl.watched {
			if used, need, done := m.clientQuery(cl, b, total); done {
				return used, need
			}
		}
		if m.limits.noPQExec {
			m.log.Error("client used \"Query\" packet type", "client", cl.addr)
			m.refuseClient(cl, refusedProtocol, errPQExec)
			return 0, 0
		}
		// A simple query destroys the unnamed statement (section 53.2.3).
		m.dropUnnamed(cl)
		sv.unnamedSeq = unnamedNone
		m.endFlight(sv, expectQuery)
	case pgwire.MsgFunctionCall:
		m.endFlight(sv, expectQuery)
	case pgwire.MsgSync:
		m.endFlight(sv, expectSync)
	case pgwire.MsgExecute:
		m.expect(sv, expect{kind: expectReplies, n: 1})
		sv.flight = true
	case pgwire.MsgFlush:
		sv.flight = true
	case pgwire.MsgParse:
		return m.clientParse(cl, b, total)
	case pgwire.MsgBind:
		return m.clientBind(cl, b, total)
	case pgwire.MsgDescribe, pgwire.MsgClose:
		return m.clientDescribeClose(cl, typ, b, total)
	default: // CopyData, CopyDone, CopyFail
		if sv.expects.n == 0 {
			// No COPY can be open: the rest of one that failed. The server
			// would ignore it too (section 53.2.7).
			return m.take(cl, b, total, true)
		}
		if typ != pgwire.MsgCopyData {
			m.expect(sv, expect{kind: copyEnd})
		}
	}
	return m.take(cl, b, total, false)
}

// take passes a message on as it is, or swallows it.
func (m *machine) take(cl *client, b []byte, total int, drop bool) (used, need int) {
	n := min(total, len(b))
	if !drop {
		m.toServer(cl.server, b[:n])
	}
	cl.in.left, cl.in.drop = total-n, drop
	return n, 0
}

// toServer sends bytes on behalf of the client.
func (m *machine) toServer(sv *server, b []byte) {
	sv.touched = true
	m.emit(&sv.conn, b)
}

// endFlight notes that a ReadyForQuery is due.
func (m *machine) endFlight(sv *server, kind expectKind) {
	m.expect(sv, expect{kind: kind})
	sv.flight, sv.skipping = false, false
	sv.flightNo++
}

// expect notes an answer that the server will owe.
func (m *machine) expect(sv *server, x expect) {
	if sv.expects.n == 0 {
		sv.busyAt = m.now
		if cl := sv.client; cl != nil {
			cl.requestedAt = m.now
			if cl.linkedAt == outsideTransaction {
				cl.linkedAt = m.now
			}
		}
	}
	sv.expects.push(x)
}

// refuseMessage answers a message of a request that was cancelled while it
// waited: one error, and ReadyForQuery where the server would have sent it.
func (m *machine) refuseMessage(cl *client, typ byte, b []byte, total int) (used, need int) {
	used, _ = m.take(cl, b, total, true)
	switch typ {
	case pgwire.MsgCopyData, pgwire.MsgCopyDone, pgwire.MsgCopyFail:
		return used, 0
	}
	if !cl.refused && typ != pgwire.MsgFlush {
		cl.refused = true
		m.emit(&cl.conn, errCanceled.Append(nil))
	}
	switch typ {
	case pgwire.MsgQuery, pgwire.MsgFunctionCall, pgwire.MsgSync:
		m.emit(&cl.conn, pgwire.AppendReadyForQuery(nil, pgwire.TxIdle))
		cl.refused = false
		m.moveClient(cl, clientIdle) // what is left of the message is dropped, see clientData
	}
	return used, 0
}

// clientProtocolError ends a client whose bytes make no sense.
func (m *machine) clientProtocolError(cl *client, err error) {
	e, ok := errors.AsType[*pgwire.Error](err)
	if !ok {
		e = errBadMessage
	}
	m.refuseClient(cl, refusedProtocol, e)
}

// clientTerminated: the client took its leave. What it asked for is done; it
// does not wait for the answer.
func (m *machine) clientTerminated(cl *client) {
	m.logClient(m.limits.logout, "closing because: ", "client close request", cl)
	m.detach(cl, true)
	how := endParting
	if cl.ended {
		how = endNow // it has closed already
	}
	m.dropClient(cl, how)
}

// clientEnded: the client closed its connection, or it broke.
func (m *machine) clientEnded(cl *client) {
	switch cl.state {
	case clientWaiting, clientSetting, clientIdle:
		// What it asked for last and did not wait for is done only if it took
		// its leave properly.
		if endsWithTerminate(cl.held) && !cl.heldEnd {
			cl.heldEnd = true
			if len(cl.held) == len(terminateMsg) && cl.in.left == 0 && len(cl.in.gather) == 0 {
				m.clientTerminated(cl)
				return
			}
			if cl.state == clientIdle {
				m.wake(&cl.conn)
			}
			return
		}
		m.clientGone(cl, "client unexpected eof")
	default:
		m.clientGone(cl, "client unexpected eof")
	}
}

func endsWithTerminate(b []byte) bool {
	return len(b) >= len(terminateMsg) && string(b[len(b)-len(terminateMsg):]) == string(terminateMsg)
}
