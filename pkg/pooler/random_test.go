package pooler

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

var (
	randomSeed = flag.Uint64("pooler.seed", 0, "run the random test with this seed only")
	randomRuns = flag.Int("pooler.runs", 150, "how many seeds the random test runs")
)

// actor is a client of the random test. It has a reference: a backend of its
// own that is fed the same bytes. What the pooler sends it must be exactly what
// that one sends.
type actor struct {
	id    int
	cl    *client
	p     *peer
	ref   *backend
	want  []byte // the reference's answers
	todo  []byte // generated, not yet sent
	await bool   // the next flight follows when everything was answered

	n       int // flights generated
	names   []string
	inTx    bool
	unnamed bool // an unnamed statement is certain to be there
	killed  bool // its server was
	left    bool
	greeted bool

	violence bool // servers may die
	mode     PoolMode
}

// generate makes the actor's next flight.
func (a *actor) generate(r *rand.Rand) []byte {
	a.n++
	tag := fmt.Sprintf("c%d-%d", a.id, a.n)
	a.await = r.IntN(3) > 0
	row := "row " + tag
	var b []byte
	add := func(m ...[]byte) { b = append(b, bytes.Join(m, nil)...) }
	switch r.IntN(28) {
	case 25:
		add(msgQuery("show my.p")) // of the startup packet
	case 26:
		// Left behind, and shown while the transaction lasts.
		add(msgQuery("set my.q=" + tag + ";show my.q;show my.p"))
		a.await = true
	case 27:
		if len(a.names) > 0 {
			add(msgQuery("deallocate " + a.names[r.IntN(len(a.names))]))
		}
		add(msgQuery(row))
	case 0, 1:
		add(msgQuery(row))
	case 2:
		add(msgQuery(row + ";rows 3 " + tag + ";" + row))
	case 3:
		add(msgQuery(fmt.Sprintf("rows %d %s", r.IntN(400), strings.Repeat(tag, 20))))
	case 4:
		add(msgQuery("fail " + tag))
	case 5, 6:
		if a.mode == PoolStatement {
			add(msgQuery("begin;" + row + ";commit"))
			break
		}
		add(msgQuery("begin"))
		a.inTx = true
	case 7, 8:
		add(msgQuery([]string{"commit", "rollback"}[r.IntN(2)]))
		a.inTx = false
	case 9:
		// The text is unique, or shared with the other clients.
		name := fmt.Sprintf("n%d", len(a.names))
		text := []string{row, "row shared", "begin", "rows 2 shared"}[r.IntN(4)]
		if a.mode == PoolStatement && text == "begin" {
			text = row
		}
		a.names = append(a.names, name)
		add(msgParse(name, text), syncMsg)
		a.await = true // or a later flight would rely on what may yet fail
	case 10, 11:
		if len(a.names) == 0 {
			add(msgQuery(row))
			break
		}
		for range 1 + r.IntN(4) {
			name := a.names[r.IntN(len(a.names))]
			add(msgBind("", name))
			if r.IntN(2) == 0 {
				add(pgwire.AppendDescribe(nil, 'P', ""))
			}
			add(msgExecute(""))
		}
		add(syncMsg)
	case 12:
		add(msgParse("", row), msgBind("", ""), pgwire.AppendDescribe(nil, 'P', ""), msgExecute(""), syncMsg)
	case 13:
		// The two flights of lib/pq.
		add(msgParse("", row), pgwire.AppendDescribe(nil, 'S', ""), syncMsg)
		a.await = true
		a.unnamed = true
		return b
	case 14:
		if a.unnamed {
			add(msgBind("", ""), msgExecute(""), syncMsg)
			return b // still there
		}
		add(msgQuery("notice " + tag))
	case 15:
		// An error in the middle of a flight.
		add(msgParse("", "fail "+tag), msgBind("", ""), msgExecute(""))
		add(msgParse(fmt.Sprintf("x%d", a.n), row), msgBind("", "nope"), msgExecute(""), syncMsg)
		a.await = true
	case 16:
		if len(a.names) == 0 {
			add(syncMsg)
			break
		}
		name := a.names[r.IntN(len(a.names))]
		if r.IntN(2) == 0 {
			add(msgParse(name, "row dup"), syncMsg) // refused if it is there
		} else {
			add(pgwire.AppendDescribe(nil, 'S', name), pgwire.AppendClose(nil, 'S', name), syncMsg)
		}
		a.await = true
	case 17:
		add(msgQuery("copyin"))
		for range r.IntN(5) {
			data := strings.Repeat(tag, 1+r.IntN(50))
			if r.IntN(20) == 0 {
				data = "poison"
			}
			add(msgCopyData(data))
		}
		if r.IntN(4) == 0 {
			add(copyFailMsg)
		} else {
			add(msgCopyDone())
		}
		a.await = true
	case 18:
		add(msgParse("", "copyin"), msgBind("", ""), msgExecute(""), pgwire.AppendFlush(nil), msgCopyData(tag), msgCopyDone(), syncMsg)
		a.await = true
	case 22:
		// As libpq does it: the first Sync is ignored.
		add(msgParse("", "copyin"), msgBind("", ""), msgExecute(""), syncMsg)
		for range r.IntN(5) {
			add(msgCopyData([]string{tag, tag, tag, "poison"}[r.IntN(4)]))
		}
		add(msgCopyDone(), syncMsg)
		a.await = true
	case 23:
		// asyncpg: each step is flushed, the Sync comes last.
		add(msgParse("", row), pgwire.AppendDescribe(nil, 'S', ""), pgwire.AppendFlush(nil))
		add(msgBind("", ""), msgExecute(""), pgwire.AppendFlush(nil), msgBind("", ""), msgExecute(""), syncMsg)
	case 24:
		if len(a.names) > 0 {
			// Several Syncs in one flight, with an error between them.
			name := a.names[r.IntN(len(a.names))]
			add(msgBind("", name), msgExecute(""), syncMsg, msgBind("", "nope"), msgExecute(""), syncMsg)
			add(msgBind("", name), pgwire.AppendClose(nil, 'P', ""), syncMsg)
		}
		add(msgQuery(row))
	case 19:
		add(msgQuery("copyout " + strings.Repeat(tag, 100)))
	case 20:
		add(msgQuery("set application_name='" + []string{tag, "a", "b"}[r.IntN(3)] + "'"))
		add(msgQuery("show application_name"))
	case 21:
		if r.IntN(4) == 0 && !a.inTx {
			add(msgQuery([]string{"deallocate all", "discard all"}[r.IntN(2)]))
			a.await = true
		} else {
			add(msgQuery("show application_name"))
		}
	}
	a.unnamed = false
	return b
}

