package pooler

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"strconv"
	"strings"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// backend is a PostgreSQL session in miniature: the message flow of section
// 53.2, for a handful of statements. It serves as the server behind the machine
// and as the reference that a client of its own would have seen.
//
// One thing is left out: a Parse in a failed transaction succeeds here. (Where
// the server has the statement already, the pooler answers the Parse itself and
// the client gets its error from the Bind.)
type backend struct {
	in  []byte
	out []byte

	stmts    map[string]string // named
	unnamed  *string
	portals  map[string]string
	tx       byte
	skipping bool
	copyIn   bool
	copyExt  bool // the COPY came by Execute
	copied   int
	vars     map[string]string
	start    map[string]string // of the startup packet, as far as they are not reported
	report   []byte            // ParameterStatus due before the next ReadyForQuery
	closed   bool
	mute     bool     // takes everything and answers nothing
	ran      []string // what was executed
}

func newBackend() *backend {
	return &backend{
		stmts: map[string]string{}, portals: map[string]string{}, tx: pgwire.TxIdle,
		vars: map[string]string{"client_encoding": "UTF8", "DateStyle": "ISO, MDY", "TimeZone": "UTC",
			"standard_conforming_strings": "on", "application_name": "", "IntervalStyle": "postgres"},
	}
}

// params is what a login reports.
func (b *backend) params() paramList {
	l := paramList{{Name: "server_version", Value: "15.1"}}
	for _, n := range varNames {
		l = append(l, pgwire.Param{Name: n, Value: b.vars[n]})
	}
	return l
}

// feed gives the session bytes; its answers are appended to out.
func (b *backend) feed(p []byte) {
	b.in = append(b.in, p...)
	for !b.closed && !b.mute {
		typ, n, ok := pgwire.Header(b.in)
		if !ok {
			return
		}
		if n < 0 {
			panic("backend got an invalid length")
		}
		if len(b.in) < pgwire.HeaderLen+n {
			return
		}
		body := b.in[pgwire.HeaderLen : pgwire.HeaderLen+n]
		b.in = b.in[pgwire.HeaderLen+n:]
		b.message(typ, body)
	}
}

// clean reports whether the session could be handed to anybody.
func (b *backend) clean() bool {
	return len(b.in) == 0 && b.tx == pgwire.TxIdle && !b.skipping && !b.copyIn
}

func (b *backend) fail(code, text string) {
	b.out = pgwire.AppendError(b.out, pgwire.SeverityError, code, text)
	if b.tx == pgwire.TxActive {
		b.tx = pgwire.TxFailed
	}
}

func (b *backend) ready() {
	if b.tx == pgwire.TxIdle {
		clear(b.portals)
	}
	b.out = append(b.out, b.report...)
	b.report = nil
	b.out = pgwire.AppendReadyForQuery(b.out, b.tx)
}

func (b *backend) message(typ byte, body []byte) {
	if b.copyIn {
		b.copyMessage(typ, body)
		return
	}
	if b.skipping && typ != pgwire.MsgSync && typ != pgwire.MsgTerminate {
		return
	}
	switch typ {
	case pgwire.MsgQuery:
		b.query(strings.TrimSuffix(string(body), "\x00"))
	case pgwire.MsgFunctionCall:
		b.fail("0A000", "no functions here")
		b.ready()
	case pgwire.MsgSync:
		b.skipping = false
		b.ready()
	case pgwire.MsgFlush, pgwire.MsgCopyData, pgwire.MsgCopyDone, pgwire.MsgCopyFail:
	case pgwire.MsgTerminate:
		b.closed = true
	case pgwire.MsgParse, pgwire.MsgBind, pgwire.MsgDescribe, pgwire.MsgClose, pgwire.MsgExecute:
		if !b.extended(typ, body) {
			b.skipping = true
		}
	default:
		panic(fmt.Sprintf("backend got message type %q", typ))
	}
}

func (b *backend) copyMessage(typ byte, body []byte) {
	switch typ {
	case pgwire.MsgSync, pgwire.MsgFlush:
		return
	case pgwire.MsgCopyData:
		if string(body) != "poison" {
			b.copied++
			return
		}
		b.fail("22P02", "poisoned row")
	case pgwire.MsgCopyDone:
		b.out = pgwire.AppendCommandComplete(b.out, "COPY "+strconv.Itoa(b.copied))
		b.copyIn = false
		if !b.copyExt {
			b.ready()
		}
		return
	case pgwire.MsgCopyFail:
		b.fail("57014", "COPY from stdin failed")
	default:
		b.fail("08P01", "unexpected message during COPY from stdin")
	}
	b.copyIn = false
	if b.copyExt {
		b.skipping = true
	} else {
		b.ready()
	}
}

