package vrrp

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

const ms = time.Millisecond

// show renders actions as one line.
func show(actions []action) string {
	var parts []string
	for _, a := range actions {
		switch a.kind {
		case actSend:
			parts = append(parts, fmt.Sprintf("send %d", a.priority))
		case actRenew:
			parts = append(parts, fmt.Sprintf("renew %v", a.until))
		case actRevoke:
			parts = append(parts, "revoke")
		case actOwn:
			parts = append(parts, "own")
		case actDisown:
			parts = append(parts, "disown")
		case actAnnounce:
			parts = append(parts, "announce")
		case actTransition:
			parts = append(parts, a.to.String())
		case actContention:
			parts = append(parts, "contention")
		case actOutcome:
			parts = append(parts, strings.TrimSpace("outcome "+a.reason))
		case actBarred:
			parts = append(parts, "barred")
		}
	}
	return strings.Join(parts, ", ")
}

func heard(priority uint8, from netip.Addr) event {
	return event{kind: evAdvert, from: from, advert: Advertisement{VRID: 51, Priority: priority, Interval: 100 * ms}}
}

// timed is an event and what is expected of it.
type timed struct {
	at   time.Duration
	e    event
	want string
}

// Priority 100 at 100 ms: skew 60.9375 ms, down interval 360.9375 ms, claim
// 6.25 ms before its end, that is 354.6875 ms after the last advertisement.
const (
	claimAt = 354687500 * time.Nanosecond
	ownAt   = claimAt + 6250*time.Microsecond
)

var (
	start = event{kind: evStart}
	timer = event{kind: evTimer}
	stop  = event{kind: evStop, reason: "test"}
	other = node1 // the better node's address; ours is node2
)

func sent(began time.Duration) event { return event{kind: evSent, began: began, ok: true} }

// lonely is the way of a node that hears nobody to Active, at ownAt, with its
// first advertisement sent.
var lonely = []timed{
	{0, start, "revoke, disown, backup"},
	{claimAt, timer, "send 100"},
	{claimAt, sent(claimAt), ""},
	{ownAt, timer, "renew 654.6875ms, own, active, send 100"},
	{ownAt, sent(ownAt), "renew 660.9375ms"},
}

