package pooler

import (
	"cmp"
	"fmt"
	"time"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// PoolMode says for how long a client has a server.
type PoolMode uint8

// The pool modes, in PgBouncer's words.
const (
	PoolInherit     PoolMode = iota // what the database says, or else the Config
	PoolTransaction                 // until its transaction ends
	PoolSession                     // until it leaves
	PoolStatement                   // for one statement: transactions are refused
)

var poolModeNames = [...]string{"", "transaction", "session", "statement"}

// String returns PgBouncer's word for the mode, or "" for PoolInherit.
func (m PoolMode) String() string { return poolModeNames[m] }

// ParsePoolMode returns the mode of a name.
func ParsePoolMode(s string) (PoolMode, error) {
	for i, name := range poolModeNames {
		if i > 0 && s == name {
			return PoolMode(i), nil
		}
	}
	return 0, fmt.Errorf("%q is not one of session, transaction and statement", s)
}

// User is what the configuration says about one user. Its settings go before
// those of the database. For servers the user is the one that they are logged in
// as, for clients the one that they are.
type User struct {
	PoolMode PoolMode
	PoolSize int // 0: the database's
	// ReservePoolSize is 0 for the database's, negative for none.
	ReservePoolSize int
	// MaxConnections and MaxClientConnections are 0 for the Config's.
	MaxConnections       int // of its servers, over all databases
	MaxClientConnections int
	Timeouts             Timeouts
	QueryWaitTimeout     time.Duration // 0: the database's, negative: none
}

// configure gives a pool its settings: the user's, else the database's, which
// has inherited the Config's already.
func (m *machine) configure(p *pool) {
	user := m.limits.users[p.key.user]
	p.size = cmp.Or(user.PoolSize, p.db.PoolSize)
	p.minSize = max(p.db.MinPoolSize, 0)
	p.reserve = max(cmp.Or(user.ReservePoolSize, p.db.ReservePoolSize), 0)
	p.mode = p.db.PoolMode
	if user.PoolMode != PoolInherit {
		p.mode = user.PoolMode
	}
	if p.mode == PoolInherit {
		p.mode = PoolTransaction
	}
	p.paused = m.pausing(p)
	p.lifetime = cmp.Or(p.db.ServerLifetime, m.limits.serverLifetime)
	p.resets = len(m.limits.resetMsg) > 0 && (p.mode == PoolSession || m.limits.resetAlways)
}

// maxPrepared returns how many prepared statements of clients' are kept on a
// server of the pool. In session pooling a client's names are its server's own.
func (m *machine) maxPrepared(p *pool) int {
	if p.mode == PoolSession {
		return 0
	}
	return m.limits.maxPrepared
}

// resetFailed is why a server that could not be cleaned is closed.
const resetFailed = "reset query failed"

// test has a server without a client run a query of the configuration. Why says
// what it means if that fails.
func (m *machine) test(sv *server, msg []byte, why string) {
	m.moveServer(sv, serverTesting)
	sv.testing, sv.setError = why, nil
	m.ownQuery(sv, msg)
}

// tested goes on with a server that has answered.
func (m *machine) tested(sv *server) {
	if sv.setError != nil || sv.status != pgwire.TxIdle {
		m.closeServer(sv, sv.testing)
		return
	}
	m.handOut(sv)
}

// tickTesting closes servers that do not answer.
func (m *machine) tickTesting() {
	for sv := m.testing.head; sv != nil && m.now-sv.since >= m.limits.cancelWait; sv = m.testing.head {
		m.closeServer(sv, sv.testing)
	}
}

// sessionRests: the server of a client in session pooling has answered all, and
// no transaction is open. The client keeps it.
func (m *machine) sessionRests(cl *client) {
	if cl.linkedAt != outsideTransaction {
		m.countTransaction(cl)
		cl.linkedAt = outsideTransaction
	}
	if m.stopping {
		m.refuseClient(cl, refusedShutdown, errShutdown)
		return
	}
	if sv := cl.server; sv.handle != cl.handle {
		m.adapt(cl, sv) // after DISCARD ALL: back to those of its login
	}
}

// outsideTransaction is the value of client.linkedAt between the transactions of
// a session.
const outsideTransaction = -1

// countTransaction counts a transaction that has come to its end.
func (m *machine) countTransaction(cl *client) {
	cl.pool.stats.Transactions++
	cl.pool.stats.TransactionTime += m.now - cl.linkedAt
	cl.pool.stats.TransactionTimes.add(m.now - cl.linkedAt)
}

// resting reports whether a client has a server only because its session goes
// on.
func (cl *client) resting() bool {
	sv := cl.server
	return cl.state == clientActive && (cl.mode == PoolSession || sv.pinned) && sv.expects.n == 0 && !sv.flight && !sv.copyIn &&
		sv.status == pgwire.TxIdle && cl.in.atBoundary()
}

var errStatementPooling = pgwire.NewError(pgwire.SeverityFatal, pgwire.CodeProtocolViolation,
	"transaction blocks not allowed in statement pooling mode")

// inSession reports whether a server talks to a client that it belongs to, even
// if no answer is due.
func (m *machine) inSession(sv *server) bool {
	return sv.client != nil && (sv.client.mode == PoolSession || sv.pinned) && sv.client.state == clientActive
}

// queryMsg returns the message for a query, or nil for none.
func queryMsg(sql string) []byte {
	if sql == "" {
		return nil
	}
	return pgwire.AppendQuery(nil, sql)
}
