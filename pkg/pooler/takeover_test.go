package pooler

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// leaving reports whether a connection is on its way to another process, and
// nobody watches it.
func leaving(c *conn) bool {
	return c.cl != nil && c.cl.state == clientLeaving || c.sv != nil && c.sv.state == serverLeaving
}

// handover is a takeover between two worlds without sockets.
type handover struct {
	t        *testing.T
	old, new *fakeWorld
	db       *Database
	mail     []letter
	answers  []carriedAnswer
	refuse   func(*carriedItem) bool
	moved    func(old *peer, cl *client)
}

type letter struct {
	kind messageKind
	body []byte
	with []*peer
}

func startHandover(t *testing.T, old *fakeWorld, db *Database) *handover {
	h := &handover{t: t, old: old, db: db, new: newFakeWorld(t, nil)}
	h.new.m.limits = old.m.limits
	h.new.m.now = old.m.now
	h.new.chunk, h.new.room = old.chunk, old.room
	h.new.m.inheritFrom(old.m.stmts.generation + 1)
	h.number()
	old.m.handOver(&heir{send: h.send, unwatch: func(*conn) {}, watch: func(c *conn) error { old.arrived(c); return nil }})
	return h
}

// number gives the connections descriptors.
func (h *handover) number() {
	for i, c := range h.old.order {
		c.fd = i + 1
	}
}

func (h *handover) send(kind messageKind, body any, fds ...int) {
	text, err := json.Marshal(body)
	if err != nil {
		h.t.Fatal(err)
	}
	l := letter{kind: kind, body: text}
	for _, fd := range fds {
		l.with = append(l.with, h.old.peers[h.old.order[fd-1]])
	}
	h.mail = append(h.mail, l)
}

// read has the new process take one message. It reports whether there was one.
func (h *handover) read() bool {
	if len(h.mail) == 0 {
		return false
	}
	l := h.mail[0]
	h.mail = h.mail[1:]
	m := h.new.m
	decode := func(into any) {
		if err := decodeCarried(l.body, into); err != nil {
			h.t.Fatal(err)
		}
	}
	switch l.kind {
	case messagePool:
		var r carriedPool
		decode(&r)
		m.inheritPool(&r, h.db)
	case messageCount:
		var r carriedCount
		decode(&r)
		m.inheritCount(&r)
	case messageStmt:
		var r carriedStmt
		decode(&r)
		m.inheritStmt(&r)
	case messageItem:
		var item carriedItem
		decode(&item)
		h.take(&item, l.with)
	}
	return true
}

func (h *handover) take(item *carriedItem, with []*peer) {
	m := h.new.m
	var cl *client
	var sv *server
	var err error
	switch {
	case h.refuse != nil && h.refuse(item):
		h.answers = append(h.answers, carriedAnswer{Seq: item.Seq, Failed: true})
		return
	case item.Client != nil:
		cl, err = m.inheritClient(item.Client, h.db, 0)
	case item.Server != nil:
		sv, err = m.inheritServer(item.Server, h.db, 0)
	default:
		cl, sv, err = m.inheritPair(item.Pair, h.db, make([]int, 2))
	}
	if err != nil {
		h.t.Fatalf("handing over: %v", err)
	}
	h.answers = append(h.answers, carriedAnswer{Seq: item.Seq})
	if cl != nil {
		h.new.adopt(&cl.conn, with[0])
	}
	if sv != nil {
		h.new.adopt(&sv.conn, with[len(with)-1])
	}
	m.arrived(cl, sv)
	if cl != nil {
		h.new.arrived(&cl.conn)
		if h.moved != nil {
			h.moved(with[0], cl)
		}
	}
	if sv != nil {
		h.new.arrived(&sv.conn)
	}
}

// adopt makes p the other end of c.
func (w *fakeWorld) adopt(c *conn, p *peer) {
	w.peers[c] = p
	w.order = append(w.order, c)
}

// answer gives the old process an answer.
func (h *handover) answer() bool {
	if len(h.answers) == 0 {
		return false
	}
	a := h.answers[0]
	h.answers = h.answers[1:]
	h.old.m.answeredByHeir(a.Seq, a.Failed)
	return true
}

// finish lets everything happen that can.
func (h *handover) finish() {
	h.t.Helper()
	for range 1000 {
		h.number()
		h.old.settle()
		h.new.settle()
		h.old.m.tickHeir()
		h.old.m.departures()
		busy := len(h.mail)+len(h.answers) > 0
		for h.read() || h.answer() {
		}
		if !busy {
			return
		}
	}
	h.t.Fatal("the handover does not come to its end")
}

