package pgwire

import (
	"crypto/hmac"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
)

// AuthMethod is how clients prove who they are.
type AuthMethod uint8

// The methods. The zero value is the strict one.
const (
	AuthSCRAM AuthMethod = iota // SCRAM-SHA-256 only
	// AuthMD5 is the weak old challenge. As in PostgreSQL and PgBouncer, a user
	// with a SCRAM verifier gets SCRAM all the same.
	AuthMD5
	AuthTrust // whoever is known by name is believed
	AuthPlain // the password itself is sent, in clear text
)

// String returns PgBouncer's name of the method.
func (m AuthMethod) String() string {
	return [...]string{"scram-sha-256", "md5", "trust", "plain"}[m]
}

// Why a login was refused. The client is not told which (except by
// ErrUnknownUser under trust); the errors of AuthenticateClient wrap one of
// them for the log.
var (
	ErrUnknownUser   = errors.New("unknown user")
	ErrWrongPassword = errors.New("wrong password")
	ErrSecretKind    = errors.New("stored secret does not fit the authentication method")
)

// ErrTerminate: the client said goodbye in the place of a password.
var ErrTerminate = errors.New("client terminated its login")

// Lookup finds a user's secret. Ok is false for a user that does not exist. It
// must be safe for concurrent use and quick in the same way for every name.
type Lookup func(user string) (secret Secret, ok bool)

// Identity is who a client has proved to be.
type Identity struct {
	User, Database string
	// Keys are what the client's SCRAM proof revealed, nil under other
	// methods. They log in to a server whose verifier is the one we checked
	// against.
	Keys *ScramKeys
}

// Authenticator authenticates clients. It is safe for concurrent use.
type Authenticator struct {
	method AuthMethod
	lookup Lookup
	seed   []byte
	nonce  func() string

	mu      sync.Mutex
	derived map[string]derivedSecret // by user; known users only, so bounded
}

// derivedSecret is the verifier made from a plain password.
type derivedSecret struct {
	password string
	verifier Verifier
}

// NewAuthenticator returns an authenticator. Seed makes the salts of users who
// have no verifier, among them those who do not exist; whoever could predict
// the salts could tell these apart from the others, so it is a secret. Several
// poolers behind one address should have the same (a hash over the user list
// does), or their answers differ for unknown users alone. An empty seed is
// replaced by a random one.
func NewAuthenticator(method AuthMethod, lookup Lookup, seed []byte) *Authenticator {
	if len(seed) == 0 {
		seed = make([]byte, 32)
		rand.Read(seed)
	}
	return &Authenticator{
		method:  method,
		lookup:  lookup,
		seed:    seed,
		nonce:   newNonce,
		derived: make(map[string]derivedSecret),
	}
}

// AuthenticateClient conducts the authentication that follows a StartupMessage.
// AuthenticationOk is left to the caller, who sends it together with the
// parameters, the cancel key and ReadyForQuery.
//
// A refusal is an *Error for the client (see SendError) with 28P01, 28000 or
// 08P01; it wraps ErrUnknownUser, ErrWrongPassword, ErrSecretKind,
// ErrScramMessage, ErrFrameType or ErrFrameLength. A client that left is io.EOF
// or io.ErrUnexpectedEOF; one that said goodbye before is ErrTerminate, and has
// yet to close. libpq leaves after the first request when it has no password and
// comes again, so io.EOF is no sign of trouble.
func (a *Authenticator) AuthenticateClient(rw io.ReadWriter, s *Startup) (Identity, error) {
	secret, known := a.lookup(s.User)
	return a.Authenticate(rw, s, Challenge{Method: a.method, Secret: secret, Known: known})
}

// Challenge is how one client is to be authenticated.
type Challenge struct {
	Method AuthMethod
	Secret Secret
	Known  bool // the user exists
	// Binding is the channel binding of the TLS connection that the client came
	// over (tls-server-end-point), nil if there is none. With it
	// SCRAM-SHA-256-PLUS is offered as well.
	Binding []byte
}