// randomRun is one seed: clients, servers, and everything that can go wrong, in
// random order.
func randomRun(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 1))
	w := newFakeWorld(t, func(l *limits) {
		l.maxPrepared = 1 + r.IntN(6)
		l.resetAlways = r.IntN(5) == 0
		l.maxUser = r.IntN(3)
		l.reserveAfter = 100 * time.Millisecond
		l.checkDelay = time.Duration(r.IntN(3)) * tickInterval
		l.roundRobin = r.IntN(2) == 0
	})
	db := database("d", 1+r.IntN(3))
	db.PoolMode = []PoolMode{PoolTransaction, PoolTransaction, PoolSession, PoolStatement}[r.IntN(4)]
	w.chunk = func(have int) int { return 1 + r.IntN(min(have, 1+r.IntN(2000))) }
	w.room = func(_ *conn, want int) int {
		if r.IntN(4) > 0 {
			return want
		}
		return r.IntN(want + 1)
	}
	db.ReservePoolSize = r.IntN(2)
	db.MinPoolSize = r.IntN(2)
	db.MaxConnections = r.IntN(4)
	users := []string{"u", "v"}[:1+r.IntN(2)]
	violence := r.IntN(3) == 0 // disconnects and killed servers

	actors := make([]*actor, 2+r.IntN(6))
	for i := range actors {
		a := &actor{id: i, ref: newBackend(), violence: violence, mode: db.PoolMode}
		var set []pgwire.Param
		if r.IntN(2) == 0 {
			name := fmt.Sprintf("app%d", r.IntN(3))
			set = append(set, pgwire.Param{Name: "application_name", Value: name})
			a.ref.vars["application_name"] = name
		}
		if r.IntN(2) == 0 {
			a.ref.vars["my.p"] = fmt.Sprint(r.IntN(2))
			a.ref.start = map[string]string{"my.p": a.ref.vars["my.p"]}
			set = append(set, pgwire.Param{Name: "My.P", Value: a.ref.vars["my.p"]})
		}
		a.cl, a.p = w.newClientAs(db, users[r.IntN(len(users))], set...)
		actors[i] = a
	}
	for range 400 {
		if len(w.dials) > 0 && r.IntN(3) == 0 {
			w.newServer()
		}
		if len(w.cancels) > 0 && r.IntN(3) == 0 {
			sv := w.cancels[0]
			w.cancels = w.cancels[1:]
			w.m.cancelDone(sv)
		}
		for _, c := range w.order {
			if !c.writable && !c.dropped && r.IntN(2) == 0 {
				w.m.becameWritable(c)
			}
		}
		a := actors[r.IntN(len(actors))]
		a.step(w, r)
		if violence && r.IntN(60) == 0 {
			a.leave(w, r)
		}
		if violence && r.IntN(80) == 0 {
			killServer(w, r, actors)
		}
		if r.IntN(60) == 0 {
			// Some servers are to be replaced, say by a change of address.
			w.m.retireWhere(func(sv *server) bool { return sv.slot%2 == 0 })
		}
		w.m.now += time.Millisecond
		if r.IntN(30) == 0 {
			w.m.now += tickInterval
			w.m.tick()
		}
		w.round()
		for _, a := range actors {
			a.check(t, seed)
		}
		checkLimits(t, w, seed)
	}
	w.chunk, w.room = nil, nil
	finish(t, w, r, actors, seed)
}

