package pooler

import (
	"strings"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// orders are the commands that change something, for admins alone. Q is the
// whole command, for errors.
var orders = map[string]func(s *console, q, arg string){
	"disable":     (*console).disable,
	"enable":      (*console).enable,
	"kill":        (*console).kill,
	"kill_client": (*console).killClient,
	"pause":       (*console).pause,
	"reconnect":   (*console).reconnect,
	"reload":      (*console).reload,
	"resume":      (*console).resume,
	"shutdown":    (*console).shutdown,
	"suspend":     (*console).suspend,
	"wait_close":  (*console).waitClose,
}

// order carries out a command that changes something.
func (s *console) order(q, name, arg string) {
	do := orders[name]
	switch {
	case do == nil:
		s.invalid(q)
	case !s.admin:
		s.fail(codeConsole, "admin access needed")
	default:
		do(s, q, arg)
	}
}

// announce logs an order.
func (s *console) announce(text string) {
	s.p.log.Info(text+" command issued", "client", s.who.addr, "user", s.who.login)
}

// reload answers RELOAD.
func (s *console) reload(q, arg string) {
	if arg != "" {
		s.invalid(q)
		return
	}
	s.announce("RELOAD")
	if err := s.p.Reread(); err != nil {
		s.p.log.Error("RELOAD failed", "error", err)
		s.failDetail("F0000", "RELOAD failed, see logs for additional details", err)
		return
	}
	s.done("RELOAD")
}

// failDetail answers with one of PgBouncer's errors and, beside it, the reason,
// for which one has to read the log there.
func (s *console) failDetail(code, message string, why error) {
	e := pgwire.NewError(pgwire.SeverityError, code, message)
	e.Detail = why.Error()
	s.rows.Buf = e.Append(s.rows.Buf)
	s.ready()
}

// set answers SET.
func (s *console) set(key, value string) {
	if _, ok := sessionParameters[strings.ToLower(key)]; ok {
		s.notice("SET ignored")
		s.done("SET")
		return
	}
	if !s.admin {
		s.fail(codeConsole, "admin access needed")
		return
	}
	for _, c := range s.p.conf().Settings {
		if c.Name == key && c.Fixed {
			// PgBouncer says that it is done.
			s.notice(key + " cannot be changed at run time, SET ignored")
			s.done("SET " + key + "=" + value)
			return
		}
	}
	if err := s.p.Set(key, value); err != nil {
		s.p.log.Error("SET failed", "key", key, "error", err)
		s.failDetail(codeConsole, "SET failed", err)
		return
	}
	s.p.log.Info("SET command issued", "key", key, "value", value, "client", s.who.addr, "user", s.who.login)
	s.done("SET " + key + "=" + value)
}

// notice sends a notice ahead of the answer.
func (s *console) notice(text string) {
	s.rows.Buf = pgwire.NewError("NOTICE", codeSuccess, text).AppendNotice(s.rows.Buf)
}
