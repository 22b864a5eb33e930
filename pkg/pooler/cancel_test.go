package pooler

import (
	"strings"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// TestCancelWaiting: the request of a client in the queue is answered with an
// error and nothing else, whatever it is, and the next one is served.
func TestCancelWaiting(t *testing.T) {
	tests := map[string]struct {
		send [][]byte
		want string
	}{
		"query":            {[][]byte{msgQuery("row x")}, "EZ"},
		"flight":           {[][]byte{msgParse("s", "row x"), msgBind("", "s"), msgExecute(""), syncMsg}, "EZ"},
		"with flush":       {[][]byte{pgwire.AppendFlush(nil), msgParse("s", "row x"), syncMsg}, "EZ"},
		"sync":             {[][]byte{syncMsg}, "EZ"},
		"late copy data":   {[][]byte{msgCopyData("x"), msgCopyDone(), msgQuery("row x")}, "EZ"},
		"large":            {[][]byte{msgQuery("row " + strings.Repeat("x", 100000))}, "EZ"},
		"and another":      {[][]byte{msgQuery("row x"), msgQuery("row y")}, "EZTDCZ"},
		"and leaves":       {[][]byte{msgQuery("row x"), terminateMsg}, ""},
		"no Sync, no end":  {[][]byte{msgParse("s", "row x")}, "E"},
		"bad message type": {[][]byte{{'y', 0, 0, 0, 4}}, "E"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			for _, chunked := range []bool{false, true} {
				w := newFakeWorld(t, nil)
				db := database("d", 1)
				a, _ := w.welcomed(db)
				b, pb := w.welcomed(db)
				w.send(&a.conn, msgQuery("begin"))
				w.settle()
				w.send(&b.conn, tt.send...)
				w.settle()
				if b.state != clientWaiting {
					t.Fatalf("client in state %d, want it to wait", b.state)
				}
				if chunked {
					w.chunk = func(have int) int { return min(have, 1+have/100) }
				}
				if !w.m.clientCancels(b.key, func() {}) {
					t.Fatal("client not found by its key")
				}
				w.send(&a.conn, msgQuery("commit"))
				w.settle()
				if got := types(t, pb.take()); name != "and leaves" && got != tt.want {
					t.Fatalf("chunked %v: got %q, want %q", chunked, got, tt.want)
				}
				if tt.want == "EZ" {
					w.send(&b.conn, msgQuery("row z"))
					w.settle()
					if got := types(t, pb.take()); got != "TDCZ" {
						t.Fatalf("the next request got %q", got)
					}
				}
			}
		})
	}
}

// TestCancelKeepsServer: while a cancel request is on its way, its server is
// nobody else's.
func TestCancelKeepsServer(t *testing.T) {
	w := newFakeWorld(t, nil)
	db := database("d", 1)
	a, pa := w.welcomed(db)
	b, pb := w.welcomed(db)
	w.send(&a.conn, msgQuery("row x"))
	w.round() // the query is sent, the answer not yet read
	told := false
	if !w.m.clientCancels(a.key, func() { told = true }) || len(w.cancels) != 1 {
		t.Fatalf("%d cancels sent, want 1", len(w.cancels))
	}
	sv := a.server
	w.send(&b.conn, msgQuery("row y"))
	for range 10 {
		w.round()
	}
	if got := types(t, pa.take()); got != "TDCZ" {
		t.Fatalf("A got %q", got)
	}
	if told {
		t.Fatal("the requester was told before the cancel was delivered")
	}
	if len(pb.take()) > 0 || sv.state != serverHeld || b.state != clientWaiting {
		t.Fatalf("server in state %d, B in state %d: want it held, and B waiting", sv.state, b.state)
	}
	w.settle() // delivers the cancel request
	if !told {
		t.Error("the requester was not told")
	}
	if got := types(t, pb.take()); got != "TDCZ" {
		t.Fatalf("B got %q", got)
	}
}

