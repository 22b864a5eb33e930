package pooler

import (
	"bytes"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// fakeWorld is a world without sockets: what the loop does, one step at a
// time, with backends in the place of servers.
type fakeWorld struct {
	t *testing.T
	m *machine

	dials   []*pool
	cancels []*server
	peers   map[*conn]*peer
	order   []*conn // of the peers, so that a seed gives the same run

	// room bounds what a send takes; nil is no bound.
	room func(c *conn, want int) int
	// chunk bounds what a receive gives; nil is no bound.
	chunk func(have int) int
}

// peer is the other end of a connection.
type peer struct {
	sock  []byte // sent by the peer, not yet received by us
	ended bool   // and then closed
	got   []byte // what we sent
	over  bool   // we closed, or shut down
	how   ending
	be    *backend
}

func newFakeWorld(t *testing.T, change func(*limits)) *fakeWorld {
	w := &fakeWorld{t: t, peers: make(map[*conn]*peer)}
	config := DefaultConfig()
	l := limitsOf(&config)
	l.waitNotify = 0 // it would stand among the answers
	if change != nil {
		change(&l)
	}
	w.m = newMachine(l, w, slog.New(slog.DiscardHandler))
	w.m.now = time.Second
	return w
}

func (w *fakeWorld) dial(p *pool)        { w.dials = append(w.dials, p) }
func (w *fakeWorld) cancelOn(sv *server) { w.cancels = append(w.cancels, sv) }

// end implements world.
func (w *fakeWorld) end(c *conn, how ending) { w.peer(c).over, w.peer(c).how = true, how }

// peer returns the other end of a connection, which the machine may use before
// the test has seen it.
func (w *fakeWorld) peer(c *conn) *peer {
	p := w.peers[c]
	if p == nil {
		p = &peer{}
		w.peers[c] = p
		w.order = append(w.order, c)
	}
	return p
}

func (w *fakeWorld) write(c *conn, segs [][]byte) (int, error) {
	all := bytes.Join(segs, nil)
	n := len(all)
	if w.room != nil {
		n = w.room(c, n)
	}
	p := w.peer(c)
	p.got = append(p.got, all[:n]...)
	if p.be != nil {
		p.be.feed(all[:n])
		p.sock = append(p.sock, p.be.out...)
		p.be.out = nil
	}
	return n, nil
}

// database is a database whose pool has a size.
func database(name string, size int) *Database {
	return &Database{Name: name, DBName: name, Host: "h", Port: 5432, PoolSize: size}
}

// newClient logs a client in.
func (w *fakeWorld) newClient(db *Database, set ...pgwire.Param) (*client, *peer) {
	return w.newClientAs(db, "u", set...)
}

// newClientAs logs a client in as some user.
func (w *fakeWorld) newClientAs(db *Database, user string, set ...pgwire.Param) (*client, *peer) {
	n := newcomer{database: db, user: user, login: user, protocol: pgwire.Protocol30, addr: netip.MustParseAddrPort("10.0.0.1:1000")}
	for _, p := range set {
		i := varIndex(p.Name)
		if i < 0 {
			n.extra = append(n.extra, p)
			continue
		}
		n.vars[i], n.varsSet[i] = p.Value, true
	}
	cl := w.m.addClient(n)
	return cl, w.peer(&cl.conn)
}

// newServer answers a dial.
func (w *fakeWorld) newServer() (*server, *peer) {
	pl := w.dials[0]
	w.dials = w.dials[1:]
	be := newBackend()
	sv := w.m.addServer(pl, loggedIn{key: pgwire.CancelKey{PID: uint32(len(w.order) + 1), Secret: "abcd"}, params: be.params(), epoch: pl.epoch, host: pl.db.Host})
	p := w.peer(&sv.conn)
	p.be = be
	return sv, p
}

// send has a client send bytes.
func (w *fakeWorld) send(c *conn, b ...[]byte) {
	p := w.peers[c]
	p.sock = append(p.sock, bytes.Join(b, nil)...)
	w.arrived(c)
}

// hangUp has a peer close its connection.
func (w *fakeWorld) hangUp(c *conn) {
	w.peers[c].ended = true
	w.arrived(c)
}

// arrived is the event of a socket that has something to read.
func (w *fakeWorld) arrived(c *conn) {
	p := w.peers[c]
	if c.dropped || len(p.sock) == 0 && !p.ended || leaving(c) {
		return
	}
	c.readable = true
	c.ended = c.ended || p.ended
	w.m.wake(c)
}

// round is one round of the loop.
func (w *fakeWorld) round() {
	m := w.m
	batch := m.ready
	m.ready = nil
	for _, c := range batch {
		c.queued = false
		if c.dropped || !m.turn(c) || !c.readable {
			continue
		}
		w.read(c)
	}
	m.flush()
	if m.heir != nil {
		m.departures()
	}
	for _, c := range w.order {
		p := w.peers[c]
		if p.be != nil && !c.dropped {
			if p.be.closed {
				p.ended = true
			}
			if len(p.sock) > 0 || p.ended {
				w.arrived(c)
			}
		}
	}
}

func (w *fakeWorld) read(c *conn) {
	m, p := w.m, w.peers[c]
	n := min(len(p.sock), readSize)
	if w.chunk != nil && n > 0 {
		n = w.chunk(n)
	}
	if n == 0 {
		c.readable = false
		switch {
		case p.ended && c.cl != nil:
			m.clientEnded(c.cl)
		case p.ended:
			m.serverEnded(c.sv)
		case c.cl != nil:
			m.clientDry(c.cl)
		default:
			m.serverDry(c.sv)
		}
		return
	}
	if m.arena.window(readSize) == nil {
		m.flush()
		if c.dropped {
			return
		}
	}
	b := m.arena.window(readSize)[:n]
	copy(b, p.sock)
	p.sock = slices.Clone(p.sock[n:])
	m.arena.commit(n)
	c.readable = len(p.sock) > 0 || p.ended
	if c.cl != nil {
		m.clientReceived(c.cl, b)
	} else {
		m.serverData(c.sv, b)
		if !c.readable && !c.dropped {
			m.serverDry(c.sv)
		}
	}
	m.wake(c)
}

// settle runs rounds until nothing happens any more; dials are answered.
func (w *fakeWorld) settle() {
	w.t.Helper()
	for range 10000 {
		for len(w.dials) > 0 {
			w.newServer()
		}
		for len(w.cancels) > 0 {
			sv := w.cancels[0]
			w.cancels = w.cancels[1:]
			w.m.cancelDone(sv)
		}
		w.round()
		if len(w.m.ready) == 0 && len(w.dials) == 0 && len(w.cancels) == 0 && len(w.m.dirty) == 0 {
			return
		}
	}
	w.t.Fatal("the machine does not come to rest")
}

// take returns what a client got since the last take.
func (p *peer) take() []byte {
	b := p.got
	p.got = nil
	return b
}

// Messages as clients send them.

func msgQuery(sql string) []byte { return pgwire.AppendQuery(nil, sql) }

func msgParse(name, sql string) []byte {
	return pgwire.AppendParse(nil, name, append([]byte(sql), 0, 0, 0))
}

func msgBind(portal, stmt string) []byte {
	body := append([]byte(portal), 0)
	body = append(append(body, stmt...), 0, 0, 0, 0, 0, 0, 0)
	return append(pgwire.AppendHeader(nil, 'B', len(body)), body...)
}

func msgExecute(portal string) []byte {
	body := append(append([]byte(portal), 0), 0, 0, 0, 0)
	return append(pgwire.AppendHeader(nil, 'E', len(body)), body...)
}

func msgCopyData(data string) []byte {
	return append(pgwire.AppendHeader(nil, 'd', len(data)), data...)
}

func msgCopyDone() []byte { return pgwire.AppendHeader(nil, 'c', 0) }

// types returns the types of the messages in b, in a string.
func types(t *testing.T, b []byte) string {
	t.Helper()
	var s []byte
	for len(b) > 0 {
		typ, n, ok := pgwire.Header(b)
		if !ok || n < 0 || len(b) < pgwire.HeaderLen+n {
			t.Fatalf("cut message at %q", b)
		}
		s = append(s, typ)
		b = b[pgwire.HeaderLen+n:]
	}
	return string(s)
}
