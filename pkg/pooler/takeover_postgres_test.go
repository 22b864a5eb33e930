package pooler

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// dynasty is a row of poolers, each of which takes over from the one before.
type dynasty struct {
	t      *testing.T
	change func(*Config)
	now    *testPooler
}

func newDynasty(t *testing.T, change func(*Config)) *dynasty {
	path := filepath.Join(t.TempDir(), "control")
	d := &dynasty{t: t, change: func(c *Config) {
		c.ControlSocket, c.TakeOver = path, true
		c.MaxClients = 500
		if change != nil {
			change(c)
		}
	}}
	d.now = startPooler(t, d.change)
	return d
}

// next has a new pooler take over, and returns the old one.
func (d *dynasty) next() (old *testPooler) {
	d.t.Helper()
	old = d.now
	listen := old.Addrs()[0].String()
	d.now = startPooler(d.t, func(c *Config) {
		d.change(c)
		c.Listen = old.conf().Listen
	})
	if got := d.now.Addrs()[0].String(); got != listen {
		d.t.Fatalf("the new pooler listens at %s, the old one at %s", got, listen)
	}
	return old
}

// ends waits until a pooler has ended by itself.
func (p *testPooler) ends() {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(20 * time.Second):
		s := p.Snapshot()
		p.t.Fatalf("the old pooler has not ended: %+v", s)
	}
}

