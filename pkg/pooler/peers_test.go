package pooler

import (
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// TestPeerKeys: the number stands where PgBouncer has it: the second and third byte,
// the low one first, and the count of forwards in the last bits of the eighth.
func TestPeerKeys(t *testing.T) {
	for range 200 {
		for _, protocol := range []pgwire.Version{pgwire.Protocol30, pgwire.Protocol32} {
			k := pgwire.NewCancelKey(protocol)
			stampKey(&k, 0x1234)
			raw := pgwire.AppendCancelRequest(nil, k)[8:]
			if raw[0]&0x80 != 0 || raw[1] != 0x34 || raw[2] != 0x12 || raw[7]&3 != 3 {
				t.Fatalf("key % x", raw)
			}
			if id, forwards := keyOwner(k); id != 0x1234 || forwards != 3 {
				t.Fatalf("owner %#x, %d forwards", id, forwards)
			}
		}
	}
}

// TestKeysOfManyClients: more clients than there are beginnings of keys.
func TestKeysOfManyClients(t *testing.T) {
	w := newFakeWorld(t, func(l *limits) { l.peerID = 3 })
	db := database("d", 1)
	const many = 1<<15 + 500
	clients := make([]*client, many)
	for i := range clients {
		clients[i], _ = w.newClient(db)
	}
	if len(w.m.byPID) > 1<<15 {
		t.Fatalf("%d beginnings of keys", len(w.m.byPID))
	}
	for i, cl := range clients {
		k := cl.key
		k.Secret = withForwards(k.Secret, byte(i%4)) // as a peer sends it
		if got := w.m.clientOfRequest(k); got != cl {
			t.Fatalf("client %d: found %p, want %p", i, got, cl)
		}
		k.Secret = string(append([]byte{k.Secret[0] ^ 1}, k.Secret[1:]...))
		if w.m.clientOfRequest(k) == cl {
			t.Fatal("found with a wrong secret")
		}
	}
	for i, cl := range clients {
		if i%3 > 0 {
			w.m.clientGone(cl, "test")
		}
	}
	for i, cl := range clients {
		if got := w.m.clientByKey(cl.key) == cl; got != (i%3 == 0) {
			t.Fatalf("client %d: found %v", i, got)
		}
	}
	w.m.abandon()
	if len(w.m.byPID) != 0 {
		t.Errorf("%d keys left", len(w.m.byPID))
	}
}

// TestGuesses: an address that guesses is not listened to, others are.
func TestGuesses(t *testing.T) {
	var g guesses
	now := time.Now()
	bad, good := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8:1::1")
	for range guessBurst {
		if !g.may(bad, now) {
			t.Fatal("refused too early")
		}
		g.missed(bad, now)
	}
	if g.may(bad, now) || g.may(netip.MustParseAddr("2001:db8::2"), now) {
		t.Error("it may go on")
	}
	if !g.may(good, now) {
		t.Error("another address may not")
	}
	if !g.may(bad, now.Add(time.Second)) {
		t.Error("it may not a second later")
	}
}

// TestCancelAcrossPeers: a request that comes to the wrong pooler reaches the
// client, over as many as three others.
func TestCancelAcrossPeers(t *testing.T) {
	poolers := make([]*testPooler, 3)
	for i := range poolers {
		poolers[i] = startPooler(t, func(c *Config) { c.PeerID = i + 1 })
	}
	for i, p := range poolers {
		c := p.conf().Config
		for j, q := range poolers {
			c.Peers = append(c.Peers, Peer{ID: j + 1, Host: "127.0.0.1", Port: uint16(q.port)})
		}
		if i == 1 {
			c.Peers[0].Port = uint16(poolers[2].port) // it believes that the first is where the third is
		}
		if err := p.Reload(c); err != nil {
			t.Fatal(err)
		}
	}
	for _, to := range []int{1, 2, 0} {
		busy := dialRaw(t, poolers[0])
		busy.send(msgQuery("select pg_sleep(60)"))
		asleep(t)
		busy.cancel(poolers[to])
		if got := busy.until('Z'); !strings.Contains(got, "E") {
			t.Errorf("by way of pooler %d: %q", to+1, got)
		}
		busy.conn.Close()
		poolers[0].quiet()
	}
	// A key that no peer has, and one that has been forwarded enough.
	for _, k := range []pgwire.CancelKey{{PID: 0x01630001, Secret: "abcg"}, {PID: 0x01030001, Secret: "abcd"}} {
		if forwarded, err := poolers[0].forwardCancel(k); forwarded || err == nil {
			t.Errorf("%+v: forwarded %v, %v", k, forwarded, err)
		}
	}
}

// TestCancelAcrossSiblings: poolers with their control sockets in one directory
// need no configuration.
func TestCancelAcrossSiblings(t *testing.T) {
	dir := t.TempDir()
	a := startPooler(t, func(c *Config) { c.ControlSocket = filepath.Join(dir, "pooler-1.sock") })
	b := startPooler(t, func(c *Config) { c.ControlSocket = filepath.Join(dir, "pooler-2.sock") })
	busy := dialRaw(t, a)
	busy.send(msgQuery("select pg_sleep(60)"))
	asleep(t)
	busy.cancel(b)
	if got := busy.until('Z'); !strings.Contains(got, "E") {
		t.Errorf("got %q", got)
	}
	if b.askSiblings(pgwire.CancelKey{PID: 7, Secret: "none"}) {
		t.Error("a client that does not exist was found")
	}
}
