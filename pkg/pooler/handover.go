package pooler

import "time"

// A process that is taken over hands connections to its heir, each at a moment
// when nothing about it is outstanding: a client between two transactions, an
// idle server, or both together where a client has a server and all is answered.
// Whatever else goes on is served here until it comes to such a moment. What is
// on its way belongs to nobody until the heir has said that it has it; if the
// heir goes away without having said so, it is taken back.

// handoverWindow bounds what is on its way. It keeps the heir's answers well
// within the buffer of a Unix socket (net.core.wmem_default, 208 KB), so that
// it can always send them.
const handoverWindow = 64

// heir is the process that takes this one over, as the machine sees it.
type heir struct {
	// send sends a message, with descriptors that stay open here. Failures are
	// reported by the end of the connection.
	send func(kind messageKind, body any, fds ...int)
	// watch and unwatch begin and end the events of a connection.
	watch   func(*conn) error
	unwatch func(*conn)

	seq      uint64
	onTheWay map[uint64]baggage
	// candidates are connections that may be ready to be handed over.
	candidates []*conn
	stmts      map[string]bool // names of those that the heir knows
	pools      map[*pool]int   // that the heir knows, and how many servers it believes to be here
	params     map[*pool]bool  // it knows what the servers report
	asOf       time.Duration   // when something was answered last
	begun      time.Duration
	staying    int // clients that it does not take
	drained    int // of them, those that were told to go
}

// baggage is what is on its way.
type baggage struct {
	cl *client
	sv *server
}

// handOver begins to hand everything over.
func (m *machine) handOver(h *heir) {
	h.onTheWay = make(map[uint64]baggage)
	h.stmts = make(map[string]bool)
	h.pools, h.params = make(map[*pool]int), make(map[*pool]bool)
	h.asOf, h.begun = m.now, m.now
	m.heir = h
	for _, p := range m.pools {
		m.tellPool(p)
	}
	m.tickHeir()
}

// tickHeir has every connection looked at. What comes to rest is noted at that
// moment, too; this is for the moments that are not.
func (m *machine) tickHeir() {
	h := m.heir
	due := h.staying
	if since := m.now - h.begun; since < drainTime {
		due = int(int64(due) * int64(since) / int64(drainTime))
	}
	for _, c := range m.slots {
		if c == nil {
			continue
		}
		if cl := c.cl; cl != nil && cl.stays && h.drained < due && (cl.state == clientIdle || cl.resting()) {
			h.drained++
			m.refuseClient(cl, refusedShutdown, errShutdown)
			continue
		}
		m.note(c)
	}
}

// drainTime is over how long the clients that the heir does not take are told to
// go, between their transactions: not all at once, since they come again.
const drainTime = time.Minute

// note has a connection looked at when the round is over.
func (m *machine) note(c *conn) {
	if !c.noted {
		c.noted = true
		m.heir.candidates = append(m.heir.candidates, c)
	}
}

// departures hands over what is ready. It is called at the end of a round, when
// all that could be sent has been.
func (m *machine) departures() {
	h := m.heir
	i := 0
	for ; i < len(h.candidates) && len(h.onTheWay) < handoverWindow; i++ {
		c := h.candidates[i]
		c.noted = false
		if !c.dropped {
			m.depart(c)
		}
	}
	n := copy(h.candidates, h.candidates[i:])
	clear(h.candidates[n:])
	h.candidates = h.candidates[:n]
	for p, told := range h.pools {
		if n := p.here(); n != told {
			h.pools[p] = n
			h.send(messageCount, carriedCount{carriedText(p.key.database), carriedText(p.key.user), n})
		}
	}
}

// here returns how many servers a pool has that are not on their way to the heir.
func (p *pool) here() int { return p.live() + p.dialing - p.servers[serverLeaving] }

// depart hands a connection over, if it is ready.
func (m *machine) depart(c *conn) {
	cl, sv := c.cl, c.sv
	if sv != nil {
		cl = sv.client
	} else {
		sv = cl.server
	}
	if cl != nil && !cl.stays && cl.state != clientClosing && (cl.tls != nil || sv != nil && sv.tls != nil && cl.mode == PoolSession) {
		m.stay(cl)
	}
	switch {
	case sv != nil && sv.tls != nil:
		if cl == nil && m.serverSpare(sv) {
			m.closeServer(sv, "TLS session cannot be handed over")
		}
	case cl != nil && sv != nil:
		if m.pairRests(cl, sv) {
			m.departPair(cl, sv)
		}
	case cl != nil:
		if m.clientRests(cl) {
			record := m.carryClient(cl)
			m.moveClient(cl, clientLeaving)
			m.dispatch(carriedItem{Client: &record}, baggage{cl: cl}, cl.fd)
		}
	case m.serverRests(sv):
		record := m.carryServer(sv)
		m.moveServer(sv, serverLeaving)
		m.dispatch(carriedItem{Server: &record}, baggage{sv: sv}, sv.fd)
	}
}

