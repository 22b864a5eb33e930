package pooler

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

func TestLookAt(t *testing.T) {
	for sql, want := range map[string]leftovers{
		"":                          0,
		"select 1":                  0,
		"SELECT setting from x":     0,
		"set":                       0,
		"set statement_timeout = 1": leftSet,
		"  /* by */ -- x\n SET SESSION geqo to off":    leftSet,
		"set session authorization bob":                leftSet,
		"set session characteristics as transaction x": leftSet,
		"set role bob":                                  leftSet,
		"set local statement_timeout = 1":               0,
		"set transaction isolation level serializable":  0,
		"SET TIME ZONE 'UTC'":                           0,
		"set application_name = 'x'":                    0,
		"reset geqo":                                    leftSet,
		"reset all":                                     leftSet,
		"reset timezone":                                0,
		"begin; set geqo = off; commit":                 leftSet,
		"select set_config('a.b', 'x', false)":          leftSet,
		"select set_config('a.b', $1, true)":            0,
		"select pg_advisory_lock(1)":                    leftLock | leftUnknown,
		"SELECT PG_TRY_ADVISORY_LOCK(1)":                leftLock | leftUnknown,
		"select pg_advisory_xact_lock(1)":               0,
		"select pg_advisory_unlock(1)":                  leftLock | leftUnknown,
		"create table t()":                              0,
		"CREATE TEMP TABLE t()":                         leftTemp,
		"create or replace local temporary view v as 1": leftTemp,
		"create temp table t as select 1":               leftTemp,
		"declare c cursor with hold for select 1":       leftCursor,
		"declare c cursor for select 1":                 0,
		"prepare p as select 1":                         leftPrepare,
		"prepare transaction 'x'":                       0,
		"listen x":                                      leftListen,
		"discard all":                                   0,
		"rollback":                                      0,
	} {
		if got := lookAt([]byte(sql)); got != want {
			t.Errorf("%q: %s, want %s", sql, got, want)
		}
	}
}

func TestParseDeallocate(t *testing.T) {
	for sql, want := range map[string]string{
		"deallocate all":             "ALL",
		"DEALLOCATE ALL;":            "ALL",
		"deallocate prepare all ; ":  "ALL",
		"deallocate S1":              "s1",
		`DEALLOCATE "Some Thing";`:   "Some Thing",
		`deallocate "all"`:           "all",
		"deallocate prepare":         "prepare",
		"deallocate prepare;":        "prepare",
		"deallocate _pg3_0":          "_pg3_0",
		"deallocate a; select 1":     "",
		`deallocate "a""b"`:          "",
		"deallocate":                 "",
		"discard all":                "",
		"deallocatex":                "",
		"deallocate /* all */ \"x\"": "x",
	} {
		name, all, ok := parseDeallocate([]byte(sql))
		switch {
		case !ok:
			name = ""
		case all:
			name = "ALL"
		}
		if name != want {
			t.Errorf("%q: %q, want %q", sql, name, want)
		}
	}
}

// TestDeallocate: by name and all, a client gives up its own statements, and
// others keep theirs.
func TestDeallocate(t *testing.T) {
	w := newFakeWorld(t, nil)
	db := database("d", 1)
	a, pa := w.welcomed(db)
	b, pb := w.welcomed(db)
	run := func(cl *client, p *peer, want string, msgs ...[]byte) {
		t.Helper()
		w.send(&cl.conn, msgs...)
		w.settle()
		if got := types(t, p.take()); got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
	use := func(name string) []byte { return append(append(msgBind("", name), msgExecute("")...), syncMsg...) }
	run(a, pa, "11Z", msgParse("s", "row x"), msgParse("t", "row y"), syncMsg)
	run(b, pb, "1Z", msgParse("s", "row x"), syncMsg)
	run(a, pa, "CZEZ2DCZ", msgQuery("deallocate s"), use("s"), use("t"))
	run(b, pb, "2DCZ", use("s"))
	run(a, pa, "TDCZ1ZCZEZ", msgQuery("row z"), msgParse("s", "row x"), syncMsg, msgQuery("DEALLOCATE ALL"), use("t"))
	run(b, pb, "2DCZ", use("s"))
	run(a, pa, "1ZCZEZEZCZ2DCZ", msgParse("s", "row x"), syncMsg, msgQuery("begin"), msgQuery("fail"), msgQuery("deallocate s"),
		msgQuery("rollback"), use("s"))
	run(a, pa, "EZ", msgQuery("deallocate nope"))
	if n := a.pool.stats.ServerParses; n != 2 {
		t.Errorf("%d statements were parsed on the server, want 2", n)
	}
}

// TestLeftBehind: what one client leaves in a session, the next one does not
// find.
func TestLeftBehind(t *testing.T) {
	p := startPooler(t, func(c *Config) { c.PoolSize = 1 })
	ctx := testContext(t)
	a, b := p.connect(), p.connect()
	const state = `select concat_ws(' ', current_setting('statement_timeout'), current_setting('my.tenant', true), current_user,
		(select count(*) from pg_class where relpersistence = 't' and pg_table_is_visible(oid)),
		(select count(*) from pg_cursors where is_holdable), (select count(*) from pg_listening_channels()),
		(select count(*) from pg_prepared_statements where from_sql), (select count(*) from pg_locks where locktype = 'advisory'))`
	look := func(c *pgx.Conn) (s string) {
		t.Helper()
		if err := c.QueryRow(ctx, state).Scan(&s); err != nil {
			t.Fatal(err)
		}
		return strings.Join(strings.Fields(s), " ")
	}
	run := func(c *pgx.Conn, sql string, mode pgx.QueryExecMode) {
		t.Helper()
		if _, err := c.Exec(ctx, sql, mode); err != nil {
			t.Fatal(err)
		}
	}
	clean := look(b)
	run(b, "create role someone", pgx.QueryExecModeSimpleProtocol)
	t.Cleanup(func() { b.Exec(context.Background(), "drop role someone") })
	for _, sql := range []string{
		"set statement_timeout = 54321", "set my.tenant = '7'", "select set_config('my.tenant', '8', false)", "set role someone",
		"set session authorization someone", "begin; set my.tenant = 'x'; commit",
		"create temp table leftover (i int)", "create temp table leftover as select 1", "listen leftover", "prepare leftover as select 1",
		"declare leftover cursor with hold for select 1",
	} {
		for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeSimpleProtocol, pgx.QueryExecModeCacheStatement, pgx.QueryExecModeExec} {
			if strings.Contains(sql, ";") && mode != pgx.QueryExecModeSimpleProtocol || strings.HasPrefix(sql, "declare") && mode == pgx.QueryExecModeCacheStatement {
				continue // several statements; one that cannot be described
			}
			run(a, sql, mode)
			if got := look(b); got != clean {
				t.Errorf("after %q in mode %s: %s, want %s", sql, mode, got, clean)
			}
		}
	}
	// Within its transaction a client has what it set.
	tx, err := a.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var timeout string
	if _, err := tx.Exec(ctx, "set statement_timeout = 54321"); err != nil {
		t.Fatal(err)
	}
	if err := tx.QueryRow(ctx, "show statement_timeout").Scan(&timeout); err != nil || timeout != "54321ms" {
		t.Errorf("got %s, %v", timeout, err)
	}
	if err := tx.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	if n := p.pool().Leftovers; n < 20 {
		t.Errorf("%d transactions left something behind, want more", n)
	}
	if !strings.Contains(p.log.String(), "session state left in transaction pooling") {
		t.Error("the log does not say so")
	}
}

