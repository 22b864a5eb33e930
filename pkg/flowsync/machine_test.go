package flowsync

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// connectedSender returns a sender that has begun its full copy.
func connectedSender(t *testing.T, limit int) *sender {
	t.Helper()
	s := newSender(newBook(testServices(1)), time.Second, limit)
	s.connected(0, []netip.Addr{testVIP(0)})
	if got := kinds(&s, 0); !slices.Equal(got, []kind{kindDictionary}) {
		t.Fatalf("before the peer's state is known: %v", got)
	}
	s.servePeer(nil)
	if got := kinds(&s, 0); !slices.Equal(got, []kind{kindBegin}) {
		t.Fatalf("then: %v", got)
	}
	return &s
}

// kinds returns the kinds of the frames that are to be sent now.
func kinds(s *sender, now time.Duration) (out []kind) {
	for {
		frame, _, _ := s.next(now, nil)
		if frame == nil {
			return out
		}
		out = append(out, kind(frame[4]))
	}
}

// wake returns when the sender wants to be asked again.
func wake(s *sender, now time.Duration) time.Duration {
	_, _, at := s.next(now, nil)
	return at
}

func ack(t *testing.T, s *sender) {
	t.Helper()
	if err := s.acknowledged(s.seq); err != nil {
		t.Fatal(err)
	}
}

// copied completes the full copy in progress, of no flows.
func copied(t *testing.T, s *sender, now time.Duration) {
	t.Helper()
	s.finish(s.epoch, s.own, nil)
	if got := kinds(s, now); !slices.Equal(got, []kind{kindEnd}) {
		t.Fatalf("at the end of the copy: %v", got)
	}
	ack(t, s)
	if !s.synced {
		t.Fatal("not synced")
	}
}

func change(client int) []lb.FlowChange {
	return []lb.FlowChange{{Record: testFlow(0, client, client)}}
}

// A change goes out at once when nothing is under way, and else when a batch is
// full, when everything is acknowledged, or after 2 ms.
func TestBatching(t *testing.T) {
	const ms = time.Millisecond
	s := connectedSender(t, 10000)
	copied(t, s, 0)
	s.publish(change(1), 10*ms)
	if got := kinds(s, 10*ms); !slices.Equal(got, []kind{kindChanges}) {
		t.Fatalf("an idle sender sends %v", got)
	}
	s.publish(change(2), 11*ms)
	if got := kinds(s, 12*ms); got != nil {
		t.Fatalf("a busy sender sends %v", got)
	}
	if at := wake(s, 12*ms); at != 13*ms {
		t.Errorf("it wants to be asked at %v", at)
	}
	if s.lag(12*ms) != 2*ms {
		t.Errorf("lag %v", s.lag(12*ms))
	}
	if got := kinds(s, 13*ms); !slices.Equal(got, []kind{kindChanges}) {
		t.Errorf("after 2 ms: %v", got)
	}
	s.publish(change(3), 13*ms)
	ack(t, s)
	if got := kinds(s, 13*ms); !slices.Equal(got, []kind{kindChanges}) {
		t.Errorf("when all is acknowledged: %v", got)
	}
	for i := range batchOps {
		s.publish(change(i), 14*ms)
	}
	if got := kinds(s, 14*ms); len(got) == 0 || got[0] != kindChanges {
		t.Errorf("a full batch: %v", got)
	}
}

