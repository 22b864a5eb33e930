package pooler

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// poolKey names a pool: the clients' name of the database, and the user that
// its servers are logged in as.
type poolKey struct{ database, user string }

// pool is the servers for one database and user, and the clients that share
// them.
type pool struct {
	key poolKey
	db  *Database
	// epoch counts the changes after which servers are to be replaced.
	epoch uint64
	size  int
	mode  PoolMode
	// minSize servers are kept open, reserve more opened for clients that have
	// waited long.
	minSize, reserve int
	lifetime         time.Duration
	unusedAt         time.Duration // when it was last seen with clients or servers
	dbUse, userUse   *usage
	blocked          bool          // by a limit that it shares with other pools
	host             string        // of the last server, if there is one right host at a time
	removed          bool          // its database is no more
	yield            bool          // the next server that is free is closed in another pool's favour
	paused           bool          // by the console: no server for anybody
	leftLogged       time.Duration // when the log spoke of session state last
	// resets: a server is cleaned by a query before the next client gets it.
	resets bool

	clients [numClientStates]int // how many in each state
	servers [numServerStates]int
	dialing int
	// elsewhere are servers that the process has which we are taking over.
	elsewhere int
	staying   int // clients that the process which takes over does not want

	idle     list[server] // most recently used first, with server_round_robin last
	used     list[server] // idle, and to be checked before the next use
	waiting  list[client] // first come, first served
	greeting list[client]

	params paramList         // what a server reported at login; nil before the first
	secret pgwire.Secret     // of the last client whom auth_query found
	keys   *pgwire.ScramKeys // of the last client that proved them
	cache  pgwire.KeyCache   // used by the goroutines that dial

	// The last login's failure, nil after a success.
	failure  *pgwire.Error
	lasting  bool          // the server refused: trying again soon is of no use
	retryAt  time.Duration // not before
	failures int           // in a row

	stats  PoolStats
	period statsPeriod

	cancels       int // cancel requests on their way to servers
	cancelWaiters int // clients' requests that wait for them
}

// PoolStats are a pool's counters since the pooler started. Times are sums.
type PoolStats struct {
	Logins        uint64 // of clients
	Assignments   uint64 // of servers to clients
	Transactions  uint64 // server assignments that came to their end
	Queries       uint64 // ReadyForQuery seen by clients
	BytesReceived uint64 // from clients
	BytesSent     uint64 // to clients

	ServerLogins        uint64
	ServerLoginFailures uint64
	ServersLost         uint64 // closed by the other side
	Cancels             uint64 // sent to servers
	Settings            uint64 // hand-outs that needed a SET
	Pins                uint64 // of servers to clients with session advisory locks
	Leftovers           uint64 // transactions that left session state behind
	Notifications       uint64 // dropped: a pooled server's belong to nobody

	ClientParses uint64 // of named statements
	ServerParses uint64 // sent for them
	Binds        uint64

	WaitTime        time.Duration // of clients for servers
	TransactionTime time.Duration // servers were assigned
	QueryTime       time.Duration // answers were due

	// The same times, each counted: of those who waited, of transactions, and of
	// answers up to a ReadyForQuery.
	Waits, TransactionTimes, QueryTimes Histogram
}

func (m *machine) poolFor(db *Database, user string) *pool {
	key := poolKey{db.Name, user}
	if p := m.pools[key]; p != nil {
		return p
	}
	p := &pool{
		key: key, db: db,
		idle:     list[server]{at: serverLink},
		used:     list[server]{at: serverLink},
		unusedAt: m.now,
		waiting:  list[client]{at: clientLink},
		greeting: list[client]{at: clientLink},
	}
	p.dbUse, p.userUse = m.dbUses.take(db.Name), m.userUses.take(user)
	m.configure(p)
	m.pools[key] = p
	return p
}

// open returns the number of servers that the pool has or is about to have.
func (p *pool) open() int { return p.live() + p.dialing + p.elsewhere }

// live returns the number of servers that are logged in.
func (p *pool) live() int {
	return p.servers[serverIdle] + p.servers[serverUsed] + p.servers[serverActive] + p.servers[serverSettling] + p.servers[serverTesting] +
		p.servers[serverHeld] + p.servers[serverLeaving]
}

// failing reports whether the pool has no server and the database refuses to
// give it one.
func (p *pool) failing(now time.Duration) bool {
	return p.failure != nil && p.lasting && p.live() == 0 && now < p.retryAt && !p.paused
}

// cachedFailure is what a client is told while logins are not tried again.
func (p *pool) cachedFailure() *pgwire.Error {
	return pgwire.NewError(pgwire.SeverityFatal, p.failure.Code,
		"server login has been failing, cached error: "+p.failure.Message+" (server_login_retry)")
}

