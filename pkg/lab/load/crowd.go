package load

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// crowdWorkers is how many connections of a crowd are opened, queried or closed
// at a time: a server's queue of connections to accept must not overflow.
const crowdWorkers = 32

// Crowd is a large number of sessions that stay open and idle. A session is a
// socket and no more, so that one program can hold tens of thousands.
type Crowd struct {
	Dial           Dial
	Address        string
	User, Database string
	Password       string

	conns []net.Conn
}

// Gather opens n sessions more. After an error those that were opened are held
// all the same.
func (c *Crowd) Gather(ctx context.Context, n int) error {
	login := pgwire.ServerLogin{
		User: c.User, Database: c.Database, Secret: pgwire.PlainSecret(c.Password),
		Cache: new(pgwire.KeyCache),
	}
	conns := make([]net.Conn, n)
	err := inParallel(n, func(i int) (err error) {
		conns[i], err = c.open(ctx, login)
		return err
	})
	for _, conn := range conns {
		if conn != nil {
			c.conns = append(c.conns, conn)
		}
	}
	if err != nil {
		return fmt.Errorf("gathering %d sessions: %w", n, err)
	}
	return nil
}

func (c *Crowd) open(ctx context.Context, login pgwire.ServerLogin) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	conn, err := c.Dial(ctx, "tcp", c.Address)
	if err != nil {
		return nil, fmt.Errorf("connecting: %w", err)
	}
	if err := conn.SetDeadline(time.Now().Add(connectTimeout)); err != nil {
		return nil, errors.Join(fmt.Errorf("setting a deadline: %w", err), conn.Close())
	}
	// What it reads ahead is never left in the buffer: the server is silent
	// after ReadyForQuery.
	if _, err := pgwire.ConnectServer(ctx, buffered{conn, bufio.NewReaderSize(conn, 512)}, login); err != nil {
		return nil, errors.Join(fmt.Errorf("logging in: %w", err), conn.Close())
	}
	return conn, nil
}

// Len returns the number of sessions held.
func (c *Crowd) Len() int { return len(c.conns) }

// Ask sends a query on each session and returns an error for those that do not
// answer.
func (c *Crowd) Ask() error {
	return inParallel(len(c.conns), func(i int) error {
		conn := c.conns[i]
		if err := conn.SetDeadline(time.Now().Add(connectTimeout)); err != nil {
			return fmt.Errorf("setting a deadline: %w", err)
		}
		if err := selectOne(buffered{conn, bufio.NewReaderSize(conn, 512)}); err != nil {
			return fmt.Errorf("querying: %w", err)
		}
		return nil
	})
}

// Close ends all sessions as clients do.
func (c *Crowd) Close() {
	_ = inParallel(len(c.conns), func(i int) error {
		// It may be broken: whoever wants to know asks before.
		_ = c.conns[i].SetDeadline(time.Now().Add(checkTimeout))
		_, _ = c.conns[i].Write(pgwire.AppendTerminate(nil))
		return c.conns[i].Close()
	})
	c.conns = nil
}

// inParallel calls fn for 0 to n-1, some at a time, and returns the errors, of
// which there can be many, as one: the first, and their number.
func inParallel(n int, fn func(int) error) error {
	var mu sync.Mutex
	var first error
	next, failed := 0, 0
	take := func(err error) (int, bool) {
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			if failed++; first == nil {
				first = err
			}
		}
		next++
		return next - 1, next <= n
	}
	var wg sync.WaitGroup
	for range min(crowdWorkers, n) {
		wg.Go(func() {
			for i, ok := take(nil); ok; {
				i, ok = take(fn(i))
			}
		})
	}
	wg.Wait()
	if failed > 0 {
		return fmt.Errorf("%d of %d failed, the first: %w", failed, n, first)
	}
	return nil
}