func TestMachine(t *testing.T) {
	active := func(more ...timed) []timed { return append(append([]timed(nil), lonely...), more...) }
	for _, tc := range []struct {
		name     string
		priority uint8
		preempt  bool
		steps    []timed
	}{
		{"alone", 100, false, active(
			timed{ownAt + 100*ms, timer, "send 100"},
			timed{ownAt + 100*ms, sent(ownAt + 100*ms), "renew 760.9375ms"},
		)},
		{"the owner claims at once", 255, false, []timed{
			{0, start, "revoke, disown, backup, send 255"},
			{0, sent(0), ""},
			{6250 * time.Microsecond, timer, "renew 300ms, own, active, send 255"},
		}},
		{"the timer fires early", 100, false, []timed{
			{0, start, "revoke, disown, backup"}, {claimAt - 1, timer, ""},
		}},
		{"started twice", 100, false, []timed{
			{0, start, "revoke, disown, backup"}, {1, start, ""},
		}},
		{"an active router is followed", 100, false, []timed{
			{0, start, "revoke, disown, backup"},
			{300 * ms, heard(101, other), ""},
			{claimAt, timer, ""},
			{300*ms + claimAt, timer, "send 100"},
		}},
		{"its interval is followed", 100, false, []timed{
			{0, start, "revoke, disown, backup"},
			{0, event{kind: evAdvert, from: other, advert: Advertisement{Priority: 101, Interval: time.Second}}, ""},
			{claimAt, timer, ""},
			// 3 s + 609.375 ms - 10 ms, the longest claim
			{3599 * ms, timer, ""},
			{3600 * ms, timer, "send 100"},
		}},
		{"a worse one is followed without preemption", 100, false, []timed{
			{0, start, "revoke, disown, backup"},
			{300 * ms, heard(90, other), ""},
			{claimAt, timer, ""},
		}},
		{"a worse one is preempted when its lease is over", 100, true, []timed{
			{0, start, "revoke, disown, backup"},
			{300 * ms, heard(90, other), ""},
			{claimAt, timer, "send 100"},
			{claimAt, sent(claimAt), ""},
			{ownAt, timer, ""},
			{612 * ms, timer, ""},
			{612500 * time.Microsecond, timer, "send 100"}, // the first claim is stale by now
			{612500 * time.Microsecond, sent(612500 * time.Microsecond), ""},
			{618750 * time.Microsecond, timer, "renew 912.5ms, own, active, send 100"},
		}},
		{"a worse one is preempted as soon as it withdraws", 100, true, []timed{
			{0, start, "revoke, disown, backup"},
			{300 * ms, heard(90, other), ""},
			{claimAt, timer, "send 100"},
			{claimAt, sent(claimAt), ""},
			{claimAt + ms, heard(0, other), ""},
			{ownAt, timer, "renew 654.6875ms, own, active, send 100"},
		}},
		{"a worse one that missed the claim hears another", 100, true, []timed{
			{0, start, "revoke, disown, backup"},
			{300 * ms, heard(90, other), ""},
			{claimAt, timer, "send 100"},
			{claimAt, sent(claimAt), ""},
			{claimAt + 2*ms, heard(90, other), ""}, // it may have crossed ours
			{400 * ms, heard(90, other), "send 100"},
			{400 * ms, sent(400 * ms), ""},
			{401 * ms, heard(0, other), ""},
			{406250 * time.Microsecond, timer, "renew 700ms, own, active, send 100"},
		}},
		{"an equal one is followed even with preemption", 100, true, []timed{
			{0, start, "revoke, disown, backup"},
			{300 * ms, heard(100, other), ""},
			{claimAt, timer, ""},
		}},
		{"the active router resigns", 100, false, []timed{
			{0, start, "revoke, disown, backup"},
			{100 * ms, heard(101, other), ""},
			{200 * ms, heard(0, other), ""},
			{254 * ms, timer, ""},
			{254687500, timer, "send 100"}, // skew less claim
			{254687500, sent(254687500), ""},
			{260937500, timer, "renew 554.6875ms, own, active, send 100"},
		}},
		{"another than the active router withdraws", 100, false, []timed{
			{0, start, "revoke, disown, backup"},
			{100 * ms, heard(101, other), ""},
			{200 * ms, heard(0, netip.MustParseAddr("192.168.1.12")), ""},
			{254687500, timer, ""},
		}},
		{"a resignation that lay in the socket while we were frozen", 100, false, []timed{
			{0, start, "revoke, disown, backup"},
			{100 * ms, heard(101, other), ""},
			{2 * time.Second, heard(0, other), ""},
			{2 * time.Second, heard(0, other), ""},
			{2*time.Second + claimAt - 1, timer, ""},
			{2*time.Second + claimAt, timer, "send 100"},
		}},
		{"the claim is objected to", 100, false, []timed{
			{0, start, "revoke, disown, backup"},
			{claimAt, timer, "send 100"},
			{claimAt, sent(claimAt), ""},
			{claimAt + 2*ms, heard(101, other), "send 0"},
			{ownAt, timer, ""},
			{claimAt + 2*ms + claimAt, timer, "send 100"},
		}},
		{"the claim cannot be sent", 100, false, []timed{
			{0, start, "revoke, disown, backup"},
			{claimAt, timer, "send 100"},
			{claimAt, event{kind: evSent, began: claimAt}, ""},
			{ownAt, timer, ""},
			{2 * claimAt, timer, "send 100"},
		}},
		{"the claim took long to send", 100, false, []timed{
			{0, start, "revoke, disown, backup"},
			{claimAt, timer, "send 100"},
			{claimAt + 201*ms, sent(claimAt + 200*ms), ""},
			{claimAt + 201*ms + 7*ms, timer, ""},
		}},
		{"frozen as backup", 100, false, []timed{
			{0, start, "revoke, disown, backup"},
			{claimAt + 201*ms, timer, ""},
			{claimAt + 201*ms + claimAt, timer, "send 100"},
		}},
		{"frozen while claiming", 100, false, []timed{
			{0, start, "revoke, disown, backup"},
			{claimAt, timer, "send 100"},
			{claimAt, sent(claimAt), ""},
			{ownAt + 201*ms, timer, ""},
			{ownAt + 201*ms + claimAt, timer, "send 100"},
		}},
		{"frozen as active, woken by the timer", 100, false, active(
			timed{660937500, timer, "revoke, disown, backup"},
			timed{660937500 + claimAt, timer, "send 100"},
		)},
		{"frozen as active, but not for long", 100, false, active(
			timed{660937499, timer, "send 100"},
			timed{660937499, sent(660937499), "renew 960.937499ms"},
		)},
		{"frozen as active, woken by a worse router's advertisement", 100, false, active(
			timed{2 * time.Second, heard(90, other), "revoke, disown, backup"},
		)},
		{"frozen while sending", 100, false, active(
			timed{ownAt + 100*ms, timer, "send 100"},
			timed{ownAt + 350*ms, sent(ownAt + 100*ms), "revoke, disown, backup"},
		)},
		{"frozen as active, then stopped: nothing may be said", 100, false, active(
			timed{2 * time.Second, stop, "revoke, disown, backup, init"},
		)},
		{"nothing can be sent", 100, false, active(
			timed{ownAt + 100*ms, timer, "send 100"},
			timed{ownAt + 100*ms, event{kind: evSent, began: ownAt + 100*ms}, ""},
			timed{ownAt + 200*ms, timer, "send 100"},
			timed{ownAt + 200*ms, event{kind: evSent, began: ownAt + 200*ms}, ""},
			timed{ownAt + 300*ms, timer, "revoke, disown, backup"},
		)},
		{"stopped as backup", 100, false, []timed{
			{0, start, "revoke, disown, backup"}, {1, stop, "init"}, {claimAt, timer, ""},
		}},
		{"stopped while claiming", 100, false, []timed{
			{0, start, "revoke, disown, backup"}, {claimAt, timer, "send 100"}, {claimAt, stop, "revoke, send 0, disown, init"},
		}},
		{"stopped as active", 100, false, active(
			timed{400 * ms, stop, "revoke, send 0, disown, init"},
			timed{500 * ms, timer, ""},
			timed{500 * ms, heard(101, other), ""},
		)},
		{"a better router appears", 100, false, active(
			timed{400 * ms, heard(101, other), "contention, revoke, send 0, disown, backup"},
			timed{400*ms + claimAt, timer, "send 100"},
		)},
		{"an equal router with a greater address appears", 100, false, active(
			timed{400 * ms, heard(100, netip.MustParseAddr("192.168.1.12")), "contention, revoke, send 0, disown, backup"},
		)},
		{"an equal router with a smaller address appears", 100, false, active(
			timed{400 * ms, heard(100, other), "contention, send 100, announce"},
		)},
		{"a worse router appears, again and again", 100, false, active(
			timed{400 * ms, heard(90, other), "contention, send 100, announce"},
			timed{401 * ms, heard(90, other), "contention, announce"},
			timed{404 * ms, heard(90, other), "contention, send 100, announce"},
			timed{503 * ms, timer, ""}, // an interval after the last one
			timed{504 * ms, timer, "send 100"},
		)},
		{"somebody resigns although we are active", 100, false, active(
			timed{400 * ms, heard(0, other), "send 100, announce"},
		)},
		{"the addresses cannot be owned", 100, false, active(
			timed{400 * ms, event{kind: evFault, reason: "no"}, "revoke, send 0, disown, backup"},
			timed{400*ms + claimAt, timer, ""},
			timed{1399 * ms, timer, ""},
			timed{1400 * ms, timer, "send 100"},
		)},
		{"a fault that comes late", 100, false, []timed{
			{0, start, "revoke, disown, backup"},
			{1, event{kind: evFault, reason: "no"}, ""},
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newMachine(params{priority: tc.priority, interval: 100 * ms, preempt: tc.preempt, source: node2})
			for i, step := range tc.steps {
				if got := show(m.step(step.e, step.at)); got != step.want {
					t.Fatalf("step %d at %v: %q, want %q", i, step.at, got, step.want)
				}
			}
		})
	}
}

