package pooler

import (
	"time"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// tickInterval is how often the janitor looks around: what it enforces is
// given in seconds.
const tickInterval = 250 * time.Millisecond

// tick enforces what depends on the time alone.
func (m *machine) tick() {
	if m.suspended {
		m.tickSuspended()
		return
	}
	for _, p := range m.pools {
		m.tickClients(p)
		m.tickServers(p)
		m.tickSize(p)
		if !m.blocked {
			m.grow(p)
		}
	}
	m.tickTimeouts()
	m.tickFastClose()
	m.tickUnusedPools()
	m.tickStarved()
	m.settleLimits()
	for cl := m.closing.head; cl != nil && m.now-cl.since >= lingerTimeout; cl = m.closing.head {
		m.clientGone(cl, "client does not close")
	}
	m.tickSettling()
	m.tickTesting()
	m.tickPeriod()
}

// unused reports whether a pool has neither clients nor servers.
func (p *pool) unused() bool {
	return p.open() == 0 && p.population() == 0
}

func (m *machine) tickClients(p *pool) {
	m.tickWaiting(p)
	limit := m.limits.queryWait
	if w := m.limits.loginWait; limit == 0 || w > 0 && w < limit {
		limit = w
	}
	for cl := p.greeting.head; cl != nil && limit > 0 && m.now-cl.since >= limit; cl = p.greeting.head {
		e := errLoginTimeout
		if p.failure != nil {
			e = pgwire.NewError(pgwire.SeverityFatal, p.failure.Code, p.failure.Message)
		}
		m.refuseClient(cl, refusedLoginTimeout, e)
	}
}

func (m *machine) tickServers(p *pool) {
	if limit := m.limits.serverIdle; limit > 0 {
		for _, l := range []*list[server]{&p.used, &p.idle} {
			for sv := l.head; sv != nil; {
				next := sv.lk.next
				if m.now-sv.usedAt >= limit && p.live() > p.minSize {
					m.closeServer(sv, "server idle timeout")
				}
				sv = next
			}
		}
	}
	m.tickUnused(p)
	// One a tick, so that a pool does not have to log in all its servers anew
	// at the same moment.
	for _, l := range []*list[server]{&p.used, &p.idle} {
		for sv := l.head; sv != nil; sv = sv.lk.next {
			if m.now-sv.openedAt >= p.lifetime && (sv.touched || p.lifetime > 0) {
				m.closeServer(sv, "server lifetime over")
				return
			}
		}
	}
}

// stop begins the end: nobody may begin a transaction any more.
func (m *machine) stop() {
	m.stopping = true
	for _, c := range m.slots {
		if c == nil {
			continue
		}
		switch {
		case c.cl != nil:
			switch c.cl.state {
			case clientGreeting, clientIdle, clientWaiting, clientSetting, clientRefusing:
				m.refuseClient(c.cl, refusedShutdown, errShutdown)
			case clientActive:
				if c.cl.resting() {
					m.refuseClient(c.cl, refusedShutdown, errShutdown)
				}
			}
		case c.sv.state == serverIdle || c.sv.state == serverUsed:
			m.closeServer(c.sv, "shutting down")
		}
	}
}

// stopNow ends those as well who are in a transaction.
func (m *machine) stopNow() {
	for _, c := range m.slots {
		if c != nil && c.cl != nil {
			m.refuseClient(c.cl, refusedShutdown, errShutdown)
		}
	}
}

// ended reports whether the end has come: stopping or unloading, and no client
// left.
func (m *machine) ended() bool { return (m.stopping || m.unloading) && m.population == 0 }

// abandon drops all connections, the clients' first: their servers learn how
// they were left.
func (m *machine) abandon() {
	for _, c := range m.slots {
		if c != nil && c.cl != nil {
			m.clientGone(c.cl, "shutting down")
		}
	}
	for _, c := range m.slots {
		if c != nil {
			m.closeServer(c.sv, "shutting down")
		}
	}
}
