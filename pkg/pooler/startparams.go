package pooler

import (
	"cmp"
	"slices"
	"strings"
	"unique"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// paramState is all run-time parameters of a session, as far as they are known.
type paramState struct {
	vars vars
	// rest are parameters beside vars that were set to something else than the
	// server's default: by a client's startup packet, or by SET.
	rest params
	// facts are the parameters beside vars that the server reports, with its
	// defaults.
	facts params
}

// applied are a client's or server's settings with their identity: a client's
// and a server's are compared at each hand-out, by one pointer.
type applied struct {
	paramState
	handle unique.Handle[paramState]
}

// seal is to be called after each change.
func (a *applied) seal() {
	a.handle = unique.Make(a.paramState)
	a.paramState = a.handle.Value() // equal ones share their memory
}

// params is a list of parameters as a comparable value: name, NUL, value, NUL,
// sorted by name. Names are in lower case, as PostgreSQL ignores it.
type params string

// newParams makes a list. Of a name that comes twice the last one counts.
func newParams(list []pgwire.Param) params {
	var p params
	for _, x := range list {
		p = p.with(x.Name, x.Value)
	}
	return p
}

func (p params) list() []pgwire.Param {
	var l []pgwire.Param
	for p != "" {
		name, rest, _ := strings.Cut(string(p), "\x00")
		value, rest, _ := strings.Cut(rest, "\x00")
		l = append(l, pgwire.Param{Name: name, Value: value})
		p = params(rest)
	}
	return l
}

// join is the reverse of list.
func join(l []pgwire.Param) params {
	var b strings.Builder
	for _, x := range l {
		b.WriteString(x.Name)
		b.WriteByte(0)
		b.WriteString(x.Value)
		b.WriteByte(0)
	}
	return params(b.String())
}

func (p params) get(name string) (string, bool) {
	name = strings.ToLower(name)
	for _, x := range p.list() {
		if x.Name == name {
			return x.Value, true
		}
	}
	return "", false
}

func (p params) has(name string) bool {
	_, ok := p.get(name)
	return ok
}

func (p params) with(name, value string) params {
	name = strings.ToLower(name)
	l := p.list()
	i, found := slices.BinarySearchFunc(l, name, func(x pgwire.Param, name string) int { return cmp.Compare(x.Name, name) })
	if found {
		l[i].Value = value
	} else {
		l = slices.Insert(l, i, pgwire.Param{Name: name, Value: value})
	}
	return join(l)
}

func (p params) without(name string) params {
	name = strings.ToLower(name)
	return join(slices.DeleteFunc(p.list(), func(x pgwire.Param) bool { return x.Name == name }))
}

// fixed are parameters that PostgreSQL reports and that cannot be set in a
// session, so that they belong to the server.
var fixed = map[string]bool{
	"server_version": true, "server_encoding": true, "integer_datetimes": true,
	"is_superuser": true, "in_hot_standby": true,
}

// state returns what a server has that reported the list at login.
func (l paramList) state() paramState {
	s := paramState{vars: l.vars()}
	for _, p := range l {
		if varIndex(p.Name) < 0 {
			s.facts = s.facts.with(p.Name, p.Value)
		}
	}
	return s
}

// reported notes a value that a server reports.
func (s *paramState) reported(name, value string) {
	if i := varIndex(name); i >= 0 {
		s.vars[i] = value
		return
	}
	name = strings.ToLower(name)
	standard, known := s.facts.get(name)
	switch {
	case fixed[name] || !known:
		s.facts = s.facts.with(name, value)
	case value == standard:
		s.rest = s.rest.without(name)
	default:
		s.rest = s.rest.with(name, value)
	}
}

// appendSet appends a simple query that takes a server from have to want.
func appendSet(dst []byte, have, want *paramState) []byte {
	var sql strings.Builder
	if have.rest != want.rest {
		for _, p := range ordered(have.rest.list(), -1) {
			if !want.rest.has(p.Name) {
				sql.WriteString("RESET ")
				quoteName(&sql, p.Name)
				sql.WriteByte(';')
			}
		}
	}
	for i := range want.vars {
		if have.vars[i] == want.vars[i] {
			continue
		}
		sql.WriteString("SET ")
		sql.WriteString(varNames[i])
		sql.WriteByte('=')
		quoteLiteral(&sql, want.vars[i])
		sql.WriteByte(';')
	}
	if have.rest != want.rest {
		for _, p := range ordered(want.rest.list(), +1) {
			if v, ok := have.rest.get(p.Name); ok && v == p.Value {
				continue
			}
			// SET would take a list for one name.
			sql.WriteString("SELECT pg_catalog.set_config(")
			quoteLiteral(&sql, p.Name)
			sql.WriteByte(',')
			quoteLiteral(&sql, p.Value)
			sql.WriteString(",false);")
		}
	}
	return pgwire.AppendQuery(dst, sql.String())
}

// ordered puts the parameters that change what the session may do behind the
// others, to set them, or before them, to reset them. A change of
// session_authorization resets the role.
func ordered(l []pgwire.Param, sign int) []pgwire.Param {
	rank := func(p pgwire.Param) int {
		switch p.Name {
		case "session_authorization":
			return 1 * sign
		case "role":
			return 2 * sign
		}
		return 0
	}
	slices.SortStableFunc(l, func(a, b pgwire.Param) int { return rank(a) - rank(b) })
	return l
}

// quoteName writes the name of a parameter, each part of it quoted.
func quoteName(w *strings.Builder, name string) {
	for i, part := range strings.Split(name, ".") {
		if i > 0 {
			w.WriteByte('.')
		}
		w.WriteByte('"')
		w.WriteString(strings.ReplaceAll(part, `"`, `""`))
		w.WriteByte('"')
	}
}

// adapt gives a server the client's settings. The client may be read at once if
// there is nothing to be set.
func (m *machine) adapt(cl *client, sv *server) {
	if sv.vars == cl.vars && sv.rest == cl.rest {
		m.inform(cl, sv)
		m.moveClient(cl, clientActive)
		return
	}
	cl.pool.stats.Settings++
	m.moveClient(cl, clientSetting)
	sv.setError = nil
	sv.left |= leftHalf // if the client goes before the answer comes
	m.ownQuery(sv, appendSet(nil, &sv.paramState, &cl.paramState))
}

// inform makes a server's settings the client's, and tells it what is news to
// it: the server's spelling counts ("iso" has become "ISO, MDY"), and servers
// may differ in what they report.
func (m *machine) inform(cl *client, sv *server) {
	for i := range cl.vars {
		if cl.vars[i] != sv.vars[i] {
			m.emit(&cl.conn, pgwire.AppendParameterStatus(nil, varNames[i], sv.vars[i]))
		}
	}
	rest := cl.rest
	for _, p := range sv.facts.list() {
		value, ok := sv.rest.get(p.Name)
		switch {
		case ok:
			rest = rest.with(p.Name, value)
		default:
			value = p.Value
			rest = rest.without(p.Name)
		}
		known, ok := cl.rest.get(p.Name)
		if !ok {
			known, _ = cl.facts.get(p.Name)
		}
		if known != value {
			m.emit(&cl.conn, pgwire.AppendParameterStatus(nil, p.Name, value))
		}
	}
	sv.rest = rest
	sv.seal()
	cl.applied = sv.applied
}

// parametersReset: the session's parameters are the server's defaults again, by
// RESET ALL or DISCARD ALL. Those that are reported are seen to be; the others
// were the client's since its login, and it keeps them for the next server.
func (m *machine) parametersReset(sv *server) {
	if sv.rest == "" {
		return
	}
	for _, p := range sv.rest.list() {
		if !sv.facts.has(p.Name) {
			sv.rest = sv.rest.without(p.Name)
		}
	}
	sv.seal()
}

// serverParameter handles a ParameterStatus, and reports whether the client, if
// there is one, is to be told.
func (m *machine) serverParameter(sv *server, body []byte) bool {
	name, value, ok := pgwire.ParseParameterStatus(body)
	if !ok {
		m.serverBroken(sv, "malformed parameter status")
		return false
	}
	if sv.pool.db.Target != TargetAny {
		m.roleChanged(sv, name, value)
	}
	if varIndex(name) < 0 && sv.state != serverActive && sv.state != serverSettling && !sv.rest.has(string(name)) {
		// Nobody's doing: the configuration was changed.
		sv.facts = sv.facts.with(string(name), string(value))
	} else {
		sv.reported(string(name), string(value))
	}
	sv.seal()
	if cl := sv.client; cl != nil && cl.state == clientActive {
		cl.reported(string(name), string(value))
		cl.seal()
	}
	return true
}
