package pooler

import (
	"strings"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// welcomed logs a client in and takes its welcome.
func (w *fakeWorld) welcomed(db *Database, set ...pgwire.Param) (*client, *peer) {
	w.t.Helper()
	cl, p := w.newClient(db, set...)
	w.settle()
	if got := types(w.t, p.take()); !strings.HasPrefix(got, "RS") || !strings.HasSuffix(got, "SKZ") {
		w.t.Fatalf("welcome is %q", got)
	}
	return cl, p
}

// servers returns how many servers a pool has in the states active and idle.
func servers(p *pool) (active, idle int) { return p.servers[serverActive], p.servers[serverIdle] }

// TestFlights sends one client's messages to one server and looks at the types
// of the answers, and at whether the server is free afterwards.
func TestFlights(t *testing.T) {
	tests := []struct {
		name   string
		send   [][]byte
		want   string // answers to the client
		server string // types of messages that reached the server; not checked if empty
		held   bool   // the client still has the server
	}{
		{"simple", [][]byte{msgQuery("row x")}, "TDCZ", "Q", false},
		{"two in one", [][]byte{msgQuery("row x;row y")}, "TDCTDCZ", "", false},
		{"empty", [][]byte{msgQuery("")}, "IZ", "", false},
		{"simple error", [][]byte{msgQuery("row x;fail;row y")}, "TDCEZ", "", false},
		{"pipelined simple", [][]byte{msgQuery("row x"), msgQuery("row y"), msgQuery("fail")}, "TDCZTDCZEZ", "QQQ", false},
		{"begin", [][]byte{msgQuery("begin")}, "CZ", "", true},
		{"failed transaction", [][]byte{msgQuery("begin;fail")}, "CEZ", "", true},
		{"commit chain", [][]byte{msgQuery("begin;commit;begin")}, "CCCZ", "", true},
		{"notice", [][]byte{msgQuery("notice hello")}, "NCZ", "", false},
		{"notification is nobody's", [][]byte{msgQuery("listen")}, "CZ", "", false},
		{"query and sync", [][]byte{msgQuery("row x"), syncMsg}, "TDCZZ", "", false},
		{"unnamed", [][]byte{msgParse("", "row x"), msgBind("", ""), msgExecute(""), syncMsg}, "12DCZ", "PBES", false},
		{"named", [][]byte{msgParse("s", "row x"), msgBind("", "s"), msgExecute(""), syncMsg}, "12DCZ", "PBES", false},
		{"flush keeps the server", [][]byte{msgParse("", "row x"), pgwire.AppendFlush(nil)}, "1", "PH", true},
		{"no sync keeps the server", [][]byte{msgParse("s", "row x")}, "1", "P", true},
		{"describe statement", [][]byte{msgParse("s", "row x"), pgwire.AppendDescribe(nil, 'S', "s"), syncMsg}, "1tTZ", "", false},
		{"describe no data", [][]byte{msgParse("s", "begin"), pgwire.AppendDescribe(nil, 'S', "s"), syncMsg}, "1tnZ", "", false},
		{"describe portal", [][]byte{msgParse("", "row x"), msgBind("p", ""), pgwire.AppendDescribe(nil, 'P', "p"), syncMsg}, "12TZ", "", false},
		{"parse twice", [][]byte{msgParse("s", "row x"), syncMsg, msgParse("s", "row y"), syncMsg, msgQuery("row z")}, "1ZEZTDCZ", "PSPSQ", false},
		{"second parse is wrong itself", [][]byte{msgParse("s", "row x"), syncMsg, msgParse("s", "syntax"), syncMsg}, "1ZEZ", "PSPS", false},
		{"parse again after close", [][]byte{msgParse("s", "row x"), syncMsg, pgwire.AppendClose(nil, 'S', "s"), msgParse("s", "row x"), syncMsg}, "1Z31Z", "PSS", false},
		{"same text, other name", [][]byte{msgParse("s", "row x"), msgParse("t", "row x"), syncMsg}, "11Z", "PS", false},
		{"error skips to sync", [][]byte{msgParse("s", "syntax"), msgBind("", "s"), msgExecute(""), syncMsg, msgQuery("row x")}, "EZTDCZ", "", false},
		{"error drops fakes", [][]byte{msgParse("s", "row x"), syncMsg, msgParse("", "fail"), msgBind("", ""), msgExecute(""), msgParse("t", "row x"), syncMsg}, "1Z12EZ", "", false},
		{"unknown statement", [][]byte{msgBind("", "nope"), msgExecute(""), syncMsg}, "EZ", "", false},
		{"no unnamed statement", [][]byte{msgBind("", ""), msgExecute(""), syncMsg}, "EZ", "", false},
		{"simple query ends the unnamed", [][]byte{msgParse("", "row x"), syncMsg, msgQuery("row y"), msgBind("", ""), syncMsg}, "1ZTDCZEZ", "", false},
		{"close of nothing", [][]byte{pgwire.AppendClose(nil, 'S', "nope"), syncMsg}, "3Z", "", false},
		{"close of a portal", [][]byte{pgwire.AppendClose(nil, 'P', "nope"), syncMsg}, "3Z", "", false},
		{"copy out", [][]byte{msgQuery("copyout abc")}, "HdddcCZ", "", false},
		{"copy in", [][]byte{msgQuery("copyin"), msgCopyData("a"), msgCopyDone()}, "GCZ", "Qdc", false},
		{"copy in is open", [][]byte{msgQuery("copyin"), msgCopyData("a")}, "G", "", true},
		{"copy in fails", [][]byte{msgQuery("copyin"), msgCopyData("poison"), msgCopyData("a"), msgCopyDone()}, "GEZ", "", false},
		{"copy fail", [][]byte{msgQuery("copyin"), copyFailMsg}, "GEZ", "", false},
		{"copy in, extended", [][]byte{msgParse("", "copyin"), msgBind("", ""), msgExecute(""), syncMsg, msgCopyData("a"), msgCopyDone(), syncMsg}, "12GCZ", "PBESdcS", false},
		{"copy data out of turn", [][]byte{msgCopyData("a"), msgCopyDone(), msgQuery("row x")}, "TDCZ", "Q", false},
		{"sync only", [][]byte{syncMsg}, "Z", "S", false},
		{"deallocate all", [][]byte{msgParse("s", "row x"), syncMsg, msgQuery("deallocate all")}, "1ZCZ", "", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			// All at once, a byte at a time, and message by message.
			for _, mode := range []string{"whole", "bytes", "messages"} {
				w := newFakeWorld(t, nil)
				cl, p := w.welcomed(database("d", 1))
				var reached []byte
				switch mode {
				case "bytes":
					w.chunk = func(int) int { return 1 }
				case "messages":
					for _, msg := range tt.send {
						w.send(&cl.conn, msg)
						w.settle()
					}
				}
				if mode != "messages" {
					w.send(&cl.conn, tt.send...)
					w.settle()
				}
				if got := types(t, p.take()); got != tt.want {
					t.Fatalf("%s: client got %q, want %q", mode, got, tt.want)
				}
				for _, c := range w.order {
					if c.sv != nil {
						reached = append(reached, w.peers[c].got...)
					}
				}
				if got := types(t, reached); tt.server != "" && got != tt.server {
					t.Fatalf("%s: server got %q, want %q", mode, got, tt.server)
				}
				if held := cl.server != nil; held != tt.held {
					t.Fatalf("%s: client has a server: %v, want %v", mode, held, tt.held)
				}
			}
		})
	}
}

