package bouncer

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestLoadGood(t *testing.T) {
	// A copy: the mode matters, and the files may be somebody else's.
	dir := t.TempDir()
	if err := os.CopyFS(dir+"/testdata", os.DirFS("testdata")); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	if err := os.Chmod("testdata/good.txt", 0o644); err != nil {
		t.Fatal(err)
	}
	got, warnings, err := Load("testdata/good.ini")
	if err != nil {
		t.Fatal(err)
	}
	key := strings.Repeat("A", 43) + "="
	want := Config{
		ListenAddr:      []string{"192.168.1.5", "::1"},
		ListenPort:      6432,
		ListenBacklog:   4096,
		UnixSocketGiven: true, UnixSocketMode: 0o777,
		ReusePort: true,
		ClientTLS: TLS{SSLMode: "require", KeyFile: "/etc/ssl/pooler.key", CertFile: "/etc/ssl/pooler.crt",
			MinVersion: tls.VersionTLS13, MaxVersion: tls.VersionTLS13},
		ServerTLS: TLS{SSLMode: "verify-full", CAFile: "/etc/ssl/ca.crt", MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS13,
			Ciphers: []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}},
		AuthType:  AuthSCRAM,
		AuthFile:  "testdata/good.txt",
		AuthQuery: defaultAuthQuery,
		PoolMode:  "transaction",
		UserSettings: []UserSetting{{
			Name: "alice", PoolMode: "transaction", PoolSize: 3, ReservePoolSize: 2, MaxConnections: 9, MaxClientConnections: 8,
			QueryWaitTimeout: -1, QueryTimeout: time.Second, IdleTransactionTimeout: 2 * time.Second,
			TransactionTimeout: 3 * time.Second, ClientIdleTimeout: 4 * time.Second,
		}},
		DNSMaxTTL: 41 * time.Second, DNSNotFoundTTL: 42 * time.Second, ServerFastClose: true,
		ServerRoundRobin: true, ServerCheckQuery: "select 1", ServerCheckDelay: 31 * time.Second, DisablePQExec: true, MaxPacketSize: 2048,
		QueryTimeout: 21 * time.Second, IdleTransactionTimeout: 22 * time.Second, TransactionTimeout: 23 * time.Second,
		ClientIdleTimeout: 24 * time.Second, QueryWaitNotify: 25 * time.Second, PoolIdleTimeout: 26 * time.Second,
		AutoDBIdleTimeout: 27 * time.Second, TCPDeferAccept: true, TCPKeepCount: 28, TCPKeepIdle: 29 * time.Second,
		TCPKeepInterval: 30 * time.Second, TCPUserTimeout: 31 * time.Millisecond, TCPSocketBuffer: 32,
		MinPoolSize: 1, ReservePoolSize: 2, ReservePoolTimeout: 3 * time.Second, MaxDBConnections: 11, MaxDBClientConnections: 12, MaxUserConnections: 13, MaxUserClientConnections: 14,
		ServerResetQueryAlways: true,
		DefaultPoolSize:        70,
		MaxClientConn:          4000,
		MaxPreparedStatements:  500,
		ServerConnectTimeout:   15 * time.Second,
		ServerLoginRetry:       15 * time.Second,
		ServerLifetime:         time.Hour,
		ServerIdleTimeout:      90*time.Second + 500*time.Millisecond,
		QueryWaitTimeout:       1500 * time.Millisecond,
		ClientLoginTimeout:     time.Minute,
		CancelWaitTimeout:      10 * time.Second,
		SuspendTimeout:         10 * time.Second,
		StatsPeriod:            30 * time.Second,
		LeakGuard:              "refuse",
		AdminUsers:             []string{"app", "postgres"},
		StatsUsers:             []string{"new"},
		ApplicationNameAddHost: true,
		TrustedBalancers: []netip.Prefix{
			netip.MustParsePrefix("192.168.1.100/32"), netip.MustParsePrefix("192.168.2.0/24"), netip.MustParsePrefix("2001:db8::/64"),
		},
		IgnoreStartupParameters: []string{"extra_float_digits", "search_path"},
		LogDisconnections:       true,
		LogStats:                true, SyslogFacility: "daemon", SyslogIdent: "pgbouncer", Peers: []Peer{{1, "192.168.1.5", 6433, 0}, {2, "/run/pgsteer", 6432, 4}}, PeerID: 3,
		LogPoolerErrors: true,
		Users: []User{
			{"app", `plain "quoted" password`},
			{"old", "md5e4f0b1c5d1c0a1d1f1f1b1c5d1c0a1d1"},
			{"new", "SCRAM-SHA-256$4096:AAAAAAAAAAAAAAAAAAAAAA==$" + key + ":" + key},
			{"nobody", ""},
		},
		Databases: []Database{
			{Name: "app", Host: "192.168.1.6", Port: 5432, DBName: "production", PoolSize: 70, MinPoolSize: -1, ReservePoolSize: 4, MaxConnections: 5, MaxClientConnections: 6, ServerLifetime: time.Minute, QueryWaitTimeout: -1},
			{Name: "two words", Host: "db.example.net", Port: 5432, DBName: "two words", User: "forced", Password: "it's = secret", PoolSize: 5},
			{Name: "reports", Host: "/run/postgresql,db2", LoadBalanceHosts: "disable", TargetSessionAttrs: "prefer-standby", Port: 5432, DBName: "reports", PoolSize: 70, PoolMode: "transaction", ReservePoolSize: -1},
		},
		Fallback: &Database{Name: "*", Host: "192.168.1.6", Port: 5432, PoolSize: 70},
	}
	settings := got.Settings
	got.Settings = nil
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}
	for _, want := range []Setting{
		{"admin_users", "app, postgres", ""}, {"max_client_conn", "4000", "100"}, {"query_wait_timeout", "1500ms", "120"},
		{"listen_port", "6432", "6432"}, {"auth_type", "SCRAM-SHA-256", "md5"}, {"query_timeout", "21", "0"},
		{"server_tls_sslmode", "verify-full", "prefer"}, {"max_user_connections", "13", "0"}, {"server_connect_timeout", "15", "15"},
	} {
		if !slices.Contains(settings, want) {
			t.Errorf("settings lack %+v", want)
		}
	}
	for _, s := range settings {
		switch s.Key {
		case "pkt_buf", "sbuf_loopcnt":
			t.Errorf("%s is listed, which says nothing about this pooler", s.Key)
		}
	}
	var texts []string
	for _, w := range warnings {
		texts = append(texts, w.String())
	}
	wantTexts := []string{
		"testdata/good.ini: cancel requests are not passed on to [peers] yet",
		"testdata/good.txt: the secrets in it can be read by everyone on this host (mode 0644)",
		`testdata/good.txt: user "postgres" of admin_users is not in it and cannot log in`,
		`testdata/good.txt: user "old" has an md5 secret and cannot log in with scram-sha-256`,
		`testdata/good.txt: user "nobody" has no password and cannot log in with scram-sha-256`,
	}
	if diff := cmp.Diff(wantTexts, texts); diff != "" {
		t.Errorf("warnings (-want +got):\n%s", diff)
	}
}

