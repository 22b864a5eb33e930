package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// shows is a stand-in for pkg/stats.
type shows struct{ err error }

func (s shows) Stat() (string, error) { return "# pxname,\npostgres,\n", s.err }

func (s shows) Info() (string, error) { return "Name: pgsteer\n", s.err }

func (s shows) ServersState(backend string) (string, bool) {
	return "1\n# be_id of " + backend + "\n", backend != "nope"
}

// runtime starts a runtime socket beside the backends of start.
func runtime(t *testing.T, s RuntimeShows, log *slog.Logger) (*lb.Controller, func(string) string) {
	t.Helper()
	c := lb.NewController(new(fakeDatapath), discard)
	if err := c.SetServices([]lb.Service{{Name: "postgres", Backends: []lb.Backend{{Name: "pooler1", Weight: 2}, {Name: "pooler2", Weight: 1}}}}); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "haproxy.sock")
	r, err := OpenRuntime(RuntimeConfig{Socket: socket, Controller: c, Shows: s, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, r.Close()); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(socket); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket is left behind: %v", err)
		}
	})
	return c, func(line string) string {
		t.Helper()
		conn, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, line); err != nil {
			t.Fatal(err)
		}
		if err := conn.(*net.UnixConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(conn)
		if err != nil {
			t.Fatal(err)
		}
		return string(answer)
	}
}

// TestRuntime holds the answers that were HAProxy 2.6.12's, but for what is said of
// weight 0 and of commands that there are not.
func TestRuntime(t *testing.T) {
	var log safeBuffer
	c, say := runtime(t, shows{}, slog.New(slog.NewTextHandler(&log, nil)))
	state := func() string {
		b := c.Snapshot()[0]
		return fmt.Sprintf("%s %d", b.Admin, b.Weight)
	}
	for _, tt := range []struct{ line, answer, after string }{
		{"show stat\n", "# pxname,\npostgres,\n\n", "ready 2"},
		{"show info\n", "Name: pgsteer\n\n", "ready 2"},
		{"show servers state", "1\n# be_id of \n\n", "ready 2"}, // without a newline, the end will do
		{"set server postgres/pooler1 state drain\n", "\n", "draining 2"},
		{"set server postgres/pooler1 state maint\n", "\n", "maint 2"},
		{"set server postgres/pooler1 state ready\n", "\n", "ready 2"},
		{"disable server postgres/pooler1\n", "\n", "maint 2"},
		{"enable server postgres/pooler1\n", "\n", "ready 2"},
		{"set server postgres/pooler1 weight 7\n", "\n", "ready 7"},
		{"set weight postgres/pooler1 50%\n", "\n", "ready 1"},
		{"get weight postgres/pooler1\n", "1 (initial 2)\n\n", "ready 1"},
		{"set weight postgres/pooler1 5;get weight postgres/pooler1\n", "\n5 (initial 2)\n\n", "ready 5"},
		{"set server postgres/pooler1 weight abc\n", "Empty weight string empty or preceded by garbage\n\n", "ready 5"},
		{"set server postgres/pooler1 weight 300\n", "Absolute weight can only be between 1 and 256 inclusive; 'set server <srv> state drain' is for 0.\n\n", "ready 5"},
		{"set server postgres/pooler1 weight 0\n", "Absolute weight can only be between 1 and 256 inclusive; 'set server <srv> state drain' is for 0.\n\n", "ready 5"},
		{"set server postgres/pooler1 state foo\n", "'set server <srv> state' expects 'ready', 'drain' and 'maint'.\n\n", "ready 5"},
		{"set server postgres/pooler9 state maint\n", "No such server.\n\n", "ready 5"},
		{"disable server postgres\n", "Require 'backend/server'.\n\n", "ready 5"},
		{"set server postgres/pooler1\n", "usage: set server <backend>/<server> state | weight\n\n", "ready 5"},
		{"show servers state nope\n", "Can't find backend.\n\n", "ready 5"},
		{"quit\n", "\n", "ready 5"},
	} {
		if got := say(tt.line); got != tt.answer || state() != tt.after {
			t.Errorf("%q: %q, then %s", tt.line, got, state())
		}
	}
	if got := say("shutdown sessions\n"); !strings.HasPrefix(got, "Unknown command.\n") {
		t.Errorf("an unknown command: %q", got)
	}
	if by := fmt.Sprintf(`by="uid %d, pid %d"`, os.Getuid(), os.Getpid()); strings.Contains(log.String(), "ERROR") || c.Snapshot()[0].By != strings.Trim(strings.TrimPrefix(by, "by="), `"`) {
		t.Errorf("changed by %q; the log is %s", c.Snapshot()[0].By, log.String())
	}
	if got := say(strings.Repeat("x", maxLine)); got != "" {
		t.Errorf("a line without end: %q", got)
	}
	_, say = runtime(t, shows{errors.New("odd")}, discard)
	if got := say("show stat\n"); got != "odd\n\n" {
		t.Errorf("a failure: %q", got)
	}
}