// loggedIn is a server that a dial made.
type loggedIn struct {
	fd            int
	tls           *tlsSession
	tlsInfo       string
	id            uint64
	key           pgwire.CancelKey
	params        paramList
	epoch         uint64 // of the pool when the login began
	network, addr string // where it is
	host          string // of the database's, as the configuration has it
	byName        bool   // host is a name that stands for addresses
	local         netip.AddrPort
}

// addServer takes a server in.
func (m *machine) addServer(p *pool, n loggedIn) *server {
	p.dialing--
	p.failure, p.failures, p.retryAt = nil, 0, 0
	p.stats.ServerLogins++
	m.movedTo(p, n.host)
	p.params = n.params
	sv := &server{
		pool: p, id: n.id, key: n.key, network: n.network, addr: n.addr, host: n.host, byName: n.byName, local: n.local,
		applied: applied{paramState: n.params.state()},
		status:  pgwire.TxIdle, prepared: newPrepareds(), openedAt: m.now, usedAt: m.now, epoch: n.epoch,
	}
	sv.sv, sv.tls, sv.tlsInfo = sv, n.tls, n.tlsInfo
	sv.seal()
	m.enter(&sv.conn, n.fd)
	p.servers[serverNew]++
	m.log.Log(context.Background(), m.limits.login, "new connection to server", "database", p.key.database, "user", p.key.user, "pid", sv.key.PID)
	m.handOut(sv)
	for p.greeting.head != nil {
		m.greet(p.greeting.head)
	}
	m.grow(p)
	return sv
}

// loginFailed is the other end of a dial. Lasting says that the server itself
// refused in a way that waiting does not mend.
func (m *machine) loginFailed(p *pool, e *pgwire.Error, lasting bool) {
	p.dialing--
	m.countServers(p, -1)
	p.failures++
	p.failure, p.lasting = e, lasting
	p.stats.ServerLoginFailures++
	wait := m.limits.loginRetry
	if !lasting {
		wait = min(wait, maxTransientWait, minTransientWait<<min(p.failures-1, 16))
	}
	p.retryAt = m.now + wait
	if p.failures == 1 || lasting {
		m.log.Warn("failed to log in to server", "database", p.key.database, "user", p.key.user,
			"error", e.Message, "code", e.Code, "retry_in", wait)
	}
	if !lasting || p.live() > 0 || p.paused {
		return
	}
	told := pgwire.NewError(pgwire.SeverityFatal, e.Code, e.Message)
	for p.waiting.head != nil {
		m.refuseClient(p.waiting.head, refusedServerLogin, told)
	}
	for p.greeting.head != nil {
		m.refuseClient(p.greeting.head, refusedServerLogin, told)
	}
}

// attach gets a client a server, or puts it in the queue. It reports whether
// the client may be read now.
func (m *machine) attach(cl *client) bool {
	p := cl.pool
	if p.waiting.n == 0 {
		if sv := m.pick(p, cl); sv != nil {
			m.link(cl, sv)
			return cl.state == clientActive
		}
	}
	if p.failing(m.now) {
		m.refuseClient(cl, refusedServerLogin, p.cachedFailure())
		return false
	}
	m.moveClient(cl, clientWaiting)
	m.grow(p)
	return false
}

// pickDepth is how many idle servers are looked at for one whose parameters
// are the client's already: a comparison of pointers each, against a round trip.
const pickDepth = 16

func (m *machine) pick(p *pool, cl *client) *server {
	var first *server
	for sv, i := p.idle.head, 0; sv != nil && i < pickDepth; sv, i = sv.lk.next, i+1 {
		switch {
		case sv.readable:
			// It has something to say, perhaps goodbye: first listen, see
			// serverDry.
		case sv.handle == cl.handle:
			return sv
		case first == nil:
			first = sv
		}
	}
	return first
}

// link gives a client a server.
func (m *machine) link(cl *client, sv *server) {
	if cl.state == clientWaiting {
		cl.pool.stats.WaitTime += m.now - cl.since
		cl.pool.stats.Waits.add(m.now - cl.since)
	}
	cl.pool.stats.Assignments++
	m.moveServer(sv, serverActive)
	sv.client, cl.server = cl, sv
	sv.touched, sv.stalled, sv.stalledDry, sv.lastType = false, false, false, 0
	sv.unreset = cl.pool.resets || cl.mode == PoolSession && len(m.limits.resetMsg) > 0
	cl.linkedAt, cl.cancelWanted, cl.waitNotified = m.now, false, false
	if sv.handle == cl.handle {
		m.moveClient(cl, clientActive)
		return
	}
	m.adapt(cl, sv)
}

// ownQuery sends a simple query whose answers nobody gets to see.
func (m *machine) ownQuery(sv *server, msg []byte) {
	sv.unnamedSeq = unnamedNone // a simple query destroys it (section 53.2.3)
	m.expect(sv, expect{kind: expectOwnQuery})
	m.emit(&sv.conn, msg)
}