// finish lets everybody come to the end, and looks that nothing is left.
func finish(t *testing.T, w *fakeWorld, r *rand.Rand, actors []*actor, seed uint64) {
	rest := func() {
		for range 3 {
			for _, c := range w.order {
				if !c.dropped {
					w.m.becameWritable(c)
				}
			}
			w.settle()
			w.m.tick() // a reserve may be due
			w.settle()
			checkLimits(t, w, seed)
			checkServed(t, w, seed)
		}
	}
	for _, a := range actors {
		if a.killed {
			w.hangUp(&a.cl.conn) // it has stopped sending, maybe within a message
		}
	}
	rest()
	for _, a := range actors {
		if a.left || a.killed {
			continue
		}
		// Whatever is open is closed, so that those who wait get their turn.
		end := slices.Concat(a.todo, msgQuery("rollback"), msgQuery("row end"))
		a.todo = nil
		a.ref.feed(end)
		a.collect()
		w.send(&a.cl.conn, end)
	}
	// In session pooling each has to leave for that.
	for range actors {
		rest()
		for _, a := range actors {
			a.check(t, seed)
			if a.mode == PoolSession && !a.left && !a.killed && len(a.p.got) == len(a.want) {
				a.leave(w, r)
			}
		}
	}
	rest()
	for _, a := range actors {
		if !a.left && !a.killed && len(a.p.got) != len(a.want) {
			t.Fatalf("seed %d: client %d in state %d has %d bytes of answers, want %d:\n got …%q\nwant …%q", seed, a.id, a.cl.state,
				len(a.p.got), len(a.want), tail(a.p.got), tail(a.want))
		}
	}
	for _, c := range w.order {
		if c.sv != nil && !c.dropped {
			if c.sv.state != serverIdle && c.sv.state != serverUsed || !w.peers[c].be.clean() {
				t.Fatalf("seed %d: server in state %d, session clean: %v", seed, c.sv.state, w.peers[c].be.clean())
			}
			p, _ := c.sv.rest.get("my.p")
			if be := w.peers[c].be; be.vars["my.q"] != "" || be.vars["my.p"] != p {
				t.Fatalf("seed %d: server has my.q=%s, my.p=%s, believed %s", seed, be.vars["my.q"], be.vars["my.p"], p)
			}
		}
	}
	for _, a := range actors {
		w.hangUp(&a.cl.conn)
	}
	rest()
	w.m.abandon()
	m := w.m
	if len(m.byPID) != 0 || m.stmts.memory != 0 || len(m.stmts.byKey) != 0 || m.gathered != 0 || m.heldBytes != 0 || m.population != 0 {
		t.Fatalf("seed %d: left behind: %d cancel keys, %d bytes of statements, %d statements, %d bytes gathered",
			seed, len(m.byPID), m.stmts.memory, len(m.stmts.byKey), m.gathered)
	}
}