// No more is on its way than the window has; then the queue fills, and is
// dropped, and the peer is told at once, but copied again only after a second.
func TestSlowPeer(t *testing.T) {
	const now = 100 * time.Millisecond
	s := connectedSender(t, 5000)
	copied(t, s, 0)
	for i := 0; s.bytes < maxWindow; i++ {
		s.publish(change(i), now)
		kinds(s, now)
	}
	s.publish(change(1), now)
	if got := kinds(s, now+maxDelay); got != nil {
		t.Errorf("with a full window it sends %v", got)
	}
	for i := range 5001 {
		s.publish(change(i), now)
	}
	if s.bytes > maxWindow+batchBytes+200 {
		t.Errorf("%d bytes are on their way", s.bytes)
	}
	if s.counts.overflows != 1 || s.synced || s.queue.n != 0 || s.queue.ring != nil {
		t.Errorf("%d overflows, synced %v, queue %d", s.counts.overflows, s.synced, s.queue.n)
	}
	if got := kinds(s, now); !slices.Equal(got, []kind{kindGap}) {
		t.Errorf("a slow peer is told %v", got)
	}
	s.publish(change(1), now)
	if s.queue.n != 0 {
		t.Error("a change is kept though a copy will have it")
	}
	ack(t, s)
	if got := kinds(s, now); got != nil || s.synced {
		t.Errorf("too soon: %v", got)
	}
	if at := wake(s, now); at != resyncInterval {
		t.Errorf("the next copy begins at %v", at)
	}
	if got := kinds(s, resyncInterval); !slices.Equal(got, []kind{kindBegin}) {
		t.Errorf("after a second: %v", got)
	}
	target := s.published
	s.publish(change(2), resyncInterval)
	copiedEnd := func() { s.finish(s.epoch, nil, nil); kinds(s, resyncInterval+maxDelay); ack(t, s) }
	if s.drained(target) {
		t.Error("drained before the copy is over")
	}
	copiedEnd()
	if !s.drained(target) || !s.drained(s.published) || s.drained(s.published+1) {
		t.Errorf("settled %d of %d, synced %v", s.settled, s.published, s.synced)
	}
}

// The end of a copy that is acknowledged after the next one has begun says
// nothing of the next one.
func TestLateAcknowledgement(t *testing.T) {
	s := connectedSender(t, 100)
	s.finish(s.epoch, nil, nil)
	if got := kinds(s, 0); !slices.Equal(got, []kind{kindEnd}) {
		t.Fatal(got)
	}
	late := s.seq
	s.lost()
	if got := kinds(s, resyncInterval); !slices.Equal(got, []kind{kindGap, kindBegin}) {
		t.Fatal(got)
	}
	if err := s.acknowledged(late); err != nil || s.synced {
		t.Errorf("synced %v, %v", s.synced, err)
	}
}

// A walk that was given up is not heard any more, and one that fails makes
// another.
func TestWalkFails(t *testing.T) {
	s := connectedSender(t, 100)
	old := s.epoch
	s.finish(old, nil, errors.New("the map is gone"))
	if s.counts.resyncs[ResyncTable] != 1 {
		t.Error("no other copy is wanted")
	}
	s.offer(old, []lb.FlowRecord{testFlow(0, 1, 1)})
	if more, valid := s.hungry(old); more || valid {
		t.Error("the old walk goes on")
	}
	if got := kinds(s, resyncInterval); !slices.Equal(got, []kind{kindBegin}) {
		t.Errorf("got %v", got)
	}
	s.offer(old, []lb.FlowRecord{testFlow(0, 1, 1)})
	s.finish(old, nil, nil)
	if got := kinds(s, resyncInterval); got != nil {
		t.Errorf("the old walk is sent: %v", got)
	}
	copied(t, s, resyncInterval)
}

// An address that is given up during a copy is not among those that the copy is
// complete for, even if it comes back.
func TestLeaseLapses(t *testing.T) {
	s := connectedSender(t, 100)
	all := []netip.Addr{testVIP(0)}
	s.serveOwn(nil)
	s.finish(s.epoch, all, nil)
	if len(s.pass.serves) != 0 {
		t.Errorf("complete for %v", s.pass.serves)
	}
	s.serveOwn(all)
	if s.counts.resyncs[ResyncLease] != 1 {
		t.Error("no copy is wanted")
	}
}