func (m *machine) departPair(cl *client, sv *server) {
	pair := carriedPair{Client: m.carryClient(cl), Server: m.carryServer(sv), Status: sv.status, Tainted: sv.tainted}
	pair.OwnUnnamed = cl.unnamedSeq != 0 && cl.unnamedSeq == sv.unnamedSeq
	if cl.linkedAt != outsideTransaction {
		age := m.now - cl.linkedAt
		pair.Linked = &age
	}
	m.moveClient(cl, clientLeaving)
	m.moveServer(sv, serverLeaving)
	m.dispatch(carriedItem{Pair: &pair}, baggage{cl, sv}, cl.fd, sv.fd)
}

func (m *machine) dispatch(item carriedItem, b baggage, fds ...int) {
	h := m.heir
	if len(h.onTheWay) == 0 {
		h.asOf = m.now
	}
	h.seq++
	item.Seq = h.seq
	h.onTheWay[item.Seq] = b
	if b.cl != nil {
		h.unwatch(&b.cl.conn)
	}
	if b.sv != nil {
		h.unwatch(&b.sv.conn)
	}
	h.send(messageItem, item, fds...)
}

// clean reports whether no message of a connection has been passed in part, in
// either direction, and it has not come to its end.
func (c *conn) clean() bool {
	return c.tls == nil && !c.dropped && !c.ended && !c.broken && !c.bye && c.out == nil && len(c.spill) == 0 && c.in.atBoundary()
}

// clientRests reports whether a client without a server can be handed over. What
// it has sent meanwhile is in its socket, and goes along.
func (m *machine) clientRests(cl *client) bool {
	return (cl.state == clientIdle || cl.state == clientWaiting) && !cl.stays && cl.clean() && !cl.heldEnd
}

// serverRests reports whether a server without a client can be handed over. Those
// that clients who stay here need are kept.
func (m *machine) serverRests(sv *server) bool {
	return sv.atEase() && !sv.tainted && sv.epoch == sv.pool.epoch && m.serverSpare(sv)
}

// serverSpare reports whether a server is free, and nobody who stays needs it.
func (m *machine) serverSpare(sv *server) bool {
	return (sv.state == serverIdle || sv.state == serverUsed) &&
		(sv.pool.staying == 0 || sv.pool.idle.n > min(sv.pool.staying, (sv.pool.size+1)/2))
}

// stay keeps a client here until it goes, or is told to.
func (m *machine) stay(cl *client) {
	cl.stays = true
	cl.pool.staying++
	m.heir.staying++
}

// pairRests reports whether a client can be handed over with the server that it
// has.
func (m *machine) pairRests(cl *client, sv *server) bool {
	return cl.state == clientActive && sv.state == serverActive && !cl.stays && cl.clean() && !cl.heldEnd &&
		!cl.cancelWanted && sv.atEase() && !sv.stalled
}

// atEase reports whether a server owes nothing and is owed nothing.
func (sv *server) atEase() bool {
	return sv.clean() && sv.in.left == 0 && len(sv.in.gather) == 0 && !sv.readable && sv.expects.n == 0 && !sv.flight && !sv.skipping && !sv.copyIn && sv.cancels == 0
}

// needsServers reports whether clients of a pool need servers here, though there
// is an heir: those that it does not want, those that are about to end.
func (m *machine) needsServers(p *pool) bool {
	if p.params == nil || p.staying > 0 {
		return true
	}
	for cl := p.waiting.head; cl != nil; cl = cl.lk.next {
		if !m.clientRests(cl) {
			return true
		}
	}
	return false
}

// tellPool tells the heir of a pool.
func (m *machine) tellPool(p *pool) {
	h := m.heir
	if _, told := h.pools[p]; told && (h.params[p] || p.params == nil) {
		return
	}
	h.pools[p], h.params[p] = p.here(), p.params != nil
	record := carriedPool{Database: carriedText(p.key.database), User: carriedText(p.key.user), Params: carryParams(p.params)}
	if k := p.keys; k != nil {
		record.ClientKey, record.ServerKey = k.ClientKey[:], k.ServerKey[:]
	}
	h.send(messagePool, record)
	h.send(messageCount, carriedCount{record.Database, record.User, h.pools[p]})
}

// tellStmt tells the heir of a statement, and returns its name.
func (m *machine) tellStmt(st *stmt) string {
	if h := m.heir; !h.stmts[st.name] {
		h.stmts[st.name] = true
		h.send(messageStmt, carriedStmt{st.name, []byte(st.key)})
	}
	return st.name
}

