package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

var discard = slog.New(slog.DiscardHandler)

// fakeDatapath takes everything, or nothing.
type fakeDatapath struct {
	mu  sync.Mutex
	err error
}

func (f *fakeDatapath) result() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

func (f *fakeDatapath) SetServices([]lb.Service) error      { return f.result() }
func (f *fakeDatapath) SetBackend(string, lb.Backend) error { return f.result() }
func (f *fakeDatapath) ResetFlows(string, string) error     { return f.result() }

// start serves a controller with one service of two backends, one of them up.
func start(t *testing.T, log *slog.Logger) (*Client, *fakeDatapath, string) {
	t.Helper()
	dp := &fakeDatapath{}
	c := lb.NewController(dp, log)
	err := c.SetServices([]lb.Service{{
		Name: "postgres", Addr: netip.MustParseAddrPort("[fd00::100]:5432"),
		Backends: []lb.Backend{
			{Name: "pooler1", Addr: netip.MustParseAddrPort("[fd00::5]:6432"), Weight: 1},
			{Name: "pooler2", Addr: netip.MustParseAddrPort("[fd00::5]:6433"), Weight: 2, MaxConnections: 70, Backup: true},
		},
	}})
	if err == nil {
		err = c.SetHealth("postgres", "pooler1", true, "ok")
	}
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "run", "admin.sock")
	s, err := Open(Config{Socket: socket, Controller: c, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, s.Close()); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(socket); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket is left behind: %v", err)
		}
	})
	return NewClient(socket), dp, socket
}

func ptr[T any](v T) *T { return &v }

func TestChangeBackend(t *testing.T) {
	var log safeBuffer
	c, _, _ := start(t, slog.New(slog.NewTextHandler(&log, nil)))
	before, err := c.Backends(t.Context())
	if err != nil || len(before) != 2 || before[0].State != lb.Up || before[1].Weight != 2 || !before[1].Backup {
		t.Fatalf("%+v, %v", before, err)
	}
	got, err := c.ChangeBackend(t.Context(), "postgres", "pooler1", BackendChange{
		State: "draining", Deadline: ptr("1h"), Weight: ptr(uint16(7)), MaxConnections: ptr(uint32(100)),
	})
	if err != nil {
		t.Fatal(err)
	}
	by := fmt.Sprintf("uid %d, pid %d", os.Getuid(), os.Getpid())
	if got.State != lb.Draining || got.Admin != lb.AdminDraining || got.Weight != 7 || got.MaxConnections != 100 || got.By != by {
		t.Errorf("got %+v", got)
	}
	if d := time.Until(*got.Deadline); d > time.Hour || d < time.Hour-time.Minute {
		t.Errorf("deadline in %s", d)
	}
	if after, err := c.Backends(t.Context()); err != nil || after[0].By != by || after[0].State != lb.Draining {
		t.Errorf("%+v, %v", after, err)
	}
	if text := log.String(); !strings.Contains(text, `by="`+by+`"`) || !strings.Contains(text, "weight=7") {
		t.Errorf("logged:\n%s", text)
	}
}

// safeBuffer collects a log that several goroutines write.
type safeBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func TestRefusals(t *testing.T) {
	c, dp, _ := start(t, discard)
	for _, tt := range []struct {
		name             string
		service, backend string
		change           BackendChange
		status           int
		want             string
	}{
		{"unknown backend", "postgres", "pooler9", BackendChange{State: "maint"}, 404, "unknown backend: postgres/pooler9"},
		{"unknown service", "a/b", "..x", BackendChange{State: "maint"}, 404, "unknown backend: a/b/..x"},
		{"nothing", "postgres", "pooler1", BackendChange{}, 400, "bad change: it changes nothing"},
		{"unknown state", "postgres", "pooler1", BackendChange{State: "up"}, 400, `bad change: state "up" is not one of ready, draining, maint`},
		{"deadline", "postgres", "pooler1", BackendChange{State: "draining", Deadline: ptr("60")}, 400, `bad change: deadline "60" is not a duration; write 30s, 5m or 1h`},
		{"weight", "postgres", "pooler1", BackendChange{Weight: ptr(uint16(300))}, 400, "bad change: weight 300 is out of range; want 1 to 256, and draining for no new connections"},
		{"not draining", "postgres", "pooler1", BackendChange{Deadline: ptr("1s")}, 409, "not possible: it has no deadline, because it is not draining"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := c.ChangeBackend(t.Context(), tt.service, tt.backend, tt.change)
			var e *Error
			if !errors.As(err, &e) || e.Status != tt.status || e.Message != tt.want {
				t.Errorf("got %v", err)
			}
		})
	}
	dp.mu.Lock()
	dp.err = errors.New("odd")
	dp.mu.Unlock()
	_, err := c.ChangeBackend(t.Context(), "postgres", "pooler1", BackendChange{State: "maint"})
	var e *Error
	if !errors.As(err, &e) || e.Status != 500 || e.Message != "setting postgres/pooler1 maint: odd" {
		t.Errorf("got %v", err)
	}
	if all, err := c.Backends(t.Context()); err != nil || all[0].State != lb.Up {
		t.Errorf("after all refusals: %+v, %v", all, err)
	}
}

