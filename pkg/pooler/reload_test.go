package pooler

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// reconfigured puts databases in force.
func (w *fakeWorld) reconfigured(dbs ...*Database) {
	byName := make(map[string]*Database)
	for _, db := range dbs {
		byName[db.Name] = db
	}
	w.m.reconfigure(w.m.limits, func(name string) *Database { return byName[name] })
	w.settle()
}

// TestReloadReplacesServers: when the way to a database changes, idle servers go
// at once and busy ones at the end of their transactions; what else changes
// leaves them alone.
func TestReloadReplacesServers(t *testing.T) {
	w := newFakeWorld(t, nil)
	db := database("d", 2)
	a, pa := w.welcomed(db)
	b, pb := w.welcomed(db)
	if got := w.ask(a, pa, "begin") + w.ask(b, pb, "row x"); got != "CZTDCZ" {
		t.Fatalf("got %q", got)
	}
	busy := a.server
	p := a.pool

	bigger := database("d", 3)
	bigger.Secret = pgwire.PlainSecret("new")
	w.reconfigured(bigger)
	if active, idle := servers(p); active != 1 || idle != 1 || p.size != 3 || p.db != bigger {
		t.Fatalf("%d active and %d idle servers of %d after a change of the size", active, idle, p.size)
	}

	moved := database("d", 3)
	moved.Host = "elsewhere"
	w.reconfigured(moved)
	if active, idle := servers(p); active != 1 || idle != 0 || p.db != moved {
		t.Fatalf("%d active and %d idle servers after a change of the host", active, idle)
	}
	if got := w.ask(a, pa, "row y"); got != "TDCZ" || a.server != busy {
		t.Errorf("in the transaction: %q", got)
	}
	if got := w.ask(a, pa, "commit"); got != "CZ" || busy.state != serverGone {
		t.Errorf("at its end: %q, state %d", got, busy.state)
	}
	if got := w.ask(a, pa, "row z"); got != "TDCZ" {
		t.Errorf("after it: %q", got)
	}

	// A login that began before the change is of no use after it.
	w.m.dialFor(p)
	w.dials = nil
	old := p.epoch
	w.reconfigured(database("d", 3))
	sv := w.m.addServer(p, loggedIn{key: pgwire.CancelKey{PID: 77, Secret: "abcd"}, params: newBackend().params(), epoch: old})
	if sv.state != serverGone {
		t.Errorf("a server of the old host is in state %d", sv.state)
	}
}

// dialFor counts a login as under way.
func (m *machine) dialFor(p *pool) { p.dialing++ }

// TestReloadRemovesDatabase: the clients of a database that is gone are told so,
// the others' stay.
func TestReloadRemovesDatabase(t *testing.T) {
	w := newFakeWorld(t, nil)
	keep, gone := database("keep", 1), database("gone", 1)
	auto := database("auto", 1)
	auto.auto = true
	a, pa := w.welcomed(keep)
	b, pb := w.welcomed(gone)
	c, pc := w.welcomed(gone)
	d, pd := w.welcomed(auto)
	if got := w.ask(b, pb, "begin") + w.ask(c, pc, "row x"); got != "CZ" || c.state != clientWaiting {
		t.Fatalf("got %q", got)
	}
	w.reconfigured(database("keep", 1))
	for _, p := range []*peer{pb, pc} {
		if got := string(p.take()); !strings.Contains(got, "FATAL") || !strings.Contains(got, "database removed") {
			t.Errorf("got %q", got)
		}
	}
	w.hangUp(&b.conn)
	w.hangUp(&c.conn)
	w.settle()
	w.m.tick()
	if w.m.pools[poolKey{"gone", "u"}] != nil {
		t.Error("the pool is there still")
	}
	if got := w.ask(a, pa, "row x") + w.ask(d, pd, "row x"); got != "TDCZTDCZ" {
		t.Errorf("the others got %q", got)
	}
}

