package pooler

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// TestHotPathDoesNotAllocate: a transaction costs no memory, in any protocol.
func TestHotPathDoesNotAllocate(t *testing.T) {
	tests := map[string][][]byte{
		"simple":   {msgQuery("row x")},
		"extended": {msgParse("", "row x"), msgBind("", ""), pgwire.AppendDescribe(nil, 'P', ""), msgExecute(""), syncMsg},
		"prepared": {msgBind("", "s"), msgExecute(""), syncMsg},
	}
	for name, send := range tests {
		t.Run(name, func(t *testing.T) {
			w := newFakeWorld(t, nil)
			cl, p := w.welcomed(database("d", 1))
			w.send(&cl.conn, msgParse("s", "row x"), syncMsg)
			w.settle()
			var sv *server
			for _, c := range w.order {
				if c.sv != nil {
					sv = c.sv
				}
			}
			request := bytes.Join(send, nil)
			be := w.peers[&sv.conn].be
			be.out = nil
			w.send(&cl.conn, request)
			w.settle()
			got := p.take()
			if !strings.HasSuffix(types(t, got), "DCZ") {
				t.Fatalf("got %q", got)
			}
			answer := append([]byte(nil), got[len(got)-len(answerTo(send)):]...)

			q := &quietWorld{}
			w.m.world = q
			feed := func(c *conn, b []byte) {
				copy(w.m.arena.window(readSize), b)
				in := w.m.arena.window(readSize)[:len(b)]
				w.m.arena.commit(len(b))
				if c.cl != nil {
					w.m.clientReceived(c.cl, in)
				} else {
					w.m.serverData(c.sv, in)
				}
			}
			once := func() {
				cl.readable = true
				if !w.m.turn(&cl.conn) {
					t.Fatal("the client may not be read")
				}
				feed(&cl.conn, request)
				cl.readable = false
				w.m.flush()
				feed(&sv.conn, answer)
				w.m.flush()
			}
			once()
			before := cl.pool.stats.Transactions
			if n := testing.AllocsPerRun(1000, once); n != 0 {
				t.Errorf("%v allocations a transaction, want 0", n)
			}
			if n := cl.pool.stats.Transactions - before; n != 1001 {
				t.Errorf("%d transactions counted, want 1001", n)
			}
			if q.written == 0 {
				t.Error("nothing was sent")
			}
		})
	}
}

// answerTo returns what a session answers.
func answerTo(send [][]byte) []byte {
	b := newBackend()
	b.stmts["s"] = "row x"
	b.feed(bytes.Join(send, nil))
	return b.out
}

// quietWorld takes everything.
type quietWorld struct{ written int }

func (q *quietWorld) dial(*pool)        {}
func (q *quietWorld) cancelOn(*server)  {}
func (q *quietWorld) end(*conn, ending) {}
func (q *quietWorld) write(_ *conn, segs [][]byte) (int, error) {
	n := 0
	for _, s := range segs {
		n += len(s)
	}
	q.written += n
	return n, nil
}

// TestIdleHoldsNoBuffer: after a request a connection has none.
func TestIdleHoldsNoBuffer(t *testing.T) {
	w := newFakeWorld(t, nil)
	cl, _ := w.welcomed(database("d", 1))
	w.send(&cl.conn, msgQuery("rows 5000 "+strings.Repeat("x", 500)))
	w.settle()
	for _, c := range w.order {
		if c.out != nil || c.spill != nil || c.in.gather != nil || c.cl != nil && c.cl.held != nil {
			t.Errorf("connection %d holds a buffer", c.slot)
		}
	}
}

