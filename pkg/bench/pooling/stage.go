package pooling

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// The cores: one for the pooler that is measured, one for everything else.
const (
	poolerCore = "0"
	otherCore  = "1"
)

const (
	benchUser     = "bench"
	benchPassword = "not a secret"
	// readyTimeout bounds the wait for a program to answer.
	readyTimeout = 20 * time.Second
)

// stage is what is measured, and what it is measured with.
type stage struct {
	dir      string
	cred     *syscall.Credential // whom all run as
	postgres *process
	ours     *process
	theirs   *process
	bin      string // of PostgreSQL
	pinned   bool   // this process is on the other core
}

// process is a program that was started.
type process struct {
	name string
	port int
	cmd  *exec.Cmd
}

func open(ctx context.Context, o Options) (s *stage, err error) {
	s = &stage{pinned: true}
	if err := pin(otherCore); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	bins, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	if err != nil || len(bins) == 0 {
		return s, errors.New("PostgreSQL's programs are not in /usr/lib/postgresql")
	}
	s.bin = bins[len(bins)-1]
	u, err := user.Lookup("postgres")
	if err != nil {
		return s, fmt.Errorf("finding a user to run as: %w", err)
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		return s, fmt.Errorf("finding a user to run as: %w", err)
	}
	s.cred = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	if s.dir, err = os.MkdirTemp("", "pgsteer-bench-"); err != nil {
		return s, err
	}
	if err := os.Chown(s.dir, int(uid), int(gid)); err != nil {
		return s, err
	}
	if err := s.startPostgres(ctx); err != nil {
		return s, err
	}
	return s, s.startPoolers(ctx, o)
}

func (s *stage) write(name, text string) error {
	if err := os.WriteFile(s.path(name), []byte(text), 0o600); err != nil {
		return err
	}
	return os.Chown(s.path(name), int(s.cred.Uid), int(s.cred.Gid))
}