// TestLoadDefaults holds the defaults against those of PgBouncer 1.25.
func TestLoadDefaults(t *testing.T) {
	dir := t.TempDir()
	users := filepath.Join(dir, "users.txt")
	write(t, users, `"a" "b"`)
	ini := filepath.Join(dir, "pgbouncer.ini")
	write(t, ini, "[databases]\nd=host=h\n[pgbouncer]\nlisten_addr=*\nauth_file="+users)
	got, warnings, err := Load(ini)
	if err != nil || len(warnings) != 0 {
		t.Fatal(err, warnings)
	}
	want := Config{
		ListenAddr: []string{"*"}, ListenPort: 6432, ListenBacklog: 128, UnixSocketDir: "/tmp", UnixSocketMode: 0o777,
		ClientTLS: defaultTLS("disable"), ServerTLS: defaultTLS("prefer"),
		AuthType: AuthMD5, AuthQuery: defaultAuthQuery, AuthFile: users, Users: []User{{"a", "b"}},
		PoolMode: "session", ReservePoolTimeout: 5 * time.Second,
		DNSMaxTTL: 15 * time.Second, DNSNotFoundTTL: 15 * time.Second,
		ServerCheckQuery: "<empty>", ServerCheckDelay: 30 * time.Second, MaxPacketSize: 2147483647,
		QueryWaitNotify: 5 * time.Second, AutoDBIdleTimeout: 3600 * time.Second, TCPKeepAlive: true, ServerResetQuery: "DISCARD ALL",
		DefaultPoolSize: 20, MaxClientConn: 100, MaxPreparedStatements: 200,
		ServerConnectTimeout: 15 * time.Second, ServerLoginRetry: 15 * time.Second,
		ServerLifetime: 3600 * time.Second, ServerIdleTimeout: 600 * time.Second,
		QueryWaitTimeout: 120 * time.Second, ClientLoginTimeout: 60 * time.Second,
		CancelWaitTimeout: 10 * time.Second, SuspendTimeout: 10 * time.Second, StatsPeriod: 60 * time.Second, LeakGuard: "clean",
		LogConnections: true, LogDisconnections: true, LogPoolerErrors: true, LogStats: true, SyslogFacility: "daemon", SyslogIdent: "pgbouncer",
		Databases: []Database{{Name: "d", Host: "h", Port: 5432, DBName: "d", PoolSize: 20}},
	}
	for _, s := range got.Settings {
		given := map[string]string{"listen_addr": "*", "auth_file": users}[s.Key]
		if given == "" && s.Value != s.Default || given != "" && s.Value != given {
			t.Errorf("setting %+v", s)
		}
		if _, ok := defaultTexts[s.Key]; !ok && settings[s.Key].set != nil {
			t.Errorf("no default of %s", s.Key)
		}
	}
	got.Settings = nil
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestLoadBad loads each file of testdata/bad: its first line has the error.
func TestLoadBad(t *testing.T) {
	t.Chdir("testdata/bad")
	files, err := filepath.Glob("*")
	if err != nil {
		t.Fatal(err)
	}
	tested := 0
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		first, _, _ := strings.Cut(string(data), "\n")
		want, ok := strings.CutPrefix(first, "; want: ")
		if !ok {
			continue // included, or named, by another
		}
		tested++
		t.Run(f, func(t *testing.T) {
			ini := f
			if filepath.Ext(f) == ".txt" {
				ini = filepath.Join(t.TempDir(), "pgbouncer.ini")
				write(t, ini, "[databases]\nd=host=h\n[pgbouncer]\nlisten_addr=*\npool_mode=transaction\nauth_file="+f)
			}
			cfg, warnings, err := Load(ini)
			if err == nil {
				t.Fatalf("accepted, want %q", want)
			}
			if err.Error() != want {
				t.Errorf("got  %s\nwant %s", err, want)
			}
			if !cmp.Equal(cfg, Config{}) || warnings != nil {
				t.Error("something was returned beside the error")
			}
			_, ours := errors.AsType[*Error](err)
			if !ours && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("error is a %T", err)
			}
		})
	}
	if tested < 68 {
		t.Errorf("only %d fixtures found", tested)
	}
}