// Only replicas of addresses that the sender served are forgotten at the end of
// a full copy, and none at the end of a refresh.
func TestSweep(t *testing.T) {
	for name, tc := range map[string]struct {
		full   bool
		serves []netip.Addr
		want   int
	}{
		"all":           {true, []netip.Addr{testVIP(0), testVIP(1)}, 0},
		"one":           {true, []netip.Addr{testVIP(1)}, 10},
		"none":          {true, nil, 20},
		"after refresh": {false, []netip.Addr{testVIP(0), testVIP(1)}, 20},
	} {
		t.Run(name, func(t *testing.T) {
			table := newMemTable()
			fill(table, 0, 10)
			fill(table, 1, 10)
			r := receiver{table: table, ours: func() *book { return &book{} }}
			r.connected()
			for _, f := range [][]byte{
				appendBegin(nil, begin{seq: 1, epoch: 5, full: tc.full}),
				appendEnd(nil, end{seq: 2, epoch: 5, serves: tc.serves}),
			} {
				if _, err := r.handle(kind(f[4]), f[frameHeader:]); err != nil {
					t.Fatal(err)
				}
			}
			if table.len() != tc.want || r.synced != tc.full {
				t.Errorf("%d flows are left, want %d; synced %v", table.len(), tc.want, r.synced)
			}
		})
	}
}

// A refresh goes on only when no change waits; a full copy takes turns with
// them.
func TestPriority(t *testing.T) {
	const ms = time.Millisecond
	flow := []lb.FlowRecord{testFlow(0, 1, 1)}
	s := connectedSender(t, 100)
	s.offer(s.epoch, flow)
	s.publish(change(2), 0)
	if got := kinds(s, maxDelay); !slices.Equal(got, []kind{kindChanges, kindCopy}) {
		t.Errorf("a full copy: %v", got)
	}
	copied(t, s, maxDelay)
	if got := kinds(s, time.Second); !slices.Equal(got, []kind{kindBegin}) {
		t.Fatalf("after a second: %v", got)
	}
	s.offer(s.epoch, flow)
	s.publish(change(2), time.Second)
	if got := kinds(s, time.Second); got != nil {
		t.Errorf("before the change that waits: %v", got)
	}
	if got := kinds(s, time.Second+maxDelay); !slices.Equal(got, []kind{kindChanges, kindCopy}) {
		t.Errorf("when its time has come: %v", got)
	}
	s.finish(s.epoch, nil, errors.New("the map is gone"))
	if got := kinds(s, time.Second+3*ms); !slices.Equal(got, []kind{kindEnd}) || s.counts.refreshes != 1 {
		t.Errorf("a refresh that breaks off: %v", got)
	}
}

// A close during a copy is not undone by the older record of the copy, and what
// replaces a flow is not replaced by it.
func TestCopyAfterClose(t *testing.T) {
	services := testServices(1)
	table, b := newMemTable(), newBook(services)
	stale, gone := testFlow(0, 1, 1), testFlow(0, 2, 2)
	next := testFlow(0, 1, 3) // of the same client port as stale
	missing := testFlow(0, 4, 4)
	table.put(gone)
	table.put(missing)
	r := receiver{table: table, ours: func() *book { return b }}
	r.connected()
	s := connectedSender(t, 100)
	s.publish([]lb.FlowChange{{Record: stale, Gone: true}, {Record: next}, {Record: gone, Gone: true}}, 0)
	s.offer(s.epoch, []lb.FlowRecord{stale, gone})
	s.finish(s.epoch, s.own, nil)
	frames := [][]byte{appendBook(nil, b), appendBegin(nil, begin{seq: 1, epoch: s.epoch, full: true})}
	for range 3 {
		frame, _, _ := s.next(maxDelay, nil)
		frames = append(frames, frame)
	}
	for _, f := range frames {
		if _, err := r.handle(kind(f[4]), f[frameHeader:]); err != nil {
			t.Fatal(err)
		}
	}
	if len(table.flows) != 1 || table.flows[placeOf(&next)] != next {
		t.Errorf("the table has %v", table.flows)
	}
	if !r.synced || r.counts.outdated != 2 || r.counts.swept != 1 {
		t.Errorf("synced %v, %+v", r.synced, r.counts)
	}
}

