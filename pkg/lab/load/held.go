package load

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// queryEvery is how often a busy held connection sends a query.
const queryEvery = 20 * time.Millisecond

// checkTimeout bounds the query that tells whether a connection has survived.
const checkTimeout = 5 * time.Second

// Held is a number of connections that stay open: half of them idle, half
// with a query every 20 ms.
type Held struct {
	conns []*pgx.Conn
	// failed[i] is why connection i broke while it was busy.
	failed []error
}

// Hold opens connections, several at a time.
func Hold(ctx context.Context, n int, connect func(context.Context) (*pgx.Conn, error)) (*Held, error) {
	h := &Held{conns: make([]*pgx.Conn, n), failed: make([]error, n)}
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { h.conns[i], errs[i] = connect(ctx) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		h.Close()
		return nil, fmt.Errorf("opening connections to hold: %w", err)
	}
	return h, nil
}

// Run sends queries on the busy half until ctx ends.
func (h *Held) Run(ctx context.Context) {
	var wg sync.WaitGroup
	for i := range h.conns {
		if i%2 == 0 {
			wg.Go(func() { h.failed[i] = query(ctx, h.conns[i]) })
		}
	}
	wg.Wait()
}

// query works on one connection until it breaks or ctx ends. The last query is
// let finish: cancelling it would break the connection.
func query(ctx context.Context, conn *pgx.Conn) error {
	tick := time.NewTicker(queryEvery)
	defer tick.Stop()
	for {
		if err := alive(context.WithoutCancel(ctx), conn); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func alive(ctx context.Context, conn *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	var one int
	return conn.QueryRow(ctx, "select 1").Scan(&one)
}

// Lost queries each connection once more and returns how many are broken. Run
// must have returned.
func (h *Held) Lost(ctx context.Context) int {
	var wg sync.WaitGroup
	for i, conn := range h.conns {
		if h.failed[i] == nil {
			wg.Go(func() { h.failed[i] = alive(ctx, conn) })
		}
	}
	wg.Wait()
	lost := 0
	for _, err := range h.failed {
		if err != nil {
			lost++
		}
	}
	return lost
}

// Len returns the number of connections held.
func (h *Held) Len() int { return len(h.conns) }

// Close closes the connections.
func (h *Held) Close() {
	var wg sync.WaitGroup
	for _, conn := range h.conns {
		if conn != nil {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(context.Background(), checkTimeout)
				defer cancel()
				_ = conn.Close(ctx) // it may be broken: that is what was measured
			})
		}
	}
	wg.Wait()
}
