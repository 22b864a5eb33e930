package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// superuser owns the cluster.
const superuser = "postgres"

// postgresConf is appended to the file that initdb makes. 3 poolers × 70
// servers = 210 connections fit, with room for people's own.
//
// Nothing here is durable on purpose: the cluster is removed with the lab, and
// without fsync two cores measure the path rather than the disk.
const postgresConf = `
# Written by pgsteer-lab.
listen_addresses = '%s'
port = %d
unix_socket_directories = ''
max_connections = 300
password_encryption = 'scram-sha-256'
fsync = off
synchronous_commit = off
full_page_writes = off
log_line_prefix = '%%m [%%p] %%q%%u@%%d '
`

const postgresHBA = `# Written by pgsteer-lab.
host all all 192.168.1.0/24 scram-sha-256
`

// findPostgres returns the directory of the newest PostgreSQL server programs:
// Debian keeps them out of the PATH, one directory a version.
func findPostgres() (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil {
		return "", fmt.Errorf("looking for PostgreSQL: %w", err)
	}
	if len(found) > 0 {
		version := func(path string) int {
			n, err := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
			if err != nil {
				return 0
			}
			return n
		}
		newest := slices.MaxFunc(found, func(a, b string) int { return version(a) - version(b) })
		return filepath.Dir(newest), nil
	}
	if path, err := exec.LookPath("initdb"); err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil {
			return filepath.Dir(path), nil
		}
	}
	return "", errors.New("PostgreSQL's server programs are not installed (Debian: apt-get install postgresql)")
}

// account is an operating system user that a process runs as.
type account struct {
	name string
	cred *syscall.Credential
}

// unprivilegedUser finds the first of the users named that exists.
func unprivilegedUser(names ...string) (account, error) {
	for _, name := range names {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.ParseUint(u.Uid, 10, 32)
		if err != nil {
			return account{}, fmt.Errorf("looking up user %s: %w", name, err)
		}
		gid, err := strconv.ParseUint(u.Gid, 10, 32)
		if err != nil {
			return account{}, fmt.Errorf("looking up user %s: %w", name, err)
		}
		return account{name, &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}, nil
	}
	return account{}, fmt.Errorf("none of the users %s exists on this machine", strings.Join(names, ", "))
}

// databaseUser is who PostgreSQL runs as; it refuses to be root.
func databaseUser() (account, error) { return unprivilegedUser("postgres", "nobody") }

// writeFileFor writes a file that belongs to another user. It is created for
// root alone and given away complete.
func writeFileFor(path string, data []byte, mode os.FileMode, owner account) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("writing for user %s: %w", owner.name, err)
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Chown(int(owner.cred.Uid), int(owner.cred.Gid)), f.Close())
	if err != nil {
		return fmt.Errorf("writing %s for user %s: %w", path, owner.name, err)
	}
	return nil
}

func (l *Lab) clusterDir() string { return filepath.Join(l.data, "postgres") }

// initDatabase makes the cluster's directory with initdb and configures it.
func (l *Lab) initDatabase(ctx context.Context, st *state) error {
	begin := time.Now()
	owner, err := databaseUser()
	if err != nil {
		return err
	}
	dir := l.clusterDir()
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("creating the database's directory: %w", err)
	}
	if err := os.Chown(dir, int(owner.cred.Uid), int(owner.cred.Gid)); err != nil {
		return fmt.Errorf("creating the database's directory: %w", err)
	}
	pwfile := filepath.Join(l.data, "password")
	if err := writeFileFor(pwfile, []byte(st.Passwords[superuser]), 0o400, owner); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(st.Postgres, "initdb"),
		"--pgdata="+dir, "--username="+superuser, "--pwfile="+pwfile,
		"--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync")
	cmd.Dir = "/"
	cmd.Env = daemonEnv()
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: owner.cred}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	// In the host's namespace like everything else, so that it is found and
	// ended when this program is killed meanwhile.
	if err := inNamespace(l.namespace(DB), cmd.Start); err != nil {
		return fmt.Errorf("running initdb: %w", err)
	}
	if err := cmd.Wait(); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("running initdb: %w", context.Cause(ctx))
		}
		return fmt.Errorf("running initdb: %w:\n%s", err, bytes.TrimSpace(out.Bytes()))
	}
	if err := os.Remove(pwfile); err != nil {
		return fmt.Errorf("removing initdb's password file: %w", err)
	}
	conf, err := os.ReadFile(filepath.Join(dir, "postgresql.conf"))
	if err != nil {
		return fmt.Errorf("configuring PostgreSQL: %w", err)
	}
	conf = fmt.Appendf(conf, postgresConf, mustHost(DB).addr, dbPort)
	if err := writeFileFor(filepath.Join(dir, "postgresql.conf"), conf, 0o600, owner); err != nil {
		return err
	}
	if err := writeFileFor(filepath.Join(dir, "pg_hba.conf"), []byte(postgresHBA), 0o600, owner); err != nil {
		return err
	}
	st.Options.Progress(fmt.Sprintf("database: cluster made by %s (%.1f s)", filepath.Join(st.Postgres, "initdb"), time.Since(begin).Seconds()))
	return nil
}

