package main

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/config/bouncer"
	"github.com/pgsteer/pgsteer/pkg/pgwire"
	"github.com/pgsteer/pgsteer/pkg/pooler"
)

// TestMain lets the test program stand in for the pooler's.
func TestMain(m *testing.M) {
	if os.Getenv("POOLER_TEST_MAIN") != "" {
		main()
	}
	os.Exit(m.Run())
}

// TestConfig: every key of the file reaches the pooler.
func TestConfig(t *testing.T) {
	file, _, err := bouncer.Load("testdata/pgbouncer.ini")
	if err != nil {
		t.Fatal(err)
	}
	got, err := poolerConfig(&file)
	if err != nil {
		t.Fatal(err)
	}
	if got.Users["alice"].Kind != pgwire.SecretPlain || got.Users["bob"].Kind != pgwire.SecretSCRAM || len(got.Users) != 2 {
		t.Errorf("users: %v", got.Users)
	}
	if len(got.AuthSeed) != 32 {
		t.Errorf("seed of %d bytes, want 32", len(got.AuthSeed))
	}
	if i := slices.IndexFunc(got.Settings, func(s pooler.Setting) bool { return s.Name == "listen_port" }); i < 0 || got.Settings[i].Value != "6999" {
		t.Errorf("settings: %v", got.Settings)
	}
	if got.Version != version() {
		t.Errorf("version %q", got.Version)
	}
	got.Users, got.AuthSeed, got.Settings, got.Version = nil, nil, nil, ""
	want := pooler.Config{
		Listen: []string{"127.0.0.1:6999", "[::1]:6999"}, Backlog: 64, ReusePort: true,
		UnixSocket: pooler.UnixSocket{Dir: "/run/pooler", Port: 6999, Mode: 0o750, Group: "root"},
		Databases: map[string]pooler.Database{"app": {Name: "app", AuthUser: "own", AuthQuery: "select 3, $1", AuthDBName: "there", Host: "127.0.0.1", Port: 5433, DBName: "appdb",
			User: "owner", Secret: pgwire.PlainSecret("geheim"), PoolSize: 7, PoolMode: pooler.PoolStatement, LoadBalance: pooler.LoadBalanceDisable, Target: pooler.TargetReadWrite,
			MinPoolSize: 1, ReservePoolSize: 2, MaxConnections: 3, MaxClientConnections: 4,
			Params:         []pgwire.Param{{Name: "timezone", Value: "Asia/Tokyo"}, {Name: "application_name", Value: "us"}},
			ServerLifetime: time.Minute, QueryWaitTimeout: -1}},
		Fallback: &pooler.Database{Name: "*", Host: "192.168.1.6", Port: 5432, PoolSize: 70},
		PoolMode: pooler.PoolSession, ServerResetQuery: "DISCARD TEMP", ServerResetQueryAlways: true,
		UserSettings: map[string]pooler.User{"bob": {PoolMode: pooler.PoolTransaction, PoolSize: 5, ReservePoolSize: -1, MaxConnections: 6, MaxClientConnections: 7,
			QueryWaitTimeout: -1, Timeouts: pooler.Timeouts{Query: time.Second, IdleTransaction: 2 * time.Second, Transaction: 3 * time.Second, ClientIdle: 4 * time.Second}}},
		Timeouts:        pooler.Timeouts{Query: 21 * time.Second, IdleTransaction: 22 * time.Second, Transaction: 23 * time.Second, ClientIdle: 24 * time.Second},
		QueryWaitNotify: 25 * time.Second, PoolIdleTimeout: 26 * time.Second, AutoDBIdleTimeout: 27 * time.Second,
		DNSMaxTTL: 41 * time.Second, DNSNotFoundTTL: 42 * time.Second, ServerFastClose: true,
		ServerRoundRobin: true, ServerCheckQuery: "select 1", ServerCheckDelay: 31 * time.Second, DisablePQExec: true, MaxPacketSize: 2048,
		TCP: pooler.TCPOptions{NoKeepAlive: true, KeepIdle: 29 * time.Second, KeepInterval: 30 * time.Second, KeepCount: 28,
			UserTimeout: 31 * time.Millisecond, DeferAccept: true, Buffer: 32},
		MinPoolSize: 11, ReservePoolSize: 12, ReservePoolTimeout: 13 * time.Second,
		MaxDBConnections: 14, MaxDBClientConnections: 15, MaxUserConnections: 16, MaxUserClientConnections: 17,
		ClientTLS: pooler.TLS{Mode: pooler.TLSAllow, KeyFile: "k", CertFile: "c", CAFile: "a", MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS12, Curves: []tls.CurveID{tls.CurveP384}},
		ServerTLS: pooler.TLS{Mode: pooler.TLSRequire, MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS13},
		AuthUser:  "asker", AuthQuery: "select $1, 2", AuthDBName: "where",
		AuthMethod: pgwire.AuthSCRAM, MaxClients: 4000, PoolSize: 70, MaxPrepared: 99,
		IgnoreStartup:        []string{"extra_float_digits", "search_path"},
		ServerConnectTimeout: 3 * time.Second, ServerLoginRetry: 4 * time.Second, ServerLifetime: 5 * time.Second,
		ServerIdleTimeout: 6 * time.Second, QueryWaitTimeout: 7 * time.Second, ClientLoginTimeout: 8 * time.Second,
		ControlSocket:    "/run/pgsteer/test.sock",
		TrustedBalancers: []netip.Prefix{netip.MustParsePrefix("192.168.1.100/32")},
		AdminUsers:       []string{"alice"}, StatsUsers: []string{"bob", "alice"}, StatsPeriod: 10 * time.Second, LeakGuard: pooler.GuardCount, AddHost: true,
		LogStats: true, LoginNotice: "hello", PeerID: 1,
		Peers:             []pooler.Peer{{ID: 2, Host: "127.0.0.1", Port: 7000, PoolSize: 3}},
		CancelWaitTimeout: 9 * time.Second, SuspendTimeout: 12 * time.Second, ShutdownTimeout: pooler.DefaultConfig().ShutdownTimeout,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v, want\n%+v", got, want)
	}
}