// TestSkippedParseIsUndone: after an error, names that were given and taken in
// the rest of the flight are as before.
func TestSkippedParseIsUndone(t *testing.T) {
	w := newFakeWorld(t, nil)
	cl, p := w.welcomed(database("d", 1))
	w.send(&cl.conn, msgParse("s", "row s"), msgParse("u", "row u"), syncMsg)
	w.settle()
	w.send(&cl.conn, msgBind("", "nope"),
		msgParse("t", "row s"),                                    // known to the server
		msgParse("n", "row new"),                                  // not known
		pgwire.AppendClose(nil, 'S', "u"), msgParse("u", "row s"), // given anew
		pgwire.AppendClose(nil, 'S', "s"), syncMsg)
	w.settle()
	p.take()
	for name, want := range map[string]string{"s": "2DCZ", "u": "2DCZ", "t": "EZ", "n": "EZ"} {
		w.send(&cl.conn, msgBind("", name), msgExecute(""), syncMsg)
		w.settle()
		got := p.take()
		if types(t, got) != want || want == "2DCZ" && !strings.Contains(string(got), name) {
			t.Errorf("statement %s: got %q, want %s", name, got, want)
		}
	}
	if n := len(w.m.stmts.byKey); n != 2 {
		t.Errorf("%d statements known, want 2", n)
	}
}