// Authenticate is AuthenticateClient for a method and a secret that the caller
// has chosen.
func (a *Authenticator) Authenticate(rw io.ReadWriter, s *Startup, c Challenge) (Identity, error) {
	id := Identity{User: s.User, Database: s.Database}
	secret, known := c.Secret, c.Known
	switch {
	case c.Method == AuthPlain:
		if err := a.plain(rw, s.User, secret, known); err != nil {
			return Identity{}, err
		}
		return id, nil
	case c.Method == AuthTrust:
		if !known {
			return Identity{}, &Error{
				Severity: SeverityFatal, Code: CodeInvalidAuthorization,
				Message: fmt.Sprintf("no such user: %s", s.User), cause: ErrUnknownUser,
			}
		}
		return id, nil
	case c.Method == AuthMD5 && (!known || secret.Kind != SecretSCRAM):
		if err := a.md5(rw, s.User, secret, known); err != nil {
			return Identity{}, err
		}
		return id, nil
	}
	keys, err := a.scram(rw, s.User, c)
	if err != nil {
		return Identity{}, err
	}
	id.Keys = &keys
	return id, nil
}

// refuse words the refusal as PostgreSQL does, the same for each cause.
func refuse(user string, cause error) *Error {
	return &Error{
		Severity: SeverityFatal, Code: CodeInvalidPassword,
		Message: fmt.Sprintf("password authentication failed for user %q", user), cause: cause,
	}
}

// plain asks for the password and checks it. It costs the derivation of a
// verifier whatever is known of the user, so that the time tells nothing.
func (a *Authenticator) plain(rw io.ReadWriter, user string, secret Secret, known bool) error {
	if err := writeAll(rw, appendAuth(nil, authCleartext, nil)); err != nil {
		return err
	}
	body, err := readPassword(rw, MaxAuthLen)
	if err != nil {
		return err
	}
	got, rest, ok := cutCString(body)
	if !ok || len(rest) != 0 {
		return protocolError(ErrFrameLength, "invalid password packet size")
	}
	if len(got) == 0 { // as PostgreSQL: no empty password logs in
		e := refuse(user, ErrWrongPassword)
		e.Message = "empty password returned by client"
		return e
	}
	v, usable, err := a.verifier(user, secret)
	if err != nil {
		return err
	}
	derived, err := NewVerifier(string(got), v.Salt, v.Iterations)
	if err != nil {
		return err
	}
	match := usable && hmac.Equal(derived.StoredKey[:], v.StoredKey[:])
	if secret.Kind == SecretMD5 {
		usable = true
		match = hmac.Equal([]byte(md5Hex(string(got), user)), []byte(secret.text))
	}
	switch {
	case !known:
		return refuse(user, ErrUnknownUser)
	case !usable:
		return refuse(user, ErrSecretKind)
	case !match:
		return refuse(user, ErrWrongPassword)
	}
	return nil
}

// md5 asks for the MD5 response and checks it.
func (a *Authenticator) md5(rw io.ReadWriter, user string, secret Secret, known bool) error {
	var salt [4]byte
	rand.Read(salt[:])
	if err := writeAll(rw, appendAuth(nil, authMD5, salt[:])); err != nil {
		return err
	}
	body, err := readPassword(rw, MaxAuthLen)
	if err != nil {
		return err
	}
	got, rest, ok := cutCString(body)
	if !ok || len(rest) != 0 {
		return protocolError(ErrFrameLength, "invalid password packet size")
	}
	inner, can := secret.md5Inner(user)
	match := hmac.Equal(got, []byte(md5Response(inner, salt[:])))
	switch {
	case !known:
		return refuse(user, ErrUnknownUser)
	case !can:
		return refuse(user, ErrSecretKind)
	case !match:
		return refuse(user, ErrWrongPassword)
	}
	return nil
}