// TestSameSeed: poolers with the same user list make up the same salts.
func TestSameSeed(t *testing.T) {
	users := []bouncer.User{{Name: "a", Secret: "x"}}
	seed := func(u []bouncer.User) string {
		c, err := poolerConfig(&bouncer.Config{Users: u})
		if err != nil {
			t.Fatal(err)
		}
		return string(c.AuthSeed)
	}
	first := seed(users)
	if again := seed(users); again != first {
		t.Error("two poolers with the same users have different seeds")
	}
	if other := seed([]bouncer.User{{Name: "a", Secret: "y"}}); other == first {
		t.Error("the seed does not depend on the secrets")
	}
}

// TestCommandLine runs what ends by itself.
func TestCommandLine(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.ini")
	if err := os.WriteFile(bad, []byte("[pgbouncer]\nlisten_prot = 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		args        []string
		status      int
		out, errOut string // contained
	}{
		{[]string{"-version"}, exitOK, "pgsteer-pooler ", ""},
		{[]string{"-help"}, exitOK, "Usage:", ""},
		{[]string{"-check", "testdata/pgbouncer.ini"}, exitOK, "configuration is valid", ""},
		{nil, exitUsage, "", "want one configuration file, got 0"},
		{[]string{"a", "b"}, exitUsage, "", "want one configuration file, got 2"},
		{[]string{"-nope"}, exitUsage, "", "flag provided but not defined"},
		{[]string{"/nonexistent.ini"}, exitUsage, "", "no such file"},
		{[]string{"-check", bad}, exitUsage, "", bad + ":2:"},
	}
	for _, tt := range tests {
		var out, errOut bytes.Buffer
		status := run(tt.args, &out, &errOut)
		if status != tt.status || !strings.Contains(out.String(), tt.out) || !strings.Contains(errOut.String(), tt.errOut) ||
			tt.errOut == "" && errOut.Len() > 0 && !strings.Contains(errOut.String(), "can be read by everyone") {
			t.Errorf("%q: status %d, output %q, errors %q", tt.args, status, out.String(), errOut.String())
		}
	}
}

// TestLimits: more clients than open files are refused.
func TestLimits(t *testing.T) {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	c := pooler.DefaultConfig()
	c.MaxClients = 10
	if err := setLimits(&c, log); err != nil {
		t.Errorf("10 clients: %v", err)
	}
	if files.Max > 1<<30 {
		t.Skipf("%d open files are allowed", files.Max)
	}
	c.MaxClients = int(files.Max)
	if err := setLimits(&c, log); err == nil || !strings.Contains(err.Error(), "max_client_conn") {
		t.Errorf("%d clients: %v", c.MaxClients, err)
	}
}

// TestSignals: the program tells the service manager how it is, and ends at a
// signal; one that cannot listen says so and fails.
func TestSignals(t *testing.T) {
	dir := t.TempDir()
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := ln.Addr().(*net.TCPAddr).Port
	users := filepath.Join(dir, "userlist.txt")
	ini := filepath.Join(dir, "pooler.ini")
	text := fmt.Sprintf("[databases]\n* = host=127.0.0.1\n[pgbouncer]\nunix_socket_dir =\nlisten_addr = 127.0.0.1\nlisten_port = %d\n"+
		"auth_type = scram-sha-256\nauth_file = %s\npool_mode = transaction\n", port, users)
	if err := errors.Join(os.WriteFile(users, []byte("\"a\" \"b\"\n"), 0o600), os.WriteFile(ini, []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
	start := func() (*exec.Cmd, *bytes.Buffer) {
		cmd := exec.Command(os.Args[0], ini)
		cmd.Env = append(os.Environ(), "POOLER_TEST_MAIN=1", "NOTIFY_SOCKET="+filepath.Join(dir, "notify"))
		var errOut bytes.Buffer
		cmd.Stderr = &errOut
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd, &errOut
	}
	cmd, errOut := start()
	err = cmd.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != exitFailure || !strings.Contains(errOut.String(), "address already in use") {
		t.Errorf("on a port that is taken: %v\n%s", err, errOut)
	}
	ln.Close()

	notified := func() string {
		b := make([]byte, 100)
		if err := manager.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := manager.Read(b)
		if err != nil {
			t.Fatalf("waiting for a notification: %v", err)
		}
		return string(b[:n])
	}
	// A reload: refused while the file is bad, obeyed when it is good.
	cmd, errOut = start()
	if got := notified(); got != "READY=1" {
		t.Errorf("notified %q, want READY=1", got)
	}
	for _, change := range []string{"default_pool_size = much\n", "default_pool_size = 9\n"} {
		if err := errors.Join(os.WriteFile(ini, []byte(text+change), 0o600), cmd.Process.Signal(syscall.SIGHUP)); err != nil {
			t.Fatal(err)
		}
		if got := notified(); !strings.HasPrefix(got, "RELOADING=1\nMONOTONIC_USEC=") {
			t.Errorf("notified %q, want RELOADING=1", got)
		}
		if got := notified(); got != "READY=1" {
			t.Errorf("notified %q after the reload", got)
		}
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	notified()
	if err := cmd.Wait(); err != nil || strings.Count(errOut.String(), "config file loading failed") != 1 || !strings.Contains(errOut.String(), ini+":10: default_pool_size") {
		t.Errorf("reload: %v\n%s", err, errOut)
	}
	for _, sig := range []os.Signal{syscall.SIGTERM, syscall.SIGINT} {
		cmd, errOut = start()
		if got := notified(); got != "READY=1" {
			t.Errorf("notified %q, want READY=1", got)
		}
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Errorf("ready but not reachable: %v", err)
		} else {
			conn.Close()
		}
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		if got := notified(); got != "STOPPING=1" {
			t.Errorf("notified %q, want STOPPING=1", got)
		}
		if err := cmd.Wait(); err != nil || !strings.Contains(errOut.String(), "stopped") {
			t.Errorf("after %v: %v\n%s", sig, err, errOut)
		}
	}
}
