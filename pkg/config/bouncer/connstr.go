package bouncer

import (
	"errors"
	"strings"
)

// pair is a key and its value in a connection string.
type pair struct{ key, value string }

// parseConnstr splits a list of key=value as PgBouncer does: a value goes to
// the next space or, if it is quoted, to the closing quote, with two single
// quotes for one. There may be space around the equals sign; empty values are
// refused.
func parseConnstr(s string) ([]pair, error) {
	var pairs []pair
	for {
		s = strings.TrimLeft(s, " \t")
		if s == "" {
			return pairs, nil
		}
		n := strings.IndexAny(s, "= \t")
		if n <= 0 {
			return nil, errors.New("connection string: want key=value")
		}
		key := s[:n]
		s = strings.TrimLeft(s[n:], " \t")
		if !strings.HasPrefix(s, "=") {
			return nil, errors.New("connection string: no = after " + key)
		}
		value, rest, err := cutValue(strings.TrimLeft(s[1:], " \t"))
		if err != nil {
			return nil, errors.New("connection string: " + key + ": " + err.Error())
		}
		pairs = append(pairs, pair{key, value})
		s = rest
	}
}

// cutValue takes a value, quoted or not, off the front of s.
func cutValue(s string) (value, rest string, err error) {
	if !strings.HasPrefix(s, "'") {
		n := strings.IndexAny(s, " \t")
		if n < 0 {
			n = len(s)
		}
		if n == 0 {
			return "", "", errors.New("value is empty")
		}
		return s[:n], s[n:], nil
	}
	value, rest, ok := cutQuoted(s[1:], '\'')
	switch {
	case !ok:
		return "", "", errors.New("value has no closing quote")
	case value == "":
		return "", "", errors.New("value is empty")
	case rest != "" && rest[0] != ' ' && rest[0] != '\t':
		return "", "", errors.New("text right behind the closing quote")
	}
	return value, rest, nil
}

// cutQuoted reads up to the closing quote, whose opening one is gone; a doubled
// quote stands for one.
func cutQuoted(s string, quote byte) (value, rest string, ok bool) {
	var b strings.Builder
	for {
		n := strings.IndexByte(s, quote)
		if n < 0 {
			return "", "", false
		}
		b.WriteString(s[:n])
		s = s[n+1:]
		if s == "" || s[0] != quote {
			return b.String(), s, true
		}
		b.WriteByte(quote)
		s = s[1:]
	}
}
