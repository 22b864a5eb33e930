package notify

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// sample is a message with all there can be.
func sample() *Message {
	m := newMessage("lb1", "http://192.168.1.10:8404/stats", start.Add(2*time.Hour), []Item{
		{
			Key: "service/postgres", Kind: "service", Value: "none", Was: "ok", Bad: true, Severity: Critical,
			Title: "No pooler of postgres takes connections", Since: start, Changes: 1,
		},
		{
			Key: "backend/postgres/pooler1", Kind: "backend", Value: "down", Bad: true, Severity: Warning, Again: true,
			Title: "Pooler pooler1 of postgres is down", Reason: `53300 <!channel> too many "clients" & more`, Since: start,
		},
		{
			Key: "sync", Kind: "sync", Value: "ok", Was: "lost", Severity: Good, Title: "The other node is back", Since: start,
			Outage: 75, Changes: 3,
		},
	})
	return &m
}

func TestSlackMessage(t *testing.T) {
	got, err := json.MarshalIndent(slackMessage(sample()), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("testdata", "slack.json")
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(path, append(got, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got)+"\n" != string(want) {
		t.Errorf("got %s", got)
	}
}

// TestSlackLimits: a message about every pooler there can be stays one that Slack
// takes: 50 blocks, 3000 characters each.
func TestSlackLimits(t *testing.T) {
	var items []Item
	for i := range 1000 {
		items = append(items, Item{Key: fmt.Sprint(i), Title: "x", Reason: strings.Repeat("é<", 3000), Severity: Warning})
	}
	m := newMessage("lb1", "", start, items)
	blocks := slackMessage(&m).Attachments[0].Blocks
	if len(blocks) > 50 {
		t.Errorf("%d blocks", len(blocks))
	}
	for _, b := range blocks {
		if b.Text != nil && len([]rune(b.Text.Text)) > 3000 {
			t.Errorf("a block of %d characters", len([]rune(b.Text.Text)))
		}
	}
}

// given is a secret that is there.
func given(text string) Source { return func() (Secret, error) { return NewSecret(text), nil } }

// A request is what a server got.
type request struct {
	header http.Header
	body   []byte
}

// serve answers all requests by answer.
func serve(t *testing.T, answer http.HandlerFunc) (url string, got chan request) {
	t.Helper()
	got = make(chan request, 100)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		got <- request{r.Header, body}
		answer(w, r)
	}))
	t.Cleanup(s.Close)
	return s.URL, got
}

func TestWebhook(t *testing.T) {
	url, got := serve(t, func(http.ResponseWriter, *http.Request) {})
	sinks := Sinks{Webhook: &Webhook{URL: given(url), Key: given("the key"), Timeout: 5 * time.Second}}.open()
	m := sample()
	if err := sinks[WebhookName].deliver(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	r := <-got
	// As the receiver is told to check it.
	signed, sum, ok := strings.Cut(r.header.Get(SignatureHeader), ",v1=")
	mac := hmac.New(sha256.New, []byte("the key"))
	fmt.Fprintf(mac, "%s.%s", strings.TrimPrefix(signed, "t="), r.body)
	if !ok || sum != hex.EncodeToString(mac.Sum(nil)) || r.header.Get(IDHeader) != m.ID {
		t.Errorf("the header is %v", r.header)
	}
	var p Payload
	if err := json.Unmarshal(r.body, &p); err != nil {
		t.Fatal(err)
	}
	if p.Version != 1 || p.ID != m.ID || p.Severity != Critical || len(p.Items) != 3 || p.Items[2].Outage != 75 {
		t.Errorf("the body is %s", r.body)
	}
	want := "No pooler of postgres takes connections (since 2026-11-23 03:12:00 UTC, for 2 h 0 min)\n" +
		`Still: Pooler pooler1 of postgres is down: 53300 <!channel> too many "clients" & more (since 2026-11-23 03:12:00 UTC, for 2 h 0 min)` + "\n" +
		"The other node is back (since 2026-11-23 03:12:00 UTC, after 1 min 15 s, changed 3 times)"
	if p.Text != want {
		t.Errorf("the text is\n%s\nwant\n%s", p.Text, want)
	}
}

func TestHTTPFailures(t *testing.T) {
	const token = "T00000000/B00000000/abcdefghijklmnop"
	date := time.Now().Add(40 * time.Second).UTC().Format(http.TimeFormat)
	for _, tt := range []struct {
		name   string
		answer http.HandlerFunc
		want   string
		after  time.Duration
	}{
		{"a failure", func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "no_service", http.StatusInternalServerError)
		}, "the server answered 500 Internal Server Error no_service", 0},
		{"a limit", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "30")
			http.Error(w, "rate_limited", http.StatusTooManyRequests)
		}, "the server answered 429 Too Many Requests rate_limited; it wants to be left alone for 30s", 30 * time.Second},
		{"a date", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", date)
			w.WriteHeader(http.StatusServiceUnavailable)
		}, "the server answered 503 Service Unavailable; it wants to be left alone for ", 40 * time.Second},
		{"a redirection", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) }, "the server answered 302 Found", 0},
		{"its own path", func(w http.ResponseWriter, r *http.Request) {
			http.Error(w, "no "+r.URL.Path+" abcdefghijklmnop\x1b[2J", http.StatusNotFound)
		}, "the server answered 404 Not Found no (secret) (secret) [2J", 0},
		{"no answer", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "Timeout exceeded", 0},
		{"a broken connection", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "EOF", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			url, _ := serve(t, tt.answer)
			sinks := Sinks{Slack: &Slack{URL: given(url + "/services/" + token), Timeout: 500 * time.Millisecond}}.open()
			err := sinks[SlackName].deliver(t.Context(), sample())
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v, want %q", err, tt.want)
			}
			if strings.Contains(err.Error(), "abcdefghijklmnop") || strings.Contains(err.Error(), "services") {
				t.Errorf("the error tells the URL: %v", err)
			}
			if got := retryAfter(err); got > tt.after || got < tt.after-2*time.Second {
				t.Errorf("to be tried after %v, want %v", got, tt.after)
			}
		})
	}
	if after, ok := parseRetryAfter("999999", start); !ok || after != maxRetryAfter {
		t.Errorf("a wait without measure: %v", after)
	}
	for _, nonsense := range []string{"", "-1", "soon", "1.5"} {
		if after, ok := parseRetryAfter(nonsense, start); ok {
			t.Errorf("%q is %v", nonsense, after)
		}
	}
}

