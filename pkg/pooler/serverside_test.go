package pooler

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// scriptedServer is a server that does what the test says with each connection.
func scriptedServer(t *testing.T, serve func(conn net.Conn)) (host string, port int) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				serve(conn)
			}()
		}
	}()
	addr := ln.Addr().(*net.TCPAddr)
	return addr.IP.String(), addr.Port
}

// letIn logs the pooler in without a password.
func letIn(conn net.Conn) bool {
	s, err := pgwire.AcceptStartup(conn, 0)
	if err != nil || s.Kind != pgwire.KindStartup {
		return false
	}
	out := pgwire.AppendAuthenticationOk(nil)
	for _, p := range newBackend().params() {
		out = pgwire.AppendParameterStatus(out, p.Name, p.Value)
	}
	out = pgwire.AppendBackendKeyData(out, pgwire.CancelKey{PID: 7, Secret: "abcd"})
	_, err = conn.Write(pgwire.AppendReadyForQuery(out, pgwire.TxIdle))
	return err == nil
}

// codeOf returns the SQLSTATE of an error that the pooler sent.
func codeOf(err error) string {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pgErr.Code
	}
	return ""
}

// TestServerRefuses: the client is told the server's own reason, also while
// logins are not tried again.
func TestServerRefuses(t *testing.T) {
	tries := make(chan struct{}, 10)
	host, port := scriptedServer(t, func(conn net.Conn) {
		if _, err := pgwire.AcceptStartup(conn, 0); err == nil {
			tries <- struct{}{}
			conn.Write(pgwire.AppendError(nil, "FATAL", "28000", "role \"alice\" may not come in"))
		}
	})
	p := startPoolerAt(t, host, port, nil)
	for i := range 2 {
		_, err := pgx.Connect(testContext(t), dsn(p.host, p.port, "postgres"))
		if codeOf(err) != "28000" || !strings.Contains(err.Error(), "may not come in") {
			t.Fatalf("login %d: got %v, want the server's 28000", i, err)
		}
	}
	if len(tries) != 1 {
		t.Errorf("%d tries, want 1: the second client is told what is known", len(tries))
	}
}

// TestServerAway: clients wait for a server that cannot be reached, are served
// when it is back, and told why if it does not come in time.
func TestServerAway(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := ln.Addr().(*net.TCPAddr).Port
	ln.Close()
	p := startPoolerAt(t, "127.0.0.1", port, func(c *Config) { c.QueryWaitTimeout = 4 * time.Second })
	_, err = pgx.Connect(testContext(t), dsn(p.host, p.port, "postgres"))
	if codeOf(err) != "08006" || !strings.Contains(err.Error(), "connection refused") {
		t.Fatalf("got %v, want 08006 and the reason", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	came := make(chan error, 1)
	go func() {
		conn, err := pgx.Connect(ctx, dsn(p.host, p.port, "postgres"))
		if err == nil {
			conn.Close(ctx)
		}
		came <- err
	}()
	until(t, "a client to wait", func() bool { return p.pool().ClientsLogin == 1 })
	if ln, err = net.Listen("tcp", net.JoinHostPort("127.0.0.1", itoa(port))); err != nil {
		t.Skipf("the port was taken meanwhile: %v", err)
	}
	defer ln.Close()
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go letIn(conn)
		}
	}()
	if err := <-came; err != nil {
		t.Fatalf("the waiting client: %v", err)
	}
}

// TestServerNonsense: whatever a server sends, its client gets a FATAL, and the
// pooler goes on.
func TestServerNonsense(t *testing.T) {
	tests := map[string][]byte{
		"unknown type":          {'y', 0, 0, 0, 4},
		"length 3":              {'D', 0, 0, 0, 3},
		"length 2^31":           {'D', 0x80, 0, 0, 0},
		"ready twice":           append(pgwire.AppendReadyForQuery(nil, 'T'), pgwire.AppendReadyForQuery(nil, 'T')...),
		"status x":              pgwire.AppendReadyForQuery(nil, 'x'),
		"long ready":            {'Z', 0, 0, 0, 6, 'I', 'I'},
		"parse complete":        pgwire.AppendParseComplete(nil),
		"CopyBoth":              {'W', 0, 0, 0, 7, 0, 0, 0},
		"malformed parameter":   {'S', 0, 0, 0, 6, 'a', 0},
		"CopyIn twice":          {'G', 0, 0, 0, 7, 0, 0, 0, 'G', 0, 0, 0, 7, 0, 0, 0},
		"close":                 nil,
		"close within message":  {'D', 0, 0, 1, 0, 'x'},
		"close within header":   {'D', 0, 0},
		"error without code":    {'E', 0, 0, 0, 5, 0},
		"error without its end": {'E', 0, 0, 0, 8, 'C', '4', '2', '0'},
	}
	for name, answer := range tests {
		t.Run(name, func(t *testing.T) {
			host, port := scriptedServer(t, func(conn net.Conn) {
				if !letIn(conn) {
					return
				}
				if _, _, err := pgwire.ReadFrame(conn, 1000); err == nil {
					conn.Write(answer)
				}
			})
			p := startPoolerAt(t, host, port, nil)
			raw := dialRaw(t, p)
			raw.send(msgQuery("select 1"))
			got := string(closes(t, raw.conn))
			raw.conn.Close()
			switch name {
			case "close within message":
				if strings.Contains(got, "FATAL") {
					t.Errorf("an error within a message: %q", got)
				}
			case "error without code", "error without its end":
				if got != string(answer) {
					t.Errorf("got %q, want the server's error", got)
				}
			default:
				if !strings.Contains(got, "FATAL") {
					t.Errorf("got %q, want a FATAL", got)
				}
			}
			until(t, "server and client to be forgotten", func() bool {
				s := p.Snapshot()
				return s.Clients == 0 && s.Pools[0].ServersActive+s.Pools[0].ServersIdle+s.Pools[0].ServersSettling == 0
			})
		})
	}
}

// TestIdleServerSpeaks: what a server says while it lies idle reaches nobody,
// but its parameters are noted, and its end.
func TestIdleServerSpeaks(t *testing.T) {
	say := make(chan []byte)
	host, port := scriptedServer(t, func(conn net.Conn) {
		if !letIn(conn) {
			return
		}
		for b := range say {
			if b == nil {
				return
			}
			conn.Write(b)
		}
	})
	p := startPoolerAt(t, host, port, nil)
	raw := dialRaw(t, p)
	until(t, "the server to be idle", func() bool { return p.pool().ServersIdle == 1 })
	notice := (&pgwire.Error{Severity: "NOTICE", Code: "00000", Message: "psst"}).AppendNotice(nil)
	say <- append(append(notice, notification()...), pgwire.AppendParameterStatus(nil, "TimeZone", "Europe/Berlin")...)
	until(t, "the notification to be dropped", func() bool { return p.pool().Notifications == 1 })
	say <- pgwire.AppendError(nil, "FATAL", "57P01", "going down")
	say <- nil
	until(t, "the server to be forgotten", func() bool { return p.pool().ServersIdle == 0 })
	raw.send(terminateMsg)
	if got := closes(t, raw.conn); len(got) != 0 {
		t.Errorf("the client got %q", got)
	}
}
