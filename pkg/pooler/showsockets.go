package pooler

import (
	"strconv"
	"time"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

const socketNames = `type user database replication state addr port local_addr local_port connect_time request_time
	wait wait_us close_needed ptr link remote_pid tls application_name prepared_statements id`

var (
	socketColumns = columns("ssssssisissiiississii", socketNames)
	// bufferColumns is the longer form, with what is buffered for a connection.
	bufferColumns = columns("ssssssisissiiississiiiiiiiii", socketNames+
		" recv_pos pkt_pos pkt_remain send_pos send_remain pkt_avail send_avail")
)

func (s *console) clients() error {
	return s.socketTable(socketColumns, func(k *socket) string {
		if k.server {
			return ""
		}
		return k.state
	})
}

func (s *console) servers() error {
	return s.socketTable(socketColumns, func(k *socket) string {
		if !k.server {
			return ""
		}
		return k.state
	})
}

func (s *console) sockets() error { return s.socketTable(bufferColumns, longState) }

func (s *console) activeSockets() error {
	return s.socketTable(bufferColumns, func(k *socket) string {
		if k.pktRemain+k.sendRemain+k.pktAvail == 0 {
			return ""
		}
		return longState(k)
	})
}

// longState is the state as SHOW SOCKETS has it, which knows no idle clients.
func longState(k *socket) string {
	switch {
	case k.server:
		return "sv_" + k.state
	case k.state == "idle":
		return "cl_active"
	}
	return "cl_" + k.state
}

// socketTable shows the connections to which state gives one, the console's own
// at the end.
func (s *console) socketTable(columns []pgwire.Column, state func(*socket) string) error {
	s.header(columns)
	long := len(columns) == len(bufferColumns)
	show := func(k *socket) {
		if word := state(k); word != "" {
			s.socketRow(k, word, long)
		}
	}
	if err := s.p.eachSocket(show); err != nil {
		return err
	}
	open, _ := s.p.openConsoles()
	for _, o := range open {
		k := o.describe()
		show(&k)
	}
	return nil
}

// describe describes a session as a client.
func (s *console) describe() socket {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := socket{
		user: s.who.login, database: consoleDatabase, state: "active", addr: s.who.addr, local: s.who.local,
		connected: s.connectedAt.Sub(s.p.loop.start), id: s.who.id, ptr: 1<<63 | s.who.id, application: s.who.vars[varApplicationName],
		tls: s.who.tlsInfo,
	}
	if !s.requestedAt.IsZero() {
		k.requested = s.requestedAt.Sub(s.p.loop.start)
	}
	return k
}

func (s *console) socketRow(k *socket, state string, long bool) {
	r := &s.rows
	r.Begin()
	if k.server {
		r.Text("S")
	} else {
		r.Text("C")
	}
	r.Text(k.user)
	r.Text(k.database)
	r.Text("none")
	r.Text(state)
	if k.path != "" || !k.server && !k.addr.Addr().IsValid() {
		r.Text("unix")
		r.Int(int64(k.addr.Port()))
		r.Text("unix")
	} else {
		r.Text(k.addr.Addr().String())
		r.Int(int64(k.addr.Port()))
		r.Text(k.local.Addr().String())
	}
	r.Int(int64(k.local.Port()))
	r.Text(s.clock(k.connected))
	r.Text(s.clock(max(k.requested, k.connected)))
	r.Int(int64(k.wait / time.Second))
	r.Int(int64(k.wait % time.Second / time.Microsecond))
	if k.closeNeeded {
		r.Int(1)
	} else {
		r.Int(0)
	}
	r.Text(hex(k.ptr))
	r.Text(hex(k.link))
	r.Int(int64(k.pid))
	r.Text(k.tls)
	r.Text(k.application)
	r.Int(int64(k.prepared))
	r.Uint(k.id)
	if long {
		for _, n := range []int{0, 0, k.pktRemain, 0, k.sendRemain, k.pktAvail, k.sendRemain} {
			r.Int(int64(n))
		}
	}
	s.endRow()
}

func hex(n uint64) string {
	if n == 0 {
		return ""
	}
	return "0x" + strconv.FormatUint(n, 16)
}

// clock writes a time since the start as the time of day.
func (s *console) clock(d time.Duration) string {
	return s.p.loop.start.Add(d).Format("2006-01-02 15:04:05 MST")
}
