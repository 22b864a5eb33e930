package pgwire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// limit is when a test that hangs fails.
const limit = 20 * time.Second

// testUsers is a user of each kind.
func testUsers(t testing.TB) Lookup {
	t.Helper()
	md5Secret, err := ParseSecret("md5" + md5Hex("pencil", "md5"))
	if err != nil {
		t.Fatal(err)
	}
	users := map[string]Secret{
		"plain":   PlainSecret("pencil"),
		"scram":   {Kind: SecretSCRAM, verifier: rfcVerifier(t)},
		"md5":     md5Secret,
		"none":    {},
		"prep":    PlainSecret("\u2168"), // "IX" after SASLprep
		"quote\"": PlainSecret("pencil"),
	}
	return func(user string) (Secret, bool) {
		s, ok := users[user]
		return s, ok
	}
}

// outcome is what AuthenticateClient came to.
type outcome struct {
	id  Identity
	err error
}

// serve conducts one login on conn, greets who passed, and closes.
func serve(a *Authenticator, conn net.Conn) <-chan outcome {
	done := make(chan outcome, 1)
	go func() {
		defer conn.Close()
		var o outcome
		defer func() { done <- o }()
		if o.err = conn.SetDeadline(time.Now().Add(limit)); o.err != nil {
			return
		}
		s, err := AcceptStartup(conn, 0)
		if err != nil {
			o.err = err
			return
		}
		if o.id, o.err = a.AuthenticateClient(conn, &s); o.err != nil {
			if err := SendError(conn, o.err); err != nil {
				o.err = errors.Join(o.err, err)
			}
			return
		}
		out := AppendAuthenticationOk(nil)
		out = AppendBackendKeyData(out, NewCancelKey(s.Protocol))
		_, o.err = conn.Write(AppendReadyForQuery(out, TxIdle))
		if o.err != nil {
			return
		}
		o.err = emptySession(conn)
	}()
	return done
}

