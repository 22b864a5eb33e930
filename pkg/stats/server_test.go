package stats

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"

	"github.com/pgsteer/pgsteer/pkg/stats/web"
	"github.com/pgsteer/pgsteer/pkg/vrrp"
)

var (
	discard   = slog.New(slog.DiscardHandler)
	goVersion = runtime.Version()
)

func get(h http.Handler, path string) *httptest.ResponseRecorder { return ask(h, http.MethodGet, path) }

func ask(h http.Handler, method, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, path, nil))
	return w
}

func TestHandler(t *testing.T) {
	h, err := newHandler(Config{Snapshot: sample, Log: discard})
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		method, path string
		status       int
		contains     string
	}{
		{"GET", "/stats", 200, `<meta http-equiv="refresh"`},
		{"HEAD", "/stats", 200, ""},
		{"GET", "/stats?norefresh", 200, `<a href="/stats">Enable refresh</a>`},
		{"GET", "/stats;norefresh", 200, `<a href="/stats">Enable refresh</a>`},
		{"GET", "/stats;csv", 200, "# pxname,svname,"},
		{"GET", "/stats;csv;norefresh", 200, "# pxname,svname,"},
		{"POST", "/stats;csv", 404, ""},
		{"GET", "/status", 200, `<meta http-equiv="refresh"`},
		{"GET", "/status?norefresh", 200, `<a href="/status">`},
		{"POST", "/stats", 405, "Method Not Allowed"},
		{"GET", "/stats/more", 404, ""},
		{"GET", "/metrics", 200, "pgsteer_backend_up{"},
		{"GET", "/metrics", 200, "go_goroutines "},
		{"GET", "/metrics", 200, "process_open_fds "},
		{"PUT", "/metrics", 405, ""},
		{"GET", "/healthz", 200, "ok\n"},
		{"DELETE", "/healthz", 405, ""},
		{"GET", "/", 303, "/stats"},
		{"GET", "/other", 404, ""},
	}
	for _, tt := range tests {
		w := ask(h, tt.method, tt.path)
		if w.Code != tt.status || !strings.Contains(w.Body.String(), tt.contains) {
			t.Errorf("%s %s: status %d, want %d with %q", tt.method, tt.path, w.Code, tt.status, tt.contains)
		}
	}
	header := get(h, "/stats").Header()
	for key, want := range map[string]string{
		"Content-Type": "text/html; charset=utf-8", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff",
		"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
	} {
		if got := header.Get(key); got != want {
			t.Errorf("%s: got %q, want %q", key, got, want)
		}
	}
}

func TestHealthz(t *testing.T) {
	s := sample()
	h, err := newHandler(Config{Snapshot: func() Snapshot { return s }, Log: discard})
	if err != nil {
		t.Fatal(err)
	}
	s.DatapathErr = errors.New("odd")
	if w := get(h, "/healthz"); w.Code != 503 || w.Body.String() != "reading the datapath: odd\n" {
		t.Errorf("unreadable datapath: %d %q", w.Code, w.Body)
	}
	s.DatapathErr = nil
	s.Routers[0].State = vrrp.Init
	if w := get(h, "/healthz"); w.Code != 503 || w.Body.String() != "virtual router main is not running\n" {
		t.Errorf("router not running: %d %q", w.Code, w.Body)
	}
	s.Routers[0].State = vrrp.Backup
	if w := get(h, "/healthz"); w.Code != 200 {
		t.Errorf("backup: %d %q", w.Code, w.Body)
	}
}

// TestServer runs the real thing on a loopback port: serve, stop, port free.
func TestServer(t *testing.T) {
	s, err := Open(Config{Listen: "127.0.0.1:0", Snapshot: sample, Log: discard})
	if err != nil {
		t.Fatal(err)
	}
	addr := s.Addr().String()
	if _, err := Open(Config{Listen: addr, Snapshot: sample, Log: discard}); err == nil || !strings.HasPrefix(err.Error(), "opening the stats port: ") {
		t.Errorf("second server on the port: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	resp, err := http.Get("http://" + addr + "/stats")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != 200 || !strings.Contains(string(body), "pooler1") {
		t.Errorf("status %d", resp.StatusCode)
	}
	// A client that never asks must not hold up the end.
	idle, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run returned %v", err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("Close after Run: %v", err)
	}
	again, err := Open(Config{Listen: addr, Snapshot: sample, Log: discard})
	if err != nil {
		t.Fatalf("the port is not free: %v", err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

// TestServerBadRequests checks that what is no HTTP, or too much of it, is
// answered and ended.
func TestServerBadRequests(t *testing.T) {
	s, err := Open(Config{Listen: "127.0.0.1:0", Snapshot: sample, Log: discard})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	for name, request := range map[string]string{
		"garbage":      "\x16\x03\x01\x00\xee\x01\r\n\r\n",
		"large header": "GET /stats HTTP/1.1\r\nHost: x\r\nCookie: " + strings.Repeat("x", 2*web.MaxHeader) + "\r\n\r\n",
	} {
		conn, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprint(conn, request); err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(conn) // until the server closes; a reset is fine once it has answered
		if !strings.HasPrefix(string(answer), "HTTP/1.1 4") {
			t.Errorf("%s: answered %q, %v", name, answer, err)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
}
