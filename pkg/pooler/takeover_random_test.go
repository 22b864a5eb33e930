package pooler

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// TestHandoverRandom is the random test with takeovers at random moments.
func TestHandoverRandom(t *testing.T) {
	runs := uint64(*randomRuns)
	if *randomSeed != 0 {
		handoverRun(t, *randomSeed)
		return
	}
	for seed := uint64(1); seed <= runs && !t.Failed(); seed++ {
		handoverRun(t, seed)
	}
}

func handoverRun(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 2))
	w := newFakeWorld(t, func(l *limits) { l.maxPrepared = 1 + r.IntN(6) })
	db := database("d", 1+r.IntN(3))
	db.PoolMode = []PoolMode{PoolTransaction, PoolTransaction, PoolSession}[r.IntN(3)]
	w.chunk = func(have int) int { return 1 + r.IntN(min(have, 1+r.IntN(2000))) }
	w.room = func(_ *conn, want int) int {
		if r.IntN(4) > 0 {
			return want
		}
		return r.IntN(want + 1)
	}
	actors := make([]*actor, 2+r.IntN(6))
	home := make(map[*actor]*fakeWorld)
	for i := range actors {
		a := &actor{id: i, ref: newBackend(), mode: db.PoolMode}
		a.cl, a.p = w.newClient(db)
		actors[i], home[a] = a, w
	}
	var h *handover
	begin := func() {
		old := w
		h = startHandover(t, old, db)
		w = h.new
		h.moved = func(p *peer, cl *client) {
			for _, a := range actors {
				if a.p == p {
					a.cl, home[a] = cl, w
				}
			}
		}
		h.refuse = func(i *carriedItem) bool { return i.Server != nil && r.IntN(8) == 0 }
	}
	end := func() bool {
		if !h.old.m.vacant() || len(h.mail)+len(h.answers) > 0 {
			return false
		}
		h.new.m.legacyGone()
		h = nil
		return true
	}
	worlds := func() []*fakeWorld {
		if h != nil {
			return []*fakeWorld{h.old, h.new}
		}
		return []*fakeWorld{w}
	}
	for range 500 {
		switch {
		case h == nil && r.IntN(60) == 0:
			begin()
		case h != nil && r.IntN(20) == 0 && len(h.answers) == 0 && h.new.m.vacant():
			// The new process dies before it has said that it has anything.
			w = h.old
			w.m.heirGone()
			h = nil
		case h != nil:
			h.number()
			for r.IntN(3) > 0 && h.read() {
			}
			for r.IntN(3) > 0 && h.answer() {
			}
			end()
		}
		for _, v := range worlds() {
			if len(v.dials) > 0 && r.IntN(3) == 0 {
				v.newServer()
			}
			for _, c := range v.order {
				if !c.writable && !c.dropped && r.IntN(2) == 0 {
					v.m.becameWritable(c)
				}
			}
			v.m.now += 1e6
			if r.IntN(30) == 0 {
				v.m.now += tickInterval
				v.m.tick()
				if v.m.heir != nil {
					v.m.tickHeir()
				}
			}
		}
		a := actors[r.IntN(len(actors))]
		a.step(home[a], r)
		if h != nil {
			h.number()
		}
		for _, v := range worlds() {
			v.round()
		}
		for _, a := range actors {
			a.check(t, seed)
		}
	}
	w.chunk, w.room = nil, nil
	if h != nil {
		h.old.chunk, h.old.room = nil, nil
		h.refuse = nil
		for _, a := range actors { // whoever is within a flight ends it
			a.ref.feed(a.todo)
			a.collect()
			home[a].send(&a.cl.conn, a.todo)
			a.todo = nil
		}
		for range 5 {
			for _, v := range worlds() {
				for _, c := range v.order {
					if !c.dropped {
						v.m.becameWritable(c)
					}
				}
			}
			h.finish()
		}
		if !end() {
			for _, c := range h.old.order {
				if !c.dropped {
					t.Logf("left: %s", describeConn(c))
				}
			}
			t.Fatalf("seed %d: the old process keeps %d clients", seed, h.old.m.population)
		}
	}
	finish(t, w, r, actors, seed)
}

func describeConn(c *conn) string {
	if sv := c.sv; sv != nil {
		return fmt.Sprintf("server in state %d, clean %v, readable %v, expects %d, flight %v, copy %v, tainted %v", sv.state, c.clean(),
			c.readable, sv.expects.n, sv.flight, sv.copyIn, sv.tainted)
	}
	return fmt.Sprintf("client in state %d, clean %v, readable %v, held %d, in %+v, server %v", c.cl.state, c.clean(), c.readable, len(c.cl.held), c.in.left, c.cl.server != nil)
}
