package pooler

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// The console is a database that exists only here, in which PgBouncer's
// commands are given (admin.c). It speaks the simple query protocol alone, as
// PgBouncer's does. Each session is a goroutine; it looks at the machine by
// messages to the loop.

const (
	// consoleDatabase is the console's name, which no other database can have.
	consoleDatabase = "pgbouncer"
	// consoleVersion is the version of PgBouncer that the console is like. Tools
	// go by it.
	consoleVersion = "1.25.2"
	// maxConsoles bounds the sessions. They are not among the clients, so that
	// the console can be reached when those are too many.
	maxConsoles = 64
	// maxConsoleQuery is the longest command, in bytes.
	maxConsoleQuery = 10000
	// consoleFlush is how much of an answer is collected before it is sent, in
	// bytes.
	consoleFlush = 32 << 10
	// consoleWriteTimeout is for a client to take in one such piece.
	consoleWriteTimeout = 30 * time.Second
)

// console is a session.
type console struct {
	p     *Pooler
	conn  net.Conn
	who   newcomer
	admin bool // not only to look
	rows  pgwire.DataRow
	err   error // of a write: the session is over

	connectedAt time.Time
	key         pgwire.CancelKey
	cancelled   chan struct{} // by a cancel request
	killed      atomic.Bool   // by KILL_CLIENT

	mu          sync.Mutex
	requestedAt time.Time
	commands    uint64
}

// consoles are the sessions that there are.
type consoles struct {
	mu       sync.Mutex
	open     []*console
	commands uint64 // of those that have ended
}

var (
	errNotAllowed = pgwire.NewError(pgwire.SeverityFatal, pgwire.CodeInvalidAuthorization, "not allowed")
	errConsoles   = pgwire.NewError(pgwire.SeverityFatal, pgwire.CodeTooManyConnections,
		fmt.Sprintf("no more than %d connections to the console are allowed", maxConsoles))
	errExtended = pgwire.NewError(pgwire.SeverityFatal, pgwire.CodeFeatureNotSupported,
		"extended query protocol not supported by admin console")
)

// openConsole begins a session of a user who has proved to be one, or says why
// there is none.
func (p *Pooler) openConsole(conn net.Conn, who newcomer) (*console, error) {
	admin := who.own || slices.Contains(p.conf().AdminUsers, who.login)
	if !admin && !slices.Contains(p.conf().StatsUsers, who.login) {
		return nil, errNotAllowed
	}
	p.consoles.mu.Lock()
	defer p.consoles.mu.Unlock()
	if len(p.consoles.open) >= maxConsoles {
		return nil, errConsoles
	}
	s := &console{
		p: p, conn: conn, who: who, admin: admin, connectedAt: time.Now(),
		key: pgwire.NewCancelKey(who.protocol), cancelled: make(chan struct{}, 1),
	}
	p.consoles.open = append(p.consoles.open, s)
	return s, nil
}

// closeConsole takes a session off the list, before its connection is closed.
func (p *Pooler) closeConsole(s *console) {
	p.consoles.mu.Lock()
	defer p.consoles.mu.Unlock()
	p.consoles.commands += s.commands
	p.consoles.open = slices.DeleteFunc(p.consoles.open, func(o *console) bool { return o == s })
	if len(p.consoles.open) == 0 {
		// Nobody is left who could resume.
		p.loop.post(func() {
			if p.loop.m.suspended {
				p.log.Info("admin disappeared when suspended, doing RESUME")
				p.resume()
			}
		})
	}
}

// openConsoles returns the sessions, and how many commands they and those
// before them had.
func (p *Pooler) openConsoles() (open []*console, commands uint64) {
	p.consoles.mu.Lock()
	defer p.consoles.mu.Unlock()
	commands = p.consoles.commands
	for _, s := range p.consoles.open {
		s.mu.Lock()
		commands += s.commands
		s.mu.Unlock()
	}
	return slices.Clone(p.consoles.open), commands
}

