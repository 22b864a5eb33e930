package pooler

import (
	"bytes"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// TestBadStart sends what no client should, and looks at the answer. Everything
// ends with a close, and a good client is served beside it.
func TestBadStart(t *testing.T) {
	p := startPooler(t, nil)
	good := p.connect()
	scram := bytes.Join([][]byte{startupPacket(), []byte("p\x00\x00\x00\x36SCRAM-SHA-256\x00\x00\x00\x00\x20n,,n=,r=rOprNGfwEbeRWgbNEkqO01234567")}, nil)
	tests := []struct {
		name string
		send []byte
		end  bool   // and close the sending side
		want string // contained in the answer; empty: no answer
	}{
		{"nothing", nil, true, ""},
		{"garbage", []byte("GET / HTTP/1.1\r\n\r\n"), false, "C08P01"},
		{"length 0", []byte{0, 0, 0, 0, 0, 3, 0, 0}, false, "C08P01"},
		{"length 2^31-1", []byte{0x7f, 0xff, 0xff, 0xff, 0, 3, 0, 0}, false, "C08P01"},
		{"length 2^32-1", []byte{0xff, 0xff, 0xff, 0xff, 0, 3, 0, 0}, false, "C08P01"},
		{"cut", startupPacket()[:11], true, ""},
		{"TLS ClientHello", append([]byte{0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3}, make([]byte, 500)...), false, "direct TLS"},
		{"SSLRequest twice", []byte("\x00\x00\x00\x08\x04\xd2\x16\x2f\x00\x00\x00\x08\x04\xd2\x16\x2f"), false, "C08P01"},
		{"protocol 2", []byte{0, 0, 0, 8, 0, 2, 0, 0}, false, "C0A000"},
		{"no user", []byte{0, 0, 0, 9, 0, 3, 0, 0, 0}, false, "C28000"},
		{"replication", startupPacket("replication", "true"), false, "C0A000"},
		{"malformed option", startupPacket("options", "-d 5"), false, "unsupported options"},
		{"query instead of password", append(startupPacket(), msgQuery("select 1")...), false, "C08P01"},
		{"giant password", append(startupPacket(), 'p', 0x7f, 0xff, 0xff, 0xff), false, "C08P01"},
		{"login left halfway", scram, true, "R"},
		{"cancel key of nobody", pgwire.AppendCancelRequest(nil, pgwire.CancelKey{PID: 1, Secret: "abcd"}), false, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			conn := dialTCP(t, p)
			if _, err := conn.Write(tt.send); err != nil {
				t.Fatal(err)
			}
			if tt.end {
				if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
					t.Fatal(err)
				}
			}
			got := string(closes(t, conn))
			if tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want %q in it", got, tt.want)
			}
		})
	}
	var one int
	if err := good.QueryRow(testContext(t), "select 1").Scan(&one); err != nil || one != 1 {
		t.Fatalf("the good client got %d, %v", one, err)
	}
	until(t, "the bad clients to be forgotten", func() bool { return p.Snapshot().Clients == 1 })
}

// TestBadMessages sends nonsense after a good login.
func TestBadMessages(t *testing.T) {
	p := startPooler(t, func(c *Config) { c.PoolSize = 1 })
	tests := map[string][]byte{
		"unknown type":           {'y', 0, 0, 0, 4},
		"length 3":               {'Q', 0, 0, 0, 3},
		"length 2^31":            {'Q', 0x80, 0, 0, 0},
		"length 1 GB":            {'Q', 0x40, 0, 0, 0},
		"long Sync":              {'S', 0, 1, 0, 0},
		"Parse without end":      {'P', 0, 0, 0, 6, 's', 's'},
		"Bind without end":       {'B', 0, 0, 0, 6, 0, 's'},
		"endless names in Bind":  append([]byte{'B', 0, 1, 0, 0}, bytes.Repeat([]byte{'n'}, 20000)...),
		"Describe without end":   {'D', 0, 0, 0, 6, 'S', 's'},
		"Describe with a tail":   {'D', 0, 0, 0, 8, 'S', 's', 0, 0},
		"password after login":   {'p', 0, 0, 0, 5, 0},
		"server's message":       {'Z', 0, 0, 0, 5, 'I'},
		"startup packet again":   startupPacket(),
		"in a transaction":       append(msgQuery("begin"), 'y', 0, 0, 0, 4),
		"in a flight":            append(msgParse("", "select 1"), 'y', 0, 0, 0, 4),
		"named Parse over bound": {'P', 0, 0x20, 0, 0, 's', 0},
	}
	for name, send := range tests {
		t.Run(name, func(t *testing.T) {
			raw := dialRaw(t, p)
			raw.send(send)
			got := string(closes(t, raw.conn))
			if !strings.Contains(got, "FATAL") {
				t.Errorf("got %q, want a FATAL", got)
			}
			p.quiet()
			next := dialRaw(t, p)
			next.send(msgQuery("select 1"))
			if got := next.until('Z'); got != "TDCZ" {
				t.Errorf("the next client got %q", got)
			}
			next.conn.Close()
		})
	}
}

