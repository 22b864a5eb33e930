package pooler

import (
	"errors"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// TestPause: clients wait, servers go as they become free, and nothing is lost.
func TestPause(t *testing.T) {
	w := newFakeWorld(t, nil)
	db := database("d", 2)
	a, pa := w.welcomed(db)
	b, pb := w.welcomed(db)
	w.ask(b, pb, "row x")
	if got := w.ask(a, pa, "begin"); got != "CZ" {
		t.Fatalf("begin: %q", got)
	}
	var told []error
	w.m.pauseAll()
	w.m.await(watch{what: 1, pause: true, ready: func() bool { return w.m.serverless("") }, done: func(err error) { told = append(told, err) }})
	if got := w.ask(b, pb, "row y"); got != "" || b.state != clientWaiting {
		t.Errorf("new transaction: %q in state %d", got, b.state)
	}
	if got := w.ask(a, pa, "row z"); got != "TDCZ" || len(told) != 0 {
		t.Errorf("in the transaction: %q; told %v", got, told)
	}
	w.m.tick()
	if got := w.ask(a, pa, "commit"); got != "CZ" || len(told) != 1 || told[0] != nil || a.pool.live() != 0 {
		t.Fatalf("at its end: %q; told %v, %d servers", got, told, a.pool.live())
	}
	// Whoever logs in meanwhile waits, too, and a login under way brings nothing.
	c, pc := w.welcomed(db)
	if got := w.ask(c, pc, "row w"); got != "" || len(w.dials) != 0 {
		t.Errorf("newcomer: %q", got)
	}
	w.m.dialFor(a.pool)
	w.m.countServers(a.pool, 1)
	if sv := w.m.addServer(a.pool, loggedIn{params: newBackend().params(), epoch: a.pool.epoch}); sv.state != serverGone {
		t.Errorf("server in state %d", sv.state)
	}
	w.m.dialFor(a.pool)
	w.m.countServers(a.pool, 1)
	w.m.loginFailed(a.pool, pgwire.NewError(pgwire.SeverityFatal, "28000", "no"), true)
	w.settle()
	if b.state != clientWaiting || c.state != clientWaiting {
		t.Errorf("a failed login ended clients: states %d, %d", b.state, c.state)
	}
	w.m.resumeAll()
	w.settle()
	if got := types(t, pb.take()) + types(t, pc.take()); got != "TDCZTDCZ" {
		t.Errorf("after RESUME: %q", got)
	}
}

// TestPauseDatabase: one database is paused, another is not; ending the pause
// tells those who wait for it.
func TestPauseDatabase(t *testing.T) {
	w := newFakeWorld(t, nil)
	d, e := database("d", 1), database("e", 1)
	a, pa := w.welcomed(d)
	b, pb := w.welcomed(e)
	w.ask(a, pa, "begin")
	w.m.mark("d", func(k *mark) { k.paused = true })
	var told error
	w.m.await(watch{what: 1, pause: true, ready: func() bool { return w.m.serverless("d") }, done: func(err error) { told = err }})
	if got := w.ask(b, pb, "row x"); got != "TDCZ" {
		t.Errorf("the other database: %q", got)
	}
	w.m.endPauses()
	w.m.mark("d", func(k *mark) { k.paused = false })
	if !errors.Is(told, errResumed) || len(w.m.marks) != 0 {
		t.Errorf("told %v, marks %v", told, w.m.marks)
	}
	if got := w.ask(a, pa, "commit") + w.ask(a, pa, "row y"); got != "CZTDCZ" {
		t.Errorf("after it: %q", got)
	}
}

// TestKill: a database's clients and servers go, and whoever comes waits.
func TestKill(t *testing.T) {
	w := newFakeWorld(t, nil)
	db := database("d", 3)
	a, pa := w.welcomed(db)
	b, pb := w.welcomed(db)
	c, pc := w.welcomed(db)
	w.ask(a, pa, "begin")
	w.ask(b, pb, "row x")
	w.send(&c.conn, msgParse("", "row x"), pgwire.AppendFlush(nil)) // in the middle
	w.settle()
	pc.take()
	w.m.mark("d", func(k *mark) { k.paused = true })
	w.m.kill(a.pool)
	w.settle()
	for i, p := range []*peer{pa, pb, pc} {
		if got := types(t, p.take()); got != "E" {
			t.Errorf("client %d got %q", i, got)
		}
	}
	if n := a.pool.live(); n != 0 {
		t.Errorf("%d servers live on", n)
	}
	d, pd := w.welcomed(db)
	if got := w.ask(d, pd, "row x"); got != "" {
		t.Errorf("newcomer: %q", got)
	}
	w.m.mark("d", func(k *mark) { k.paused = false })
	w.settle()
	if got := types(t, pd.take()); got != "TDCZ" {
		t.Errorf("after RESUME: %q", got)
	}
}

// TestDisabled: a disabled database takes no new client, and keeps those it has.
func TestDisabled(t *testing.T) {
	w := newFakeWorld(t, nil)
	a, pa := w.welcomed(database("d", 1))
	w.m.mark("d", func(k *mark) { k.disabled = true })
	_, pb := w.newClient(database("d", 1))
	w.settle()
	if got := types(t, pb.take()); got != "RE" {
		t.Errorf("newcomer: %q", got)
	}
	if got := w.ask(a, pa, "row x"); got != "TDCZ" {
		t.Errorf("the other: %q", got)
	}
}

// TestSuspend: when all buffers are empty nothing is read any more, and after
// that all goes on.
func TestSuspend(t *testing.T) {
	w := newFakeWorld(t, nil)
	db := database("d", 2)
	a, pa := w.welcomed(db)
	b, pb := w.welcomed(db)
	w.ask(a, pa, "begin")
	half := msgQuery("row x")
	w.send(&b.conn, half[:3])
	w.settle()
	done := false
	w.m.suspend()
	w.m.await(watch{what: 1, ready: w.m.atStandstill, done: func(error) { done = true }})
	if done {
		t.Error("half a message is in the buffers, and all is quiet?")
	}
	w.send(&b.conn, half[3:])
	w.settle()
	w.m.tick()
	if got := types(t, pb.take()); got != "TDCZ" || !done {
		t.Errorf("the other half: %q, done is %v", got, done)
	}
	if got := w.ask(a, pa, "row y") + w.ask(b, pb, "row y"); got != "" {
		t.Errorf("while suspended: %q", got)
	}
	w.m.goOn()
	w.settle()
	if got := types(t, pa.take()) + types(t, pb.take()); got != "TDCZTDCZ" {
		t.Errorf("after RESUME: %q", got)
	}
}

// TestSuspendTimeout: whoever does not come to rest is closed.
func TestSuspendTimeout(t *testing.T) {
	w := newFakeWorld(t, nil)
	a, _ := w.welcomed(database("d", 1))
	w.send(&a.conn, msgQuery("row x")[:3])
	w.settle()
	w.m.suspend()
	w.m.now += w.m.limits.suspendTimeout - time.Millisecond
	w.m.tick()
	if a.state == clientGone || w.m.atStandstill() {
		t.Errorf("too early: state %d", a.state)
	}
	w.m.now += time.Millisecond
	w.m.tick()
	if a.state != clientGone || !w.m.atStandstill() {
		t.Errorf("state %d", a.state)
	}
}