// TestMachineReasons holds the texts that operators see.
func TestMachineReasons(t *testing.T) {
	m := newMachine(params{priority: 100, interval: 100 * ms, source: node2})
	var got []string
	do := func(e event, at time.Duration) {
		for _, a := range m.step(e, at) {
			if a.kind == actTransition {
				got = append(got, fmt.Sprintf("%v: %s", a.to, a.reason))
			}
		}
	}
	takeOver := func(at time.Duration) {
		do(timer, at)
		do(sent(at), at)
		do(timer, at+6250*time.Microsecond)
	}
	do(start, 0)
	do(heard(101, other), 0)
	takeOver(claimAt)
	do(heard(101, other), 400*ms)
	do(heard(0, other), 500*ms)
	takeOver(555 * ms)
	do(timer, 10*time.Second)
	takeOver(10*time.Second + claimAt)
	do(event{kind: evFault, reason: "failed to add 192.168.1.100/32"}, 10500*ms)
	takeOver(11500 * ms)
	do(event{kind: evStop, reason: "shutting down"}, 11600*ms)
	want := []string{
		"backup: started",
		"active: 192.168.1.10 was silent for 361ms",
		"backup: 192.168.1.10 advertises priority 101",
		"active: 192.168.1.10 resigned",
		"backup: the lease ran out 9.145s ago: no advertisement could be sent in time",
		"active: no active router heard since we stepped down",
		"backup: failed to add 192.168.1.100/32",
		"active: trying again after a fault: failed to add 192.168.1.100/32",
		"init: shutting down",
	}
	if g, w := strings.Join(got, "\n"), strings.Join(want, "\n"); g != w {
		t.Errorf("got:\n%s\nwant:\n%s", g, w)
	}
}

