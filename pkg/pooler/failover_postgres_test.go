package pooler

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// pgNode is a PostgreSQL server that a test may stop, start and promote.
type pgNode struct {
	t    *testing.T
	data string
	port int
	cmd  *exec.Cmd
}

// runPG runs one of PostgreSQL's programs as the user of the tests' servers.
func runPG(t *testing.T, program string, args ...string) {
	t.Helper()
	cmd := exec.Command(filepath.Join(postgresBin(), program), args...)
	cmd.SysProcAttr, cmd.Dir = cluster.cred, cluster.dir
	cmd.Env = append(os.Environ(), "PGPASSWORD="+testPassword)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", program, err, out)
	}
}

// newNode makes a server, as a standby of another one if that is given. They
// lie in the directory of the shared cluster, whose user may write there.
func newNode(t *testing.T, of *pgNode) *pgNode {
	t.Helper()
	postgres(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &pgNode{t: t, port: ln.Addr().(*net.TCPAddr).Port}
	ln.Close()
	n.data = filepath.Join(cluster.dir, "node"+strconv.Itoa(n.port))
	if of != nil {
		runPG(t, "pg_basebackup", "-h", "127.0.0.1", "-p", strconv.Itoa(of.port), "-U", testUser, "-D", n.data, "-R", "-X", "stream",
			"-c", "fast", "--no-sync")
	} else {
		password := filepath.Join(cluster.dir, "password")
		if err := os.WriteFile(password, []byte(testPassword), 0o644); err != nil {
			t.Fatal(err)
		}
		runPG(t, "initdb", "-D", n.data, "-U", testUser, "-A", "scram-sha-256", "--pwfile", password, "--no-sync", "-E", "UTF8", "--locale=C")
	}
	t.Cleanup(func() {
		n.stop(syscall.SIGQUIT)
		os.RemoveAll(n.data)
	})
	n.start()
	return n
}

// start starts the server, and does not wait for it.
func (n *pgNode) start() {
	n.t.Helper()
	n.cmd = exec.Command(filepath.Join(postgresBin(), "postgres"), "-D", n.data, "-p", strconv.Itoa(n.port), "-h", "127.0.0.1",
		"-k", "", "-c", "fsync=off", "-c", "shared_buffers=16MB", "-c", "max_connections=50")
	n.cmd.SysProcAttr, n.cmd.Dir = cluster.cred, cluster.dir
	if err := n.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
}

// stop ends the server: SIGINT as pg_ctl stop -m fast does, SIGQUIT as a crash.
func (n *pgNode) stop(sig syscall.Signal) {
	if n.cmd == nil {
		return
	}
	if err := n.cmd.Process.Signal(sig); err != nil {
		n.t.Error(err)
	}
	n.cmd.Wait() // ended by our signal: its status says nothing
	n.cmd = nil
}

// up waits until the server takes connections.
func (n *pgNode) up() {
	n.t.Helper()
	until(n.t, "PostgreSQL to start", func() bool {
		conn, err := pgx.Connect(context.Background(), dsn("127.0.0.1", n.port, "postgres"))
		if err == nil {
			conn.Close(context.Background())
		}
		return err == nil
	})
}

// database has the pooler's database at a node.
func (n *pgNode) database(c *Config) {
	c.Fallback = nil
	c.Databases = map[string]Database{"postgres": {Host: "127.0.0.1", Port: uint16(n.port)}}
}

// lostServer reports whether an error is that of a client whose server went in
// the middle of its request.
func lostServer(err error) bool {
	e, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (strings.HasPrefix(e.Code, "57P") || e.Code == pgwire.CodeConnectionFailure)
}

// TestRestartIsWaitedFor restarts PostgreSQL while clients come and go. Those
// that were between transactions at the time see no error, in the order of
// things: those whose first request falls into the stop, into the time without a
// server, and into the start.
func TestRestartIsWaitedFor(t *testing.T) {
	n := newNode(t, nil)
	n.up()
	p := startPooler(t, n.database)
	ctx := testContext(t)
	const idle = 24
	clients := make([]*pgx.Conn, idle)
	for i := range clients {
		clients[i] = p.connect()
		if _, err := clients[i].Exec(ctx, "select 1"); err != nil {
			t.Fatal(err)
		}
	}
	// Others are busy all the time; those lose their servers in the middle, and
	// see it, once a restart at the most.
	busyCtx, stopBusy := context.WithCancel(ctx)
	var busy sync.WaitGroup
	var lost, done [4]int
	for i := range lost {
		busy.Go(func() {
			for busyCtx.Err() == nil {
				conn, err := pgx.Connect(ctx, dsn(p.host, p.port, "postgres"))
				if err != nil {
					t.Errorf("connecting: %v", err)
					return
				}
				for busyCtx.Err() == nil {
					if _, err := conn.Exec(ctx, "select count(*) from generate_series(1, 1000)"); err != nil {
						if lost[i]++; !lostServer(err) {
							t.Errorf("a busy client got %v", err)
						}
						break
					}
					done[i]++
				}
				conn.Close(ctx)
			}
		})
	}
	for round := range 3 {
		var waiting sync.WaitGroup
		ask := func(from, to int) {
			for _, c := range clients[from:to] {
				waiting.Go(func() {
					var one int
					if err := c.QueryRow(ctx, "select 1").Scan(&one); err != nil {
						t.Errorf("round %d: a client that was idle got %v", round, err)
					}
				})
			}
		}
		n.stop(syscall.SIGINT)
		ask(0, idle/3)
		until(t, "clients to wait", func() bool { return p.pool().ClientsWaiting >= idle/3 })
		n.start()
		ask(idle/3, 2*idle/3)
		n.up()
		ask(2*idle/3, idle)
		waiting.Wait()
	}
	stopBusy()
	busy.Wait()
	for i := range lost {
		if lost[i] > 3 || done[i] == 0 {
			t.Errorf("busy client %d: lost its server %d times in 3 restarts, %d queries done", i, lost[i], done[i])
		}
	}
}

// TestNameMoves has the address of a name change: the servers are replaced by
// such at the new one, though nobody dials, and without an error.
func TestNameMoves(t *testing.T) {
	_, port := postgres(t)
	front := newFronts(t, port, port)
	var moved atomic.Bool
	p := startPooler(t, func(c *Config) {
		c.Fallback = nil
		c.Databases = map[string]Database{"postgres": {Host: "db.example", Port: front.port}}
		c.DNSMaxTTL, c.MinPoolSize = 10*time.Millisecond, 1
		c.lookup = func(_ context.Context, host string) ([]netip.Addr, error) {
			if host != "db.example" {
				t.Errorf("asked for %q", host)
			}
			at := front.hosts[0]
			if moved.Load() {
				at = front.hosts[1]
			}
			return []netip.Addr{netip.MustParseAddr(at)}, nil
		}
	})
	ctx := testContext(t)
	a := p.connect()
	if _, err := a.Exec(ctx, "begin"); err != nil {
		t.Fatal(err)
	}
	moved.Store(true)
	at := func() (addrs []string) {
		p.ask(func(m *machine) {
			for _, c := range m.slots {
				if c != nil && c.sv != nil {
					addrs = append(addrs, strings.Split(c.sv.addr, ":")[0])
				}
			}
		})
		return addrs
	}
	until(t, "the change to be seen", func() bool { return strings.Contains(p.log.String(), "addresses of host have changed") })
	if got := at(); !slices.Equal(got, front.hosts[:1]) {
		t.Errorf("servers at %v in the transaction", got)
	}
	if _, err := a.Exec(ctx, "commit"); err != nil {
		t.Fatal(err)
	}
	until(t, "a server at the new address", func() bool { return slices.Equal(at(), front.hosts[1:]) })
	if _, err := a.Exec(ctx, "select 1"); err != nil {
		t.Error(err)
	}
}

// TestSilentHost: a host that does not answer at all, as a machine that died,
// costs a moment, not the connect timeout; it is tried last afterwards.
func TestSilentHost(t *testing.T) {
	_, port := postgres(t)
	front := newFronts(t, port, port)
	ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.13", strconv.Itoa(int(front.port))))
	if err != nil {
		t.Skipf("needs further loopback addresses: %v", err)
	}
	defer ln.Close() // accepts in the kernel, and says nothing
	for _, target := range []TargetSession{TargetAny, TargetPrimary} {
		p := startPooler(t, func(c *Config) {
			c.Fallback = nil
			c.Databases = map[string]Database{"postgres": {Host: "127.0.0.13," + front.hosts[0], Port: front.port, Target: target}}
		})
		ctx := testContext(t)
		for i := range 3 {
			begun := time.Now()
			c := p.connect()
			if _, err := c.Exec(ctx, "select 1"); err != nil {
				t.Fatal(err)
			}
			took := time.Since(begun)
			if i == 0 && took < headStart || took > p.conf().ServerConnectTimeout/2 {
				t.Errorf("%v, client %d: %v", target, i, took)
			}
			if i > 0 && took >= headStart {
				t.Errorf("%v: the host was tried again: %v", target, took)
			}
			p.ask(func(m *machine) {
				for _, c := range m.slots {
					if c != nil && c.sv != nil {
						m.closeServer(c.sv, "test")
					}
				}
			})
			c.Close(ctx)
		}
	}
}

// TestAskRole: a server that does not report its role is asked.
func TestAskRole(t *testing.T) {
	_, port := postgres(t)
	ctx := testContext(t)
	for _, option := range []string{"off", "on"} {
		conn, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		session, err := pgwire.ConnectServer(ctx, conn, pgwire.ServerLogin{User: testUser, Database: "postgres",
			Secret: pgwire.PlainSecret(testPassword), Params: []pgwire.Param{{Name: paramReadOnly, Value: option}}})
		if err != nil {
			t.Fatal(err)
		}
		want := role{readOnly: option == "on"}
		if got, err := askRole(ctx, conn); got != want || err != nil {
			t.Errorf("asked: %+v, %v, want %+v", got, err, want)
		}
		if got, ok := roleOf(session.Params); ok && got != want { // from version 14 on
			t.Errorf("reported: %+v, want %+v", got, want)
		}
		// The check asks if the report is not there.
		err = TargetReadWrite.check(ctx, conn, nil)
		if fit := err == nil; fit == want.readOnly {
			t.Errorf("check: %v", err)
		}
	}
}

// TestPrimaryIsLookedFor has a primary die and its standby promoted: clients
// between transactions wait and go on there. Then the old one comes back as
// what it was, and must not get a client.
func TestPrimaryIsLookedFor(t *testing.T) {
	one := newNode(t, nil)
	one.up()
	two := newNode(t, one)
	two.up()
	// Two hosts have one port in PgBouncer's configuration, so the nodes are
	// reached by addresses of their own.
	front := newFronts(t, one.port, two.port)
	p := startPooler(t, func(c *Config) {
		c.Fallback = nil
		c.Databases = map[string]Database{
			"postgres": {Host: strings.Join(front.hosts, ","), Port: front.port, Target: TargetReadWrite},
			"replica":  {Host: strings.Join(front.hosts, ","), Port: front.port, DBName: "postgres", Target: TargetStandby},
			"either":   {Host: strings.Join(front.hosts, ","), Port: front.port, DBName: "postgres", Target: TargetPreferStandby},
		}
	})
	ctx := testContext(t)
	node := func(c *pgx.Conn) (port int) {
		t.Helper()
		if err := c.QueryRow(ctx, "select current_setting('port')::int").Scan(&port); err != nil {
			t.Fatal(err)
		}
		return port
	}
	open := func(db string) *pgx.Conn {
		t.Helper()
		c, err := pgx.Connect(ctx, dsn(p.host, p.port, db))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close(context.Background()) })
		return c
	}
	writer, reader, either := open("postgres"), open("replica"), open("either")
	if got := [3]int{node(writer), node(reader), node(either)}; got != [3]int{one.port, two.port, two.port} {
		t.Fatalf("at %v, want the primary %d and the standby %d", got, one.port, two.port)
	}
	if _, err := writer.Exec(ctx, "create table t (n int)"); err != nil {
		t.Fatal(err)
	}
	until(t, "the standby to have the table", func() bool {
		_, err := reader.Exec(ctx, "select from t")
		return err == nil
	})
	one.stop(syscall.SIGQUIT)
	// What is sent before the loss is known is lost, see forward.
	until(t, "the pooler to know", func() bool { return p.pool().ServersIdle == 0 })
	wrote := make(chan error, 1)
	go func() {
		_, err := writer.Exec(ctx, "insert into t values (1)")
		wrote <- err
	}()
	until(t, "the writer to wait", func() bool { return p.pool().ClientsWaiting == 1 })
	runPG(t, "pg_ctl", "promote", "-D", two.data, "-w")
	if err := <-wrote; err != nil {
		t.Fatalf("the writer got %v", err)
	}
	if got := node(writer); got != two.port {
		t.Errorf("the writer is at %d, want the new primary %d", got, two.port)
	}
	// Nobody is a standby now; whoever prefers one takes what there is.
	if got := node(either); got != two.port {
		t.Errorf("either is at %d", got)
	}
	one.start() // as a primary of its own, as happens to people
	one.up()
	for range 10 {
		if got := node(writer); got != two.port {
			t.Fatalf("the writer is at %d, where the old primary is back", got)
		}
	}
	// The standby has told its session there that it is none any more.
	if _, err := reader.Exec(ctx, "select 1"); err != nil { // it is told with the answer
		t.Fatal(err)
	}
	until(t, "the server to be given up", func() bool {
		for _, s := range p.Snapshot().Pools {
			if s.Database == "replica" {
				return s.ServersIdle == 0
			}
		}
		return false
	})
}