// ensureRoles makes the roles and the database of the lab unless they exist.
func (l *Lab) ensureRoles(ctx context.Context, st *state) error {
	conn, err := l.connect(ctx, st, DB, superuser, netip.AddrPortFrom(mustHost(DB).addr, dbPort))
	if err != nil {
		return fmt.Errorf("connecting to PostgreSQL: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var exists bool
	err = conn.QueryRow(ctx, "select exists (select from pg_database where datname = $1)", Database).Scan(&exists)
	if err != nil {
		return fmt.Errorf("looking for database %s: %w", Database, err)
	}
	if exists {
		return nil
	}
	// The passwords are hexadecimal digits, so they need no quoting.
	for _, sql := range []string{
		fmt.Sprintf("create role %s login password '%s'", Database, st.Passwords[Database]),
		fmt.Sprintf("create role %s login password '%s'", checkUser, st.Passwords[checkUser]),
		fmt.Sprintf("create database %s owner %s", Database, Database),
	} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("preparing PostgreSQL: %w", err)
		}
	}
	return nil
}

// ClientConfig returns what a pgx client on the client's host needs to connect
// to the service. It may be used for any number of connections.
func (l *Lab) ClientConfig() (*pgx.ConnConfig, error) { return l.ClientConfigOf(ServiceName) }

// ClientConfigOf is ClientConfig for any of the services.
func (l *Lab) ClientConfigOf(service string) (*pgx.ConnConfig, error) {
	f, err := findFront(service)
	if err != nil {
		return nil, err
	}
	st, err := l.load()
	if err != nil {
		return nil, err
	}
	return l.pgxConfig(Client, Database, st.Passwords[Database], f.addr)
}

// Connector returns a function that connects a pgx client on the client's host
// to any address, with the account of ClientConfig.
func (l *Lab) Connector(to netip.AddrPort) (func(context.Context) (*pgx.Conn, error), error) {
	st, err := l.load()
	if err != nil {
		return nil, err
	}
	cfg, err := l.pgxConfig(Client, Database, st.Passwords[Database], to)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) (*pgx.Conn, error) { return pgx.ConnectConfig(ctx, cfg) }, nil
}

// connect opens a connection from one of the hosts, to the database that has
// the name of the user.
func (l *Lab) connect(ctx context.Context, st *state, host, user string, to netip.AddrPort) (*pgx.Conn, error) {
	cfg, err := l.pgxConfig(host, user, st.Passwords[user], to)
	if err != nil {
		return nil, err
	}
	return pgx.ConnectConfig(ctx, cfg)
}

func (l *Lab) pgxConfig(host, user, password string, to netip.AddrPort) (*pgx.ConnConfig, error) {
	cfg, err := pgx.ParseConfig("sslmode=disable")
	if err != nil {
		return nil, fmt.Errorf("making a connection's settings: %w", err)
	}
	cfg.Fallbacks = nil
	cfg.Host, cfg.Port = to.Addr().String(), to.Port()
	cfg.User, cfg.Password, cfg.Database = user, password, user
	cfg.DialFunc = l.DialContext(host)
	// As it stands in the environment, it is of no concern here.
	cfg.RuntimeParams = map[string]string{"application_name": "pgsteer-lab"}
	return cfg, nil
}
