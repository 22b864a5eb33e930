package pooler

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// TestCancel cancels a query that runs, and one that waits for a server.
func TestCancel(t *testing.T) {
	p := startPooler(t, func(c *Config) { c.PoolSize = 1 })
	conn, waiting := dialRaw(t, p), dialRaw(t, p)
	conn.send(msgQuery("select pg_sleep(60)"))
	asleep(t)
	waiting.send(msgParse("", "select 1"), msgBind("", ""), msgExecute(""), syncMsg)
	until(t, "a client to wait", func() bool { return p.pool().ClientsWaiting == 1 })
	waiting.cancel(p)
	if got := waiting.until('Z'); got != "EZ" || !strings.Contains(waiting.seen, "57014") {
		t.Fatalf("waiting client got %q: %q", got, waiting.seen)
	}
	conn.cancel(p)
	if got := conn.until('Z'); !strings.HasSuffix(got, "EZ") || !strings.Contains(conn.seen, "57014") {
		t.Fatalf("client got %q: %q", got, conn.seen)
	}
	// A key that is nobody's, and one of an idle client, do no harm.
	waiting.key.PID ^= 1
	waiting.cancel(p)
	waiting.key.PID ^= 1
	waiting.cancel(p)
	waiting.send(msgQuery("select 2"))
	if got := waiting.until('Z'); got != "TDCZ" {
		t.Fatalf("afterwards: %q", got)
	}
	p.quiet()
	if s := p.pool(); s.ServerLogins != 1 || s.Cancels != 1 {
		t.Errorf("%d server logins, %d cancels; want the one server to be kept, and one cancel", s.ServerLogins, s.Cancels)
	}
}

// TestServerKilled: a server that dies idle is not noticed; in a transaction
// the client learns of it.
func TestServerKilled(t *testing.T) {
	p := startPooler(t, func(c *Config) { c.PoolSize = 1 })
	ctx := testContext(t)
	host, port := postgres(t)
	direct, err := pgx.Connect(ctx, dsn(host, port, "postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer direct.Close(ctx)
	conn := p.connect()
	pid := 0
	query := func() error { return conn.QueryRow(ctx, "select pg_backend_pid()").Scan(&pid) }
	if err := query(); err != nil {
		t.Fatal(err)
	}
	first := pid
	if _, err := direct.Exec(ctx, "select pg_terminate_backend($1, 5000)", pid); err != nil {
		t.Fatal(err)
	}
	if err := query(); err != nil || pid == first {
		t.Fatalf("after an idle server's death: %v, pid %d", err, pid)
	}
	tx, err := conn.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := direct.Exec(ctx, "select pg_terminate_backend($1, 5000)", pid); err != nil {
		t.Fatal(err)
	}
	_, err = tx.Exec(ctx, "select 1")
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); !ok || pgErr.Code != "57P01" {
		t.Fatalf("in a transaction: %v, want 57P01", err)
	}
	other := p.connect()
	if err := other.QueryRow(ctx, "select pg_backend_pid()").Scan(&pid); err != nil {
		t.Fatalf("another client afterwards: %v", err)
	}
}

// TestClientKilled: a client that vanishes in its transaction leaves neither
// locks nor a running query behind, and its server is kept.
func TestClientKilled(t *testing.T) {
	p := startPooler(t, func(c *Config) { c.PoolSize = 1 })
	ctx := testContext(t)
	conn := p.connect()
	if _, err := conn.Exec(ctx, "create table if not exists locked (a int); truncate locked; insert into locked values (1)"); err != nil {
		t.Fatal(err)
	}
	steps := map[string][][]byte{
		"in a transaction":  {msgQuery("begin; update locked set a = 2")},
		"failed":            {msgQuery("begin; update locked set a = 2; select 1/0")},
		"in a query":        {msgQuery("begin; update locked set a = 2; select pg_sleep(60)")},
		"in a flight":       {msgParse("", "select pg_sleep(60)"), msgBind("", ""), msgExecute("")},
		"flushed":           {msgParse("", "select 1"), msgBind("", ""), msgExecute(""), {'H', 0, 0, 0, 4}},
		"in COPY":           {msgQuery("copy locked from stdin"), msgCopyData("5\n")},
		"in extended COPY":  {msgParse("", "copy locked from stdin"), msgBind("", ""), msgExecute(""), msgCopyData("5\n")},
		"reading":           {msgQuery("select repeat('x', 1000) from generate_series(1, 100000)")},
		"within a message":  {msgQuery("begin; update locked set a = 2"), {'Q', 0, 0, 1, 0, 's', 'e'}},
		"within a big one":  {{'Q', 0, 0x10, 0, 0}, bytes.Repeat([]byte{' '}, 100000)},
		"with its leave":    {msgQuery("update locked set a = a"), terminateMsg},
		"nothing but leave": {terminateMsg},
	}
	for name, send := range steps {
		t.Run(name, func(t *testing.T) {
			raw := dialRaw(t, p)
			before := p.pool().Transactions + uint64(p.pool().ClientsActive)
			raw.send(send...)
			if name != "nothing but leave" && name != "with its leave" {
				until(t, "the client to have a server", func() bool {
					s := p.pool()
					return s.ClientsActive > 0 || s.Transactions > before
				})
			}
			raw.conn.Close()
			start := time.Now()
			p.quiet()
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("took %v", took)
			}
			var a, n int
			err := conn.QueryRow(ctx, "update locked set a = a returning a, (select count(*) from locked)").Scan(&a, &n)
			if err != nil || a != 1 || n != 1 {
				t.Fatalf("afterwards: %d, %d rows, %v", a, n, err)
			}
		})
	}
	if s := p.pool(); s.ServerLogins > 4 {
		t.Errorf("%d server logins: servers were not kept", s.ServerLogins)
	}
}

// TestTerminateParts: a client that says goodbye is gone at once, but may close
// first; one that has closed already, or says nothing, is closed.
func TestTerminateParts(t *testing.T) {
	tests := []struct {
		name string
		send []byte
		ends bool
		want ending
	}{
		{"goodbye", terminateMsg, false, endParting},
		{"goodbye behind a query", append(msgQuery("select 1"), terminateMsg...), false, endParting},
		{"goodbye and close", terminateMsg, true, endNow},
		{"goodbye behind a query and close", append(msgQuery("select 1"), terminateMsg...), true, endNow},
		{"close", nil, true, endNow},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newFakeWorld(t, nil)
			cl, p := w.welcomed(database("d", 1))
			p.sock = append(p.sock, tt.send...)
			p.ended = tt.ends
			w.arrived(&cl.conn)
			w.settle()
			if !cl.dropped || cl.state != clientGone || w.m.population != 0 || !p.over || p.how != tt.want {
				t.Errorf("dropped %v, state %d, %d clients, ended by %d; want %d", cl.dropped, cl.state, w.m.population, p.how, tt.want)
			}
		})
	}
}
