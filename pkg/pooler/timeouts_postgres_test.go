package pooler

import (
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// TestQueryTimeoutForReal: the query is cancelled, and its server goes on with
// the next client.
func TestQueryTimeoutForReal(t *testing.T) {
	p := startPooler(t, func(c *Config) { c.PoolSize, c.Timeouts.Query = 1, 300*time.Millisecond })
	ctx := testContext(t)
	a := p.connect()
	var before, after int
	if err := a.QueryRow(ctx, "select pg_backend_pid()").Scan(&before); err != nil {
		t.Fatal(err)
	}
	_, err := a.Exec(ctx, "select pg_sleep(60)")
	if e, ok := errors.AsType[*pgconn.PgError](err); !ok || e.Message != "query timeout" || e.Code != "08P01" {
		t.Fatalf("got %v", err)
	}
	p.quiet()
	if err := p.connect().QueryRow(ctx, "select pg_backend_pid()").Scan(&after); err != nil {
		t.Fatal(err)
	}
	if before != after {
		t.Errorf("server %d, was %d", after, before)
	}
}

// TestServerCheckForReal: a server that was not used for a while answers the
// empty query, and is used.
func TestServerCheckForReal(t *testing.T) {
	p := startPooler(t, func(c *Config) { c.PoolSize, c.ServerCheckDelay = 1, time.Millisecond })
	ctx := testContext(t)
	a := p.connect()
	var first, pid int
	for i := range 3 {
		if err := a.QueryRow(ctx, "select pg_backend_pid()").Scan(&pid); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = pid
		}
		until(t, "a server that is to be checked", func() bool { return p.pool().ServersUsed == 1 })
	}
	if pid != first {
		t.Errorf("server %d, was %d", pid, first)
	}
}
