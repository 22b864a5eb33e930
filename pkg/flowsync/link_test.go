package flowsync

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// fill puts so many flows of a VIP into a table.
func fill(table *memTable, vip, flows int) {
	for i := range flows {
		table.put(testFlow(vip, i, i))
	}
}

// Each node has a hundred thousand flows, or one of them; changes go on during
// the copy and after it.
func TestFullCopy(t *testing.T) {
	a, b := newMemTable(testVIP(0)), newMemTable(testVIP(1))
	flows := 100_000
	if raceDetector {
		flows = 20_000
	}
	fill(a, 0, flows)
	fill(b, 1, flows/10)
	ca, cb := testConfigs(t, a, b)
	la, _ := start(t, ca)
	lb2, _ := start(t, cb)

	eventually(t, "the copy has begun", func() bool { return la.Status().Sent.Copied > 0 })
	for i := range 1000 {
		f := testFlow(0, i, i)
		a.drop(f)
		la.Publish([]lb.FlowChange{{Record: f, Gone: true}})
		g := testFlow(0, flows+i, flows+i)
		a.put(g)
		la.Publish([]lb.FlowChange{{Record: g}})
	}
	synced(t, la, lb2)
	if err := la.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := lb2.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !a.equal(b) {
		t.Errorf("the tables differ: %d and %d flows", a.len(), b.len())
	}
	sa, sb := la.Status(), lb2.Status()
	if sa.Sent.Closed != 1000 || sb.Received.Closed != 1000 || sa.Queue != 0 || sa.Lag != 0 {
		t.Errorf("status: %+v and %+v", sa, sb)
	}
	if sa.PeerNode != "lb2" || sb.PeerNode != "lb1" || !sa.Dials || sb.Dials || sa.Version != maxVersion || len(sa.Differences) > 0 {
		t.Errorf("status: %+v and %+v", sa, sb)
	}
	if p := sa.PeerState; p == nil || p.Node != "lb2" || !p.Synced {
		t.Errorf("the peer's state: %+v", p)
	}
	if got := sb.Received.Kinds(); len(got) != 9 || got[1] != (Kind{"closed", 1000}) || sa.Sent.Kinds()[1] != got[1] {
		t.Errorf("kinds: %v", got)
	}
	if _, err := json.Marshal(sa); err != nil {
		t.Error(err)
	}
}

// A restart of either node ends in a new copy; the other forgets what closed
// meanwhile.
func TestRestart(t *testing.T) {
	for name, restart := range map[string]string{"of the sender": "lb1", "of the receiver": "lb2"} {
		t.Run(name, func(t *testing.T) {
			a, b := newMemTable(testVIP(0)), newMemTable()
			fill(a, 0, 100)
			ca, cb := testConfigs(t, a, b)
			var mu sync.Mutex
			var said []bool
			cb.OnSynced = func(synced bool) { mu.Lock(); said = append(said, synced); mu.Unlock() }
			la, stopA := start(t, ca)
			lb2, stopB := start(t, cb)
			synced(t, la, lb2)
			if restart == "lb1" {
				stopA()
				eventually(t, "the link is lost", func() bool { return !lb2.Status().Connected })
				if s := lb2.Status(); s.Synced || s.CopyAge < 0 || s.LastError == "" {
					t.Errorf("status of a lone node: %+v", s)
				}
			} else {
				stopB()
				eventually(t, "the link is lost", func() bool { return !la.Status().Connected })
			}
			for i := range 50 {
				f := testFlow(0, i, i)
				a.drop(f)
				la.Publish([]lb.FlowChange{{Record: f, Gone: true}}) // falls on deaf ears
			}
			if err := la.Drain(t.Context()); !errors.Is(err, ErrNotConnected) {
				t.Errorf("draining without a peer: %v", err)
			}
			if restart == "lb1" {
				la, _ = start(t, ca)
			} else {
				lb2, _ = start(t, cb)
			}
			synced(t, la, lb2)
			if !a.equal(b) {
				t.Errorf("the tables differ: %d and %d flows", a.len(), b.len())
			}
			eventually(t, "all changes of synced are told", func() bool {
				mu.Lock()
				defer mu.Unlock()
				return slices.Equal(said, []bool{true, false, true})
			})
		})
	}
}

