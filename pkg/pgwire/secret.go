package pgwire

import (
	"crypto/md5"
	"encoding/hex"
	"strings"
)

// SecretKind says what is known of a user's password.
type SecretKind uint8

// The kinds of secrets.
const (
	SecretNone  SecretKind = iota // nothing: only trust lets such a user in
	SecretPlain                   // the password itself
	SecretMD5                     // PostgreSQL's "md5" + hex(md5(password + user))
	SecretSCRAM                   // a SCRAM-SHA-256 verifier
)

// Secret is what is stored of a user's password. The zero value is SecretNone.
// It does not show itself in logs.
type Secret struct {
	Kind     SecretKind
	text     string // the password, or the 32 hex digits of the MD5
	verifier Verifier
}

// ParseSecret decodes a password field as in userlist.txt or
// pg_authid.rolpassword: empty, "md5" and 32 hex digits, a SCRAM verifier, or
// else a plain password. What begins like a verifier and is none is refused
// with an error that wraps ErrVerifier: nobody has such a password, while a
// truncated paste is common.
func ParseSecret(s string) (Secret, error) {
	switch {
	case s == "":
		return Secret{}, nil
	case strings.HasPrefix(s, scramMechanism+"$"):
		v, err := ParseVerifier(s)
		if err != nil {
			return Secret{}, err
		}
		return Secret{Kind: SecretSCRAM, verifier: v}, nil
	case isMD5(s):
		return Secret{Kind: SecretMD5, text: strings.TrimPrefix(s, "md5")}, nil
	}
	return PlainSecret(s), nil
}

// PlainSecret returns the secret of a plain password, whatever it looks like.
func PlainSecret(password string) Secret { return Secret{Kind: SecretPlain, text: password} }

// String returns the kind of the secret, not the secret.
func (s Secret) String() string {
	return [...]string{"[no secret]", "[plain secret]", "[md5 secret]", "[scram secret]"}[s.Kind]
}

// GoString returns the kind of the secret, not the secret.
func (s Secret) GoString() string { return s.String() }

// isMD5 is PostgreSQL's test (get_password_type): hex digits in lower case.
func isMD5(s string) bool {
	digits, ok := strings.CutPrefix(s, "md5")
	return ok && len(digits) == 2*md5.Size && strings.Trim(digits, "0123456789abcdef") == ""
}

// md5Hex returns hex(md5(a + b)).
func md5Hex(a, b string) string {
	sum := md5.Sum([]byte(a + b))
	return hex.EncodeToString(sum[:])
}

// md5Response is what a client answers to AuthenticationMD5Password, given
// hex(md5(password + user)).
func md5Response(inner string, salt []byte) string { return "md5" + md5Hex(inner, string(salt)) }

// md5Inner returns hex(md5(password + user)), if the secret can tell.
func (s Secret) md5Inner(user string) (inner string, ok bool) {
	switch s.Kind {
	case SecretPlain:
		return md5Hex(s.text, user), true
	case SecretMD5:
		return s.text, true
	}
	return "", false
}