// command is a program on a core, as the stage's user.
func (s *stage) command(ctx context.Context, core string, argv ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "taskset", append([]string{"-c", core}, argv...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.cred, Pdeathsig: syscall.SIGKILL}
	cmd.Dir = s.dir
	return cmd
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

func (s *stage) startPostgres(ctx context.Context) error {
	if err := s.write("password", benchPassword+"\n"); err != nil {
		return err
	}
	init := s.command(ctx, otherCore, s.bin+"/initdb", "-D", s.path("data"), "-U", benchUser, "--pwfile", s.path("password"),
		"-A", "scram-sha-256", "-E", "UTF8", "--locale", "C.UTF-8", "--no-sync")
	if out, err := init.CombinedOutput(); err != nil {
		return fmt.Errorf("making a cluster: %w\n%s", err, out)
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	s.postgres, err = s.start(otherCore, "postgres", port, s.bin+"/postgres", "-D", s.path("data"), "-k", s.dir, "-p", strconv.Itoa(port),
		"-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c", fmt.Sprintf("max_connections=%d", 3*poolSize), "-c", "shared_buffers=64MB")
	if err != nil {
		return err
	}
	if err := s.answers(ctx, port, "postgres"); err != nil {
		return err
	}
	out, err := s.psql(ctx, port, "postgres", "CREATE DATABASE app")
	if err != nil {
		return fmt.Errorf("making a database: %w\n%s", err, out)
	}
	return nil
}

// configuration is that of both poolers, with logging and statistics as in
// production.
const configuration = `[databases]
app = host=127.0.0.1 port=%d
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = scram-sha-256
auth_file = %s
pool_mode = transaction
default_pool_size = %d
max_client_conn = %d
listen_backlog = 4096
ignore_startup_parameters = extra_float_digits
`

func (s *stage) startPoolers(ctx context.Context, o Options) error {
	if err := s.write("users", fmt.Sprintf("%q %q\n", benchUser, benchPassword)); err != nil {
		return err
	}
	dir := o.BinDir
	if dir == "" {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		dir = filepath.Dir(self)
	}
	// Where the bench's own directories are, another user may not look.
	program, err := os.ReadFile(filepath.Join(dir, "pgsteer-pooler"))
	if err != nil {
		return fmt.Errorf("finding the pooler: %w", err)
	}
	if err := os.WriteFile(s.path("pgsteer-pooler"), program, 0o755); err != nil {
		return err
	}
	for _, p := range []struct {
		to      **process
		name    string
		program string
	}{{&s.ours, "pgsteer", s.path("pgsteer-pooler")}, {&s.theirs, "pgbouncer", "/usr/sbin/pgbouncer"}} {
		port, err := freePort()
		if err != nil {
			return err
		}
		ini := p.name + ".ini"
		if err := s.write(ini, fmt.Sprintf(configuration, s.postgres.port, port, s.path("users"), poolSize, maxClients)); err != nil {
			return err
		}
		if *p.to, err = s.start(poolerCore, p.name, port, p.program, s.path(ini)); err != nil {
			return err
		}
		if err := s.answers(ctx, port, "app"); err != nil {
			return err
		}
	}
	return nil
}

// start starts a program that runs until the end; what it says is in a file.
func (s *stage) start(core, name string, port int, argv ...string) (*process, error) {
	log, err := os.Create(s.path(name + ".log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p := &process{name: name, port: port, cmd: s.command(context.Background(), core, argv...)}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	return p, nil
}

func (s *stage) psql(ctx context.Context, port int, database, sql string) ([]byte, error) {
	cmd := s.command(ctx, otherCore, s.bin+"/psql", "-X", "-q", "-h", "127.0.0.1", "-p", strconv.Itoa(port), "-U", benchUser, "-c", sql, database)
	cmd.Env = append(os.Environ(), "PGPASSWORD="+benchPassword)
	return cmd.CombinedOutput()
}

// answers waits until a query is answered.
func (s *stage) answers(ctx context.Context, port int, database string) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for {
		out, err := s.psql(ctx, port, database, "SELECT 1")
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no answer at port %d: %w\n%s", port, err, out)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// pin has this process run on the cores of a list, as taskset has it. The clients
// are part of it.
func pin(cores string) error {
	out, err := exec.Command("taskset", "-a", "-p", "-c", cores, strconv.Itoa(os.Getpid())).CombinedOutput()
	if err != nil {
		return fmt.Errorf("pinning the clients to a core: %w\n%s", err, out)
	}
	return nil
}

// close ends all processes and removes the files.
func (s *stage) close() error {
	var errs []error
	if s.pinned {
		errs = append(errs, pin(fmt.Sprintf("0-%d", runtime.NumCPU()-1)))
	}
	for _, p := range []*process{s.ours, s.theirs, s.postgres} {
		if p == nil {
			continue
		}
		// SIGINT: PostgreSQL's fast shutdown. The others' is as good.
		sig := syscall.SIGKILL
		if p == s.postgres {
			sig = syscall.SIGINT
		}
		errs = append(errs, p.cmd.Process.Signal(sig))
		_ = p.cmd.Wait() // its status is the signal's
	}
	if s.dir != "" {
		errs = append(errs, os.RemoveAll(s.dir))
	}
	return errors.Join(errs...)
}

// cpu is the time that the process's threads have run, by the scheduler.
func (p *process) cpu() (sum time.Duration, err error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", p.cmd.Process.Pid))
	if err != nil || len(tasks) == 0 {
		return 0, fmt.Errorf("%s has no threads: %w", p.name, err)
	}
	for _, t := range tasks {
		text, err := os.ReadFile(t)
		if err != nil {
			return 0, err
		}
		ns, err := strconv.ParseInt(strings.Fields(string(text))[0], 10, 64)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(ns)
	}
	return sum, nil
}

// rss is the process's resident memory, in bytes.
func (p *process) rss() (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	_, rest, ok := bytes.Cut(text, []byte("VmRSS:"))
	if !ok {
		return 0, fmt.Errorf("%s has no memory", p.name)
	}
	kib, err := strconv.ParseInt(strings.Fields(string(rest))[0], 10, 64)
	return kib << 10, err
}
