package pooler

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// socket describes one connection in protocol, for the console. Times count
// from the pooler's start; the zero time is never.
type socket struct {
	server         bool
	user, database string
	state          string // a word of PgBouncer's
	addr, local    netip.AddrPort
	path           string // of a Unix socket, in the place of addr

	connected, requested time.Duration
	wait                 time.Duration // of a client for a server, so far
	closeNeeded          bool          // a server that will not be used again

	id        uint64
	fd        int
	linkFD    int    // of the connection that it is linked to; 0: none
	ptr, link uint64 // names of the connection and of the one that it is linked to; 0: none
	pid       uint32 // of the server process

	tls         string // version and cipher; empty for plain text
	application string
	prepared    int // statements

	pktRemain, sendRemain, pktAvail int // bytes of a message to come, to be sent, set aside
}

// socketChunk is how many slots are looked at in one message to the loop, and
// how many sockets are shown between two: each takes well below a millisecond,
// so that nobody's query is held up by somebody who looks on.
const socketChunk = 64

// eachSocket calls visit for every connection in protocol. It is no picture of
// one moment: a connection that comes or goes meanwhile may be missed. The
// argument is valid during the call.
func (p *Pooler) eachSocket(visit func(*socket)) error {
	found := make([]socket, 0, socketChunk)
	for from, more := 0, true; more; from += socketChunk {
		found = found[:0]
		if !p.ask(func(m *machine) {
			to := min(from+socketChunk, len(m.slots))
			for _, c := range m.slots[min(from, to):to] {
				if s := m.describe(c); s != nil {
					found = append(found, *s)
				}
			}
			more = to < len(m.slots)
		}) {
			return errShutdown
		}
		for i := range found {
			visit(&found[i])
		}
	}
	return nil
}

// ask has fn look at the machine, and waits. It reports false, and does not
// call fn, when the loop has ended.
func (p *Pooler) ask(fn func(*machine)) bool {
	done := make(chan struct{})
	if !p.loop.post(func() {
		fn(p.loop.m)
		close(done)
	}) {
		return false
	}
	<-done
	return true
}

// describe describes a connection, unless it is nobody's or about to close.
func (m *machine) describe(c *conn) *socket {
	switch {
	case c == nil:
		return nil
	case c.cl != nil:
		return m.describeClient(c.cl)
	}
	return m.describeServer(c.sv)
}

func (c *conn) socket() socket {
	return socket{
		fd: c.fd, ptr: c.ptr(), tls: c.tlsInfo, pktRemain: c.in.left, sendRemain: len(c.spill), pktAvail: len(c.in.gather),
	}
}

// ptr names a connection as PgBouncer's addresses do, without giving one away.
func (c *conn) ptr() uint64 { return uint64(c.gen)<<32 | uint64(c.slot) + 1 }

// The states of clients and servers in PgBouncer's words. A server that is
// being cleaned is called "tested", which in PgBouncer is one that runs the
// reset query.
var (
	clientWords = [numClientStates]string{
		clientGreeting: "waiting", clientIdle: "idle", clientWaiting: "waiting", clientSetting: "active",
		clientActive: "active", clientRefusing: "active",
	}
	serverWords = [numServerStates]string{
		serverIdle: "idle", serverActive: "active", serverSettling: "tested", serverTesting: "tested",
		serverUsed: "used", serverHeld: "being_canceled",
	}
)

func (m *machine) describeClient(cl *client) *socket {
	if clientWords[cl.state] == "" {
		return nil
	}
	s := cl.socket()
	s.user, s.database, s.state = cl.login, cl.pool.key.database, clientWords[cl.state]
	s.addr, s.local = cl.addr, cl.local
	s.connected, s.requested = cl.connectedAt, cl.requestedAt
	switch cl.state {
	case clientWaiting:
		s.requested, s.wait = cl.since, m.now-cl.since
	case clientGreeting:
		s.wait = m.now - cl.since
	}
	s.id, s.application, s.prepared = cl.id, cl.vars[varApplicationName], len(cl.names)
	s.pktAvail += len(cl.held)
	if cl.server != nil {
		s.link, s.linkFD = cl.server.ptr(), cl.server.fd
	}
	return &s
}

func (m *machine) describeServer(sv *server) *socket {
	if serverWords[sv.state] == "" {
		return nil
	}
	s := sv.socket()
	s.server = true
	s.user, s.database, s.state = sv.pool.key.user, sv.pool.key.database, serverWords[sv.state]
	s.local, s.pid = sv.local, sv.key.PID
	if sv.network == "unix" {
		s.path = sv.addr
	} else {
		s.addr, _ = netip.ParseAddrPort(sv.addr) // as the net package writes it
		s.addr = netip.AddrPortFrom(s.addr.Addr().Unmap(), s.addr.Port())
	}
	s.connected, s.requested = sv.openedAt, sv.busyAt
	s.closeNeeded = sv.tainted || sv.epoch != sv.pool.epoch
	s.id, s.application, s.prepared = sv.id, sv.vars[varApplicationName], len(sv.prepared.byStmt)
	if sv.client != nil {
		s.link, s.linkFD = sv.client.ptr(), sv.client.fd
	}
	return &s
}

// poolRow is a pool for the console.
type poolRow struct {
	PoolSnapshot
	db      *Database
	held    int // of ServersSettling, those that wait for a cancel request alone
	cancels int // cancel requests on their way to servers
	waiting int // those who wait for them
	total   counters
	recent  counters // over the time that pools returns
}

// pools describes the pools, by database and user. Recent is the time over which
// their recent counters were taken.
func (p *Pooler) pools() (rows []poolRow, recent time.Duration, err error) {
	ok := p.ask(func(m *machine) {
		for _, pl := range m.pools {
			total := pl.stats.counters()
			rows = append(rows, poolRow{
				PoolSnapshot: m.poolSnapshot(pl), db: pl.db, held: pl.servers[serverHeld],
				cancels: pl.cancels, waiting: pl.cancelWaiters, total: total, recent: total.minus(pl.period.older),
			})
		}
		recent = m.now - m.period.olderAt
	})
	if !ok {
		return nil, 0, errShutdown
	}
	slices.SortFunc(rows, func(a, b poolRow) int {
		return cmp.Or(cmp.Compare(a.Database, b.Database), cmp.Compare(a.User, b.User))
	})
	return rows, recent, nil
}
