package pooler

import (
	"net/netip"
	"time"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// clientState is where a client stands. Only moveClient changes it.
type clientState uint8

const (
	clientNew      clientState = iota
	clientGreeting             // authenticated; waits for a server to learn the parameters from
	clientIdle                 // no server, no request
	clientWaiting              // has a request, waits for a server
	clientSetting              // has a server that is being given the client's parameters
	clientActive               // has a server
	clientRefusing             // its request was cancelled before it had a server, and is answered here
	clientClosing              // its last words are going out
	clientLeaving              // on its way to the process that takes over
	clientGone
	numClientStates
)

// serverState is where a server stands. Only moveServer changes it.
type serverState uint8

const (
	serverNew      serverState = iota
	serverIdle                 // clean and free
	serverActive               // a client has it
	serverSettling             // its client went away in the middle: it is being cleaned
	serverUsed                 // clean and free, but to be checked before its next use
	serverTesting              // it runs a query of the configuration, to be cleaned or checked
	serverHeld                 // clean, but a cancel request for its last client is still on its way
	serverLeaving              // on its way to the process that takes over
	serverGone
	numServerStates
)

// client is a client connection after its login.
type client struct {
	conn
	state clientState
	pool  *pool
	lk    link[client] // in pool.greeting, pool.waiting or machine.closing

	server *server // in states setting and active

	// The pool's settings when the client came: a reload does not change the
	// rules within a session.
	mode        PoolMode
	watched     bool      // for what it leaves behind on servers, see guard.go
	unnamedLeft leftovers // by its unnamed statement
	renames     bool      // its named statements are tracked, and have our names on servers

	id       uint64 // for the console
	key      pgwire.CancelKey
	sameKey  *client // the next one whose key begins with the same four bytes
	protocol pgwire.Version
	login    string // the user that it is
	use      *usage // of that user; nil when it is not counted any more
	addr     netip.AddrPort
	local    netip.AddrPort
	applied
	varsSet [numVars]bool // which vars the client named at login

	// held is input that was received and not yet processed.
	held []byte
	// heldEnd: the input ended behind held.
	heldEnd bool

	names map[string]*stmt // prepared statements by the client's names
	// The unnamed statement: the whole Parse message if it is kept, and its
	// number, 0 for none.
	unnamed    []byte
	unnamedSeq uint64

	// refused: an error was already sent for the request being refused.
	refused bool
	// stays: the process that takes over does not want it.
	stays bool
	// cancelWanted: cancelled while its server was being given parameters.
	cancelWanted bool
	// waitNotified: it has been told that it waits.
	waitNotified bool

	connectedAt time.Duration
	requestedAt time.Duration // when its last query was sent on; 0: never
	since       time.Duration // of waiting, greeting or closing
	// linkedAt is since when it has its server, or in session pooling since when
	// its transaction goes on.
	linkedAt time.Duration
}

// server is a server connection after its login.
type server struct {
	conn
	state serverState
	pool  *pool
	lk    link[server] // in pool.idle, pool.used, machine.settling or machine.testing

	client *client // in state active

	id            uint64 // for the console
	key           pgwire.CancelKey
	network, addr string // where it is, for cancel requests
	host          string // as the configuration has it
	byName        bool   // host is a name that stands for addresses
	local         netip.AddrPort
	applied

	expects expects
	// flight: messages of the extended protocol were sent and no Sync yet.
	flight bool
	// skipping: the server skips messages up to a Sync that the client has not
	// sent yet; so do we.
	skipping   bool
	copyIn     bool
	stalled    bool // the client's input waits for answers, see machine.stall
	stalledDry bool // until all has been answered
	tainted    bool // not to be used again
	touched    bool // bytes of the present client were sent
	status     byte // of the last ReadyForQuery
	lastType   byte // the last message passed to the client: nothing follows a FATAL

	prepared prepareds
	// unnamedSeq is which client's unnamed statement the server has:
	// unnamedNone or unnamedUnknown, or a number.
	unnamedSeq uint64
	// flightNo counts flights; unnamedFlight is the one in which the unnamed
	// statement was parsed.
	flightNo, unnamedFlight uint64

	// epoch is the pool's when the login began: a server of an older one is
	// closed when it is free.
	epoch uint64

	cancels   int      // cancel requests on their way
	cancelled []func() // to be called when there are none any more
	// While it is settled: the client left within a message, it took its
	// leave, our ROLLBACK was sent.
	cut, graceful, rolledBack bool

	setError *pgwire.Error // why our own query failed
	ownRows  bool          // our query had rows

	left     leftovers // what clients may have left behind in the session
	checking bool      // our query asks for advisory locks
	pinned   bool      // its client holds some
	testing  string    // what it means if the query that it runs fails
	unreset  bool      // to be cleaned by the reset query before anybody else gets it

	openedAt time.Duration
	usedAt   time.Duration // when a client last left it
	since    time.Duration // of the present state
	busyAt   time.Duration // since when answers are due
}

// Values of server.unnamedSeq that are no statement's number.
const (
	unnamedNone    = 0
	unnamedUnknown = ^uint64(0)
)

// moveClient changes a client's state, keeping lists and counts.
func (m *machine) moveClient(cl *client, to clientState) {
	p := cl.pool
	if l := m.clientList(p, cl.state); l != nil {
		l.remove(cl)
	}
	p.clients[cl.state]--
	cl.state = to
	p.clients[to]++
	cl.since = m.now
	if l := m.clientList(p, to); l != nil {
		l.pushBack(cl)
	}
	if m.heir != nil {
		m.note(&cl.conn)
	}
}

func (m *machine) clientList(p *pool, s clientState) *list[client] {
	switch s {
	case clientGreeting:
		return &p.greeting
	case clientWaiting:
		return &p.waiting
	case clientClosing:
		return &m.closing
	}
	return nil
}

// moveServer changes a server's state, keeping lists and counts.
func (m *machine) moveServer(sv *server, to serverState) {
	p := sv.pool
	if l := m.serverList(p, sv.state); l != nil {
		l.remove(sv)
	}
	p.servers[sv.state]--
	sv.state = to
	p.servers[to]++
	sv.since = m.now
	if m.heir != nil {
		m.note(&sv.conn)
	}
	if l := m.serverList(p, to); l != nil {
		if to == serverTesting || to == serverIdle && m.limits.roundRobin {
			l.pushBack(sv) // who has been tested longest is first
			return
		}
		// The most recently used server goes first: its caches are warm, and
		// the others reach their idle timeout.
		l.pushFront(sv)
	}
}

func (m *machine) serverList(p *pool, s serverState) *list[server] {
	switch s {
	case serverIdle:
		return &p.idle
	case serverUsed:
		return &p.used
	case serverSettling:
		return &m.settling
	case serverTesting:
		return &m.testing
	}
	return nil
}

func clientLink(c *client) *link[client] { return &c.lk }

func serverLink(s *server) *link[server] { return &s.lk }
