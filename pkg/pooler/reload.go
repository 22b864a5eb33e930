package pooler

import (
	"errors"
	"reflect"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// Reload puts a configuration in force, wholly or, with an error, not at all.
// Clients and servers stay, but for these: a database that is gone takes its
// clients with it, and servers that were logged in by other settings are
// replaced as they become free. Settings that need a restart stay as they are,
// which is logged. Reload does not wait for the clients and servers.
//
// A new setting that can change at run time needs nothing here: the goroutines
// read it from conf, the machine from its limits, and configure passes it on to
// the pools.
func (p *Pooler) Reload(c Config) error {
	p.reloading.Lock()
	defer p.reloading.Unlock()
	return p.reload(c)
}

func (p *Pooler) reload(c Config) error {
	old := p.conf()
	fixed := c.keepFixed(&old.Config)
	s, err := newSettings(c, old)
	if err != nil {
		return err
	}
	for _, name := range fixed {
		p.log.Warn("setting cannot be changed at run time, restart to apply it", "setting", name)
	}
	p.inForce.Store(s)
	p.loop.post(func() {
		p.loop.m.reconfigure(s.limits, s.database)
		if old.serverTLS.changed(s.serverTLS) {
			for _, pl := range p.loop.m.pools {
				p.loop.m.replaceServers(pl)
			}
		}
		p.prefill()
	})
	return nil
}

// keepFixed takes over from old what cannot change at run time, and returns the
// names of the settings that would have changed.
func (c *Config) keepFixed(old *Config) (changed []string) {
	c.UnixSocket = old.UnixSocket
	c.Listen, c.Backlog, c.ReusePort, c.TrustedBalancers = old.Listen, old.Backlog, old.ReusePort, old.TrustedBalancers
	c.Sockets = old.Sockets
	c.ControlSocket, c.TakeOver = old.ControlSocket, old.TakeOver
	c.TCP.DeferAccept, c.TCP.Buffer = old.TCP.DeferAccept, old.TCP.Buffer
	c.AuthSeed, c.Version, c.parting = old.AuthSeed, old.Version, old.parting
	c.Reread, c.Change = old.Reread, old.Change
	was := make(map[string]string, len(old.Settings))
	for _, s := range old.Settings {
		was[s.Name] = s.Value
	}
	c.Settings = append([]Setting(nil), c.Settings...)
	for i := range c.Settings {
		s := &c.Settings[i]
		if value, ok := was[s.Name]; ok && s.Fixed && s.Value != value {
			changed = append(changed, s.Name)
			s.Value = value
		}
	}
	return changed
}

// sameServers reports whether servers that were logged in by the settings of d
// can stay when those of e come into force. What does not concern the making of
// a connection is named here; whatever else a Database has, counts.
func (d *Database) sameServers(e *Database) bool {
	a, b := *d, *e
	for _, db := range []*Database{&a, &b} {
		db.PoolSize, db.MinPoolSize, db.ReservePoolSize, db.MaxConnections, db.MaxClientConnections = 0, 0, 0, 0, 0
		db.PoolMode, db.auto, db.ServerLifetime, db.QueryWaitTimeout = 0, false, 0, 0
		db.AuthUser, db.AuthQuery, db.AuthDBName = "", "", ""
		db.Secret = pgwire.Secret{} // as in PgBouncer: it is for the next login
	}
	return reflect.DeepEqual(a, b)
}

// reasonReconfigured is PgBouncer's word for the end of such servers.
const reasonReconfigured = "database configuration changed"

var errDatabaseRemoved = pgwire.NewError(pgwire.SeverityFatal, pgwire.CodeProtocolViolation, "database removed")

// reconfigure puts new settings in force. Database finds a database by its
// name, or returns nil.
func (m *machine) reconfigure(l limits, database func(name string) *Database) {
	m.limits = l
	for name := range m.marks {
		if database(name) == nil {
			delete(m.marks, name)
		}
	}
	for _, p := range m.pools {
		db := database(p.key.database)
		switch {
		case db == nil && p.db.auto:
			// The entry * is gone: who came by it may stay (as in PgBouncer).
		case db == nil:
			m.removeDatabase(p)
		default:
			same := p.db.sameServers(db)
			m.follow(p, db)
			if !same {
				m.replaceServers(p)
			}
		}
		m.configure(p)
		m.grow(p)
	}
	m.freed = true // a limit may have been raised
}

// follow gives a pool its database's new settings. A pool for the user that a
// database forces goes on for the new one.
func (m *machine) follow(p *pool, db *Database) {
	forced := p.db.User
	p.db, p.removed = db, false
	if forced == "" || db.User == "" || db.User == p.key.user || p.key.user != forced {
		return
	}
	key := poolKey{p.key.database, db.User}
	if m.pools[key] != nil {
		return // left from earlier; this one goes on for the clients that it has
	}
	delete(m.pools, p.key)
	p.key, p.keys = key, nil
	p.userUse.servers -= p.open()
	m.userUses.drop(p.userUse)
	p.userUse = m.userUses.take(db.User)
	p.userUse.servers += p.open()
	p.failure, p.failures, p.retryAt = nil, 0, 0
	m.pools[key] = p
}

// replaceServers has the pool's servers replaced: idle ones now, the others when
// they become free.
func (m *machine) replaceServers(p *pool) {
	p.epoch++
	p.host = ""
	p.failure, p.failures, p.retryAt = nil, 0, 0 // what failed may work now
	m.closeIdle(p, reasonReconfigured)
}

// noticeMsg returns the message for a notice to clients, nil for none.
func noticeMsg(text string) []byte {
	if text == "" {
		return nil
	}
	return pgwire.NewError("NOTICE", codeSuccess, text).AppendNotice(nil)
}

// closeIdle closes the servers that are free.
func (m *machine) closeIdle(p *pool, why string) {
	for _, l := range []*list[server]{&p.used, &p.idle} {
		for l.head != nil {
			m.closeServer(l.head, why)
		}
	}
}

// removeDatabase ends the clients and servers of a database that is no more.
func (m *machine) removeDatabase(p *pool) {
	m.log.Warn("dropping database as it does not exist anymore", "database", p.key.database, "user", p.key.user)
	p.epoch++
	p.db.auto, p.removed = true, true // the pool goes when the last of them has gone
	m.closeIdle(p, errDatabaseRemoved.Message)
	for _, c := range m.slots {
		if c != nil && c.cl != nil && c.cl.pool == p {
			m.refuseClient(c.cl, refusedDatabase, errDatabaseRemoved)
		}
	}
}

// errCannotReread is for a pooler that does not know where its configuration is
// from.
var errCannotReread = errors.New("the configuration cannot be read again")

// Reread gets the configuration anew by Config.Reread, and puts it in force.
func (p *Pooler) Reread() error {
	reread := p.conf().Reread
	if reread == nil {
		return errCannotReread
	}
	return p.reloadFrom(reread)
}

// Set changes one setting by Config.Change, until the next Reread.
func (p *Pooler) Set(key, value string) error {
	change := p.conf().Change
	if change == nil {
		return errCannotReread
	}
	return p.reloadFrom(func() (Config, error) { return change(key, value) })
}

// reloadFrom reloads what get returns, which must not be overtaken by another.
func (p *Pooler) reloadFrom(get func() (Config, error)) error {
	p.reloading.Lock()
	defer p.reloading.Unlock()
	c, err := get()
	if err != nil {
		return err
	}
	return p.reload(c)
}