func TestBadURL(t *testing.T) {
	for _, u := range []string{"", "hooks.slack.com/services/x", "ftp://h/secret-word", "https:///secret-word", "http://[::1/secret-word", "http://h/\x7fsecret-word"} {
		s := Sinks{Slack: &Slack{URL: given(u), Timeout: time.Second}}
		for _, err := range []error{s.Check(), named(SlackName, s.open()[SlackName].deliver(t.Context(), sample()))} {
			if err == nil || strings.Contains(err.Error(), "secret-word") || !strings.HasPrefix(err.Error(), "slack: the URL ") {
				t.Errorf("%q: %v", u, err)
			}
		}
	}
}

// TestSecret prints one in all ways.
func TestSecret(t *testing.T) {
	s := NewSecret("hunter2")
	text, err := json.Marshal(map[string]any{"a": s, "b": []Secret{s}})
	if err != nil {
		t.Fatal(err)
	}
	all := string(text)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		all += fmt.Sprintf(verb, s) + fmt.Sprintf(verb, &struct{ URL Secret }{s}) + fmt.Sprintf(verb, []Secret{s})
	}
	if strings.Contains(all, "hunter2") || strings.Contains(all, hex.EncodeToString([]byte("hunter2"))) || !strings.Contains(all, hidden) {
		t.Error(all)
	}
}

func TestExec(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	script := func(text string) *program {
		return &program{Command: []string{"/bin/sh", "-c", text, "sh", out}, Timeout: 5 * time.Second}
	}
	m := sample()
	if err := script(`{ cat; echo "$PGSTEER_SEVERITY $PGSTEER_KIND $PGSTEER_VALUE $PGSTEER_ITEMS $PGSTEER_TITLE"; env; } > "$1"`).deliver(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	body, rest, _ := strings.Cut(string(text), "\n")
	var p Payload
	if err := json.Unmarshal([]byte(body), &p); err != nil || p.ID != m.ID {
		t.Errorf("the standard input was %s, %v", body, err)
	}
	if !strings.HasPrefix(rest, "critical service none 3 No pooler of postgres takes connections\n") || strings.Contains(rest, "HOME=") {
		t.Errorf("the environment is %s", rest)
	}
	if err := script("echo it went wrong >&2; exit 7").deliver(t.Context(), m); err == nil || err.Error() != "/bin/sh: exit status 7: it went wrong" {
		t.Errorf("got %v", err)
	}
	slow := script("sleep 60 & sleep 60")
	slow.Timeout = 200 * time.Millisecond
	begin := time.Now()
	if err := slow.deliver(t.Context(), m); err == nil || err.Error() != "/bin/sh did not end within 200ms" {
		t.Errorf("got %v", err)
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	absent := &program{Command: []string{"/nonexistent"}, Timeout: time.Second}
	if err := absent.deliver(t.Context(), m); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := script("sleep 60").deliver(ctx, m); err == nil {
		t.Error("it ran though nobody wants it any more")
	}
}
