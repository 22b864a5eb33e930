package vrrp

import (
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pgsteer/pgsteer/internal/mute"
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
		elapse(mute.Interval) // what is barred is logged so often
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
