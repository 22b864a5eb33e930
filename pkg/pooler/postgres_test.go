package pooler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// The superuser of the tests' PostgreSQL, and a name for the database.
const (
	testUser     = "alice"
	testPassword = "s3cret' pass"
)

// cluster is a PostgreSQL of the tests' own, started when the first test asks
// for it and stopped at the end.
var cluster struct {
	once sync.Once
	err  error
	dir  string
	port int
	cmd  *exec.Cmd
	cred *syscall.SysProcAttr
	pki  *testPKI
}

func TestMain(m *testing.M) {
	code := m.Run()
	stopCluster()
	os.Exit(code)
}

// postgresBin returns the directory of the newest PostgreSQL server, or "".
func postgresBin() string {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(found) == 0 {
		return ""
	}
	return filepath.Dir(found[len(found)-1])
}

// postgres returns the address of a real PostgreSQL, or skips the test.
func postgres(t *testing.T) (host string, port int) {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a PostgreSQL server, which -short leaves out")
	}
	if postgresBin() == "" {
		t.Skip("needs a PostgreSQL server in /usr/lib/postgresql")
	}
	cluster.once.Do(func() { cluster.err = startCluster() })
	if cluster.err != nil {
		t.Fatal(cluster.err)
	}
	return "127.0.0.1", cluster.port
}