// emptySession answers each query with nothing until the client leaves.
func emptySession(conn net.Conn) error {
	for {
		typ, _, err := ReadFrame(conn, 100)
		if err == io.EOF || err == nil && typ == MsgTerminate {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := conn.Write(AppendReadyForQuery(AppendEmptyQueryResponse(nil), TxIdle)); err != nil {
			return err
		}
	}
}

// connect logs a client that is not ours in, and out again.
func connect(t *testing.T, a *Authenticator, user, password string) (outcome, error) {
	t.Helper()
	client, server := net.Pipe()
	done := serve(a, server)
	cfg, err := pgconn.ParseConfig("host=pipe sslmode=disable database=db")
	if err != nil {
		t.Fatal(err)
	}
	cfg.User, cfg.Password, cfg.Fallbacks = user, password, nil
	cfg.LookupFunc = func(context.Context, string) ([]string, error) { return []string{"192.0.2.1"}, nil }
	cfg.DialFunc = func(context.Context, string, string) (net.Conn, error) { return client, nil }
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if err == nil {
		if cerr := conn.Close(ctx); cerr != nil {
			t.Error(cerr)
		}
	}
	client.Close()
	return <-done, err
}

func TestAuthenticateClient(t *testing.T) {
	for _, tt := range []struct {
		method         AuthMethod
		user, password string
		want           error  // what our side says
		code           string // what the client gets
	}{
		{AuthSCRAM, "plain", "pencil", nil, ""},
		{AuthSCRAM, "scram", "pencil", nil, ""},
		{AuthSCRAM, "prep", "IX", nil, ""},
		{AuthSCRAM, "quote\"", "pencil", nil, ""},
		{AuthSCRAM, "plain", "Pencil", ErrWrongPassword, "28P01"},
		{AuthSCRAM, "scram", "pencil ", ErrWrongPassword, "28P01"},
		{AuthSCRAM, "md5", "pencil", ErrSecretKind, "28P01"},
		{AuthSCRAM, "none", "pencil", ErrSecretKind, "28P01"},
		{AuthSCRAM, "ghost", "pencil", ErrUnknownUser, "28P01"},
		{AuthMD5, "plain", "pencil", nil, ""},
		{AuthMD5, "md5", "pencil", nil, ""},
		{AuthMD5, "scram", "pencil", nil, ""}, // by SCRAM
		{AuthMD5, "plain", "Pencil", ErrWrongPassword, "28P01"},
		{AuthMD5, "md5", "Pencil", ErrWrongPassword, "28P01"},
		{AuthMD5, "scram", "Pencil", ErrWrongPassword, "28P01"},
		{AuthMD5, "none", "x", ErrSecretKind, "28P01"},
		{AuthMD5, "ghost", "pencil", ErrUnknownUser, "28P01"},
		{AuthTrust, "none", "", nil, ""},
		{AuthTrust, "plain", "wrong", nil, ""},
		{AuthTrust, "ghost", "", ErrUnknownUser, "28000"},
	} {
		t.Run(fmt.Sprintf("%s %s %s", tt.method, tt.user, tt.password), func(t *testing.T) {
			got, err := connect(t, NewAuthenticator(tt.method, testUsers(t), nil), tt.user, tt.password)
			if !errors.Is(got.err, tt.want) {
				t.Fatalf("got %v", got.err)
			}
			if tt.want == nil {
				if err != nil || got.id.User != tt.user || got.id.Database != "db" {
					t.Fatalf("client got %v; identity %+v", err, got.id)
				}
				return
			}
			var pgErr *pgconn.PgError
			if !errors.As(err, &pgErr) || pgErr.Code != tt.code || pgErr.Severity != "FATAL" {
				t.Fatalf("client got %v", err)
			}
			if tt.code == "28P01" && pgErr.Message != fmt.Sprintf("password authentication failed for user %q", tt.user) {
				t.Fatalf("client got %v", err)
			}
			if got.id != (Identity{}) {
				t.Fatalf("refused, but %+v", got.id)
			}
		})
	}
}

// TestAuthenticateKeys: the keys that a login reveals are the password's.
func TestAuthenticateKeys(t *testing.T) {
	got, err := connect(t, NewAuthenticator(AuthSCRAM, testUsers(t), nil), "scram", "pencil")
	if err != nil || got.err != nil || got.id.Keys == nil {
		t.Fatal(err, got.err)
	}
	v := rfcVerifier(t)
	if want, err := deriveKeys("pencil", v.Salt, v.Iterations); err != nil || *got.id.Keys != want {
		t.Errorf("other keys, %v", err)
	}
}

// challenge returns the server-first-message that a user gets.
func challenge(t *testing.T, a *Authenticator, user string) string {
	t.Helper()
	d := &duplex{Reader: bytes.NewReader(appendSASLInitial(nil, scramMechanism, "n,,n=,r=abc"))}
	_, err := a.AuthenticateClient(d, &Startup{User: user})
	if err != io.EOF { // the client leaves after the challenge
		t.Fatal(err)
	}
	for d.Buffer.Len() > 0 {
		_, body, err := ReadFrame(&d.Buffer, MaxSASLLen)
		if err != nil {
			t.Fatal(err)
		}
		if body[3] == authSASLContinue {
			return string(body[4:])
		}
	}
	t.Fatal("no challenge")
	return ""
}

// TestMockChallenge: who asks for users that do not exist learns nothing.
func TestMockChallenge(t *testing.T) {
	seed := []byte("of the user list")
	one := NewAuthenticator(AuthSCRAM, testUsers(t), seed)
	two := NewAuthenticator(AuthSCRAM, testUsers(t), seed)
	other := NewAuthenticator(AuthSCRAM, testUsers(t), nil)
	salt := func(a *Authenticator, user string) string {
		msg := challenge(t, a, user)
		_, rest, ok := cutAttr(msg, 'r')
		if !ok || !strings.HasSuffix(msg, ",i=4096") {
			t.Fatal(msg)
		}
		salt, _, _ := cutAttr(rest, 's')
		if raw, err := decode64(salt); err != nil || len(raw) != 16 {
			t.Fatal(msg)
		}
		return salt
	}
	for _, user := range []string{"ghost", "plain", "md5", "none"} {
		first := salt(one, user)
		if first != salt(one, user) || first != salt(two, user) {
			t.Errorf("%s: the salt is not stable", user)
		}
		if first == salt(other, user) || first == salt(one, user+"2") {
			t.Errorf("%s: the salt is guessable", user)
		}
	}
	if salt(one, "scram") != rfcSalt64 {
		t.Error("a stored salt is not used")
	}
}

// TestAuthenticateDerivesOnce: the second login of a plain password is cheap,
// and a new password is noticed.
func TestAuthenticateDerivesOnce(t *testing.T) {
	a := NewAuthenticator(AuthSCRAM, testUsers(t), nil)
	first, usable, err := a.verifier("u", PlainSecret("one"))
	if err != nil || !usable {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(10, func() {
		if _, _, err := a.verifier("u", PlainSecret("one")); err != nil {
			t.Error(err)
		}
	}); n > 20 { // a derivation has thousands of HMACs but few allocations; the salt's HMAC has some
		t.Errorf("%v allocations", n)
	}
	again, _, err := a.verifier("u", PlainSecret("one"))
	if err != nil || again.StoredKey != first.StoredKey || len(a.derived) != 1 {
		t.Error("derived again")
	}
	changed, _, err := a.verifier("u", PlainSecret("two"))
	if err != nil || changed.StoredKey == first.StoredKey || len(a.derived) != 1 {
		t.Error("a stale verifier")
	}
	for i := range 100 {
		if _, usable, err := a.verifier(fmt.Sprint("ghost", i), Secret{}); usable || err != nil {
			t.Fatal(err)
		}
	}
	if len(a.derived) != 1 {
		t.Errorf("%d entries: strangers are remembered", len(a.derived))
	}
}

// TestAuthenticateHostile: whatever comes instead of an answer ends the login
// with the right words.
func TestAuthenticateHostile(t *testing.T) {
	sasl := func(first string) []byte { return appendSASLInitial(nil, scramMechanism, first) }
	cut := sasl("n,,n=,r=abc")
	for _, tt := range []struct {
		name   string
		method AuthMethod
		in     []byte
		cause  error
		code   string // "" when there is nobody to tell
	}{
		{"leaves", AuthSCRAM, nil, io.EOF, ""},
		{"leaves within", AuthSCRAM, cut[:10], io.ErrUnexpectedEOF, ""},
		{"says goodbye", AuthSCRAM, AppendTerminate(nil), ErrTerminate, ""},
		{"says goodbye within", AuthSCRAM, append(sasl("n,,n=,r=abc"), AppendTerminate(nil)...), ErrTerminate, ""},
		{"says goodbye to md5", AuthMD5, AppendTerminate(nil), ErrTerminate, ""},
		{"goodbye with a body", AuthSCRAM, []byte{'X', 0, 0, 0, 5, 0}, ErrFrameType, "08P01"},
		{"query", AuthSCRAM, AppendQuery(nil, "select 1"), ErrFrameType, "08P01"},
		{"huge", AuthSCRAM, AppendHeader(nil, 'p', MaxLargeLen), ErrFrameLength, "08P01"},
		{"above the limit", AuthSCRAM, AppendHeader(nil, 'p', MaxSASLLen+1), ErrFrameLength, "08P01"},
		{"length 0", AuthSCRAM, []byte{'p', 0, 0, 0, 0}, ErrFrameLength, "08P01"},
		{"length 2^32-1", AuthSCRAM, []byte{'p', 255, 255, 255, 255}, ErrFrameLength, "08P01"},
		{"empty", AuthSCRAM, appendPassword(nil, nil), ErrScramMessage, "08P01"},
		{"other mechanism", AuthSCRAM, appendPassword(nil, []byte("SCRAM-SHA-256-PLUS\x00\x00\x00\x00\x00")), ErrScramMessage, "08P01"},
		{"no initial response", AuthSCRAM, appendPassword(nil, []byte("SCRAM-SHA-256\x00\xff\xff\xff\xff")), ErrScramMessage, "08P01"},
		{"length beyond the message", AuthSCRAM, appendPassword(nil, []byte("SCRAM-SHA-256\x00\x7f\xff\xff\xffn,,")), ErrScramMessage, "08P01"},
		{"plain password", AuthSCRAM, appendPassword(nil, []byte("pencil\x00")), ErrScramMessage, "08P01"},
		{"garbage first", AuthSCRAM, sasl("hello"), ErrScramMessage, "08P01"},
		{"garbage final", AuthSCRAM, append(sasl("n,,n=,r=abc"), appendPassword(nil, []byte("hello"))...), ErrScramMessage, "08P01"},
		{"final too long", AuthSCRAM, append(sasl("n,,n=,r=abc"), AppendHeader(nil, 'p', 2000)...), ErrFrameLength, "08P01"},
		{"md5 without terminator", AuthMD5, appendPassword(nil, []byte("md5")), ErrFrameLength, "08P01"},
		{"md5 with more", AuthMD5, appendPassword(nil, []byte("md5\x00\x00")), ErrFrameLength, "08P01"},
		{"md5 empty", AuthMD5, appendPassword(nil, []byte("\x00")), ErrWrongPassword, "28P01"},
		{"md5 huge", AuthMD5, AppendHeader(nil, 'p', MaxAuthLen+1), ErrFrameLength, "08P01"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := &duplex{Reader: bytes.NewReader(tt.in)}
			id, err := NewAuthenticator(tt.method, testUsers(t), nil).AuthenticateClient(d, &Startup{User: "plain"})
			if !errors.Is(err, tt.cause) || id != (Identity{}) {
				t.Fatalf("got %v", err)
			}
			e, ok := errors.AsType[*Error](err)
			if ok != (tt.code != "") || ok && e.Code != tt.code {
				t.Errorf("got %v, want %s", err, tt.code)
			}
		})
	}
	if _, err := NewAuthenticator(AuthSCRAM, testUsers(t), nil).AuthenticateClient(brokenWriter{}, &Startup{User: "plain"}); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("broken pipe: %v", err)
	}
}

