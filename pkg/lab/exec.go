package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/vishvananda/netns"
)

// Do runs fn on one of the hosts: on an OS thread in its network namespace.
// Sockets that fn itself opens are the host's, those of goroutines that it
// starts are not. Fn must return; in tests it must not call FailNow.
func (l *Lab) Do(host string, fn func() error) error {
	if _, err := findHost(host); err != nil {
		return err
	}
	return inNamespace(l.namespace(host), fn)
}

// OnSwitch runs fn as Do does, in the namespace of the LAN's switch, and tells it
// the name of the port that the host is plugged into.
func (l *Lab) OnSwitch(host string, fn func(port string) error) error {
	h, err := findHost(host)
	if err != nil {
		return err
	}
	return inNamespace(l.namespace(lanHost), func() error { return fn(h.port()) })
}

// DialContext returns a function that connects from one of the hosts, for
// pgx, net/http and the like. Addresses must be numeric.
func (l *Lab) DialContext(host string) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		var conn net.Conn
		err := l.Do(host, func() (err error) {
			conn, err = new(net.Dialer).DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}
}

// Cmd is an exec.Cmd whose process is started on one of the hosts.
type Cmd struct {
	*exec.Cmd
	lab  *Lab
	host string
}

// Command prepares a program to be run on one of the hosts, with the
// environment that Environment describes.
func (l *Lab) Command(ctx context.Context, host string, argv ...string) (*Cmd, error) {
	env, err := l.Environment(host)
	if err != nil {
		return nil, err
	}
	if len(argv) == 0 {
		return nil, errors.New("there is no command to run")
	}
	path, err := lookPath(argv[0], env)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, path, argv[1:]...)
	cmd.Args[0] = argv[0]
	cmd.Env = env
	return &Cmd{Cmd: cmd, lab: l, host: host}, nil
}

// Start starts the process.
func (c *Cmd) Start() error { return c.lab.Do(c.host, c.Cmd.Start) }

// Run starts the process and waits for it.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// CombinedOutput runs the process and returns what it wrote.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	var b bytes.Buffer
	c.Stdout, c.Stderr = &b, &b
	err := c.Run()
	return b.Bytes(), err
}

// Exec replaces this program by another one on one of the hosts, so that its
// exit status, its terminal and signals are its own. It returns only errors.
func (l *Lab) Exec(host string, argv []string) error {
	cmd, err := l.Command(context.Background(), host, argv...)
	if err != nil {
		return err
	}
	ns, err := netns.GetFromName(l.namespace(host))
	if err != nil {
		return fmt.Errorf("opening network namespace %s: %w", l.namespace(host), err)
	}
	// The thread that calls execve becomes the process's only one and takes
	// its network namespace along.
	runtime.LockOSThread()
	if err := netns.Set(ns); err != nil {
		return fmt.Errorf("entering network namespace %s: %w", l.namespace(host), err)
	}
	return fmt.Errorf("running %s: %w", argv[0], syscall.Exec(cmd.Path, cmd.Args, cmd.Env))
}

// Environment returns the environment for programs on a host: our own one,
// with the lab's programs first in the PATH, and
//   - everywhere the PG* variables of a connection to the database, from the
//     client through the VIP and from the database's host as its superuser;
//   - on the balancers PGSTEER_PIN_PATH and PGSTEER_ADMIN_SOCKET, for pgsteer.
func (l *Lab) Environment(host string) ([]string, error) {
	if _, err := findHost(host); err != nil {
		return nil, err
	}
	st, err := l.load()
	if err != nil {
		return nil, err
	}
	set := map[string]string{
		"PGHOST": vipAddr, "PGPORT": fmt.Sprint(servicePort), "PGUSER": Database, "PGDATABASE": Database,
		"PGPASSWORD": st.Passwords[Database], "PGSSLMODE": "disable",
		"PATH":        strings.Join([]string{st.Options.BinDir, os.Getenv("PATH"), st.Postgres}, ":"),
		"PGSTEER_LAB": l.name, "PGSTEER_HOST": host,
	}
	switch host {
	case DB:
		set["PGHOST"], set["PGPORT"] = mustHost(DB).addr.String(), fmt.Sprint(dbPort)
		set["PGUSER"], set["PGPASSWORD"] = superuser, st.Passwords[superuser]
	case Pooler:
		set["PGHOST"], set["PGPORT"] = mustHost(Pooler).addr.String(), fmt.Sprint(poolerPort)
	case LB1, LB2:
		set["PGSTEER_PIN_PATH"], set["PGSTEER_ADMIN_SOCKET"] = l.PinPath(host), l.AdminSocket(host)
	}
	var env []string
	for _, kv := range os.Environ() {
		if name, _, _ := strings.Cut(kv, "="); set[name] == "" && !strings.HasPrefix(name, "PG") {
			env = append(env, kv)
		}
	}
	for name, value := range set {
		env = append(env, name+"="+value)
	}
	return env, nil
}

// lookPath finds a program as a shell with the given environment would.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, kv := range env {
		path, ok := strings.CutPrefix(kv, "PATH=")
		if !ok {
			continue
		}
		for _, dir := range filepath.SplitList(path) {
			file := filepath.Join(dir, name)
			if fi, err := os.Stat(file); err == nil && !fi.IsDir() && fi.Mode()&0o111 != 0 {
				return file, nil
			}
		}
	}
	return "", fmt.Errorf("there is no program %q in the PATH", name)
}
