package pooler

import (
	"cmp"
	"time"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// Timeouts bound what a client does. They are the Config's or, where that says
// something else, a user's. 0 is none, or for a user what the Config says.
type Timeouts struct {
	Query           time.Duration // a query runs, or waits for a server
	IdleTransaction time.Duration // a transaction is open and nothing is asked
	Transaction     time.Duration // a transaction is open
	ClientIdle      time.Duration // a client has no server and asks nothing
}

// or returns a's timeouts, and b's where a has none.
func (a Timeouts) or(b Timeouts) Timeouts {
	return Timeouts{
		Query:           cmp.Or(a.Query, b.Query),
		IdleTransaction: cmp.Or(a.IdleTransaction, b.IdleTransaction),
		Transaction:     cmp.Or(a.Transaction, b.Transaction),
		ClientIdle:      cmp.Or(a.ClientIdle, b.ClientIdle),
	}
}

// The errors are PgBouncer's reasons.
var (
	errQueryTimeout       = pgwire.NewError(pgwire.SeverityFatal, pgwire.CodeProtocolViolation, "query timeout")
	errQueryTimeoutQueued = pgwire.NewError(pgwire.SeverityFatal, pgwire.CodeProtocolViolation, "query_timeout")
	errIdleTransaction    = pgwire.NewError(pgwire.SeverityFatal, pgwire.CodeProtocolViolation, "idle transaction timeout")
	errTransactionTimeout = pgwire.NewError(pgwire.SeverityFatal, pgwire.CodeProtocolViolation, "transaction timeout")
	errClientIdle         = pgwire.NewError(pgwire.SeverityFatal, pgwire.CodeProtocolViolation, "client_idle_timeout")
	errPQExec             = pgwire.NewError(pgwire.SeverityFatal, pgwire.CodeProtocolViolation, "PQexec disallowed")
	errPacketSize         = pgwire.NewError(pgwire.SeverityFatal, pgwire.CodeProtocolViolation, "invalid packet: larger than max_packet_size")
)

// anyTimeouts reports whether there is a timeout to be looked for.
func (l *limits) anyTimeouts() bool {
	if l.timeouts != (Timeouts{}) {
		return true
	}
	for _, u := range l.users {
		if u.Timeouts != (Timeouts{}) {
			return true
		}
	}
	return false
}

// timeoutsOf returns what holds for a client.
func (m *machine) timeoutsOf(cl *client) Timeouts {
	if len(m.limits.users) == 0 {
		return m.limits.timeouts
	}
	return m.limits.users[cl.login].Timeouts.or(m.limits.timeouts)
}

// tickTimeouts ends clients that take too long. What a client has begun is
// cancelled and rolled back, as for one that vanishes, and its server stays;
// PgBouncer closes it.
func (m *machine) tickTimeouts() {
	if !m.limits.anyTimeouts() {
		return
	}
	for _, c := range m.slots {
		if c != nil && c.cl != nil {
			if e := m.overdue(c.cl, m.timeoutsOf(c.cl)); e != nil {
				m.refuseClient(c.cl, refusedTimeout, e)
			}
		}
	}
}

// overdue returns the error for a client that takes too long, or nil.
func (m *machine) overdue(cl *client, t Timeouts) *pgwire.Error {
	over := func(since, limit time.Duration) bool { return limit > 0 && m.now-since > limit }
	switch cl.state {
	case clientIdle:
		if over(cl.since, t.ClientIdle) {
			return errClientIdle
		}
	case clientWaiting:
		if over(cl.since, t.Query) {
			return errQueryTimeoutQueued
		}
	case clientActive:
		sv := cl.server
		running := sv.expects.n > 0 || sv.flight || sv.copyIn
		open := running || sv.status != pgwire.TxIdle
		switch {
		case running && over(sv.busyAt, t.Query):
			return errQueryTimeout
		case open && !running && over(sv.busyAt, t.IdleTransaction):
			return errIdleTransaction
		case open && cl.linkedAt != outsideTransaction && over(cl.linkedAt, t.Transaction):
			return errTransactionTimeout
		}
	}
	return nil
}

// queryWait returns how long a client may wait for a server; 0 is for ever.
func (m *machine) queryWait(cl *client) time.Duration {
	limit := cmp.Or(cl.pool.db.QueryWaitTimeout, m.limits.queryWait)
	if len(m.limits.users) > 0 {
		limit = cmp.Or(m.limits.users[cl.login].QueryWaitTimeout, limit)
	}
	return max(limit, 0)
}

var waitNotice = (&pgwire.Error{Severity: "NOTICE", Code: codeSuccess,
	Message: "No server connection available in postgres backend, client being queued"}).AppendNotice(nil)

// tickWaiting tells clients that wait for a server, and ends those that have
// waited too long. The queue is in the order of arrival, but limits differ.
func (m *machine) tickWaiting(p *pool) {
	var next *client
	for cl := p.waiting.head; cl != nil; cl = next {
		next = cl.lk.next
		waited := m.now - cl.since
		if limit := m.queryWait(cl); limit > 0 && waited >= limit {
			e := *errWaitTimeout
			if p.failure != nil {
				e.Detail = "server login has been failing: " + p.failure.Message
			}
			m.refuseClient(cl, refusedWait, &e)
			continue
		}
		if n := m.limits.waitNotify; n > 0 && waited > n && !cl.waitNotified {
			cl.waitNotified = true
			m.emit(&cl.conn, waitNotice)
		}
	}
}

// Idle servers that have not been used for server_check_delay stand in the
// state used, where nobody takes them before they have answered a query.

// checkFailed is why a server that did not answer it is closed.
const checkFailed = "test query failed"

// tickUnused looks for idle servers that are to be checked before their next use.
func (m *machine) tickUnused(p *pool) {
	if len(m.limits.checkMsg) == 0 {
		return
	}
	var next *server
	for sv := p.idle.head; sv != nil; sv = next {
		next = sv.lk.next
		if m.now-sv.since > m.limits.checkDelay {
			m.moveServer(sv, serverUsed)
		}
	}
}

// checkUnused has servers checked while clients wait for more than will be free
// soon.
func (m *machine) checkUnused(p *pool) {
	for p.used.head != nil && p.waiting.n > p.servers[serverTesting] {
		m.test(p.used.head, m.limits.checkMsg, checkFailed)
	}
}

// tickUnusedPools forgets pools that have had neither clients nor servers for
// long: those of databases that the entry * made, and others if
// pool_idle_timeout says so.
func (m *machine) tickUnusedPools() {
	for _, p := range m.pools {
		if !p.unused() || m.now < p.retryAt || m.legacy != nil {
			p.unusedAt = m.now
			continue
		}
		age := m.now - p.unusedAt
		switch {
		case p.removed, p.db.auto && p.params == nil:
			m.dropPool(p) // it never was: each name that a client makes up would stay
		case p.db.auto && m.limits.autoIdle > 0 && age > m.limits.autoIdle:
			m.dropPool(p)
		case m.limits.poolIdle > 0 && age > m.limits.poolIdle && !(p.minSize > 0 && p.db.User != ""):
			m.log.Info("cleaning up idle pool because: pool idle timeout", "user", p.key.user, "database", p.key.database,
				"age", age.Round(time.Second))
			m.dropPool(p)
		}
	}
}

// CheckEmpty is the value of Config.ServerCheckQuery for the empty query, in
// PgBouncer's spelling.
const CheckEmpty = "<empty>"

func checkMsg(sql string) []byte {
	if sql == CheckEmpty {
		return pgwire.AppendQuery(nil, "")
	}
	return queryMsg(sql)
}