func (m *machine) carryClient(cl *client) carriedClient {
	m.tellPool(cl.pool)
	r := carriedClient{
		ID: cl.id, PID: cl.key.PID, Secret: []byte(cl.key.Secret), Protocol: uint32(cl.protocol),
		Login: carriedText(cl.login), Database: carriedText(cl.pool.key.database), User: carriedText(cl.pool.key.user),
		Mode: cl.mode.String(), Renames: cl.renames, Addr: cl.addr, Local: cl.local,
		Vars: carryVars(&cl.vars), Rest: carriedText(cl.rest), Facts: carriedText(cl.facts),
		HasUnnamed: cl.unnamedSeq != 0, Connected: m.now - cl.connectedAt,
	}
	if r.HasUnnamed {
		r.Unnamed = append([]byte(nil), cl.unnamed...)
	}
	r.Skip = cl.in.left
	r.Input = append(append(r.Input, cl.in.gather...), cl.held...)
	if cl.requestedAt > 0 {
		age := m.now - cl.requestedAt
		r.Requested = &age
	}
	for name, st := range cl.names {
		r.Names = append(r.Names, carriedName{carriedText(name), m.tellStmt(st)})
	}
	return r
}

func (m *machine) carryServer(sv *server) carriedServer {
	p := sv.pool
	m.tellPool(p)
	r := carriedServer{
		ID: sv.id, PID: sv.key.PID, Secret: []byte(sv.key.Secret), Network: sv.network, Addr: sv.addr, Local: sv.local,
		Database: carriedText(p.key.database), User: carriedText(p.key.user),
		Host: carriedText(sv.host), ByName: sv.byName, Target: p.db.Target.String(), Port: p.db.Port, DBName: carriedText(p.db.DBName),
		Vars: carryVars(&sv.vars), Rest: carriedText(sv.rest), Facts: carriedText(sv.facts), Left: sv.left, Pinned: sv.pinned,
		HasUnnamed: sv.unnamedSeq != unnamedNone, Unreset: sv.unreset, Touched: sv.touched,
		Opened: m.now - sv.openedAt, Used: m.now - sv.usedAt,
	}
	for e := sv.prepared.used.tail; e != nil; e = e.lk.prev {
		r.Prepared = append(r.Prepared, m.tellStmt(e.st))
	}
	return r
}

// answeredByHeir: the heir has what was on its way, or does not want it.
func (m *machine) answeredByHeir(seq uint64, refused bool) {
	h := m.heir
	b, ok := h.onTheWay[seq]
	if !ok {
		return
	}
	delete(h.onTheWay, seq)
	h.asOf = m.now
	if refused {
		if b.cl != nil && b.cl.state == clientLeaving {
			m.stay(b.cl)
		}
		m.takeBack(b)
		if b.cl == nil && b.sv.state == serverIdle {
			m.closeServer(b.sv, "not wanted by the process that takes over")
		}
		return
	}
	if cl := b.cl; cl != nil && cl.state == clientLeaving {
		cl.server = nil
		m.dropClient(cl, endNow) // closes our descriptor, not the connection
	}
	if sv := b.sv; sv != nil && sv.state == serverLeaving {
		sv.client = nil
		m.forgetServer(sv)
	}
}

// abandonLeaving forgets a client that is on its way, and its server. Not a byte
// is sent to either: the heir may have them.
func (m *machine) abandonLeaving(cl *client) {
	if sv := cl.server; sv != nil {
		cl.server, sv.client = nil, nil
		m.forgetServer(sv)
	}
	m.dropClient(cl, endNow)
}

// takeBack goes on with what is not handed over after all.
func (m *machine) takeBack(b baggage) {
	cl, sv := b.cl, b.sv
	if sv != nil && sv.state == serverLeaving {
		to := serverIdle
		if cl != nil && cl.state == clientLeaving {
			to = serverActive
		}
		m.moveServer(sv, to)
		if err := m.heir.watch(&sv.conn); err != nil {
			m.serverEnded(sv)
		}
	}
	if cl != nil && cl.state == clientLeaving {
		to := clientIdle
		if cl.server != nil {
			to = clientActive
		}
		m.moveClient(cl, to)
		if err := m.heir.watch(&cl.conn); err != nil {
			m.clientGone(cl, "cannot be watched")
			return
		}
		m.wake(&cl.conn)
	}
}

// heirGone: there is no heir any more. All that it had not taken is ours.
func (m *machine) heirGone() {
	h := m.heir
	for seq, b := range h.onTheWay {
		delete(h.onTheWay, seq)
		m.takeBack(b)
	}
	m.heir = nil
	for _, c := range m.slots {
		if c == nil {
			continue
		}
		c.noted = false
		if c.cl != nil && c.cl.stays {
			c.cl.stays = false
			c.cl.pool.staying--
		}
		m.wake(c)
	}
	for _, p := range m.pools {
		m.grow(p)
	}
}

// vacant reports whether nothing is left here that somebody might need.
func (m *machine) vacant() bool {
	if m.population > 0 {
		return false
	}
	for _, p := range m.pools {
		if p.live()+p.dialing > 0 {
			return false
		}
	}
	return true
}
