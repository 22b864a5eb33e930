package pooler

import (
	"bytes"
	"context"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// roles makes users in the database, with the password of each.
func roles(t *testing.T, statements ...string) {
	t.Helper()
	host, port := postgres(t)
	ctx := testContext(t)
	conn, err := pgx.Connect(ctx, dsn(host, port, "postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	for _, s := range statements {
		if _, err := conn.Exec(ctx, s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}

// TestAuthQuery: users who are in the database alone log in, with each kind of
// secret, and their servers with what was found.
func TestAuthQuery(t *testing.T) {
	roles(t, "drop role if exists q_scram, q_md5, q_expired, q_nologin",
		"create role q_scram login password 'sc''ram'", "set password_encryption = md5", "create role q_md5 login password 'md5 pw'",
		"create role q_expired login password 'x' valid until '2001-01-01'", "create role q_nologin password 'x'")
	p := startPooler(t, func(c *Config) {
		c.AuthMethod = pgwire.AuthMD5 // which is SCRAM for those who have a verifier
		c.AuthUser = testUser
	})
	for _, tt := range []struct{ user, password, code string }{
		{"q_scram", "sc'ram", ""}, {"q_scram", "wrong", "28P01"},

		// The tests' server wants SCRAM, for which an md5 secret is of no use: that
		// is seen after the login.
		{"q_md5", "md5 pw", "08006"}, {"q_md5", "wrong", "28P01"},
		{"q_expired", "x", "28P01"}, {"q_nologin", "x", "28P01"}, {"q_nobody", "x", "28P01"},
		{"q'; drop role q_md5; --", "x", "28P01"},
		{testUser, testPassword, ""}, // in the user list
	} {
		wantCode(t, tt.user+" with "+tt.password, tryLogin(t, p, tt.user, tt.password, nil), tt.code)
	}
	until(t, "nothing of it to be left", func() bool { return p.Snapshot().Clients == 0 })
	p.quiet()
}

// TestAuthQueryBounds: those who guess names take few servers, and one answer
// does for many.
func TestAuthQueryBounds(t *testing.T) {
	p := startPooler(t, func(c *Config) { c.AuthUser, c.PoolSize = testUser, 3 })
	before := p.pool().Queries
	var wg sync.WaitGroup
	for range 40 {
		wg.Go(func() { wantCode(t, "nobody", tryLogin(t, p, "q_guess", "x", nil), "28P01") })
	}
	wg.Wait()
	until(t, "the clients to be gone", func() bool { return p.Snapshot().Clients == 0 })
	if asked := p.pool().Queries - before; asked < 1 || asked > 10 {
		t.Errorf("%d questions", asked)
	}
}

// TestAuthQueryFails: a query that fails or answers nonsense lets nobody in, and
// does not tell the client why.
func TestAuthQueryFails(t *testing.T) {
	for query, want := range map[string]string{
		"select $1::text, 'x', 'y'":               "expected 2 columns",
		"select null::text, $1::text":             "null user name",
		"select 'someone else', $1::text":         "answered about",
		"select 1/0, $1::text":                    "division by zero",
		"select $1::text, 'SCRAM-SHA-256$broken'": "malformed SCRAM",
		"nonsense $1":                             "syntax error",
	} {
		t.Run(want, func(t *testing.T) {
			p := startPooler(t, func(c *Config) { c.AuthUser, c.AuthQuery = testUser, query })
			err := tryLogin(t, p, "somebody", "x", nil)
			wantCode(t, query, err, "28000")
			if err == nil || strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "bouncer config error") {
				t.Errorf("the client got %v", err)
			}
			if !strings.Contains(p.log.String(), want) {
				t.Errorf("the log lacks %q", want)
			}
			p.quiet()
		})
	}
	t.Run("auth_dbname", func(t *testing.T) {
		p := startPooler(t, func(c *Config) { c.AuthUser, c.AuthDBName = testUser, "pgbouncer" })
		wantCode(t, "the console", tryLogin(t, p, "somebody", "x", nil), "28000")
	})
}

// FuzzParseRow: no row of a server's breaks the parser.
func FuzzParseRow(f *testing.F) {
	f.Add([]byte("\x00\x02\x00\x00\x00\x01a\xff\xff\xff\xff"))
	f.Add([]byte("\xff\xff\x7f\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		columns, ok := parseRow(b)
		if ok && len(bytes.Join(columns, nil))+2+4*len(columns) != len(b) {
			t.Errorf("%d columns of %d bytes", len(columns), len(b))
		}
	})
}
