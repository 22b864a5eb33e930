package pooler

import "github.com/pgsteer/pgsteer/pkg/pgwire"

// settle begins to clean a server whose client is gone. Cut says that the
// client left within a message that was being relayed; graceful that it took
// its leave, so that what it asked for is to be done.
func (m *machine) settle(sv *server, cut, graceful bool) {
	m.moveServer(sv, serverSettling)
	sv.cut, sv.graceful, sv.rolledBack = cut, graceful, false
	m.wake(&sv.conn) // it may have stood back for the client
	if !graceful && sv.busy() {
		m.cancelServer(sv)
	}
	if !cut {
		if sv.copyIn {
			m.failCopy(sv)
		}
		if sv.flight {
			m.sync(sv)
		}
	}
	m.atRest(sv)
}

// busy reports whether a server may be running something for its client.
func (sv *server) busy() bool { return sv.touched && (sv.expects.n > 0 || sv.flight) }

// tickSettling hurries servers that are being cleaned. A cancel request can
// come too early, before the server has begun what is to be cancelled, so it is
// repeated.
func (m *machine) tickSettling() {
	var next *server
	for sv := m.settling.head; sv != nil; sv = next {
		next = sv.lk.next
		age := m.now - sv.since
		if sv.graceful {
			age -= m.limits.cancelWait // the time that it has for finishing
		}
		switch {
		case age >= m.limits.cancelWait:
			m.closeServer(sv, "server does not come to rest")
		case age > 0 && sv.cancels == 0 && sv.busy() && !sv.rolledBack:
			m.cancelServer(sv)
		}
	}
}

// sync sends the Sync that the client did not send.
func (m *machine) sync(sv *server) {
	m.emit(&sv.conn, syncMsg)
	m.endFlight(sv, expectSync)
}

// failCopy ends a COPY FROM STDIN whose client is gone.
func (m *machine) failCopy(sv *server) {
	m.emit(&sv.conn, copyFailMsg)
	m.expect(sv, expect{kind: copyEnd})
	if sv.expects.at(0).kind.extended() {
		m.sync(sv)
	}
}

var (
	syncMsg     = pgwire.AppendSync(nil)
	copyFailMsg = pgwire.AppendCopyFail(nil, "client is gone")
	rollbackMsg = pgwire.AppendQuery(nil, "ROLLBACK")
)

// settled goes on with a server without client that has answered everything.
func (m *machine) settled(sv *server) {
	switch {
	case sv.cut:
		m.closeServer(sv, "client left within a message")
	case sv.tainted:
		m.closeServer(sv, "unclean server")
	case sv.status == pgwire.TxIdle:
		m.handOut(sv)
	case sv.rolledBack:
		m.closeServer(sv, "transaction cannot be rolled back")
	default:
		sv.rolledBack = true
		m.ownQuery(sv, rollbackMsg)
	}
}

// maxCancels bounds the cancel requests on their way for one server. A client
// that sends more has them dropped.
const maxCancels = 4

// cancelServer asks PostgreSQL to cancel what a server runs. Until the request
// is delivered the server is not given to another client.
func (m *machine) cancelServer(sv *server) {
	if sv.key.PID == 0 || sv.cancels >= maxCancels {
		return
	}
	sv.cancels++
	sv.pool.cancels++
	sv.pool.stats.Cancels++
	m.world.cancelOn(sv)
}

// cancelDone: a cancel request for a server has been delivered, or has failed.
func (m *machine) cancelDone(sv *server) {
	sv.cancels--
	sv.pool.cancels--
	if sv.cancels > 0 {
		return
	}
	sv.pool.cancelWaiters -= len(sv.cancelled)
	for _, done := range sv.cancelled {
		done()
	}
	sv.cancelled = nil
	if sv.state == serverHeld {
		m.handOut(sv)
	}
}

// clientCancels handles a CancelRequest. Done is called when the request can
// hit nothing any more that the client begins afterwards: at once, or when
// PostgreSQL has got it. Found is false when there is no such client; the
// requester is not told, since it may be guessing.
func (m *machine) clientCancels(key pgwire.CancelKey, done func()) (found bool) {
	cl := m.clientOfRequest(key)
	found = cl != nil
	if !found {
		done()
		return false
	}
	switch cl.state {
	case clientWaiting:
		m.refuseRequest(cl)
	case clientSetting:
		// A cancel would hit our SET. The request itself is refused after it.
		cl.cancelWanted = true
	case clientActive:
		sv := cl.server
		if sv.expects.n > 0 || sv.flight {
			m.cancelServer(sv)
		}
		if sv.cancels > 0 {
			sv.cancelled = append(sv.cancelled, done)
			sv.pool.cancelWaiters++
			return true
		}
	}
	done()
	return true
}

// refuseRequest begins to answer the request of a client that has no server.
// The request is still in the socket.
func (m *machine) refuseRequest(cl *client) {
	m.moveClient(cl, clientRefusing)
	cl.refused = false
	m.wake(&cl.conn)
}

// clientDry: a client's socket was read and had nothing.
func (m *machine) clientDry(cl *client) {
	switch cl.state {
	case clientActive:
		m.atRest(cl.server)
	case clientRefusing:
		if !cl.refused && cl.in.left == 0 && len(cl.in.gather) == 0 && len(cl.held) == 0 {
			m.moveClient(cl, clientIdle) // there was no request to refuse
		}
	}
}

// serverDry: a server's socket was read to its end for now. One that lay idle
// with something to say was passed over when clients asked for it.
func (m *machine) serverDry(sv *server) {
	if sv.state == serverIdle && sv.pool.waiting.head != nil {
		m.handOut(sv)
	}
}
