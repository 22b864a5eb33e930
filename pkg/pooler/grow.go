package pooler

import (
	"cmp"
	"log/slog"
	"slices"
	"time"
)

// usage counts what a database, over all its users, or a user, over all
// databases, has: PgBouncer's limits are for those.
type usage struct {
	name    string
	servers int // logged in, or being logged in
	clients int
	refs    int // pools and clients that count here
}

// usages are the usages that somebody counts in. Clients may make up names of
// databases, so those that nobody needs are dropped.
type usages map[string]*usage

func (us usages) take(name string) *usage {
	u := us[name]
	if u == nil {
		u = &usage{name: name}
		us[name] = u
	}
	u.refs++
	return u
}

func (us usages) drop(u *usage) {
	if u.refs--; u.refs == 0 {
		delete(us, u.name)
	}
}

// countServers counts servers that a pool has got or lost, at the beginning of
// a login, and not again at its success.
func (m *machine) countServers(p *pool, n int) {
	p.dbUse.servers += n
	p.userUse.servers += n
	m.freed = m.freed || n < 0
}

// wanted returns how many logins a pool could do with.
func (p *pool) wanted() int {
	need := p.waiting.n - p.servers[serverTesting] // those are free soon
	if p.params == nil {
		need = max(need, min(p.greeting.n, 1))
	}
	return min(need, maxDialsPerPool)
}

// grow dials servers while clients wait for more than are on their way.
func (m *machine) grow(p *pool) {
	if p.paused || m.suspended {
		return // until RESUME
	}
	m.checkUnused(p)
	if p.blocked {
		return // until settleLimits
	}
	if m.heir != nil && !m.needsServers(p) {
		return // those who wait are served by the process that takes over
	}
	for p.dialing < p.wanted() && !p.blocked && m.now >= p.retryAt && !m.stopping && m.mayOpen(p) {
		m.open(p)
	}
}

// open dials one more server.
func (m *machine) open(p *pool) {
	p.dialing++
	m.countServers(p, 1)
	m.world.dial(p)
}

// mayOpen reports whether a pool may have one more server for a client that
// waits. For that, idle servers of other pools go if a limit demands it
// (launch_new_connection in PgBouncer's objects.c).
func (m *machine) mayOpen(p *pool) bool {
	if !m.hasRoom(p) {
		return false
	}
	for m.dbFull(p) {
		if !m.evictServer(p, func(q *pool) bool { return q.dbUse == p.dbUse }) {
			m.blocked, p.blocked = true, true
			return false
		}
	}
	for m.userFull(p) {
		if !m.evictServer(p, func(q *pool) bool { return q.userUse == p.userUse }) {
			m.blocked, p.blocked = true, true
			return false
		}
	}
	if p.open() >= p.size && p.waiting.head != nil {
		m.logClient(levelReserve, "taking connection from reserve_pool", "", p.waiting.head)
	}
	return true
}

// hasRoom looks at the pool's own size. Its reserve is for clients that have
// waited long.
func (m *machine) hasRoom(p *pool) bool {
	if p.open() < p.size {
		return true
	}
	cl := p.waiting.head
	return cl != nil && p.open() < p.size+p.reserve && m.limits.reserveAfter > 0 && m.now-cl.since >= m.limits.reserveAfter
}

func (m *machine) dbFull(p *pool) bool {
	return p.db.MaxConnections > 0 && p.dbUse.servers >= p.db.MaxConnections
}

func (m *machine) userFull(p *pool) bool {
	limit := cmp.Or(m.limits.users[p.key.user].MaxConnections, m.limits.maxUser)
	return limit > 0 && p.userUse.servers >= limit
}

// evictServer closes the server that has been idle longest among the pools that share
// a limit with p.
func (m *machine) evictServer(p *pool, shares func(*pool) bool) bool {
	var oldest *server
	for _, q := range m.pools {
		if q == p || !shares(q) {
			continue
		}
		// Which end is the older one depends on server_round_robin.
		for _, sv := range []*server{q.idle.head, q.idle.tail, q.used.head, q.used.tail} {
			if sv != nil && (oldest == nil || sv.usedAt < oldest.usedAt || sv.usedAt == oldest.usedAt && sv.id < oldest.id) {
				oldest = sv
			}
		}
	}
	if oldest == nil {
		return false
	}
	m.closeServer(oldest, "evicted")
	return true
}

