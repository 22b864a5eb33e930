package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/admin"
	"github.com/pgsteer/pgsteer/pkg/flowsync"
	"github.com/pgsteer/pgsteer/pkg/lb"
	"github.com/pgsteer/pgsteer/pkg/notify"
	"github.com/pgsteer/pgsteer/pkg/xdp"
)

// A fakeDaemon knows postgres/pooler1, which is up, postgres/pooler2, which is
// draining, and reports/r1, in maintenance.
type fakeDaemon struct {
	err       error // of everything
	changeErr error
	unsaved   string
	changed   string // the last change, in words
}

func (d *fakeDaemon) Backends(context.Context) ([]lb.BackendStatus, error) {
	status := func(service, name string, state lb.State, word lb.AdminState) lb.BackendStatus {
		return lb.BackendStatus{
			Service: service, Name: name, Addr: ap("192.168.1.5:6432"), State: state, Admin: word, Reason: "ok",
			Weight: 1, ConfiguredWeight: 1, MaxConnections: 4000, ConfiguredMaxConnections: 4000,
		}
	}
	return []lb.BackendStatus{
		status("postgres", "pooler1", lb.Up, lb.AdminReady),
		status("postgres", "pooler2", lb.Draining, lb.AdminDraining),
		status("reports", "r1", lb.Maintenance, lb.AdminMaint),
	}, d.err
}

func (d *fakeDaemon) ChangeBackend(ctx context.Context, service, backend string, c admin.BackendChange) (lb.BackendStatus, error) {
	text, err := json.Marshal(c)
	if err != nil {
		return lb.BackendStatus{}, err
	}
	d.changed = service + "/" + backend + " " + string(text)
	all, err := d.Backends(ctx)
	i := slices.IndexFunc(all, func(b lb.BackendStatus) bool { return b.Service == service && b.Name == backend })
	if err = errors.Join(err, d.changeErr); err != nil || i < 0 {
		return lb.BackendStatus{}, err
	}
	b := all[i]
	b.Unsaved = d.unsaved
	if c.Weight != nil {
		b.Weight = *c.Weight
	}
	if c.MaxConnections != nil {
		b.MaxConnections = *c.MaxConnections
	}
	if c.State == wordDraining {
		b.State, b.Admin, b.Reason = lb.Draining, lb.AdminDraining, "told to by uid 0"
	}
	if c.Deadline != nil {
		at := time.Date(2026, 3, 4, 12, 1, 0, 0, time.UTC)
		b.Deadline = &at
	}
	return b, nil
}

func (d *fakeDaemon) Routers(context.Context) ([]admin.RouterStatus, error) { return nil, d.err }

func (d *fakeDaemon) Resign(context.Context, string, admin.Move) (admin.RouterStatus, error) {
	return admin.RouterStatus{}, d.err
}

func (d *fakeDaemon) Takeover(context.Context, string, admin.Move) (admin.RouterStatus, error) {
	return admin.RouterStatus{}, d.err
}

func (d *fakeDaemon) Notifications(context.Context) ([]notify.Status, error) { return nil, d.err }

func (d *fakeDaemon) TestNotifications(context.Context) ([]notify.Result, error) { return nil, d.err }

func (d *fakeDaemon) Sync(context.Context) (flowsync.Status, error) {
	return flowsync.Status{}, d.err
}

func TestBackendChanges(t *testing.T) {
	const p1 = "postgres/pooler1 "
	for args, want := range map[string]string{
		"drain postgres/pooler1":                p1 + `{"state":"draining"}`,
		"drain postgres/pooler1 deadline 60s":   p1 + `{"state":"draining","deadline":"1m0s"}`,
		"dr postgres/pooler1 d 0s":              p1 + `{"state":"draining","deadline":"0s"}`,
		"undrain postgres/pooler2":              `postgres/pooler2 {"state":"ready"}`,
		"up reports/r1":                         `reports/r1 {"state":"ready"}`,
		"up postgres/pooler2":                   `postgres/pooler2 {"state":"ready"}`,
		"maint postgres/pooler1":                p1 + `{"state":"maint"}`,
		"weight postgres/pooler1 256":           p1 + `{"weight":256}`,
		"w postgres/pooler1 1":                  p1 + `{"weight":1}`,
		"max postgres/pooler1 0":                p1 + `{"max_connections":0}`,
		"max postgres/pooler1 4294967295":       p1 + `{"max_connections":4294967295}`,
		"--socket /x max postgres/pooler1 4000": p1 + `{"max_connections":4000}`,
	} {
		d := new(fakeDaemon)
		res := runWith(nil, errors.New("must not open"), "", d, strings.Fields("backend "+args)...)
		if res.status != exitOK || d.changed != want || res.stderr != "" || strings.Count(res.stdout, "\n") != 2 {
			t.Errorf("backend %s: status %d, changed %s, %s%s", args, res.status, d.changed, res.stdout, res.stderr)
		}
	}
}