// TestLeaseEndsFirst holds the relation on which everything rests: a peer of
// any priority owns the addresses no earlier than our lease is over, even if its
// clock is faster than ours by a 24th.
func TestLeaseEndsFirst(t *testing.T) {
	for priority := 1; priority <= 254; priority++ {
		for _, interval := range []time.Duration{10 * ms, 50 * ms, 100 * ms, time.Second, 40950 * ms} {
			m := newMachine(params{priority: uint8(priority), interval: interval, source: node2})
			m.step(start, 0)
			const last = time.Hour // when the active router's last advertisement was sent and heard
			e := heard(255, other)
			e.advert.Interval = interval
			m.step(e, last)
			claim, _ := m.deadline()
			m.step(timer, claim)
			m.step(sent(claim), claim)
			own, _ := m.deadline()
			if show(m.step(timer, own)) == "" || own < last+leaseIntervals*interval*(driftShare+1)/driftShare {
				t.Fatalf("priority %d, interval %v: owns %v after the last advertisement", priority, interval, own-last)
			}
			skew := time.Duration(256-priority) * interval / 256
			if limit := last + 3*interval + max(skew, 3*interval/driftShare) + claimMax; own > limit {
				t.Fatalf("priority %d, interval %v: owns only %v after the last advertisement", priority, interval, own-last)
			}
		}
	}
}

func TestStateNames(t *testing.T) {
	for s, want := range map[State]string{Init: "init", Backup: "backup", Active: "active", 9: "state(9)"} {
		if s.String() != want {
			t.Errorf("%d is called %q, want %q", uint8(s), s.String(), want)
		}
	}
	for f, want := range map[ChecksumForm]string{
		ChecksumUnknown: "unknown", ChecksumMessage: "message", ChecksumPseudo: "pseudo-header", 9: "checksum(9)",
	} {
		if f.String() != want {
			t.Errorf("%d is called %q, want %q", uint8(f), f.String(), want)
		}
	}
}
