package pooler

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// TestTargetFits goes through the roles that a server can have.
func TestTargetFits(t *testing.T) {
	roles := []role{{}, {readOnly: true}, {standby: true}, {standby: true, readOnly: true}}
	for target, want := range map[TargetSession][4]bool{
		TargetAny:           {true, true, true, true},
		TargetReadWrite:     {true, false, false, false},
		TargetReadOnly:      {false, true, true, true},
		TargetPrimary:       {true, true, false, false},
		TargetStandby:       {false, false, true, true},
		TargetPreferStandby: {false, false, true, true},
	} {
		for i, r := range roles {
			if got := target.fits(r) == ""; got != want[i] {
				t.Errorf("%v, %+v: %v, want %v", target, r, got, want[i])
			}
		}
		if got, err := ParseTargetSession(target.String()); got != target || err != nil {
			t.Errorf("%v reads as %v, %v", target, got, err)
		}
	}
}

// TestHostOrder: hosts take turns, or the good one is kept; one that failed is
// tried last for a while.
func TestHostOrder(t *testing.T) {
	now := time.Now()
	order := func(b *hostBook, d *Database) string {
		return strings.Join(b.order(d, now, 15*time.Second), ",")
	}
	var b hostBook
	d := &Database{Name: "d", Host: "a,b,c"}
	for _, want := range []string{"a,b,c", "b,c,a", "c,a,b", "a,b,c"} {
		if got := order(&b, d); got != want {
			t.Fatalf("in turn: %s, want %s", got, want)
		}
	}
	b.tried(d, "b", now, false)
	for _, want := range []string{"c,a,b", "c,a,b", "a,c,b"} { // b, c, a: each in its turn, b last
		if got := order(&b, d); got != want {
			t.Fatalf("b has failed: %s, want %s", got, want)
		}
	}
	now = now.Add(15 * time.Second)
	if got := order(&b, d); got != "b,c,a" {
		t.Errorf("a while later: %s", got)
	}
	for _, keep := range []*Database{{Name: "e", Host: "a,b,c", LoadBalance: LoadBalanceDisable}, {Name: "f", Host: "a,b,c", Target: TargetPrimary}} {
		for range 2 {
			if got := order(&b, keep); got != "a,b,c" {
				t.Fatalf("%s: %s", keep.Name, got)
			}
		}
		b.tried(keep, "a", now, false)
		b.tried(keep, "b", now, true)
		if got := order(&b, keep); got != "b,c,a" {
			t.Errorf("%s, b is good: %s", keep.Name, got)
		}
		now = now.Add(time.Minute)
		if got := order(&b, keep); got != "b,c,a" {
			t.Errorf("%s, a minute later: %s", keep.Name, got)
		}
	}
	for range 3 {
		if got := order(&b, &Database{Name: "g", Host: "only"}); got != "only" {
			t.Errorf("one host: %s", got)
		}
	}
}

// TestAddressBook: answers are kept for their time, addresses take turns,
// changes are reported, and a resolver that fails takes nothing away.
func TestAddressBook(t *testing.T) {
	now := time.Now()
	var changes []string
	b := newAddressBook(func(host string, addrs []netip.Addr) {
		for _, a := range addrs {
			host += " " + a.String()
		}
		changes = append(changes, host)
	})
	answer, asked := []string{"10.0.0.2", "10.0.0.1"}, 0
	var failure error
	b.now = func() time.Time { return now }
	b.lookup = func(context.Context, string) (list []netip.Addr, err error) {
		asked++
		for _, a := range answer {
			list = append(list, netip.MustParseAddr(a))
		}
		return list, failure
	}
	resolve := func() string {
		addrs, err := b.resolve(context.Background(), "db", 15*time.Second, 5*time.Second)
		if err != nil {
			return err.Error()
		}
		var texts []string
		for _, a := range addrs {
			texts = append(texts, a.String())
		}
		return strings.Join(texts, ",")
	}
	expect := func(want string, lookups int) {
		t.Helper()
		if got := resolve(); got != want || asked != lookups {
			t.Fatalf("%q after %d lookups, want %q after %d", got, asked, want, lookups)
		}
	}
	expect("10.0.0.1,10.0.0.2", 1)
	expect("10.0.0.2,10.0.0.1", 1)
	if due := b.due([]string{"db", "10.0.0.9"}); due != nil {
		t.Errorf("due too early: %v", due)
	}
	now = now.Add(15 * time.Second)
	if due := b.due([]string{"db", "10.0.0.9"}); !slices.Equal(due, []string{"db"}) {
		t.Errorf("due: %v", due)
	}
	answer = []string{"10.0.0.1", "10.0.0.2", "10.0.0.2"}
	expect("10.0.0.1,10.0.0.2", 2)
	if changes != nil {
		t.Errorf("changes: %q", changes)
	}
	now = now.Add(15 * time.Second)
	answer = []string{"10.0.0.3"}
	expect("10.0.0.3", 3)
	if !slices.Equal(changes, []string{"db 10.0.0.3"}) {
		t.Errorf("changes: %q", changes)
	}
	now = now.Add(15 * time.Second)
	answer, failure = nil, &net.DNSError{Err: "timeout", IsTimeout: true}
	expect("10.0.0.3", 4)
	expect("10.0.0.3", 4) // dns_nxdomain_ttl
	now = now.Add(5 * time.Second)
	failure = &net.DNSError{Err: "no such host", Name: "db", IsNotFound: true}
	expect("lookup db: no such host", 5)
	expect("lookup db: no such host", 5)
	now = now.Add(5 * time.Second)
	answer, failure = []string{"10.0.0.4"}, nil
	expect("10.0.0.4", 6)
	if got, err := b.resolve(context.Background(), "2001:db8::1", 0, 0); err != nil || got[0].String() != "2001:db8::1" || asked != 6 {
		t.Errorf("an address: %v, %v, %d lookups", got, err, asked)
	}
}

