package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pgsteer/pgsteer/pkg/admin"
	"github.com/pgsteer/pgsteer/pkg/lb"
)

// A recorder is a datapath that takes everything and keeps the last of it.
type recorder struct{ last lb.Backend }

func (r *recorder) SetServices([]lb.Service) error { return nil }

func (r *recorder) SetBackend(_ string, b lb.Backend) error {
	r.last = b
	return nil
}

func (r *recorder) ResetFlows(string, string) error { return nil }

// TestDaemon gives orders to the true controller by the true admin socket, and
// looks at what the datapath is told.
func TestDaemon(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "admin.sock")
	datapath, log := new(recorder), slog.New(slog.DiscardHandler)
	controller := lb.NewController(datapath, log)
	err := controller.SetServices([]lb.Service{{Name: "postgres", Addr: ap("[2001:db8::100]:5432"), Backends: []lb.Backend{
		{Name: "pooler1", Addr: ap("[2001:db8::5]:6432"), Weight: 1, MaxConnections: 4000},
		{Name: "pooler2", Addr: ap("[2001:db8::5]:6433"), Weight: 1},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := controller.SetHealth("postgres", "pooler1", true, "ok"); err != nil {
		t.Fatal(err)
	}
	server, err := admin.Open(admin.Config{Socket: socket, Controller: controller, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	}()
	pgsteer := func(args string) result {
		return runWith(sample(), nil, socket, dialDaemon(socket), strings.Fields(args)...)
	}

	tests := []struct {
		args   string
		state  lb.State
		weight uint16
		limit  uint32
		admin  lb.AdminState
	}{
		{"backend drain postgres/pooler1 deadline 1h", lb.Draining, 1, 4000, lb.AdminDraining},
		{"backend undrain postgres/pooler1", lb.Up, 1, 4000, lb.AdminReady},
		{"backend maint postgres/pooler1", lb.Maintenance, 1, 4000, lb.AdminMaint},
		{"backend weight postgres/pooler1 7", lb.Maintenance, 7, 4000, lb.AdminMaint},
		{"backend up postgres/pooler1", lb.Up, 7, 4000, lb.AdminReady},
		{"backend max postgres/pooler1 10", lb.Up, 7, 10, lb.AdminReady},
		{"backend max postgres/pooler1 4000", lb.Up, 7, 4000, lb.AdminReady},
	}
	for _, tt := range tests {
		res := pgsteer(tt.args + " -j")
		var b lb.BackendStatus
		if err := json.Unmarshal([]byte(res.stdout), &b); err != nil || res.status != exitOK {
			t.Fatalf("pgsteer %s: status %d, %s%s, %v", tt.args, res.status, res.stdout, res.stderr, err)
		}
		if b.State != tt.state || b.Weight != tt.weight || b.MaxConnections != tt.limit || b.Admin != tt.admin {
			t.Errorf("pgsteer %s answers %s", tt.args, res.stdout)
		}
		if d := datapath.last; d.Name != "pooler1" || d.State != tt.state || d.Weight != tt.weight || d.MaxConnections != tt.limit {
			t.Errorf("pgsteer %s: the datapath was told %+v", tt.args, d)
		}
		if (b.Deadline != nil) != strings.Contains(tt.args, "deadline") {
			t.Errorf("pgsteer %s: the deadline is %v", tt.args, b.Deadline)
		}
	}
	for args, want := range map[string]string{
		"backend undrain postgres/pooler1": "postgres/pooler1 is not told to drain: its state is up",
		"backend maint postgres/pooler3":   `no backend "postgres/pooler3"; did you mean postgres/pooler1?`,
		"backend maint postgres/a b":       `backend maint: nothing may follow the backend, but "b" was given`,
	} {
		if res := pgsteer(args); res.status == exitOK || res.stderr != "pgsteer: "+want+"\n" {
			t.Errorf("pgsteer %s: status %d, %s", args, res.status, res.stderr)
		}
	}
	if res := pgsteer("backend drain postgres/pooler1"); !strings.Contains(res.stdout, "postgres  pooler1  [2001:db8::5]:6432  draining  draining  7 (configured 1)   4000  none ") {
		t.Errorf("the row is\n%s%s", res.stdout, res.stderr)
	}
}