// TestStatementMemory: a client that prepares without end is stopped, and its
// going frees everything.
func TestStatementMemory(t *testing.T) {
	w := newFakeWorld(t, func(l *limits) { l.maxPrepared = 2 })
	cl, p := w.welcomed(database("d", 1))
	big := strings.Repeat("x", 1<<20-100)
	n := 0
	for ; cl.state == clientIdle && n < 1000; n++ {
		w.send(&cl.conn, msgParse(fmt.Sprint("s", n), fmt.Sprint("row ", n, big)), syncMsg)
		w.settle()
	}
	if got := string(p.got); n < 20 || n > 40 || !strings.Contains(got, "C53200") {
		t.Fatalf("stopped after %d MB with %q", n, got[max(0, len(got)-100):])
	}
	w.settle()
	w.hangUp(&cl.conn)
	w.settle()
	if m := w.m.stmts.memory; m > 3*2<<20 {
		t.Errorf("%d bytes of statements kept, want no more than what is on the server", m)
	}
	// Many names for one text count too.
	cl, p = w.welcomed(database("d", 1))
	name := strings.Repeat("n", 8000)
	for n = 0; cl.state == clientIdle && n < 20000; n++ {
		w.send(&cl.conn, msgParse(fmt.Sprint(n, name), "row x"), syncMsg)
		w.settle()
	}
	if !strings.Contains(string(p.got), "C53200") || n > 10000 {
		t.Errorf("not stopped after %d names of 8 kB", n)
	}
}

// TestUnfinishedMessages: clients that begin long messages and do not end them
// are stopped before they fill the memory.
func TestUnfinishedMessages(t *testing.T) {
	w := newFakeWorld(t, func(l *limits) { l.gatherBudget = 1 << 20 })
	db := database("d", 10)
	begun := append(pgwire.AppendHeader(nil, 'P', 900<<10), 's', 0)
	begun = append(begun, bytes.Repeat([]byte{'x'}, 400<<10)...)
	var clients []*client
	for range 5 {
		cl, _ := w.welcomed(db)
		clients = append(clients, cl)
		w.send(&cl.conn, begun)
		w.settle()
	}
	refused := 0
	for _, cl := range clients {
		if cl.state == clientClosing {
			refused++
		}
	}
	if refused != 3 || w.m.gathered > 1<<20 {
		t.Errorf("%d of 5 clients stopped, %d bytes kept; want 3 and at most 1 MB", refused, w.m.gathered)
	}
	for _, cl := range clients {
		w.hangUp(&cl.conn)
	}
	w.settle()
	if w.m.gathered != 0 {
		t.Errorf("%d bytes still counted", w.m.gathered)
	}
}

// TestDeepPipeline: a client may not fill the list of expected answers, and
// gets them all in the end.
func TestDeepPipeline(t *testing.T) {
	w := newFakeWorld(t, nil)
	cl, p := w.welcomed(database("d", 1))
	flight := bytes.Join([][]byte{msgParse("", "row x"), msgBind("", ""), msgExecute(""), syncMsg}, nil)
	w.send(&cl.conn, bytes.Repeat(flight, 20000))
	most := 0
	for range 20000 {
		w.round()
		if cl.server != nil {
			most = max(most, cl.server.expects.n)
		}
		if len(w.m.ready) == 0 {
			break
		}
	}
	w.settle()
	if got := types(t, p.take()); got != strings.Repeat("12DCZ", 20000) {
		t.Errorf("%d answers, want %d", len(got), 5*20000)
	}
	if most < 1000 || most > maxExpected {
		t.Errorf("up to %d entries, want at most %d", most, maxExpected)
	}
}

// TestAmplification: input that makes us send much more is taken in parts.
func TestAmplification(t *testing.T) {
	w := newFakeWorld(t, func(l *limits) { l.maxPrepared = 1 })
	cl, p := w.welcomed(database("d", 1))
	for _, name := range []string{"a", "b"} {
		w.send(&cl.conn, msgParse(name, "row "+name+strings.Repeat(" ", 60<<10)), syncMsg)
		w.settle()
	}
	p.take()
	var send []byte
	for range 60 { // each Bind needs the other statement again
		send = append(send, bytes.Join([][]byte{msgBind("", "a"), msgExecute(""), msgBind("", "b"), msgExecute("")}, nil)...)
	}
	w.send(&cl.conn, send, syncMsg)
	most := 0
	w.room = func(c *conn, want int) int {
		if c.sv != nil {
			most = max(most, want)
		}
		return want
	}
	w.settle()
	if got := types(t, p.take()); got != strings.Repeat("2DC", 120)+"Z" {
		t.Errorf("got %d answers", len(got))
	}
	if most > maxServerOut+128<<10 {
		t.Errorf("%d bytes queued for the server at once", most)
	}
}