// TestPreparedFollowsClient: with one server and one client that uses it
// meanwhile, a client's statements are there whenever it needs them.
func TestPreparedFollowsClient(t *testing.T) {
	w := newFakeWorld(t, func(l *limits) { l.maxPrepared = 1 })
	db := database("d", 2)
	a, pa := w.welcomed(db)
	b, pb := w.welcomed(db)
	w.send(&a.conn, msgParse("s", "row a"), msgParse("", "row unnamed-a"), syncMsg)
	w.settle()
	w.send(&b.conn, msgParse("s", "row b"), msgParse("", "row unnamed-b"), syncMsg)
	w.settle()
	// A takes the server that was used last, so B gets a fresh one.
	w.send(&a.conn, msgQuery("begin"))
	w.settle()
	pa.take()
	pb.take()
	w.send(&b.conn, msgBind("", ""), msgExecute(""), msgBind("", "s"), msgExecute(""), syncMsg)
	w.settle()
	want := "2DC2DCZ"
	got := pb.take()
	if types(t, got) != want || !strings.Contains(string(got), "unnamed-b") || !strings.Contains(string(got), "b") {
		t.Fatalf("B got %q, want %s with its own rows", got, want)
	}
	// A's simple query has ended its unnamed statement, not the named one.
	w.send(&a.conn, msgBind("", "s"), msgExecute(""), syncMsg, msgBind("", ""), syncMsg)
	w.settle()
	got = pa.take()
	if types(t, got) != "2DCZEZ" || !strings.Contains(string(got), "row") && !strings.Contains(string(got), "a") {
		t.Fatalf("A got %q", got)
	}
	if strings.Contains(string(got), "unnamed-b") {
		t.Fatal("A got a row of B's unnamed statement")
	}
	if st := a.pool.stats; st.ClientParses != 2 || st.ServerParses < 3 {
		t.Errorf("parses: client %d, server %d; want 2 and at least 3", st.ClientParses, st.ServerParses)
	}
}

// TestInternalNamesAreClosed: a client cannot reach another's statement by its
// name on the server.
func TestInternalNamesAreClosed(t *testing.T) {
	w := newFakeWorld(t, nil)
	db := database("d", 1)
	a, _ := w.welcomed(db)
	b, pb := w.welcomed(db)
	w.send(&a.conn, msgParse("s", "row secret"), syncMsg)
	w.settle()
	w.send(&b.conn, msgBind("", "PGSTEER_1"), msgExecute(""), syncMsg, pgwire.AppendClose(nil, 'S', "PGSTEER_1"), syncMsg)
	w.settle()
	if got := types(t, pb.take()); got != "EZ3Z" {
		t.Fatalf("B got %q, want an error", got)
	}
	w.send(&a.conn, msgBind("", "s"), msgExecute(""), syncMsg)
	w.settle()
	if got := types(t, w.peers[&a.conn].take()); got != "1Z2DCZ" {
		t.Fatalf("A got %q: its statement is gone", got)
	}
}

