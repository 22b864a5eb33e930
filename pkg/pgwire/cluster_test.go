package pgwire

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"
)

// cluster is the PostgreSQL server that this package's tests share.
type cluster struct {
	dir string // has the unix socket
	cmd *exec.Cmd
}

// shared starts the cluster when the first test asks for it: fuzzing, which
// runs this binary many times, never does.
var shared = sync.OnceValues(func() (*cluster, error) {
	c, err := startCluster()
	started = c
	return c, err
})

// started is the cluster to stop in the end.
var started *cluster

func TestMain(m *testing.M) {
	code := m.Run()
	if started != nil {
		started.stop()
	}
	os.Exit(code)
}

// theCluster returns the shared cluster; where there is no PostgreSQL the test
// is skipped.
func theCluster(t *testing.T) *cluster {
	t.Helper()
	c, err := shared()
	if errors.Is(err, exec.ErrNotFound) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal("failed to start PostgreSQL:", err)
	}
	return c
}

// hba has a user for each method; the rest, the superuser among them, use SCRAM.
const hba = `local all md5user,md5stored md5
local all trustuser trust
local all clearuser password
local all all scram-sha-256
`

// startCluster makes a cluster in a temporary directory and waits until it
// answers. PostgreSQL does not run as root: root runs it as postgres.
func startCluster() (c *cluster, err error) {
	bins, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil || len(bins) == 0 {
		return nil, fmt.Errorf("no /usr/lib/postgresql/*/bin/postgres: %w", exec.ErrNotFound)
	}
	bin := filepath.Dir(bins[len(bins)-1])
	dir, err := os.MkdirTemp("", "pgwire-test-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	attr := &syscall.SysProcAttr{}
	if os.Geteuid() == 0 {
		cred, err := postgresUser()
		if err != nil {
			return nil, err
		}
		attr.Credential = cred
		if err := os.Chown(dir, int(cred.Uid), int(cred.Gid)); err != nil {
			return nil, err
		}
	}
	pw := filepath.Join(dir, "pw")
	if err := os.WriteFile(pw, []byte("pencil\n"), 0o644); err != nil {
		return nil, err
	}
	data := filepath.Join(dir, "data")
	init := exec.Command(bin+"/initdb", "-D", data, "-U", "postgres", "--pwfile", pw, "-A", "scram-sha-256",
		"-E", "UTF8", "--locale", "C.UTF-8", "--no-sync")
	init.SysProcAttr, init.Dir = attr, dir
	if out, err := init.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w\n%s", err, out)
	}
	if err := os.WriteFile(filepath.Join(data, "pg_hba.conf"), []byte(hba), 0o644); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	c = &cluster{dir: dir, cmd: exec.Command(bin+"/postgres", "-D", data, "-k", dir,
		"-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=30", "-c", "shared_buffers=16MB")}
	// Should the test binary die, so does the server, at once.
	run := *attr
	run.Pdeathsig = syscall.SIGQUIT
	c.cmd.SysProcAttr, c.cmd.Dir, c.cmd.Stderr = &run, dir, log
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	if err := c.wait(); err != nil {
		text, rerr := os.ReadFile(log.Name())
		c.stop()
		return nil, errors.Join(fmt.Errorf("%w\n%s", err, text), rerr)
	}
	return c, nil
}

func postgresUser() (*syscall.Credential, error) {
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, err
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}

// wait returns when the server takes a login. Its state is asked for every few
// milliseconds: a starting server has nothing to wait on.
func (c *cluster) wait() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*limit)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		s, err := c.login(ctx, ServerLogin{User: "postgres", Database: "postgres", Secret: PlainSecret("pencil")})
		if err == nil {
			return s.conn.Close()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("server does not come up: %w", err)
		}
	}
}

func (c *cluster) stop() {
	if err := c.cmd.Process.Signal(syscall.SIGQUIT); err == nil {
		_ = c.cmd.Wait() // "immediate shutdown" has a status of its own
	}
	if err := os.RemoveAll(c.dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

func (c *cluster) dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", filepath.Join(c.dir, ".s.PGSQL.5432"))
}

// pgSession is a logged-in connection.
type pgSession struct {
	*ServerSession
	conn net.Conn
}

func (c *cluster) login(ctx context.Context, l ServerLogin) (*pgSession, error) {
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	s, err := ConnectServer(ctx, conn, l)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return &pgSession{s, conn}, nil
}

// query runs a simple query and returns the first column of its rows.
func (s *pgSession) query(sql string) (rows []string, err error) {
	if err := s.conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return nil, err
	}
	if _, err := s.conn.Write(AppendQuery(nil, sql)); err != nil {
		return nil, err
	}
	r := bufio.NewReader(s.conn)
	for {
		typ, body, rerr := ReadFrame(r, MaxLargeLen)
		if rerr != nil {
			return nil, rerr
		}
		switch typ {
		case MsgErrorResponse:
			e, perr := ParseError(body)
			err = errors.Join(perr, e)
		case MsgDataRow:
			n := binary.BigEndian.Uint32(body[2:])
			rows = append(rows, string(body[6:6+n]))
		case MsgReadyForQuery:
			return rows, err
		}
	}
}

// superuser returns a session that lasts as long as the test.
func superuser(t *testing.T) *pgSession {
	t.Helper()
	return mustLogin(t, ServerLogin{User: "postgres", Database: "postgres", Secret: PlainSecret("pencil")})
}

func mustLogin(t *testing.T, l ServerLogin) *pgSession {
	t.Helper()
	c := theCluster(t)
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	s, err := c.login(ctx, l)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.conn.Close() })
	return s
}

func (s *pgSession) must(t *testing.T, sql string) []string {
	t.Helper()
	rows, err := s.query(sql)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return rows
}
