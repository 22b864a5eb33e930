package main

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/flowsync"
	"github.com/pgsteer/pgsteer/pkg/health"
	"github.com/pgsteer/pgsteer/pkg/vrrp"
)

// A node tells what it has against itself once, and takes it back.
func TestTracker(t *testing.T) {
	var said []string
	carrier, attached, failure := true, true, error(nil)
	backend := func(up bool) []health.TargetStatus {
		return []health.TargetStatus{{Service: "a", Backend: "x", Up: true}, {Service: "b", Backend: "x", Up: up}}
	}
	checks := backend(true)
	peer := flowsync.State{Backends: []flowsync.BackendState{{Service: "b", Backend: "x", Up: true, Known: true}}}
	heard := 10 * time.Millisecond
	tr := &tracker{
		fitness: func() (bool, bool, error) { return carrier, attached, failure },
		checks:  func() []health.TargetStatus { return checks },
		peer:    func() (flowsync.State, time.Duration, bool) { return peer, heard, true },
		routers: []trackedRouter{{
			services: []string{"a", "b"},
			track: func(name string, t vrrp.Track) {
				if t.Fault {
					said = append(said, name+": "+t.Reason)
				} else {
					said = append(said, name+" is well")
				}
			},
		}},
	}
	now := epoch
	want := func(after time.Duration, words ...string) {
		t.Helper()
		now = now.Add(after)
		tr.look(now)
		tr.look(now) // the same again is no news
		if got := strings.Join(said, "; "); got != strings.Join(words, "; ") {
			t.Fatalf("said %q, want %q", got, words)
		}
		said = nil
	}
	want(0)
	carrier = false
	want(0, "carrier: the interface has no link")
	carrier, attached = true, false
	want(0, "carrier is well", "program: the XDP program is not on the interface")
	attached, failure = true, errors.New("odd")
	want(0, "carrier: odd", "program is well")
	failure = nil
	want(0, "carrier is well")

	checks = backend(false)
	want(0)
	want(blindTime - 1)
	const blind = "backends: no backend of b is up from here, and the other node sees some"
	want(1, blind)
	want(time.Minute)
	checks = backend(true)
	want(0, "backends is well")
	checks = backend(false)
	want(0)
	want(blindTime, blind)
	heard = time.Hour // the other node is gone: better than nobody
	want(0, "backends is well")
	heard = 0
	want(0)
	want(blindTime, blind)
	peer.Backends[0].Up = false // all are down, here and there
	want(0, "backends is well")
	want(time.Hour)
}
