package main

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestLoadOrders checks that a file that makes no sense is put aside with a
// loud word, and that one that cannot be read stops the daemon.
func TestLoadOrders(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "orders.json")
	const order = `{"version": 1, "orders": [{"service": "postgres", "backend": "a", "address": "192.168.1.5:6432", "admin_state": "maint",
		"by": "uid 0, pid 1", "at": "2026-03-04T12:00:00Z"}]}`
	for _, tt := range []struct {
		name, text string
		orders     int
		log        string
	}{
		{"good", order, 1, ""},
		{"bad", "{", 0, "what operators have said is lost"},
		{"none", "", 0, ""}, // the bad one is out of the way
	} {
		if tt.text != "" {
			if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		var log bytes.Buffer
		got, err := loadOrders(path, slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil || len(got) != tt.orders || !strings.Contains(log.String(), tt.log) || tt.log == "" && log.Len() > 0 {
			t.Errorf("%s: %+v, %v, logged %q", tt.name, got, err, log.String())
		}
	}
	if kept, err := os.ReadFile(path + ".bad"); err != nil || string(kept) != "{" {
		t.Errorf("set aside: %q, %v", kept, err)
	}
	if _, err := loadOrders(dir, discard); err == nil {
		t.Error("a directory was taken for a file of orders")
	}
}
