package pooler

import (
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// TestSessionPoolingForReal: what belongs to a session is there in the next
// transaction, and gone for the next client.
func TestSessionPoolingForReal(t *testing.T) {
	p := startPooler(t, func(c *Config) { c.PoolMode, c.PoolSize = PoolSession, 1 })
	ctx := testContext(t)
	a := p.connect()
	pid := 0
	for _, sql := range []string{"create temp table mine (n int)", "set work_mem = '1234kB'", "prepare p as select 1", "listen here", "select pg_advisory_lock(4711)"} {
		if _, err := a.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	for range 3 { // pgx prepares it under a name
		if err := a.QueryRow(ctx, "select pg_backend_pid() + (select count(*) from mine) + (select count(*) from pg_prepared_statements where name = 'p') - 1").Scan(&pid); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := a.Exec(ctx, "notify here, 'word'"); err != nil {
		t.Fatal(err)
	}
	n, err := a.WaitForNotification(ctx)
	if err != nil || n.Payload != "word" {
		t.Fatalf("notification %+v, %v", n, err)
	}
	if err := a.Close(ctx); err != nil {
		t.Fatal(err)
	}
	b := p.connect()
	var next, leftovers int
	var mem string
	if err := b.QueryRow(ctx, `select pg_backend_pid(), current_setting('work_mem'),
		(select count(*) from pg_prepared_statements where name = 'p') + (select count(*) from pg_listening_channels()) +
		(select count(*) from pg_locks where locktype = 'advisory') + coalesce(to_regclass('mine')::oid::int, 0)`).Scan(&next, &mem, &leftovers); err != nil {
		t.Fatal(err)
	}
	if next != pid || mem == "1234kB" || leftovers != 0 {
		t.Errorf("server %d, was %d; work_mem %s; %d things left behind", next, pid, mem, leftovers)
	}
}

// TestStatementPoolingForReal compares the refusal of a transaction with that of
// PgBouncer's source: FATAL, 08P01.
func TestStatementPoolingForReal(t *testing.T) {
	p := startPooler(t, func(c *Config) { c.PoolMode = PoolStatement })
	ctx := testContext(t)
	a := p.connect()
	var one int
	if err := a.QueryRow(ctx, "select 1").Scan(&one); err != nil {
		t.Fatal(err)
	}
	_, err := a.Exec(ctx, "begin")
	if e, ok := errors.AsType[*pgconn.PgError](err); !ok || e.Code != "08P01" || e.Severity != "FATAL" ||
		e.Message != "transaction blocks not allowed in statement pooling mode" {
		t.Errorf("begin: %v", err)
	}
	if !strings.Contains(p.log.String(), "closing because: transaction blocks not allowed in statement pooling mode") {
		t.Error("the log does not say so")
	}
}
