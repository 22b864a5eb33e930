package pooler

import (
	"bufio"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// TestClientHoldsTimeWait: whoever says goodbye closes first and so holds the
// TIME-WAIT. On the pooler's side it would keep the balancer's port from being
// used again.
func TestClientHoldsTimeWait(t *testing.T) {
	p := startPooler(t, patient)
	tests := []struct {
		name string
		say  [][]byte // with an answer each
		// read: the goodbye is read before the client closes.
		read bool
	}{
		{"at once", nil, false},
		{"later", nil, true},
		{"after a query", [][]byte{msgQuery("select 1")}, false},
		{"in a transaction", [][]byte{msgQuery("begin")}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			const clients = 40
			ours, theirs := inTimeWait(t, p.port)
			for range clients {
				c := dialRaw(t, p)
				for _, msg := range tt.say {
					c.send(msg)
					c.until('Z')
				}
				c.send(terminateMsg)
				if tt.read {
					until(t, "the goodbye to be read", func() bool { return p.Snapshot().Clients == 0 })
				}
				c.conn.Close()
			}
			checkTimeWait(t, p, ours, theirs, clients)
		})
	}
}

// TestManyShortConnections is the same with many clients at once.
func TestManyShortConnections(t *testing.T) {
	p := startPooler(t, patient)
	ctx := testContext(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				conn, err := pgx.Connect(ctx, dsn(p.host, p.port, "postgres"))
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := conn.Exec(ctx, "select 1"); err != nil {
					t.Error(err)
				}
				conn.Close(ctx)
			}
		})
	}
	wg.Wait()
	checkTimeWait(t, p, 0, 0, 400)
}

// checkTimeWait waits until the clients are gone and both ends closed, and
// holds the connections in TIME-WAIT against those before.
func checkTimeWait(t *testing.T, p *testPooler, ours, theirs, clients int) {
	t.Helper()
	until(t, "the connections to be closed", func() bool {
		return openPartings(t, p) == 0 && p.parting.Load() == 0 && p.Snapshot().Clients == 0
	})
	// A few of the clients' may be gone already: the kernel takes a port anew
	// whose connection rests for a second (tcp_tw_reuse).
	if o, th := inTimeWait(t, p.port); o != ours || th-theirs < clients/2 {
		t.Errorf("in TIME-WAIT: %d on the pooler's side, %d on the clients'; want 0 and %d", o-ours, th-theirs, clients)
	}
}

// patient has the pooler wait for clients to close for longer than any pause of
// the machine that runs the tests.
func patient(c *Config) { c.parting = 20 * time.Second }

func openPartings(t *testing.T, p *testPooler) (n int) {
	t.Helper()
	if !p.ask(func(*machine) { n = p.loop.partings.queue.n }) {
		t.Fatal("the loop has ended")
	}
	return n
}

// TestPartingEnds: a client that does not close is not waited for longer than a
// moment, and is no client meanwhile.
func TestPartingEnds(t *testing.T) {
	p := startPooler(t, func(c *Config) {
		c.parting = 300 * time.Millisecond
		c.MaxClients = 1
	})
	for range 3 {
		c := dialRaw(t, p)
		start := time.Now()
		c.send(terminateMsg)
		until(t, "the client to be forgotten", func() bool { return p.Snapshot().Clients == 0 })
		dialRaw(t, p).conn.Close() // there is room for another
		until(t, "the other one to be forgotten", func() bool { return p.Snapshot().Clients == 0 })
		if got := closes(t, c.conn); len(got) != 0 {
			t.Errorf("got %q", got)
		}
		if waited := time.Since(start); waited < 300*time.Millisecond {
			t.Errorf("waited for %v only", waited)
		}
	}
}

