package admin

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

func TestOrdersRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lib", "orders.json")
	if got, err := LoadOrders(path); got != nil || err != nil {
		t.Fatalf("no file: %+v, %v", got, err)
	}
	at := time.Date(2026, 3, 4, 12, 0, 0, 123, time.UTC)
	want := []lb.Order{
		{
			Service: "postgres", Backend: "pooler1", Addr: netip.MustParseAddrPort("[fd00::5]:6432"),
			Admin: lb.AdminDraining, Deadline: &at, By: "uid 0, pid 7", At: at,
		},
		{
			Service: "postgres", Backend: "pooler2", Addr: netip.MustParseAddrPort("192.168.1.5:6433"),
			Weight: ptr(uint16(9)), MaxConnections: ptr(uint32(0)), By: "uid 0, pid 8", At: at,
		},
	}
	for _, orders := range [][]lb.Order{want, {}, want} {
		if err := SaveOrders(path, orders); err != nil {
			t.Fatal(err)
		}
		got, err := LoadOrders(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(orders, got, cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
			t.Errorf("orders (-want +got):\n%s", diff)
		}
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("left beside the file: %v, %v", entries, err)
	}
}

func TestBadOrders(t *testing.T) {
	const order = `{"service": "postgres", "backend": "a", "address": "192.168.1.5:6432", "admin_state": "maint", "by": "x", "at": "2026-03-04T12:00:00Z"}`
	path := filepath.Join(t.TempDir(), "orders.json")
	for want, text := range map[string]string{
		"":                                       `{"version": 1, "orders": [` + order + `]}`,
		"EOF":                                    "",
		"unexpected EOF":                         `{"version": 1, "orders": [`,
		`json: unknown field "more"`:             `{"version": 1, "orders": [], "more": 1}`,
		"it goes on after its end":               `{"version": 1, "orders": []}{}`,
		"it has version 2; this program knows 1": `{"version": 2, "orders": []}`,
		"order 0: service, backend or address is missing": `{"version": 1, "orders": [{}]}`,
		`"gone" is not one of ready, draining, maint`:     `{"version": 1, "orders": [` + strings.Replace(order, "maint", "gone", 1) + `]}`,
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := LoadOrders(path)
		if want == "" {
			if err != nil {
				t.Error(err)
			}
			continue
		}
		if !errors.Is(err, ErrBadOrders) || !strings.HasPrefix(err.Error(), ErrBadOrders.Error()+": "+path+": ") || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	to, err := SetAside(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(to); err != nil || to != path+".bad" {
		t.Errorf("%s: %v", to, err)
	}
	if got, err := LoadOrders(path); got != nil || err != nil {
		t.Errorf("set aside: %+v, %v", got, err)
	}
	if _, err := LoadOrders(filepath.Dir(path)); err == nil || errors.Is(err, ErrBadOrders) {
		t.Errorf("a directory: %v", err)
	}
}

// TestSaveOrdersFails checks that the orders that are there survive a failure.
func TestSaveOrdersFails(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "orders.json")
	if err := os.Mkdir(path, 0o700); err != nil { // a name that cannot be replaced
		t.Fatal(err)
	}
	if err := SaveOrders(path, nil); err == nil || !strings.HasPrefix(err.Error(), "keeping the operator's orders: ") {
		t.Errorf("got %v", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left beside the file: %v, %v", entries, err)
	}
}
