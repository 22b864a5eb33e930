package lb

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

func TestDrainTimeoutIsTheDefaultDeadline(t *testing.T) {
	c, _, now := newController(t)
	s := service("192.168.1.5:6432")
	s.DrainTimeout = time.Minute
	if err := c.SetServices([]Service{s}); err != nil {
		t.Fatal(err)
	}
	in := func(want time.Duration, change Change) {
		t.Helper()
		got := set(t, c, change).Deadline
		if want == 0 && got != nil || want != 0 && (got == nil || got.Sub(*now) != want) {
			t.Errorf("%+v: deadline %v, want %s from now", change, got, want)
		}
	}
	drain := ptr(AdminDraining)
	in(time.Minute, Change{Admin: drain})
	*now = now.Add(time.Second)
	in(59*time.Second, Change{Admin: drain}) // drains already
	in(time.Hour, Change{Admin: drain, Deadline: ptr(time.Hour)})
	in(time.Second, Change{Deadline: ptr(time.Second)})
	in(0, Change{Deadline: ptr(time.Duration(0))})
	in(0, Change{Admin: drain})
	in(0, Change{Admin: ptr(AdminReady)})
	in(0, Change{Admin: drain, Deadline: ptr(time.Duration(0))})
}

// bubble is a controller under synctest's clock, whose Run is going.
func bubble(t *testing.T, test func(c *Controller, dp *fakeDatapath)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c, dp, _ := newController(t)
		c.now = time.Now
		healthy(t, c, "a", true, "ok")
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		synctest.Wait()
		test(c, dp)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// resetsAt checks how many resets there were by then, on the bubble's clock.
func resetsAt(t *testing.T, dp *fakeDatapath, after time.Duration, want int) {
	t.Helper()
	time.Sleep(after)
	synctest.Wait()
	dp.mu.Lock()
	defer dp.mu.Unlock()
	if len(dp.resets) != want {
		t.Errorf("%d resets, want %d", len(dp.resets), want)
	}
}

func TestDeadlineResetsTheFlows(t *testing.T) {
	bubble(t, func(c *Controller, dp *fakeDatapath) {
		set(t, c, Change{Admin: ptr(AdminDraining), Deadline: ptr(time.Minute)})
		resetsAt(t, dp, time.Minute-1, 0)
		resetsAt(t, dp, 1, 1)
		resetsAt(t, dp, 10*time.Second-1, 1)
		resetsAt(t, dp, 1, 2) // those that were half open at first
		resetsAt(t, dp, time.Hour, 2)
		if s := c.Snapshot()[0]; s.State != Draining {
			t.Errorf("state %s", s.State)
		}
	})
}

func TestDeadlineCanBeMovedAndTakenBack(t *testing.T) {
	bubble(t, func(c *Controller, dp *fakeDatapath) {
		set(t, c, Change{Admin: ptr(AdminDraining), Deadline: ptr(time.Minute)})
		set(t, c, Change{Deadline: ptr(time.Second)})
		resetsAt(t, dp, time.Second, 1)
		set(t, c, Change{Deadline: ptr(30 * time.Second)})
		resetsAt(t, dp, 30*time.Second-1, 1)
		resetsAt(t, dp, 1, 2)
		set(t, c, Change{Admin: ptr(AdminReady)})
		resetsAt(t, dp, time.Hour, 2)
		if told := dp.states["postgres/a"]; told != Up {
			t.Errorf("the datapath was told %s", told)
		}
	})
}

func TestFailedResetIsTriedAgain(t *testing.T) {
	bubble(t, func(c *Controller, dp *fakeDatapath) {
		set(t, c, Change{Admin: ptr(AdminDraining), Deadline: ptr(time.Minute)})
		dp.fail(errors.New("busy"))
		resetsAt(t, dp, time.Minute+5*time.Second, 0)
		dp.fail(nil)
		resetsAt(t, dp, time.Second, 1)
		resetsAt(t, dp, 10*time.Second, 2)
		resetsAt(t, dp, time.Hour, 2)
	})
}

// TestRestore is a restart: what was said before holds, also a deadline that
// has passed meanwhile.
func TestRestore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var kept []Order
		keep := func(orders []Order) error { kept = orders; return nil }
		start := func() (*Controller, *fakeDatapath) {
			dp := &fakeDatapath{states: map[string]State{}, told: map[string]Backend{}}
			c := NewController(dp, slog.New(slog.DiscardHandler))
			c.Restore(kept, keep)
			if err := c.SetServices([]Service{service("192.168.1.5:6432", "192.168.1.5:6433", "192.168.1.5:6434")}); err != nil {
				t.Fatal(err)
			}
			for _, b := range []string{"a", "b", "c"} {
				healthy(t, c, b, true, "ok")
			}
			return c, dp
		}
		c, _ := start()
		set(t, c, Change{Admin: ptr(AdminDraining), Deadline: ptr(time.Minute), Weight: ptr(uint16(7))})
		if _, err := c.Change("postgres", "b", Change{Admin: ptr(AdminMaint), MaxConnections: ptr(uint32(9))}, "root"); err != nil {
			t.Fatal(err)
		}
		if len(kept) != 2 {
			t.Fatalf("kept %+v", kept)
		}
		before := c.Snapshot()
		// Through JSON, as it goes to a file.
		text, err := json.Marshal(kept)
		if err != nil {
			t.Fatal(err)
		}
		kept = nil
		if err := json.Unmarshal(text, &kept); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		c, dp := start()
		for i, got := range c.Snapshot() {
			want := before[i]
			if got.State != want.State || got.By != want.By || got.Weight != want.Weight || got.MaxConnections != want.MaxConnections ||
				got.Reason != want.Reason || !sameTime(got.Deadline, want.Deadline) {
				t.Errorf("after the restart:\n%+v, before:\n%+v", got, want)
			}
		}
		if b := dp.services[0].Backends; b[0].Weight != 7 || b[1].State != Maintenance || b[1].MaxConnections != 9 {
			t.Errorf("the datapath began with %+v", b)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		resetsAt(t, dp, 0, 1)
		resetsAt(t, dp, secondReset, 2)
		resetsAt(t, dp, time.Hour, 2)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		set(t, c, Change{Admin: ptr(AdminReady), Weight: ptr(uint16(1))})
		if len(kept) != 1 || kept[0].Backend != "b" {
			t.Errorf("kept %+v", kept)
		}
	})
}

