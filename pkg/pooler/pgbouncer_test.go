package pooler

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

// realBouncer runs a PgBouncer whose console is like that of startConsole, or
// skips the test. Version is its number, 1.18 as 118.
func realBouncer(t *testing.T) (port, version int) {
	t.Helper()
	return bouncerWith(t, "app = host=127.0.0.1 port=1", "x", "pool_mode = transaction")
}

// bouncerWith runs a PgBouncer with an entry of [databases], alice's password,
// and lines of [pgbouncer].
func bouncerWith(t *testing.T, database, password, lines string) (port, version int) {
	t.Helper()
	if testing.Short() {
		t.Skip("runs PgBouncer, which -short leaves out")
	}
	const program = "/usr/sbin/pgbouncer"
	out, err := exec.Command(program, "--version").Output()
	if err != nil {
		t.Skip("needs PgBouncer")
	}
	var major, minor int
	if _, err := fmt.Sscanf(string(out), "PgBouncer %d.%d", &major, &minor); err != nil {
		t.Fatalf("%v in %q", err, out)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port = ln.Addr().(*net.TCPAddr).Port
	ln.Close()
	dir, err := os.MkdirTemp("", "pgbouncer-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	ini, users := filepath.Join(dir, "pgbouncer.ini"), filepath.Join(dir, "users.txt")
	text := fmt.Sprintf("[databases]\n%s\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = %d\n"+
		"unix_socket_dir =\nauth_type = trust\nauth_file = %s\nadmin_users = %s\nstats_users = eve\n%s\n", database, port, users, testUser, lines)
	for name, content := range map[string]string{ini: text, users: `"alice" "` + password + `"` + "\n" + `"eve" "x"` + "\n" + `"mallory" "y"` + "\n"} {
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
	return port, major*100 + minor
}

// newerColumns are those that later versions than PgBouncer 1.18 added, up to
// 1.25: where one of them stands here, an older console has nothing.
var newerColumns = []string{
	"replication", "prepared_statements", "id", // 1.23, 1.21, 1.24
	"load_balance_hosts", "server_lifetime", "max_client_connections", "current_client_connections",
	"total_server_assignment_count", "total_client_parse_count", "total_server_parse_count", "total_bind_count",
	"avg_server_assignment_count", "avg_client_parse_count", "avg_server_parse_count", "avg_bind_count",
	"server_assignment_count", "client_parse_count", "server_parse_count", "bind_count",
	"total_client_login_count", "avg_client_login_count", "client_login_count", // 1.25
	"pool_size", "reserve_pool_size", "max_user_connections", "current_connections", "max_user_client_connections",
}

// TestLikePgBouncer asks PgBouncer and us the same, and compares the columns with
// their types and the errors.
func TestLikePgBouncer(t *testing.T) {
	port, version := realBouncer(t)
	p := startConsole(t, nil)
	theirs := dialConsole(t, &testPooler{host: "127.0.0.1", port: port, t: t}, testUser)
	ours := dialConsole(t, p, testUser)
	for _, what := range []string{"clients", "servers", "pools", "databases", "stats", "stats_totals", "stats_averages", "totals",
		"lists", "users", "config", "mem", "sockets", "active_sockets", "version", "dns_hosts", "dns_zones", "fds", "client_encoding", "TimeZone"} {
		var columns [2][]string
		for i, c := range []consoleConn{theirs, ours} {
			results := c.Exec(testContext(t), "SHOW "+what)
			if !results.NextResult() {
				t.Fatalf("SHOW %s: %v", what, results.Close())
			}
			reader := results.ResultReader()
			for _, f := range reader.FieldDescriptions() {
				name := f.Name
				if i == 0 && what == "databases" && name == "reserve_pool" { // until 1.23
					name = "reserve_pool_size"
				}
				columns[i] = append(columns[i], fmt.Sprintf("%s:%d:%d", name, f.DataTypeOID, f.DataTypeSize))
			}
			if tag, err := reader.Close(); tag.String() != "SHOW" || err != nil {
				t.Errorf("SHOW %s: tag %q, %v", what, tag, err)
			}
			if err := results.Close(); err != nil {
				t.Errorf("SHOW %s: %v", what, err)
			}
		}
		if version < 124 {
			columns[1] = slices.DeleteFunc(columns[1], func(c string) bool {
				name, _, _ := strings.Cut(c, ":")
				return slices.Contains(newerColumns, name) && !slices.Contains(columns[0], c)
			})
		}
		if len(columns[0]) == 0 || !slices.Equal(columns[0], columns[1]) {
			t.Errorf("SHOW %s:\nPgBouncer %v\nours      %v", what, columns[0], columns[1])
		}
	}
	for _, what := range []string{"lists", "totals"} {
		names := func(c consoleConn) (list []string) {
			for _, row := range c.show(what) {
				list = append(list, row[map[string]string{"lists": "list", "totals": "name"}[what]])
			}
			return list
		}
		have := names(ours)
		for _, name := range names(theirs) {
			i := slices.Index(have, name)
			if i < 0 {
				t.Errorf("SHOW %s has no %s, or not in PgBouncer's order", what, name)
				continue
			}
			have = have[i+1:]
		}
	}
	for _, command := range []string{"bogus", "show bogus", "show", "show clients; show pools", "show clients x y"} {
		if got, want := ours.fails(command).Message, theirs.fails(command).Message; got != want {
			t.Errorf("%s: %q, PgBouncer says %q", command, got, want)
		}
	}
	theirEve, ourEve := dialConsole(t, &testPooler{host: "127.0.0.1", port: port, t: t}, "eve"), dialConsole(t, p, "eve")
	for _, command := range []string{"reload", "pause", "shutdown", "kill app"} {
		if got, want := ourEve.fails(command).Message, theirEve.fails(command).Message; got != want {
			t.Errorf("%s: %q, PgBouncer says %q", command, got, want)
		}
	}
	refusal := func(port int, user string) string {
		_, err := pgconn.Connect(testContext(t), fmt.Sprintf("host=127.0.0.1 port=%d user=%s dbname=pgbouncer sslmode=disable", port, user))
		_, message, _ := strings.Cut(fmt.Sprint(err), "FATAL: ")
		message, _, _ = strings.Cut(message, " (SQLSTATE")
		return message
	}
	if got, want := refusal(p.port, "mallory"), refusal(port, "mallory"); got != want || got == "" {
		t.Errorf("for a stranger: %q, PgBouncer says %q", got, want)
	}
	for i, c := range []consoleConn{theirs, ours} {
		welcome := fmt.Sprint(c.ParameterStatus("client_encoding"), c.ParameterStatus("DateStyle"), c.ParameterStatus("standard_conforming_strings"),
			c.ParameterStatus("TimeZone"), strings.HasSuffix(c.ParameterStatus("server_version"), "/bouncer"), c.PID() != 0)
		if want := "UTF8ISOonGMT" + " true true"; strings.ReplaceAll(welcome, " ", "") != strings.ReplaceAll(want, " ", "") {
			t.Errorf("welcome of %d: %s", i, welcome)
		}
	}
}