// TestReloadForcedUser: clients that are there go on by the new user.
func TestReloadForcedUser(t *testing.T) {
	w := newFakeWorld(t, nil)
	db := database("d", 1)
	db.User = "u"
	a, pa := w.welcomed(db)
	w.ask(a, pa, "row x")
	next := database("d", 1)
	next.User = "v"
	w.reconfigured(next)
	if a.pool.key.user != "v" || w.m.pools[poolKey{"d", "v"}] != a.pool || w.m.pools[poolKey{"d", "u"}] != nil {
		t.Errorf("pools %v", w.m.pools)
	}
	if got := w.ask(a, pa, "row y"); got != "TDCZ" || len(w.backends()) != 2 {
		t.Errorf("got %q from %d servers", got, len(w.backends()))
	}
}

// TestReloadMode: whoever has a session keeps it; its rules are those of the time
// of the login.
func TestReloadMode(t *testing.T) {
	w := newFakeWorld(t, nil)
	a, pa := w.welcomed(inMode(PoolSession, 2))
	w.send(&a.conn, msgParse("s", "row s"), syncMsg)
	w.settle()
	if got := types(t, pa.take()); got != "1Z" {
		t.Fatalf("Parse: %q", got)
	}
	w.reconfigured(inMode(PoolTransaction, 2))
	b, pb := w.welcomed(inMode(PoolTransaction, 2))
	w.send(&a.conn, msgBind("", "s"), msgExecute(""), syncMsg)
	w.settle()
	if got := types(t, pa.take()); got != "2DCZ" || a.server == nil {
		t.Errorf("in the session: %q", got)
	}
	if got := w.ask(b, pb, "row x"); got != "TDCZ" || b.server != nil {
		t.Errorf("new client: %q", got)
	}
}

