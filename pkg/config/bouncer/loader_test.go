package bouncer

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestLoader: what is set stays until the file is loaded again, and a file that
// changed meanwhile does not come into force by it.
func TestLoader(t *testing.T) {
	dir := t.TempDir()
	ini, inc, users := filepath.Join(dir, "a.ini"), filepath.Join(dir, "b.ini"), filepath.Join(dir, "users")
	write(t, users, `"a" "b"`)
	write(t, inc, "max_client_conn = 7\n")
	text := "[databases]\nd=host=h\n[pgbouncer]\nlisten_addr=*\nauth_file=" + users + "\n%include " + inc + "\n"
	write(t, ini, text)
	l := NewLoader(ini)
	check := func(what string, c Config, err error, clients, pool int) {
		t.Helper()
		if err != nil || c.MaxClientConn != clients || c.DefaultPoolSize != pool {
			t.Errorf("%s: %v, %d clients and %d servers, want %d and %d", what, err, c.MaxClientConn, c.DefaultPoolSize, clients, pool)
		}
	}
	c, _, err := l.Load()
	check("first", c, err, 7, 20)
	write(t, inc, "max_client_conn = nonsense\n")
	c, _, err = l.Set("default_pool_size", "3")
	check("set", c, err, 7, 3)
	for key, want := range map[string]string{"default_pool_sizes": "did you mean", "max_client_conn": "is not a number"} {
		if _, _, err = l.Set(key, "x"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("set %s: %v", key, err)
		}
	}
	if _, _, err := l.Load(); err == nil || !strings.HasPrefix(err.Error(), inc+":1: ") {
		t.Errorf("bad file: %v", err)
	}
	c, _, err = l.Set("max_client_conn", "8")
	check("set after a bad file", c, err, 8, 3)
	l.Unset()
	c, _, err = l.Set("default_pool_size", "4")
	check("taken back", c, err, 7, 4)
	write(t, inc, "max_client_conn = 9\n")
	c, _, err = l.Load()
	check("loaded", c, err, 9, 20)
	for key, want := range map[string]bool{"listen_port": false, "max_client_conn": true} {
		if Changeable(key) != want {
			t.Errorf("%s: changeable is not %v", key, want)
		}
	}
	for _, key := range fixed {
		if _, ok := settings[key]; !ok {
			t.Errorf("%s is no key", key)
		}
	}
}