func TestBackendRow(t *testing.T) {
	tests := []struct{ args, want string }{
		{
			"drain postgres/pooler1 deadline 60s", "SERVICE   BACKEND  ADDRESS           STATE     ADMIN     WEIGHT  LIMIT  DEADLINE              REASON\n" +
				"postgres  pooler1  192.168.1.5:6432  draining  draining       1   4000  2026-03-04T12:01:00Z  told to by uid 0\n",
		},
		{
			"weight postgres/pooler1 5", "SERVICE   BACKEND  ADDRESS           STATE  ADMIN            WEIGHT  LIMIT  DEADLINE  REASON\n" +
				"postgres  pooler1  192.168.1.5:6432  up     ready  5 (configured 1)   4000  none      ok\n",
		},
		{
			"max postgres/pooler1 0", "SERVICE   BACKEND  ADDRESS           STATE  ADMIN  WEIGHT                   LIMIT  DEADLINE  REASON\n" +
				"postgres  pooler1  192.168.1.5:6432  up     ready       1  none (configured 4000)  none      ok\n",
		},
	}
	for _, tt := range tests {
		if res := runWith(nil, nil, "", new(fakeDaemon), strings.Fields("backend "+tt.args)...); res.stdout != tt.want {
			t.Errorf("backend %s:\n%s\nwant\n%s", tt.args, res.stdout, tt.want)
		}
	}
	res := runWith(nil, nil, "", &fakeDaemon{unsaved: "the disk is full"}, strings.Fields("backend weight postgres/pooler1 5")...)
	if !strings.HasSuffix(res.stdout, "\nThis would not outlive pgsteerd: the disk is full\n") || res.status != exitOK {
		t.Errorf("unsaved: status %d, %s", res.status, res.stdout)
	}
	res = runWith(nil, nil, "", &fakeDaemon{unsaved: "the disk is full"}, strings.Fields("-j backend weight postgres/pooler1 5")...)
	var b lb.BackendStatus
	if err := json.Unmarshal([]byte(res.stdout), &b); err != nil || b.Name != "pooler1" || b.Weight != 5 || b.Unsaved != "the disk is full" {
		t.Errorf("JSON: %v: %s", err, res.stdout)
	}
}

func TestBackendUsage(t *testing.T) {
	for args, want := range map[string]string{
		"drain":                               "backend drain: want SERVICE/NAME of a backend",
		"drain pooler1":                       `backend drain: "pooler1" is not SERVICE/NAME of a backend; pgsteer backend show lists them`,
		"drain postgres/":                     `backend drain: "postgres/" is not SERVICE/NAME of a backend; pgsteer backend show lists them`,
		"drain postgres/pooler1 60s":          `backend drain: unknown keyword "60s"; want one of deadline`,
		"drain postgres/pooler1 deadline":     "backend drain: deadline needs a value: TIME",
		"drain postgres/pooler1 deadline 60":  `backend drain: deadline: "60" is no length of time; want one like 90s, 5m or 24h`,
		"drain postgres/pooler1 deadline -1s": "unknown option -1s; see pgsteer help",
		"undrain postgres/pooler1 now":        `backend undrain: nothing may follow the backend, but "now" was given`,
		"up postgres/pooler1 now":             `backend up: nothing may follow the backend, but "now" was given`,
		"weight postgres/pooler1":             "backend weight: want SERVICE/NAME and a number from 1 to 256",
		"weight postgres/pooler1 0":           `backend weight: "0" is no number from 1 to 256`,
		"weight postgres/pooler1 257":         `backend weight: "257" is no number from 1 to 256`,
		"weight postgres/pooler1 50%":         `backend weight: "50%" is no number from 1 to 256`,
		"max postgres/pooler1 4294967296":     `backend max: "4294967296" is no number from 0 to 4294967295`,
		"max postgres/pooler1 1 2":            "backend max: want SERVICE/NAME and a number from 0 to 4294967295",
		"u postgres/pooler1":                  `command "u" is ambiguous: undrain or up`,
		"m postgres/pooler1":                  `command "m" is ambiguous: maint or max`,
		"kill postgres/pooler1":               `unknown command "kill"; want one of help, show, list, drain, undrain, maint, up, weight, max`,
	} {
		d := new(fakeDaemon)
		res := runWith(nil, errors.New("must not open"), "", d, strings.Fields("backend "+args)...)
		if res.status != exitUsage || res.stderr != "pgsteer: "+want+"\n" || d.changed != "" {
			t.Errorf("backend %s: status %d, changed %q, %s", args, res.status, d.changed, res.stderr)
		}
	}
}