// TestStall: what a name means must not hang on a flight that may fail.
func TestStall(t *testing.T) {
	w := newFakeWorld(t, func(l *limits) { l.maxPrepared = 1 })
	cl, p := w.welcomed(database("d", 1))
	w.send(&cl.conn, msgParse("a", "row a"), syncMsg, msgParse("b", "row b"), syncMsg)
	w.settle()
	p.take()
	// The server has b. The first flight fails before it gets a; the second
	// must not believe that it is there.
	w.send(&cl.conn, msgBind("", "nope"), msgBind("", "a"), syncMsg, msgBind("", "a"), msgExecute(""), syncMsg,
		msgBind("", "b"), msgExecute(""), syncMsg)
	w.settle()
	if got := types(t, p.take()); got != "EZ2DCZ2DCZ" {
		t.Errorf("got %q", got)
	}
	// Within a COPY, waiting would be for ever.
	w.send(&cl.conn, msgParse("c", "row c"), syncMsg, msgQuery("copyin"), msgBind("", "c"), msgQuery("row after"))
	w.settle()
	if got := string(p.take()); types(t, []byte(got)) != "1ZGEE" || !strings.Contains(got, "C08P01") {
		t.Errorf("within COPY: got %q", got)
	}
}

// TestPoolsOfFallback: pools that are made for a client's word go again.
func TestPoolsOfFallback(t *testing.T) {
	w := newFakeWorld(t, func(l *limits) { l.serverIdle = time.Second })
	db := database("made-up", 1)
	db.auto = true
	cl, _ := w.welcomed(db)
	w.hangUp(&cl.conn)
	w.settle()
	w.m.tick()
	if len(w.m.pools) != 1 {
		t.Fatal("the pool went with a server in it")
	}
	w.m.now += time.Second
	w.m.tick()
	if len(w.m.pools) != 1 || cl.pool.open() != 0 {
		t.Fatal("the pool does not wait for autodb_idle_timeout")
	}
	w.m.now += w.m.limits.autoIdle + time.Second
	w.m.tick()
	if len(w.m.pools) != 0 {
		t.Error("the pool stays")
	}
	// One that never had a server goes at once.
	cl, _ = w.newClient(db)
	w.m.loginFailed(cl.pool, errServerLost, false)
	w.dials = nil
	w.hangUp(&cl.conn)
	w.settle()
	w.pass(maxTransientWait)
	if len(w.m.pools) != 0 {
		t.Error("a pool that never was stays")
	}
}

// TestGrow: as many servers are opened as clients wait for, a few at a time.
func TestGrow(t *testing.T) {
	w := newFakeWorld(t, nil)
	db := database("d", 6)
	var clients []*client
	for range 20 {
		cl, _ := w.newClient(db)
		clients = append(clients, cl)
	}
	if len(w.dials) != 1 {
		t.Fatalf("%d dials for the welcome, want 1", len(w.dials))
	}
	w.settle()
	for _, cl := range clients {
		w.send(&cl.conn, msgQuery("begin"))
	}
	w.round()
	for logins := 1; logins < 6; logins++ {
		if n := len(w.dials); n == 0 || n > maxDialsPerPool || logins+n > 6 {
			t.Fatalf("with %d servers: %d dials", logins, n)
		}
		w.newServer()
		w.round()
	}
	if len(w.dials) != 0 {
		t.Errorf("%d dials for a full pool", len(w.dials))
	}
	if p := clients[0].pool; p.servers[serverActive] != 6 || p.waiting.n != 14 {
		t.Errorf("%d servers active, %d clients wait", p.servers[serverActive], p.waiting.n)
	}
}

// TestSlots: an event for a connection that is gone finds nobody, even when its
// slot is taken again.
func TestSlots(t *testing.T) {
	w := newFakeWorld(t, nil)
	db := database("d", 1)
	a, _ := w.welcomed(db)
	slot, gen := a.slot, a.gen
	if w.m.find(slot, gen) != &a.conn {
		t.Fatal("not found while it is there")
	}
	w.hangUp(&a.conn)
	w.settle()
	if w.m.find(slot, gen) != nil {
		t.Error("found when it is gone")
	}
	b, _ := w.welcomed(db)
	if b.slot != slot || b.gen == gen {
		t.Fatalf("slot %d generation %d, want slot %d again and another generation than %d", b.slot, b.gen, slot, gen)
	}
	if w.m.find(slot, gen) != nil {
		t.Error("an old event reaches the new connection")
	}
	if w.m.find(1000, 0) != nil {
		t.Error("found in a slot that does not exist")
	}
}