// TestHandoverKeepsState: what a client has prepared and set is there in the next
// process, in a transaction, too.
func TestHandoverKeepsState(t *testing.T) {
	w := newFakeWorld(t, nil)
	db := database("d", 2)
	a, pa := w.welcomed(db)
	b, pb := w.welcomed(db)
	for _, c := range []*client{a, b} {
		w.send(&c.conn, msgParse("s", "row shared"), msgParse("", "row unnamed"), syncMsg)
		w.settle()
	}
	w.ask(a, pa, "set application_name='mine'")
	w.send(&b.conn, msgParse("", "row inside"), syncMsg)
	w.ask(b, pb, "begin")
	w.send(&b.conn, msgParse("", "row inside"), syncMsg)
	w.send(&a.conn, msgParse("", "row outside"), syncMsg)
	w.settle()
	pa.take()
	pb.take()
	keys := []pgwire.CancelKey{a.key, b.key}
	h := startHandover(t, w, db)
	now := make(map[*peer]*client)
	h.moved = func(p *peer, cl *client) { now[p] = cl }
	h.finish()
	if !w.m.vacant() || w.m.stmts.memory != 0 || len(w.m.byPID) != 0 {
		t.Fatalf("left behind: %d clients, %d bytes of statements", w.m.population, w.m.stmts.memory)
	}
	a, b = now[pa], now[pb]
	if a == nil || b == nil || a.key != keys[0] || b.key != keys[1] || b.server == nil || b.server.status != pgwire.TxActive {
		t.Fatalf("arrived: %+v, %+v", a, b)
	}
	n := h.new
	for _, x := range []struct {
		c *client
		p *peer
		u string
	}{{a, pa, "row outside"}, {b, pb, "row inside"}} {
		n.send(&x.c.conn, msgBind("", "s"), msgExecute(""), msgBind("", ""), msgExecute(""), syncMsg)
		n.settle()
		got := x.p.take()
		if types(t, got) != "2DC2DCZ" || !strings.Contains(string(got), "shared") || !strings.Contains(string(got), strings.TrimPrefix(x.u, "row ")) {
			t.Errorf("%s: got %q", x.u, got)
		}
	}
	if got := n.ask(b, pb, "commit"); got != "CZ" {
		t.Errorf("commit: %q", got)
	}
	if n.send(&a.conn, msgQuery("show application_name")); true {
		n.settle()
		if got := string(pa.take()); !strings.Contains(got, "mine") {
			t.Errorf("application_name: %q", got)
		}
	}
	if len(n.dials) != 0 || a.pool.live() != 2 {
		t.Errorf("%d servers, %d dials", a.pool.live(), len(n.dials))
	}
	// A statement that the new process names gets no name that the old one used.
	n.send(&a.conn, msgParse("t", "row new"), syncMsg)
	n.settle()
	if name := a.names["t"].name; name == a.names["s"].name || !strings.HasPrefix(name, stmtPrefix) {
		t.Errorf("the new statement is called %s", name)
	}
	m := n.m
	m.legacyGone()
	m.abandon()
	if m.stmts.memory != 0 || len(m.stmts.byKey) != 0 {
		t.Errorf("%d bytes of statements are left", m.stmts.memory)
	}
}

// TestHandoverOfNoneButThoseAtRest: nobody is moved who has something outstanding.
func TestHandoverOfNoneButThoseAtRest(t *testing.T) {
	for name, send := range map[string][][]byte{
		"half a message":       {msgQuery("row " + strings.Repeat("x", lookLen))[:8]},
		"a flight":             {msgParse("", "row x"), pgwire.AppendFlush(nil)},
		"a copy":               {msgQuery("copyin")},
		"an unanswered query":  {msgQuery("row x")},
		"messages to be found": {msgParse("n", "row x"), msgBind("", "n")},
	} {
		t.Run(name, func(t *testing.T) {
			w := newFakeWorld(t, nil)
			db := database("d", 1)
			a, pa := w.welcomed(db)
			w.ask(a, pa, "row first")
			if name == "an unanswered query" {
				w.backends()[0].mute = true
			}
			w.send(&a.conn, send...)
			w.settle()
			h := startHandover(t, w, db)
			h.finish()
			if a.dropped || leaving(&a.conn) || h.new.m.population != 0 {
				t.Fatalf("it was handed over in state %d", a.state)
			}
		})
	}
}

