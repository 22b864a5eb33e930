package vrrp

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// play runs a machine through steps.
func play(t *testing.T, m *machine, steps []timed) {
	t.Helper()
	for i, step := range steps {
		if got := show(m.step(step.e, step.at)); got != step.want {
			t.Fatalf("step %d at %v: %q, want %q", i, step.at, got, step.want)
		}
	}
}

func tracked(name string, tr Track) event { return event{kind: evTrack, name: name, track: tr} }

func synced(ok bool) event { return event{kind: evSync, ok: ok, reason: "copying"} }

func TestMachineTrack(t *testing.T) {
	active := func(more ...timed) []timed { return append(append([]timed(nil), lonely...), more...) }
	for _, tc := range []struct {
		name     string
		priority uint8
		steps    []timed
	}{
		{"a weight is told at once", 100, active(
			timed{400 * ms, tracked("disk", Track{Weight: -30}), "send 70"},
			timed{401 * ms, tracked("net", Track{Weight: -90}), "send 1"},
			timed{402 * ms, tracked("net", Track{Weight: 253}), "send 254"},
			timed{403 * ms, tracked("net", Track{Weight: 253, Reason: "still"}), ""},
			timed{404 * ms, tracked("net", Track{}), "send 70"},
			timed{405 * ms, tracked("disk", Track{}), "send 100"},
		)},
		{"the active router gives way once it is the worse", 100, active(
			timed{400 * ms, tracked("disk", Track{Weight: -30}), "send 70"},
			timed{410 * ms, heard(90, other), "contention, revoke, send 0, disown, backup"},
		)},
		{"a backup waits as its weight says", 100, []timed{
			{0, start, "revoke, disown, backup"},
			{ms, tracked("disk", Track{Weight: -99}), ""}, // skew 99.6 ms
			{claimAt, timer, ""},
			{393359 * time.Microsecond, timer, ""},
			{393360 * time.Microsecond, timer, "send 1"},
		}},
		{"a fault resigns and stays out", 100, active(
			timed{400 * ms, tracked("eth1", Track{Fault: true, Reason: "no carrier"}), "revoke, send 0, disown, init"},
			timed{2 * time.Second, timer, ""},
			timed{2 * time.Second, heard(50, other), ""},
			timed{3 * time.Second, tracked("other", Track{Fault: true}), ""},
			timed{4 * time.Second, tracked("eth1", Track{}), ""},
			timed{5 * time.Second, tracked("other", Track{}), "backup"},
			timed{5*time.Second + claimAt, timer, "send 100"},
		)},
		{"a fault before the start", 100, []timed{
			{0, tracked("eth1", Track{Fault: true}), ""},
			{1, start, "revoke, disown, backup, init"},
			{time.Second, timer, ""},
			{time.Second, start, ""},
			{2 * time.Second, tracked("eth1", Track{}), "backup"},
		}},
		{"a fault while claiming", 100, []timed{
			{0, start, "revoke, disown, backup"}, {claimAt, timer, "send 100"},
			{claimAt, tracked("eth1", Track{Fault: true}), "send 0, init"},
			{time.Second, stop, ""},
			{2 * time.Second, tracked("eth1", Track{}), ""}, // stopped is stopped
		}},
		{"the owner has no weight, but faults", 255, []timed{
			{0, tracked("disk", Track{Weight: -30}), ""},
			{0, start, "revoke, disown, backup, send 255"},
			{0, tracked("eth1", Track{Fault: true}), "send 0, init"},
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			play(t, newMachine(params{priority: tc.priority, interval: 100 * ms, source: node2}), tc.steps)
		})
	}
}

