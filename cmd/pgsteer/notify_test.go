package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/admin"
	"github.com/pgsteer/pgsteer/pkg/lb"
	"github.com/pgsteer/pgsteer/pkg/notify"
)

// A fakeNotifier has two sinks.
type fakeNotifier struct{ fails bool }

func (f *fakeNotifier) Status() []notify.Status {
	return []notify.Status{
		{Name: "exec", Speaks: true, Sent: 7, LastSent: time.Now().Add(-90 * time.Second)},
		{Name: "slack", Speaks: true, Pending: true, Failed: 3, LastError: "the server answered 429 Too Many Requests"},
	}
}

func (f *fakeNotifier) Test(_ context.Context, by string) []notify.Result {
	all := []notify.Result{{Name: "exec", Duration: time.Millisecond}, {Name: "slack", Duration: 120 * time.Millisecond}}
	if f.fails {
		all[1].Error = "the server answered 404 Not Found, when asked by " + strings.Split(by, " ")[0]
	}
	return all
}

func TestNotify(t *testing.T) {
	n := new(fakeNotifier)
	there := true
	log := slog.New(slog.DiscardHandler)
	cfg := admin.Config{
		Socket: filepath.Join(t.TempDir(), "admin.sock"), Controller: lb.NewController(new(recorder), log), Log: log,
		Notifier: func() admin.Notifier {
			if !there {
				return nil
			}
			return n
		},
	}
	server, err := admin.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, server.Close()); err != nil {
			t.Error(err)
		}
	})
	pgsteer := func(args string) result {
		return runWith(sample(), nil, "", dialDaemon(cfg.Socket), strings.Fields(args)...)
	}
	for _, tt := range []struct {
		args           string
		status         int
		stdout, stderr string
	}{
		{"notify", exitOK, `SINK   SPEAKS  PENDING  SENT  FAILED  LAST        TROUBLE
exec   yes     no          7       0  1m30s ago   -
slack  yes     yes         0       3  never       the server answered 429 Too Many Requests
`, ""},
		{"notify test", exitOK, "SINK    TOOK  RESULT\nexec     1ms  delivered\nslack  120ms  delivered\n", ""},
	} {
		if res := pgsteer(tt.args); res.status != tt.status || squeeze(res.stdout) != squeeze(tt.stdout) || res.stderr != tt.stderr {
			t.Errorf("pgsteer %s: status %d\n%s%s", tt.args, res.status, res.stdout, res.stderr)
		}
	}
	n.fails = true
	res := pgsteer("notify test")
	if res.status != exitFailure || !strings.Contains(res.stdout, "slack  120ms  the server answered 404 Not Found, when asked by uid\n") || res.stderr != "pgsteer: 1 sink was not told\n" {
		t.Errorf("status %d\n%s%s", res.status, res.stdout, res.stderr)
	}
	var all []notify.Result
	if err := json.Unmarshal([]byte(pgsteer("notify test -j").stdout), &all); err != nil || len(all) != 2 || all[1].Error == "" {
		t.Errorf("%+v, %v", all, err)
	}
	there = false
	for _, args := range []string{"notify", "notify test"} {
		if res := pgsteer(args); res.status != exitFailure || !strings.Contains(res.stderr, "nobody is notified: the configuration has no notify.slack") {
			t.Errorf("pgsteer %s: status %d, %s", args, res.status, res.stderr)
		}
	}
}

// squeeze makes one space of many.
func squeeze(s string) string {
	var lines []string
	for line := range strings.Lines(s) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	return strings.Join(lines, "\n")
}
