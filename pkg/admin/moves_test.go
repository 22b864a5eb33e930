package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/flowsync"
	"github.com/pgsteer/pgsteer/pkg/lb"
	"github.com/pgsteer/pgsteer/pkg/vrrp"
)

// fakeRouter does as it is told, or fails.
type fakeRouter struct {
	mu    sync.Mutex
	state vrrp.Snapshot
	err   error
	hangs chan struct{} // not nil: an order takes for ever, and closes it when withdrawn
	told  []string      // shared with the link, so that the order shows
}

func (f *fakeRouter) note(what string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.told = append(f.told, what)
}

func (f *fakeRouter) Snapshot() vrrp.Snapshot {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state
}

func (f *fakeRouter) order(ctx context.Context, what, reason string, to vrrp.State) error {
	f.note(what + ": " + reason)
	if f.hangs != nil {
		<-ctx.Done()
		close(f.hangs)
		return ctx.Err()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.state.State, f.state.Reason = to, reason
	}
	return f.err
}

func (f *fakeRouter) Resign(ctx context.Context, reason string) error {
	return f.order(ctx, "resign", reason, vrrp.Backup)
}

func (f *fakeRouter) Takeover(ctx context.Context, reason string) error {
	return f.order(ctx, "takeover", reason, vrrp.Active)
}

// fakeLink is a link whose state a test sets.
type fakeLink struct {
	status flowsync.Status
	err    error  // of Drain
	copied func() // during Drain; may be nil
	router *fakeRouter
}

func (f *fakeLink) Status() flowsync.Status { return f.status }

func (f *fakeLink) Drain(ctx context.Context) error {
	limit, ok := ctx.Deadline()
	if left := time.Until(limit); !ok || left > drainTime {
		return fmt.Errorf("bounded by %v", left)
	}
	f.router.note("drain")
	if f.copied != nil {
		f.copied()
	}
	return f.err
}

// startMoves serves the virtual router main, active on this node, with a link
// over which all is well.
func startMoves(t *testing.T, log *slog.Logger) (*Client, *fakeRouter, *fakeLink) {
	t.Helper()
	router := &fakeRouter{state: vrrp.Snapshot{
		Name: "main", VRID: 51, State: vrrp.Active, Priority: 101, EffectivePriority: 101, Source: netip.MustParseAddr("192.168.1.10"),
		Peer:    vrrp.Peer{Address: netip.MustParseAddr("192.168.1.11"), Priority: 100, Ago: time.Second, Checksum: vrrp.ChecksumPseudo},
		History: []vrrp.Change{{At: time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC), From: vrrp.Backup, To: vrrp.Active, Reason: "silence"}},
	}}
	link := &fakeLink{router: router, status: flowsync.Status{
		Connected: true, Synced: true, PeerSynced: true, PeerNode: "lb2",
		PeerState: &flowsync.State{Node: "lb2", Routers: []flowsync.RouterState{
			{Name: "six", VRID: 51, V6: true, State: "init"}, {Name: "main", VRID: 51, State: "backup"},
		}},
	}}
	return serve(t, Config{
		Log: log, Routers: func() []Router { return []Router{router} }, Replication: func() Replication { return link },
	}), router, link
}

// serve runs a server on a socket of its own.
func serve(t *testing.T, cfg Config) *Client {
	t.Helper()
	cfg.Socket = filepath.Join(t.TempDir(), "admin.sock")
	cfg.Controller = lb.NewController(&fakeDatapath{}, cfg.Log)
	s, err := Open(cfg)
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
	})
	return NewClient(cfg.Socket)
}

