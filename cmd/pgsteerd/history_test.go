package main

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/flowsync"
	"github.com/pgsteer/pgsteer/pkg/vrrp"
)

// TestPeerHistory has a node tell its moves heartbeat by heartbeat, and the
// other one remember each once, at the right moment by its own clock.
func TestPeerHistory(t *testing.T) {
	theirs := time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)
	skew := 3 * time.Hour // of the two clocks
	v := vrrp.Snapshot{VRID: 51, Source: netip.MustParseAddr("192.168.1.11")}
	move := func(at time.Duration, from, to vrrp.State, reason string) {
		v.Transitions++
		v.History = append(v.History, vrrp.Change{
			At: theirs.Add(at), From: from, To: to, Reason: reason, Priority: 100,
			Peer: vrrp.Peer{Address: netip.MustParseAddr("192.168.1.10"), Priority: 101, Ago: 300 * time.Millisecond},
		})
		if len(v.History) > 64 {
			v.History = v.History[1:]
		}
	}
	var p peerMoves
	run := uint64(7)
	heartbeat := func(at time.Duration) {
		now := theirs.Add(at)
		s := flowsync.State{Node: "lb2", Routers: []flowsync.RouterState{{VRID: 51, Run: run, Moves: lastMoves(&v, now)}}}
		p.note(&s, now.Add(skew))
		p.note(&s, now.Add(skew+time.Second)) // looked at again before the next one comes
	}
	move(0, vrrp.Init, vrrp.Backup, "started")
	heartbeat(50 * time.Millisecond)
	move(time.Second, vrrp.Backup, vrrp.Active, "silence")
	move(2*time.Second, vrrp.Active, vrrp.Backup, "told to resign")
	heartbeat(2100 * time.Millisecond)
	got := p[routerID{51, false}].changes
	if len(got) != 3 {
		t.Fatalf("%d moves: %+v", len(got), got)
	}
	c := got[1]
	if c.Node != "lb2" || !c.At.Equal(theirs.Add(skew+time.Second)) || c.From != vrrp.Backup || c.To != vrrp.Active || c.Reason != "silence" ||
		c.Priority != 100 || c.Peer.Address.String() != "192.168.1.10" || c.Peer.Priority != 101 || c.Peer.Ago != 300*time.Millisecond {
		t.Errorf("%+v", c)
	}

	// A new life counts from one again.
	run, v.Transitions, v.History = 8, 0, nil
	move(10*time.Second, vrrp.Init, vrrp.Backup, "started again")
	heartbeat(11 * time.Second)
	if got = p[routerID{51, false}].changes; len(got) != 4 || got[3].Reason != "started again" {
		t.Errorf("after a restart: %+v", got)
	}

	for i := range 100 {
		at := time.Duration(20+i) * time.Second
		move(at, vrrp.Backup, vrrp.Active, fmt.Sprint(i))
		heartbeat(at)
	}
	got = p[routerID{51, false}].changes
	if len(got) != keptMoves || got[keptMoves-1].Reason != "99" || got[0].Reason != "36" {
		t.Errorf("%d moves are kept, from %q to %q", len(got), got[0].Reason, got[len(got)-1].Reason)
	}

	// Of a newer daemon.
	s := flowsync.State{Routers: []flowsync.RouterState{{VRID: 52, Run: 1, Moves: []flowsync.Move{{Number: 1, From: "backup", To: "dancing"}}}}}
	p.note(&s, theirs)
	if n := len(p[routerID{52, false}].changes); n != 0 {
		t.Errorf("%d moves to an unknown state", n)
	}
}
