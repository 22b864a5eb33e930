package pooler

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// A user who is in no user list may be in the database: auth_query asks it. The
// question goes the way of every client's: a socket pair, of which the loop has
// one end as that of a client who has logged in as auth_user, and this goroutine
// the other. So it takes a server of that pool, within all limits, and shows in
// the console.

const (
	// DefaultAuthQuery is that of PgBouncer 1.25: it finds no password that has
	// expired (CVE-2025-2291).
	DefaultAuthQuery = "SELECT rolname, CASE WHEN rolvaliduntil < pg_catalog.now() THEN NULL ELSE rolpassword END FROM pg_catalog.pg_authid WHERE rolname=$1 AND rolcanlogin"
	// maxAuthQueries is how many questions are asked at a time, so that those who
	// guess names do not take all servers.
	maxAuthQueries = 4
	// authMemory is how long an answer holds, and maxAuthMemory how many are
	// kept: the clients of an application log in at once, each with the same
	// question. PgBouncer asks for each login; a new password waits a second.
	authMemory    = time.Second
	maxAuthMemory = 1024
	// maxAuthRow bounds what is read of an answer, in bytes.
	maxAuthRow = 64 << 10
)

// authBook has the answers of a moment ago.
type authBook struct {
	slots chan struct{}

	mu    sync.Mutex
	found map[authKey]authAnswer
}

// authKey is a question.
type authKey struct{ database, asker, user, query string }

type authAnswer struct {
	secret pgwire.Secret
	known  bool
	at     time.Time
}

func newAuthBook() authBook {
	return authBook{slots: make(chan struct{}, maxAuthQueries), found: make(map[authKey]authAnswer)}
}

func (b *authBook) get(k authKey, now time.Time) (authAnswer, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	a, ok := b.found[k]
	return a, ok && now.Sub(a.at) < authMemory
}

func (b *authBook) put(k authKey, a authAnswer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.found) >= maxAuthMemory {
		for k, old := range b.found {
			if a.at.Sub(old.at) >= authMemory {
				delete(b.found, k)
			}
		}
	}
	if len(b.found) < maxAuthMemory {
		b.found[k] = a
	}
}

// findUser finds what is known of a user: in the user list, or by auth_query if
// the database has somebody to ask as.
func (p *Pooler) findUser(c *settings, s *pgwire.Startup) (secret pgwire.Secret, known bool, err error) {
	if secret, known = c.lookup(s.User); known || s.Database == consoleDatabase {
		return secret, known, nil
	}
	db := c.database(s.Database)
	if db == nil || db.AuthUser == "" {
		return secret, false, nil
	}
	where := db
	if db.AuthDBName != "" {
		if where = c.database(db.AuthDBName); where == nil || db.AuthDBName == consoleDatabase {
			return secret, false, fmt.Errorf("%w: there is no database %q, which auth_dbname names", errAuthConfig, db.AuthDBName)
		}
	}
	key := authKey{where.Name, db.AuthUser, s.User, db.AuthQuery}
	if a, ok := p.auths.get(key, time.Now()); ok {
		return a.secret, a.known, nil
	}
	limit := c.ClientLoginTimeout
	if limit <= 0 {
		limit = c.ServerConnectTimeout
	}
	ctx, cancel := context.WithTimeout(p.ctx, limit)
	defer cancel()
	select {
	case p.auths.slots <- struct{}{}:
		defer func() { <-p.auths.slots }()
	case <-ctx.Done():
		return secret, false, fmt.Errorf("%w: waiting for a turn to ask by auth_query: %w", errAuthConfig, ctx.Err())
	}
	if a, ok := p.auths.get(key, time.Now()); ok { // while we waited
		return a.secret, a.known, nil
	}
	a := authAnswer{at: time.Now()}
	if a.secret, a.known, err = p.askDatabase(ctx, c, where, key); err != nil {
		return secret, false, fmt.Errorf("%w: asking by auth_query: %w", errAuthConfig, err)
	}
	p.auths.put(key, a)
	return a.secret, a.known, nil
}

