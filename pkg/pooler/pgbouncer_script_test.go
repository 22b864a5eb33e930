package pooler

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// step is what one of a script's actors does. The consoles are "admin", "other"
// and "eve", who may only look; all other names are clients. A client's
// "connect DATABASE [PARAMETER=VALUE]" and "close" are no SQL. "& COMMAND" does
// not wait for the answer, "wait" does; "until TEXT" waits for "databases" to be
// that text.
type step struct {
	who, do string
	differs string // why PgBouncer 1.18 answers something else
}

var script = []step{
	// Looking.
	{"admin", "databases", ""},
	{"admin", "show", ""},
	{"admin", "SHOW NONSENSE", ""},
	{"admin", "SELECT 1 + 1", ""},
	{"admin", "SHOW DateStyle", ""},
	{"admin", "SET DateStyle = 'ISO'", ""},
	{"admin", "set extra = 1 2", ""},
	{"eve", "PAUSE", ""},
	{"eve", "SET max_client_conn = 5", ""},
	{"eve", "KILL_CLIENT 5", "1.18 has no such command"},
	{"eve", "SHOW FDS", ""},
	// Clients.
	{"a", "connect nope", "3D000 as in PostgreSQL and in PgBouncer from 1.25 on"},
	{"a", "connect app nonsense=1", "startup parameters are PostgreSQL's to refuse, in the first transaction"},
	{"a", "connect app", ""},
	{"a", "select 'one'", ""},
	{"a", "select nonsense", ""},
	{"a", "begin; select 'two'", ""},
	// A pause: of a database, with one transaction open.
	{"admin", "& PAUSE app", ""},
	{"other", "until app paused=1 disabled=0, other paused=0 disabled=0", ""},
	{"b", "connect other", ""},
	{"b", "select 'not paused'", ""},
	{"a", "select 'three'", ""},
	{"c", "connect app", ""},
	{"c", "& select 'waits'", ""},
	{"a", "commit", ""},
	{"admin", "wait", ""},
	{"other", "PAUSE app", ""},
	{"other", "RESUME app", ""},
	{"c", "wait", ""},
	{"other", "RESUME app", ""},
	// Of all.
	{"admin", "PAUSE", ""},
	{"admin", "PAUSE", ""},
	{"admin", "PAUSE app", ""},
	{"admin", "SUSPEND", ""},
	{"admin", "KILL app", ""},
	{"a", "& select 'four'", ""},
	{"admin", "RESUME", ""},
	{"a", "wait", ""},
	{"admin", "RESUME", ""},
	{"admin", "RESUME nope", ""},
	{"admin", "PAUSE nope", ""},
	{"admin", "PAUSE pgbouncer", ""},
	// The other commands.
	{"admin", "RECONNECT", ""},
	{"admin", "RECONNECT app", ""},
	{"admin", "RECONNECT pgbouncer", ""},
	{"admin", "WAIT_CLOSE", ""},
	{"admin", "WAIT_CLOSE app", ""},
	{"admin", "WAIT_CLOSE nope", ""},
	{"admin", "DISABLE", ""},
	{"admin", "DISABLE other", ""},
	{"admin", "databases", ""},
	{"d", "connect other", ""},
	{"b", "select 'disabled, but here'", ""},
	{"admin", "ENABLE other", ""},
	{"admin", "ENABLE nope", ""},
	{"d", "connect other", ""},
	{"admin", "KILL other", ""},
	{"b", "select 'killed'", ""},
	{"admin", "databases", ""},
	{"admin", "RESUME other", ""},
	{"b", "connect other", ""},
	{"b", "select 'back'", ""},
	{"admin", "SUSPEND", ""},
	{"a", "& select 'suspended'", ""},
	{"admin", "RESUME", ""},
	{"a", "wait", ""},
	// Settings.
	{"admin", "RELOAD", ""},
	{"admin", "RELOAD x", ""},
	{"admin", "SET query_wait_timeout = 7", ""},
	{"admin", "SET query_wait_timeout = 'often'", ""},
	{"admin", "SET nonsense = 1", ""},
	{"admin", "SET listen_port = 7", ""},
	{"admin", "PAUSE " + strings.Repeat("x", 70), ""},
	// The end.
	{"a", "close", ""},
	{"admin", "SHUTDOWN", "we say why the session ends"},
}

// actors play a script against one pooler.
type actors struct {
	t       *testing.T
	port    int
	conns   map[string]*pgconn.PgConn
	pending map[string]chan string
}

