package pooler

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// goDown has each server say that it is being shut down, and close.
func (w *fakeWorld) goDown() {
	for _, c := range w.order {
		if p := w.peers[c]; c.sv != nil && !c.dropped {
			p.sock = append(p.sock, pgwire.AppendError(nil, "FATAL", pgwire.CodeAdminShutdown, "terminating connection due to administrator command")...)
			p.be.closed = true
			w.hangUp(c)
		}
	}
}

// refuse answers the dials under way with an error, as lastingFailure has it.
func (w *fakeWorld) refuse(err error) {
	dials := w.dials
	w.dials = nil
	for _, p := range dials {
		e, lasting := lastingFailure(err)
		w.m.loginFailed(p, e, lasting)
	}
}

// TestFailoverHold: while the database stops, is away, and starts, whoever was
// between transactions waits and goes on; who had sent anything is told.
func TestFailoverHold(t *testing.T) {
	w := newFakeWorld(t, nil)
	db := database("d", 5)
	idle, pi := w.welcomed(db)
	busy, pb := w.welcomed(db)
	open, po := w.welcomed(db)
	named, pn := w.welcomed(db, pgwire.Param{Name: "application_name", Value: "x"}) // needs a SET first
	w.ask(idle, pi, "row x")
	w.ask(open, po, "begin")
	// Busy's request has been sent; that of named has not, only the SET.
	w.send(&busy.conn, msgQuery("row b"))
	for len(w.dials) == 0 && busy.state != clientActive {
		w.round()
	}
	w.settle()
	pb.take()
	for _, be := range w.backends() {
		be.mute = true
	}
	w.send(&busy.conn, msgQuery("row b"))
	w.round()
	w.send(&named.conn, msgQuery("show application_name"))
	w.round()
	for named.state == clientWaiting && len(w.dials) > 0 {
		_, p := w.newServer()
		p.be.mute = true
		w.round()
	}
	if busy.state != clientActive || named.state != clientSetting {
		t.Fatalf("busy in state %d, named in %d", busy.state, named.state)
	}
	w.goDown()
	for range 5 {
		w.round()
	}
	for what, p := range map[string]*peer{"busy": pb, "in a transaction": po} {
		if got := string(p.take()); types(t, []byte(got)) != "E" || !strings.Contains(got, "57P01") {
			t.Errorf("%s: got %q", what, got)
		}
	}
	w.send(&idle.conn, msgQuery("row i"))
	w.round()
	// A minute without a database, with all that it may say in that time.
	errs := []error{
		pgwire.NewError("FATAL", pgwire.CodeAdminShutdown, "x"), pgwire.NewError("FATAL", "57P03", "starting up"),
		pgwire.NewError("FATAL", "53300", "full"), &unfit{"server is in hot standby mode"}, &noHost{}, errors.New("connect: connection refused"),
	}
	for i := range 4 * 60 {
		w.m.now += tickInterval
		w.m.tick()
		w.refuse(errs[i%len(errs)])
		w.round()
		if idle.state != clientWaiting || named.state != clientWaiting {
			t.Fatalf("after %v: idle in state %d, named in %d", w.m.now, idle.state, named.state)
		}
	}
	w.pass(maxTransientWait)
	if got := types(t, pi.take()); got != "TDCZ" {
		t.Errorf("idle: got %q", got)
	}
	if got := string(pn.take()); !strings.HasSuffix(types(t, []byte(got)), "TDCZ") || !strings.Contains(got, "x") {
		t.Errorf("named: got %q", got)
	}
}

// TestHoldIsBounded: a client waits for query_wait_timeout, and is told why.
func TestHoldIsBounded(t *testing.T) {
	w := newFakeWorld(t, func(l *limits) { l.queryWait = 10 * time.Second })
	cl, p := w.welcomed(database("d", 1))
	w.goDown()
	w.round()
	w.round()
	w.send(&cl.conn, msgQuery("row x"))
	w.round()
	for range 4*10 + 1 {
		w.m.now += tickInterval
		w.m.tick()
		w.refuse(pgwire.NewError("FATAL", "57P03", "the database system is starting up"))
		w.round()
	}
	if got := string(p.take()); types(t, []byte(got)) != "E" || !strings.Contains(got, "query_wait_timeout") || !strings.Contains(got, "starting up") {
		t.Errorf("got %q", got)
	}
}