func TestLoadMissing(t *testing.T) {
	if _, _, err := Load(filepath.Join(t.TempDir(), "none.ini")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want a wrapped os.ErrNotExist", err)
	}
}

func TestLoadHuge(t *testing.T) {
	path := filepath.Join(t.TempDir(), "huge.ini")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(maxFileSize + 1); err != nil {
		t.Fatal(err)
	}
	_, _, err = Load(path)
	if want := path + ": is larger than 8 MiB"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestIncludeDepth(t *testing.T) {
	dir := t.TempDir()
	name := func(i int) string { return filepath.Join(dir, fmt.Sprintf("%d.ini", i)) }
	for i := range 12 {
		write(t, name(i), "%include "+name(i+1)+"\n")
	}
	_, _, err := Load(name(0))
	if want := name(10) + ":1: %include is nested more than 10 deep"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// TestKeysComplete holds the tables against the lists of PgBouncer 1.25's
// main.c and loader.c: a key we forgot would be called unknown.
func TestKeysComplete(t *testing.T) {
	for file, keys := range map[string][]string{
		"settings.keys":  keysOf(settings),
		"databases.keys": keysOf(databaseKeys),
		"users.keys":     keysOf(userKeys),
	} {
		data, err := os.ReadFile(filepath.Join("testdata", file))
		if err != nil {
			t.Fatal(err)
		}
		want := strings.Fields(string(data))
		if file == "settings.keys" {
			want = append(want, ownSettings...)
		}
		if file == "databases.keys" {
			want = append(want, ownDatabaseKeys...)
		}
		slices.Sort(want)
		if diff := cmp.Diff(want, keys); diff != "" {
			t.Errorf("%s (-want +got):\n%s", file, diff)
		}
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
