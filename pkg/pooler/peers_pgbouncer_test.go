package pooler

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
)

// peerBouncer runs a PgBouncer that knows [peers] (from 1.19 on), or skips the
// test. $PGBOUNCER names another program than Debian's.
func peerBouncer(t *testing.T, id, port, ourID, ourPort int) {
	t.Helper()
	program := os.Getenv("PGBOUNCER")
	if program == "" {
		program = "/usr/sbin/pgbouncer"
	}
	out, err := exec.Command(program, "--version").Output()
	var major, minor int
	if _, serr := fmt.Sscanf(string(out), "PgBouncer %d.%d", &major, &minor); err != nil || serr != nil || major == 1 && minor < 19 {
		t.Skip("needs PgBouncer 1.19 or newer")
	}
	host, pgPort := postgres(t)
	dir, err := os.MkdirTemp("", "pgbouncer-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	ini, users := filepath.Join(dir, "pgbouncer.ini"), filepath.Join(dir, "users.txt")
	text := fmt.Sprintf("[databases]\n* = host=%s port=%d\n[peers]\n%d = host=127.0.0.1 port=%d\n%d = host=127.0.0.1 port=%d\n"+
		"[pgbouncer]\npeer_id = %d\nlisten_addr = 127.0.0.1\nlisten_port = %d\nunix_socket_dir =\nauth_type = scram-sha-256\n"+
		"auth_file = %s\npool_mode = transaction\n", host, pgPort, ourID, ourPort, id, port, id, port, users)
	for name, content := range map[string]string{ini: text, users: fmt.Sprintf("%q \"%s\"\n", testUser, testPassword)} {
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(program, ini)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if os.Getuid() == 0 { // it refuses to run as root
		u, err := user.Lookup("postgres")
		if err != nil {
			t.Skip("needs a user to run PgBouncer as")
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd.Stderr = io.Discard
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		cmd.Wait() // killed by us: its status says nothing
	})
	until(t, "PgBouncer to listen", func() bool {
		conn, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", itoa(port)))
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

// TestPgBouncerAsPeer: PgBouncer and we forward each other's cancel requests.
func TestPgBouncerAsPeer(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := ln.Addr().(*net.TCPAddr).Port
	ln.Close()
	p := startPooler(t, func(c *Config) {
		c.PeerID = 300 // more than a byte
		c.Peers = []Peer{{ID: 2, Host: "127.0.0.1", Port: uint16(port)}}
	})
	peerBouncer(t, 2, port, 300, p.port)
	theirs := &testPooler{Pooler: p.Pooler, host: "127.0.0.1", port: port, t: t} // in the clear, as ours
	for name, x := range map[string]struct{ of, by *testPooler }{
		"our client by PgBouncer": {p, theirs}, "PgBouncer's client by us": {theirs, p},
		"PgBouncer's client by itself": {theirs, theirs},
	} {
		busy := dialRaw(t, x.of)
		busy.send(msgQuery("select pg_sleep(60)"))
		asleep(t)
		busy.cancel(x.by)
		if got := busy.until('Z'); !strings.Contains(got, "E") {
			t.Errorf("%s: %q", name, got)
		}
		busy.conn.Close()
		awake(t)
	}
}

// awake waits until no server runs pg_sleep.
func awake(t *testing.T) {
	t.Helper()
	ctx := testContext(t)
	host, port := postgres(t)
	direct, err := pgx.Connect(ctx, dsn(host, port, "postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer direct.Close(ctx)
	until(t, "no server to run pg_sleep", func() bool {
		n := 0
		err := direct.QueryRow(ctx, "select count(*) from pg_stat_activity where wait_event = 'PgSleep'").Scan(&n)
		return err == nil && n == 0
	})
}
