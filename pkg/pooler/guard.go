package pooler

import (
	"bytes"
	"log/slog"
	"strings"
	"time"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// Guard says what becomes of what a client leaves behind in a server's session
// in transaction or statement pooling, where the next transaction may be another
// client's.
type Guard uint8

// The values of a Guard.
const (
	// GuardClean: the server is cleaned before anybody gets it. A client that
	// holds session advisory locks keeps the server until they are gone.
	GuardClean Guard = iota
	// GuardCount: it is counted and logged.
	GuardCount
	// GuardRefuse: a client that is about to leave something behind, except for
	// what SET does, is refused. The rest is as with GuardClean.
	GuardRefuse
	// GuardOff: nobody looks.
	GuardOff
)

// leftovers is a set of things that a session may hold beyond its transaction.
type leftovers uint8

const (
	leftSet     leftovers = 1 << iota // parameters by SET or set_config
	leftLock                          // session advisory locks
	leftTemp                          // temporary tables, views, sequences
	leftCursor                        // cursors WITH HOLD
	leftListen                        // LISTEN
	leftPrepare                       // PREPARE in SQL
	leftUnknown                       // it is yet to be asked whether locks are held
	leftHalf                          // a SET of ours, unless its answer has come
)

// leftAny is what a query of which the beginning has not been seen may leave.
const leftAny = leftSet | leftTemp | leftCursor | leftListen | leftLock | leftUnknown

var leftoverKinds = []struct {
	kind        leftovers
	name, clean string
}{
	{leftSet, "SET", "RESET ALL;SET SESSION AUTHORIZATION DEFAULT;"},
	{leftHalf, "parameters", "RESET ALL;SET SESSION AUTHORIZATION DEFAULT;"},
	{leftLock, "session advisory lock", "SELECT pg_catalog.pg_advisory_unlock_all();"},
	{leftTemp, "temporary table", "DISCARD TEMP;"},
	{leftCursor, "cursor WITH HOLD", "CLOSE ALL;"},
	{leftListen, "LISTEN", "UNLISTEN *;"},
	{leftPrepare, "PREPARE", "DEALLOCATE ALL;"},
}

// String names the kinds in the set.
func (l leftovers) String() string {
	var names []string
	for _, k := range leftoverKinds {
		if l&k.kind != 0 {
			names = append(names, k.name)
		}
	}
	return strings.Join(names, ", ")
}

// text returns the query text at the front of b, as far as it has come.
func text(b []byte) []byte {
	b = b[:min(len(b), lookLen)]
	if i := bytes.IndexByte(b, 0); i >= 0 {
		return b[:i]
	}
	return b
}

// lookLen is how much of a query is looked at, in bytes. What leaves something
// behind is short as a rule; what a longer text hides is not found.
const lookLen = 1 << 10

// lookAt guesses what a query may leave behind, by the first words of its
// statements and the names of two functions. It is no parser: a guess too much
// costs a query at the end of the transaction; a guess too few is a leak, as it
// is without the guard.
func lookAt(sql []byte) leftovers {
	l := lookAtStatement(sql)
	for rest := sql; ; {
		i := bytes.IndexByte(rest, ';')
		if i < 0 {
			break
		}
		rest = rest[i+1:]
		l |= lookAtStatement(rest)
	}
	if bytes.Contains(sql, advisoryLower) || bytes.Contains(sql, advisoryUpper) {
		low := bytes.ToLower(sql)
		if bytes.Count(low, advisoryLower) > bytes.Count(low, advisoryXact) {
			l |= leftLock | leftUnknown
		}
	}
	if i := bytes.Index(sql, setConfig); i >= 0 && !bytes.Contains(sql[i:], localFlag) {
		l |= leftSet
	}
	return l
}

var (
	advisoryLower = []byte("advisory_")
	advisoryUpper = []byte("ADVISORY_")
	advisoryXact  = []byte("advisory_xact_")
	setConfig     = []byte("set_config")
	localFlag     = []byte("true")
)

// lookAtStatement looks at the first words of one statement.
func lookAtStatement(sql []byte) leftovers {
	sql = skipSpace(sql)
	if len(sql) < 3 {
		return 0
	}
	switch sql[0] | 0x20 {
	case 's':
		if sql[1]|0x20 != 'e' || sql[2]|0x20 != 't' {
			return 0 // SELECT, as a rule
		}
	case 'r', 'c', 'd', 'p', 'l':
	default:
		return 0
	}
	word, rest := nextWord(sql)
	switch {
	case is(word, "SET"):
		second, more := nextWord(rest)
		if is(second, "SESSION") {
			if third, _ := nextWord(more); !is(third, "AUTHORIZATION", "CHARACTERISTICS") {
				second = third
			}
		}
		// Of the transaction, or reported.
		if len(second) == 0 || is(second, "LOCAL", "TRANSACTION", "CONSTRAINTS", "NAMES", "TIME") || varIndex(second) >= 0 {
			return 0
		}
		return leftSet
	case is(word, "RESET"):
		if second, _ := nextWord(rest); varIndex(second) >= 0 {
			return 0
		}
		return leftSet
	case is(word, "CREATE"):
		for range 4 { // CREATE OR REPLACE LOCAL TEMP VIEW
			word, rest = nextWord(rest)
			if is(word, "TEMP", "TEMPORARY") {
				return leftTemp
			}
		}
	case is(word, "DECLARE"):
		if head, _, _ := bytes.Cut(rest, []byte(";")); bytes.Contains(bytes.ToUpper(head[:min(len(head), 200)]), []byte("WITH HOLD")) {
			return leftCursor
		}
	case is(word, "PREPARE"):
		if second, _ := nextWord(rest); !is(second, "TRANSACTION") {
			return leftPrepare
		}
	case is(word, "LISTEN"):
		return leftListen
	}
	return 0
}

// is reports whether a word is one of those, which are in upper case.
func is(word []byte, those ...string) bool {
next:
	for _, w := range those {
		if len(w) != len(word) {
			continue
		}
		for i := range word {
			if c := word[i]; c != w[i] && (c < 'a' || c > 'z' || c&^0x20 != w[i]) {
				continue next
			}
		}
		return true
	}
	return false
}

// skipSpace skips white space and comments.
func skipSpace(b []byte) []byte {
	for {
		i := 0
		for i < len(b) && isSpace(b[i]) {
			i++
		}
		b = b[i:]
		end := ""
		switch {
		case len(b) < 2:
			return b
		case b[0] == '-' && b[1] == '-':
			end = "\n"
		case b[0] == '/' && b[1] == '*':
			end = "*/" // a nested comment would end too early
		default:
			return b
		}
		i = bytes.Index(b, []byte(end))
		if i < 0 {
			return nil
		}
		b = b[i+len(end):]
	}
}

// nextWord returns the next word.
func nextWord(b []byte) (word, rest []byte) {
	b = skipSpace(b)
	i := 0
	for i < len(b) && (b[i] == '_' || b[i]|0x20 >= 'a' && b[i]|0x20 <= 'z' || b[i] >= '0' && b[i] <= '9') {
		i++
	}
	return b[:i], b[i:]
}

// leaves notes what a client is about to leave behind on its server. It reports
// false if the client was refused for it.
func (m *machine) leaves(cl *client, sv *server, l leftovers) bool {
	if m.limits.leakGuard == GuardRefuse && l&^leftSet != 0 && l != leftAny {
		what := (l &^ leftSet).String()
		m.refuseClient(cl, refusedLeftover, pgwire.NewError(pgwire.SeverityFatal, pgwire.CodeFeatureNotSupported,
			what+" is not supported in transaction pooling (leak_guard = refuse)"))
		return false
	}
	sv.left |= l
	return true
}

// keeps is asked at the end of a transaction that may have left something
// behind. It reports whether the client keeps the server, for now at least.
func (m *machine) keeps(cl *client, sv *server) bool {
	if sv.left&leftUnknown != 0 && m.limits.leakGuard != GuardCount {
		sv.left &^= leftUnknown
		sv.checking, sv.ownRows, sv.setError = true, false, nil
		m.moveClient(cl, clientSetting)
		m.ownQuery(sv, locksMsg)
		return true
	}
	if sv.pinned {
		m.sessionRests(cl)
		return true
	}
	m.reportLeft(cl, sv)
	return false
}

// locksMsg asks whether the session holds advisory locks. There is no open
// transaction, so they are the session's.
var locksMsg = pgwire.AppendQuery(nil, "SELECT 1 FROM pg_catalog.pg_locks"+
	" WHERE locktype OPERATOR(pg_catalog.=) 'advisory' AND pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid() LIMIT 1")

// locksChecked: the answer has come.
func (m *machine) locksChecked(cl *client, sv *server) {
	sv.checking, cl.cancelWanted = false, false
	held := sv.ownRows && sv.setError == nil
	if held && !sv.pinned {
		sv.pool.stats.Pins++
		m.logLeft(cl, leftLock, "the client keeps the server until it is gone")
	}
	sv.pinned = held
	if !held && sv.setError == nil {
		sv.left &^= leftLock
	}
	m.moveClient(cl, clientActive)
	m.atRest(sv)
	m.wake(&cl.conn)
}

// reportLeft counts and logs what is left on a server that the client gives back.
func (m *machine) reportLeft(cl *client, sv *server) {
	sv.pool.stats.Leftovers++
	switch {
	case m.limits.leakGuard == GuardCount:
		m.logLeft(cl, sv.left, "others will find it")
		sv.left = 0
		if sv.rest != "" {
			sv.left = leftSet // or parameters that we have set ourselves would be mixed up
		}
	default:
		m.logLeft(cl, sv.left, "it is removed")
	}
}

// leftLogPeriod is how often a pool's log says that something was left behind.
const leftLogPeriod = time.Minute

func (m *machine) logLeft(cl *client, l leftovers, action string) {
	p := cl.pool
	if p.leftLogged != 0 && m.now-p.leftLogged < leftLogPeriod {
		return
	}
	p.leftLogged = m.now
	m.log.Warn("session state left in transaction pooling: "+l.String()+": "+action, "application", cl.vars[varApplicationName],
		slog.String("client", cl.addr.String()), "database", p.key.database, "user", p.key.user)
}

// cleanFailed is why a server is closed that could not be cleaned.
const cleanFailed = "cleaning failed"

// clean removes from a server what clients have left on it.
func (m *machine) clean(sv *server) {
	var sql strings.Builder
	for _, k := range leftoverKinds {
		if sv.left&k.kind != 0 {
			sql.WriteString(k.clean)
		}
	}
	sv.left, sv.pinned, sv.checking = 0, false, false
	m.test(sv, pgwire.AppendQuery(nil, sql.String()), cleanFailed)
}

// clientQuery looks at a simple query. Done says that it was dealt with, or that
// more of it is needed.
func (m *machine) clientQuery(cl *client, b []byte, total int) (used, need int, done bool) {
	sv := cl.server
	if len(b) < min(total, pgwire.HeaderLen+lookLen) {
		if total <= pgwire.HeaderLen+lookLen {
			return 0, total, true
		}
		// A long one streams, and its beginning is not here yet: it may be
		// anything.
		sv.left |= leftAny
		return 0, 0, false
	}
	sql := text(b[pgwire.HeaderLen:min(total, len(b))])
	if len(sql) > 0 && sql[0]|0x20 == 'd' && total <= pgwire.HeaderLen+lookLen {
		if used, need, done = m.clientDeallocate(cl, sv, b, sql, total); done {
			return used, need, done
		}
	}
	if l := lookAt(sql); l != 0 && !m.leaves(cl, sv, l) {
		return 0, 0, true
	}
	return 0, 0, false
}

// clientDeallocate handles DEALLOCATE of the client's own statements, which
// have other names on the server, and which other clients may use too: nothing
// is sent. In a transaction that has failed the server answers, with an error.
func (m *machine) clientDeallocate(cl *client, sv *server, b, sql []byte, total int) (used, need int, done bool) {
	name, all, ok := parseDeallocate(sql)
	if !ok || !cl.renames || sv.flight || sv.copyIn || sv.left&leftPrepare != 0 {
		return 0, 0, false
	}
	if sv.expects.n > 0 {
		sv.stalledDry = true
		used, need = m.stall(sv)
		return used, need, true
	}
	if sv.status == pgwire.TxFailed {
		return 0, 0, false
	}
	tag := "DEALLOCATE"
	if all {
		m.stmts.unnameAll(cl, func(string) bool { return true })
		tag = "DEALLOCATE ALL"
	} else {
		st := cl.names[name]
		if st == nil {
			return 0, 0, false // the server has an error for it
		}
		m.stmts.unname(cl, name)
		m.stmts.release(st)
	}
	m.dropUnnamed(cl)
	cl.pool.stats.Queries++
	m.emit(&cl.conn, pgwire.AppendReadyForQuery(pgwire.AppendCommandComplete(nil, tag), sv.status))
	used, _ = m.take(cl, b, total, true)
	return used, 0, true
}

// parseDeallocate takes DEALLOCATE [PREPARE] { name | ALL } apart. Another
// statement may not follow.
func parseDeallocate(sql []byte) (name string, all, ok bool) {
	word, rest := nextWord(sql)
	if !is(word, "DEALLOCATE") || len(rest) == 0 {
		return "", false, false
	}
	if word, more := nextWord(rest); is(word, "PREPARE") && len(skipSpace(more)) > 0 && skipSpace(more)[0] != ';' {
		rest = more
	}
	rest = skipSpace(rest)
	if len(rest) > 0 && rest[0] == '"' {
		end := bytes.IndexByte(rest[1:], '"')
		if end < 0 || len(rest) > end+2 && rest[end+2] == '"' {
			return "", false, false // a quote in a name: too odd
		}
		name, rest = string(rest[1:end+1]), rest[end+2:]
	} else {
		i := 0
		for i < len(rest) && !isSpace(rest[i]) && rest[i] != ';' {
			i++
		}
		name, rest = strings.ToLower(string(rest[:i])), rest[i:]
		all = name == "all"
	}
	rest = bytes.TrimRight(rest, "; \t\r\n")
	return name, all, name != "" && len(rest) == 0
}
