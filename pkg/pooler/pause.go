package pooler

import "github.com/pgsteer/pgsteer/pkg/pgwire"

// mark is what the console's commands have done to a database. It outlives the
// database's pools.
type mark struct{ paused, disabled bool }

// watch is somebody who waits for the machine to come to a state. Done is called
// once; its error says why the state will not come.
type watch struct {
	what  any  // for cancelling it
	pause bool // it is for a pause to be complete
	ready func() bool
	done  func(error)
}

var (
	errDisabled = func(name string) *pgwire.Error {
		return pgwire.NewError(pgwire.SeverityFatal, pgwire.CodeProtocolViolation, `database "`+name+`" is disabled`)
	}
	errShuttingDown = pgwire.NewError(pgwire.SeverityFatal, pgwire.CodeProtocolViolation, "pooler is shutting down")
	errForced       = pgwire.NewError(pgwire.SeverityFatal, pgwire.CodeProtocolViolation, "admin forced disconnect")
)

// mark changes a database's mark.
func (m *machine) mark(name string, change func(*mark)) {
	k := m.marks[name]
	change(&k)
	if k == (mark{}) {
		delete(m.marks, name)
	} else {
		m.marks[name] = k
	}
	m.pauseChanged()
}

// pauseChanged has the pools follow the marks. A paused pool gives no server to
// anybody and has none but those that are still busy; its clients wait.
func (m *machine) pauseChanged() {
	for _, p := range m.pools {
		was := p.paused
		p.paused = m.pausing(p)
		switch {
		case p.paused:
			m.closeIdle(p, reasonPaused)
		case was:
			// What failed before may work now: a pause is for a switchover.
			p.failure, p.failures, p.retryAt = nil, 0, 0
			m.grow(p)
		}
	}
	m.freed = true
	m.lookAround()
}

func (m *machine) pausing(p *pool) bool { return m.paused || m.marks[p.key.database].paused }

// reasonPaused is PgBouncer's word.
const reasonPaused = "pause mode"

// await calls done when ready says so, at once or later.
func (m *machine) await(w watch) {
	m.watches = append(m.watches, w)
	m.lookAround()
}

// giveUp ends a watch with an error, and reports whether there was one.
func (m *machine) giveUp(what any, why error) bool {
	for i, w := range m.watches {
		if w.what == what {
			m.watches = append(m.watches[:i:i], m.watches[i+1:]...)
			w.done(why)
			return true
		}
	}
	return false
}

// lookAround tells those whose state has come.
func (m *machine) lookAround() {
	if len(m.watches) == 0 {
		return
	}
	kept := m.watches[:0:0]
	for _, w := range m.watches {
		if w.ready() {
			w.done(nil)
		} else {
			kept = append(kept, w)
		}
	}
	m.watches = kept
}

// serverless reports whether a database, or with "" every one, has no server.
// Logins under way do not count: what comes of them is closed at once.
func (m *machine) serverless(name string) bool {
	for _, p := range m.pools {
		if (name == "" || p.key.database == name) && p.live() > 0 {
			return false
		}
	}
	return true
}

// renewed reports whether a database, or with "" every one, has no server left
// that is to be closed as soon as it is free.
func (m *machine) renewed(name string) bool {
	for _, c := range m.slots {
		if c != nil && c.sv != nil && c.sv.epoch != c.sv.pool.epoch && (name == "" || c.sv.pool.key.database == name) {
			return false
		}
	}
	return true
}

// kill ends the clients and servers of a pool.
func (m *machine) kill(p *pool) {
	for _, c := range m.slots {
		if c != nil && c.cl != nil && c.cl.pool == p {
			m.refuseClient(c.cl, refusedDatabase, errDatabaseRemoved)
		}
	}
	for _, c := range m.slots {
		// One that is busy has been sent a cancel request, and is closed when
		// that has arrived.
		if c != nil && c.sv != nil && c.sv.pool == p && c.sv.cancels == 0 {
			m.closeServer(c.sv, errDatabaseRemoved.Message)
		}
	}
}

// killClient ends a client, and reports whether it was there.
func (m *machine) killClient(id uint64) bool {
	for _, c := range m.slots {
		if c != nil && c.cl != nil && c.cl.id == id && c.cl.state != clientClosing {
			m.refuseClient(c.cl, refusedKilled, errForced)
			return true
		}
	}
	return false
}

// unload has the pooler end when all its clients have left of themselves.
func (m *machine) unload() { m.unloading = true }
