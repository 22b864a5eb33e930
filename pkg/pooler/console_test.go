package pooler

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// startConsole runs a pooler whose console knows an admin, testUser, and a user
// who may look, eve. Nobody needs a password and no server is needed.
func startConsole(t *testing.T, change func(*Config)) *testPooler {
	t.Helper()
	return startPoolerAt(t, "127.0.0.1", 1, func(c *Config) {
		c.AuthMethod = pgwire.AuthTrust
		c.Users["eve"], c.Users["mallory"] = pgwire.PlainSecret("x"), pgwire.PlainSecret("y")
		c.AdminUsers, c.StatsUsers = []string{testUser}, []string{"eve"}
		c.Version = "v1.2.3"
		if change != nil {
			change(c)
		}
	})
}

// consoleConn is a session with the console by the simple protocol.
type consoleConn struct {
	t *testing.T
	*pgconn.PgConn
}

// tryConsole opens one.
func tryConsole(t *testing.T, p *testPooler, user string) (consoleConn, error) {
	t.Helper()
	conn, err := pgconn.Connect(testContext(t), fmt.Sprintf("host=%s port=%d user=%s password=%s dbname=pgbouncer sslmode=disable application_name=looker",
		p.host, p.port, user, strings.ReplaceAll(strings.ReplaceAll(testPassword, `'`, `\'`), " ", `\ `)))
	if err == nil {
		t.Cleanup(func() { conn.Close(testContext(t)) })
	}
	return consoleConn{t, conn}, err
}

func dialConsole(t *testing.T, p *testPooler, user string) consoleConn {
	t.Helper()
	c, err := tryConsole(t, p, user)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// show returns the rows of a SHOW, each a map by column.
func (c consoleConn) show(what string) (rows []map[string]string) {
	c.t.Helper()
	results, err := c.Exec(testContext(c.t), "SHOW "+what).ReadAll()
	if err != nil || len(results) != 1 {
		c.t.Fatalf("SHOW %s: %d results, %v", what, len(results), err)
	}
	for _, values := range results[0].Rows {
		row := make(map[string]string)
		for i, f := range results[0].FieldDescriptions {
			row[f.Name] = string(values[i])
			if values[i] == nil {
				row[f.Name] = "NULL"
			}
		}
		rows = append(rows, row)
	}
	return rows
}

// find returns the row whose columns have the values, given as "column=value".
func find(t *testing.T, rows []map[string]string, want ...string) map[string]string {
	t.Helper()
	for _, row := range rows {
		if slices.ContainsFunc(want, func(w string) bool {
			column, value, _ := strings.Cut(w, "=")
			return row[column] != value
		}) {
			continue
		}
		return row
	}
	t.Fatalf("no row with %q in %v", want, rows)
	return nil
}

// fails runs a command that must fail, and returns the error.
func (c consoleConn) fails(command string) *pgconn.PgError {
	c.t.Helper()
	_, err := c.Exec(testContext(c.t), command).ReadAll()
	e, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		c.t.Fatalf("%s: got %v, want an error", command, err)
	}
	return e
}

