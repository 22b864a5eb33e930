package pooler

import (
	"slices"
	"strings"
	"testing"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// inMode is a database whose pool has a size and a mode.
func inMode(mode PoolMode, size int) *Database {
	db := database("d", size)
	db.PoolMode = mode
	return db
}

// backends returns the servers' sessions in the order in which they began.
func (w *fakeWorld) backends() (list []*backend) {
	for _, c := range w.order {
		if c.sv != nil {
			list = append(list, w.peers[c].be)
		}
	}
	return list
}

// ask has a client send a query, and returns the types of the answers.
func (w *fakeWorld) ask(cl *client, p *peer, sql string) string {
	w.t.Helper()
	w.send(&cl.conn, msgQuery(sql))
	w.settle()
	return types(w.t, p.take())
}

// TestSessionPooling: a client keeps its server until it leaves, and the next
// gets it clean.
func TestSessionPooling(t *testing.T) {
	w := newFakeWorld(t, nil)
	db := inMode(PoolSession, 1)
	a, pa := w.welcomed(db)
	b, pb := w.welcomed(db)
	if got := w.ask(a, pa, "row x"); got != "TDCZ" || a.server == nil || !a.resting() {
		t.Fatalf("answers %q, server %v", got, a.server)
	}
	// A client's names are its server's own.
	w.send(&a.conn, msgParse("s", "row s"), syncMsg)
	w.settle()
	if got := types(t, pa.take()); got != "1Z" || w.backends()[0].stmts["s"] == "" {
		t.Fatalf("Parse: %q, statements %v", got, w.backends()[0].stmts)
	}
	if got := w.ask(b, pb, "row y"); got != "" || b.state != clientWaiting {
		t.Fatalf("the other client got %q in state %d", got, b.state)
	}
	if got := w.ask(a, pa, "listen"); got != "ACZ" {
		t.Errorf("notification: %q", got)
	}
	if got := w.ask(a, pa, "begin"); got != "CZ" || a.resting() {
		t.Errorf("begin: %q", got)
	}
	if got := w.ask(a, pa, "commit"); got != "CZ" || a.pool.stats.Transactions != 4 {
		t.Errorf("commit: %q, %d transactions, want 4", got, a.pool.stats.Transactions)
	}
	w.send(&a.conn, terminateMsg)
	w.settle()
	if got := types(t, pb.take()); got != "TDCZ" {
		t.Errorf("the other client got %q at last", got)
	}
	if ran := w.backends()[0].ran; len(w.backends()) != 1 || !slices.Equal(ran[len(ran)-2:], []string{"DISCARD ALL", "row y"}) {
		t.Errorf("%d servers; the first ran %q", len(w.backends()), ran)
	}
	if b.pool.stats.Transactions != 5 {
		t.Errorf("%d transactions, want 5", b.pool.stats.Transactions)
	}
}

// TestResetAfterBrokenSession: a client that vanishes in its transaction leaves
// a server that is rolled back and cleaned.
func TestResetAfterBrokenSession(t *testing.T) {
	w := newFakeWorld(t, nil)
	db := inMode(PoolSession, 1)
	a, pa := w.welcomed(db)
	w.ask(a, pa, "begin")
	w.hangUp(&a.conn)
	w.settle()
	if ran := w.backends()[0].ran; !slices.Equal(ran, []string{"begin", "ROLLBACK", "DISCARD ALL"}) {
		t.Errorf("the server ran %q", ran)
	}
	if _, idle := servers(a.pool); idle != 1 {
		t.Errorf("%d idle servers, want 1", idle)
	}
}

// TestResetFails: a server that cannot be cleaned goes, be it that the query
// fails or that it is not answered.
func TestResetFails(t *testing.T) {
	for _, mute := range []bool{false, true} {
		w := newFakeWorld(t, func(l *limits) { l.resetMsg = queryMsg("fail") })
		db := inMode(PoolSession, 1)
		a, pa := w.welcomed(db)
		b, pb := w.welcomed(db)
		w.ask(a, pa, "row x")
		w.ask(b, pb, "row y")
		w.backends()[0].mute = mute
		w.send(&a.conn, terminateMsg)
		w.settle()
		if mute {
			if n := a.pool.servers[serverTesting]; n != 1 {
				t.Fatalf("%d servers are being cleaned, want 1", n)
			}
			w.m.now += w.m.limits.cancelWait
			w.m.tick()
			w.settle()
		}
		if got := types(t, pb.take()); got != "TDCZ" || len(w.backends()) != 2 {
			t.Errorf("mute %v: the next client got %q, %d servers", mute, got, len(w.backends()))
		}
	}
}

// TestResetAlways: server_reset_query_always cleans where transactions are
// pooled, too; otherwise nothing is run there.
func TestResetAlways(t *testing.T) {
	for _, always := range []bool{false, true} {
		w := newFakeWorld(t, func(l *limits) { l.resetAlways = always })
		a, pa := w.welcomed(database("d", 1))
		w.ask(a, pa, "row x")
		if got := w.ask(a, pa, "begin;row y;commit"); got != "CTDCCZ" {
			t.Errorf("answers %q", got)
		}
		want := "row x,DISCARD ALL,begin,row y,commit,DISCARD ALL"
		if !always {
			want = "row x,begin,row y,commit"
		}
		if ran := strings.Join(w.backends()[0].ran, ","); ran != want {
			t.Errorf("always %v: the server ran %s", always, ran)
		}
	}
}

// TestStatementPooling: what spans statements is refused in PgBouncer's words.
func TestStatementPooling(t *testing.T) {
	for _, flight := range [][]byte{msgQuery("begin"), slices.Concat(msgParse("", "begin"), msgBind("", ""), msgExecute(""), syncMsg)} {
		w := newFakeWorld(t, nil)
		db := inMode(PoolStatement, 1)
		a, pa := w.welcomed(db)
		if got := w.ask(a, pa, "begin;row y;commit"); got != "CTDCCZ" || a.server != nil {
			t.Fatalf("a transaction in one query: %q", got)
		}
		w.send(&a.conn, flight)
		w.settle()
		got := pa.take()
		if !strings.HasSuffix(types(t, got), "CE") || !strings.Contains(string(got), "transaction blocks not allowed in statement pooling mode") ||
			!strings.Contains(string(got), "C08P01") {
			t.Errorf("got %q", got)
		}
		if n := a.pool.live(); n != 0 || a.state != clientClosing || w.m.refusals[refusedStatement] != 1 {
			t.Errorf("%d servers, client in state %d", n, a.state)
		}
		// Others are not touched by it.
		b, pb := w.welcomed(db)
		if got := w.ask(b, pb, "row z"); got != "TDCZ" {
			t.Errorf("the next client got %q", got)
		}
	}
}

// TestStopInSession: at shutdown a session is ended where its transaction ends.
func TestStopInSession(t *testing.T) {
	w := newFakeWorld(t, nil)
	db := inMode(PoolSession, 2)
	a, pa := w.welcomed(db)
	b, pb := w.welcomed(db)
	w.ask(a, pa, "row x")
	w.ask(b, pb, "begin")
	w.m.stop()
	w.settle()
	if got := types(t, pa.take()); got != "E" {
		t.Errorf("the client between transactions got %q", got)
	}
	if got := w.ask(b, pb, "commit"); got != "CZE" {
		t.Errorf("the client in a transaction got %q", got)
	}
}

// TestUserMode: a user's mode goes before the database's.
func TestUserMode(t *testing.T) {
	for _, tt := range []struct{ user, db, want PoolMode }{
		{PoolInherit, PoolInherit, PoolTransaction},
		{PoolInherit, PoolStatement, PoolStatement},
		{PoolSession, PoolStatement, PoolSession},
		{PoolTransaction, PoolSession, PoolTransaction},
	} {
		w := newFakeWorld(t, func(l *limits) { l.users = map[string]User{"u": {PoolMode: tt.user}} })
		if got := w.m.poolFor(inMode(tt.db, 1), "u").mode; got != tt.want {
			t.Errorf("user %v, database %v: %v, want %v", tt.user, tt.db, got, tt.want)
		}
	}
}

// TestSessionParameters: the parameters that a client named at login are set on
// the server that it gets.
func TestSessionParameters(t *testing.T) {
	w := newFakeWorld(t, nil)
	db := inMode(PoolSession, 1)
	a, pa := w.welcomed(db, pgwire.Param{Name: "application_name", Value: "mine"})
	w.send(&a.conn, msgQuery("show application_name"))
	w.settle()
	if got := string(pa.take()); !strings.Contains(got, "mine") {
		t.Errorf("got %q", got)
	}
}