func (a *actors) play(s step) string {
	word, rest, _ := strings.Cut(s.do, " ")
	conn := a.conns[s.who]
	if conn == nil && (s.who == "admin" || s.who == "other" || s.who == "eve") {
		user := testUser
		if s.who == "eve" {
			user = "eve"
		}
		conn = dialConsole(a.t, &testPooler{host: "127.0.0.1", port: a.port, t: a.t}, user).PgConn
		a.conns[s.who] = conn
	}
	if conn == nil && word != "connect" {
		return "not connected"
	}
	switch word {
	case "connect":
		return a.connect(s.who, rest)
	case "close":
		return fmt.Sprint(conn.Close(testContext(a.t)))
	case "databases":
		return a.databases(conn)
	case "until":
		until(a.t, rest, func() bool { return a.databases(conn) == rest })
		return ""
	case "&":
		answer := make(chan string, 1)
		a.pending[s.who] = answer
		go func() { answer <- outcome(conn.Exec(testContext(a.t), rest).ReadAll()) }()
		return ""
	case "wait":
		return <-a.pending[s.who]
	}
	return outcome(conn.Exec(testContext(a.t), s.do).ReadAll())
}

func (a *actors) connect(who, args string) string {
	database, parameter, _ := strings.Cut(args, " ")
	conn, err := pgconn.Connect(testContext(a.t), fmt.Sprintf("host=127.0.0.1 port=%d user=%s dbname=%s sslmode=disable %s", a.port, testUser, database, parameter))
	if err != nil {
		return outcome(nil, err)
	}
	a.t.Cleanup(func() { conn.Close(testContext(a.t)) })
	a.conns[who] = conn
	return "connected"
}

// databases tells which of the databases are paused and disabled.
func (a *actors) databases(conn *pgconn.PgConn) string {
	var list []string
	c := consoleConn{a.t, conn}
	for _, row := range c.show("databases") {
		if row["name"] != consoleDatabase {
			list = append(list, fmt.Sprintf("%s paused=%s disabled=%s", row["name"], row["paused"], row["disabled"]))
		}
	}
	return strings.Join(list, ", ")
}

// outcome describes an answer: tags and values, or the error.
func outcome(results []*pgconn.Result, err error) string {
	var list []string
	for _, r := range results {
		for _, row := range r.Rows {
			list = append(list, string(row[0]))
		}
		list = append(list, r.CommandTag.String())
	}
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		list = append(list, e.Severity, e.Code, e.Message)
	} else if err != nil {
		list = append(list, "connection lost")
	}
	return strings.Join(list, " ")
}

// TestScript has PgBouncer and us go through the same script, and compares the
// answers word for word.
func TestScript(t *testing.T) {
	host, pgport := postgres(t)
	entry := fmt.Sprintf("host=%s port=%d dbname=postgres", host, pgport)
	theirPort, version := bouncerWith(t, "app = "+entry+"\nother = "+entry, testPassword, "pool_mode = transaction")
	p := startConsole(t, func(c *Config) {
		db := Database{Host: host, Port: uint16(pgport), DBName: "postgres"}
		c.Databases, c.Fallback = map[string]Database{"app": db, "other": db}, nil
		c.Users[testUser] = pgwire.PlainSecret(testPassword)
		c.Settings = []Setting{{Name: "listen_port", Value: "1", Fixed: true}}
		base := *c
		c.Reread = func() (Config, error) { return base, nil }
		c.Change = func(key, value string) (Config, error) {
			if key != "query_wait_timeout" || value != "7" {
				return base, errors.New("no")
			}
			return base, nil
		}
	})
	theirs := &actors{t: t, port: theirPort, conns: make(map[string]*pgconn.PgConn), pending: make(map[string]chan string)}
	ours := &actors{t: t, port: p.port, conns: make(map[string]*pgconn.PgConn), pending: make(map[string]chan string)}
	for i, s := range script {
		want, got := theirs.play(s), ours.play(s)
		t.Logf("%s: %s: %s", s.who, s.do, got)
		switch {
		case s.differs != "" && version < 125 && got == want:
			t.Errorf("step %d, %s: %s: PgBouncer answers the same: %s", i, s.who, s.do, got)
		case s.differs == "" && got != want:
			t.Errorf("step %d, %s: %s:\ngot       %s\nPgBouncer %s", i, s.who, s.do, got, want)
		}
	}
}