// TestConsoleAccess: who may come in, and do what.
func TestConsoleAccess(t *testing.T) {
	p := startConsole(t, func(c *Config) { c.Peers = []Peer{{ID: 7, Host: "h", Port: 6432}} })
	for _, user := range []string{"mallory", "nobody"} {
		_, err := tryConsole(t, p, user)
		if e, ok := errors.AsType[*pgconn.PgError](err); !ok || e.Code != pgwire.CodeInvalidAuthorization {
			t.Errorf("%s: %v", user, err)
		}
	}
	if n := p.Snapshot().Refusals["console"]; n != 1 {
		t.Errorf("%d refusals counted, want that of mallory", n)
	}
	alice, eve := dialConsole(t, p, testUser), dialConsole(t, p, "eve")
	for _, command := range []string{"PAUSE", "pause app;", "RESUME", "KILL app", "KILL_CLIENT 1", "SHUTDOWN", "SHUTDOWN WAIT_FOR_CLIENTS",
		"SUSPEND", "WAIT_CLOSE", "RECONNECT", "DISABLE app", `ENABLE "app"`} {
		if e := eve.fails(command); e.Code != codeConsole || e.Message != "admin access needed" || e.Severity != "ERROR" {
			t.Errorf("%s by a stats user: %v", command, e)
		}
	}
	if e := eve.fails("SHOW FDS"); e.Message != "admin access needed" {
		t.Errorf("SHOW FDS by a stats user: %v", e)
	}
	find(t, alice.show("fds"), "task=pooler", "addr=127.0.0.1", "port="+itoa(p.port), "password=NULL")
	find(t, alice.show("peers"), "peer_id=7", "host=h", "port=6432", "pool_size=5")
	p.addresses.mu.Lock()
	p.addresses.hosts["db.example"] = &addresses{
		addrs: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")}, until: time.Now().Add(10500 * time.Millisecond),
	}
	p.addresses.mu.Unlock()
	find(t, alice.show("dns_hosts"), "hostname=db.example", "ttl=10", "addrs=10.0.0.1,10.0.0.2")
	find(t, alice.show("lists"), "list=dns_names", "items=1")
	for _, what := range []string{"PEER_POOLS", "DNS_ZONES"} {
		if rows := alice.show(what); len(rows) != 0 {
			t.Errorf("SHOW %s: %v", what, rows)
		}
	}
	for _, command := range []string{"bogus", "show", "show bogus", "select version()", "show clients; show pools", "show clients x", "'"} {
		if e := alice.fails(command); e.Message != fmt.Sprintf("invalid command '%s', use SHOW HELP;", command) {
			t.Errorf("%s: %v", command, e)
		}
	}
	for _, command := range []string{"RELOAD", "SET max_client_conn = 5", "set job_name to 'x y'"} {
		if e := eve.fails(command); e.Code != codeConsole || e.Message != "admin access needed" {
			t.Errorf("%s by a stats user: %v", command, e)
		}
	}
	// This pooler has no file.
	if e := alice.fails("RELOAD"); e.Code != "F0000" || e.Message != "RELOAD failed, see logs for additional details" {
		t.Errorf("RELOAD: %v", e)
	}
	if e := alice.fails("SET max_client_conn = 5"); e.Code != codeConsole || e.Message != "SET failed" {
		t.Errorf("SET: %v", e)
	}
	// After all that the sessions live.
	if rows := eve.show("version"); rows[0]["version"] != "pgsteer-pooler v1.2.3, console of PgBouncer 1.25.2" {
		t.Errorf("version: %v", rows)
	}
	for _, command := range []string{";", "-- ping", " \n "} {
		if _, err := alice.Exec(testContext(t), command).ReadAll(); err != nil {
			t.Errorf("%q: %v", command, err)
		}
	}
	if _, err := alice.Exec(testContext(t), "SET DateStyle TO 'ISO'").ReadAll(); err != nil {
		t.Error(err)
	}
	if rows := alice.show("client_encoding;"); rows[0]["client_encoding"] != "UTF-8" {
		t.Errorf("client_encoding: %v", rows)
	}
}

// TestConsoleWithoutUsers: where nobody is named, nobody comes in, and the name
// never leads to a server.
func TestConsoleWithoutUsers(t *testing.T) {
	p := startConsole(t, func(c *Config) { c.AdminUsers, c.StatsUsers = nil, nil })
	if _, err := tryConsole(t, p, testUser); err == nil || !strings.Contains(err.Error(), "not allowed") {
		t.Errorf("got %v", err)
	}
}

// TestConsoleProtocol: what is no simple query ends the session, with a reason.
func TestConsoleProtocol(t *testing.T) {
	p := startConsole(t, nil)
	for name, tt := range map[string]struct {
		send []byte
		want string
	}{
		"Parse":         {append(msgParse("", "show clients"), syncMsg...), "extended query protocol not supported by admin console"},
		"Sync":          {syncMsg, "unsupported packet type for admin console: 83"},
		"CopyData":      {msgCopyData("x"), "unsupported packet type for admin console: 100"},
		"long query":    {msgQuery(strings.Repeat(" ", maxConsoleQuery)), "invalid message length"},
		"query, no end": {[]byte{'Q', 0, 0, 0, 5, 'x'}, "invalid message format"},
		"query, a tail": {[]byte{'Q', 0, 0, 0, 7, 'x', 0, 'y'}, "invalid message format"},
		"garbage":       {[]byte{0xff, 0xff, 0xff, 0xff, 0xff}, "invalid message length"},
	} {
		t.Run(name, func(t *testing.T) {
			conn := dialTCP(t, p)
			if _, err := conn.Write(append(startupPacket("database", "pgbouncer"), tt.send...)); err != nil {
				t.Fatal(err)
			}
			if got := string(closes(t, conn)); !strings.Contains(got, tt.want) || !strings.Contains(got, "FATAL") {
				t.Errorf("got %q, want %q in it", got, tt.want)
			}
		})
	}
}

