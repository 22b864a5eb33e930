package health

import (
	"context"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// serve answers one connection with answer once it has read n bytes, and
// returns what it read in all.
func serve(t *testing.T, n int, answer []byte) (netip.AddrPort, <-chan []byte) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	got := make(chan []byte, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		head := make([]byte, n)
		if _, err := io.ReadFull(conn, head); err != nil {
			return
		}
		if answer != nil {
			conn.Write(answer)
			if c, ok := conn.(*net.TCPConn); ok {
				c.CloseWrite()
			}
		}
		rest, _ := io.ReadAll(conn)
		got <- append(head, rest...)
	}()
	return l.Addr().(*net.TCPAddr).AddrPort(), got
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

var probe = Postgres(PostgresOptions{User: "pgsteer_check", Database: "postgres", ApplicationName: "pgsteerd"})

func TestPostgresAnswers(t *testing.T) {
	starting := pgwire.AppendError(nil, "FATAL", "57P03", "the database system is starting up")
	for _, test := range []struct {
		name   string
		answer []byte
		want   string // empty: up
	}{
		{"login without a password", []byte("R\x00\x00\x00\x08\x00\x00\x00\x00"), ""},
		{"SCRAM", []byte("R\x00\x00\x00\x17\x00\x00\x00\x0aSCRAM-SHA-256\x00\x00"), ""},
		{"starting up", starting, "57P03 the database system is starting up"},
		{"error cut short", starting[:20], "connection closed without an answer"},
		{"web server", []byte("HTTP/1.1 400 Bad Request\r\n"), "unexpected answer: byte 0x48"},
		{"closed at once", []byte{}, "connection closed without an answer"},
		{"huge length", []byte("R\x7f\xff\xff\xff"), "unexpected answer: impossible length"},
		{"length below four", []byte("E\x00\x00\x00\x03"), "unexpected answer: impossible length"},
		{"authentication without a method", []byte("R\x00\x00\x00\x04"), "unexpected answer: authentication request without a method"},
		{"error without an end", []byte("E\x00\x00\x00\x06Mx"), "unexpected answer: malformed error"},
	} {
		t.Run(test.name, func(t *testing.T) {
			addr, _ := serve(t, 8, test.answer)
			err := probe(within(t, 10*time.Second), addr)
			if test.want == "" && err != nil || test.want != "" && (err == nil || err.Error() != test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func TestPostgresSendsAStartupAndATerminate(t *testing.T) {
	addr, got := serve(t, 8, []byte("R\x00\x00\x00\x08\x00\x00\x00\x00"))
	if err := probe(within(t, 10*time.Second), addr); err != nil {
		t.Fatal(err)
	}
	sent := string(<-got)
	if !strings.Contains(sent, "user\x00pgsteer_check\x00") || !strings.Contains(sent, "database\x00postgres\x00") {
		t.Errorf("startup %q", sent)
	}
	if !strings.HasSuffix(sent, "X\x00\x00\x00\x04") {
		t.Errorf("no Terminate at the end of %q", sent)
	}
}

// A server that has asked for a password takes a Terminate for an error.
func TestPostgresOnlyClosesWhenAskedForAPassword(t *testing.T) {
	addr, got := serve(t, 8, []byte("R\x00\x00\x00\x17\x00\x00\x00\x0aSCRAM-SHA-256\x00\x00"))
	if err := probe(within(t, 10*time.Second), addr); err != nil {
		t.Fatal(err)
	}
	if sent := string(<-got); !strings.HasSuffix(sent, "pgsteerd\x00\x00") {
		t.Errorf("something follows the startup message: %q", sent)
	}
}

// What a server says after it has let us in is read: closing on unread data
// would reset the connection.
func TestPostgresLeavesWithoutAReset(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	result := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			result <- err
			return
		}
		defer conn.Close()
		buf := make([]byte, 512)
		n, err := conn.Read(buf)
		if err == nil {
			_, err = conn.Write([]byte("R\x00\x00\x00\x08\x00\x00\x00\x00"))
		}
		// Until Terminate, then its last words.
		for err == nil && (n < 5 || string(buf[n-5:n]) != "X\x00\x00\x00\x04") {
			n, err = conn.Read(buf)
		}
		if err == nil {
			_, err = conn.Write([]byte("S\x00\x00\x00\x08a\x00b\x00Z\x00\x00\x00\x05I"))
		}
		if err == nil {
			err = conn.(*net.TCPConn).CloseWrite()
		}
		if err == nil {
			_, err = io.ReadAll(conn) // a reset is an error here
		}
		result <- err
	}()
	if err := probe(within(t, 10*time.Second), l.Addr().(*net.TCPAddr).AddrPort()); err != nil {
		t.Fatal(err)
	}
	if err := <-result; err != nil {
		t.Errorf("the server's end: %v", err)
	}
}

func TestOneLine(t *testing.T) {
	for in, want := range map[string]string{
		"57P03 the database system is starting up": "57P03 the database system is starting up",
		"X \x1b[2Jcleared\nnew line\x00":           "X  [2Jcleared new line",
		"kaputt \xff":                              "kaputt ?",
		strings.Repeat("ä", 150):                   strings.Repeat("ä", 100) + "…",
		"a" + strings.Repeat("ä", 150):             "a" + strings.Repeat("ä", 99) + "…",
		" ":                                        "",
	} {
		if got := oneLine(in); got != want {
			t.Errorf("oneLine(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestFrozenServerIsNotUp(t *testing.T) {
	addr, _ := serve(t, 8, nil) // reads, never answers
	if err := TCP()(within(t, 10*time.Second), addr); err != nil {
		t.Errorf("TCP: %v", err)
	}
	addr, _ = serve(t, 8, nil)
	if err := probe(within(t, 50*time.Millisecond), addr); err != errNoAnswer {
		t.Errorf("PostgreSQL: %v", err)
	}
}

func TestNobodyListening(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().(*net.TCPAddr).AddrPort()
	l.Close()
	for name, check := range map[string]Check{"TCP": TCP(), "PostgreSQL": probe} {
		if err := check(within(t, 10*time.Second), addr); err == nil || err.Error() != "connection refused" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzReadReply(f *testing.F) {
	f.Add([]byte("R\x00\x00\x00\x08\x00\x00\x00\x00"))
	f.Add(pgwire.AppendError(nil, "FATAL", "57P03", "the database system is starting up"))
	f.Add([]byte("E\x00\x00\x00\x03"))
	f.Fuzz(func(t *testing.T, b []byte) {
		letIn, err := readReply(strings.NewReader(string(b)))
		if err == nil && (len(b) < 9 || b[0] != 'R') {
			t.Errorf("%q is taken for a request to authenticate", b)
		}
		if err != nil && (letIn || len(err.Error()) > maxText+len("…")) {
			t.Errorf("%q: let in %v, %q", b, letIn, err)
		}
	})
}