// TestTakeover: idle clients go on with their prepared statements, one in the
// middle of a transaction goes along with its server.
func TestTakeover(t *testing.T) {
	d := newDynasty(t, nil)
	ctx := testContext(t)
	var idle []*pgx.Conn
	for i := range 5 {
		conn := d.now.connect()
		if _, err := conn.Prepare(ctx, "stmt", fmt.Sprintf("select %d + $1::int", 10*i)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Exec(ctx, fmt.Sprintf("set application_name = 'client %d'", i)); err != nil {
			t.Fatal(err)
		}
		idle = append(idle, conn)
	}
	inside := d.now.connect()
	if _, err := inside.Exec(ctx, "begin; create temp table mine (a int) on commit drop"); err != nil {
		t.Fatal(err)
	}
	for round := range 3 {
		old := d.next()
		old.ends()
		if _, err := inside.Exec(ctx, "insert into mine values ($1)", round); err != nil {
			t.Fatalf("round %d, in the transaction: %v", round, err)
		}
		for i, conn := range idle {
			var n int
			if err := conn.QueryRow(ctx, "stmt", round).Scan(&n); err != nil || n != 10*i+round {
				t.Fatalf("round %d, client %d: %d, %v", round, i, n, err)
			}
			var name string
			if err := conn.QueryRow(ctx, "show application_name").Scan(&name); err != nil || name != fmt.Sprintf("client %d", i) {
				t.Fatalf("round %d, client %d is called %q, %v", round, i, name, err)
			}
		}
		if s := d.now.pool(); s.ServersActive+s.ServersIdle > 5 || round > 0 && s.ServerLogins > 0 {
			t.Errorf("round %d: servers were logged in: %+v", round, s)
		}
	}
	var n int
	if err := inside.QueryRow(ctx, "select count(*) from mine").Scan(&n); err != nil || n != 3 {
		t.Fatalf("%d rows, %v", n, err)
	}
	if _, err := inside.Exec(ctx, "commit"); err != nil {
		t.Fatal(err)
	}
	d.now.quiet()
	d.now.connect()
}

// TestTakeoverOfBusyClients: a query that runs is finished by the old pooler, and
// can be cancelled by way of the new one.
func TestTakeoverOfBusyClients(t *testing.T) {
	d := newDynasty(t, func(c *Config) { c.PoolSize = 1 })
	busy, waiting := dialRaw(t, d.now), dialRaw(t, d.now)
	busy.send(msgQuery("select pg_sleep(60)"))
	asleep(t)
	waiting.send(msgQuery("select 'waited'"))
	until(t, "a client to wait", func() bool { return d.now.pool().ClientsWaiting == 1 })
	old := d.next()
	until(t, "the waiting client to have moved", func() bool { return d.now.pool().ClientsWaiting == 1 })
	if s := d.now.pool(); s.ServersLogin+s.ServersIdle+s.ServersActive > 0 {
		t.Errorf("the pool is larger than its size: %+v", s)
	}
	busy.cancel(d.now)
	if got := busy.until('Z'); !strings.HasPrefix(got, "TE") && !strings.HasPrefix(got, "E") {
		t.Errorf("the busy client got %q", got)
	}
	if got := waiting.until('Z'); got != "TDCZ" {
		t.Errorf("the waiting client got %q", got)
	}
	old.ends()
	busy.send(msgQuery("select 1"))
	if got := busy.until('Z'); got != "TDCZ" {
		t.Errorf("the busy client got %q afterwards", got)
	}

}

// TestTakeoverUnderLoad takes over again and again while pgbench runs, and idle
// clients use their statements in between.
func TestTakeoverUnderLoad(t *testing.T) {
	host, port := postgres(t)
	rounds, clients := 3, 16
	if os.Getenv("PGSTEER_LONG") != "" {
		rounds, clients = 10, 64
	}
	bench := filepath.Join(postgresBin(), "pgbench")
	env := append(os.Environ(), "PGPASSWORD="+testPassword)
	run := func(host string, port int, args ...string) (string, error) {
		cmd := exec.Command(bench, append(args, "-h", host, "-p", itoa(port), "-U", testUser, "postgres")...)
		cmd.Env = env
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := run(host, port, "-i", "-q", "-s", "1"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, mode := range []string{"simple", "extended", "prepared"} {
		for _, pooling := range []PoolMode{PoolTransaction, PoolSession} {
			t.Run(mode+"/"+pooling.String(), func(t *testing.T) {
				d := newDynasty(t, func(c *Config) {
					c.PoolSize, c.PoolMode = clients/2, pooling
					if pooling == PoolSession {
						c.PoolSize = clients + 10
					}
				})
				ctx := testContext(t)
				var idle []*pgx.Conn
				for i := range 5 {
					conn := d.now.connect()
					if _, err := conn.Prepare(ctx, "stmt", fmt.Sprintf("select %d + $1::int", 10*i)); err != nil {
						t.Fatal(err)
					}
					idle = append(idle, conn)
				}
				var wg sync.WaitGroup
				var over atomic.Bool
				var result string
				var rerr error
				host, port := d.now.host, d.now.port
				seconds := rounds + 1
				wg.Go(func() {
					result, rerr = run(host, port, "-n", "-S", "-c", itoa(clients), "-j", "2", "-T", itoa(seconds), "-M", mode)
					over.Store(true)
				})
				taken := 0
				for range rounds {
					until(t, "some transactions", func() bool { return d.now.pool().Queries > 50 || over.Load() })
					if over.Load() {
						break
					}
					old := d.next()
					old.ends()
					taken++
					for i, conn := range idle {
						var n int
						if err := conn.QueryRow(ctx, "stmt", taken).Scan(&n); err != nil || n != 10*i+taken {
							t.Fatalf("round %d, client %d: %d, %v", taken, i, n, err)
						}
					}
				}
				wg.Wait()
				if rerr != nil || strings.Contains(result, "aborted") || strings.Contains(result, "error") {
					t.Errorf("pgbench: %v\n%s", rerr, result)
				}
				if taken < rounds {
					t.Errorf("%d takeovers within the test's time, want %d", taken, rounds)
				}
				t.Logf("%d takeovers\n%s", taken, result)
			})
		}
	}
}

// TestTakeoverFails: whatever becomes of the new process, the old one goes on with
// what it still has.
func TestTakeoverFails(t *testing.T) {
	d := newDynasty(t, nil)
	ctx := testContext(t)
	conn := d.now.connect()
	works := func(what string) {
		t.Helper()
		var n int
		if err := conn.QueryRow(ctx, "select 1").Scan(&n); err != nil {
			t.Fatalf("%s: the client's query: %v", what, err)
		}
		c, err := pgx.Connect(ctx, dsn(d.now.host, d.now.port, "postgres"))
		if err != nil {
			t.Fatalf("%s: a new client: %v", what, err)
		}
		c.Close(ctx)
	}
	path := d.now.conf().ControlSocket
	works("before")

	// One that asks and goes away.
	o, err := askOffer(path, "test")
	if err != nil {
		t.Fatal(err)
	}
	o.closeUnused()
	o.c.close()
	works("after an offer declined")
	until(t, "the offer to be forgotten", func() bool { return !d.now.hasHeir() })

	// One that begins, takes nothing, and dies.
	if o, err = askOffer(path, "test"); err != nil {
		t.Fatal(err)
	}
	if _, err := askOffer(path, "test"); err == nil || !strings.Contains(err.Error(), "another takeover is under way") {
		t.Errorf("a second takeover: %v", err)
	}
	if err := o.c.send(messageGo, nil); err != nil {
		t.Fatal(err)
	}
	for kind := messageKind(0); kind != messageItem; {
		var fds []int
		if kind, _, fds, err = o.c.receive(); err != nil {
			t.Fatal(err)
		}
		closeAll(fds)
	}
	o.closeUnused()
	o.c.close()
	works("after the death of the new process")
	until(t, "the heir to be forgotten", func() bool { return !d.now.hasHeir() })

	// One of another version.
	d.now.testHello(t, carriedHello{Version: carryVersion + 1, Release: "next"}, "it takes over in version 2")
	works("after a version that does not fit")

	// And one that works.
	old := d.next()
	old.ends()
	works("after the takeover")
	if _, err := os.Stat(path); err != nil {
		t.Errorf("control socket: %v", err)
	}
	d.now.stop()
	if _, err := os.Stat(path); err == nil {
		t.Error("the control socket is still there at the end")
	}
}

func (p *testPooler) hasHeir() bool {
	p.succession.mu.Lock()
	defer p.succession.mu.Unlock()
	return p.succession.heir != nil
}

// testHello checks the answer to a hello that is refused.
func (p *testPooler) testHello(t *testing.T, hello carriedHello, want string) {
	t.Helper()
	c := dialControl(t, p.conf().ControlSocket)
	defer c.close()
	if err := c.send(messageHello, hello); err != nil {
		t.Fatal(err)
	}
	kind, body, fds, err := c.receive()
	closeAll(fds)
	var got carriedHello
	if err != nil || kind != messageOffer || decodeCarried(body, &got) != nil || !strings.Contains(got.Refused, want) || len(fds) > 0 {
		t.Errorf("%q, %+v, %v; want a refusal with %q", byte(kind), got, err, want)
	}
}

func dialControl(t *testing.T, path string) *control {
	t.Helper()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	return newControl(conn)
}

// TestTakeoverUnderTLS: sessions under TLS stay in the old pooler, which serves
// them, and ends after them.
func TestTakeoverUnderTLS(t *testing.T) {
	postgres(t)
	overTLS = true
	defer func() { overTLS = false }()
	d := newDynasty(t, nil)
	ctx := testContext(t)
	conn := d.now.connect()
	asks := func() {
		t.Helper()
		var n int
		if err := conn.QueryRow(ctx, "select 42").Scan(&n); err != nil || n != 42 {
			t.Fatalf("%d, %v", n, err)
		}
	}
	asks()
	old := d.next()
	until(t, "the old pooler to know", func() bool {
		stays := 0
		old.ask(func(m *machine) {
			if m.heir != nil {
				stays = m.heir.staying
			}
		})
		return stays == 1
	})
	asks()
	other := d.now.connect()
	if err := other.Ping(ctx); err != nil {
		t.Fatal(err)
	}
	if s := d.now.Snapshot(); s.Clients != 1 {
		t.Errorf("the new pooler has %d clients, want 1", s.Clients)
	}
	asks()
	if err := conn.Close(ctx); err != nil {
		t.Error(err)
	}
	old.ends()
	if err := other.Ping(ctx); err != nil {
		t.Fatal(err)
	}
}