// TestReload changes what a running pooler does, and what it refuses to change.
func TestReload(t *testing.T) {
	var next Config
	p := startPooler(t, func(c *Config) {
		c.Settings = []Setting{{Name: "listen_port", Value: "1", Fixed: true}, {Name: "query_wait_timeout", Value: "2"}}
		c.Databases = map[string]Database{"gone": *c.Fallback}
		c.AdminUsers = []string{testUser}
		c.Reread = func() (Config, error) {
			if next.Listen == nil {
				return next, errors.New("pgbouncer.ini:7: nonsense")
			}
			return next, nil
		}
	})
	ctx := testContext(t)
	conn, console := p.connect(), dialConsole(t, p, testUser)
	pid := func() (n int) {
		t.Helper()
		if err := conn.QueryRow(ctx, "select pg_backend_pid()").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	first := pid()

	// Nothing changes by an error.
	before := p.conf()
	if e := console.fails("RELOAD"); e.Code != "F0000" || e.Detail != "pgbouncer.ini:7: nonsense" {
		t.Errorf("bad file: %v, %q", e, e.Detail)
	}
	next = before.Config
	next.PoolSize = -1
	if e := console.fails("RELOAD"); !strings.Contains(e.Detail, "pool size") || p.conf() != before {
		t.Errorf("bad value: %q", e.Detail)
	}
	if got := pid(); got != first {
		t.Errorf("server %d replaced by %d", first, got)
	}

	next = before.Config
	next.Users = map[string]pgwire.Secret{testUser: pgwire.PlainSecret("another password")}
	next.Settings = []Setting{{Name: "listen_port", Value: "9", Fixed: true}, {Name: "query_wait_timeout", Value: "3"}}
	next.QueryWaitTimeout = 3 * time.Second
	next.Listen = []string{"127.0.0.1:9"}
	next.Databases, next.Fallback = map[string]Database{"postgres": {
		Host: before.Fallback.Host, Port: before.Fallback.Port, User: testUser, Secret: pgwire.PlainSecret(testPassword), DBName: "postgres",
	}}, nil
	if _, err := console.Exec(ctx, "RELOAD").ReadAll(); err != nil {
		t.Fatal(err)
	}
	if got := pid(); got == first {
		t.Error("the server was logged in without the forced user, and stayed")
	}
	find(t, console.show("config"), "key=query_wait_timeout", "value=3", "changeable=yes")
	find(t, console.show("config"), "key=listen_port", "value=1", "changeable=no")
	if got := p.log.String(); !strings.Contains(got, "cannot be changed at run time, restart to apply it") || !strings.Contains(got, "setting=listen_port") {
		t.Error("the log says nothing of listen_port")
	}
	if p.conf().Listen[0] == "127.0.0.1:9" {
		t.Error("the listener's address changed")
	}
	for dbname, want := range map[string]string{"postgres": "password authentication failed", "gone": "password authentication failed"} {
		if _, err := pgx.Connect(ctx, dsn(p.host, p.port, dbname)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", dbname, err, want)
		}
	}
	next.Users = before.Users
	if _, err := console.Exec(ctx, "RELOAD").ReadAll(); err != nil {
		t.Fatal(err)
	}
	if _, err := pgx.Connect(ctx, dsn(p.host, p.port, "gone")); err == nil || !strings.Contains(err.Error(), "no such database: gone") {
		t.Errorf("gone: %v", err)
	}
}

// TestSet: SET lasts until the next RELOAD.
func TestSet(t *testing.T) {
	p := startConsole(t, func(c *Config) {
		c.Settings = []Setting{{Name: "listen_port", Value: "1", Fixed: true}}
		base := *c
		c.Reread = func() (Config, error) { return base, nil }
		c.Change = func(key, value string) (Config, error) {
			changed := base
			if key != "max_client_conn" || value != "it's 5" {
				return changed, errors.New("no such key: " + key)
			}
			changed.MaxClients = 5
			return changed, nil
		}
	})
	console := dialConsole(t, p, testUser)
	command := func(sql, want string) {
		t.Helper()
		results, err := console.Exec(testContext(t), sql).ReadAll()
		if err != nil || len(results) != 1 || results[0].CommandTag.String() != want {
			t.Errorf("%s: %v, %v", sql, results, err)
		}
	}
	command("SET max_client_conn = 'it''s 5'", "SET max_client_conn=it's 5")
	if n := p.Snapshot().MaxClients; n != 5 {
		t.Errorf("%d clients at the most, want 5", n)
	}
	command("SET listen_port = 7", "SET listen_port=7") // ignored, as by PgBouncer
	if e := console.fails("SET bogus = 1"); e.Message != "SET failed" || e.Detail != "no such key: bogus" {
		t.Errorf("got %v, %q", e, e.Detail)
	}
	command("RELOAD", "RELOAD")
	if n := p.Snapshot().MaxClients; n != DefaultConfig().MaxClients {
		t.Errorf("%d clients at the most after RELOAD", n)
	}
}

// TestLoginNotice: login_notify_message comes with the welcome.
func TestLoginNotice(t *testing.T) {
	w := newFakeWorld(t, func(l *limits) { l.loginNotice = noticeMsg("be nice") })
	_, p := w.newClient(database("d", 1))
	w.settle()
	got := p.take()
	if !strings.HasSuffix(types(t, got), "SKNZ") || !strings.Contains(string(got), "be nice") {
		t.Errorf("welcome %q", got)
	}
}

// TestDatabaseParams: a database's parameters hold for clients that do not name
// them, and servers are replaced when they change.
func TestDatabaseParams(t *testing.T) {
	var next Config
	p := startPooler(t, func(c *Config) {
		c.Fallback.Params = []pgwire.Param{{Name: "timezone", Value: "Asia/Tokyo"}, {Name: "datestyle", Value: "SQL, DMY"}}
		c.Reread = func() (Config, error) { return next, nil }
	})
	ctx := testContext(t)
	ask := func(conn *pgx.Conn, want string) {
		t.Helper()
		var zone, style string
		err := errors.Join(conn.QueryRow(ctx, "show timezone").Scan(&zone), conn.QueryRow(ctx, "show datestyle").Scan(&style))
		if got := zone + " " + style; err != nil || got != want {
			t.Errorf("got %s, %v, want %s", got, err, want)
		}
	}
	ask(p.connect(), "Asia/Tokyo SQL, DMY")
	own, err := pgx.Connect(ctx, dsn(p.host, p.port, "postgres")+" timezone=Europe/Vienna")
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close(ctx)
	ask(own, "Europe/Vienna SQL, DMY")
	next = p.conf().Config
	db := *next.Fallback
	db.Params = []pgwire.Param{{Name: "timezone", Value: "Africa/Cairo"}}
	next.Fallback = &db
	if err := p.Reread(); err != nil {
		t.Fatal(err)
	}
	until(t, "the servers to go", func() bool { return p.pool().ServersIdle == 0 })
	ask(own, "Europe/Vienna SQL, DMY") // what it believes in stays
	ask(p.connect(), "Africa/Cairo ISO, MDY")
}