// tickSize closes servers above the pool's size, and opens some up to
// min_pool_size (check_pool_size in PgBouncer's janitor.c).
func (m *machine) tickSize(p *pool) {
	for p.open() > p.size+p.reserve && (p.used.head != nil || p.idle.head != nil) {
		m.closeServer(cmp.Or(p.used.head, p.idle.head), "too many servers in the pool")
	}
	if m.heir == nil && m.legacy == nil && p.dialing == 0 && !p.paused && p.live() < p.minSize && p.live() < p.size && (p.population() > 0 || p.db.User != "") &&
		m.now >= p.retryAt && !m.stopping && !m.dbFull(p) && !m.userFull(p) {
		m.open(p)
	}
}

// population returns how many clients a pool has.
func (p *pool) population() int {
	n := 0
	for s, count := range p.clients {
		if clientState(s) != clientGone {
			n += count
		}
	}
	return n
}

// settleLimits gives pools that a limit kept from growing their turn, after
// servers became idle or went: whose client has waited longest is first.
func (m *machine) settleLimits() {
	m.freed = false
	if !m.blocked {
		return
	}
	m.blocked = false // grow sets it again
	for _, p := range m.pools {
		p.blocked = false
	}
	for _, p := range m.hungry() {
		m.grow(p)
	}
}

// hungry returns the pools whose clients wait, the longest first.
func (m *machine) hungry() []*pool {
	var list []*pool
	for _, p := range m.pools {
		if p.dialing < p.wanted() {
			list = append(list, p)
		}
	}
	slices.SortFunc(list, func(a, b *pool) int {
		return cmp.Or(cmp.Compare(a.waitsSince(), b.waitsSince()),
			cmp.Compare(a.key.database, b.key.database), cmp.Compare(a.key.user, b.key.user))
	})
	return list
}

// waitsSince returns since when the first of a pool's clients has waited.
func (p *pool) waitsSince() time.Duration {
	since := time.Duration(1<<63 - 1)
	for _, l := range []*list[client]{&p.waiting, &p.greeting} {
		if l.head != nil {
			since = min(since, l.head.since)
		}
	}
	return since
}

// starvedAfter is how long a client may wait while a limit that its pool shares
// with others leaves it no server at all and the others' servers never come to
// rest. Then one of theirs is closed in its favour. (With PgBouncer the client
// waits up to query_wait_timeout.)
const starvedAfter = time.Second

// tickStarved has pools that take more than their share give a server up. At most
// one a pool and tick, so that nobody spends his time on logins.
func (m *machine) tickStarved() {
	for _, p := range m.pools {
		p.yield = false
	}
	if !m.blocked {
		return
	}
	for _, p := range m.hungry() {
		if m.now-p.waitsSince() < starvedAfter || p.dialing > 0 || !m.hasRoom(p) {
			continue
		}
		db, user := m.dbFull(p), m.userFull(p)
		var victim *pool
		for _, q := range m.pools {
			if q == p || !(db && q.dbUse == p.dbUse || user && q.userUse == p.userUse) || q.live() <= p.live() {
				continue
			}
			if victim == nil || q.live() > victim.live() ||
				q.live() == victim.live() && (q.key.database+q.key.user < victim.key.database+victim.key.user) {
				victim = q
			}
		}
		if victim != nil {
			victim.yield = true
		}
	}
}

// userClientsFull reports whether a client is one too many of its user.
func (m *machine) userClientsFull(cl *client) bool {
	limit := cmp.Or(m.limits.users[cl.login].MaxClientConnections, m.limits.maxUserClients)
	return limit > 0 && cl.use.clients > limit
}

// dropPool forgets a pool that has nothing.
func (m *machine) dropPool(p *pool) {
	delete(m.pools, p.key)
	m.dbUses.drop(p.dbUse)
	m.userUses.drop(p.userUse)
}

// levelReserve is that of PgBouncer's line about it.
const levelReserve = slog.LevelWarn
