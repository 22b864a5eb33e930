package pooler

import (
	"context"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// does runs a command that must answer with its tag.
func (c consoleConn) does(command, tag string) {
	c.t.Helper()
	results, err := c.Exec(testContext(c.t), command).ReadAll()
	if err != nil || len(results) != 1 || results[0].CommandTag.String() != tag {
		c.t.Fatalf("%s: %v, %v, want %s", command, results, err, tag)
	}
}

func startAdmin(t *testing.T) (*testPooler, consoleConn) {
	p := startPooler(t, func(c *Config) {
		c.AdminUsers = []string{testUser}
		c.Databases = map[string]Database{"alias": {Host: c.Fallback.Host, Port: c.Fallback.Port, DBName: "postgres"}}
	})
	return p, dialConsole(t, p, testUser)
}

// TestPauseResume: clients under load are paused again and again. They only wait,
// and PostgreSQL has none of their servers meanwhile, as a switchover needs it.
func TestPauseResume(t *testing.T) {
	p, console := startAdmin(t)
	ctx, cancel := context.WithCancel(testContext(t))
	var wg sync.WaitGroup
	errs := make(chan error, 8)
	counts := make([]int, 8)
	for i := range 8 {
		conn := p.connect()
		wg.Go(func() {
			for ctx.Err() == nil {
				var n int
				if err := conn.QueryRow(context.Background(), "select 1").Scan(&n); err != nil {
					errs <- err
					return
				}
				counts[i]++
			}
		})
	}
	host, port := postgres(t)
	direct, err := pgx.Connect(ctx, dsn(host, port, "postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer direct.Close(context.Background())
	for range 20 {
		console.does("PAUSE", "PAUSE")
		find(t, console.show("state"), "key=paused", "value=yes")
		if s := p.pool(); s.ServersActive+s.ServersIdle+s.ServersSettling != 0 {
			t.Errorf("paused with servers: %+v", s)
		}
		// Nobody of ours is in: the database could be anywhere else now.
		var n int
		if err := direct.QueryRow(ctx, "select count(*) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid() and state = 'active'").Scan(&n); err != nil || n != 0 {
			t.Errorf("%d queries run, %v", n, err)
		}
		if e := console.fails("PAUSE"); e.Message != "already suspended/paused" || e.Code != codeConsole {
			t.Errorf("PAUSE again: %v", e)
		}
		console.does("RESUME", "RESUME")
	}
	cancel()
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	for i, n := range counts {
		if n == 0 {
			t.Errorf("client %d did nothing", i)
		}
	}
}

// TestPauseCancelled: ^C in psql ends the wait and the pause; so does RESUME by
// another session.
func TestPauseCancelled(t *testing.T) {
	p, console := startAdmin(t)
	other := dialConsole(t, p, testUser)
	busy := dialRaw(t, p)
	busy.send(msgQuery("begin"))
	busy.until('Z')
	for name, end := range map[string]func() error{
		"canceling statement due to user request": func() error { return console.CancelRequest(testContext(t)) },
		errResumed.Error():                        func() error { other.does("RESUME", "RESUME"); return nil },
	} {
		result := make(chan error, 1)
		go func() {
			_, err := console.Exec(context.Background(), "PAUSE").ReadAll()
			result <- err
		}()
		until(t, "the pause", func() bool { return other.show("state")[1]["value"] == "yes" })
		if err := end(); err != nil {
			t.Fatal(err)
		}
		if err := <-result; err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("got %v, want %s", err, name)
		}
		find(t, other.show("state"), "key=active", "value=yes")
	}
	if e := console.fails("RESUME"); e.Message != "pooler is not paused/suspended" {
		t.Errorf("RESUME: %v", e)
	}
}

// TestOrders goes through the commands about databases and clients.
func TestOrders(t *testing.T) {
	p, console := startAdmin(t)
	ctx := testContext(t)
	pid := func(conn *pgx.Conn) (n int) {
		t.Helper()
		if err := conn.QueryRow(ctx, "select pg_backend_pid()").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	conn := p.connect()
	first := pid(conn)
	console.does("RECONNECT postgres", "RECONNECT")
	console.does("WAIT_CLOSE", "WAIT_CLOSE")
	second := pid(conn)
	console.does("RECONNECT", "RECONNECT")
	third := pid(conn)
	if first == second || second == third {
		t.Errorf("servers %d, %d, %d", first, second, third)
	}
	console.does("PAUSE alias", "PAUSE")
	find(t, console.show("databases"), "name=alias", "paused=1", "disabled=0")
	if e := console.fails("SUSPEND"); e.Message != "cannot suspend with paused databases" {
		t.Errorf("SUSPEND: %v", e)
	}
	pid(conn) // the other database is not paused
	console.does(`RESUME "alias"`, "RESUME")

	console.does("DISABLE alias", "DISABLE")
	find(t, console.show("databases"), "name=alias", "paused=0", "disabled=1")
	_, err := pgx.Connect(ctx, dsn(p.host, p.port, "alias"))
	if err == nil || !strings.Contains(err.Error(), `database "alias" is disabled (SQLSTATE 08P01)`) {
		t.Errorf("disabled: %v", err)
	}
	console.does("ENABLE alias", "ENABLE")
	alias, err := pgx.Connect(ctx, dsn(p.host, p.port, "alias"))
	if err != nil {
		t.Fatal(err)
	}
	id := find(t, console.show("clients"), "database=alias")["id"]
	console.does("KILL_CLIENT "+id, "KILL_CLIENT")
	if err := alias.Ping(ctx); err == nil || !strings.Contains(err.Error(), "admin forced disconnect") {
		t.Errorf("killed client: %v", err)
	}

	console.does("KILL postgres", "KILL")
	if err := conn.Ping(ctx); err == nil || !strings.Contains(err.Error(), "database removed") {
		t.Errorf("client of a killed database: %v", err)
	}
	find(t, console.show("databases"), "name=postgres", "paused=1")
	console.does("RESUME postgres", "RESUME")
	pid(p.connect())

	for command, want := range map[string]string{
		"PAUSE pgbouncer":                  "cannot pause admin db: pgbouncer",
		"RECONNECT pgbouncer":              "cannot reconnect admin db: pgbouncer",
		"KILL pgbouncer":                   "cannot kill admin db: pgbouncer",
		"WAIT_CLOSE pgbouncer":             "cannot wait in admin db: pgbouncer",
		"DISABLE pgbouncer":                "cannot disable admin db: pgbouncer",
		"DISABLE":                          "a database is required",
		"ENABLE":                           "a database is required",
		"RESUME alias":                     "database alias is not paused",
		"RESUME":                           "pooler is not paused/suspended",
		"KILL_CLIENT 999999":               "client not found",
		"KILL_CLIENT x":                    "invalid client pointer supplied",
		"SHUTDOWN now":                     "invalid command 'SHUTDOWN now', use SHOW HELP;",
		"RELOAD x":                         "invalid command 'RELOAD x', use SHOW HELP;",
		"PAUSE " + strings.Repeat("x", 64): "bad arguments",
	} {
		if e := console.fails(command); e.Message != want || e.Code != codeConsole || e.Severity != "ERROR" {
			t.Errorf("%s: %v, want %s", command, e, want)
		}
	}
}

// TestUnknownDatabase: where there is no entry *, commands know their databases.
func TestUnknownDatabase(t *testing.T) {
	p := startConsole(t, func(c *Config) {
		c.Databases, c.Fallback = map[string]Database{"app": *c.Fallback}, nil
	})
	console := dialConsole(t, p, testUser)
	for _, command := range []string{"PAUSE", "RESUME", "DISABLE", "ENABLE", "RECONNECT", "KILL", "WAIT_CLOSE"} {
		if e := console.fails(command + " nope"); e.Message != "no such database: nope" {
			t.Errorf("%s: %v", command, e)
		}
	}
}

// TestSuspendResume: a suspended pooler takes nobody in and sends nothing on;
// when its last admin leaves it goes on by itself.
func TestSuspendResume(t *testing.T) {
	p, console := startAdmin(t)
	a := dialRaw(t, p)
	a.send(msgQuery("begin"))
	a.until('Z')
	console.does("SUSPEND", "SUSPEND")
	find(t, console.show("state"), "key=suspended", "value=yes")
	a.send(msgQuery("select 1"))
	newcomer := dialTCP(t, p)
	if _, err := newcomer.Write(startupPacket()); err != nil {
		t.Fatal(err)
	}
	if e := console.fails("SUSPEND"); e.Message != "already suspended/paused" {
		t.Errorf("SUSPEND again: %v", e)
	}
	if got := p.pool().Queries; got != 1 {
		t.Errorf("%d queries", got)
	}
	if err := console.Close(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if got := a.until('Z'); got != "TDCZ" {
		t.Errorf("after the admin left: %q", got)
	}
	if typ, _, err := pgwire.ReadFrame(newcomer, 1000); err != nil || typ != 'R' {
		t.Errorf("newcomer: %q, %v", typ, err)
	}
}

// TestShutdownModes: the three modes.
func TestShutdownModes(t *testing.T) {
	ended := func(p *testPooler) bool {
		select {
		case <-p.done:
			return true
		default:
			return false
		}
	}
	refused := func(p *testPooler) {
		t.Helper()
		until(t, "the pooler to stop accepting", func() bool {
			conn, err := net.Dial("tcp", net.JoinHostPort(p.host, itoa(p.port)))
			if err == nil {
				conn.Close()
			}
			return err != nil
		})
	}
	t.Run("clients", func(t *testing.T) {
		p, console := startAdmin(t)
		conn := p.connect()
		console.does("SHUTDOWN WAIT_FOR_CLIENTS", "SHUTDOWN")
		refused(p)
		if err := conn.Ping(testContext(t)); err != nil || ended(p) {
			t.Errorf("a client that is there: %v", err)
		}
		if e := console.fails("RESUME"); e.Message != "pooler is shutting down" {
			t.Errorf("RESUME: %v", e)
		}
		if err := conn.Close(testContext(t)); err != nil {
			t.Error(err)
		}
		until(t, "the end", func() bool { return ended(p) })
	})
	t.Run("servers", func(t *testing.T) {
		p, console := startAdmin(t)
		idle, busy := p.connect(), dialRaw(t, p)
		busy.send(msgQuery("begin"))
		busy.until('Z')
		console.does("SHUTDOWN WAIT_FOR_SERVERS", "SHUTDOWN")
		refused(p)
		if err := idle.Ping(testContext(t)); err == nil {
			t.Error("a client without a transaction stays")
		}
		busy.send(msgQuery("commit"))
		if got := busy.until('Z'); got != "CZ" {
			t.Errorf("the other: %q", got)
		}
		busy.conn.Close()
		until(t, "the end", func() bool { return ended(p) })
	})
	t.Run("now", func(t *testing.T) {
		p, console := startAdmin(t)
		busy := dialRaw(t, p)
		busy.send(msgQuery("begin"))
		busy.until('Z')
		_, err := console.Exec(testContext(t), "SHUTDOWN").ReadAll()
		if _, ok := err.(*pgconn.PgError); err == nil {
			t.Errorf("answered: %v", ok)
		}
		until(t, "the end", func() bool { return ended(p) })
	})
}

// TestPauseSignals: what the signals do.
func TestPauseSignals(t *testing.T) {
	p, console := startAdmin(t)
	p.Pause()
	find(t, console.show("state"), "key=paused", "value=yes")
	p.Pause()
	p.Resume()
	p.Resume()
	find(t, console.show("state"), "key=active", "value=yes")
}
