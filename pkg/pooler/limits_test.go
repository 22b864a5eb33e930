package pooler

import (
	"cmp"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// pass lets time pass, with the janitor's rounds in it.
func (w *fakeWorld) pass(d time.Duration) {
	for end := w.m.now + d; w.m.now < end; {
		w.m.now += min(tickInterval, end-w.m.now)
		w.m.tick()
		w.settle()
	}
}

// logText has the machine log into a text.
func (w *fakeWorld) logText() *strings.Builder {
	var text strings.Builder
	w.m.log = slog.New(slog.NewTextHandler(&text, &slog.HandlerOptions{Level: slog.LevelDebug}))
	return &text
}

// TestReservePool: a client that has waited for reserve_pool_timeout gets a
// server beyond the pool's size, and the log says so in PgBouncer's words.
func TestReservePool(t *testing.T) {
	w := newFakeWorld(t, func(l *limits) { l.reserveAfter = 5 * time.Second })
	text := w.logText()
	db := database("d", 1)
	db.ReservePoolSize = 1
	a, pa := w.welcomed(db)
	b, pb := w.welcomed(db)
	c, pc := w.welcomed(db)
	w.ask(a, pa, "begin")
	if got := w.ask(b, pb, "begin"); got != "" {
		t.Fatalf("the second client got %q", got)
	}
	w.pass(4 * time.Second)
	w.ask(c, pc, "row c")
	if b.state != clientWaiting || strings.Contains(text.String(), "reserve_pool") {
		t.Fatal("the reserve was used too early")
	}
	w.pass(time.Second)
	if got := types(t, pb.take()); got != "CZ" || a.pool.open() != 2 {
		t.Fatalf("the second client got %q, %d servers", got, a.pool.open())
	}
	if !strings.Contains(text.String(), `level=WARN msg="taking connection from reserve_pool" client=10.0.0.1:1000`) {
		t.Errorf("log:\n%s", text)
	}
	w.pass(20 * time.Second)
	if c.state != clientWaiting || a.pool.open() != 2 {
		t.Errorf("%d servers, the reserve is 1", a.pool.open())
	}
}

// TestMinPoolSize: a pool that has clients, or a user of its own, keeps its
// servers.
func TestMinPoolSize(t *testing.T) {
	w := newFakeWorld(t, nil)
	db := database("d", 5)
	db.MinPoolSize = 3
	a, pa := w.welcomed(db)
	w.pass(2 * time.Second)
	if got := a.pool.live(); got != 3 {
		t.Fatalf("%d servers, want 3", got)
	}
	w.ask(a, pa, "row x")
	w.pass(w.m.limits.serverIdle + time.Second)
	if got := a.pool.live(); got != 3 {
		t.Errorf("%d servers after the idle timeout, want 3", got)
	}
	w.m.closeServer(cmp.Or(a.pool.idle.head, a.pool.used.head), "test")
	w.pass(time.Second)
	if got := a.pool.live(); got != 3 {
		t.Errorf("%d servers after one was lost, want 3", got)
	}
	w.hangUp(&a.conn)
	w.settle()
	w.m.closeServer(cmp.Or(a.pool.idle.head, a.pool.used.head), "test")
	w.pass(time.Second)
	if got := a.pool.live(); got != 2 {
		t.Errorf("%d servers of a pool without clients, want 2", got)
	}
	db.User = "u"
	w.pass(time.Second)
	if got := a.pool.live(); got != 3 {
		t.Errorf("%d servers of a pool with a user, want 3", got)
	}
	a.pool.size = 1
	w.pass(time.Second)
	if got := a.pool.live(); got != 1 {
		t.Errorf("%d servers after the size was reduced to 1", got)
	}
}

// TestEviction: max_db_connections and max_user_connections are never exceeded;
// idle servers of the other pools that share the limit make room, the longest
// idle one first.
func TestEviction(t *testing.T) {
	for _, limit := range []string{"database", "user", "user's own"} {
		w := newFakeWorld(t, func(l *limits) {
			switch limit {
			case "user":
				l.maxUser = 2
			case "user's own":
				l.users = map[string]User{"u": {MaxConnections: 2}}
			}
		})
		text := w.logText()
		dbs, users := []string{"d", "d", "d"}, []string{"u1", "u2", "u3"}
		if limit != "database" {
			dbs, users = []string{"d1", "d2", "d3"}, []string{"u", "u", "u"}
		}
		var clients []*client
		var peers []*peer
		for i := range dbs {
			db := database(dbs[i], 5)
			if limit == "database" {
				db.MaxConnections = 2
			}
			cl, p := w.newClientAs(db, users[i])
			clients, peers = append(clients, cl), append(peers, p)
			w.m.now += time.Second
			w.settle()
			p.take()
		}
		total := func() (n int) {
			for _, p := range w.m.pools {
				n += p.open()
			}
			return n
		}
		// The welcome of the third has cost the first its server.
		if n := total(); n != 2 || clients[0].pool.live() != 0 {
			t.Fatalf("%s: %d servers, the first pool has %d", limit, n, clients[0].pool.live())
		}
		if got := w.ask(clients[2], peers[2], "begin"); got != "CZ" {
			t.Fatalf("%s: %q", limit, got)
		}
		if got := w.ask(clients[1], peers[1], "begin"); got != "CZ" {
			t.Fatalf("%s: %q", limit, got)
		}
		if got := w.ask(clients[0], peers[0], "row x"); got != "" || total() != 2 {
			t.Fatalf("%s: %q, %d servers", limit, got, total())
		}
		if got := w.ask(clients[1], peers[1], "commit"); got != "CZ" {
			t.Fatalf("%s: %q", limit, got)
		}
		// The server that became idle makes room at once.
		if got := types(t, peers[0].take()); got != "TDCZ" || total() != 2 {
			t.Fatalf("%s: the waiting client got %q, %d servers", limit, got, total())
		}
		if !strings.Contains(text.String(), "closing because: evicted") {
			t.Errorf("%s: log:\n%s", limit, text)
		}
	}
}

// TestStarvation: a pool whose servers never come to rest gives one up for a
// client of another pool that a shared limit leaves without any.
func TestStarvation(t *testing.T) {
	w := newFakeWorld(t, nil)
	busy, other := database("d", 5), database("d", 5)
	busy.MaxConnections, other.MaxConnections = 1, 1
	a, pa := w.newClientAs(busy, "u1")
	w.settle()
	b, pb := w.newClientAs(busy, "u1")
	w.settle()
	w.ask(a, pa, "begin")
	c, pc := w.newClientAs(other, "u2")
	w.settle()
	// A and B hand the server to each other.
	turn := func(from *client, to *client) {
		w.send(&to.conn, msgQuery("begin"))
		w.settle()
		w.send(&from.conn, msgQuery("commit"))
		w.settle()
	}
	from, to := a, b
	for range 10 {
		turn(from, to)
		from, to = to, from
		w.pass(200 * time.Millisecond)
		if c.state == clientIdle {
			break
		}
	}
	if got := types(t, pc.take()); c.state != clientIdle || !strings.HasSuffix(got, "KZ") {
		t.Fatalf("the third client is in state %d and got %q", c.state, got)
	}
	w.pass(3 * time.Second)
	if w.m.dbUses["d"].servers > 1 {
		t.Errorf("%d servers, want 1", w.m.dbUses["d"].servers)
	}
	_, _ = pa, pb
}

// TestClientLimits: clients beyond a limit are refused in PgBouncer's words, and
// those who leave make room.
func TestClientLimits(t *testing.T) {
	for _, tt := range []struct {
		name  string
		limit func(l *limits, db *Database)
		want  string
	}{
		{"database", func(_ *limits, db *Database) { db.MaxClientConnections = 2 }, "client connections exceeded (max_db_client_connections)"},
		{"user", func(l *limits, _ *Database) { l.maxUserClients = 2 }, "client connections exceeded (max_user_client_connections)"},
		{"user's own", func(l *limits, _ *Database) {
			l.maxUserClients, l.users = 100, map[string]User{"u": {MaxClientConnections: 2}}
		}, "client connections exceeded (max_user_client_connections)"},
	} {
		db := database("d", 1)
		w := newFakeWorld(t, func(l *limits) { tt.limit(l, db) })
		a, _ := w.newClientAs(db, "u")
		w.newClientAs(db, "u")
		w.settle()
		c, pc := w.newClientAs(db, "u")
		w.settle()
		if got := string(pc.take()); !strings.Contains(got, tt.want) || !strings.Contains(got, "C08P01") || c.state != clientClosing {
			t.Errorf("%s: got %q", tt.name, got)
		}
		w.hangUp(&c.conn)
		w.send(&a.conn, terminateMsg)
		w.settle()
		d, pd := w.newClientAs(db, "u")
		w.settle()
		if got := types(t, pd.take()); !strings.HasSuffix(got, "KZ") {
			t.Errorf("%s: after one left, the next got %q", tt.name, got)
		}
		w.hangUp(&d.conn)
		w.m.stop()
		w.m.abandon()
		if w.m.userUses["u"].clients != 0 || w.m.dbUses["d"].clients != 0 || w.m.dbUses["d"].servers != 0 {
			t.Errorf("%s: left behind: %+v, %+v", tt.name, w.m.userUses["u"], w.m.dbUses["d"])
		}
	}
}

// TestUserSizes: a user's sizes go before the database's.
func TestUserSizes(t *testing.T) {
	w := newFakeWorld(t, func(l *limits) { l.users = map[string]User{"u": {PoolSize: 3, ReservePoolSize: -1}} })
	db := database("d", 7)
	db.ReservePoolSize, db.MinPoolSize = 4, -1
	for user, want := range map[string][3]int{"u": {3, 0, 0}, "v": {7, 0, 4}} {
		p := w.m.poolFor(db, user)
		if got := [3]int{p.size, p.minSize, p.reserve}; got != want {
			t.Errorf("user %s: size, minimum and reserve are %v, want %v", user, got, want)
		}
	}
}

// checkLimits looks that no limit is exceeded and the counts are right.
func checkLimits(t *testing.T, w *fakeWorld, seed uint64) {
	t.Helper()
	dbs, users := make(map[*usage]int), make(map[*usage]int)
	for _, p := range w.m.pools {
		dbs[p.dbUse] += p.open()
		users[p.userUse] += p.open()
		if p.open() > p.size+p.reserve {
			t.Fatalf("seed %d: %d servers in pool %v of size %d with a reserve of %d", seed, p.open(), p.key, p.size, p.reserve)
		}
		if limit := p.db.MaxConnections; limit > 0 && p.dbUse.servers > limit {
			t.Fatalf("seed %d: %d servers of a database with a limit of %d", seed, p.dbUse.servers, limit)
		}
		if limit := w.m.limits.maxUser; limit > 0 && p.userUse.servers > limit {
			t.Fatalf("seed %d: %d servers of a user with a limit of %d", seed, p.userUse.servers, limit)
		}
	}
	for _, counted := range []map[*usage]int{dbs, users} {
		for u, n := range counted {
			if u.servers != n {
				t.Fatalf("seed %d: %d servers counted for %s, there are %d", seed, u.servers, u.name, n)
			}
		}
	}
}

// checkServed looks, when the machine has come to rest, that nobody waits who
// could have a server.
func checkServed(t *testing.T, w *fakeWorld, seed uint64) {
	t.Helper()
	idle := make(map[*usage]int) // servers that others could have
	for _, p := range w.m.pools {
		idle[p.dbUse] += p.idle.n
		idle[p.userUse] += p.idle.n
	}
	for _, p := range w.m.pools {
		if p.waiting.n+p.greeting.n == 0 || w.m.now < p.retryAt {
			continue
		}
		if p.idle.n > 0 {
			t.Fatalf("seed %d: %d clients wait in pool %v, which has %d idle servers", seed, p.waiting.n, p.key, p.idle.n)
		}
		if p.wanted() > 0 && w.m.hasRoom(p) && (!w.m.dbFull(p) || idle[p.dbUse] > 0) && (!w.m.userFull(p) || idle[p.userUse] > 0) {
			t.Fatalf("seed %d: %d clients wait in pool %v, which may open a server: it has %d of %d", seed, p.waiting.n, p.key, p.open(), p.size)
		}
	}
}
