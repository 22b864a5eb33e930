package pooler

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// connectWith opens a client connection with startup parameters.
func (p *testPooler) connectWith(params map[string]string) *pgx.Conn {
	p.t.Helper()
	config, err := pgx.ParseConfig(dsn(p.host, p.port, "postgres"))
	if err != nil {
		p.t.Fatal(err)
	}
	for name, value := range params {
		config.RuntimeParams[name] = value
	}
	ctx := testContext(p.t)
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { conn.Close(ctx) })
	return conn
}

// show returns the value of a parameter.
func show(t *testing.T, conn *pgx.Conn, name string) (value string) {
	t.Helper()
	if err := conn.QueryRow(testContext(t), "show "+name, pgx.QueryExecModeSimpleProtocol).Scan(&value); err != nil {
		t.Fatal(err)
	}
	return value
}

// TestStartupParameters: clients with all sorts of startup parameters share one
// server, and each finds its own.
func TestStartupParameters(t *testing.T) {
	p := startPooler(t, func(c *Config) { c.PoolSize = 1 })
	clients := []map[string]string{
		{},
		{"search_path": `pg_catalog, "odd, name"`, "extra_float_digits": "3"},
		{"options": `-c statement_timeout=1234567 --lock-timeout=7s -c search_path=x\,y`, "my.tenant": "it's \\ me"},
		{"default_transaction_read_only": "on", "geqo": "off"},
	}
	want := []map[string]string{
		{},
		{"search_path": `pg_catalog, "odd, name"`, "extra_float_digits": "3"},
		{"statement_timeout": "1234567ms", "lock_timeout": "7s", "search_path": "x,y", "my.tenant": "it's \\ me"},
		{"default_transaction_read_only": "on", "geqo": "off"},
	}
	host, port := postgres(t)
	ctx := testContext(t)
	direct, err := pgx.Connect(ctx, dsn(host, port, "postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer direct.Close(ctx)
	standard := map[string]string{"my.tenant": ""}
	for _, name := range []string{"search_path", "extra_float_digits", "statement_timeout", "lock_timeout", "default_transaction_read_only", "geqo"} {
		standard[name] = show(t, direct, name)
	}
	var conns []*pgx.Conn
	for _, params := range clients {
		conns = append(conns, p.connectWith(params))
	}
	if got := conns[3].PgConn().ParameterStatus("default_transaction_read_only"); got != "on" {
		t.Errorf("the welcome says default_transaction_read_only=%q", got)
	}
	for range 2 {
		for i, conn := range conns {
			for name, value := range standard {
				if own, ok := want[i][name]; ok {
					value = own
				} else if name == "my.tenant" && i < 2 {
					continue // the server does not know it at first
				}
				if got := show(t, conn, name); got != value {
					t.Errorf("client %d: %s = %q, want %q", i, name, got, value)
				}
			}
		}
	}
	// What a client sets by SQL and the server reports follows it, too.
	if _, err := conns[0].Exec(ctx, "set default_transaction_read_only = on"); err != nil {
		t.Fatal(err)
	}
	for i, value := range []string{"on", "off", "off", "on", "on"} {
		if got := show(t, conns[i%4], "default_transaction_read_only"); got != value {
			t.Errorf("client %d: default_transaction_read_only = %s, want %s", i%4, got, value)
		}
	}
	// After RESET ALL a client has its own ones again, in its next transaction.
	for _, sql := range []string{"reset all", "discard all", "reset geqo"} {
		if _, err := conns[2].Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatal(err)
		}
		if got := show(t, conns[2], "lock_timeout"); got != "7s" {
			t.Errorf("after %s: lock_timeout = %s", sql, got)
		}
		if got := show(t, conns[1], "lock_timeout"); got != "0" {
			t.Errorf("after %s: another's lock_timeout = %s", sql, got)
		}
	}
}

// TestBadStartupParameter: a client learns of it from PostgreSQL's own words, and
// nobody else suffers.
func TestBadStartupParameter(t *testing.T) {
	p := startPooler(t, func(c *Config) { c.PoolSize = 1 })
	ctx := testContext(t)
	good := p.connect()
	for name, code := range map[string]string{"nosuch": "42704", "log_connections": "55P02", "shared_buffers": "55P02"} {
		bad := p.connectWith(map[string]string{name: "1"})
		if _, err := bad.Exec(ctx, "select 1"); codeOf(err) != code {
			t.Errorf("%s: got %v, want %s", name, err, code)
		}
		if _, err := good.Exec(ctx, "select 1"); err != nil {
			t.Errorf("the good client got %v", err)
		}
	}
}

// TestServerFacts: what a server reports and nobody can set is passed on to a
// client that believes something else.
func TestServerFacts(t *testing.T) {
	w := newFakeWorld(t, nil)
	cl, p := w.welcomed(database("d", 1))
	w.send(&cl.conn, msgQuery("row x"))
	w.settle()
	p.take()
	for c, peer := range w.peers {
		if c.sv != nil {
			peer.sock = append(peer.sock, pgwire.AppendParameterStatus(nil, "server_version", "16.1")...)
			w.arrived(c)
		}
	}
	w.settle()
	for range 2 {
		w.send(&cl.conn, msgQuery("row x"))
		w.settle()
	}
	if got := types(t, p.take()); got != "STDCZTDCZ" {
		t.Errorf("got %q", got)
	}
	if cl.pool.stats.Settings != 0 {
		t.Errorf("%d hand-outs needed a SET", cl.pool.stats.Settings)
	}
}