// TestOrdersGoWithTheirBackend checks that an order for an address that is no
// longer configured is given up, and is no longer kept.
func TestOrdersGoWithTheirBackend(t *testing.T) {
	c, dp, _ := newController(t)
	var kept []Order
	c.Restore([]Order{{Service: "postgres", Backend: "b", Addr: netip.MustParseAddrPort("192.168.1.5:6433"), Admin: AdminMaint}},
		func(orders []Order) error { kept = orders; return nil })
	set(t, c, Change{Admin: ptr(AdminMaint)})
	if len(kept) != 1 {
		t.Fatalf("kept %+v", kept)
	}
	if err := c.SetServices([]Service{service("192.168.1.6:6432", "192.168.1.5:6433")}); err != nil {
		t.Fatal(err)
	}
	if b := dp.services[0].Backends; b[0].State != Down || len(kept) != 0 {
		t.Errorf("told %+v, kept %+v", b, kept)
	}
}

// TestUnsavedOrdersAreInForce checks that an operator is obeyed when the disk
// is full, is told, and that keeping is tried again.
func TestUnsavedOrdersAreInForce(t *testing.T) {
	bubble(t, func(c *Controller, dp *fakeDatapath) {
		full := errors.New("disk full")
		tries := 0
		c.Restore(nil, func([]Order) error { tries++; return full })
		got := set(t, c, Change{Admin: ptr(AdminDraining)})
		if got.State != Draining || got.Unsaved != "disk full" || dp.states["postgres/a"] != Draining {
			t.Errorf("got %+v", got)
		}
		if b := c.Snapshot()[1]; b.Unsaved != "" {
			t.Errorf("nobody has said anything about %+v", b)
		}
		time.Sleep(25 * time.Second)
		synctest.Wait()
		if tries != 4 { // at once, at Run's next look, and each 10 s
			t.Errorf("tried %d times", tries)
		}
		c.Restore(nil, func([]Order) error { return nil })
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if got := c.Snapshot()[0]; got.Unsaved != "" {
			t.Errorf("got %+v", got)
		}
	})
}

// TestASlowDiskHoldsNobodyUp checks that health is taken while orders are kept.
func TestASlowDiskHoldsNobodyUp(t *testing.T) {
	bubble(t, func(c *Controller, dp *fakeDatapath) {
		disk := make(chan struct{})
		c.Restore(nil, func([]Order) error { <-disk; return nil })
		done := make(chan BackendStatus, 1)
		go func() {
			s, err := c.Change("postgres", "a", Change{Admin: ptr(AdminDraining)}, "me")
			if err != nil {
				t.Error(err)
			}
			done <- s
		}()
		synctest.Wait()
		healthy(t, c, "b", true, "ok")
		healthy(t, c, "a", false, "gone")
		if dp.states["postgres/b"] != Up || dp.states["postgres/a"] != Down {
			t.Errorf("the datapath was told %v", dp.states)
		}
		close(disk)
		if s := <-done; s.Admin != AdminDraining || s.State != Down {
			t.Errorf("got %+v", s)
		}
	})
}