// TestBadRequests speaks HTTP that the client does not.
func TestBadRequests(t *testing.T) {
	c, _, _ := start(t, discard)
	const path = "/v1/services/postgres/backends/pooler1"
	for _, tt := range []struct {
		name, method, path, body string
		status                   int
		want                     string
	}{
		{"empty", "PATCH", path, "", 400, "the request has no body"},
		{"not JSON", "PATCH", path, "drain!", 400, "the request makes no sense: invalid character 'd' looking for beginning of value"},
		{"unknown key", "PATCH", path, `{"stat": "maint"}`, 400, `the request makes no sense: json: unknown field "stat"`},
		{"too much", "PATCH", path, `{"state": "maint"} {}`, 400, "the request goes on after its end"},
		{"number out of range", "PATCH", path, `{"weight": 70000}`, 400, "the request makes no sense: json: cannot unmarshal number 70000 into Go struct field BackendChange.weight of type uint16"},
		{"too long", "PATCH", path, `{"state": "` + strings.Repeat("x", maxBody) + `"}`, 400, "the request is longer than 4096 bytes"},
		{"unknown path", "GET", "/v2", "", 404, "there is no GET /v2"},
		{"unknown method", "DELETE", "/v1/backends", "", 404, "there is no DELETE /v1/backends"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := http.NewRequestWithContext(t.Context(), tt.method, "http://pgsteerd"+tt.path, strings.NewReader(tt.body))
			if err != nil {
				t.Fatal(err)
			}
			answer, err := c.http.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer answer.Body.Close()
			body, err := io.ReadAll(answer.Body)
			if err != nil {
				t.Fatal(err)
			}
			var f failure
			if err := json.Unmarshal(body, &f); err != nil || answer.StatusCode != tt.status || f.Error != tt.want {
				t.Errorf("%d %s (%v)", answer.StatusCode, body, err)
			}
		})
	}
	if all, err := c.Backends(t.Context()); err != nil || all[0].State != lb.Up {
		t.Errorf("after all refusals: %+v, %v", all, err)
	}
}

func TestNobodyListens(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "admin.sock")
	want := "the daemon is not running: nobody listens on " + socket
	for _, prepare := range []func(){func() {}, func() { leaveStale(t, socket) }} {
		prepare()
		if _, err := NewClient(socket).Backends(t.Context()); !errors.Is(err, ErrNotRunning) || err.Error() != want {
			t.Errorf("got %v", err)
		}
	}
}

// leaveStale leaves a socket as a process does that is killed.
func leaveStale(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "admin.sock")
	old := unix.Umask(0o077) // of deploy's unit
	first, err := listen(path, discard)
	unix.Umask(old)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Dir(path)); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("mode of the directory %v, %v", info.Mode(), err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != socketMode {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	// One that is in use is left alone, and goes on working.
	if _, err := listen(path, discard); !errors.Is(err, ErrInUse) || err.Error() != "another process listens on "+path {
		t.Errorf("got %v", err)
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	// One of an earlier life is replaced, by mode and all.
	leaveStale(t, path)
	second, err := listen(path, discard)
	if err != nil {
		t.Fatal(err)
	}
	// What has taken its name meanwhile is not removed with it.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	leaveStale(t, path+".other")
	if err := os.Rename(path+".other", path); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(second.Close(), second.Close()); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("somebody else's socket is gone: %v", err)
	}
	// What is no socket is not touched.
	if err := errors.Join(os.Remove(path), os.WriteFile(path, []byte("precious"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := listen(path, discard); err == nil || err.Error() != path+" is there and is no socket" {
		t.Errorf("got %v", err)
	}
}

// TestSocketIsNeverOpenToAll checks the mode that the name is born with, for a
// process with the most generous mask.
func TestSocketIsNeverOpenToAll(t *testing.T) {
	old := unix.Umask(0)
	defer unix.Umask(old)
	path := filepath.Join(t.TempDir(), "admin.sock")
	l, err := bind(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// TestConnectionsAreBounded holds all that are possible open, without a word,
// and checks that a request is answered as soon as one of them ends.
func TestConnectionsAreBounded(t *testing.T) {
	c, _, socket := start(t, discard)
	var silent []net.Conn
	for range maxConns {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		silent = append(silent, conn)
	}
	// Those in the listener's queue are accepted in their order.
	answered := make(chan error, 1)
	go func() {
		_, err := c.Backends(t.Context())
		answered <- err
	}()
	select {
	case err := <-answered:
		t.Fatalf("answered beyond the bound: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	silent[3].Close()
	if err := <-answered; err != nil {
		t.Error(err)
	}
}