func startCluster() (err error) {
	bin := postgresBin()
	if cluster.dir, err = os.MkdirTemp("", "pooler-pg-"); err != nil {
		return err
	}
	cluster.cred = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if os.Getuid() == 0 { // PostgreSQL refuses to run as root
		u, err := user.Lookup("postgres")
		if err != nil {
			return err
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		if err := os.Chown(cluster.dir, uid, gid); err != nil {
			return err
		}
		cluster.cred.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	if err := os.Chmod(cluster.dir, 0o700); err != nil {
		return err
	}
	pw, err := os.CreateTemp("", "pooler-pw-")
	if err != nil {
		return err
	}
	defer os.Remove(pw.Name())
	if _, err := pw.WriteString(testPassword); err != nil {
		return err
	}
	if err := errors.Join(pw.Chmod(0o644), pw.Close()); err != nil {
		return err
	}
	data := filepath.Join(cluster.dir, "data")
	certs, err := newPKI(cluster.dir)
	if err != nil {
		return err
	}
	cluster.pki = certs
	initdb := exec.Command(filepath.Join(bin, "initdb"), "-D", data, "-U", testUser, "-A", "scram-sha-256",
		"--pwfile", pw.Name(), "--no-sync", "-E", "UTF8", "--locale=C")
	initdb.SysProcAttr, initdb.Dir = cluster.cred, cluster.dir
	if out, err := initdb.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, out)
	}
	// A port that was free a moment ago.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	cluster.port = ln.Addr().(*net.TCPAddr).Port
	ln.Close()
	logFile, err := os.Create(filepath.Join(cluster.dir, "log"))
	if err != nil {
		return err
	}
	defer logFile.Close()
	cluster.cmd = exec.Command(filepath.Join(bin, "postgres"), "-D", data, "-p", strconv.Itoa(cluster.port),
		"-h", "127.0.0.1", "-k", cluster.dir, "-c", "fsync=off", "-c", "max_connections=300", "-c", "shared_buffers=64MB",
		"-c", "ssl=on", "-c", "ssl_cert_file="+certs.server.cert, "-c", "ssl_key_file="+certs.server.key, "-c", "ssl_ca_file="+certs.ca.cert)
	cluster.cmd.SysProcAttr, cluster.cmd.Dir = cluster.cred, cluster.dir
	cluster.cmd.Stdout, cluster.cmd.Stderr = logFile, logFile
	if err := cluster.cmd.Start(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for {
		conn, err := pgx.Connect(ctx, dsn("127.0.0.1", cluster.port, "postgres"))
		if err == nil {
			return conn.Close(ctx)
		}
		if ctx.Err() != nil {
			return fmt.Errorf("waiting for PostgreSQL: %w", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func stopCluster() {
	if cluster.cmd != nil && cluster.cmd.Process != nil {
		if err := cluster.cmd.Process.Signal(syscall.SIGQUIT); err == nil {
			cluster.cmd.Wait() // killed by our signal: its status says nothing
		}
	}
	if cluster.dir != "" {
		os.RemoveAll(cluster.dir)
	}
}

// dsn is a connection string. Pgx reads the rest of its settings from the
// environment, which the tests leave alone.
func dsn(host string, port int, db string) string {
	return fmt.Sprintf("host=%s port=%d user=%s password='%s' dbname=%s sslmode=disable", host, port, testUser,
		strings.ReplaceAll(testPassword, "'", `\'`), db)
}

// testPooler is a running Pooler.
type testPooler struct {
	*Pooler
	t    *testing.T
	log  *testWriter
	host string
	port int
	stop func() // ends Run as a signal would, and waits
}

// startPooler runs a pooler in front of the tests' PostgreSQL.
func startPooler(t *testing.T, change func(*Config)) *testPooler {
	t.Helper()
	host, port := postgres(t)
	return startPoolerAt(t, host, port, change)
}

// startPoolerAt runs a pooler in front of any server.
func startPoolerAt(t *testing.T, host string, port int, change func(*Config)) *testPooler {
	t.Helper()
	c := DefaultConfig()
	c.Listen = []string{"127.0.0.1:0"}
	c.Fallback = &Database{Host: host, Port: uint16(port)}
	c.Users = map[string]pgwire.Secret{testUser: pgwire.PlainSecret(testPassword)}
	c.PoolSize = 5
	c.ShutdownTimeout = 5 * time.Second
	if overTLS {
		c.ClientTLS = pki(t).clientTLS(TLSRequire)
		c.ServerTLS = TLS{Mode: TLSRequire}
	}
	if change != nil {
		change(&c)
	}
	logged := &testWriter{t: t}
	log := slog.New(slog.NewTextHandler(logged, &slog.HandlerOptions{Level: slog.LevelDebug}))
	p, err := Open(c, log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- p.Run(ctx) }()
	var once sync.Once
	tp := &testPooler{Pooler: p, t: t, log: logged, host: "127.0.0.1", port: p.Addrs()[0].(*net.TCPAddr).Port}
	tp.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-ran; err != nil {
				t.Errorf("Run: %v", err)
			}
			if err := p.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		})
	}
	t.Cleanup(tp.stop)
	return tp
}

// testWriter writes a pooler's log to the test's, and remembers it.
type testWriter struct {
	t *testing.T

	mu  sync.Mutex
	all strings.Builder
}

func (w *testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", strings.TrimSuffix(string(b), "\n"))
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.all.Write(b)
}

// String returns the log so far.
func (w *testWriter) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.all.String()
}

// connect opens a client connection. Pgx is told to use named statements.
func (p *testPooler) connect() *pgx.Conn {
	p.t.Helper()
	conn, err := pgx.Connect(testContext(p.t), dsn(p.host, p.port, "postgres")+p.sslmode())
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// testContext bounds each step of a test.
func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// until waits for a condition.
func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-deadline:
			t.Fatalf("waiting for %s: not within 20 s", what)
		case <-tick.C:
		}
	}
}

// asleep waits until a server runs pg_sleep. A cancel request that reaches a server
// before it has begun with its query has no effect.
func asleep(t *testing.T) {
	t.Helper()
	ctx := testContext(t)
	host, port := postgres(t)
	direct, err := pgx.Connect(ctx, dsn(host, port, "postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer direct.Close(ctx)
	until(t, "a server to run pg_sleep", func() bool {
		n := 0
		err := direct.QueryRow(ctx, "select count(*) from pg_stat_activity where wait_event = 'PgSleep'").Scan(&n)
		return err == nil && n > 0
	})
}

// pool returns the snapshot of the pool for the database postgres.
func (p *testPooler) pool() PoolSnapshot {
	for _, s := range p.Snapshot().Pools {
		if s.Database == "postgres" && s.User == testUser {
			return s
		}
	}
	return PoolSnapshot{}
}

// quiet waits until no client has a server and no server is being cleaned.
func (p *testPooler) quiet() {
	p.t.Helper()
	until(p.t, "the pool to be quiet", func() bool {
		s := p.pool()
		return s.ServersActive+s.ServersSettling+s.ServersTesting+s.ServersLogin+s.ClientsActive+s.ClientsWaiting == 0
	})
}