// scram conducts a SCRAM-SHA-256 exchange. A user without a usable secret goes
// through the same steps with a made-up verifier, and is refused at the end.
func (a *Authenticator) scram(rw io.ReadWriter, user string, c Challenge) (ScramKeys, error) {
	secret, known := c.Secret, c.Known
	verifier, usable, err := a.verifier(user, secret)
	if err != nil {
		return ScramKeys{}, err
	}
	x := scramServer{verifier: verifier, doomed: !known || !usable, nonce: a.nonce(), binding: c.Binding}
	mechanisms := []string{scramMechanism}
	if c.Binding != nil {
		mechanisms = []string{scramMechanismPlus, scramMechanism}
	}
	if err := writeAll(rw, appendAuthSASL(nil, mechanisms...)); err != nil {
		return ScramKeys{}, err
	}
	body, err := readPassword(rw, MaxSASLLen)
	if err != nil {
		return ScramKeys{}, err
	}
	var first string
	if first, x.bound, err = parseSASLInitial(body, c.Binding != nil); err != nil {
		return ScramKeys{}, err
	}
	reply, err := x.first(first)
	if err != nil {
		return ScramKeys{}, err
	}
	if err := writeAll(rw, appendAuth(nil, authSASLContinue, []byte(reply))); err != nil {
		return ScramKeys{}, err
	}
	if body, err = readPassword(rw, MaxSASLLen); err != nil {
		return ScramKeys{}, err
	}
	reply, keys, err := x.final(string(body))
	switch {
	case err == errProof && !known:
		return ScramKeys{}, refuse(user, ErrUnknownUser)
	case err == errProof && !usable:
		return ScramKeys{}, refuse(user, ErrSecretKind)
	case err == errProof:
		return ScramKeys{}, refuse(user, ErrWrongPassword)
	case err != nil:
		return ScramKeys{}, err
	}
	return keys, writeAll(rw, appendAuth(nil, authSASLFinal, []byte(reply)))
}

// verifier returns what to check a user's proof against. Usable is false when
// it is made up, because the secret is no password and no SCRAM verifier.
//
// A plain password is derived at its first use and remembered, after which
// nothing in the answer's time tells it from the other cases.
func (a *Authenticator) verifier(user string, secret Secret) (v Verifier, usable bool, err error) {
	if secret.Kind == SecretSCRAM {
		return secret.verifier, true, nil
	}
	salt := hmacSHA256(a.seed, "salt\x00", user)[:scramSaltLen]
	if secret.Kind != SecretPlain {
		v = Verifier{Iterations: ScramIterations, Salt: salt}
		copy(v.StoredKey[:], hmacSHA256(a.seed, "stored key\x00", user))
		copy(v.ServerKey[:], hmacSHA256(a.seed, "server key\x00", user))
		return v, false, nil
	}
	a.mu.Lock()
	d, ok := a.derived[user]
	a.mu.Unlock()
	if ok && d.password == secret.text {
		return d.verifier, true, nil
	}
	if v, err = NewVerifier(secret.text, salt, ScramIterations); err != nil {
		return Verifier{}, false, err
	}
	a.mu.Lock()
	a.derived[user] = derivedSecret{secret.text, v}
	a.mu.Unlock()
	return v, true, nil
}

// readPassword reads a message of type 'p'.
func readPassword(r io.Reader, maxBody int) ([]byte, error) {
	typ, body, err := ReadFrame(r, maxBody)
	if err != nil {
		return nil, err
	}
	if typ == MsgTerminate && len(body) == 0 {
		return nil, ErrTerminate
	}
	if typ != MsgPassword {
		return nil, protocolError(ErrFrameType, fmt.Sprintf("expected password response, got message type %d", typ))
	}
	return body, nil
}

// parseSASLInitial decodes the body of a SASLInitialResponse and returns the
// client's first SCRAM message, and whether it is bound to the TLS connection.
func parseSASLInitial(body []byte, plusOffered bool) (first string, plus bool, err error) {
	mechanism, rest, ok := cutCString(body)
	if !ok || len(rest) < 4 {
		return "", false, scramError("The initial response is cut short.")
	}
	plus = plusOffered && string(mechanism) == scramMechanismPlus
	if !plus && string(mechanism) != scramMechanism {
		return "", false, protocolError(ErrScramMessage, "client selected an invalid SASL authentication mechanism")
	}
	// A length of -1 stands for no initial response, but SCRAM's client
	// speaks first and had its cue: PostgreSQL would ask again with an empty
	// challenge, no client of ours needs that.
	n := int32(uint32(rest[0])<<24 | uint32(rest[1])<<16 | uint32(rest[2])<<8 | uint32(rest[3]))
	if int(n) != len(rest)-4 {
		return "", false, scramError("The initial response has the wrong length.")
	}
	return string(rest[4:]), plus, nil
}

// appendSASLInitial appends a SASLInitialResponse.
func appendSASLInitial(dst []byte, mechanism, first string) []byte {
	var body strings.Builder
	body.WriteString(mechanism)
	n := len(first)
	body.Write([]byte{0, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
	body.WriteString(first)
	return appendPassword(dst, []byte(body.String()))
}

func writeAll(w io.Writer, b []byte) error {
	if _, err := w.Write(b); err != nil {
		return fmt.Errorf("failed to send authentication message: %w", err)
	}
	return nil
}
