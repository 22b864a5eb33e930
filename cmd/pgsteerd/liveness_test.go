package main

import (
	"context"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pgsteer/pgsteer/pkg/vrrp"
)

func TestLiveness(t *testing.T) {
	const interval = 100 * time.Millisecond
	limit := silentIntervals*interval + silentMargin
	base := vrrp.Snapshot{AdvertInterval: interval, Sent: 10}
	with := func(change func(*vrrp.Snapshot)) vrrp.Snapshot {
		s := base
		change(&s)
		return s
	}
	tests := []struct {
		name  string
		next  vrrp.Snapshot
		after time.Duration
		want  bool
	}{
		{"silent, but not for long", base, limit, true},
		{"silent for too long", base, limit + 1, false},
		{"sent", with(func(s *vrrp.Snapshot) { s.Sent++ }), limit + 1, true},
		{"tried to send", with(func(s *vrrp.Snapshot) { s.SendErrors++ }), limit + 1, true},
		{"received", with(func(s *vrrp.Snapshot) { s.Received++ }), limit + 1, true},
		{"kept from speaking up", with(func(s *vrrp.Snapshot) { s.Barred++ }), limit + 1, true},
		{"at fault", with(func(s *vrrp.Snapshot) { s.Fault = "no link" }), limit + 1, true},
		{"changed", with(func(s *vrrp.Snapshot) { s.Transitions++ }), limit + 1, true},
		{"follows a slow node", with(func(s *vrrp.Snapshot) { s.Peer.AdvertInterval = time.Second }), 4*time.Second + silentMargin, true},
		{"follows a slow node that is gone", with(func(s *vrrp.Snapshot) { s.Peer.AdvertInterval = time.Second }), 4*time.Second + silentMargin + 1, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var l liveness
			if !l.alive(base, epoch) {
				t.Error("dead at the first look")
			}
			if got := l.alive(tt.next, epoch.Add(tt.after)); got != tt.want {
				t.Errorf("alive is %t", got)
			}
		})
	}
}

// TestSupervisor looks at a router that works, then stops, then works again.
func TestSupervisor(t *testing.T) {
	var told journal
	snapshot := vrrp.Snapshot{Name: "main", State: vrrp.Active, AdvertInterval: 10 * time.Millisecond}
	s := &supervisor{log: discard, notify: told.add, watchdog: 3 * time.Second}
	table, f := testFence()
	s.add(func() vrrp.Snapshot { return snapshot }, f)
	clock := epoch
	looks := func(working bool, d time.Duration, want ...string) {
		t.Helper()
		told.words = nil
		for end := clock.Add(d); clock.Before(end); clock = clock.Add(observeInterval) {
			if working {
				snapshot.Sent++
			}
			s.look(clock)
		}
		if !slices.Equal(told.words, want) {
			t.Errorf("told %q, want %q", told.words, want)
		}
	}
	snapshot.State = vrrp.Init
	looks(true, observeInterval, "STATUS=main init", "WATCHDOG=1")
	snapshot.State = vrrp.Active
	looks(true, time.Second, "READY=1", "STATUS=main active", "WATCHDOG=1", "WATCHDOG=1")
	looks(false, 2*time.Second, "WATCHDOG=1", "WATCHDOG=1", "WATCHDOG=1", "WATCHDOG=1")
	looks(false, time.Hour)
	snapshot.State = vrrp.Backup
	looks(true, time.Second, "STATUS=main backup", "WATCHDOG=1", "WATCHDOG=1")
	expect(t, table)
	snapshot.Since, snapshot.Peer = clock.Add(-time.Second), vrrp.Peer{Address: peer, Priority: 100}
	looks(true, time.Second, "WATCHDOG=1", "WATCHDOG=1")
	expect(t, table, "flush 192.168.1.100", "flush 192.168.1.101")
}

// TestSupervisorRun checks how often it looks, and that it ends.
func TestSupervisorRun(t *testing.T) {
	for watchdog, want := range map[time.Duration]time.Duration{0: observeInterval, time.Minute: observeInterval, 600 * time.Millisecond: 200 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			looked := make(chan time.Time)
			s := &supervisor{log: discard, notify: func(string) {}, watchdog: watchdog}
			_, f := testFence()
			s.add(func() vrrp.Snapshot {
				looked <- time.Now()
				return vrrp.Snapshot{Name: "main", State: vrrp.Backup}
			}, f)
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- s.run(ctx) }()
			first := <-looked
			if got := (<-looked).Sub(first); got != want {
				t.Errorf("watchdog %s: looks every %s, want %s", watchdog, got, want)
			}
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

// TestSupervisorWithoutWatchdog checks that nobody is fed who did not ask.
func TestSupervisorWithoutWatchdog(t *testing.T) {
	var told journal
	s := &supervisor{log: discard, notify: told.add}
	_, f := testFence()
	s.add(func() vrrp.Snapshot { return vrrp.Snapshot{Name: "main"} }, f)
	s.look(epoch)
	s.look(epoch)
	if want := []string{"STATUS=main init"}; !slices.Equal(told.words, want) {
		t.Errorf("told %q, want %q", told.words, want)
	}
}

// TestNotifier speaks to a socket as systemd has it.
func TestNotifier(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	newNotifier(discard)("READY=1")
	buf := make([]byte, 64)
	n, err := conn.Read(buf)
	if err != nil || string(buf[:n]) != "READY=1" {
		t.Errorf("got %q, %v", buf[:n], err)
	}
}

func TestWatchdogInterval(t *testing.T) {
	t.Setenv("WATCHDOG_PID", "")
	for value, want := range map[string]time.Duration{"": 0, "5000000": 5 * time.Second} {
		t.Setenv("WATCHDOG_USEC", value)
		if got, err := watchdogInterval(); got != want || err != nil {
			t.Errorf("%q: got %s, %v", value, got, err)
		}
	}
	t.Setenv("WATCHDOG_USEC", "soon")
	if _, err := watchdogInterval(); err == nil {
		t.Error("garbage is accepted")
	}
}