// setDone goes on with a client whose server now has its parameters.
func (m *machine) setDone(cl *client, sv *server) {
	if sv.checking {
		m.locksChecked(cl, sv)
		return
	}
	sv.left &^= leftHalf
	if e := sv.setError; e != nil {
		m.refuseClient(cl, refusedParameter, pgwire.NewError(pgwire.SeverityFatal, e.Code, e.Message))
		return
	}
	m.inform(cl, sv)
	if cl.cancelWanted && !sv.touched {
		cl.server, sv.client = nil, nil
		m.refuseRequest(cl)
		m.handOut(sv)
		return
	}
	m.moveClient(cl, clientActive)
	m.wake(&cl.conn)
}

// release ends a transaction: the server is clean, the client owes nothing.
func (m *machine) release(cl *client, sv *server) {
	if sv.touched {
		m.countTransaction(cl)
	}
	cl.server, sv.client = nil, nil
	m.moveClient(cl, clientIdle)
	m.handOut(sv)
	if m.stopping {
		m.refuseClient(cl, refusedShutdown, errShutdown)
		return
	}
	m.wake(&cl.conn)
}

// handOut gives a clean server to the client that has waited longest, or lays
// it aside. It is the only way to the state idle.
func (m *machine) handOut(sv *server) {
	p := sv.pool
	switch {
	case sv.cancels > 0:
		m.moveServer(sv, serverHeld)
	case sv.tainted:
		m.closeServer(sv, "unclean server")
	case sv.ended:
		m.closeServer(sv, "server connection closed")
	case m.stopping:
		m.closeServer(sv, "shutting down")
	case sv.touched && m.now-sv.openedAt >= p.lifetime:
		m.closeServer(sv, "server lifetime over")
	case sv.epoch != p.epoch:
		m.closeServer(sv, reasonReconfigured)
	case p.paused:
		m.closeServer(sv, reasonPaused)
	case sv.unreset && len(m.limits.resetMsg) > 0:
		sv.unreset = false
		m.test(sv, m.limits.resetMsg, resetFailed)
	case sv.left != 0:
		m.clean(sv)
	case p.yield:
		p.yield = false
		m.closeServer(sv, "evicted")
	case p.waiting.head != nil:
		cl := p.waiting.head
		m.link(cl, sv)
		if cl.state == clientActive {
			m.wake(&cl.conn)
		}
	default:
		sv.expects.shrink()
		if sv.state != serverTesting {
			sv.usedAt = m.now
		}
		m.moveServer(sv, serverIdle)
		m.freed = true
	}
}

// closeServer says goodbye to a server and forgets it. One that a client left
// within a message gets not a byte more: it would be taken for the rest of the
// message, and the message carried out.
func (m *machine) closeServer(sv *server, reason string) {
	if sv.state == serverLeaving {
		m.forgetServer(sv) // the heir may have it
		return
	}
	if !sv.cut && len(sv.spill) == 0 && sv.out == nil && !sv.ended {
		m.one[0] = terminateMsg
		// A server that does not take five bytes sees the socket close.
		_, _ = m.world.write(&sv.conn, m.one[:])
	}
	m.serverGone(sv, reason)
}

var terminateMsg = pgwire.AppendTerminate(nil)

// serverGone forgets a server. Its client must have been taken from it.
func (m *machine) serverGone(sv *server, reason string) {
	if sv.state == serverGone {
		return
	}
	m.log.Log(context.Background(), m.limits.logout, "closing because: "+reason, "server", sv.key.PID,
		"database", sv.pool.key.database, "user", sv.pool.key.user, "age", (m.now - sv.openedAt).Round(time.Second))
	m.forgetServer(sv)
	if !m.blocked { // else others may have waited longer, see settleLimits
		m.grow(sv.pool)
	}
	m.lookAround()
}

// forgetServer closes a server's descriptor, and nothing more.
func (m *machine) forgetServer(sv *server) {
	m.moveServer(sv, serverGone)
	for st := range sv.prepared.byStmt {
		m.stmts.release(st)
	}
	sv.prepared = newPrepareds()
	for sv.expects.n > 0 {
		if x := sv.expects.pop(); x.st != nil && (x.kind == expectOwnClose || x.kind == fakeClose) {
			m.stmts.release(x.st) // these two entries hold one
		}
	}
	m.leave(&sv.conn, endNow)
	m.countServers(sv.pool, -1)
}

// lastingFailure tells a login that the server refuses for good from one that
// may work a moment later: no connection at all, a server that starts or stops
// (class 57), one that has no connection left (class 53).
func lastingFailure(err error) (e *pgwire.Error, lasting bool) {
	if e, ok := errors.AsType[*pgwire.Error](err); ok {
		class := e.Code[:min(2, len(e.Code))]
		return pgwire.NewError(pgwire.SeverityFatal, e.Code, e.Message), class != "57" && class != "53"
	}
	lasting = errors.Is(err, pgwire.ErrNoCredentials) || tlsRefused(err)
	return pgwire.NewError(pgwire.SeverityFatal, pgwire.CodeConnectionFailure, "server connection failed: "+err.Error()), lasting
}
