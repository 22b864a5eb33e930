package pooler

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
	"github.com/pgsteer/pgsteer/pkg/pooler/hba"
)

// tryLogin logs in and runs a query. Config is nil for plain text.
func tryLogin(t *testing.T, p *testPooler, user, password string, config *tls.Config) error {
	t.Helper()
	c, err := pgx.ParseConfig(dsn(p.host, p.port, "postgres"))
	if err != nil {
		t.Fatal(err)
	}
	c.User, c.Password = user, password
	c.TLSConfig = config
	conn, err := pgx.ConnectConfig(testContext(t), c)
	if err != nil {
		return err
	}
	defer conn.Close(context.Background())
	var name string
	return conn.QueryRow(testContext(t), "select current_user").Scan(&name)
}

func wantCode(t *testing.T, what string, err error, want string) {
	t.Helper()
	code := ""
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		code = e.Code
	}
	if code != want || want == "" && err != nil {
		t.Errorf("%s: %v, want %q", what, err, want)
	}
}

// forced is a database with a user of its own, so that it does not matter by
// what name a client comes.
func forced(c *Config) {
	c.Fallback.User, c.Fallback.Secret = testUser, pgwire.PlainSecret(testPassword)
	c.Users["somebody else"] = pgwire.PlainSecret("other")
}

// TestAuthTypes: who is let in under each type.
func TestAuthTypes(t *testing.T) {
	postgres(t)
	certs := pki(t)
	mtls := func(c *Config) {
		forced(c)
		c.ClientTLS = certs.clientTLS(TLSVerifyFull)
	}
	for _, tt := range []struct {
		name     string
		change   func(*Config)
		user     string
		password string
		tls      *tls.Config
		code     string // of the refusal
	}{
		{"plain", func(c *Config) { c.AuthMethod = pgwire.AuthPlain }, testUser, testPassword, nil, ""},
		{"plain, wrong password", func(c *Config) { c.AuthMethod = pgwire.AuthPlain }, testUser, "x", nil, "28P01"},
		{"plain, nobody", func(c *Config) { c.AuthMethod = pgwire.AuthPlain }, "nobody", "x", nil, "28P01"},
		{"any", func(c *Config) { forced(c); c.AuthType = AuthAny }, "nobody", "", nil, ""},
		{"any without forced user", func(c *Config) { c.AuthType = AuthAny }, testUser, testPassword, nil, "28000"},
		{"peer by TCP", func(c *Config) { c.AuthType = AuthPeer }, testUser, testPassword, nil, "28000"},
		{"cert", func(c *Config) { mtls(c); c.AuthType = AuthCert }, testUser, "", certs.trust(certs.client), ""},
		{"cert of another", func(c *Config) { mtls(c); c.AuthType = AuthCert }, testUser, "", certs.trust(certs.other), "28000"},
		{"cert of nobody", func(c *Config) { mtls(c); c.AuthType = AuthCert; delete(c.Users, "somebody else") }, "somebody else", "", certs.trust(certs.other), "28000"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := startPooler(t, tt.change)
			wantCode(t, tt.user, tryLogin(t, p, tt.user, tt.password, tt.tls), tt.code)
		})
	}
}

// TestAuthHBA: rules decide, the first that fits.
func TestAuthHBA(t *testing.T) {
	postgres(t)
	certs := pki(t)
	maps := map[string][]hba.Mapping{"m": {{System: "somebody else", User: testUser}}}
	rules, err := hba.Parse("hba", `
hostssl   all  `+testUser+` 127.0.0.1/32 cert map=m
host      all  rejected     all          reject
hostnossl all  `+testUser+` samehost     scram-sha-256
host      other all         all          trust
`, maps, os.ReadFile)
	if err != nil {
		t.Fatal(err)
	}
	p := startPooler(t, func(c *Config) {
		forced(c)
		c.Users["rejected"] = pgwire.PlainSecret("x")
		c.AuthType, c.HBA = AuthHBA, rules
		c.ClientTLS = certs.clientTLS(TLSAllow)
		c.ClientTLS.CAFile = certs.ca.cert
	})
	wantCode(t, "by certificate", tryLogin(t, p, testUser, "", certs.trust(certs.other)), "")
	wantCode(t, "by a certificate that is not in the map", tryLogin(t, p, testUser, "", certs.trust(certs.client)), "28000")
	wantCode(t, "without certificate", tryLogin(t, p, testUser, testPassword, certs.trust()), "28000")
	wantCode(t, "by password", tryLogin(t, p, testUser, testPassword, nil), "")
	wantCode(t, "by a wrong password", tryLogin(t, p, testUser, "x", nil), "28P01")
	wantCode(t, "rejected", tryLogin(t, p, "rejected", "x", nil), "28000")
	wantCode(t, "without a rule", tryLogin(t, p, "somebody else", "other", nil), "28000")
	for _, word := range []string{"login rejected", "no authentication method is found", "certificate authentication failed"} {
		if !strings.Contains(p.log.String(), word) {
			t.Errorf("the log lacks %q", word)
		}
	}
}

// TestChannelBindingPsql: libpq insists on SCRAM-SHA-256-PLUS, and a server sees
// that we use it, too.
func TestChannelBindingPsql(t *testing.T) {
	psql, err := exec.LookPath("psql")
	if err != nil {
		t.Skip("needs psql")
	}
	p := startPooler(t, func(c *Config) {
		c.ClientTLS = pki(t).clientTLS(TLSRequire)
		c.ServerTLS = TLS{Mode: TLSRequire}
	})
	cmd := exec.Command(psql, "-X", "-A", "-t", "-c", "select 1", fmt.Sprintf("host=127.0.0.1 port=%d user=%s dbname=postgres sslmode=require channel_binding=require", p.port, testUser))
	cmd.Env = append(os.Environ(), "PGPASSWORD="+testPassword)
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "1\n" {
		t.Fatalf("psql: %v\n%s", err, out)
	}
}
