package pooler

import (
	"context"
	"io"
	"net"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// TestRation: a slot is taken while a login computes and free while it waits for
// the client, however the login ends.
func TestRation(t *testing.T) {
	slots := make(chan struct{}, 1)
	done := make(chan struct{})
	ours, theirs := net.Pipe()
	r := &rationed{Conn: ours, slots: slots, done: done}
	r.acquire()
	if len(slots) != 1 {
		t.Fatal("no slot was taken")
	}
	read := make(chan error)
	go func() {
		_, err := r.Read(make([]byte, 1))
		read <- err
	}()
	other := &rationed{slots: slots, done: done}
	other.acquire() // while the first waits for its client
	if _, err := theirs.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-read:
		t.Fatal("two compute with one slot")
	default:
	}
	other.release()
	if err := <-read; err != nil || !r.has {
		t.Fatalf("has %v, %v", r.has, err)
	}
	r.release()
	r.release() // twice is once
	if len(slots) != 0 {
		t.Fatal("the slot was not given back")
	}
	// At the end of the pooler nobody waits.
	other.acquire()
	close(done)
	r.acquire()
	if r.has {
		t.Error("two have one slot")
	}
	r.release()
	if len(slots) != 1 {
		t.Error("who had no slot gave one back")
	}
}

// TestRationedLogins: clients that do not answer their challenge keep nobody from
// logging in, though there are more of them than slots.
func TestRationedLogins(t *testing.T) {
	p := startPooler(t, nil)
	stuck := cap(p.logins) + 3
	for range stuck {
		conn, err := net.Dial("tcp", p.Addrs()[0].String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		if _, err := conn.Write(pgwire.AppendStartup(nil, pgwire.Protocol30, testUser, "postgres", nil)); err != nil {
			t.Fatal(err)
		}
		var first [1]byte
		if _, err := io.ReadFull(conn, first[:]); err != nil || first[0] != 'R' {
			t.Fatalf("%q, %v", first, err)
		}
	}
	var n int
	if err := p.connect().QueryRow(testContext(t), "select 7").Scan(&n); err != nil || n != 7 {
		t.Fatalf("%d, %v", n, err)
	}
	// While all slots are taken nobody gets in.
	for range cap(p.logins) {
		p.logins <- struct{}{}
	}
	ctx, cancel := context.WithTimeout(testContext(t), 300*time.Millisecond)
	defer cancel()
	if conn, err := pgx.Connect(ctx, dsn(p.host, p.port, "postgres")); err == nil {
		conn.Close(ctx)
		t.Error("a client logged in without a slot")
	}
	for range cap(p.logins) {
		<-p.logins
	}
	p.connect()
	until(t, "the slots to be free", func() bool { return len(p.logins) == 0 })
}