// TestAdvisoryLockPins: a client that holds a session lock keeps its server
// until it gives the lock back.
func TestAdvisoryLockPins(t *testing.T) {
	p := startPooler(t, func(c *Config) { c.PoolSize = 2 })
	ctx := testContext(t)
	a, b := p.connect(), p.connect()
	pid := func(c *pgx.Conn) (n int) {
		t.Helper()
		if err := c.QueryRow(ctx, "select pg_backend_pid()").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	lock := func(c *pgx.Conn, sql string) (ok bool) {
		t.Helper()
		if err := c.QueryRow(ctx, sql).Scan(&ok); err != nil {
			t.Fatal(err)
		}
		return ok
	}
	if !lock(a, "select pg_try_advisory_lock(4711)") {
		t.Fatal("no lock")
	}
	held := pid(a)
	for range 3 {
		if got := pid(b); got == held {
			t.Fatal("another client got the server")
		}
		if got := pid(a); got != held {
			t.Fatal("the client has another server")
		}
	}
	if lock(b, "select pg_try_advisory_lock(4711)") {
		t.Fatal("the lock was given twice")
	}
	until(t, "all but the pinned server to be idle", func() bool { return p.pool().ServersActive == 1 })
	if n := p.pool().Pins; n != 1 {
		t.Errorf("%d servers were pinned, want 1", n)
	}
	if !lock(a, "select pg_advisory_unlock(4711)") {
		t.Fatal("the lock was not held")
	}
	p.quiet()
	// A transaction's lock pins nothing; a client that leaves gives up its locks.
	if _, err := a.Exec(ctx, "select pg_advisory_xact_lock(4711)"); err != nil {
		t.Fatal(err)
	}
	p.quiet()
	if !lock(a, "select pg_try_advisory_lock(4711)") {
		t.Fatal("no lock")
	}
	a.Close(ctx)
	p.quiet()
	if !lock(b, "select pg_try_advisory_lock(4711)") {
		t.Error("the lock of a client that left is still held")
	}
	if _, err := b.Exec(ctx, "discard all", pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	p.quiet()
}

// TestLeakGuardModes: refused, or left as it is.
func TestLeakGuardModes(t *testing.T) {
	ctx := testContext(t)
	p := startPooler(t, func(c *Config) { c.PoolSize, c.LeakGuard = 1, GuardRefuse })
	if _, err := p.connect().Exec(ctx, "select pg_advisory_lock(1)"); codeOf(err) != pgwire.CodeFeatureNotSupported {
		t.Errorf("refuse: got %v", err)
	}
	if _, err := p.connect().Exec(ctx, "set geqo = off"); err != nil {
		t.Errorf("refuse: SET: %v", err)
	}
	for _, guard := range []Guard{GuardCount, GuardOff} {
		p := startPooler(t, func(c *Config) { c.PoolSize, c.LeakGuard = 1, guard })
		if _, err := p.connect().Exec(ctx, "set geqo = off"); err != nil {
			t.Fatal(err)
		}
		if got := show(t, p.connect(), "geqo"); got != "off" {
			t.Errorf("guard %d: geqo = %s", guard, got)
		}
		if n := p.pool().Leftovers; n == 1 != (guard == GuardCount) {
			t.Errorf("guard %d: %d transactions left something behind", guard, n)
		}
	}
}
