package notify

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// A buffer is a log that several goroutines write.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// A stage is a notifier with a fact that a test changes.
type stage struct {
	t    *testing.T
	cfg  Config
	log  *buffer
	mu   sync.Mutex
	fact Fact
}

func newStage(t *testing.T, sinks Sinks) *stage {
	s := &stage{t: t, log: new(buffer), fact: Fact{Key: "backend/postgres/pooler1", Kind: "backend", Value: "up", Since: start}}
	s.cfg = Config{
		Node: "lb1", Sinks: sinks, StateFile: filepath.Join(t.TempDir(), "state", "notify.json"),
		Settings: Settings{Coalesce: 10 * time.Millisecond, MaxCoalesce: 20 * time.Millisecond, Settle: time.Minute},
		Interval: 5 * time.Millisecond,
		Facts: func() ([]Fact, bool) {
			s.mu.Lock()
			defer s.mu.Unlock()
			return []Fact{s.fact}, true
		},
		Log: slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	return s
}

func (s *stage) set(value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fact.Value, s.fact.Bad, s.fact.Severity, s.fact.Title = value, value == "down", Warning, "pooler1 is "+value
	s.fact.Since = s.fact.Since.Add(time.Second)
}

// start runs a notifier until stop is called.
func (s *stage) start() (n *Notifier, stop func()) {
	s.t.Helper()
	n, err := Open(s.cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-done:
				if err != nil {
					s.t.Error(err)
				}
			case <-time.After(10 * time.Second):
				s.t.Error("it does not end")
			}
		})
	}
	s.t.Cleanup(stop)
	return n, stop
}

// until waits for something to become true.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// next returns the next message that a server got.
func next(t *testing.T, got chan request) Payload {
	t.Helper()
	select {
	case r := <-got:
		var p Payload
		if err := json.Unmarshal(r.body, &p); err != nil {
			t.Fatal(err)
		}
		return p
	case <-time.After(10 * time.Second):
		t.Fatal("no message came")
		return Payload{}
	}
}

// TestNotifier goes through two lives against a server that refuses at first.
func TestNotifier(t *testing.T) {
	var mu sync.Mutex
	refuse := 1
	url, got := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if refuse > 0 {
			refuse--
			http.Error(w, "not now", http.StatusServiceUnavailable)
		}
	})
	s := newStage(t, Sinks{Webhook: &Webhook{URL: given(url + "/hidden-word"), Timeout: 5 * time.Second}})
	n, stop := s.start()
	until(t, "the first look", func() bool { return len(n.Report()) > 0 })
	s.set("down")
	first := next(t, got)
	again := next(t, got) // after a second
	if again.ID != first.ID || len(again.Items) != 1 || again.Items[0].Value != "down" {
		t.Errorf("first %+v, then %+v", first, again)
	}
	until(t, "the status", func() bool {
		s := n.Status()[0]
		return s.Sent == 1 && s.Failed == 1 && s.LastError == "" && !s.Pending
	})
	if text, err := os.ReadFile(s.cfg.StateFile); err != nil || !strings.Contains(string(text), `"value": "down"`) {
		t.Errorf("the state file has %s, %v", text, err)
	}
	stop()

	n, stop = s.start()
	until(t, "the first look of the second life", func() bool { return len(n.Report()) > 0 })
	s.set("up")
	if p := next(t, got); p.Items[0].Value != "up" || p.Items[0].Was != "down" || p.Items[0].Outage != 1 {
		t.Errorf("the second life said %+v", p)
	}
	stop()
	if len(got) > 0 {
		t.Errorf("%d messages too many", len(got))
	}
	if strings.Contains(s.log.String(), "hidden-word") || !strings.Contains(s.log.String(), "a notification was not delivered") {
		t.Errorf("the log is %s", s.log)
	}
}

// TestNotifierNeverBlocks has one sink hang: the other one is told, questions are
// answered, and the end comes at once.
func TestNotifierNeverBlocks(t *testing.T) {
	hangs, reached := serve(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	works, got := serve(t, func(http.ResponseWriter, *http.Request) {})
	s := newStage(t, Sinks{
		Slack:   &Slack{URL: given(hangs), Timeout: time.Hour},
		Webhook: &Webhook{URL: given(works), Timeout: 5 * time.Second},
	})
	n, stop := s.start()
	until(t, "the first look", func() bool { return len(n.Report()) > 0 })
	for i := range 6 {
		want := []string{"down", "up"}[i%2]
		s.set(want)
		if p := next(t, got); p.Items[0].Value != want {
			t.Errorf("got %+v, want %s", p, want)
		}
	}
	until(t, "the status", func() bool { s := n.Status(); return s[0].Sent == 0 && s[1].Sent == 6 })
	if len(reached) != 1 {
		t.Errorf("the one that hangs was asked %d times", len(reached))
	}
	stop()
}

// TestNotifierDisk has a state file that cannot be written: the word goes out.
func TestNotifierDisk(t *testing.T) {
	url, got := serve(t, func(http.ResponseWriter, *http.Request) {})
	s := newStage(t, Sinks{Webhook: &Webhook{URL: given(url), Timeout: 5 * time.Second}})
	if err := os.WriteFile(filepath.Dir(s.cfg.StateFile), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.cfg.StateFile = filepath.Join(filepath.Dir(s.cfg.StateFile), "x")
	s.fact.Value, s.fact.Bad = "down", true
	if _, err := Open(s.cfg); err == nil || !strings.Contains(err.Error(), "not a directory") {
		t.Errorf("a directory that is a file: %v", err)
	}
	s.cfg.StateFile = "/proc/self/nothing/notify.json" // to be read, and never to be written
	n, _ := s.start()
	if p := next(t, got); p.Items[0].Value != "down" {
		t.Errorf("said %+v", p)
	}
	until(t, "the complaint", func() bool { return strings.Contains(s.log.String(), "a restart may repeat notifications") })
	_ = n.Status()
}

func TestNotifierBadFile(t *testing.T) {
	for _, text := range []string{"", "{", `{"version": 7}`, "[]"} {
		s := newStage(t, Sinks{Exec: &Exec{Command: []string{"/bin/true"}, Timeout: time.Second}})
		if err := os.MkdirAll(filepath.Dir(s.cfg.StateFile), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(s.cfg.StateFile, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(s.cfg); err != nil {
			t.Errorf("%q: %v", text, err)
		}
		if kept, err := os.ReadFile(s.cfg.StateFile + ".bad"); err != nil || string(kept) != text {
			t.Errorf("%q: set aside %q, %v", text, kept, err)
		}
	}
}

func TestNotifierTest(t *testing.T) {
	url, got := serve(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no_service", http.StatusNotFound) })
	s := newStage(t, Sinks{
		Slack: &Slack{URL: given(url + "/services/token-of-mine"), Timeout: 5 * time.Second},
		Exec:  &Exec{Command: []string{"/bin/true"}, Timeout: 5 * time.Second},
	})
	n, err := Open(s.cfg)
	if err != nil {
		t.Fatal(err)
	}
	results := n.Test(t.Context(), "uid 0, pid 7")
	if len(results) != 2 || results[0].Name != ExecName || results[0].Error != "" || results[1].Name != SlackName ||
		results[1].Error != "the server answered 404 Not Found no_service" {
		t.Errorf("%+v", results)
	}
	if r := <-got; !strings.Contains(string(r.body), "This is a test of the notifications") || !strings.Contains(string(r.body), "uid 0, pid 7") {
		t.Errorf("sent %s", r.body)
	}
}