// An address moves with the link up: each node serves it in turn.
func TestHandover(t *testing.T) {
	a, b := newMemTable(testVIP(0)), newMemTable()
	fill(a, 0, 100)
	ca, cb := testConfigs(t, a, b)
	la, _ := start(t, ca)
	lb2, _ := start(t, cb)
	synced(t, la, lb2)

	b.lease(testVIP(0), true) // make before break
	lb2.Kick()
	f := testFlow(0, 1000, 1000)
	b.put(f)
	lb2.Publish([]lb.FlowChange{{Record: f}}) // the other one refuses
	eventually(t, "the peer knows", func() bool {
		s, _, ok := la.Peer()
		return ok && len(s.serves()) == 1
	})
	a.lease(testVIP(0), false)
	la.Kick()
	eventually(t, "the new flow is at the other node", func() bool { return a.equal(b) })
	synced(t, la, lb2)
	if n := count(lb2.Status().Resyncs, ResyncLease); n != 1 {
		t.Errorf("%d copies since the lease moved, want 1", n)
	}
}

func TestState(t *testing.T) {
	a, b := newMemTable(testVIP(0)), newMemTable()
	ca, cb := testConfigs(t, a, b)
	ca.Heartbeat, cb.Heartbeat, ca.Missed, cb.Missed = time.Minute, time.Minute, 3, 3 // kicks only
	var mu sync.Mutex
	draining := false
	ca.State = func() State {
		mu.Lock()
		defer mu.Unlock()
		s := a.state()
		s.Draining = draining
		s.Backends = []BackendState{{Service: "service0", Backend: "pooler0", Up: true, Known: true, Reason: "it answers"}}
		return s
	}
	lb2, _ := start(t, cb)
	if _, _, ok := lb2.Peer(); ok {
		t.Error("a peer that never was")
	}
	la, _ := start(t, ca)
	synced(t, la, lb2)
	mu.Lock()
	draining = true
	mu.Unlock()
	la.Kick()
	eventually(t, "the kick arrives", func() bool { s, _, _ := lb2.Peer(); return s.Draining })
	s, ago, ok := lb2.Peer()
	if !ok || ago < 0 || s.Node != "lb1" || len(s.Routers) != 1 || len(s.Backends) != 1 || !s.Backends[0].Up {
		t.Errorf("peer: %+v, %v ago, %v", s, ago, ok)
	}
	eventually(t, "the other's sync is known", func() bool { s, _, _ := la.Peer(); return s.Synced })
}

// Counters of busy flows are refreshed, without any change published.
func TestRefresh(t *testing.T) {
	a, b := newMemTable(testVIP(0)), newMemTable()
	fill(a, 0, 10)
	ca, cb := testConfigs(t, a, b)
	ca.RefreshInterval = 10 * time.Millisecond
	la, _ := start(t, ca)
	lb2, _ := start(t, cb)
	synced(t, la, lb2)
	f := testFlow(0, 3, 3)
	f.PacketsIn++
	a.put(f)
	eventually(t, "the refresh", func() bool { return a.equal(b) })
}