// TestHandoverRefused: who is not wanted is served here to the end, and has servers
// for that; when the new process is gone, everything is as before.
func TestHandoverRefused(t *testing.T) {
	w := newFakeWorld(t, nil)
	db := database("d", 2)
	a, pa := w.welcomed(db)
	w.ask(a, pa, "row x")
	h := startHandover(t, w, db)
	h.refuse = func(i *carriedItem) bool { return i.Client != nil }
	h.finish()
	if a.dropped || !a.stays || a.pool.staying != 1 {
		t.Fatalf("state %d, stays %v", a.state, a.stays)
	}
	if got := w.ask(a, pa, "row y"); got != "TDCZ" {
		t.Errorf("got %q", got)
	}
	w.m.heirGone()
	if a.stays || a.pool.staying != 0 {
		t.Error("it stays with nobody there")
	}
	if got := w.ask(a, pa, "row z"); got != "TDCZ" {
		t.Errorf("afterwards: %q", got)
	}
}

// TestHandoverDrains: those who are not wanted are told to go over a minute, between
// their transactions.
func TestHandoverDrains(t *testing.T) {
	w := newFakeWorld(t, nil)
	db := database("d", 2)
	var clients []*client
	var peers []*peer
	for range 4 {
		cl, p := w.welcomed(db)
		clients, peers = append(clients, cl), append(peers, p)
	}
	w.ask(clients[0], peers[0], "begin")
	h := startHandover(t, w, db)
	h.refuse = func(i *carriedItem) bool { return i.Client != nil || i.Pair != nil }
	h.finish()
	gone := func() (n int) {
		w.m.tickHeir()
		w.settle()
		for _, cl := range clients {
			if cl.state == clientClosing || cl.state == clientGone {
				n++
			}
		}
		return n
	}
	for i, want := range []int{0, 2, 3} {
		if got := gone(); got != want {
			t.Errorf("after %d half minutes %d clients were told to go, want %d", i, got, want)
		}
		w.m.now += drainTime / 2
	}
	if got := w.ask(clients[0], peers[0], "row x"); got != "TDCZ" {
		t.Errorf("in the transaction: %q", got)
	}
	w.ask(clients[0], peers[0], "commit")
	if got := gone(); got != 4 || !strings.Contains(string(peers[1].take()), "57P01") {
		t.Errorf("%d clients were told to go at the end, want 4", got)
	}
}

// TestHandoverBroken: what the new process had not acknowledged goes on here.
func TestHandoverBroken(t *testing.T) {
	w := newFakeWorld(t, nil)
	db := database("d", 2)
	a, pa := w.welcomed(db)
	b, pb := w.welcomed(db)
	w.ask(a, pa, "row x")
	w.ask(b, pb, "begin")
	startHandover(t, w, db)
	w.settle()
	if !leaving(&a.conn) || !leaving(&b.conn) || !leaving(&b.server.conn) {
		t.Fatalf("states %d, %d", a.state, b.state)
	}
	w.peers[&a.conn].sock = msgQuery("row y") // sent while nobody looks
	w.m.heirGone()
	w.settle()
	if got := types(t, pa.take()); got != "TDCZ" {
		t.Errorf("got %q", got)
	}
	if got := w.ask(b, pb, "row z"); got != "TDCZ" || b.server.status != pgwire.TxActive {
		t.Errorf("in the transaction: %q", got)
	}
}

// TestHandoverKnowsAllState: each field of what is handed over is either carried,
// or made anew, or nothing for what is at rest. Whoever adds one decides.
func TestHandoverKnowsAllState(t *testing.T) {
	for _, x := range []struct {
		of    any
		known string
	}{
		{client{}, `conn state pool lk server id key sameKey protocol login use mode renames watched unnamedLeft addr local applied varsSet held heldEnd names
			unnamed unnamedSeq refused waitNotified stays cancelWanted connectedAt requestedAt since linkedAt`},
		{server{}, `conn state pool lk client id key network addr host byName local applied epoch left pinned checking ownRows stalledDry expects flight skipping copyIn stalled tainted
			touched status lastType prepared unnamedSeq flightNo unnamedFlight cancels cancelled cut graceful rolledBack setError
			testing unreset openedAt since usedAt busyAt`},
		{conn{}, `slot gen fd cl sv readable ended broken writable queued dirty dropped noted parked tls tlsInfo in out spill bye`},
		{framer{}, `gather want left drop small`},
	} {
		known := strings.Fields(x.known)
		typ := reflect.TypeOf(x.of)
		for i := range typ.NumField() {
			if name := typ.Field(i).Name; !slices.Contains(known, name) {
				t.Errorf("field %s of %s is new: have it carried by carry.go if a client or server at rest can have it, "+
					"and add it here", name, typ)
			}
		}
	}
}
