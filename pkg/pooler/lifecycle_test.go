package pooler

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func itoa(n int) string { return strconv.Itoa(n) }

// TestShutdown: idle and waiting clients go at once, one in a transaction may
// end it.
func TestShutdown(t *testing.T) {
	p := startPooler(t, func(c *Config) { c.PoolSize = 1 })
	idle, busy, waiting := dialRaw(t, p), dialRaw(t, p), dialRaw(t, p)
	busy.send(msgQuery("begin"))
	busy.until('Z')
	waiting.send(msgQuery("select 1"))
	until(t, "a client to wait", func() bool { return p.pool().ClientsWaiting == 1 })
	login := dialTCP(t, p)
	stopped := make(chan struct{})
	go func() {
		p.stop()
		close(stopped)
	}()
	for name, conn := range map[string]net.Conn{"idle": idle.conn, "waiting": waiting.conn, "logging in": login} {
		if got := string(closes(t, conn)); !strings.Contains(got, "57P01") {
			t.Errorf("%s client got %q, want 57P01", name, got)
		}
		conn.Close()
	}
	if conn, err := net.Dial("tcp", net.JoinHostPort(p.host, itoa(p.port))); err == nil {
		conn.Close()
		t.Error("a client was still accepted")
	}
	busy.send(msgQuery("select 'still here'"))
	if got := busy.until('Z'); got != "TDCZ" {
		t.Errorf("busy client got %q", got)
	}
	busy.send(msgQuery("commit"))
	if got := string(closes(t, busy.conn)); !strings.Contains(got, "COMMIT") || !strings.Contains(got, "57P01") {
		t.Errorf("busy client got %q, want its COMMIT and 57P01", got)
	}
	busy.conn.Close()
	<-stopped
	if s := p.Snapshot(); s.Clients != 0 {
		t.Errorf("%d clients left", s.Clients)
	}
}

// TestShutdownIsBounded: a transaction that does not end is ended.
func TestShutdownIsBounded(t *testing.T) {
	p := startPooler(t, func(c *Config) { c.ShutdownTimeout = 300 * time.Millisecond })
	busy := dialRaw(t, p)
	busy.send(msgQuery("begin"))
	busy.until('Z')
	start := time.Now()
	go p.stop()
	if got := string(closes(t, busy.conn)); !strings.Contains(got, "57P01") {
		t.Errorf("got %q, want 57P01", got)
	}
	busy.conn.Close()
	p.stop()
	if took := time.Since(start); took < 300*time.Millisecond || took > 5*time.Second {
		t.Errorf("took %v", took)
	}
}

// TestCloseAtOnce: Close does not wait for anybody.
func TestCloseAtOnce(t *testing.T) {
	p := startPooler(t, nil)
	busy := dialRaw(t, p)
	busy.send(msgQuery("begin"))
	busy.until('Z')
	start := time.Now()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("took %v", took)
	}
	p.stop()
}

// TestNothingLeaks: after a pooler's life there are as many open files as
// before.
func TestNothingLeaks(t *testing.T) {
	host, port := postgres(t)
	count := func() int {
		names, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(names)
	}
	before := count()
	for range 3 {
		p := startPoolerAt(t, host, port, nil)
		for range 20 {
			conn := p.connect()
			if _, err := conn.Exec(testContext(t), "select 1"); err != nil {
				t.Fatal(err)
			}
			conn.Close(testContext(t))
		}
		conn := dialTCP(t, p)
		fmt.Fprint(conn, "nonsense nonsense")
		closes(t, conn)
		conn.Close()
		p.stop()
	}
	until(t, "all files to be closed", func() bool { return count() <= before })
}

// TestServersAge: idle and old servers are replaced.
func TestServersAge(t *testing.T) {
	p := startPooler(t, func(c *Config) { c.ServerIdleTimeout = 300 * time.Millisecond })
	conn := p.connect()
	if _, err := conn.Exec(testContext(t), "select 1"); err != nil {
		t.Fatal(err)
	}
	until(t, "the idle server to be closed", func() bool { return p.pool().ServersIdle == 0 })
	if _, err := conn.Exec(testContext(t), "select 1"); err != nil {
		t.Fatal(err)
	}
	q := startPooler(t, func(c *Config) { c.ServerLifetime = 0 })
	conn = q.connect()
	for range 3 {
		if _, err := conn.Exec(testContext(t), "select 1", pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatal(err)
		}
	}
	if n := q.pool().ServerLogins; n < 3 {
		t.Errorf("%d server logins, want one for each transaction", n)
	}
}

// TestPgbench runs TPC-B in all protocol modes on five servers; the sums must
// agree. Each client has a thread of its own: pgbench prepares its statements
// with blocking calls, so two clients in a thread can wait for each other.
func TestPgbench(t *testing.T) {
	pgbench := filepath.Join(postgresBin(), "pgbench")
	p := startPooler(t, nil)
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.Command(pgbench, append([]string{"-h", p.host, "-p", itoa(p.port), "-U", testUser}, args...)...)
		cmd.Env = append(os.Environ(), "PGPASSWORD="+testPassword)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("pgbench %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	run("-i", "-q", "-s", "2", "postgres")
	conn := p.connect()
	for _, mode := range []string{"simple", "extended", "prepared"} {
		out := run("-n", "-M", mode, "-c", "20", "-j", "20", "-t", "50", "postgres")
		if !strings.Contains(out, "actually processed: 1000/1000") {
			t.Fatalf("%s: %s", mode, out)
		}
	}
	var branches, tellers, accounts, history, n int
	err := conn.QueryRow(testContext(t), `select (select sum(bbalance) from pgbench_branches), (select sum(tbalance) from pgbench_tellers),
		(select sum(abalance) from pgbench_accounts), (select sum(delta) from pgbench_history), (select count(*) from pgbench_history)`).
		Scan(&branches, &tellers, &accounts, &history, &n)
	if err != nil || n != 3000 || branches != tellers || branches != accounts || branches != history {
		t.Fatalf("sums %d, %d, %d, %d over %d rows: %v", branches, tellers, accounts, history, n, err)
	}
}