// Configurations that differ are said, and what does not fit is counted; when
// they are alike again, nothing is missing.
func TestDifferences(t *testing.T) {
	a, b := newMemTable(testVIP(0)), newMemTable()
	fill(a, 0, 30)
	ca, cb := testConfigs(t, a, b)
	services := testServices(2)
	services[0].Backends = services[0].Backends[1:]
	cb.Services = services
	la, _ := start(t, ca)
	lb2, _ := start(t, cb)
	synced(t, la, lb2)
	if got := b.len(); got != 20 {
		t.Errorf("%d flows fit, want 20", got)
	}
	if s := lb2.Status(); s.Received.Unknown != 10 || len(s.Differences) != 1 || s.Differences[0] != "backend service0/pooler0 (10.0.0.5:6432) is configured on lb1 only" {
		t.Errorf("status: %+v", s)
	}
	eventually(t, "the other node says it too", func() bool {
		d := la.Status().Differences
		return len(d) == 1 && d[0] == "backend service0/pooler0 (10.0.0.5:6432) is not configured on lb2"
	})
	lb2.SetServices(testServices(2))
	eventually(t, "all flows fit", func() bool { return a.equal(b) })
	eventually(t, "no differences", func() bool {
		return len(la.Status().Differences)+len(lb2.Status().Differences) == 0
	})
	if n := count(la.Status().Resyncs, ResyncAsked); n != 1 {
		t.Errorf("asked for %d copies, want 1", n)
	}
}

// A table that fails costs the synced state, not the link.
func TestTableFails(t *testing.T) {
	a, b := newMemTable(testVIP(0)), newMemTable()
	fill(a, 0, 10)
	ca, cb := testConfigs(t, a, b)
	b.fail(errors.New("the map is gone"))
	la, _ := start(t, ca)
	lb2, _ := start(t, cb)
	eventually(t, "the failure is counted", func() bool { return lb2.Status().Received.Failures > 0 })
	if s := lb2.Status(); s.Synced || !s.Connected || !strings.Contains(s.LastError, "the map is gone") {
		t.Errorf("status: %+v", s)
	}
	b.fail(nil)
	synced(t, la, lb2)
	if !a.equal(b) {
		t.Error("the tables differ")
	}
}

// A node that could not store a batch says so before it acknowledges it, so that
// nobody in Drain is told that all is well.
func TestAskBeforeAcknowledgement(t *testing.T) {
	l := &Link{ask: true, ackDue: 3}
	s := &session{link: l, hungry: make(chan struct{}, 1)}
	want := appendNumber(appendReason(nil, kindResync, ""), kindAck, 3)
	if got, _ := s.gather(0, nil); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// slowTable stores nothing until it may.
type slowTable struct {
	*memTable
	may chan struct{}
}

func (s *slowTable) Store(records []lb.FlowRecord) (int, error) {
	<-s.may
	return s.memTable.Store(records)
}

// A peer that does not get on costs its copy, and nobody's time.
func TestOverflow(t *testing.T) {
	a, b := newMemTable(testVIP(0)), newMemTable()
	ca, cb := testConfigs(t, a, b)
	ca.QueueLimit = 100
	slow := &slowTable{b, make(chan struct{})}
	cb.Table = slow
	la, _ := start(t, ca)
	lb2, _ := start(t, cb)
	synced(t, la, lb2)
	for i := 0; la.Status().Sent.Overflows == 0; i++ {
		f := testFlow(0, i%1000, i)
		a.put(f)
		la.Publish([]lb.FlowChange{{Record: f}})
	}
	if s := la.Status(); s.PeerSynced || !s.Copying {
		t.Errorf("status: %+v", s)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := la.Drain(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("draining into a slow peer: %v", err)
	}
	close(slow.may)
	if err := la.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !a.equal(b) {
		t.Error("the tables differ")
	}
	if s := lb2.Status(); s.Received.Gaps != 1 || s.Received.Copies != 2 {
		t.Errorf("received: %+v", s.Received)
	}
}

// Events that the datapath lost are made up for.
func TestLost(t *testing.T) {
	a, b := newMemTable(testVIP(0)), newMemTable()
	ca, cb := testConfigs(t, a, b)
	la, _ := start(t, ca)
	lb2, _ := start(t, cb)
	synced(t, la, lb2)
	fill(a, 0, 10)
	la.Lost()
	if err := la.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !a.equal(b) {
		t.Error("the tables differ")
	}
}