func TestMoves(t *testing.T) {
	var log safeBuffer
	c, router, _ := startMoves(t, slog.New(slog.NewTextHandler(&log, nil)))
	by := fmt.Sprintf("uid %d, pid %d", os.Getuid(), os.Getpid())
	got, err := c.Resign(t.Context(), "main", Move{Reason: "new kernel"})
	if err != nil || got.State != vrrp.Backup || got.Reason != "new kernel (told to resign by "+by+")" {
		t.Errorf("%+v, %v", got, err)
	}
	got, err = c.Takeover(t.Context(), "main", Move{})
	if err != nil || got.State != vrrp.Active || got.Reason != "told to take over by "+by {
		t.Errorf("%+v, %v", got, err)
	}
	want := "drain, resign: new kernel (told to resign by " + by + "), takeover: told to take over by " + by
	if told := strings.Join(router.told, ", "); told != want {
		t.Errorf("the router was told %s", told)
	}
	for _, want := range []string{`router=main order=resign by="` + by + `" reason="new kernel" force=false`, `order="take over" by="` + by} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("%s is not in the log:\n%s", want, log.String())
		}
	}

	all, err := c.Routers(t.Context())
	if err != nil || len(all) != 1 {
		t.Fatalf("%+v, %v", all, err)
	}
	r := all[0]
	if r.Name != "main" || r.State != vrrp.Active || r.Peer.Priority != 100 || r.Peer.Checksum != vrrp.ChecksumPseudo || r.Peer.Ago != time.Second ||
		len(r.History) != 1 || r.History[0].From != vrrp.Backup || r.History[0].To != vrrp.Active || r.History[0].Reason != "silence" {
		t.Errorf("got %+v", r)
	}
	if s, err := c.Sync(t.Context()); err != nil || s.PeerNode != "lb2" || s.PeerState.Routers[1].State != "backup" {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestMoveWithoutBody(t *testing.T) {
	c, _, _ := startMoves(t, discard)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://pgsteerd/v1/routers/main/resign", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := c.http.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if body, err := io.ReadAll(answer.Body); answer.StatusCode != http.StatusOK || !strings.Contains(string(body), `"state":"backup"`) {
		t.Errorf("%d %s (%v)", answer.StatusCode, body, err)
	}
}

func TestMovesRefused(t *testing.T) {
	const forced = "; force resigns all the same"
	peer := func(l *fakeLink) *flowsync.RouterState { return &l.status.PeerState.Routers[1] }
	for _, tt := range []struct {
		name     string
		prepare  func(*fakeRouter, *fakeLink)
		takeover bool
		router   string
		move     Move
		status   int
		want     string
	}{
		{"unknown", nil, false, "man", Move{}, 404, "unknown virtual router: man"},
		{"long reason", nil, false, "main", Move{Reason: strings.Repeat("x", 201)}, 400, "the reason is longer than 200 bytes"},
		{"two lines", nil, false, "main", Move{Reason: "a\nb"}, 400, "the reason is not one line of text"},
		{"not connected", func(_ *fakeRouter, l *fakeLink) { l.status.Connected = false }, false, "main", Move{}, 409, "not now: the other node is not connected" + forced},
		{"said nothing", func(_ *fakeRouter, l *fakeLink) { l.status.PeerState = nil }, false, "main", Move{}, 409, "not now: the other node is not connected" + forced},
		{"not synced", func(_ *fakeRouter, l *fakeLink) { l.status.PeerSynced = false }, false, "main", Move{}, 409, "not now: lb2 has no full copy of the connections" + forced},
		{"at fault", func(_ *fakeRouter, l *fakeLink) { peer(l).State, peer(l).Reason = "init", "link down" }, false, "main", Move{}, 409, "not now: lb2 is no backup of main, but init: link down" + forced},
		{"without it", func(_ *fakeRouter, l *fakeLink) { peer(l).VRID = 52 }, false, "main", Move{}, 409, "not now: lb2 does not have the virtual router main" + forced},
		{"no copy here", func(r *fakeRouter, l *fakeLink) { r.state.State, l.status.Synced = vrrp.Backup, false }, true, "main", Move{}, 409, "not now: this node has no full copy of the connections; force takes over all the same"},
		{"router's sentence", func(r *fakeRouter, _ *fakeLink) { r.err = errors.New("a sentence") }, true, "main", Move{Force: true}, 409, "a sentence"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, router, link := startMoves(t, discard)
			if tt.prepare != nil {
				tt.prepare(router, link)
			}
			order := c.Resign
			if tt.takeover {
				order = c.Takeover
			}
			_, err := order(t.Context(), tt.router, tt.move)
			var e *Error
			if !errors.As(err, &e) || e.Status != tt.status || e.Message != tt.want {
				t.Errorf("got %v", err)
			}
			if told := strings.Join(router.told, ""); router.err == nil && told != "" && told != "drain" {
				t.Errorf("the router was told %q", router.told)
			}
		})
	}
}

