package pooler

import (
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// TestPrefill: a database with a user has its servers before its first client.
func TestPrefill(t *testing.T) {
	p := startPooler(t, func(c *Config) {
		c.MinPoolSize = 2
		c.Databases = map[string]Database{"postgres": {Host: c.Fallback.Host, Port: c.Fallback.Port,
			User: testUser, Secret: pgwire.PlainSecret(testPassword)}}
	})
	until(t, "two idle servers", func() bool { return p.pool().ServersIdle == 2 })
}

// TestLimitsForReal: one server for two databases, and one client of a user.
func TestLimitsForReal(t *testing.T) {
	p := startPooler(t, func(c *Config) { c.MaxUserConnections, c.MaxDBClientConnections = 1, 1 })
	ctx := testContext(t)
	a := p.connect()
	b, err := pgx.Connect(ctx, dsn(p.host, p.port, "template1"))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close(ctx)
	for range 5 {
		for _, conn := range []*pgx.Conn{a, b} {
			var one int
			if err := conn.QueryRow(ctx, "select 1").Scan(&one); err != nil {
				t.Fatal(err)
			}
			n := 0
			for _, s := range p.Snapshot().Pools {
				n += s.servers()
			}
			if n != 1 {
				t.Errorf("%d servers, want 1", n)
			}
		}
	}
	_, err = pgx.Connect(ctx, dsn(p.host, p.port, "template1"))
	if e, ok := errors.AsType[*pgconn.PgError](err); !ok || e.Code != "08P01" || e.Message != "client connections exceeded (max_db_client_connections)" {
		t.Errorf("the second client of a database: %v", err)
	}
}