// TestDeallocateAll: the command drops the issuing client's statements and
// nobody else's.
func TestDeallocateAll(t *testing.T) {
	w := newFakeWorld(t, nil)
	db := database("d", 1)
	a, pa := w.welcomed(db)
	b, pb := w.welcomed(db)
	for _, cl := range []*client{a, b} {
		w.send(&cl.conn, msgParse("s", "row x"), syncMsg)
		w.settle()
	}
	w.send(&a.conn, msgQuery("deallocate all"))
	w.settle()
	pa.take()
	pb.take()
	for _, cl := range []*client{a, b} {
		w.send(&cl.conn, msgBind("", "s"), msgExecute(""), syncMsg)
		w.settle()
	}
	if got := types(t, pa.take()); got != "EZ" {
		t.Errorf("A got %q for the statement that it dropped", got)
	}
	if got := types(t, pb.take()); got != "2DCZ" {
		t.Errorf("B got %q for the statement that A dropped", got)
	}
	w.send(&a.conn, msgParse("s", "row again"), msgBind("", "s"), msgExecute(""), syncMsg)
	w.settle()
	if got := types(t, pa.take()); got != "12DCZ" {
		t.Errorf("A got %q for the new statement", got)
	}
}

// TestParametersFollowClient: each client sees its own parameters on whatever
// server, in the server's spelling.
func TestParametersFollowClient(t *testing.T) {
	w := newFakeWorld(t, nil)
	db := database("d", 1)
	a, pa := w.welcomed(db, pgwire.Param{Name: "application_name", Value: "it's \\A"}, pgwire.Param{Name: "datestyle", Value: "iso"})
	b, pb := w.welcomed(db)
	w.send(&a.conn, msgQuery("show application_name"))
	w.settle()
	got := pa.take()
	if types(t, got) != "STDCZ" || !strings.Contains(string(got), "DateStyle\x00ISO, MDY") {
		t.Fatalf("A got %q, want to be told of DateStyle", got)
	}
	w.send(&b.conn, msgQuery("show application_name"))
	w.settle()
	if got := pb.take(); types(t, got) != "TDCZ" || strings.Contains(string(got), "it's") {
		t.Fatalf("B got %q, want the default", got)
	}
	// What B sets stays B's.
	w.send(&b.conn, msgQuery("set application_name='B'"))
	w.settle()
	if got := types(t, pb.take()); got != "CSZ" {
		t.Fatalf("B got %q for SET", got)
	}
	w.send(&a.conn, msgQuery("show application_name"))
	w.settle()
	pa.take()
	w.send(&b.conn, msgQuery("show application_name"))
	w.settle()
	if got := pb.take(); types(t, got) != "TDCZ" || !strings.Contains(string(got), "B") {
		t.Fatalf("B got %q, want B", got)
	}
	if n := a.pool.stats.Settings; n != 4 {
		t.Errorf("%d hand-outs needed a SET, want 4", n)
	}
}

// TestParameterRefused: a server that refuses a client's parameter is not the
// one that goes.
func TestParameterRefused(t *testing.T) {
	w := newFakeWorld(t, nil)
	db := database("d", 1)
	a, pa := w.welcomed(db, pgwire.Param{Name: "TimeZone", Value: "bad"})
	w.send(&a.conn, msgQuery("row x"))
	w.settle()
	if got := string(pa.take()); types(t, []byte(got)) != "E" || !strings.Contains(got, "C22023") || !strings.Contains(got, "FATAL") {
		t.Fatalf("client got %q, want FATAL 22023", got)
	}
	if active, idle := servers(a.pool); active != 0 || idle != 1 {
		t.Errorf("%d servers active, %d idle; want 0 and 1", active, idle)
	}
}