// TestMovesForced checks that force, or that there is nothing to lose, gets past
// what refuses a move, and that a failed drain only warns.
func TestMovesForced(t *testing.T) {
	var log safeBuffer
	c, router, link := startMoves(t, slog.New(slog.NewTextHandler(&log, nil)))
	link.status, link.err = flowsync.Status{}, errors.New("odd")
	if got, err := c.Resign(t.Context(), "main", Move{Force: true}); err != nil || got.State != vrrp.Backup || router.told[0] != "drain" {
		t.Errorf("%+v, %v, %q", got, err, router.told)
	}
	if !strings.Contains(log.String(), "the other node may not know of all connections") {
		t.Errorf("logged:\n%s", log.String())
	}
	if got, err := c.Resign(t.Context(), "main", Move{}); err != nil || got.State != vrrp.Backup || strings.Join(router.told[2:], "") != router.told[1] {
		t.Errorf("of a backup: %+v, %v, %q", got, err, router.told)
	}
	if got, err := c.Takeover(t.Context(), "main", Move{Force: true}); err != nil || got.State != vrrp.Active {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := c.Takeover(t.Context(), "main", Move{}); err != nil || got.State != vrrp.Active {
		t.Errorf("of the active node: %+v, %v", got, err)
	}
}

// TestResignWaitsForCopy resigns right after a move, when a full copy is under
// way.
func TestResignWaitsForCopy(t *testing.T) {
	c, _, link := startMoves(t, discard)
	link.status.PeerSynced = false
	link.copied = func() { link.status.PeerSynced = true }
	if got, err := c.Resign(t.Context(), "main", Move{}); err != nil || got.State != vrrp.Backup {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestMovesWithoutReplication(t *testing.T) {
	router := &fakeRouter{state: vrrp.Snapshot{Name: "main", State: vrrp.Active}}
	c := serve(t, Config{Log: discard, Routers: func() []Router { return []Router{router} }})
	if _, err := c.Resign(t.Context(), "main", Move{}); err != nil {
		t.Error(err)
	}
	if _, err := c.Takeover(t.Context(), "main", Move{}); err != nil {
		t.Error(err)
	}
	var e *Error
	if _, err := c.Sync(t.Context()); !errors.As(err, &e) || e.Status != 404 || e.Message != "connections are not replicated: sync is not configured" {
		t.Errorf("got %v", err)
	}
	none := serve(t, Config{Log: discard})
	if all, err := none.Routers(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("%+v, %v", all, err)
	}
}

// TestMoveTakesTooLong waits longer than any other request may take, so that it
// shows whether the connection bears it.
func TestMoveTakesTooLong(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 10 s")
	}
	t.Parallel()
	c, router, _ := startMoves(t, discard)
	router.hangs = make(chan struct{})
	begin := time.Now()
	_, err := c.Takeover(t.Context(), "main", Move{})
	var e *Error
	if !errors.As(err, &e) || e.Status != 504 || e.Message != "it did not come about within 10s: context deadline exceeded" {
		t.Errorf("after %s: %v", time.Since(begin), err)
	}
}

// TestMoveIsWithdrawn checks that nobody's order is not carried out.
func TestMoveIsWithdrawn(t *testing.T) {
	c, router, _ := startMoves(t, discard)
	router.hangs = make(chan struct{})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Takeover(ctx, "main", Move{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	<-router.hangs
}