// TestCancelWhileSetting: a cancel request does not hit our SET, nor is it
// lost.
func TestCancelWhileSetting(t *testing.T) {
	w := newFakeWorld(t, nil)
	a, pa := w.welcomed(database("d", 1), pgwire.Param{Name: "TimeZone", Value: "Asia/Tokyo"})
	w.send(&a.conn, msgQuery("row x"))
	w.round()
	if a.state != clientSetting {
		t.Fatalf("client in state %d, want %d", a.state, clientSetting)
	}
	w.m.clientCancels(a.key, func() {})
	w.settle()
	if got := types(t, pa.take()); len(w.cancels) != 0 || a.pool.stats.Cancels != 0 || got != "EZ" {
		t.Fatalf("client got %q, %d cancels sent", got, a.pool.stats.Cancels)
	}
	w.send(&a.conn, msgQuery("row y"))
	w.settle()
	if got := types(t, pa.take()); got != "TDCZ" {
		t.Fatalf("the next request got %q", got)
	}
}

// TestCancelNobody: wrong keys and idle clients.
func TestCancelNobody(t *testing.T) {
	w := newFakeWorld(t, nil)
	a, pa := w.welcomed(database("d", 1))
	told := 0
	for name, key := range map[string]pgwire.CancelKey{
		"wrong secret":  {PID: a.key.PID, Secret: "----"},
		"longer secret": {PID: a.key.PID, Secret: a.key.Secret + "x"},
		"wrong pid":     {PID: a.key.PID + 1, Secret: a.key.Secret},
	} {
		if w.m.clientCancels(key, func() { told++ }) {
			t.Errorf("%s: found", name)
		}
	}
	if !w.m.clientCancels(a.key, func() { told++ }) {
		t.Error("the right key is not found")
	}
	if told != 4 {
		t.Errorf("%d of 4 requesters were told", told)
	}
	w.settle()
	if len(pa.take()) > 0 || a.pool.stats.Cancels != 0 {
		t.Error("an idle client was cancelled")
	}
	w.send(&a.conn, terminateMsg)
	w.settle()
	if w.m.clientCancels(a.key, func() {}) {
		t.Error("a client that is gone is found")
	}
}

// TestVanishedClientIsCancelled: the query of a client that vanished is
// cancelled, again if the first request came too early; that of a client that
// took its leave is not, for a while.
func TestVanishedClientIsCancelled(t *testing.T) {
	w := newFakeWorld(t, func(l *limits) { l.cancelWait = 10 * time.Second })
	db := database("d", 2)
	mute := func() (*client, *server) {
		cl, _ := w.welcomed(db)
		w.send(&cl.conn, msgQuery("begin"))
		w.settle()
		w.peers[&cl.server.conn].be.mute = true
		return cl, cl.server
	}
	gone, sv := mute()
	w.send(&gone.conn, msgQuery("row x"))
	w.settle()
	w.hangUp(&gone.conn)
	w.round()
	if len(w.cancels) != 1 {
		t.Fatalf("%d cancels sent, want 1", len(w.cancels))
	}
	w.settle()
	w.m.now += time.Second
	w.m.tick()
	if len(w.cancels) != 1 {
		t.Fatalf("%d cancels sent again, want 1", len(w.cancels))
	}
	w.settle()
	polite, sv2 := mute()
	w.send(&polite.conn, msgQuery("row x"), terminateMsg)
	w.settle()
	w.m.now += 9 * time.Second
	w.m.tick()
	if len(w.cancels) != 0 && w.cancels[0] == sv2 || sv2.state != serverSettling {
		t.Fatalf("a client that took its leave was cancelled")
	}
	w.settle()
	if sv.state != serverGone {
		t.Errorf("the server that does not come to rest is in state %d after 10 s", sv.state)
	}
	w.m.now += 2 * time.Second
	w.m.tick()
	if len(w.cancels) != 1 {
		t.Fatalf("%d cancels sent after the time, want 1", len(w.cancels))
	}
	w.settle()
	w.m.now += 10 * time.Second
	w.m.tick()
	if sv2.state != serverGone {
		t.Errorf("server in state %d at last, want it closed", sv2.state)
	}
}
