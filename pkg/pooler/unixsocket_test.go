package pooler

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// TestUnixListener: clients come by a Unix socket, and who runs the pooler is its
// admin without a password.
func TestUnixListener(t *testing.T) {
	dir := t.TempDir()
	p := startPooler(t, func(c *Config) {
		c.UnixSocket = UnixSocket{Dir: dir, Port: 6543, Mode: 0o750, Optional: true}
		c.AddHost = true
	})
	path := filepath.Join(dir, ".s.PGSQL.6543")
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o750 {
		t.Fatalf("socket: %v, %v", info, err)
	}
	ctx := testContext(t)
	tcp := dsn(p.host, p.port, "postgres")
	conn, err := pgx.Connect(ctx, strings.Replace(strings.Replace(tcp, "host="+p.host, "host="+dir, 1), fmt.Sprintf("port=%d", p.port), "port=6543", 1)+" application_name=local")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	var name string
	if err := conn.QueryRow(ctx, "show application_name").Scan(&name); err != nil || name != "local - unix:6543" {
		t.Errorf("application name %q, %v", name, err)
	}
	admin, err := pgconn.Connect(ctx, fmt.Sprintf("host=%s port=6543 user=pgbouncer dbname=pgbouncer", dir))
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(ctx)
	console := consoleConn{t, admin}
	find(t, console.show("clients"), "addr=unix", "port=6543", "local_addr=unix", "database=postgres")
	console.does("PAUSE", "PAUSE")
	console.does("RESUME", "RESUME")
	if _, err := pgconn.Connect(ctx, strings.Replace(tcp, "dbname=postgres", "dbname=pgbouncer", 1)); err == nil {
		t.Error("by TCP somebody else is admin")
	}
	p.stop()
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket's name stays: %v", err)
	}
}

// TestUnixSocketTaken: a dead one is replaced; a living one only by a pooler that
// has a TCP port as well; the name is removed by its owner alone.
func TestUnixSocketTaken(t *testing.T) {
	u := &UnixSocket{Dir: t.TempDir(), Port: 1, Mode: 0o777}
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: u.Path(), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	first, err := listenLocal(u, 10, true)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if _, err := listenLocal(u, 10, true); err == nil || !strings.Contains(err.Error(), "is in use") {
		t.Errorf("taken: %v", err)
	}
	second, err := listenLocal(u, 10, false)
	if err != nil {
		t.Fatal(err)
	}
	first.Close()
	if conn, err := net.Dial("unix", u.Path()); err != nil {
		t.Errorf("the successor cannot be reached: %v", err)
	} else {
		conn.Close()
	}
	second.Close()
	if _, err := os.Lstat(u.Path()); !os.IsNotExist(err) {
		t.Errorf("the name stays: %v", err)
	}
	if err := os.WriteFile(u.Path(), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listenLocal(u, 10, true); err == nil || !strings.Contains(err.Error(), "is no socket") {
		t.Errorf("a file: %v", err)
	}
	if list, err := os.ReadDir(u.Dir); err != nil || len(list) != 1 {
		t.Errorf("left behind: %v, %v", list, err)
	}
	u.Group = "no-such-group"
	if _, err := listenLocal(u, 10, true); err == nil {
		t.Error("a group that does not exist is accepted")
	}
}
