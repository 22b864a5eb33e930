package pooler

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// TestChaos: clients that come and go in every way, on few servers, over real
// sockets. Each row says whose it is.
func TestChaos(t *testing.T) {
	p := startPooler(t, func(c *Config) { c.PoolSize, c.MaxPrepared = 3, 4 })
	var wg sync.WaitGroup
	for worker := range 24 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(worker), 7))
			for life := range 12 {
				c := chaosClient{id: fmt.Sprintf("w%d-%d", worker, life)}
				if err := c.live(p, r); err != nil {
					t.Errorf("client %s: %v", c.id, err)
					return
				}
			}
		})
	}
	wg.Wait()
	p.quiet()
	until(t, "all clients to be forgotten", func() bool { return p.Snapshot().Clients == 0 })
	raw := dialRaw(t, p)
	raw.send(msgQuery("select count(*) from pg_locks where locktype = 'advisory'"))
	if got := raw.until('Z'); got != "TDCZ" {
		t.Errorf("afterwards: %q", got)
	}
}

type chaosClient struct {
	id   string
	conn net.Conn
	key  pgwire.CancelKey
}

func (c *chaosClient) live(p *testPooler, r *rand.Rand) error {
	conn, err := net.Dial("tcp", net.JoinHostPort(p.host, strconv.Itoa(p.port)))
	if err != nil {
		return err
	}
	conn = p.secure(conn)
	c.conn = conn
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(60 * time.Second)); err != nil {
		return err
	}
	s, err := pgwire.ConnectServer(p.t.Context(), conn, pgwire.ServerLogin{
		User: testUser, Database: "postgres", Secret: pgwire.PlainSecret(testPassword),
		Params: []pgwire.Param{{Name: "application_name", Value: c.id[:2]}},
	})
	if err != nil {
		return err
	}
	c.key = s.Key
	row := fmt.Sprintf("select '%s' from generate_series(1, %d)", c.id, 1+r.IntN(2000))
	for step := range 1 + r.IntN(15) {
		name := fmt.Sprintf("s%d", step)
		var send [][]byte
		switch r.IntN(8) {
		case 0, 1:
			send = [][]byte{msgQuery(row)}
		case 2:
			send = [][]byte{msgQuery("begin"), msgQuery(row), msgQuery("select pg_advisory_xact_lock(1)"), msgQuery("commit")}
		case 3, 4:
			send = [][]byte{msgParse(name, row), msgBind("", name), msgExecute(""), syncMsg, msgBind("", name), msgExecute(""), syncMsg}
		case 5:
			send = [][]byte{msgQuery("select 1/0"), msgQuery("select '" + c.id + "' where pg_sleep(0.002) is null"), msgQuery(row)}
		case 6:
			send = [][]byte{msgQuery("begin; select pg_advisory_xact_lock(2)"), msgQuery(row), msgQuery("rollback")}
		case 7:
			send = [][]byte{msgQuery("copy (" + row + ") to stdout")}
		}
		want := 0
		for _, m := range send {
			if m[0] == 'Q' || m[0] == 'S' {
				want++
			}
			if _, err := conn.Write(m); err != nil {
				return err
			}
		}
		cancelled := false
		switch r.IntN(12) {
		case 0: // vanish without reading
			return nil
		case 1: // take leave without reading
			_, err := conn.Write(terminateMsg)
			return err
		case 2: // vanish within a message
			_, err := conn.Write(send[0][:len(send[0])/2])
			return err
		case 3: // cancel, and read on whatever comes
			cancelled = true
			if err := c.cancel(p); err != nil {
				return err
			}
		}
		if err := c.readAnswers(want, cancelled); err != nil {
			return err
		}
	}
	_, err = conn.Write(terminateMsg)
	return err
}

func (c *chaosClient) cancel(p *testPooler) error {
	conn, err := net.Dial("tcp", net.JoinHostPort(p.host, strconv.Itoa(p.port)))
	if err != nil {
		return err
	}
	defer conn.Close()
	conn = p.secure(conn)
	return pgwire.RequestCancel(p.t.Context(), conn, c.key)
}

// readAnswers reads so many ReadyForQuery, and looks whose the rows are.
func (c *chaosClient) readAnswers(want int, cancelled bool) error {
	for want > 0 {
		typ, body, err := pgwire.ReadFrame(c.conn, 1<<20)
		if err != nil {
			return err
		}
		switch typ {
		case 'D':
			if v := string(body[6:]); v != c.id && v != "" {
				return fmt.Errorf("got a row of %q", v)
			}
		case 'd':
			if v := strings.TrimSpace(string(body)); v != c.id {
				return fmt.Errorf("got a line of %q", v)
			}
		case 'E':
			e, err := pgwire.ParseError(body)
			if err != nil {
				return err
			}
			switch e.Code {
			case "22012": // our own division
				continue
			case pgwire.CodeQueryCanceled, "25P02", pgwire.CodeInvalidStatementName:
				// What was cancelled, and what needed it.
				if cancelled {
					continue
				}
			}
			return e
		case 'Z':
			want--
		}
	}
	return nil
}