// TestConsoleIsNoClient: the console is there when there are too many clients,
// is none of them, and is itself bounded.
func TestConsoleIsNoClient(t *testing.T) {
	p := startConsole(t, func(c *Config) { c.MaxClients = 1 })
	waiting := dialTCP(t, p) // a client that logs in
	until(t, "the client to be counted", func() bool { return p.Snapshot().Clients == 1 })
	var sessions []consoleConn
	for range maxConsoles {
		sessions = append(sessions, dialConsole(t, p, "eve"))
	}
	if _, err := tryConsole(t, p, "eve"); err == nil || !strings.Contains(err.Error(), "no more than 64 connections") {
		t.Errorf("one more: %v", err)
	}
	until(t, "the sessions to be no clients", func() bool { return p.Snapshot().Clients == 1 })
	lists := sessions[0].show("lists")
	for _, want := range []string{"used_clients=65", "login_clients=1", "databases=1", "users=3", "pools=1"} {
		name, n, _ := strings.Cut(want, "=")
		find(t, lists, "list="+name, "items="+n)
	}
	if rows := sessions[0].show("clients"); len(rows) != maxConsoles {
		t.Errorf("%d clients shown", len(rows))
	}
	sessions[1].Close(testContext(t))
	until(t, "room for one more", func() bool {
		c, err := tryConsole(t, p, "eve")
		return err == nil && c.Close(testContext(t)) == nil
	})
	waiting.Close()
}

// TestConsoleEndsWithPooler: the console stays while transactions come to their
// end, and goes with the pooler.
func TestConsoleEndsWithPooler(t *testing.T) {
	p := startPooler(t, func(c *Config) { c.AdminUsers = []string{testUser} })
	console := dialConsole(t, p, testUser)
	busy := dialRaw(t, p)
	busy.send(msgQuery("begin"))
	busy.until('Z')
	stopped := make(chan struct{})
	go func() {
		p.stop()
		close(stopped)
	}()
	until(t, "the pooler to stop accepting", func() bool {
		conn, err := net.Dial("tcp", net.JoinHostPort(p.host, itoa(p.port)))
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	find(t, console.show("pools"), "database=postgres", "cl_active=1", "sv_active=1")
	busy.send(msgQuery("commit"))
	if got := string(closes(t, busy.conn)); !strings.Contains(got, "COMMIT") {
		t.Errorf("busy client got %q", got)
	}
	busy.conn.Close()
	<-stopped
	if _, err := console.Exec(testContext(t), "show pools").ReadAll(); err == nil {
		t.Error("the console outlived its pooler")
	}
}

// TestConsoleWithPsql: the tool that people use.
func TestConsoleWithPsql(t *testing.T) {
	if testing.Short() {
		t.Skip("runs psql, which -short leaves out")
	}
	psql, err := exec.LookPath("psql")
	if err != nil {
		t.Skip("needs psql")
	}
	p := startConsole(t, nil)
	cmd := exec.Command(psql, "-X", "-h", p.host, "-p", itoa(p.port), "-U", testUser, "-c", "show clients", "-c", "show help", "-c", "show pools;", "pgbouncer")
	cmd.Env = append(os.Environ(), "PGPASSWORD=x")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"prepared_statements", " psql ", "Console usage", "load_balance_hosts"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

func TestConsoleWithPgx(t *testing.T) {
	p := startConsole(t, nil)
	ctx := testContext(t)
	conn, err := pgx.Connect(ctx, dsn(p.host, p.port, "pgbouncer")+" default_query_exec_mode=simple_protocol")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	if err := conn.Ping(ctx); err != nil {
		t.Errorf("ping: %v", err)
	}
	var rows []struct {
		List  string
		Items int
	}
	if r, err := conn.Query(ctx, "show lists"); err != nil {
		t.Fatal(err)
	} else if rows, err = pgx.CollectRows(r, pgx.RowToStructByPos[struct {
		List  string
		Items int
	}]); err != nil || len(rows) != 14 {
		t.Errorf("%v, %v", rows, err)
	}
}