// askDatabase asks one question.
func (p *Pooler) askDatabase(ctx context.Context, c *settings, db *Database, k authKey) (secret pgwire.Secret, known bool, err error) {
	conn, err := p.insider(c, db, k.asker)
	if err != nil {
		return secret, false, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	// The welcome, which needs a server of the pool.
	if err = readUntilReady(conn, nil); err != nil {
		return secret, false, err
	}
	if _, err = conn.Write(appendAuthQuery(nil, k.query, k.user)); err != nil {
		return secret, false, err
	}
	rows := 0
	if err = readUntilReady(conn, func(body []byte) error {
		rows++
		columns, ok := parseRow(body)
		if !ok || len(columns) != 2 {
			return fmt.Errorf("expected 2 columns from auth_query, not %d", len(columns))
		}
		if columns[0] == nil {
			return errors.New("auth_query response contained null user name")
		}
		if string(columns[0]) != k.user { // PgBouncer takes whom it is given
			return fmt.Errorf("auth_query answered about %q", columns[0])
		}
		var perr error
		secret, perr = pgwire.ParseSecret(string(columns[1]))
		return perr
	}); err != nil {
		return pgwire.Secret{}, false, err
	}
	_, _ = conn.Write(terminateMsg) // or the close says so
	return secret, rows > 0, nil
}

// insider makes a client of our own, who has logged in.
func (p *Pooler) insider(c *settings, db *Database, user string) (net.Conn, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	file := os.NewFile(uintptr(fds[0]), "auth_query")
	conn, err := net.FileConn(file)
	if err = errors.Join(err, file.Close()); err != nil {
		return nil, errors.Join(err, unix.Close(fds[1]))
	}
	here := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0)
	n := newcomer{
		fd: fds[1], id: p.ids.Add(1), database: db, from: c, login: user, user: user, protocol: pgwire.Protocol30,
		addr: here, peer: here, local: here,
	}
	p.clients.Add(1) // until it is dropped
	if !p.loop.post(func() { p.adoptClient(n) }) {
		p.clients.Add(-1)
		return nil, errors.Join(errShutdown, unix.Close(fds[1]), conn.Close())
	}
	return conn, nil
}

// readUntilReady reads up to a ReadyForQuery, and gives each row to row.
func readUntilReady(conn net.Conn, row func(body []byte) error) (failed error) {
	for {
		typ, body, err := pgwire.ReadFrame(conn, maxAuthRow)
		if err != nil {
			return errors.Join(failed, err)
		}
		switch typ {
		case pgwire.MsgErrorResponse:
			e, perr := pgwire.ParseError(body)
			if perr != nil {
				return perr
			}
			if e.Severity == pgwire.SeverityFatal {
				return errors.New(e.Error()) // the client is not to have it
			}
			failed = errors.Join(failed, errors.New(e.Error()))
		case pgwire.MsgDataRow:
			if row != nil && failed == nil {
				failed = row(body)
			}
		case pgwire.MsgReadyForQuery:
			return failed
		}
	}
}

// appendAuthQuery appends the query with its parameter, in the extended
// protocol.
func appendAuthQuery(dst []byte, query, user string) []byte {
	dst = pgwire.AppendParse(dst, "", append(append([]byte(query), 0), 0, 0))
	bind := []byte{0, 0, 0, 0, 0, 1} // unnamed portal and statement, text, one parameter
	bind = binary.BigEndian.AppendUint32(bind, uint32(len(user)))
	bind = append(append(bind, user...), 0, 0) // results as text
	dst = append(pgwire.AppendHeader(dst, pgwire.MsgBind, len(bind)), bind...)
	execute := []byte{0, 0, 0, 0, 0}
	dst = append(pgwire.AppendHeader(dst, pgwire.MsgExecute, len(execute)), execute...)
	return pgwire.AppendSync(dst)
}

// parseRow decodes a DataRow; a column that is null is nil.
func parseRow(b []byte) (columns [][]byte, ok bool) {
	if len(b) < 2 {
		return nil, false
	}
	n := int(binary.BigEndian.Uint16(b))
	b = b[2:]
	for range n {
		if len(b) < 4 {
			return nil, false
		}
		size := int32(binary.BigEndian.Uint32(b))
		b = b[4:]
		if size < 0 {
			columns = append(columns, nil)
			continue
		}
		if int64(size) > int64(len(b)) {
			return nil, false
		}
		columns = append(columns, b[:size:size])
		b = b[size:]
	}
	return columns, len(b) == 0
}
