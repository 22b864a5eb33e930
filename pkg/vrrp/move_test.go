package vrrp

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestMachineMoves(t *testing.T) {
	resign, takeover, giveUp := event{kind: evResign, reason: "upgrade"}, event{kind: evTakeover, reason: "upgrade"}, event{kind: evGiveUp}
	quick := heard(0, other)
	quick.advert.Interval = handoverInterval
	active := func(more ...timed) []timed { return append(append([]timed(nil), lonely...), more...) }
	for _, tc := range []struct {
		name    string
		preempt bool
		steps   []timed
	}{
		{"not running", false, []timed{
			{0, resign, "outcome the virtual router is not running"}, {0, takeover, "outcome the virtual router is not running"},
		}},
		{"resign: stands back from a worse one until that dies", true, active(
			timed{400 * ms, resign, "revoke, send 0, disown, backup, outcome"},
			timed{410 * ms, heard(50, other), ""},
			timed{410*ms + claimAt, timer, ""},
			timed{500 * ms, heard(50, other), ""},
			timed{500*ms + 393360*time.Microsecond, timer, "send 1"},
			timed{893360 * time.Microsecond, sent(893360 * time.Microsecond), ""},
			timed{900 * ms, timer, "renew 1.19336s, own, active, send 100"},
			timed{910 * ms, heard(50, other), "contention, send 100, announce"}, // and no longer
		)},
		{"resign as a backup", true, []timed{
			{0, start, "revoke, disown, backup"}, {ms, resign, "outcome"},
			{100 * ms, heard(50, other), ""}, {100*ms + claimAt, timer, ""},
		}},
		{"resign while claiming", false, []timed{
			{0, start, "revoke, disown, backup"}, {claimAt, timer, "send 100"},
			{claimAt + ms, resign, "send 0, outcome"}, {ownAt, timer, ""},
		}},
		{"a handover is quick", false, []timed{
			{0, start, "revoke, disown, backup"},
			{100 * ms, heard(101, other), ""},
			{200 * ms, quick, ""},
			{200 * ms, timer, "send 100"}, // its skew of 6.1 ms is less than the claim lasts
			{200 * ms, sent(200 * ms), ""},
			{206250 * time.Microsecond, timer, "renew 500ms, own, active, send 100"},
		}},
		{"take over", false, []timed{
			{0, start, "revoke, disown, backup"},
			{400 * ms, heard(101, other), ""},
			{450 * ms, takeover, "send 254"},
			{450 * ms, sent(450 * ms), ""},
			{451 * ms, quick, ""},
			{456250 * time.Microsecond, timer, "renew 750ms, own, active, send 254, outcome"},
			{500 * ms, heard(101, other), "contention, send 254, announce"},
			{500 * ms, event{kind: evFault, reason: "no"}, "revoke, send 0, disown, backup"}, // over
			{600 * ms, heard(101, other), ""},
			{600*ms + claimAt, timer, "send 100"},
		}},
		{"take over right after the start: another may have been missed", false, []timed{
			{0, start, "revoke, disown, backup"},
			{100 * ms, heard(101, other), ""},
			{150 * ms, takeover, "send 254"},
			{150 * ms, sent(150 * ms), ""},
			{151 * ms, quick, ""},
			{156250 * time.Microsecond, timer, ""},
			{312500 * time.Microsecond, timer, "send 254"},
			{312500 * time.Microsecond, sent(312500 * time.Microsecond), ""},
			{318750 * time.Microsecond, timer, "renew 612.5ms, own, active, send 254, outcome"},
		}},
		{"take over among three: a withdrawn claim does not hide the active one", false, []timed{
			{0, start, "revoke, disown, backup"},
			{400 * ms, heard(101, other), ""},
			{450 * ms, heard(101, netip.MustParseAddr("192.168.1.12")), ""},
			{460 * ms, takeover, "send 254"},
			{460 * ms, sent(460 * ms), ""},
			{461 * ms, heard(0, netip.MustParseAddr("192.168.1.12")), ""},
			{466250 * time.Microsecond, timer, ""},
			{712500 * time.Microsecond, timer, "send 254"},
		}},
		{"take over from one that gives way without a word", false, []timed{
			{0, start, "revoke, disown, backup"},
			{100 * ms, heard(101, other), ""},
			{150 * ms, takeover, "send 254"},
			{150 * ms, sent(150 * ms), ""},
			{156250 * time.Microsecond, timer, ""},
			{412500 * time.Microsecond, timer, "send 254"},
			{412500 * time.Microsecond, sent(412500 * time.Microsecond), ""},
			{418750 * time.Microsecond, timer, "renew 712.5ms, own, active, send 254, outcome"},
		}},
		{"take over from the owner", false, []timed{
			{0, start, "revoke, disown, backup"},
			{100 * ms, heard(255, other), ""},
			{150 * ms, takeover, "outcome 192.168.1.10 advertises priority 255"},
			{460 * ms, takeover, "send 254"}, // silent for long
			{461 * ms, heard(255, other), "send 0, outcome 192.168.1.10 advertises priority 255"},
		}},
		{"take over as the active one", true, active(
			timed{400 * ms, takeover, "send 254, outcome"},
			timed{410 * ms, heard(101, other), "contention, send 254, announce"},
		)},
		{"take over after resigning", true, active(
			timed{400 * ms, resign, "revoke, send 0, disown, backup, outcome"},
			timed{410 * ms, heard(50, other), ""},
			timed{420 * ms, takeover, "send 254"},
		)},
		{"take over, given up", false, []timed{
			{0, start, "revoke, disown, backup"},
			{100 * ms, heard(101, other), ""},
			{150 * ms, takeover, "send 254"},
			{160 * ms, giveUp, "send 0"},
			{170 * ms, giveUp, ""},
			{160*ms + claimAt, timer, "send 100"},
		}},
		{"take over, stopped", false, []timed{
			{0, start, "revoke, disown, backup"},
			{150 * ms, takeover, "send 254"},
			{160 * ms, stop, "revoke, send 0, disown, outcome test, init"},
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			play(t, newMachine(params{priority: 100, interval: 100 * ms, preempt: tc.preempt, source: node2}), tc.steps)
		})
	}
}

