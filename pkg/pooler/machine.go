package pooler

import (
	"cmp"
	"context"
	"crypto/x509"
	"log/slog"
	"net/netip"
	"time"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// world is what the machine wishes done outside. The calls return at once; what
// comes of them is reported to the machine later, never from within the call.
type world interface {
	// dial logs in one more server for the pool: addServer or loginFailed.
	dial(p *pool)
	// cancelOn asks PostgreSQL to cancel what the server runs: cancelDone.
	cancelOn(sv *server)
	// write sends segs in order and returns how many bytes were taken: less
	// than all when the socket is full. An error is final.
	write(c *conn, segs [][]byte) (int, error)
	// end ends a connection, or its sending direction.
	end(c *conn, how ending)
}

// ending is how a connection ends.
type ending uint8

const (
	endSending ending = iota // nothing more is sent; the connection is still read
	// endParting: the client took its leave and may close first. To the machine
	// the connection is gone.
	endParting
	endNow
)

// limits is the part of the configuration that the machine uses.
type limits struct {
	maxPrepared    int
	queryWait      time.Duration
	loginWait      time.Duration
	loginRetry     time.Duration
	serverLifetime time.Duration
	serverIdle     time.Duration
	cancelWait     time.Duration
	suspendTimeout time.Duration
	logStats       bool
	loginNotice    []byte // a message; nil: none
	statsPeriod    time.Duration
	parting        time.Duration // for a client that took its leave to close
	resetMsg       []byte        // the query that cleans a session for the next client; nil: none
	resetAlways    bool          // it also runs where transactions are pooled
	users          map[string]User
	timeouts       Timeouts
	waitNotify     time.Duration // after which a client is told that it waits; 0: never
	checkMsg       []byte        // the query that checks a server before its use; nil: none
	checkDelay     time.Duration // for servers that were not used for so long
	poolIdle       time.Duration // after which an unused pool is forgotten; 0: never
	autoIdle       time.Duration // one of a database that the entry * made; 0: never
	fastClose      bool          // a server that is to be replaced goes though a session goes on there
	peerID         int           // stands in cancel keys; 0: nothing does
	roundRobin     bool          // servers are used in turn
	noPQExec       bool          // simple queries are refused
	maxPacket      int           // bytes of a client's message; 0: any number
	reserveAfter   time.Duration // how long a client waits before its pool's reserve is used; 0: it is not
	maxUser        int           // servers of a user, over all databases; 0: any number
	maxUserClients int
	leakGuard      Guard
	gatherBudget   int // bytes of unfinished messages, over all clients

	login, logout, trouble slog.Level // of what is logged about each connection
}

// Bounds that have no setting.
const (
	// gatherBudget bounds the memory of messages that must be seen whole and
	// have not arrived whole.
	gatherBudget = 32 << 20
	// maxDialsPerPool bounds the logins under way in a pool. PgBouncer has
	// one at a time; a few more fill an empty pool sooner without a storm of
	// forks at the server.
	maxDialsPerPool = 4
	// lingerTimeout is for a client to read its last words and close.
	lingerTimeout = 2 * time.Second
	// minTransientWait is between logins to a server that cannot be reached,
	// doubled each time up to maxTransientWait (or the login retry time, if that
	// is less): short, because a server that restarts is back in about a second,
	// and clients wait for it.
	minTransientWait = 250 * time.Millisecond
	maxTransientWait = 2 * time.Second
)

func limitsOf(c *Config) limits {
	return limits{
		maxPrepared:    c.MaxPrepared,
		queryWait:      c.QueryWaitTimeout,
		loginWait:      c.ClientLoginTimeout,
		loginRetry:     c.ServerLoginRetry,
		serverLifetime: c.ServerLifetime,
		serverIdle:     c.ServerIdleTimeout,
		cancelWait:     c.CancelWaitTimeout,
		suspendTimeout: c.SuspendTimeout,
		logStats:       c.LogStats,
		loginNotice:    noticeMsg(c.LoginNotice),
		statsPeriod:    c.StatsPeriod,
		parting:        cmp.Or(c.parting, partingTimeout),
		resetMsg:       queryMsg(c.ServerResetQuery),
		resetAlways:    c.ServerResetQueryAlways,
		users:          c.UserSettings,
		timeouts:       c.Timeouts,
		waitNotify:     c.QueryWaitNotify,
		checkMsg:       checkMsg(c.ServerCheckQuery),
		checkDelay:     c.ServerCheckDelay,
		poolIdle:       c.PoolIdleTimeout,
		autoIdle:       c.AutoDBIdleTimeout,
		fastClose:      c.ServerFastClose,
		peerID:         c.PeerID,
		roundRobin:     c.ServerRoundRobin,
		noPQExec:       c.DisablePQExec,
		maxPacket:      c.MaxPacketSize,
		reserveAfter:   c.ReservePoolTimeout,
		maxUser:        c.MaxUserConnections,
		maxUserClients: c.MaxUserClientConnections,
		leakGuard:      c.LeakGuard,
		gatherBudget:   gatherBudget,
		login:          levelIf(c.LogConnections, slog.LevelInfo),
		logout:         levelIf(c.LogDisconnections, slog.LevelInfo),
		trouble:        levelIf(c.LogPoolerErrors, slog.LevelWarn),
	}
}

// levelIf returns the level of what is to be logged, or else the debug level.
func levelIf(on bool, level slog.Level) slog.Level {
	if on {
		return level
	}
	return slog.LevelDebug
}

// machine is the pooler without its sockets. It is not safe for concurrent use:
// the loop owns it.
type machine struct {
	limits limits
	world  world
	log    *slog.Logger
	// now is the time since the pooler started, set by the loop each round.
	now time.Duration

	slots []*conn // nil: free
	gens  []uint32
	free  []uint32

	pools map[poolKey]*pool
	byPID map[uint32]*client // the first four bytes of cancel keys; others follow by client.sameKey

	dbUses, userUses usages
	// blocked: a limit keeps a pool from growing. Freed: since it was last looked
	// at, a server has become idle or gone.
	blocked, freed bool

	population int // clients that have a slot

	heir   *heir   // who takes over; nil: nobody
	legacy *legacy // of whom we have taken over; nil: nobody, or all of it

	stmts    stmts
	nextSeq  uint64 // of unnamed statements
	gathered int    // bytes in gather buffers of more than a header's size
	// heldBytes are the clients' input set aside.
	heldBytes int

	ready []*conn // to be read: readable and nobody in the way
	dirty []*conn // have output queued

	closing  list[client]
	settling list[server]
	testing  list[server]

	arena  arena
	outqs  []*outq
	spills [][]byte
	one    [1][]byte

	// What the console's commands have done: see pause.go and suspend.go.
	marks         map[string]mark // by database
	paused        bool            // all databases
	watches       []watch
	suspended     bool
	clientsParked bool
	suspendedAt   time.Duration
	unloading     bool

	// stopping: no transaction is begun any more; whoever ends one is told to
	// go.
	stopping bool

	refusals [numRefusals]uint64

	period periodTimes
}

func newMachine(l limits, w world, log *slog.Logger) *machine {
	return &machine{
		limits:   l,
		world:    w,
		log:      log,
		pools:    make(map[poolKey]*pool),
		marks:    make(map[string]mark),
		dbUses:   make(usages),
		userUses: make(usages),
		byPID:    make(map[uint32]*client),
		stmts:    stmts{byKey: make(map[string]*stmt)},
		closing:  list[client]{at: clientLink},
		settling: list[server]{at: serverLink},
		testing:  list[server]{at: serverLink},
		arena:    arena{buf: make([]byte, arenaSize)},
	}
}

// enter gives a connection a slot.
func (m *machine) enter(c *conn, fd int) {
	c.fd = fd
	c.writable = true
	if n := len(m.free); n > 0 {
		c.slot = m.free[n-1]
		m.free = m.free[:n-1]
	} else {
		c.slot = uint32(len(m.slots))
		m.slots = append(m.slots, nil)
		m.gens = append(m.gens, 0)
	}
	c.gen = m.gens[c.slot]
	m.slots[c.slot] = c
}

// leave closes a connection and gives its slot back under a new generation, so
// that events and answers still on their way to it find nobody.
func (m *machine) leave(c *conn, how ending) {
	if c.dropped {
		return
	}
	c.dropped = true
	m.world.end(c, how)
	m.slots[c.slot] = nil
	m.gens[c.slot]++
	m.free = append(m.free, c.slot)
	if c.cl != nil {
		m.population--
		m.ungather(&c.in) // a server's is not counted: there are few, and small ones
	}
	m.putSpill(c)
}

// find returns the connection of an event, or nil if it is gone.
func (m *machine) find(slot, gen uint32) *conn {
	if int(slot) >= len(m.slots) || m.gens[slot] != gen {
		return nil
	}
	return m.slots[slot]
}

// newcomer is a client that has logged in.
type newcomer struct {
	fd       int
	tls      *tlsSession
	tlsInfo  string
	certs    []*x509.Certificate // the client's, checked
	binding  []byte              // to the TLS session, for SCRAM-SHA-256-PLUS
	id       uint64
	database *Database
	from     *settings // that the database is from
	login    string    // the user that it is
	own      bool      // our own user, by a Unix socket: an admin
	user     string    // the user that its servers are logged in as
	protocol pgwire.Version
	addr     netip.AddrPort // whom it is: the peer, or whom a trusted balancer speaks for
	peer     netip.AddrPort
	local    netip.AddrPort // where it was accepted
	vars     vars
	varsSet  [numVars]bool
	extra    []pgwire.Param    // other run-time parameters of its startup packet
	keys     *pgwire.ScramKeys // what its login revealed
	secret   pgwire.Secret     // what auth_query found
}

// addClient takes a client in. Its welcome follows as soon as the pool's
// parameters are known.
func (m *machine) addClient(n newcomer) *client {
	p := m.poolFor(n.database, n.user)
	if n.keys != nil {
		p.keys = n.keys
	}
	if n.secret.Kind != pgwire.SecretNone {
		p.secret = n.secret
	}
	cl := &client{
		pool: p, id: n.id, protocol: n.protocol, login: n.login, addr: n.addr, local: n.local,
		applied: applied{paramState: paramState{vars: n.vars, rest: newParams(n.extra)}}, varsSet: n.varsSet, connectedAt: m.now,
		mode: p.mode, renames: m.maxPrepared(p) > 0, watched: m.limits.leakGuard != GuardOff && p.mode != PoolSession,
	}
	cl.cl, cl.tls, cl.tlsInfo = cl, n.tls, n.tlsInfo
	m.enter(&cl.conn, n.fd)
	m.population++
	cl.use = m.userUses.take(n.login)
	cl.use.clients++
	p.dbUse.clients++
	p.clients[clientNew]++
	m.enroll(cl)
	p.stats.Logins++
	m.moveClient(cl, clientGreeting)
	m.emit(&cl.conn, pgwire.AppendAuthenticationOk(nil))
	switch {
	case m.stopping:
		m.refuseClient(cl, refusedShutdown, errShutdown)
	case m.unloading:
		m.refuseClient(cl, refusedShutdown, errShuttingDown)
	case m.marks[p.key.database].disabled:
		m.refuseClient(cl, refusedDisabled, errDisabled(p.key.database))
	case p.db.MaxClientConnections > 0 && p.dbUse.clients > p.db.MaxClientConnections:
		m.refuseClient(cl, refusedDBClients, errDBClients)
	case m.userClientsFull(cl):
		m.refuseClient(cl, refusedUserClients, errUserClients)
	case p.params != nil:
		m.greet(cl)
	case p.failing(m.now):
		m.refuseClient(cl, refusedServerLogin, p.cachedFailure())
	default:
		m.grow(p)
	}
	return cl
}

// greet sends a client what follows AuthenticationOk (section 53.2.1).
func (m *machine) greet(cl *client) {
	defaults := cl.pool.params.state()
	var out []byte
	for i := range cl.vars {
		if !cl.varsSet[i] {
			cl.vars[i] = defaults.vars[i]
		}
	}
	cl.facts = defaults.facts
	cl.seal()
	for _, p := range cl.pool.params {
		value := p.Value
		if i := varIndex(p.Name); i >= 0 {
			value = cl.vars[i]
		} else if v, ok := cl.rest.get(p.Name); ok {
			value = v
		}
		out = pgwire.AppendParameterStatus(out, p.Name, value)
	}
	out = pgwire.AppendBackendKeyData(out, cl.key)
	out = append(out, m.limits.loginNotice...)
	m.emit(&cl.conn, pgwire.AppendReadyForQuery(out, pgwire.TxIdle))
	m.moveClient(cl, clientIdle)
	m.wake(&cl.conn)
}

// clientGone forgets a client whose connection is of no use any more.
func (m *machine) clientGone(cl *client, reason string) {
	switch cl.state {
	case clientGone:
		return
	case clientLeaving:
		m.abandonLeaving(cl)
		return
	}
	if cl.state != clientClosing {
		m.logClient(m.limits.logout, "closing because: ", reason, cl)
	}
	m.detach(cl, false)
	m.dropClient(cl, endNow)
}

// dropClient forgets a client that has no server.
func (m *machine) dropClient(cl *client, how ending) {
	m.moveClient(cl, clientGone)
	if cl.stays {
		cl.stays = false
		cl.pool.staying--
	}
	m.forget(cl)
	m.leave(&cl.conn, how)
}

// logClient logs what concerns one client.
func (m *machine) logClient(level slog.Level, what, why string, cl *client) {
	if m.log.Enabled(context.Background(), level) {
		m.log.Log(context.Background(), level, what+why, "client", cl.addr, "database", cl.pool.key.database, "user", cl.pool.key.user)
	}
}

// forget releases what a client holds beside its socket.
func (m *machine) forget(cl *client) {
	if cl.use != nil {
		cl.use.clients--
		m.userUses.drop(cl.use)
		cl.use = nil
		cl.pool.dbUse.clients--
	}
	m.dropKey(cl)
	m.stmts.unnameAll(cl, func(string) bool { return true })
	cl.names, cl.unnamed = nil, nil
	m.hold(cl, nil)
}

// hold sets a client's input aside; nil is nothing any more.
func (m *machine) hold(cl *client, b []byte) {
	m.heldBytes += len(b) - len(cl.held)
	cl.held = b
}

// detach takes a client's server from it. Graceful says that the client took
// its leave, so that what it asked for is to be done still.
func (m *machine) detach(cl *client, graceful bool) {
	sv := cl.server
	if sv == nil {
		return
	}
	cut := !cl.in.atBoundary()
	cl.server, sv.client = nil, nil
	m.settle(sv, cut, graceful)
}

// refuseClient ends a client with an error: at once if nobody is in the middle
// of talking, and never within a message that is being relayed to it.
func (m *machine) refuseClient(cl *client, why refusal, e *pgwire.Error) {
	if cl.state == clientClosing || cl.state == clientGone || cl.state == clientLeaving {
		return
	}
	m.refusals[why]++
	m.logClient(m.limits.trouble, "pooler error: ", e.Message, cl)
	if sv := cl.server; sv == nil || sv.in.atBoundary() {
		m.emit(&cl.conn, e.Append(nil))
	}
	m.closeClient(cl)
}

// closeClient closes a client when it has got what was queued for it.
func (m *machine) closeClient(cl *client) {
	m.detach(cl, false)
	m.moveClient(cl, clientClosing)
	m.forget(cl)
	cl.bye = true
	m.ungather(&cl.in)
	cl.in = framer{}
	if !cl.dirty && len(cl.spill) == 0 {
		m.world.end(&cl.conn, endSending)
	}
	m.wake(&cl.conn)
}

// ungather gives a gather buffer back.
func (m *machine) ungather(f *framer) {
	if len(f.gather) > len(f.small) {
		m.gathered -= len(f.gather)
	}
	f.gather = nil
}
