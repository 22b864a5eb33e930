package load

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// connectTimeout bounds one connection from its SYN to its end. It is above
// the third retransmission of a SYN (1, 3 and 7 s; RFC 6298 section 2), so that
// a lost one makes a connection slow before it makes it fail.
const connectTimeout = 10 * time.Second

// Connects is a load of short sessions: each worker connects, logs in, sends
// one query, reads the answer, and closes, again and again.
type Connects struct {
	Address        string
	User, Database string
	Password       string
	Workers        int
	Duration       time.Duration
	// Sources are this host's addresses that connections come from in turn;
	// none leaves it to the kernel. A client's port rests for a minute after
	// use, so that one address makes 28,232 connections a minute at the most.
	Sources []netip.Addr
}

// ConnectsResult is what became of a load of short sessions.
type ConnectsResult struct {
	Done   int           `json:"done"`
	Failed int           `json:"failed"`
	Took   time.Duration `json:"took"` // from the first to the last, nanoseconds
	P50    time.Duration `json:"p50"`  // of a session's life, those done
	P99    time.Duration `json:"p99"`
	// Error is that of the first session that failed; empty if none did.
	Error string `json:"error,omitempty"`
}

// Rate returns the sessions done a second.
func (r ConnectsResult) Rate() float64 { return float64(r.Done) / r.Took.Seconds() }

// Run makes sessions for the time that was set, or until ctx ends. Those that
// have begun are let finish.
func (c Connects) Run(ctx context.Context) ConnectsResult {
	login := loginOf(c.User, c.Database, c.Password)
	ctx, cancel := context.WithTimeout(ctx, c.Duration)
	defer cancel()
	begin := time.Now()
	var mu sync.Mutex
	var result ConnectsResult
	var lives []time.Duration
	var wg sync.WaitGroup
	for w := range c.Workers {
		wg.Go(func() {
			var mine []time.Duration
			var failed int
			var first error
			for i := w; ctx.Err() == nil; i += c.Workers {
				start := time.Now()
				if err := c.session(login, i); err != nil {
					if failed++; first == nil {
						first = err
					}
					continue
				}
				mine = append(mine, time.Since(start))
			}
			mu.Lock()
			defer mu.Unlock()
			lives = append(lives, mine...)
			if result.Failed += failed; first != nil && result.Error == "" {
				result.Error = first.Error()
			}
		})
	}
	wg.Wait()
	result.Took, result.Done = time.Since(begin), len(lives)
	if slices.Sort(lives); len(lives) > 0 {
		result.P50, result.P99 = lives[len(lives)/2], lives[len(lives)*99/100]
	}
	return result
}

// loginOf returns a login that may be used again and again. Deriving a SCRAM key
// takes a client longer than all the rest: drivers that connect often keep it,
// and who does not cannot load a balancer.
func loginOf(user, database, password string) pgwire.ServerLogin {
	return pgwire.ServerLogin{
		User: user, Database: database, Secret: pgwire.PlainSecret(password), Cache: new(pgwire.KeyCache),
	}
}

// Session returns an attempt that succeeds when a client at its beginning gets
// as far as the answer to a query: it connects, logs in, asks, and closes.
func Session(dial Dial, address, user, database, password string) func(context.Context) error {
	login := loginOf(user, database, password)
	return func(ctx context.Context) error {
		conn, err := dial(ctx, "tcp", address)
		if err != nil {
			return fmt.Errorf("connecting: %w", err)
		}
		stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
		defer stop()
		return session(ctx, conn, login)
	}
}

// session is one of them; n chooses the source.
func (c Connects) session(login pgwire.ServerLogin, n int) error {
	ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
	defer cancel()
	var dialer net.Dialer
	if len(c.Sources) > 0 {
		dialer.LocalAddr = &net.TCPAddr{IP: c.Sources[n%len(c.Sources)].AsSlice()}
		dialer.Control = bindAddressOnly
	}
	raw, err := dialer.DialContext(ctx, "tcp", c.Address)
	if err != nil {
		return fmt.Errorf("connecting: %w", err)
	}
	if err := raw.SetDeadline(time.Now().Add(connectTimeout)); err != nil {
		return errors.Join(fmt.Errorf("setting a deadline: %w", err), raw.Close())
	}
	return session(ctx, raw, login)
}

// session is one on a connection that is there, and closes it.
func session(ctx context.Context, raw net.Conn, login pgwire.ServerLogin) error {
	defer raw.Close()
	conn := buffered{raw, bufio.NewReader(raw)}
	if _, err := pgwire.ConnectServer(ctx, conn, login); err != nil {
		return fmt.Errorf("logging in: %w", err)
	}
	if err := selectOne(conn); err != nil {
		return fmt.Errorf("querying: %w", err)
	}
	if _, err := conn.Write(pgwire.AppendTerminate(nil)); err != nil {
		return fmt.Errorf("saying good-bye: %w", err)
	}
	return nil
}

// buffered reads what has come in one system call, and not frame by frame: the
// load generator shares its CPUs with what it loads.
type buffered struct {
	net.Conn
	in *bufio.Reader
}

func (b buffered) Read(p []byte) (int, error) { return b.in.Read(p) }

// bindAddressOnly leaves the choice of the port to connect(2), which may take
// one that is in use towards another destination (ip(7), since Linux 4.2).
func bindAddressOnly(_, _ string, c syscall.RawConn) error {
	var serr error
	err := c.Control(func(fd uintptr) {
		serr = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	})
	if err != nil {
		return err
	}
	return serr
}

// selectOne sends a query and reads up to ReadyForQuery.
func selectOne(conn net.Conn) error {
	if _, err := conn.Write(pgwire.AppendQuery(nil, "select 1")); err != nil {
		return err
	}
	var rows int
	in := io.LimitReader(conn, answerLimit)
	for {
		typ, body, err := pgwire.ReadFrame(in, answerLimit)
		if err != nil {
			return err
		}
		switch typ {
		case pgwire.MsgDataRow:
			rows++
		case pgwire.MsgErrorResponse:
			e, err := pgwire.ParseError(body)
			if err != nil {
				return err
			}
			return e
		case pgwire.MsgReadyForQuery:
			if rows != 1 {
				return fmt.Errorf("%d rows came, not one", rows)
			}
			return nil
		}
	}
}