func TestQueue(t *testing.T) {
	q := queue{limit: 1000}
	next := 0
	for i := range 5000 {
		for q.n > 700 {
			if got := int(q.front().Record.ClientAck); got != next {
				t.Fatalf("got %d, want %d", got, next)
			}
			q.pop()
			next++
		}
		if !q.push(change(i)[0], 0) {
			t.Fatalf("full at %d", q.n)
		}
	}
	for q.push(lb.FlowChange{}, 0) {
	}
	if q.n != 1000 || len(q.ring) != 1000 {
		t.Errorf("%d changes in room for %d", q.n, len(q.ring))
	}
}

func TestConfig(t *testing.T) {
	good, _ := testConfigs(t, newMemTable(), newMemTable())
	for want, break_ := range map[string]func(*Config){
		"":              func(c *Config) { c.State, c.OnSynced, c.Log = nil, nil, nil },
		"no flow table": func(c *Config) { c.Table = nil },
		"no key":        func(c *Config) { c.Key = nil },
		"the node's name has 0 bytes, want 1 to 64":                           func(c *Config) { c.Node = "" },
		"listen address 0.0.0.0:7000 is not one that the peer can connect to": func(c *Config) { c.Listen = netip.MustParseAddrPort("0.0.0.0:7000") },
		"peer address invalid AddrPort is not one to connect to":              func(c *Config) { c.Peer = netip.AddrPort{} },
		"the peer has this node's own address 10.0.0.1:7000": func(c *Config) {
			c.Listen, c.Peer = netip.MustParseAddrPort("10.0.0.1:7000"), netip.MustParseAddrPort("[::ffff:10.0.0.1]:7000")
		},
		"10.0.0.1:7000 and [fd00::1]:7000 are not of one family": func(c *Config) {
			c.Listen, c.Peer = netip.MustParseAddrPort("10.0.0.1:7000"), netip.MustParseAddrPort("[fd00::1]:7000")
		},
		"a setting is negative":                               func(c *Config) { c.QueueLimit = -1 },
		"100 missed heartbeats of 1m0s are more than an hour": func(c *Config) { c.Heartbeat, c.Missed = time.Minute, 100 },
	} {
		c := good
		break_(&c)
		l, err := Open(c)
		switch {
		case want == "" && err != nil, want != "" && (err == nil || err.Error() != "flow sync: "+want):
			t.Errorf("got %v, want %q", err, want)
		case err == nil:
			l.Close()
		}
	}
}

// TestDrainDoesNotWaitForTheNextCopy: two moves of the addresses within a second
// want a full copy that is not due yet; who drains has it begin.
func TestDrainDoesNotWaitForTheNextCopy(t *testing.T) {
	s := connectedSender(t, 100)
	copied(t, s, 0)
	now := 100 * time.Millisecond
	s.serveOwn(nil)
	s.serveOwn([]netip.Addr{testVIP(0)}) // back again
	if got := kinds(s, now); len(got) != 0 || wake(s, now) != resyncInterval {
		t.Fatalf("%v is sent at once, and the next at %v", got, wake(s, now))
	}
	if s.drained(s.published) {
		t.Fatal("drained while a full copy is wanted")
	}
	s.hasten(now)
	if got := kinds(s, now); !slices.Equal(got, []kind{kindBegin}) {
		t.Fatalf("then: %v", got)
	}
	copied(t, s, now)
	if !s.drained(s.published) {
		t.Error("not drained after the copy")
	}
	if s.earliest != now+resyncInterval {
		t.Errorf("the next copy may begin at %v", s.earliest)
	}
}
