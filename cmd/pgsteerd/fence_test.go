package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/vrrp"
)

var (
	discard = slog.New(slog.DiscardHandler)
	vip1    = netip.MustParseAddr("192.168.1.100")
	vip2    = netip.MustParseAddr("192.168.1.101")
	peer    = netip.MustParseAddr("192.168.1.11")
	epoch   = time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)
)

// A fakeTable writes down what it is asked for, and fails for one address.
type fakeTable struct {
	journal
	bad netip.Addr
}

func (f *fakeTable) note(addr netip.Addr, format string, args ...any) error {
	f.add(fmt.Sprintf(format, args...) + " " + addr.String())
	if addr == f.bad {
		return errors.New("odd")
	}
	return nil
}

func (f *fakeTable) RenewLease(a netip.Addr, d time.Duration) error { return f.note(a, "renew %s", d) }
func (f *fakeTable) RevokeLease(a netip.Addr) error                 { return f.note(a, "revoke") }

func (f *fakeTable) SetVIPState(a netip.Addr, state string, priority uint8) error {
	return f.note(a, "state %s %d", state, priority)
}

func (f *fakeTable) HoldResets(d time.Duration) error {
	f.add("hold resets " + d.String())
	return nil
}

func (f *fakeTable) FlushFlows(a netip.Addr) (int, error) { return 3, f.note(a, "flush") }

// took returns what was asked for since the last call.
func (f *fakeTable) took() []string {
	w := f.words
	f.words = nil
	return w
}

func testFence() (*fakeTable, *fence) {
	table := &fakeTable{}
	return table, newFence(table, []netip.Prefix{netip.PrefixFrom(vip1, 32), netip.PrefixFrom(vip2, 24)}, false, nil, discard)
}

func expect(t *testing.T, table *fakeTable, want ...string) {
	t.Helper()
	if got := table.took(); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestFenceLease(t *testing.T) {
	table, f := testFence()
	if err := f.Renew(300 * time.Millisecond); err != nil {
		t.Fatal(err)
	}
	expect(t, table, "renew 300ms 192.168.1.100", "renew 300ms 192.168.1.101")
	if err := f.Revoke(); err != nil {
		t.Fatal(err)
	}
	expect(t, table, "revoke 192.168.1.100", "revoke 192.168.1.101")
	f.transition(vrrp.Transition{To: vrrp.Active, Priority: 101})
	expect(t, table, "state active 101 192.168.1.100", "state active 101 192.168.1.101")
}

// TestFenceError checks that one address's failure is told, and does not keep
// the others from being revoked.
func TestFenceError(t *testing.T) {
	table, f := testFence()
	table.bad = vip1
	if err := f.Renew(time.Second); err == nil || err.Error() != "odd" {
		t.Errorf("Renew returned %v", err)
	}
	if err := f.Revoke(); err == nil || err.Error() != "odd" {
		t.Errorf("Revoke returned %v", err)
	}
	expect(t, table, "renew 1s 192.168.1.100", "renew 1s 192.168.1.101", "revoke 192.168.1.100", "revoke 192.168.1.101")
}

func backup(since time.Duration, p vrrp.Peer) vrrp.Snapshot {
	return vrrp.Snapshot{Name: "main", State: vrrp.Backup, Since: epoch.Add(-since), Peer: p}
}

func TestFenceFlush(t *testing.T) {
	heard := vrrp.Peer{Address: peer, Priority: 100, Ago: 50 * time.Millisecond}
	flush := []string{"flush 192.168.1.100", "flush 192.168.1.101"}
	tests := []struct {
		name     string
		snapshot vrrp.Snapshot
		want     []string
	}{
		{"another node is active", backup(time.Second, heard), flush},
		{"nobody was heard", backup(time.Second, vrrp.Peer{}), nil},
		{"heard only before it became backup", backup(40*time.Millisecond, heard), nil},
		{"the other resigned", backup(time.Second, vrrp.Peer{Address: peer, Ago: 50 * time.Millisecond}), nil},
		{"active", vrrp.Snapshot{State: vrrp.Active, Since: epoch.Add(-time.Second), Peer: heard}, nil},
		{"stopped", vrrp.Snapshot{State: vrrp.Init, Since: epoch.Add(-time.Second), Peer: heard}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			table, f := testFence()
			f.observe(tt.snapshot, epoch)
			expect(t, table, tt.want...)
			f.observe(tt.snapshot, epoch)
			expect(t, table) // once is enough
		})
	}
}

// TestFenceFlushCycle follows a node that loses the addresses, gets them back
// and loses them again.
func TestFenceFlushCycle(t *testing.T) {
	table, f := testFence()
	following := backup(time.Second, vrrp.Peer{Address: peer, Priority: 100})
	flush := []string{"flush 192.168.1.100", "flush 192.168.1.101"}
	f.observe(following, epoch)
	expect(t, table, flush...)
	if err := f.Renew(time.Second); err != nil {
		t.Fatal(err)
	}
	table.took()
	f.observe(following, epoch) // out of date: the lease has begun since
	expect(t, table)
	if err := f.Revoke(); err != nil {
		t.Fatal(err)
	}
	table.took()
	f.observe(following, epoch)
	expect(t, table, flush...)
}

// TestFenceFlushError checks that a failed flush is tried again.
func TestFenceFlushError(t *testing.T) {
	table, f := testFence()
	table.bad = vip1
	following := backup(time.Second, vrrp.Peer{Address: peer, Priority: 100})
	f.observe(following, epoch)
	table.took()
	table.bad = netip.Addr{}
	f.observe(following, epoch)
	expect(t, table, "flush 192.168.1.100", "flush 192.168.1.101")
}

// With a copy of them on both nodes, flows are nobody's to forget, and who takes
// over waits for the last ones.
func TestReplicatedFlowsAreKept(t *testing.T) {
	table := &fakeTable{}
	moves := 0
	f := newFence(table, []netip.Prefix{netip.PrefixFrom(vip1, 32)}, true, func() { moves++ }, discard)
	s := vrrp.Snapshot{State: vrrp.Backup, Since: epoch, Peer: vrrp.Peer{Address: peer, Priority: 100}}
	f.observe(s, epoch.Add(time.Minute))
	expect(t, table)
	for range 2 {
		if err := f.Renew(time.Second); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, table, "hold resets 150ms", "renew 1s 192.168.1.100", "renew 1s 192.168.1.100")
	f.transition(vrrp.Transition{To: vrrp.Active, Priority: 100})
	expect(t, table, "state active 100 192.168.1.100")
	if moves != 1 {
		t.Errorf("%d moves were told", moves)
	}
}