// TestLogin looks at who gets in.
func TestLogin(t *testing.T) {
	p := startPooler(t, func(c *Config) {
		c.IgnoreStartup = []string{"extra_float_digits"}
		c.Databases = map[string]Database{"alias": {Host: c.Fallback.Host, Port: c.Fallback.Port, DBName: "postgres"}}
		c.Fallback = nil
	})
	tests := []struct {
		name, dsn, code string
	}{
		{"good", dsn(p.host, p.port, "alias"), ""},
		{"ignored parameter", dsn(p.host, p.port, "alias") + " extra_float_digits=2", ""},
		{"tracked option", dsn(p.host, p.port, "alias") + ` options='-c TimeZone=Asia/Tokyo -c datestyle=German'`, ""},
		{"no database", dsn(p.host, p.port, "other"), "3D000"},
		{"wrong password", strings.Replace(dsn(p.host, p.port, "alias"), "s3cret", "secret", 1), "28P01"},
		{"unknown user", strings.Replace(dsn(p.host, p.port, "alias"), "user=alice", "user=bob", 1), "28P01"},
		{"bad parameter", dsn(p.host, p.port, "alias") + " timezone=Nowhere/Never", "22023"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ctx := testContext(t)
			conn, err := pgx.Connect(ctx, tt.dsn)
			if err == nil {
				defer conn.Close(ctx)
				var zone string
				err = conn.QueryRow(ctx, "select current_setting('TimeZone')").Scan(&zone)
				if strings.Contains(tt.dsn, "Tokyo") && zone != "Asia/Tokyo" {
					t.Errorf("time zone is %q", zone)
				}
			}
			code := ""
			if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
				code = pgErr.Code
			}
			if code != tt.code || err != nil && tt.code == "" {
				t.Errorf("got %v, want code %q", err, tt.code)
			}
		})
	}
}

// TestProtocol32 logs in a client of protocol 3.2, which has a longer key.
func TestProtocol32(t *testing.T) {
	p := startPooler(t, nil)
	config, err := pgx.ParseConfig(dsn(p.host, p.port, "postgres") + " min_protocol_version=3.2 max_protocol_version=3.2")
	if err != nil {
		t.Fatal(err)
	}
	ctx := testContext(t)
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	ended := make(chan error, 1)
	go func() {
		_, err := conn.Exec(ctx, "select pg_sleep(60)")
		ended <- err
	}()
	asleep(t)
	if err := conn.PgConn().CancelRequest(ctx); err != nil {
		t.Fatal(err)
	}
	err = <-ended
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); !ok || pgErr.Code != "57014" {
		t.Fatalf("got %v, want 57014", err)
	}
}

// TestFull: clients above the limit are told so, and let in when there is room.
func TestFull(t *testing.T) {
	p := startPooler(t, func(c *Config) { c.MaxClients = 2 })
	ctx := testContext(t)
	first := p.connect()
	p.connect()
	_, err := pgx.Connect(ctx, dsn(p.host, p.port, "postgres"))
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); !ok || pgErr.Code != "53300" {
		t.Fatalf("got %v, want 53300", err)
	}
	if err := first.Close(ctx); err != nil {
		t.Fatal(err)
	}
	until(t, "the client to be forgotten", func() bool { return p.Snapshot().Clients == 1 })
	p.connect()
	if n := p.Snapshot().Refusals["max_client_conn"]; n != 1 {
		t.Errorf("%d refusals counted, want 1", n)
	}
}

// TestSlowLogin: a client that does not get on with its login is sent away, at
// every point of it.
func TestSlowLogin(t *testing.T) {
	p := startPooler(t, func(c *Config) { c.ClientLoginTimeout = 300 * time.Millisecond })
	for name, send := range map[string][]byte{
		"silent": nil, "half a packet": startupPacket()[:20], "no password": startupPacket(),
		"after SSLRequest": []byte("\x00\x00\x00\x08\x04\xd2\x16\x2f"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := dialTCP(t, p)
			if _, err := conn.Write(send); err != nil {
				t.Fatal(err)
			}
			if got := closes(t, conn); !bytes.Contains(got, []byte("client_login_timeout")) {
				t.Errorf("got %q", got)
			}
		})
	}
}

// TestHealthCheck: the balancer's probe costs no server and is no error.
func TestHealthCheck(t *testing.T) {
	p := startPooler(t, nil)
	for _, goodbye := range [][]byte{nil, terminateMsg} {
		conn := dialTCP(t, p)
		if _, err := conn.Write(startupPacket("user", "pgsteer_check")); err != nil {
			t.Fatal(err)
		}
		typ, _, err := pgwire.ReadFrame(conn, pgwire.MaxAuthLen)
		if err != nil || typ != pgwire.MsgAuthentication {
			t.Fatalf("got %q, %v; want an authentication request", typ, err)
		}
		if _, err := conn.Write(goodbye); err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
	until(t, "the checks to be forgotten", func() bool { return p.Snapshot().Clients == 0 })
	s := p.Snapshot()
	if len(s.Pools) != 0 {
		t.Errorf("pools: %+v, want none", s.Pools)
	}
	for reason, n := range s.Refusals {
		if n != 0 && reason != "auth" && reason != "startup" {
			t.Errorf("%d refusals for %s", n, reason)
		}
	}
}

// TestAddHost: the client's address stands behind the application name.
func TestAddHost(t *testing.T) {
	p := startPooler(t, func(c *Config) { c.AddHost = true })
	ctx := testContext(t)
	for setting, name := range map[string]string{"": "app", " application_name=shop": "shop", " application_name=''": ""} {
		conn, err := pgx.Connect(ctx, dsn(p.host, p.port, "postgres")+setting)
		if err != nil {
			t.Fatal(err)
		}
		local := conn.PgConn().Conn().LocalAddr().String()
		want, got := name+" - "+local, ""
		if err := conn.QueryRow(ctx, "select application_name from pg_stat_activity where pid = pg_backend_pid()").Scan(&got); err != nil || got != want {
			t.Errorf("with%s: %q, %v; want %q", setting, got, err, want)
		}
		conn.Close(ctx)
	}
}
