package pooler

import (
	"strings"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// TestTimeouts: each timeout ends its client, with PgBouncer's reason, and not a
// moment before; the server is cleaned and stays.
func TestTimeouts(t *testing.T) {
	const limit = 10 * time.Second
	query := Timeouts{Query: limit}
	idleTx := Timeouts{IdleTransaction: limit}
	tx := Timeouts{Transaction: limit}
	idle := Timeouts{ClientIdle: limit}
	for _, tt := range []struct {
		name  string
		mode  PoolMode
		limit Timeouts
		send  [][]byte
		mute  bool // the server does not answer
		want  string
	}{
		{"query", 0, query, [][]byte{msgQuery("row x")}, true, "query timeout"},
		{"query without a Sync", 0, query, [][]byte{msgParse("", "row x"), pgwire.AppendFlush(nil)}, false, "query timeout"},
		{"open transaction is no query", 0, query, [][]byte{msgQuery("begin")}, false, ""},
		{"idle client runs no query", 0, query, [][]byte{msgQuery("row x")}, false, ""},
		{"idle in transaction", 0, idleTx, [][]byte{msgQuery("begin")}, false, "idle transaction timeout"},
		{"idle in failed transaction", 0, idleTx, [][]byte{msgQuery("begin;fail")}, false, "idle transaction timeout"},
		{"query is not idle", 0, idleTx, [][]byte{msgQuery("row x")}, true, ""},
		{"session is no transaction", PoolSession, idleTx, [][]byte{msgQuery("row x")}, false, ""},
		{"transaction, idle", 0, tx, [][]byte{msgQuery("begin")}, false, "transaction timeout"},
		{"transaction, busy", 0, tx, [][]byte{msgQuery("row x")}, true, "transaction timeout"},
		{"transaction in a session", PoolSession, tx, [][]byte{msgQuery("begin")}, false, "transaction timeout"},
		{"between transactions of a session", PoolSession, tx, [][]byte{msgQuery("begin"), msgQuery("commit")}, false, ""},
		{"idle client", 0, idle, [][]byte{msgQuery("row x")}, false, "client_idle_timeout"},
		{"idle client that asked nothing", 0, idle, nil, false, "client_idle_timeout"},
		{"transaction is not idle", 0, idle, [][]byte{msgQuery("begin")}, false, ""},
		{"session is not idle", PoolSession, idle, [][]byte{msgQuery("row x")}, false, ""}, // as in PgBouncer
	} {
		for _, own := range []bool{false, true} { // the limit of all, and of the user
			w := newFakeWorld(t, func(l *limits) {
				l.timeouts = tt.limit
				if own {
					l.timeouts, l.users = Timeouts{}, map[string]User{"u": {Timeouts: tt.limit}}
				}
			})
			cl, p := w.welcomed(inMode(tt.mode, 1))
			w.backends()[0].mute = tt.mute
			w.send(&cl.conn, tt.send...)
			w.settle()
			p.take()
			w.pass(limit)
			if cl.state == clientClosing || cl.state == clientGone {
				t.Fatalf("%s: too early: %q", tt.name, p.take())
			}
			w.pass(tickInterval)
			got := string(p.take())
			if tt.want == "" {
				if got != "" {
					t.Errorf("%s: got %q", tt.name, got)
				}
				continue
			}
			if types(t, []byte(got)) != "E" || !strings.Contains(got, "M"+tt.want+"\x00") || !strings.Contains(got, "C08P01") ||
				w.m.refusals[refusedTimeout] != 1 {
				t.Errorf("%s: got %q, want %s", tt.name, got, tt.want)
			}
			if _, idle := servers(cl.pool); !tt.mute && idle != 1 {
				t.Errorf("%s: %d idle servers, want 1", tt.name, idle)
			}
		}
	}
}

// TestQueryTimeoutCancels: what a client has begun is cancelled.
func TestQueryTimeoutCancels(t *testing.T) {
	w := newFakeWorld(t, func(l *limits) { l.timeouts.Query = time.Second })
	cl, _ := w.welcomed(database("d", 1))
	w.backends()[0].mute = true
	w.send(&cl.conn, msgQuery("row x"))
	w.settle()
	w.m.now += 2 * time.Second
	w.m.tick()
	if len(w.cancels) != 1 {
		t.Errorf("%d cancel requests, want 1", len(w.cancels))
	}
}

// TestQueueTimeouts: clients that wait are told once, and end by query_timeout
// or query_wait_timeout, whose value is the user's, the database's or all's.
func TestQueueTimeouts(t *testing.T) {
	for _, tt := range []struct {
		name string
		set  func(l *limits, db *Database)
		at   time.Duration // 0: never
		want string
	}{
		{"all", func(l *limits, _ *Database) { l.queryWait = 7 * time.Second }, 7 * time.Second, "query_wait_timeout"},
		{"none", func(l *limits, _ *Database) { l.queryWait = 0 }, 0, ""},
		{"database", func(_ *limits, db *Database) { db.QueryWaitTimeout = 8 * time.Second }, 8 * time.Second, "query_wait_timeout"},
		{"database without", func(_ *limits, db *Database) { db.QueryWaitTimeout = -1 }, 0, ""},
		{"user", func(l *limits, db *Database) {
			db.QueryWaitTimeout, l.users = time.Second, map[string]User{"u": {QueryWaitTimeout: 9 * time.Second}}
		}, 9 * time.Second, "query_wait_timeout"},
		{"user without", func(l *limits, _ *Database) { l.users = map[string]User{"u": {QueryWaitTimeout: -1}} }, 0, ""},
		{"query_timeout", func(l *limits, _ *Database) { l.timeouts.Query = 6 * time.Second }, 6*time.Second + tickInterval, "query_timeout"},
	} {
		db := database("d", 1)
		w := newFakeWorld(t, func(l *limits) {
			l.waitNotify = 5 * time.Second
			tt.set(l, db)
		})
		// The server is another user's, whose own transaction goes on.
		a, pa := w.welcomed(db)
		w.ask(a, pa, "begin")
		a.linkedAt, a.login = 0, "other"
		b, pb := w.welcomed(db)
		w.ask(b, pb, "row b")
		w.pass(5 * time.Second)
		if got := pb.take(); len(got) > 0 {
			t.Fatalf("%s: told too early: %q", tt.name, got)
		}
		w.pass(tickInterval)
		if got := string(pb.take()); types(t, []byte(got)) != "N" || !strings.Contains(got, "client being queued") {
			t.Errorf("%s: got %q", tt.name, got)
		}
		end := tt.at
		if end == 0 {
			end = time.Hour
		}
		w.pass(end - 5*time.Second - 2*tickInterval)
		if got := pb.take(); len(got) > 0 {
			t.Fatalf("%s: too early: %q", tt.name, got)
		}
		w.pass(tickInterval)
		got := string(pb.take())
		switch {
		case tt.at == 0 && (got != "" || b.state != clientWaiting):
			t.Errorf("%s: got %q", tt.name, got)
		case tt.at > 0 && (types(t, []byte(got)) != "E" || !strings.Contains(got, "M"+tt.want+"\x00")):
			t.Errorf("%s: got %q", tt.name, got)
		}
	}
}

// TestServerCheck: a server that has not been used for server_check_delay
// answers a query before its next use; one that does not is replaced.
func TestServerCheck(t *testing.T) {
	for _, tt := range []struct {
		query string
		mute  bool
		ran   string
	}{
		{CheckEmpty, false, "row a,row b"}, {"row check", false, "row a,row check,row b"}, {"fail", false, "row a,fail"},
		{CheckEmpty, true, "row a"}, {"", false, "row a,row b"},
	} {
		w := newFakeWorld(t, func(l *limits) { l.checkMsg, l.checkDelay = checkMsg(tt.query), 30*time.Second })
		cl, p := w.welcomed(database("d", 1))
		w.ask(cl, p, "row a")
		w.pass(30 * time.Second)
		if _, idle := servers(cl.pool); idle != 1 {
			t.Fatalf("%d idle servers, want 1", idle)
		}
		w.pass(tickInterval)
		if n := cl.pool.servers[serverUsed]; n != 1 && tt.query != "" || n != 0 && tt.query == "" {
			t.Fatalf("%q: %d servers to be checked", tt.query, n)
		}
		first := w.backends()[0]
		first.mute = tt.mute
		got := w.ask(cl, p, "row b")
		if tt.mute {
			w.pass(w.m.limits.cancelWait)
			got = types(t, p.take())
		}
		if ran := strings.Join(first.ran, ","); got != "TDCZ" || ran != tt.ran {
			t.Errorf("%q, mute %v: answers %q; the server ran %s, want %s", tt.query, tt.mute, got, ran, tt.ran)
		}
	}
}

// TestUnusedServersGo: servers to be checked reach their idle timeout, and are
// evicted, like idle ones.
func TestUnusedServersGo(t *testing.T) {
	w := newFakeWorld(t, func(l *limits) { l.serverIdle = time.Minute; l.maxUser = 1 })
	a, _ := w.welcomed(database("d", 1))
	w.pass(40 * time.Second)
	if a.pool.servers[serverUsed] != 1 {
		t.Fatal("the server is not to be checked")
	}
	b, _ := w.welcomed(database("e", 1))
	if a.pool.live() != 0 || b.pool.live() != 1 {
		t.Error("it was not evicted")
	}
	w.pass(59 * time.Second)
	if b.pool.live() != 1 {
		t.Error("the other was closed too early")
	}
	w.pass(2 * time.Second)
	if b.pool.live() != 0 {
		t.Error("the other was not closed")
	}
}

// TestRoundRobin: with server_round_robin servers are used in turn, else the one
// that was used last.
func TestRoundRobin(t *testing.T) {
	for _, turns := range []bool{false, true} {
		w := newFakeWorld(t, func(l *limits) { l.roundRobin = turns })
		db := database("d", 2)
		db.MinPoolSize = 2
		cl, p := w.welcomed(db)
		w.pass(time.Second)
		for range 4 {
			w.ask(cl, p, "row x")
		}
		bs := w.backends()
		if got := [2]int{len(bs[0].ran), len(bs[1].ran)}; turns != (got == [2]int{2, 2}) {
			t.Errorf("in turn %v: the servers ran %v queries", turns, got)
		}
	}
}

// TestClientMessages: disable_pqexec and max_packet_size, with PgBouncer's words.
func TestClientMessages(t *testing.T) {
	w := newFakeWorld(t, func(l *limits) { l.noPQExec, l.maxPacket = true, 100 })
	for sql, want := range map[string]string{"row x": "PQexec disallowed", "row " + strings.Repeat("x", 100): "max_packet_size"} {
		cl, p := w.welcomed(database("d", 1))
		w.send(&cl.conn, msgQuery(sql))
		w.settle()
		if got := string(p.take()); !strings.Contains(got, want) || !strings.Contains(got, "C08P01") {
			t.Errorf("got %q, want %s", got, want)
		}
	}
	cl, p := w.welcomed(database("d", 1))
	w.send(&cl.conn, msgParse("", "row x"), msgBind("", ""), msgExecute(""), syncMsg)
	w.settle()
	if got := types(t, p.take()); got != "12DCZ" {
		t.Errorf("extended: %q", got)
	}
}

// TestPoolIdleTimeout: a pool that nobody uses is forgotten.
func TestPoolIdleTimeout(t *testing.T) {
	w := newFakeWorld(t, func(l *limits) { l.poolIdle, l.serverIdle = time.Minute, time.Second })
	cl, _ := w.welcomed(database("d", 1))
	w.pass(2 * time.Minute)
	if len(w.m.pools) != 1 {
		t.Fatal("a pool that has a client was forgotten")
	}
	w.hangUp(&cl.conn)
	w.settle()
	w.pass(time.Minute)
	if len(w.m.pools) != 1 {
		t.Error("too early")
	}
	w.pass(time.Second)
	if len(w.m.pools) != 0 || len(w.m.dbUses) != 0 || len(w.m.userUses) != 0 {
		t.Error("the pool stays")
	}
}

// TestLifetimeOfDatabase: a database's server_lifetime goes before the general
// one.
func TestLifetimeOfDatabase(t *testing.T) {
	w := newFakeWorld(t, nil)
	db := database("d", 1)
	db.ServerLifetime = time.Minute
	cl, p := w.welcomed(db)
	w.ask(cl, p, "row x")
	w.pass(time.Minute)
	if cl.pool.live() != 0 {
		t.Error("the server is still there")
	}
}