// pair runs two nodes, of which the first is active.
func pair(t *testing.T, change func(*Config)) (a, b *node) {
	lan := new(fakeLAN)
	a = newNode(t, lan, node1, 101, change).run()
	elapse(time.Second)
	b = newNode(t, lan, node2, 100, change).run()
	elapse(time.Second)
	if !a.owns() || b.owns() {
		t.Fatal("the first node is not the active one")
	}
	return a, b
}

func TestRouterMovesBackAndForth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(t, func(c *Config) { c.Preempt = true })
		const limit = 20 * ms
		for range 3 {
			began := time.Now()
			if err := b.router.Takeover(t.Context(), "rehearsal"); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(began); took > limit || b.router.Snapshot().State != Active {
				t.Errorf("Takeover returned after %v, %v", took, b.router.Snapshot().State)
			}
			synctest.Wait()
			if a.owns() || !b.owns() {
				t.Error("the role did not move")
			}
			// Not just when an advertisement is due: the LAN of this test can
			// turn the order of what is sent in one moment.
			elapse(3*time.Second + 50*ms)
			if s := b.router.Snapshot(); !b.owns() || s.EffectivePriority != 254 || !s.Takeover || s.Reason != "rehearsal" {
				t.Errorf("a better node preempted one that was told to take over: %+v", s)
			}
			began = time.Now()
			if err := b.router.Resign(t.Context(), "and back"); err != nil {
				t.Fatal(err)
			}
			if b.owns() {
				t.Error("Resign returned before it was done")
			}
			for !a.owns() && time.Since(began) < time.Second {
				elapse(ms)
			}
			if took := time.Since(began); took > limit {
				t.Errorf("the other took over after %v", took)
			}
			elapse(time.Second)
			if s := b.router.Snapshot(); s.Gate != "and back" || s.EffectivePriority != 1 {
				t.Errorf("after resigning: %+v", s)
			}
		}
		if s := a.router.Snapshot(); s.Contentions != 0 || len(s.History) != int(s.Transitions) {
			t.Errorf("planned moves: %d contentions, %d of %d transitions in the history", s.Contentions, len(s.History), s.Transitions)
		}
		a.stop()
		b.stop()
		if err := b.router.Takeover(t.Context(), "late"); !errors.Is(err, errEnded) {
			t.Errorf("Takeover after Run: %v", err)
		}
	})
}

func TestRouterTakeoverFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lan fakeLAN
		a := newNode(t, &lan, node1, 255, nil).run()
		b := newNode(t, &lan, node2, 100, nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		if err := b.router.Takeover(ctx, "too early"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("before Run: %v", err)
		}
		cancel()
		b.run()
		elapse(time.Second)
		err := b.router.Takeover(t.Context(), "test")
		if err == nil || err.Error() != "virtual router main: failed to take over: 192.168.1.10 advertises priority 255" {
			t.Errorf("from the owner: %v", err)
		}
		b.router.Track("disk", Track{Fault: true, Reason: "full"})
		elapse(ms)
		if err := b.router.Takeover(t.Context(), "test"); err == nil || !strings.Contains(err.Error(), "this node is at fault: disk: full") {
			t.Errorf("at fault: %v", err)
		}
		if s := b.router.Snapshot(); s.State != Init || s.Fault != "disk: full" || s.Reason != "disk: full" {
			t.Errorf("at fault: %+v", s)
		}
		b.router.Track("disk", Track{})
		elapse(time.Second)
		if s := b.router.Snapshot(); s.State != Backup || s.Fault != "" {
			t.Errorf("well again: %+v", s)
		}
		a.port.failSends(errTest) // it falls silent, and so must the claim
		b.port.failSends(errTest)
		elapse(time.Second)
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := b.router.Takeover(ctx, "test"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("without a way to claim: %v", err)
		}
		elapse(ms)
		if s := b.router.Snapshot(); s.Takeover {
			t.Error("the take-over that nobody waits for goes on")
		}
		a.stop()
		b.stop()
	})
}

// TestRouterTakeoverWithoutLease has the fence fail when the role is taken.
func TestRouterTakeoverWithoutLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(t, nil)
		b.fence.mu.Lock()
		b.fence.fail = errTest
		b.fence.mu.Unlock()
		if err := b.router.Takeover(t.Context(), "test"); err == nil || !strings.Contains(err.Error(), "the role was left again at once") {
			t.Errorf("Takeover: %v", err)
		}
		elapse(time.Second)
		if !a.owns() || b.owns() {
			t.Error("the role did not go back")
		}
		a.stop()
		b.stop()
	})
}