// fronts are addresses of the loopback network that lead to ports, as the hosts
// of a list have one port in common.
type fronts struct {
	hosts []string
	port  uint16
}

func newFronts(t *testing.T, ports ...int) fronts {
	t.Helper()
	var f fronts
	for i, to := range ports {
		host := fmt.Sprintf("127.0.0.%d", 11+i)
		ln, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(int(f.port))))
		if err != nil {
			t.Skipf("needs further loopback addresses: %v", err)
		}
		t.Cleanup(func() { ln.Close() })
		f.hosts, f.port = append(f.hosts, host), uint16(ln.Addr().(*net.TCPAddr).Port)
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				go forward(c, to)
			}
		}()
	}
	return f
}

// forward joins a connection with a port, whose refusal closes it.
func forward(c net.Conn, port int) {
	defer c.Close()
	s, err := net.DialTimeout("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), 5*time.Second)
	if err != nil {
		return
	}
	defer s.Close()
	done := make(chan struct{}, 2)
	pipe := func(dst, src net.Conn) {
		buf := make([]byte, 16<<10)
		for {
			n, err := src.Read(buf)
			if n > 0 {
				if _, werr := dst.Write(buf[:n]); werr != nil {
					break
				}
			}
			if err != nil {
				break
			}
		}
		done <- struct{}{}
	}
	go pipe(s, c)
	go pipe(c, s)
	<-done
}
