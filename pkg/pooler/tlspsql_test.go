package pooler

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestTLSPsql: libpq as Debian has it.
func TestTLSPsql(t *testing.T) {
	psql, err := exec.LookPath("psql")
	if err != nil {
		t.Skip("needs psql")
	}
	p := startPooler(t, func(c *Config) {
		c.ClientTLS = pki(t).clientTLS(TLSRequire)
		c.AdminUsers = []string{testUser}
	})
	run := func(db, sql string) string {
		cmd := exec.Command(psql, "-X", "-A", "-t", "-c", sql, fmt.Sprintf("host=localhost hostaddr=127.0.0.1 port=%d user=%s dbname=%s sslmode=verify-full sslrootcert=%s",
			p.port, testUser, db, pki(t).ca.cert))
		cmd.Env = append(os.Environ(), "PGPASSWORD="+testPassword, "PGCLIENTENCODING=UTF8")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("psql: %v\n%s", err, out)
		}
		return string(out)
	}
	if got := run("postgres", "select repeat('x', 5), 1"); got != "xxxxx|1\n" {
		t.Errorf("got %q", got)
	}
	if got := run("postgres", "select repeat('x', 3000000)"); len(got) != 3000001 {
		t.Errorf("got %d bytes", len(got))
	}
	raw := dialRaw(t, p)
	if got := run("pgbouncer", "show clients"); !strings.Contains(got, "|TLSv1.3/TLS_") {
		t.Errorf("show clients: %q", got)
	}
	raw.send(terminateMsg)
}
