package pooler

import (
	"bytes"
	"regexp"
	"strings"
	"time"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// codeConsole is the SQLSTATE of the console's errors: PgBouncer has one for
// all of them.
const codeConsole = pgwire.CodeProtocolViolation

// The grammar is PgBouncer's (the regular expressions at the head of its
// admin.c).
const commandWord = `("(?:[^"]|"")*"|[0-9a-zA-Z_]+)`

var (
	commandForm = regexp.MustCompile(`^[ \t\n\r]*` + commandWord + `(?:[ \t\n\r]+` + commandWord + `)?[ \t\n\r]*(?:;[ \t\n\r]*)?$`)
	setForm     = regexp.MustCompile(`^[ \t\n\r]*(?i:set)[ \t\n\r]+` + commandWord + `[ \t\n\r]*(?:=|(?i:to))[ \t\n\r]*(?:` +
		commandWord + `|'((?:[^']|'')*)')[ \t\n\r]*(?:;[ \t\n\r]*)?$`)
	// emptyForm is what drivers send to see whether a connection lives: nothing,
	// a semicolon, or a comment.
	emptyForm = regexp.MustCompile(`^(?:[ \t\n\r;]|--[^\n]*)*$`)
)

// Bounds of a command's words, as in PgBouncer (admin_parse_query).
const (
	maxName     = 15
	maxArgument = 63
)

// unquote returns the word that a match of commandWord stands for.
func unquote(word string) string {
	if s, ok := strings.CutPrefix(word, `"`); ok {
		return strings.ReplaceAll(strings.TrimSuffix(s, `"`), `""`, `"`)
	}
	return word
}

// query carries out one command.
func (s *console) query(body []byte) {
	text, rest, ok := bytes.Cut(body, []byte{0})
	if !ok || len(rest) > 0 {
		s.err = errBadMessage
		return
	}
	s.mu.Lock()
	s.requestedAt = time.Now()
	s.commands++
	s.mu.Unlock()
	q := string(text)
	if emptyForm.MatchString(q) {
		s.rows.Buf = pgwire.AppendEmptyQueryResponse(s.rows.Buf)
		s.ready()
		return
	}
	if m := commandForm.FindStringSubmatch(q); m != nil {
		if len(m[1]) > maxName || len(m[2]) > maxArgument {
			s.fail(codeConsole, "bad arguments")
			return
		}
		s.command(q, strings.ToLower(unquote(m[1])), unquote(m[2]))
		return
	}
	if m := setForm.FindStringSubmatch(q); m != nil {
		value := unquote(m[2])
		if m[2] == "" {
			value = strings.ReplaceAll(m[3], "''", "'")
		}
		s.set(unquote(m[1]), value)
		return
	}
	s.invalid(q)
}

func (s *console) invalid(q string) {
	s.fail(codeConsole, "invalid command '%s', use SHOW HELP;", strings.ToValidUTF8(q, "?"))
}

// command carries out a command of one or two words.
func (s *console) command(q, name, arg string) {
	switch name {
	case "show", "select":
		s.show(q, strings.ToLower(arg))
	default:
		s.order(q, name, arg)
	}
}

// sessionParameters are what some clients set or ask for before anything else,
// with PgBouncer's answers. Setting them has no effect.
var sessionParameters = map[string]string{
	"client_encoding":               "UTF-8",
	"default_transaction_isolation": "read committed",
	"standard_conforming_strings":   "on",
	"datestyle":                     "ISO",
	"timezone":                      "GMT",
}

// codeSuccess is the SQLSTATE of a notice, successful_completion.
const codeSuccess = "00000"

// show answers SHOW.
func (s *console) show(q, what string) {
	if value, ok := sessionParameters[what]; ok {
		s.header([]pgwire.Column{{Name: what, Type: pgwire.TypeText}})
		s.rows.Begin()
		s.rows.Text(value)
		s.endRow()
		s.done("SHOW")
		return
	}
	show := shows[what]
	if show == nil {
		s.invalid(q)
		return
	}
	switch err := show(s); err {
	case nil:
	case errAdmin:
		s.answer("", err)
		return
	default:
		s.err = err
		return
	}
	s.done("SHOW")
}

// help answers SHOW HELP.
func (s *console) help() error {
	notice := pgwire.NewError("NOTICE", codeSuccess, "Console usage")
	notice.Detail = helpText
	s.rows.Buf = notice.AppendNotice(s.rows.Buf)
	return nil
}

// helpText is PgBouncer's.
const helpText = "\n\tSHOW HELP|CONFIG|DATABASES|POOLS|CLIENTS|SERVERS|USERS|VERSION\n" +
	"\tSHOW PEERS|PEER_POOLS\n" +
	"\tSHOW FDS|SOCKETS|ACTIVE_SOCKETS|LISTS|MEM|STATE\n" +
	"\tSHOW DNS_HOSTS|DNS_ZONES\n" +
	"\tSHOW STATS|STATS_TOTALS|STATS_AVERAGES|TOTALS\n" +
	"\tSET key = arg\n" +
	"\tRELOAD\n" +
	"\tPAUSE [<db>]\n" +
	"\tRESUME [<db>]\n" +
	"\tDISABLE <db>\n" +
	"\tENABLE <db>\n" +
	"\tRECONNECT [<db>]\n" +
	"\tKILL [<db>]\n" +
	"\tKILL_CLIENT <client_id>\n" +
	"\tSUSPEND\n" +
	"\tSHUTDOWN\n" +
	"\tSHUTDOWN WAIT_FOR_SERVERS|WAIT_FOR_CLIENTS\n" +
	"\tWAIT_CLOSE [<db>]"
