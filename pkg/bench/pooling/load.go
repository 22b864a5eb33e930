package pooling

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// load is what the clients do.
type load struct {
	mode      mode
	clients   int
	query     string
	duration  time.Duration
	connect   bool // a connection for each transaction
	latencies bool // each transaction's is wanted
}

// mode is how a query is sent.
type mode uint8

const (
	simple mode = iota
	extended
	prepared
)

// run is what came of it.
type run struct {
	transactions int
	took         time.Duration
	cpu          time.Duration // of the pooler
	rss          int64         // bytes
	latencies    []float64     // microseconds
}

// settleTime is between the last login and the first transaction that counts.
const settleTime = 500 * time.Millisecond

// run loads a pooler. What the clients' logins cost is not counted, unless it is
// asked for.
func (s *stage) run(ctx context.Context, p *process, l load) (r run, err error) {
	c := &crowd{}
	if !l.connect {
		if c, err = s.hold(ctx, p, l.clients); err != nil {
			return r, err
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var counting gate
	var workers sync.WaitGroup
	results := make([]result, l.clients)
	for i := range l.clients {
		workers.Go(func() {
			var err error
			if l.connect {
				err = s.comeAndGo(ctx, p, l, &counting, &results[i])
			} else {
				err = talk(ctx, c.conns[i], l, &counting, &results[i])
			}
			if err != nil && ctx.Err() == nil {
				cancel(err)
			}
		})
	}
	before, took, err := s.count(ctx, p, l.duration, &counting)
	after, err2 := p.cpu()
	cancel(errOver)
	for _, conn := range c.conns {
		_ = conn.SetDeadline(time.Unix(1, 0)) // who waits for an answer waits no more
	}
	workers.Wait()
	if cause := context.Cause(ctx); !errors.Is(cause, errOver) {
		err = cause
	}
	if err = errors.Join(err, err2, c.drop()); err != nil {
		return r, err
	}
	r.cpu, r.took = after-before, took
	for _, one := range results {
		r.transactions += one.transactions
		r.latencies = append(r.latencies, one.latencies...)
	}
	if r.transactions == 0 {
		return r, errors.New("no transactions")
	}
	return r, nil
}

// errOver ends a run in order.
var errOver = errors.New("the time is over")

// gate says whether transactions count, and how many have.
type gate struct {
	open    atomic.Bool
	counted atomic.Int64
}

// patience bounds the wait for the first transaction.
const patience = time.Minute

// count lets transactions count for some time, and until there is one.
func (s *stage) count(ctx context.Context, p *process, d time.Duration, counting *gate) (cpu, took time.Duration, err error) {
	wait := func(d time.Duration) {
		select {
		case <-ctx.Done():
		case <-time.After(d):
		}
	}
	wait(settleTime)
	if cpu, err = p.cpu(); err != nil {
		return 0, 0, err
	}
	began := time.Now()
	counting.open.Store(true)
	wait(d)
	for counting.counted.Load() == 0 && ctx.Err() == nil && time.Since(began) < patience {
		wait(10 * time.Millisecond)
	}
	counting.open.Store(false)
	return cpu, time.Since(began), nil
}

// result is one client's.
type result struct {
	transactions int
	latencies    []float64
}

func (r *result) add(l load, counting *gate, began time.Time) {
	if !counting.open.Load() {
		return
	}
	r.transactions++
	counting.counted.Add(1)
	if l.latencies {
		r.latencies = append(r.latencies, float64(time.Since(began).Microseconds()))
	}
}

// talk sends query after query.
func talk(ctx context.Context, conn net.Conn, l load, counting *gate, r *result) error {
	first, each := l.messages()
	answers := bufio.NewReaderSize(conn, 32<<10)
	if first != nil {
		if err := ask(conn, answers, first); err != nil {
			return err
		}
	}
	for ctx.Err() == nil {
		began := time.Now()
		if err := ask(conn, answers, each); err != nil {
			return err
		}
		r.add(l, counting, began)
	}
	return nil
}

// comeAndGo connects for each query.
func (s *stage) comeAndGo(ctx context.Context, p *process, l load, counting *gate, r *result) error {
	var keys pgwire.KeyCache
	_, each := l.messages()
	for ctx.Err() == nil {
		began := time.Now()
		conn, err := login(ctx, p, &keys)
		if err != nil {
			return err
		}
		if err := ask(conn, bufio.NewReader(conn), each); err != nil {
			return errors.Join(err, conn.Close())
		}
		_, err = conn.Write(pgwire.AppendTerminate(nil))
		if err := errors.Join(err, conn.Close()); err != nil {
			return err
		}
		r.add(l, counting, began)
	}
	return nil
}

// messages are what is sent once, and with each transaction.
func (l load) messages() (first, each []byte) {
	bind := func(name string) []byte {
		body := append([]byte("\x00"+name+"\x00"), 0, 0, 0, 0, 0, 0) // no formats, no parameters
		b := append(pgwire.AppendHeader(nil, pgwire.MsgBind, len(body)), body...)
		b = pgwire.AppendDescribe(b, 'P', "")
		b = append(pgwire.AppendHeader(b, pgwire.MsgExecute, 5), 0, 0, 0, 0, 0) // the unnamed portal, all rows
		return pgwire.AppendSync(b)
	}
	tail := append([]byte(l.query), 0, 0, 0) // no types of parameters
	switch l.mode {
	case extended:
		return nil, append(pgwire.AppendParse(nil, "", tail), bind("")...)
	case prepared:
		return pgwire.AppendSync(pgwire.AppendParse(nil, "s", tail)), bind("s")
	}
	return nil, pgwire.AppendQuery(nil, l.query)
}

// ask sends messages and reads their answers away.
func ask(conn net.Conn, answers *bufio.Reader, messages []byte) error {
	if _, err := conn.Write(messages); err != nil {
		return err
	}
	for {
		head, err := answers.Peek(pgwire.HeaderLen)
		if err != nil {
			return err
		}
		typ := head[0]
		length := int(head[1])<<24 | int(head[2])<<16 | int(head[3])<<8 | int(head[4])
		if typ == pgwire.MsgErrorResponse {
			text, err := answers.Peek(min(length+1, 300))
			return fmt.Errorf("a query was refused: %q, %w", text, err)
		}
		if _, err := answers.Discard(length + 1); err != nil {
			return err
		}
		if typ == pgwire.MsgReadyForQuery {
			return nil
		}
	}
}

// crowd is clients that are connected.
type crowd struct {
	mu    sync.Mutex
	conns []net.Conn
}

// logins is how many of the crowd log in at a time.
const logins = 16

// hold connects so many clients, each of which sends one query.
func (s *stage) hold(ctx context.Context, p *process, n int) (*crowd, error) {
	c := &crowd{}
	work := make(chan struct{}, n)
	for range n {
		work <- struct{}{}
	}
	close(work)
	var wg sync.WaitGroup
	errs := make(chan error, logins)
	for range min(n, logins) {
		wg.Go(func() {
			var keys pgwire.KeyCache
			for range work {
				if err := c.add(ctx, p, &keys); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	if err := <-errs; err != nil {
		return nil, errors.Join(fmt.Errorf("connecting clients: %w", err), c.drop())
	}
	return c, nil
}

func (c *crowd) add(ctx context.Context, p *process, keys *pgwire.KeyCache) error {
	conn, err := login(ctx, p, keys)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.conns = append(c.conns, conn)
	c.mu.Unlock()
	return ask(conn, bufio.NewReader(conn), pgwire.AppendQuery(nil, "SELECT 1"))
}

func login(ctx context.Context, p *process, keys *pgwire.KeyCache) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(p.port)))
	if err != nil {
		return nil, err
	}
	_, err = pgwire.ConnectServer(ctx, conn, pgwire.ServerLogin{User: benchUser, Database: "app", Secret: pgwire.PlainSecret(benchPassword), Cache: keys})
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// part takes leave of the pooler in order.
func (c *crowd) part() error {
	var errs []error
	for _, conn := range c.conns {
		_, err := conn.Write(pgwire.AppendTerminate(nil))
		errs = append(errs, err)
	}
	return errors.Join(append(errs, c.drop())...)
}

// drop closes the connections, in the middle of a transaction as it may be: the
// pooler cancels it.
func (c *crowd) drop() error {
	var errs []error
	for _, conn := range c.conns {
		errs = append(errs, conn.Close())
	}
	return errors.Join(errs...)
}
