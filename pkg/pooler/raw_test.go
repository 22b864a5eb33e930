package pooler

import (
	"bytes"
	"io"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// rawClient is a client that sends whatever the test wants.
type rawClient struct {
	t    *testing.T
	conn net.Conn
	key  pgwire.CancelKey
	seen string // bodies of the errors received
}

// dialTCP connects to the pooler, and says nothing yet.
func dialTCP(t *testing.T, p *testPooler) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", net.JoinHostPort(p.host, strconv.Itoa(p.port)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(60 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// dialRaw connects and logs in.
func dialRaw(t *testing.T, p *testPooler) *rawClient {
	t.Helper()
	conn := p.secure(dialTCP(t, p))
	s, err := pgwire.ConnectServer(t.Context(), conn, pgwire.ServerLogin{
		User: testUser, Database: "postgres", Secret: pgwire.PlainSecret(testPassword),
	})
	if err != nil {
		t.Fatal(err)
	}
	return &rawClient{t: t, conn: conn, key: s.Key}
}

func (c *rawClient) send(msgs ...[]byte) {
	c.t.Helper()
	if _, err := c.conn.Write(bytes.Join(msgs, nil)); err != nil {
		c.t.Fatal(err)
	}
}

// receive returns the next message.
func (c *rawClient) receive() (typ byte, body []byte) {
	c.t.Helper()
	typ, body, err := pgwire.ReadFrame(c.conn, 1<<24)
	if err != nil {
		c.t.Fatalf("receiving: %v", err)
	}
	if typ == 'E' {
		c.seen = string(body)
	}
	return typ, body
}

// until receives up to a message of the type and returns the types received.
func (c *rawClient) until(typ byte) string {
	c.t.Helper()
	var got []byte
	for {
		next, _ := c.receive()
		got = append(got, next)
		if next == typ {
			return string(got)
		}
	}
}

// cancel sends a cancel request for the client.
func (c *rawClient) cancel(p *testPooler) {
	c.t.Helper()
	conn := p.secure(dialTCP(c.t, p))
	if err := pgwire.RequestCancel(c.t.Context(), conn, c.key); err != nil {
		c.t.Fatal(err)
	}
	conn.Close()
}

// closes reads to the end of the stream and returns what came.
func closes(t *testing.T, conn net.Conn) []byte {
	t.Helper()
	b, err := io.ReadAll(conn)
	if err != nil {
		t.Fatalf("the connection was not closed in order: %v (after %q)", err, b)
	}
	return b
}

func startupPacket(params ...string) []byte {
	var ps []pgwire.Param
	user, db := testUser, "postgres"
	for i := 0; i+1 < len(params); i += 2 {
		switch params[i] {
		case "user":
			user = params[i+1]
		case "database":
			db = params[i+1]
		default:
			ps = append(ps, pgwire.Param{Name: params[i], Value: params[i+1]})
		}
	}
	return pgwire.AppendStartup(nil, pgwire.Protocol30, user, db, ps)
}
