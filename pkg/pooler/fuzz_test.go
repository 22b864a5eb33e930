package pooler

import (
	"bytes"
	"testing"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// FuzzClient: whatever a client sends, the next one finds a clean server.
func FuzzClient(f *testing.F) {
	f.Add(bytes.Join([][]byte{msgParse("s", "row x"), msgBind("", "s"), msgExecute(""), syncMsg}, nil), uint8(3))
	f.Add(bytes.Join([][]byte{msgQuery("copyin"), msgCopyData("x"), syncMsg, msgCopyDone(), msgQuery("begin")}, nil), uint8(1))
	f.Add(bytes.Join([][]byte{msgParse("", "copyin"), msgBind("", ""), msgExecute(""), syncMsg, copyFailMsg}, nil), uint8(100))
	f.Add(bytes.Join([][]byte{pgwire.AppendClose(nil, 'S', "s"), pgwire.AppendDescribe(nil, 'P', ""), terminateMsg}, nil), uint8(7))
	f.Fuzz(func(t *testing.T, data []byte, chunk uint8) {
		w := newFakeWorld(t, nil)
		db := database("d", 1)
		a, _ := w.welcomed(db)
		w.chunk = func(have int) int { return min(have, 1+int(chunk)) }
		w.send(&a.conn, data)
		w.settle()
		w.hangUp(&a.conn)
		w.settle()
		b, p := w.newClient(db)
		w.settle()
		p.take()
		w.send(&b.conn, msgQuery("row y"))
		w.settle()
		if got := types(t, p.take()); got != "TDCZ" {
			t.Fatalf("the next client got %q", got)
		}
		for _, c := range w.order {
			if c.sv != nil && !c.dropped && !w.peers[c].be.clean() {
				t.Fatal("a session that is not clean is in the pool")
			}
		}
		w.hangUp(&b.conn)
		w.settle()
		if w.m.gathered != 0 || w.m.heldBytes != 0 || w.m.population != 0 {
			t.Fatalf("%d bytes gathered, %d held, %d clients left", w.m.gathered, w.m.heldBytes, w.m.population)
		}
	})
}

// FuzzServer: whatever a server sends, the machine survives it, and other
// clients get nothing of it.
func FuzzServer(f *testing.F) {
	f.Add([]byte{'1', 0, 0, 0, 4, '2', 0, 0, 0, 4, 'Z', 0, 0, 0, 5, 'I'}, uint8(3))
	f.Add(pgwire.AppendError(nil, "ERROR", "42P05", "x"), uint8(1))
	f.Add([]byte{'G', 0, 0, 0, 7, 0, 0, 0, 'C', 0, 0, 0, 5, 0, 'Z', 0, 0, 0, 5, 'T'}, uint8(50))
	f.Add(append(pgwire.AppendParameterStatus(nil, "TimeZone", "X"), notification()...), uint8(2))
	f.Fuzz(func(t *testing.T, data []byte, chunk uint8) {
		w := newFakeWorld(t, nil)
		db := database("d", 1)
		a, _ := w.welcomed(db)
		b, pb := w.welcomed(db)
		w.send(&a.conn, msgQuery("row x"), msgParse("s", "row x"), msgBind("", "s"), syncMsg)
		w.round() // sent, not answered yet
		for _, c := range w.order {
			if c.sv != nil && c.sv.client == a {
				p := w.peers[c]
				p.sock, p.be.out = data, nil
				p.be.mute = true
				w.arrived(c)
			}
		}
		w.chunk = func(have int) int { return min(have, 1+int(chunk)) }
		w.settle()
		w.hangUp(&a.conn)
		w.settle()
		if got := pb.take(); len(got) > 0 {
			t.Fatalf("another client got %q", got)
		}
		w.hangUp(&b.conn)
		w.m.abandon()
		if w.m.stmts.memory != 0 || w.m.population != 0 {
			t.Fatalf("%d bytes of statements, %d clients left", w.m.stmts.memory, w.m.population)
		}
	})
}
