package pooler

import (
	"encoding/binary"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// TestKeysPassThrough: with the server's own verifier in the user list, a
// client's login gives what the pooler needs to log in to the server.
func TestKeysPassThrough(t *testing.T) {
	host, port := postgres(t)
	ctx := testContext(t)
	direct, err := pgx.Connect(ctx, dsn(host, port, "postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer direct.Close(ctx)
	var verifier string
	if err := direct.QueryRow(ctx, "select rolpassword from pg_authid where rolname = $1", testUser).Scan(&verifier); err != nil {
		t.Fatal(err)
	}
	secret, err := pgwire.ParseSecret(verifier)
	if err != nil {
		t.Fatal(err)
	}
	p := startPooler(t, func(c *Config) { c.Users = map[string]pgwire.Secret{testUser: secret} })
	var user string
	if err := p.connect().QueryRow(ctx, "select current_user").Scan(&user); err != nil || user != testUser {
		t.Fatalf("got %q, %v", user, err)
	}
}

// TestForcedUser: the database's own user is who the servers are, whoever the
// client is.
func TestForcedUser(t *testing.T) {
	p := startPooler(t, func(c *Config) {
		c.Users = map[string]pgwire.Secret{"someone": pgwire.PlainSecret("else")}
		c.Databases = map[string]Database{"db": {Host: c.Fallback.Host, Port: c.Fallback.Port, DBName: "postgres",
			User: testUser, Secret: pgwire.PlainSecret(testPassword), PoolSize: 1}}
	})
	ctx := testContext(t)
	config, err := pgx.ParseConfig(dsn(p.host, p.port, "db"))
	if err != nil {
		t.Fatal(err)
	}
	config.User, config.Password = "someone", "else"
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	var user string
	if err := conn.QueryRow(ctx, "select current_user").Scan(&user); err != nil || user != testUser {
		t.Fatalf("got %q, %v", user, err)
	}
	if s := p.Snapshot().Pools; len(s) != 1 || s[0].Database != "db" || s[0].User != testUser || s[0].Size != 1 {
		t.Errorf("pools: %+v", s)
	}
}

// TestUnixSocket: a host that is a directory is that of a Unix socket.
func TestUnixSocket(t *testing.T) {
	_, port := postgres(t)
	p := startPoolerAt(t, cluster.dir, port, nil)
	ctx := testContext(t)
	conn := p.connect()
	var local bool
	if err := conn.QueryRow(ctx, "select inet_server_addr() is null").Scan(&local); err != nil || !local {
		t.Fatalf("over a Unix socket: %v, %v", local, err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := conn.Exec(ctx, "select pg_sleep(60)")
		ended <- err
	}()
	asleep(t)
	if err := conn.PgConn().CancelRequest(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; codeOf(err) != "57014" {
		t.Errorf("got %v, want 57014", err)
	}
}

// TestFunctionCall uses the oldest way to run something.
func TestFunctionCall(t *testing.T) {
	p := startPooler(t, func(c *Config) { c.PoolSize = 1 })
	raw := dialRaw(t, p)
	const oidOfPi = 1610 // pi() in pg_proc.dat
	body := binary.BigEndian.AppendUint32(nil, oidOfPi)
	body = append(body, 0, 0, 0, 0, 0, 0) // no argument formats, no arguments, result as text
	call := append(pgwire.AppendHeader(nil, 'F', len(body)), body...)
	raw.send(call, call)
	if got := raw.until('Z') + raw.until('Z'); got != "VZVZ" {
		t.Errorf("got %q: %q", got, raw.seen)
	}
	raw.conn.Close()
	p.quiet()
}

// TestWithoutPrepared: with the support switched off, names pass as they are.
func TestWithoutPrepared(t *testing.T) {
	p := startPooler(t, func(c *Config) { c.PoolSize, c.MaxPrepared = 1, 0 })
	raw := dialRaw(t, p)
	raw.send(msgParse("mine", "select 1"), msgBind("", "mine"), msgExecute(""), pgwire.AppendClose(nil, 'S', "mine"), syncMsg)
	if got := raw.until('Z'); got != "12DC3Z" {
		t.Fatalf("got %q: %q", got, raw.seen)
	}
	raw.send(msgParse("mine", "select 1"), syncMsg, msgQuery("select name from pg_prepared_statements"))
	raw.until('Z')
	for {
		typ, body := raw.receive()
		if typ == 'D' && string(body[len(body)-4:]) != "mine" {
			t.Errorf("the server has %q", body)
		}
		if typ == 'Z' {
			break
		}
	}
}

// TestTwoFlights is what lib/pq does: the statement is parsed in one flight and
// used in the next, with others in between.
func TestTwoFlights(t *testing.T) {
	p := startPooler(t, func(c *Config) { c.PoolSize = 1 })
	a, b := dialRaw(t, p), dialRaw(t, p)
	for range 3 {
		a.send(msgParse("", "select 'a'"), pgwire.AppendDescribe(nil, 'S', ""), syncMsg)
		a.until('Z')
		b.send(msgParse("", "select 'b'"), pgwire.AppendDescribe(nil, 'S', ""), syncMsg)
		b.until('Z')
		for name, c := range map[string]*rawClient{"a": a, "b": b} {
			c.send(msgBind("", ""), msgExecute(""), syncMsg)
			for {
				typ, body := c.receive()
				if typ == 'E' || typ == 'D' && string(body[len(body)-1:]) != name {
					t.Fatalf("%s got %q", name, body)
				}
				if typ == 'Z' {
					break
				}
			}
		}
	}
}