func TestMachineGates(t *testing.T) {
	for _, tc := range []struct {
		name   string
		params params
		steps  []timed
	}{
		{"not synced: follows a worse one", params{priority: 100, preempt: true, syncGate: true}, []timed{
			{0, start, "revoke, disown, backup"},
			{300 * ms, heard(50, other), ""},
			{claimAt, timer, ""},
			{400 * ms, heard(50, other), ""},
			{450 * ms, synced(true), ""}, // as long as it would have waited, from 400 ms on
			{500 * ms, heard(50, other), ""},
			{400*ms + claimAt - 1, timer, ""},
			{400*ms + claimAt, timer, "send 100"},
		}},
		{"not synced: takes what nobody has, last and meekly", params{priority: 100, preempt: true, syncGate: true}, []timed{
			{0, start, "revoke, disown, backup"},
			{claimAt, timer, ""},
			{393360 * time.Microsecond, timer, "send 1"},
			{393360 * time.Microsecond, sent(393360 * time.Microsecond), ""},
			{394 * ms, heard(20, other), "send 0"}, // it is there after all
			{787360 * time.Microsecond, timer, "send 1"},
			{787360 * time.Microsecond, sent(787360 * time.Microsecond), ""},
			{793610 * time.Microsecond, timer, "renew 1.08736s, own, active, send 100"},
			{794 * ms, synced(false), ""}, // the role is ours all the same
		}},
		{"synced from the start", params{priority: 100, syncGate: true}, []timed{
			{0, synced(true), ""},
			{0, start, "revoke, disown, backup"},
			{claimAt, timer, "send 100"},
		}},
		{"without the gate nobody asks", params{priority: 100}, []timed{
			{0, synced(false), ""},
			{0, start, "revoke, disown, backup"},
			{claimAt, timer, "send 100"},
		}},
		{"the owner waits for it too", params{priority: 255, syncGate: true}, []timed{
			{0, start, "revoke, disown, backup"},
			{100 * ms, heard(100, other), ""},
			{101 * ms, synced(true), ""},
			{300 * ms, heard(100, other), ""},
			// 100 ms + 300 ms + 0.39 ms - 6.25 ms; and the owner preempts always
			{395 * ms, timer, "send 255"},
		}},
		{"preemption waits", params{priority: 100, preempt: true, preemptDelay: 250 * ms}, []timed{
			{0, start, "revoke, disown, backup"},
			{100 * ms, heard(50, other), ""},
			{200 * ms, heard(50, other), ""},
			{300 * ms, heard(50, other), ""},
			{349 * ms, heard(50, other), ""}, // the last one that is followed
			{400 * ms, heard(50, other), ""},
			{500 * ms, heard(50, other), ""},
			{600 * ms, heard(50, other), ""},
			{700 * ms, heard(50, other), ""},
			{349*ms + claimAt, timer, "send 100"},
		}},
		{"and begins again with another", params{priority: 100, preempt: true, preemptDelay: 250 * ms}, []timed{
			{0, start, "revoke, disown, backup"},
			{100 * ms, heard(50, other), ""},
			{300 * ms, heard(150, other), ""},
			{400 * ms, heard(50, other), ""},
			{600 * ms, heard(50, other), ""},
			{649 * ms, heard(50, other), ""},
			{650 * ms, heard(50, other), ""},
			{648*ms + claimAt, timer, ""},
			{649*ms + claimAt, timer, "send 100"},
		}},
		{"a death needs no delay", params{priority: 100, preempt: true, preemptDelay: time.Hour}, []timed{
			{0, start, "revoke, disown, backup"},
			{100 * ms, heard(50, other), ""},
			{100*ms + claimAt, timer, "send 100"},
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := tc.params
			p.interval, p.source = 100*ms, node2
			play(t, newMachine(p), tc.steps)
		})
	}
}