func TestBackendErrors(t *testing.T) {
	const socket = "/run/pgsteer/admin.sock"
	const down = "pgsteerd is not running, or its admin.socket is another (use --socket): nobody listens on " + socket
	stopped := &fakeDaemon{err: fmt.Errorf("%w: odd", admin.ErrNotRunning)}
	tests := []struct {
		name    string
		args    string
		daemon  *fakeDaemon
		openErr error
		want    string
	}{
		{"unknown", "drain postgres/poller1", new(fakeDaemon), nil, `no backend "postgres/poller1"; did you mean postgres/pooler1?`},
		{"far from any", "drain x/y", new(fakeDaemon), nil, `no backend "x/y"; there is postgres/pooler1, postgres/pooler2, reports/r1`},
		{"not draining", "undrain postgres/pooler1", new(fakeDaemon), nil, "postgres/pooler1 is not told to drain: its state is up"},
		{"maintenance", "undrain reports/r1", new(fakeDaemon), nil, "reports/r1 is not told to drain: its state is maint"},
		{
			"down", "maint postgres/pooler1", stopped, nil,
			down + "; its tables are still there, and the XDP program goes on with them: see pgsteer backend show",
		},
		{"no socket", "undrain postgres/pooler2", stopped, xdp.ErrNoPins, down + "; nor are there tables of it in /sys/fs/bpf/pgsteer"},
		{"down, no permission for the tables", "maint postgres/pooler1", stopped, fs.ErrPermission, down},
		{"no permission", "maint postgres/pooler1", &fakeDaemon{err: &fs.PathError{Op: "connect", Err: fs.ErrPermission}}, nil, "no permission to use pgsteerd's admin socket " + socket + ": be root or in the socket's group"},
		{
			"hangs", "maint postgres/pooler1", &fakeDaemon{err: fmt.Errorf("asking: %w", context.DeadlineExceeded)}, nil,
			"pgsteerd has taken the connection to " + socket + ", but gave no answer within 10s",
		},
		{
			"refuses", "maint postgres/pooler1", &fakeDaemon{changeErr: &admin.Error{Status: 409, Message: "not possible: a sentence"}}, nil,
			"not possible: a sentence",
		},
		{"other", "maint postgres/pooler1", &fakeDaemon{err: errors.New("odd")}, nil, "odd"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			res := runWith(sample(), tt.openErr, "", tt.daemon, strings.Fields("backend "+tt.args)...)
			if res.status != exitFailure || res.stderr != "pgsteer: "+tt.want+"\n" || res.stdout != "" {
				t.Errorf("status %d, %s%s", res.status, res.stdout, res.stderr)
			}
			if tt.daemon.changeErr == nil && tt.daemon.changed != "" {
				t.Errorf("changed %s", tt.daemon.changed)
			}
		})
	}
}

func TestSocket(t *testing.T) {
	tests := []struct{ env, args, want string }{
		{"", "backend up reports/r1", "/run/pgsteer/admin.sock"},
		{"/env", "backend up reports/r1", "/env"},
		{"/env", "--socket=/option backend up reports/r1", "/option"},
		{"", "backend up reports/r1 -socket /option", "/option"},
	}
	for _, tt := range tests {
		if res := runWith(nil, nil, tt.env, new(fakeDaemon), strings.Fields(tt.args)...); res.socket != tt.want || res.status != exitOK {
			t.Errorf("env %q, %s: dialed %q, want %q", tt.env, tt.args, res.socket, tt.want)
		}
	}
}

// TestDaemonDown asks with the true client where nobody listens, where somebody
// did, and where somebody listens who never answers.
func TestDaemonDown(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "admin.sock")
	check := func(ctx context.Context, what, want string) {
		t.Helper()
		var stderr strings.Builder
		tl := tool{
			stdout: io.Discard, stderr: &stderr, dial: dialDaemon,
			getenv: func(string) string { return "" },
			open:   func(string) (reader, error) { return sample(), nil },
		}
		status := tl.run(ctx, []string{"backend", "maint", "postgres/pooler1", "--socket", socket})
		if status != exitFailure || !strings.HasPrefix(stderr.String(), "pgsteer: "+want) {
			t.Errorf("%s: status %d, %s", what, status, stderr.String())
		}
	}
	down := "pgsteerd is not running, or its admin.socket is another (use --socket): nobody listens on " + socket + "; its tables are still there"
	check(t.Context(), "no socket", down)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	ctx, cancel := context.WithCancel(t.Context())
	accepted := make(chan error, 1)
	go func() {
		conn, err := ln.Accept()
		if err == nil {
			defer conn.Close()
		}
		cancel() // as somebody does who waits in vain
		accepted <- err
	}()
	check(ctx, "silent", "interrupted")
	if err := <-accepted; err != nil {
		t.Fatal(err)
	}
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	check(t.Context(), "socket that nobody listens on", down)
}
