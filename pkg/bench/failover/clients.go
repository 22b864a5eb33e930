package failover

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lab"
	"github.com/pgsteer/pgsteer/pkg/lab/load"
)

const (
	// clientRate is how many transactions a second a client of pgbench makes.
	// As fast as it can it would take all of the CPU, and what was measured
	// would be the scheduler.
	clientRate = 10
	// longest is more than any fault takes; pgbench is ended before.
	longest = 10 * time.Minute
	// startLimit bounds the wait for pgbench's connections.
	startLimit = 30 * time.Second
	// lastLimit is how long a client of pgbench may wait for its last answer.
	// Who waits longer has lost its connection and does not know.
	lastLimit = 5 * time.Second
)

// pgbench is clients that work through one of the stacks.
type pgbench struct {
	process
	clients int
}

// startPgbench returns when all clients are connected and at work.
func startPgbench(ctx context.Context, l *lab.Lab, s stack, clients int, dir string) (*pgbench, error) {
	run := load.Pgbench{Script: load.SelectOnly, Protocol: load.Simple, Clients: clients, Duration: longest}
	// One thread: two would write over each other's lines.
	argv := append(run.Args(), "-j", "1", "-R", strconv.Itoa(clients*clientRate), "-P", "1")
	b := &pgbench{process: process{host: lab.Client, argv: argv, log: filepath.Join(dir, "pgbench.log")}, clients: clients}
	at := s.address()
	if err := b.start(ctx, l, "PGHOST="+at.Addr().String(), fmt.Sprintf("PGPORT=%d", at.Port())); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startLimit, fmt.Errorf("not within %v", startLimit))
	defer cancel()
	err := until(ctx, func(context.Context) error {
		if out := b.output(); !bytes.Contains(out, []byte("progress: ")) || lostClients(string(out)) > 0 {
			return fmt.Errorf("not all of its %d clients work:\n%s", clients, b.tail())
		}
		return nil
	})
	if err != nil {
		b.kill()
		return nil, fmt.Errorf("starting pgbench: %w", err)
	}
	return b, nil
}

func (b *pgbench) output() []byte {
	out, err := os.ReadFile(b.log)
	if err != nil {
		return nil // then there are no clients in it, which is waited for
	}
	return out
}

// lost ends pgbench and returns how many of its clients have lost their
// connection.
func (b *pgbench) lost(ctx context.Context) (int, error) {
	defer b.kill()
	// Its alarm clock: the time is over.
	if err := b.ask(syscall.SIGALRM); err != nil {
		return 0, err
	}
	last, cancel := context.WithTimeout(ctx, lastLimit)
	defer cancel()
	hung := 0
	if b.await(last) != nil {
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		var err error
		if hung, err = sockets(b.pid()); err != nil {
			return 0, err
		}
	}
	out := b.output()
	if len(out) == 0 {
		return 0, fmt.Errorf("pgbench has written nothing into %s", b.log)
	}
	return min(b.clients, lostClients(string(out))+hung), nil
}

func (b *pgbench) kill() {
	_ = b.signal(syscall.SIGKILL) // it may have ended
	_ = b.await(context.Background())
}

// errorLine is what pgbench writes about a client that gives up. There may be
// several about one.
var errorLine = regexp.MustCompile(`(?m)^pgbench: error: client ([0-9]+) `)

// lostClients counts the clients that have given up.
func lostClients(out string) int {
	gone := map[string]bool{}
	for _, m := range errorLine.FindAllStringSubmatch(out, -1) {
		gone[m[1]] = true
	}
	return len(gone)
}

// sockets counts those that a process has open.
func sockets(pid int) (int, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, fmt.Errorf("counting the connections of a process: %w", err)
	}
	n := 0
	for _, e := range entries {
		if target, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && strings.HasPrefix(target, "socket:") {
			n++
		}
	}
	return n, nil
}

// loadTables makes pgbench's tables, a hundred thousand accounts.
func loadTables(ctx context.Context, l *lab.Lab) error {
	cmd, err := l.Command(ctx, lab.Client, "pgbench", "-i", "-q", "-s", "1")
	if err != nil {
		return err
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("loading pgbench's tables: %w\n%s", err, bytes.TrimSpace(out))
	}
	return nil
}
