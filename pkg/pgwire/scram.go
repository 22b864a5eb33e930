package pgwire

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Our SASL mechanisms. The second binds the exchange to the TLS connection that
// it goes over, so that nobody in between can relay it (RFC 5802, section 6).
const (
	scramMechanism     = "SCRAM-SHA-256"
	scramMechanismPlus = "SCRAM-SHA-256-PLUS"
)

// scramBindingFlag begins the gs2 header of a bound exchange. The binding is
// tls-server-end-point, PostgreSQL's only one (RFC 5929, section 4).
const scramBindingFlag = "p=tls-server-end-point,"

const (
	// ScramIterations is the count for verifiers that we derive ourselves:
	// PostgreSQL's default (scram_iterations), and RFC 7677's minimum.
	ScramIterations = 4096
	// MaxScramIterations is the highest count that we accept, from a server
	// or in a stored verifier. A million is beyond OWASP's recommendation of
	// 600000 for PBKDF2-HMAC-SHA256 and costs about 0.2 s of a CPU; without a
	// bound a server could have us compute for minutes (2^31 iterations).
	MaxScramIterations = 1_000_000

	scramSaltLen  = 16 // SCRAM_DEFAULT_SALT_LEN
	scramNonceLen = 18 // SCRAM_RAW_NONCE_LEN: raw bytes, 24 in base64
)

// ErrVerifier reports a stored secret that begins like a SCRAM verifier and is
// none.
var ErrVerifier = errors.New("malformed SCRAM-SHA-256 secret")

// ScramKeys are the two keys that log a client in without its password. They
// come from a password, or from a proof that a client gave us: then they fit a
// server whose verifier has the same salt and iteration count as ours.
type ScramKeys struct{ ClientKey, ServerKey [sha256.Size]byte }

// String keeps the keys out of logs.
func (ScramKeys) String() string { return "[scram keys]" }

// GoString keeps the keys out of logs.
func (k ScramKeys) GoString() string { return k.String() }

// deriveKeys computes RFC 5802's ClientKey and ServerKey (section 3).
func deriveKeys(password string, salt []byte, iterations int) (ScramKeys, error) {
	salted, err := pbkdf2.Key(sha256.New, saslPrep(password), salt, iterations, sha256.Size)
	if err != nil {
		return ScramKeys{}, fmt.Errorf("deriving SCRAM keys: %w", err)
	}
	var k ScramKeys
	copy(k.ClientKey[:], hmacSHA256(salted, "Client Key"))
	copy(k.ServerKey[:], hmacSHA256(salted, "Server Key"))
	return k, nil
}

// Verifier is what a server keeps of a password (RFC 5803).
type Verifier struct {
	Iterations           int
	Salt                 []byte
	StoredKey, ServerKey [sha256.Size]byte
}

// NewVerifier derives the verifier of a password. It costs iterations HMACs,
// about a millisecond for ScramIterations.
func NewVerifier(password string, salt []byte, iterations int) (Verifier, error) {
	k, err := deriveKeys(password, salt, iterations)
	if err != nil {
		return Verifier{}, err
	}
	return Verifier{iterations, salt, sha256.Sum256(k.ClientKey[:]), k.ServerKey}, nil
}

// ParseVerifier decodes PostgreSQL's form (pg_authid.rolpassword),
// "SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>", salt and keys in
// base64. Errors wrap ErrVerifier and do not repeat the secret.
func ParseVerifier(s string) (Verifier, error) {
	bad := func(what string) (Verifier, error) {
		return Verifier{}, fmt.Errorf("%w: %s", ErrVerifier, what)
	}
	rest, ok := strings.CutPrefix(s, scramMechanism+"$")
	if !ok {
		return bad("no " + scramMechanism + "$ in front")
	}
	head, keys, ok := strings.Cut(rest, "$")
	if !ok {
		return bad("no keys")
	}
	count, salt64, ok := strings.Cut(head, ":")
	if !ok {
		return bad("no salt")
	}
	stored64, server64, ok := strings.Cut(keys, ":")
	if !ok {
		return bad("no server key")
	}
	var v Verifier
	var err error
	if v.Iterations, err = parseIterations(count); err != nil {
		return bad(err.Error())
	}
	if v.Salt, err = decode64(salt64); err != nil || len(v.Salt) == 0 {
		return bad("salt is not base64")
	}
	if !decodeKey(&v.StoredKey, stored64) || !decodeKey(&v.ServerKey, server64) {
		return bad("a key is not 32 bytes in base64")
	}
	return v, nil
}

// Encode returns PostgreSQL's form of the verifier. It is as secret as a
// password is.
func (v Verifier) Encode() string {
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("%s$%d:%s$%s:%s", scramMechanism, v.Iterations, b64(v.Salt), b64(v.StoredKey[:]), b64(v.ServerKey[:]))
}

// String keeps the verifier out of logs.
func (Verifier) String() string { return "[scram verifier]" }

// GoString keeps the verifier out of logs.
func (v Verifier) GoString() string { return v.String() }

// parseIterations decodes an iteration count and holds it to its bounds.
func parseIterations(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil || n == 0 || s[0] == '+' {
		return 0, errors.New("iteration count is no positive number")
	}
	if n > MaxScramIterations {
		return 0, fmt.Errorf("iteration count is above %d", MaxScramIterations)
	}
	return int(n), nil
}

func decodeKey(dst *[sha256.Size]byte, s string) bool {
	raw, err := decode64(s)
	return err == nil && copy(dst[:], raw) == sha256.Size && len(raw) == sha256.Size
}

// decode64 is strict: no line breaks, no stray bits, so that a value has one
// spelling.
func decode64(s string) ([]byte, error) {
	if strings.ContainsAny(s, "\r\n") { // which encoding/base64 skips
		return nil, base64.CorruptInputError(strings.IndexAny(s, "\r\n"))
	}
	return base64.StdEncoding.Strict().DecodeString(s)
}

func hmacSHA256(key []byte, parts ...string) []byte {
	h := hmac.New(sha256.New, key)
	for _, p := range parts {
		h.Write([]byte(p))
	}
	return h.Sum(nil)
}

// newNonce returns 18 random bytes in base64, which has no comma.
func newNonce() string {
	var raw [scramNonceLen]byte
	rand.Read(raw[:])
	return base64.StdEncoding.EncodeToString(raw[:])
}

// cutAttr takes the attribute "k=value" off the front of a SCRAM message. The
// value ends at a comma, which is dropped, or with the message.
func cutAttr(msg string, key byte) (value, rest string, ok bool) {
	if len(msg) < 2 || msg[0] != key || msg[1] != '=' {
		return "", msg, false
	}
	value, rest, _ = strings.Cut(msg[2:], ",")
	return value, rest, true
}

// validNonce reports whether s consists of RFC 5802's printable characters: 1
// to 512 of ASCII's 0x21 to 0x7e without the comma. The cap keeps a message in
// MaxSASLLen with our part added.
func validNonce(s string) bool {
	if len(s) == 0 || len(s) > 512 {
		return false
	}
	for i := range len(s) {
		if s[i] < 0x21 || s[i] > 0x7e || s[i] == ',' {
			return false
		}
	}
	return true
}
