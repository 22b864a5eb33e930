package pooler

import (
	"errors"
	"fmt"
	"slices"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// legacy is what is known of the process that is being taken over.
type legacy struct {
	stmts map[string]*stmt // by their names on servers; each is held
}

// Reasons why a connection is not taken.
var (
	errNoSuchPool   = errors.New("its database is not in the configuration")
	errOtherServer  = errors.New("its server is not that of the configuration")
	errKeyTaken     = errors.New("its cancel key is taken")
	errUnknownStmt  = errors.New("it has a statement that was not told")
	errNoStatements = errors.New("it has prepared statements, which are not supported here")
)

// inheritFrom begins to take over.
func (m *machine) inheritFrom(generation uint64) {
	m.legacy = &legacy{stmts: make(map[string]*stmt)}
	// Names of statements on servers are never used for another text, so each
	// process has its own range.
	m.stmts.generation = generation
	m.stmts.next = generation << generationShift
}

// generationShift leaves each process four thousand million names, and there can
// be as many processes.
const generationShift = 32

// legacyGone: the other process has nothing any more.
func (m *machine) legacyGone() {
	if m.legacy == nil {
		return
	}
	for _, st := range m.legacy.stmts {
		m.stmts.release(st)
	}
	m.legacy = nil
	for _, p := range m.pools {
		m.countServers(p, -p.elsewhere)
		p.elsewhere = 0
		m.grow(p)
	}
}

// inheritPool learns of a pool.
func (m *machine) inheritPool(r *carriedPool, db *Database) {
	p := m.poolFor(db, string(r.User))
	if p.params == nil && len(r.Params) > 0 {
		p.params = takeParams(r.Params)
		for p.greeting.head != nil {
			m.greet(p.greeting.head)
		}
	}
	if k := (pgwire.ScramKeys{}); p.keys == nil && len(r.ClientKey) == len(k.ClientKey) && len(r.ServerKey) == len(k.ServerKey) {
		copy(k.ClientKey[:], r.ClientKey)
		copy(k.ServerKey[:], r.ServerKey)
		p.keys = &k
	}
}

// inheritCount learns how many servers the other process has.
func (m *machine) inheritCount(r *carriedCount) {
	if p := m.pools[poolKey{string(r.Database), string(r.User)}]; p != nil {
		m.countServers(p, r.Servers-p.elsewhere)
		p.elsewhere = r.Servers
		m.grow(p)
	}
}

// inheritStmt learns of a statement.
func (m *machine) inheritStmt(r *carriedStmt) {
	if m.legacy.stmts[r.Name] == nil {
		m.legacy.stmts[r.Name] = m.stmts.adopt(r.Name, string(r.Key))
	}
}

// inheritClient takes a client. It does nothing until it has arrived.
func (m *machine) inheritClient(r *carriedClient, db *Database, fd int) (*client, error) {
	if db == nil {
		return nil, errNoSuchPool
	}
	v, err := takeVars(r.Vars)
	if err != nil {
		return nil, err
	}
	mode, err := ParsePoolMode(r.Mode)
	if err != nil {
		return nil, err
	}
	for _, n := range r.Names {
		if m.legacy.stmts[n.Stmt] == nil {
			return nil, errUnknownStmt
		}
	}
	p := m.poolFor(db, string(r.User))
	switch {
	case p.params == nil:
		return nil, errNoSuchPool // it was never told
	case r.Renames && m.limits.maxPrepared == 0:
		return nil, errNoStatements
	case r.Skip < 0:
		return nil, errors.New("its input makes no sense")
	case len(r.Secret) < pgwire.SecretLen30 || m.clientByKey(pgwire.CancelKey{PID: r.PID, Secret: string(r.Secret)}) != nil:
		return nil, errKeyTaken
	}
	cl := &client{
		pool: p, id: r.ID, key: pgwire.CancelKey{PID: r.PID, Secret: string(r.Secret)}, protocol: pgwire.Version(r.Protocol),
		login: string(r.Login), addr: r.Addr, local: r.Local, connectedAt: m.now - r.Connected,
		mode: mode, renames: r.Renames, watched: m.limits.leakGuard != GuardOff && mode != PoolSession,
		applied: applied{paramState: paramState{v, params(r.Rest), params(r.Facts)}},
	}
	cl.seal()
	if r.Requested != nil {
		cl.requestedAt = m.now - *r.Requested
	}
	if r.HasUnnamed {
		m.nextSeq++
		cl.unnamed, cl.unnamedSeq = r.Unnamed, m.nextSeq
		if len(r.Unnamed) > pgwire.HeaderLen {
			cl.unnamedLeft = lookAt(text(r.Unnamed[pgwire.HeaderLen+1:]))
		}
	}
	for _, n := range r.Names {
		st := m.legacy.stmts[n.Stmt]
		m.stmts.hold(st)
		m.stmts.name(cl, string(n.Name), st)
	}
	cl.cl = cl
	m.enter(&cl.conn, fd)
	m.population++
	cl.use = m.userUses.take(cl.login)
	cl.use.clients++
	p.dbUse.clients++
	p.clients[clientNew]++
	m.addKey(cl)
	m.hold(cl, r.Input)
	cl.in.left, cl.in.drop = r.Skip, r.Skip > 0
	m.moveClient(cl, clientLeaving)
	return cl, nil
}

// inheritServer takes a server. It does nothing until it has arrived.
func (m *machine) inheritServer(r *carriedServer, db *Database, fd int) (*server, error) {
	if db == nil {
		return nil, errNoSuchPool
	}
	host := string(r.Host)
	if !slices.Contains(db.hosts(), host) || db.Target.String() != r.Target || db.Port != r.Port || db.DBName != string(r.DBName) {
		return nil, errOtherServer
	}
	v, err := takeVars(r.Vars)
	if err != nil {
		return nil, err
	}
	for _, name := range r.Prepared {
		if m.legacy.stmts[name] == nil {
			return nil, errUnknownStmt
		}
	}
	p := m.poolFor(db, string(r.User))
	if db.Target.single() {
		if p.host != "" && p.host != host {
			return nil, errOtherServer
		}
		p.host = host
	}
	sv := &server{
		pool: p, id: r.ID, key: pgwire.CancelKey{PID: r.PID, Secret: string(r.Secret)}, network: r.Network, addr: r.Addr,
		host: host, byName: r.ByName,
		local: r.Local, applied: applied{paramState: paramState{v, params(r.Rest), params(r.Facts)}}, status: pgwire.TxIdle, prepared: newPrepareds(), openedAt: m.now - r.Opened,
		unreset: r.Unreset, touched: r.Touched, epoch: p.epoch, usedAt: m.now - r.Used,
	}
	sv.seal()
	sv.left, sv.pinned = r.Left, r.Pinned
	if r.HasUnnamed {
		sv.unnamedSeq = unnamedUnknown
	}
	for _, name := range r.Prepared {
		st := m.legacy.stmts[name]
		m.stmts.hold(st)
		sv.prepared.add(st)
	}
	sv.sv = sv
	m.enter(&sv.conn, fd)
	p.servers[serverNew]++
	m.countServers(p, 1)
	m.moveServer(sv, serverLeaving)
	return sv, nil
}

// inheritPair takes a client with its server. Of descriptors that it has closed
// nothing is left in fds.
func (m *machine) inheritPair(r *carriedPair, db *Database, fds []int) (*client, *server, error) {
	if !slices.Contains([]byte{pgwire.TxIdle, pgwire.TxActive, pgwire.TxFailed}, r.Status) {
		return nil, nil, fmt.Errorf("its transaction status is %q", r.Status)
	}
	sv, err := m.inheritServer(&r.Server, db, fds[1])
	if err != nil {
		return nil, nil, err
	}
	cl, err := m.inheritClient(&r.Client, db, fds[0])
	if err != nil {
		m.forgetServer(sv)
		fds[1] = -1
		return nil, nil, err
	}
	sv.status, sv.tainted = r.Status, r.Tainted
	if r.OwnUnnamed {
		sv.unnamedSeq, sv.unnamedFlight = cl.unnamedSeq, sv.flightNo
	}
	cl.linkedAt = outsideTransaction
	if r.Linked != nil {
		cl.linkedAt = m.now - *r.Linked
	}
	cl.server, sv.client = sv, cl
	return cl, sv, nil
}

// arrived: what was taken belongs to us now.
func (m *machine) arrived(cl *client, sv *server) {
	switch {
	case cl != nil && sv != nil:
		m.moveServer(sv, serverActive)
		m.moveClient(cl, clientActive)
		m.atRest(sv)
	case cl != nil:
		m.moveClient(cl, clientIdle)
	case len(m.limits.checkMsg) > 0 && m.now-sv.usedAt > m.limits.checkDelay:
		m.moveServer(sv, serverUsed)
		m.checkUnused(sv.pool)
	default:
		m.handOut(sv)
	}
	if cl != nil {
		m.wake(&cl.conn)
	}
	if m.stopping && cl != nil && cl.state == clientIdle {
		m.refuseClient(cl, refusedShutdown, errShutdown)
	}
}
