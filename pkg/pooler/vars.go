package pooler

import (
	"strings"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// The run-time parameters that follow a client from server to server. They are
// those that PgBouncer tracks: PostgreSQL reports them by ParameterStatus, so
// the value that a client believes in is known without reading its SQL.
const (
	varClientEncoding = iota
	varDateStyle
	varTimeZone
	varStandardConformingStrings
	varApplicationName
	varIntervalStyle
	numVars
)

var varNames = [numVars]string{
	"client_encoding", "DateStyle", "TimeZone", "standard_conforming_strings", "application_name", "IntervalStyle",
}

// vars are the values of the tracked parameters.
type vars [numVars]string

// varIndex returns the place of a tracked parameter, or -1. PostgreSQL ignores
// case in names of parameters.
func varIndex[S string | []byte](name S) int {
	for i, v := range &varNames {
		if len(v) == len(name) && strings.EqualFold(v, string(name)) {
			return i
		}
	}
	return -1
}

// quoteLiteral writes s as a string constant that reads the same whatever
// standard_conforming_strings is: with a backslash in it, as an E” string.
func quoteLiteral(w *strings.Builder, s string) {
	if strings.Contains(s, `\`) {
		w.WriteByte('E')
		s = strings.ReplaceAll(s, `\`, `\\`)
	}
	w.WriteByte('\'')
	w.WriteString(strings.ReplaceAll(s, "'", "''"))
	w.WriteByte('\'')
}

// paramList is what a server reported at login, in a fixed order: a client's
// welcome.
type paramList []pgwire.Param

func (l paramList) vars() vars {
	var v vars
	for _, p := range l {
		if i := varIndex(p.Name); i >= 0 {
			v[i] = p.Value
		}
	}
	return v
}