// at answers a dial with a server at a place.
func (w *fakeWorld) at(host, addr string) *server {
	pl := w.dials[0]
	w.dials = w.dials[1:]
	be := newBackend()
	sv := w.m.addServer(pl, loggedIn{key: pgwire.CancelKey{PID: uint32(len(w.order) + 1)}, params: be.params(),
		host: host, addr: addr, byName: true, epoch: pl.epoch})
	w.peer(&sv.conn).be = be
	return sv
}

// TestAddressRetires: servers at an address that their host has no more are
// closed, those in use when they are free.
func TestAddressRetires(t *testing.T) {
	w := newFakeWorld(t, nil)
	db := database("d", 3)
	a, pa := w.newClient(db)
	old := w.at("db", "10.0.0.1:5432")
	w.settle()
	w.ask(a, pa, "begin")
	b, pb := w.newClient(db)
	w.settle()
	w.send(&b.conn, msgQuery("row x"))
	w.round()
	idle := w.at("db", "10.0.0.1:5432")
	w.settle()
	w.send(&b.conn, msgQuery("begin"))
	w.settle()
	c, pc := w.newClient(db)
	w.settle()
	w.send(&c.conn, msgQuery("row x"))
	w.round()
	kept := w.at("db", "10.0.0.2:5432")
	w.settle()
	w.ask(b, pb, "commit")
	w.m.retireAddresses("other", nil)
	w.m.retireAddresses("db", []netip.Addr{netip.MustParseAddr("10.0.0.2")})
	w.settle()
	if idle.state != serverGone || old.state != serverActive || kept.state != serverIdle {
		t.Fatalf("states: idle %d, active %d, kept %d", idle.state, old.state, kept.state)
	}
	if got := w.ask(a, pa, "commit"); !strings.HasSuffix(got, "CZ") || old.state != serverGone {
		t.Errorf("%q, state %d", got, old.state)
	}
	_ = pc
}

// TestPrimaryMoves: a server on another host means that the primary is there,
// so those of the old one go.
func TestPrimaryMoves(t *testing.T) {
	for _, target := range []TargetSession{TargetAny, TargetReadWrite} {
		w := newFakeWorld(t, nil)
		db := database("d", 3)
		db.Target = target
		db.MinPoolSize = 2
		w.newClient(db)
		old := w.at("one", "10.0.0.1:5432")
		w.m.tick()
		w.at("two", "10.0.0.2:5432")
		if gone := old.state == serverGone; gone != (target == TargetReadWrite) {
			t.Errorf("%v: gone %v", target, gone)
		}
	}
}

// TestRoleChanges: a server that says that its role has changed is given up if
// it will not do any more.
func TestRoleChanges(t *testing.T) {
	for _, tt := range []struct {
		target TargetSession
		param  string
		value  string
		gone   bool
	}{
		{TargetAny, paramStandby, "on", false},
		{TargetReadWrite, paramStandby, "on", true},
		{TargetReadWrite, paramStandby, "off", false},
		{TargetReadWrite, paramReadOnly, "on", true},
		{TargetPrimary, paramReadOnly, "on", false},
		{TargetStandby, paramStandby, "off", true},
		{TargetPreferStandby, paramStandby, "off", false},
		{TargetStandby, "TimeZone", "on", false},
	} {
		w := newFakeWorld(t, nil)
		db := database("d", 1)
		db.Target = tt.target
		cl, p := w.welcomed(db)
		sv := cl.pool.idle.head
		w.peers[&sv.conn].sock = pgwire.AppendParameterStatus(nil, tt.param, tt.value)
		w.arrived(&sv.conn)
		w.settle()
		if gone := sv.state == serverGone; gone != tt.gone {
			t.Errorf("%v, %s = %s: gone %v", tt.target, tt.param, tt.value, gone)
		}
		if got := w.ask(cl, p, "row x"); !strings.HasSuffix(got, "TDCZ") {
			t.Errorf("%v: the client got %q", tt.target, got)
		}
	}
}

// TestFastClose: with server_fast_close a session ends on a server that is to be
// replaced, but not within a transaction.
func TestFastClose(t *testing.T) {
	w := newFakeWorld(t, func(l *limits) { l.fastClose = true })
	cl, p := w.welcomed(inMode(PoolSession, 1))
	w.ask(cl, p, "begin")
	sv := cl.server
	w.m.retire(sv)
	w.pass(time.Second)
	if sv.state != serverActive {
		t.Fatal("closed in a transaction")
	}
	w.ask(cl, p, "commit")
	w.pass(time.Second)
	if got := string(p.take()); !strings.Contains(got, "database configuration changed") || sv.state != serverGone {
		t.Errorf("got %q, server in state %d", got, sv.state)
	}
}

// TestNoHost: the failure of all hosts may pass, whatever each of them said.
func TestNoHost(t *testing.T) {
	refused := pgwire.NewError(pgwire.SeverityFatal, "28P01", "no")
	err := error(&noHost{[]error{errors.New("a: refused"), refused}})
	if e, lasting := lastingFailure(err); lasting || !strings.Contains(e.Message, "a: refused; ") {
		t.Errorf("%v, lasting %v", e, lasting)
	}
	if u, _ := errors.AsType[*unfit](err); u != nil {
		t.Error("none was unfit")
	}
	err = &noHost{[]error{errors.New("a: refused"), &unfit{"server is not in hot standby mode"}}}
	if u, _ := errors.AsType[*unfit](err); u == nil {
		t.Error("one was unfit")
	}
}