// run is the session's life. Unlike logins it goes on while the pooler waits
// for transactions to end: then it is wanted most.
func (s *console) run() {
	stop := context.AfterFunc(s.p.late, func() { _ = s.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	s.greet()
	for s.err == nil {
		typ, body, err := pgwire.ReadFrame(s.conn, maxConsoleQuery)
		if err != nil {
			s.leave(err)
			return
		}
		switch typ {
		case pgwire.MsgQuery:
			s.query(body)
		case pgwire.MsgTerminate:
			s.p.closeConsole(s)
			s.logEnd("client close request")
			s.p.part(s.conn)
			return
		case pgwire.MsgParse, pgwire.MsgBind, pgwire.MsgExecute:
			s.leave(errExtended)
			return
		default:
			s.leave(pgwire.NewError(pgwire.SeverityFatal, pgwire.CodeProtocolViolation,
				fmt.Sprintf("unsupported packet type for admin console: %d", typ)))
			return
		}
	}
	s.leave(s.err)
}

// leave ends a session for a reason that the client may not know yet.
func (s *console) leave(err error) {
	s.p.closeConsole(s)
	switch {
	case s.p.late.Err() != nil:
		err = errShutdown
	case s.killed.Load():
		err = errForced
	}
	e, ok := errors.AsType[*pgwire.Error](err)
	if !ok {
		if err == io.EOF {
			s.logEnd("client unexpected eof")
		} else {
			s.logEnd(err.Error())
		}
		_ = s.conn.Close()
		return
	}
	s.logEnd(e.Message)
	_ = s.conn.SetWriteDeadline(time.Now().Add(lingerTimeout))
	if err := pgwire.SendError(s.conn, e); err != nil {
		s.p.log.Debug("failed to end console", "client", s.who.addr, "error", err)
	}
	if e == errShutdown {
		_ = s.conn.Close() // whoever sits there will not close it soon
		return
	}
	s.p.hangUp(s.conn)
}

func (s *console) logEnd(why string) {
	s.p.log.Log(s.p.ctx, s.p.conf().limits.logout, "closing because: "+why, "client", s.who.addr,
		"database", consoleDatabase, "user", s.who.login)
}

// greet sends what follows a login (section 53.2.1).
func (s *console) greet() {
	out := pgwire.AppendAuthenticationOk(nil)
	for _, p := range []pgwire.Param{
		{Name: "server_version", Value: consoleVersion + "/bouncer"},
		{Name: "client_encoding", Value: "UTF8"},
		{Name: "server_encoding", Value: "UTF8"},
		{Name: "DateStyle", Value: "ISO"},
		{Name: "TimeZone", Value: "GMT"},
		{Name: "standard_conforming_strings", Value: "on"},
		{Name: "is_superuser", Value: "on"},
	} {
		out = pgwire.AppendParameterStatus(out, p.Name, p.Value)
	}
	out = pgwire.AppendBackendKeyData(out, s.key)
	s.rows.Buf = pgwire.AppendReadyForQuery(out, pgwire.TxIdle)
	s.flush()
}

// flush sends what has been collected.
func (s *console) flush() {
	if s.err == nil {
		s.err = s.conn.SetWriteDeadline(time.Now().Add(consoleWriteTimeout))
	}
	if s.p.late.Err() != nil { // what run set may have been overwritten
		s.err = errShutdown
	}
	if s.err == nil {
		_, s.err = s.conn.Write(s.rows.Buf)
	}
	s.rows.Buf = s.rows.Buf[:0]
	if cap(s.rows.Buf) > 2*consoleFlush {
		s.rows.Buf = nil
	}
}

// ready ends an answer.
func (s *console) ready() {
	s.rows.Buf = pgwire.AppendReadyForQuery(s.rows.Buf, pgwire.TxIdle)
	s.flush()
}

// done ends the answer to a command that was carried out.
func (s *console) done(tag string) {
	s.rows.Buf = pgwire.AppendCommandComplete(s.rows.Buf, tag)
	s.ready()
}

// fail answers with an error.
func (s *console) fail(code, format string, args ...any) {
	s.rows.Buf = pgwire.AppendError(s.rows.Buf, pgwire.SeverityError, code, fmt.Sprintf(format, args...))
	s.ready()
}

// header begins a result.
func (s *console) header(columns []pgwire.Column) {
	s.rows.Buf = pgwire.AppendRowDescription(s.rows.Buf, columns)
}

// endRow ends a row of a result.
func (s *console) endRow() {
	s.rows.End()
	if len(s.rows.Buf) >= consoleFlush {
		s.flush()
	}
}