func tail(b []byte) []byte { return b[max(0, len(b)-200):] }

// step has the actor send some bytes.
func (a *actor) step(w *fakeWorld, r *rand.Rand) {
	if a.left || a.killed || !a.skipWelcome() {
		return
	}
	if len(a.todo) == 0 {
		if a.await && len(a.p.got) < len(a.want) {
			return
		}
		a.todo = a.generate(r)
	}
	n := 1 + r.IntN(len(a.todo))
	if r.IntN(2) == 0 {
		n = len(a.todo)
	}
	a.ref.feed(a.todo[:n])
	a.collect()
	w.send(&a.cl.conn, a.todo[:n])
	a.todo = a.todo[n:]
}

func (a *actor) collect() {
	a.want = append(a.want, a.ref.out...)
	a.ref.out = nil
}

// skipWelcome leaves out the welcome, which the reference does not have. It
// reports whether all of it has come.
func (a *actor) skipWelcome() bool {
	if a.greeted {
		return true
	}
	end := bytes.Index(a.p.got, pgwire.AppendReadyForQuery(nil, pgwire.TxIdle))
	if end < 0 {
		return false
	}
	a.p.got = a.p.got[end+6:]
	a.greeted = true
	return true
}

// check holds what the actor got against what it should get.
func (a *actor) check(t *testing.T, seed uint64) {
	if !a.skipWelcome() {
		return
	}
	got := a.p.got
	if a.violence && (a.cl.state == clientClosing || a.cl.state == clientGone) {
		a.killed = true // perhaps it got its server just when that died
	}
	if a.killed {
		got = withoutLastWords(got, a.want)
	}
	if !bytes.HasPrefix(a.want, got) {
		i := 0
		for i < len(got) && i < len(a.want) && got[i] == a.want[i] {
			i++
		}
		t.Fatalf("seed %d: client %d, flight %d: differs at byte %d:\n got …%q\nwant …%q", seed, a.id, a.n, i,
			got[max(0, i-60):min(len(got), i+60)], a.want[max(0, i-60):min(len(a.want), i+60)])
	}
}

// withoutLastWords cuts off what a client is told, in full or in part, when it
// has lost its server.
func withoutLastWords(got, want []byte) []byte {
	words := errServerLost.Append(nil)
	for cut := len(got); cut >= 0 && cut >= len(got)-len(words); cut-- {
		if bytes.HasPrefix(want, got[:cut]) && bytes.HasPrefix(words, got[cut:]) {
			return got[:cut]
		}
	}
	return got
}

// leave has the actor go, politely or not, wherever it stands.
func (a *actor) leave(w *fakeWorld, r *rand.Rand) {
	if a.left {
		return
	}
	a.left = true
	if r.IntN(2) == 0 && len(a.todo) == 0 {
		w.send(&a.cl.conn, terminateMsg)
	}
	w.hangUp(&a.cl.conn)
}

// killServer ends a server as a crash would.
func killServer(w *fakeWorld, r *rand.Rand, actors []*actor) {
	var alive []*conn
	for _, c := range w.order {
		if c.sv != nil && !c.dropped {
			alive = append(alive, c)
		}
	}
	if len(alive) == 0 {
		return
	}
	c := alive[r.IntN(len(alive))]
	for _, a := range actors {
		// A client of which nothing was sent yet gets another server, but the
		// others lose theirs.
		if c.sv.client == a.cl {
			a.killed = true
		}
	}
	p := w.peers[c]
	p.sock = p.sock[:r.IntN(len(p.sock)+1)]
	p.be = newBackend() // whatever is sent there comes to nothing
	p.be.closed = true
	w.hangUp(c)
}

// TestRandom runs random conversations and compares each client's view with
// that of a client that has a server of its own.
func TestRandom(t *testing.T) {
	if *randomSeed != 0 {
		randomRun(t, *randomSeed)
		return
	}
	for seed := uint64(1); seed <= uint64(*randomRuns) && !t.Failed(); seed++ {
		randomRun(t, seed)
	}
}