func (b *backend) query(text string) {
	b.unnamed = nil
	if strings.TrimSpace(text) == "" {
		b.out = pgwire.AppendEmptyQueryResponse(b.out)
	}
	for _, s := range strings.Split(text, ";") {
		if strings.TrimSpace(s) == "" {
			continue
		}
		if !b.exec(s, true) {
			break
		}
		if b.copyIn {
			b.copyExt = false
			return // the rest of the text is not supported
		}
	}
	b.ready()
}

// hasRows reports whether a statement returns rows.
func hasRows(text string) bool {
	return strings.HasPrefix(text, "row") || strings.HasPrefix(text, "show")
}

func rowDescription() []byte {
	col := []byte("v\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x19\xff\xff\xff\xff\xff\xff\x00\x00")
	return append(append(pgwire.AppendHeader(nil, 'T', 2+len(col)), 0, 1), col...)
}

func dataRow(v string) []byte {
	row := pgwire.AppendHeader(nil, 'D', 2+4+len(v))
	row = append(row, 0, 1)
	row = binary.BigEndian.AppendUint32(row, uint32(len(v)))
	return append(row, v...)
}

// exec runs one statement; false means that it failed.
func (b *backend) exec(text string, simple bool) bool {
	b.ran = append(b.ran, text)
	word, arg, _ := strings.Cut(text, " ")
	if b.tx == pgwire.TxFailed && word != "commit" && word != "rollback" && text != "ROLLBACK" {
		b.fail("25P02", "current transaction is aborted, commands ignored until end of transaction block")
		return false
	}
	if simple && hasRows(text) {
		b.out = append(b.out, rowDescription()...)
	}
	tag := strings.ToUpper(word)
	switch word {
	case "begin":
		b.tx = pgwire.TxActive
	case "commit":
		if b.tx == pgwire.TxFailed {
			tag = "ROLLBACK"
		}
		b.tx = pgwire.TxIdle
	case "rollback", "ROLLBACK":
		b.tx = pgwire.TxIdle
	case "fail":
		b.fail("22012", "division by zero "+arg)
		return false
	case "row":
		b.out = append(b.out, dataRow(arg)...)
		tag = "SELECT 1"
	case "rows": // rows COUNT PAYLOAD
		count, payload, _ := strings.Cut(arg, " ")
		n, err := strconv.Atoi(count)
		if err != nil {
			panic(err)
		}
		for range n {
			b.out = append(b.out, dataRow(payload)...)
		}
		tag = "SELECT " + count
	case "notice":
		b.out = (&pgwire.Error{Severity: "NOTICE", Code: "00000", Message: arg}).AppendNotice(b.out)
	case "listen":
		b.out = append(b.out, notification()...)
	case "copyin":
		b.out = append(pgwire.AppendHeader(b.out, 'G', 3), 0, 0, 0)
		b.copyIn, b.copyExt, b.copied = true, !simple, 0
		return true
	case "copyout":
		b.out = append(pgwire.AppendHeader(b.out, 'H', 3), 0, 0, 0)
		for range 3 {
			b.out = append(pgwire.AppendHeader(b.out, 'd', len(arg)), arg...)
		}
		b.out = pgwire.AppendHeader(b.out, 'c', 0)
		tag = "COPY 3"
	case "deallocate":
		if arg != "all" {
			if _, ok := b.statement(arg); !ok {
				return false
			}
			delete(b.stmts, arg)
			break
		}
		clear(b.stmts)
		tag = "DEALLOCATE ALL"
	case "discard", "DISCARD":
		if b.tx != pgwire.TxIdle {
			b.fail("25001", "DISCARD ALL cannot run inside a transaction block")
			return false
		}
		// Only those that are not reported: of the others a client that
		// discards them gets the server's defaults, not those of its login.
		for name := range b.vars {
			if varIndex(name) < 0 {
				delete(b.vars, name)
			}
		}
		maps.Copy(b.vars, b.start)
		clear(b.stmts)
		b.unnamed = nil
		tag = "DISCARD ALL"
	case "show":
		b.out = append(b.out, dataRow(b.vars[arg])...)
	case "SELECT": // pg_catalog.set_config('name','value',false)
		args := strings.Split(arg, "'")
		b.vars[args[1]] = args[3]
	case "RESET":
		if arg == "ALL" {
			fresh := newBackend()
			for name, value := range b.vars {
				if value == fresh.vars[name] {
					continue
				}
				b.vars[name] = fresh.vars[name]
				if varIndex(name) >= 0 {
					b.report = pgwire.AppendParameterStatus(b.report, name, b.vars[name])
				}
			}
			break
		}
		delete(b.vars, strings.ReplaceAll(arg, `"`, ""))
	case "SET", "set":
		if arg == "SESSION AUTHORIZATION DEFAULT" {
			break
		}
		name, value, _ := strings.Cut(arg, "=")
		if e, ok := strings.CutPrefix(value, "E"); ok {
			value = strings.ReplaceAll(e, `\\`, `\`)
		}
		value = strings.ReplaceAll(strings.Trim(value, "'"), "''", "'")
		if value == "bad" {
			b.fail("22023", "invalid value for parameter")
			return false
		}
		if name == "DateStyle" && value == "iso" {
			value = "ISO, MDY"
		}
		if b.vars[name] != value {
			b.vars[name] = value
			if varIndex(name) >= 0 {
				b.report = pgwire.AppendParameterStatus(b.report, name, value)
			}
		}
		tag = "SET"
	default:
		b.fail("42601", "syntax error at "+text)
		return false
	}
	b.out = pgwire.AppendCommandComplete(b.out, tag)
	return true
}

func notification() []byte {
	body := []byte("\x00\x00\x00\x01channel\x00payload\x00")
	return append(pgwire.AppendHeader(nil, 'A', len(body)), body...)
}

// extended handles a message of the extended protocol; false means an error.
func (b *backend) extended(typ byte, body []byte) bool {
	names, err := pgwire.ParseNames(typ, body)
	if err != nil {
		b.fail("08P01", "invalid message format")
		return false
	}
	if names.Kind != 'S' && names.Kind != 'P' || names.Tail > len(body) {
		b.fail("08P01", "invalid message format")
		return false
	}
	stmt, portal := string(names.Statement.Of(body)), string(names.Portal.Of(body))
	switch typ {
	case pgwire.MsgParse:
		text, _, _ := bytes.Cut(body[names.Tail:], []byte{0})
		if stmt == "" {
			b.unnamed = nil
		}
		if strings.HasPrefix(string(text), "syntax") {
			b.fail("42601", "syntax error")
			return false
		}
		if stmt == "" {
			s := string(text)
			b.unnamed = &s
		} else if _, dup := b.stmts[stmt]; dup {
			b.fail("42P05", fmt.Sprintf("prepared statement %q already exists", stmt))
			return false
		} else {
			b.stmts[stmt] = string(text)
		}
		b.out = pgwire.AppendParseComplete(b.out)
	case pgwire.MsgBind:
		text, ok := b.statement(stmt)
		if !ok {
			return false
		}
		b.portals[portal] = text
		b.out = pgwire.AppendBindComplete(b.out)
	case pgwire.MsgDescribe:
		var text string
		ok := true
		if names.Kind == 'S' {
			if text, ok = b.statement(stmt); !ok {
				return false
			}
			b.out = append(pgwire.AppendHeader(b.out, 't', 2), 0, 0)
		} else if text, ok = b.portals[portal]; !ok {
			b.fail("34000", fmt.Sprintf("portal %q does not exist", portal))
			return false
		}
		if hasRows(text) {
			b.out = append(b.out, rowDescription()...)
		} else {
			b.out = pgwire.AppendHeader(b.out, 'n', 0)
		}
	case pgwire.MsgClose:
		switch {
		case names.Kind == 'P':
			delete(b.portals, portal)
		case stmt == "":
			b.unnamed = nil
		default:
			delete(b.stmts, stmt)
		}
		b.out = pgwire.AppendCloseComplete(b.out)
	case pgwire.MsgExecute:
		text, ok := b.portals[portal]
		if !ok {
			b.fail("34000", fmt.Sprintf("portal %q does not exist", portal))
			return false
		}
		if text == "" {
			b.out = pgwire.AppendEmptyQueryResponse(b.out)
			return true
		}
		return b.exec(text, false)
	}
	return true
}

func (b *backend) statement(name string) (string, bool) {
	if name == "" {
		if b.unnamed == nil {
			b.fail("26000", "unnamed prepared statement does not exist")
			return "", false
		}
		return *b.unnamed, true
	}
	text, ok := b.stmts[name]
	if !ok {
		b.fail("26000", fmt.Sprintf("prepared statement %q does not exist", name))
	}
	return text, ok
}