// TestMachineWitness has evidence with each event.
func TestMachineWitness(t *testing.T) {
	saw := func(e event, ago time.Duration) event { e.seen, e.seenAgo = true, ago; return e }
	p := params{priority: 100, interval: 100 * ms, source: node2, witness: time.Second}
	play(t, newMachine(p), []timed{
		{0, start, "revoke, disown, backup"},
		{claimAt, timer, "barred"}, // there never was a sign
		{claimAt + 99*ms, timer, ""},
		{claimAt + 100*ms, saw(timer, 1001*ms), "barred"},
		// In sight again: it listens, for it may have missed anything.
		{claimAt + 200*ms, saw(timer, 0), ""},
		{2*claimAt + 200*ms, saw(timer, 900*ms), "send 100"},
		{2*claimAt + 200*ms, saw(sent(2*claimAt+200*ms), 900*ms), ""},
		{2*claimAt + 207*ms, saw(timer, 900*ms), "renew 1.209375s, own, active, send 100"},
		{2*claimAt + 207*ms, saw(sent(2*claimAt+207*ms), 1001*ms), "revoke, send 0, disown, backup"},
		{3*claimAt + 207*ms, saw(timer, 2*time.Second), "barred"},
		{3*claimAt + 208*ms, saw(event{kind: evTakeover}, 2*time.Second), "outcome cut off: the last sign from outside was 2s ago"},
	})
	play(t, newMachine(p), []timed{ // lost while the claim is out
		{0, start, "revoke, disown, backup"},
		{claimAt, saw(timer, 0), "send 100"},
		{claimAt, saw(sent(claimAt), 0), ""},
		{ownAt, timer, "send 0, barred"},
	})
}

func TestMachinePeerActive(t *testing.T) {
	there := func(e event) event { e.peerActive = true; return e }
	p := params{priority: 100, interval: 100 * ms, source: node2, preempt: true}
	play(t, newMachine(p), []timed{
		{0, start, "revoke, disown, backup"},
		{claimAt, there(timer), "barred"},
		{claimAt + 100*ms, there(timer), "barred"},
		{claimAt + 200*ms, timer, "send 100"}, // now it is dead
		{claimAt + 200*ms, sent(claimAt + 200*ms), ""},
		{claimAt + 207*ms, there(timer), "send 0, barred"}, // or is it
	})
	play(t, newMachine(p), []timed{ // one that we hear may be preempted
		{0, start, "revoke, disown, backup"},
		{300 * ms, there(heard(50, other)), ""},
		{claimAt, there(timer), "send 100"},
	})
	play(t, newMachine(p), []timed{ // and one that resigned is followed at once
		{0, start, "revoke, disown, backup"},
		{100 * ms, there(heard(101, other)), ""},
		{200 * ms, there(heard(0, other)), ""},
		{254687500, there(timer), "send 100"},
	})
}

func TestMachineLone(t *testing.T) {
	m := newMachine(params{priority: 100, interval: 100 * ms, source: node2, lone: true})
	play(t, m, []timed{
		{0, start, "revoke, disown, backup"},
		{claimAt, timer, "send 100"},
		{claimAt, sent(claimAt), ""},
		{ownAt, timer, "renew 876000h0m0.3546875s, own, active, send 100"},
		{time.Hour, timer, "send 100"}, // frozen, and nobody minds
	})
}

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

func TestRouterEvidence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ago atomic.Int64
		var peerActive atomic.Bool
		a, b := pair(t, func(c *Config) {
			c.Witness = func() (time.Duration, bool) { return time.Duration(ago.Load()), true }
			c.PeerActive = peerActive.Load
		})
		ago.Store(int64(4 * time.Second))
		elapse(time.Second)
		if a.owns() || b.owns() {
			t.Error("active while cut off")
		}
		if s := a.router.Snapshot(); !s.CutOff || s.Barred == 0 {
			t.Errorf("cut off: %+v", s)
		}
		ago.Store(0)
		elapse(time.Second)
		if a.owns() == b.owns() {
			t.Error("not one node is active after the sign from outside returned")
		}
		elapse(logInterval) // what is barred is logged so often
		peerActive.Store(true)
		active, backup := a, b
		if b.owns() {
			active, backup = b, a
		}
		active.port.failSends(errTest)
		elapse(2 * time.Second)
		if backup.owns() {
			t.Error("took over although the other was active by its own account")
		}
		if n := strings.Count(backup.log.String(), "active by its own account"); n == 0 || n > 2 {
			t.Errorf("%d lines of log about it", n)
		}
		a.stop()
		b.stop()
	})
}