// TestPartingsAreBounded: when too many do not close, the first ones go.
func TestPartingsAreBounded(t *testing.T) {
	l, err := openLoop(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	c := DefaultConfig()
	l.m = newMachine(limitsOf(&c), &quietWorld{}, l.log)
	var peers []int
	for i := range maxPartings + 2 {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(pair[1])
		peers = append(peers, pair[1])
		l.m.now = time.Duration(i)
		l.part(&conn{slot: uint32(i % 7), gen: uint32(i), fd: pair[0]})
	}
	open := func() (n int) {
		for _, fd := range peers {
			if _, errno := receive(fd, make([]byte, 1)); errno == unix.EAGAIN {
				n++
			}
		}
		return n
	}
	if n := open(); n != maxPartings || len(l.partings.byPlace) != maxPartings {
		t.Errorf("%d sockets open, %d known", n, len(l.partings.byPlace))
	}
	for _, fd := range peers[:2] {
		if n, errno := receive(fd, make([]byte, 1)); n != 0 || errno != 0 {
			t.Error("one of the first two was not closed")
		}
	}
	// An event that is no end changes nothing, one of a stranger neither.
	l.parted(&unix.EpollEvent{Events: unix.EPOLLIN, Fd: 5, Pad: 5})
	l.parted(&unix.EpollEvent{Events: unix.EPOLLRDHUP, Fd: 5, Pad: 6})
	if n := open(); n != maxPartings {
		t.Errorf("%d sockets open", n)
	}
	l.parted(&unix.EpollEvent{Events: unix.EPOLLRDHUP, Fd: 5, Pad: 5})
	if n := open(); n != maxPartings-1 {
		t.Errorf("%d sockets open after an end", n)
	}
	l.closePartings(maxPartings / 2)
	if n := open(); n != maxPartings/2 {
		t.Errorf("%d sockets open after a time", n)
	}
	l.closePartings(0)
	if n := open(); n != 0 || l.partings.queue.n+len(l.partings.byPlace) != 0 {
		t.Errorf("%d sockets open at the end", n)
	}
}

// inTimeWait counts the connections of a listening port in TIME-WAIT, on its
// side and on the clients'.
func inTimeWait(t *testing.T, port int) (ours, theirs int) {
	t.Helper()
	f, err := os.Open("/proc/self/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const stateTimeWait = "06"
	suffix := fmt.Sprintf(":%04X", port)
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// sl local_address rem_address st …
		w := strings.Fields(lines.Text())
		switch {
		case len(w) < 4 || w[3] != stateTimeWait:
		case strings.HasSuffix(w[1], suffix):
			ours++
		case strings.HasSuffix(w[2], suffix):
			theirs++
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return ours, theirs
}

// TestGoodbyeDuringLogin: a client, such as a health check, that takes its leave
// while it is asked for its password holds the TIME-WAIT too, and is no error.
func TestGoodbyeDuringLogin(t *testing.T) {
	p := startPooler(t, patient)
	ours, theirs := inTimeWait(t, p.port)
	refused := p.Snapshot().Refusals
	for range 20 {
		conn := dialTCP(t, p)
		if _, err := conn.Write(startupPacket()); err != nil {
			t.Fatal(err)
		}
		if _, _, err := pgwire.ReadFrame(conn, pgwire.MaxAuthLen); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(terminateMsg); err != nil {
			t.Fatal(err)
		}
		until(t, "the goodbye to be read", func() bool { return p.Snapshot().Clients == 0 })
		conn.Close()
	}
	checkTimeWait(t, p, ours, theirs, 20)
	if got := p.Snapshot().Refusals; got["auth"] != refused["auth"] || got["startup"] != refused["startup"] {
		t.Errorf("counted as refusals: %v, before %v", got, refused)
	}
}

// TestCancelThenTerminate: some clients say goodbye after a cancel request as
// after a session. Closing with that unread would reset the connection, and
// they could not tell whether the request was taken.
func TestCancelThenTerminate(t *testing.T) {
	p := startPooler(t, nil)
	c := dialRaw(t, p)
	for range 20 {
		conn := dialTCP(t, p)
		if _, err := conn.Write(append(pgwire.AppendCancelRequest(nil, c.key), terminateMsg...)); err != nil {
			t.Fatal(err)
		}
		if got := closes(t, conn); len(got) != 0 {
			t.Errorf("got %q", got)
		}
		conn.Close()
	}
	until(t, "the requesters to be forgotten", func() bool { return p.Snapshot().Clients == 1 })
}