// TestFirstComeFirstServed: clients get the only server in the order in which
// they asked, and nobody is read before.
func TestFirstComeFirstServed(t *testing.T) {
	w := newFakeWorld(t, nil)
	db := database("d", 1)
	var clients []*client
	var peers []*peer
	for range 10 {
		cl, p := w.welcomed(db)
		clients, peers = append(clients, cl), append(peers, p)
	}
	w.send(&clients[0].conn, msgQuery("begin"))
	w.settle()
	for _, cl := range clients[1:] {
		w.send(&cl.conn, msgQuery("begin"))
		w.settle()
	}
	for i, cl := range clients {
		for j, p := range peers {
			unread := len(p.sock) > 0
			if waits := j > i; unread != waits {
				t.Fatalf("client %d has the server: client %d unread: %v", i, j, unread)
			}
		}
		if cl.server == nil {
			t.Fatalf("client %d has no server in its turn", i)
		}
		w.m.now += time.Second
		w.send(&cl.conn, msgQuery("commit"))
		w.settle()
	}
	if got := clients[0].pool.stats.WaitTime; got != 45*time.Second {
		t.Errorf("wait time %v, want 45s", got)
	}
	if got := clients[0].pool.stats.Transactions; got != 10 {
		t.Errorf("%d transactions, want 10", got)
	}
}

// TestWaitTimeout: a client that waits too long is told so and closed.
func TestWaitTimeout(t *testing.T) {
	w := newFakeWorld(t, func(l *limits) { l.queryWait = 10 * time.Second })
	db := database("d", 1)
	a, _ := w.welcomed(db)
	b, pb := w.welcomed(db)
	w.send(&a.conn, msgQuery("begin"))
	w.settle()
	w.send(&b.conn, msgQuery("row x"))
	w.settle()
	w.m.now += 9 * time.Second
	w.m.tick()
	w.settle()
	if got := pb.take(); len(got) > 0 {
		t.Fatalf("client got %q before its time", got)
	}
	w.m.now += time.Second
	w.m.tick()
	w.settle()
	if got := string(pb.take()); !strings.Contains(got, "FATAL") || !strings.Contains(got, "query_wait_timeout") || !pb.over {
		t.Fatalf("client got %q, closed: %v", got, pb.over)
	}
	if n := w.m.refusals[refusedWait]; n != 1 {
		t.Errorf("%d counted, want 1", n)
	}
}

// TestNothingAddedToCutMessage: what a client did not finish is not finished by
// bytes of ours, however it and the server end.
func TestNothingAddedToCutMessage(t *testing.T) {
	ends := map[string]func(w *fakeWorld, cl *client){
		"client ends":     func(w *fakeWorld, cl *client) { w.hangUp(&cl.conn); w.settle() },
		"client is ended": func(w *fakeWorld, cl *client) { w.m.refuseClient(cl, refusedProtocol, errBadMessage); w.settle() },
		"all is ended":    func(w *fakeWorld, _ *client) { w.m.abandon() },
		"all is stopped":  func(w *fakeWorld, _ *client) { w.m.stop(); w.m.stopNow(); w.settle() },
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			w := newFakeWorld(t, nil)
			cl, _ := w.welcomed(database("d", 1))
			whole := msgQuery("row " + strings.Repeat("x", lookLen)) // short ones are passed on whole
			begun := append(msgQuery("begin"), whole[:len(whole)-5]...)
			w.send(&cl.conn, begun)
			w.settle()
			sv := w.peers[&cl.server.conn]
			end(w, cl)
			w.m.now += time.Minute
			w.m.tick()
			if string(sv.got) != string(begun) || !sv.over {
				t.Errorf("server got %q, want %q and no more, and be closed: %v", sv.got, begun, sv.over)
			}
		})
	}
}
