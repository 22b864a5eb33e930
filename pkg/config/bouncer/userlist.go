package bouncer

import (
	"regexp"
	"strings"
)

// Lengths as in PgBouncer, which reserves a byte for the terminator.
const (
	maxUserName = 127   // MAX_USERNAME - 1
	maxPassword = 65530 // MAX_PASSWORD - 1
)

// scramSecret is the form of a SCRAM verifier: iterations, salt and two keys of
// 32 bytes in base64.
var scramSecret = regexp.MustCompile(`^SCRAM-SHA-256\$[0-9]+:[A-Za-z0-9+/]+=*\$[A-Za-z0-9+/]{43}=:[A-Za-z0-9+/]{43}=$`)

// LoadUsers reads a user list: lines of
//
//	"name" "secret"
//
// with "" for a quote within. Lines that begin with a semicolon are comments;
// whatever follows the secret is ignored, as PgBouncer does. Errors name file
// and line and never repeat a secret.
func LoadUsers(path string) ([]User, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	return parseUsers(path, string(data))
}

func parseUsers(path, data string) ([]User, error) {
	var users []User
	first := make(map[string]int)
	no := 0
	for text := range strings.Lines(data) {
		no++
		at := line{path, no}
		text = strings.TrimSpace(text)
		if text == "" || text[0] == ';' {
			continue
		}
		name, rest, err := userField(at, text, "user name")
		if err != nil {
			return nil, err
		}
		secret, _, err := userField(at, strings.TrimLeft(rest, " \t"), "password")
		if err != nil {
			return nil, err
		}
		switch prev, dup := first[name]; {
		case name == "":
			return nil, at.errorf("user name is empty")
		case len(name) > maxUserName:
			return nil, at.errorf("user name is longer than %d bytes", maxUserName)
		case len(secret) > maxPassword:
			return nil, at.errorf("password is longer than %d bytes", maxPassword)
		case strings.HasPrefix(secret, "SCRAM-SHA-256$") && !scramSecret.MatchString(secret):
			return nil, at.errorf("secret of user %q begins like a SCRAM-SHA-256 secret and is none", name)
		case dup:
			return nil, at.errorf("user %q is already in line %d", name, prev)
		}
		first[name] = no
		users = append(users, User{Name: name, Secret: secret})
	}
	return users, nil
}

// userField takes a quoted field off the front of a line.
func userField(at line, text, what string) (value, rest string, err error) {
	if !strings.HasPrefix(text, `"`) {
		return "", "", at.errorf("%s is not in double quotes", what)
	}
	value, rest, ok := cutQuoted(text[1:], '"')
	if !ok {
		return "", "", at.errorf("%s has no closing quote", what)
	}
	return value, rest, nil
}