// TestAuthenticateReadsExactly: what follows the last message stays unread.
func TestAuthenticateReadsExactly(t *testing.T) {
	a := NewAuthenticator(AuthSCRAM, testUsers(t), nil)
	a.nonce = func() string { return rfcServerNonce }
	rest := AppendQuery(nil, "select 1")
	in := append(appendSASLInitial(nil, scramMechanism, rfcFirst), appendPassword(nil, []byte(rfcFinal))...)
	r := bytes.NewReader(append(in, rest...))
	if _, err := a.AuthenticateClient(&duplex{Reader: r}, &Startup{User: "scram"}); err != nil {
		t.Fatal(err)
	}
	if left, err := io.ReadAll(r); err != nil || !bytes.Equal(left, rest) {
		t.Errorf("%q is left", left)
	}
}

// TestPsql lets libpq log in, which asks for encryption first, prepares
// passwords by itself and checks our signature.
func TestPsql(t *testing.T) {
	psql, err := exec.LookPath("psql")
	if err != nil {
		t.Skip(err)
	}
	for _, tt := range []struct {
		method         AuthMethod
		user, password string
		want           error
	}{
		{AuthSCRAM, "plain", "pencil", nil},
		{AuthSCRAM, "scram", "pencil", nil},
		{AuthSCRAM, "prep", "\u2168", nil},
		{AuthSCRAM, "prep", "IX", nil},
		{AuthSCRAM, "plain", "wrong", ErrWrongPassword},
		{AuthSCRAM, "ghost", "wrong", ErrUnknownUser},
		{AuthMD5, "md5", "pencil", nil},
		{AuthMD5, "md5", "wrong", ErrWrongPassword},
		{AuthTrust, "none", "", nil},
	} {
		t.Run(fmt.Sprintf("%s %s %s", tt.method, tt.user, tt.password), func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			a := NewAuthenticator(tt.method, testUsers(t), nil)
			done := make(chan outcome, 1)
			go func() {
				conn, err := l.Accept()
				if err != nil {
					done <- outcome{err: err}
					return
				}
				done <- <-serve(a, conn)
			}()
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			_, port, err := net.SplitHostPort(l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(ctx, psql, "-X", "-w", "-h", "127.0.0.1", "-p", port, "-U", tt.user, "-c", ";", "db")
			cmd.Env = append(os.Environ(), "PGPASSWORD="+tt.password, "PGSSLMODE=prefer", "LC_ALL=C.UTF-8", "PGCLIENTENCODING=UTF8")
			out, err := cmd.CombinedOutput()
			got := <-done
			if !errors.Is(got.err, tt.want) || (err != nil) != (tt.want != nil) {
				t.Fatalf("got %v; psql: %v\n%s", got.err, err, out)
			}
			if tt.want != nil && !strings.Contains(string(out), fmt.Sprintf("FATAL:  password authentication failed for user %q", tt.user)) {
				t.Errorf("psql says %s", out)
			}
		})
	}
}
