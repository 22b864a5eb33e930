package pgwire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// reported returns the value of a parameter that the server reported.
func reported(s *ServerSession, name string) (value string, ok bool) {
	for _, p := range s.Params {
		if p.Name == name {
			return p.Value, true
		}
	}
	return "", false
}

// script plays a server: it reads a message before each of the replies but the
// first, which answers the startup packet, and closes in the end.
func script(t *testing.T, conn net.Conn, replies ...[]byte) <-chan error {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		defer conn.Close()
		done <- func() error {
			if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
				return err
			}
			if _, err := ReadStartup(conn, 0); err != nil {
				return err
			}
			for i, r := range replies {
				if i > 0 {
					if _, _, err := ReadFrame(conn, MaxAuthLen); err != nil {
						return err
					}
				}
				if _, err := conn.Write(r); err != nil {
					return err
				}
			}
			return nil
		}()
	}()
	return done
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func TestConnectServer(t *testing.T) {
	client, server := net.Pipe()
	defer client.Close()
	long := CancelKey{42, strings.Repeat("k", 256)}
	done := script(t, server, join(
		(&Error{Severity: "NOTICE", Message: "hello"}).AppendNotice(nil),
		AppendAuthenticationOk(nil),
		AppendParameterStatus(nil, "TimeZone", "UTC"),
		AppendParameterStatus(nil, "server_version", "15.1"),
		AppendParameterStatus(nil, "TimeZone", "CET"),
		AppendBackendKeyData(nil, long),
		AppendReadyForQuery(nil, TxIdle),
		[]byte("tail"),
	))
	s, err := ConnectServer(t.Context(), client, ServerLogin{User: "u", Database: "d"})
	if err != nil {
		t.Fatal(err)
	}
	if zone, _ := reported(s, "TimeZone"); s.Key != long || len(s.Params) != 2 || zone != "CET" {
		t.Errorf("got %+v", s)
	}
	if _, ok := reported(s, "timezone"); ok {
		t.Error("names of reported parameters are exact")
	}
	if left, err := io.ReadAll(client); err != nil || string(left) != "tail" {
		t.Errorf("%q is left, %v", left, err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestConnectServerRefuses(t *testing.T) {
	ok, ready := AppendAuthenticationOk(nil), AppendReadyForQuery(nil, TxIdle)
	sasl := appendAuthSASL(nil, scramMechanism)
	plain := ServerLogin{User: "u", Database: "d", Secret: PlainSecret("pencil")}
	many := bytes.Clone(ok)
	for i := range maxServerParams + 1 {
		many = AppendParameterStatus(many, fmt.Sprint(i), "x")
	}
	for _, tt := range []struct {
		name    string
		login   ServerLogin
		cause   error
		text    string // in the error
		replies [][]byte
	}{
		{"closes at once", plain, io.ErrUnexpectedEOF, "server closed the connection", nil},
		{"closes within a message", plain, io.ErrUnexpectedEOF, "failed to read", [][]byte{{'R', 0}}},
		{"closes after the login", plain, io.ErrUnexpectedEOF, "closed", [][]byte{ok}},
		{"refuses", plain, nil, "FATAL: sorry, too many clients already (SQLSTATE 53300)",
			[][]byte{AppendError(nil, "FATAL", "53300", "sorry, too many clients already")}},
		{"refuses without SQLSTATE", plain, nil, "server: FATAL: no", [][]byte{[]byte("E\x00\x00\x00\x10SFATAL\x00Mno\x00\x00")}},
		{"refuses with garbage", plain, ErrErrorFields, "malformed", [][]byte{[]byte("E\x00\x00\x00\x05S")}},
		{"HTTP", plain, ErrServerProtocol, "invalid message length", [][]byte{[]byte("HTTP/1.1 400 Bad Request\r\n")}},
		{"length 0", plain, ErrFrameLength, "", [][]byte{{'R', 0, 0, 0, 0}}},
		{"length 2^32-1", plain, ErrFrameLength, "", [][]byte{{'R', 255, 255, 255, 255}}},
		{"a gigabyte", plain, ErrFrameLength, "", [][]byte{AppendHeader(nil, 'N', MaxLargeLen)}},
		{"short authentication", plain, ErrServerProtocol, "", [][]byte{{'R', 0, 0, 0, 6, 0, 0}}},
		{"ready before the login", plain, ErrServerProtocol, "", [][]byte{ready}},
		{"key before the login", plain, ErrServerProtocol, "", [][]byte{AppendBackendKeyData(nil, CancelKey{1, "abcd"})}},
		{"parameter before the login", plain, ErrServerProtocol, "", [][]byte{AppendParameterStatus(nil, "a", "b")}},
		{"ready in a transaction", plain, ErrServerProtocol, "", [][]byte{join(ok, AppendReadyForQuery(nil, TxActive))}},
		{"ready without state", plain, ErrServerProtocol, "", [][]byte{join(ok, AppendHeader(nil, 'Z', 0))}},
		{"second login", plain, ErrServerProtocol, "", [][]byte{join(ok, ok)}},
		{"data row", plain, ErrServerProtocol, "type 68", [][]byte{join(ok, AppendHeader(nil, 'D', 0))}},
		{"malformed parameter", plain, ErrServerProtocol, "", [][]byte{join(ok, []byte("S\x00\x00\x00\x05a"))}},
		{"endless parameters", plain, ErrServerProtocol, "more than 256", [][]byte{many}},
		{"key too long", plain, ErrServerProtocol, "", [][]byte{join(ok, AppendBackendKeyData(nil, CancelKey{1, strings.Repeat("k", 257)}))}},
		{"key too short", plain, ErrServerProtocol, "", [][]byte{join(ok, AppendBackendKeyData(nil, CancelKey{1, "abc"}))}},
		{"negotiates", plain, ErrServerProtocol, "type 118", [][]byte{[]byte("v\x00\x00\x00\x0c\x00\x03\x00\x00\x00\x00\x00\x00")}},
		{"wants the password", plain, ErrNoCredentials, "clear text", [][]byte{appendAuth(nil, authCleartext, nil)}},
		{"wants kerberos", plain, ErrNoCredentials, "method 7", [][]byte{appendAuth(nil, 7, nil)}},
		{"short md5 salt", plain, ErrServerProtocol, "", [][]byte{appendAuth(nil, authMD5, []byte("abc"))}},
		{"md5 without a password", ServerLogin{User: "u"}, ErrNoCredentials, "[no secret]", [][]byte{appendAuth(nil, authMD5, []byte("salt"))}},
		{"SCRAM without a password", ServerLogin{User: "u"}, ErrNoCredentials, "[no secret]", [][]byte{sasl}},
		{"SCRAM with a verifier alone", ServerLogin{User: "u", Secret: Secret{Kind: SecretSCRAM}}, ErrNoCredentials, "[scram secret]", [][]byte{sasl}},
		{"channel binding only", plain, ErrNoCredentials, "does not offer", [][]byte{appendAuthSASL(nil, "SCRAM-SHA-256-PLUS")}},
		{"no mechanism", plain, ErrNoCredentials, "", [][]byte{appendAuthSASL(nil)}},
		{"malformed mechanisms", plain, ErrServerProtocol, "", [][]byte{appendAuth(nil, authSASL, []byte("SCRAM"))}},
		{"continues what did not begin", plain, ErrServerProtocol, "out of order", [][]byte{appendAuth(nil, authSASLContinue, nil)}},
		{"ends what did not begin", plain, ErrServerProtocol, "out of order", [][]byte{appendAuth(nil, authSASLFinal, nil)}},
		{"ends too early", plain, ErrServerProtocol, "out of order", [][]byte{sasl, appendAuth(nil, authSASLFinal, []byte("v="))}},
		{"begins twice", plain, ErrServerProtocol, "unfinished", [][]byte{sasl, sasl}},
		{"skips its proof", plain, ErrServerProtocol, "unfinished", [][]byte{sasl, ok}},
		{"falls back to md5", plain, ErrServerProtocol, "unfinished", [][]byte{sasl, appendAuth(nil, authMD5, []byte("salt"))}},
		{"replays another nonce", plain, ErrScramMessage, "nonce", [][]byte{sasl, appendAuth(nil, authSASLContinue, []byte(rfcServerFirst))}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			client, server := net.Pipe()
			defer client.Close()
			done := script(t, server, tt.replies...)
			s, err := ConnectServer(t.Context(), client, tt.login)
			client.Close()
			<-done // it may have failed to send what nobody read
			if s != nil || err == nil || !strings.HasPrefix(err.Error(), "logging in to server: ") {
				t.Fatalf("got %v, %v", s, err)
			}
			if tt.cause != nil && !errors.Is(err, tt.cause) || !strings.Contains(err.Error(), tt.text) {
				t.Fatalf("got %v", err)
			}
			// Only the server's own refusals are for the client's eyes.
			if _, ok := errors.AsType[*Error](err); ok != (strings.HasPrefix(tt.name, "refuses") && tt.cause == nil) {
				t.Errorf("%v is an *Error: %v", err, ok)
			}
		})
	}
}

// TestConnectServerImpostor: a server that does not know the password cannot
// make us believe it does.
func TestConnectServerImpostor(t *testing.T) {
	client, server := net.Pipe()
	defer client.Close()
	done := make(chan error, 1)
	go func() {
		defer server.Close()
		done <- func() error {
			if err := server.SetDeadline(time.Now().Add(limit)); err != nil {
				return err
			}
			if _, err := ReadStartup(server, 0); err != nil {
				return err
			}
			x := scramServer{verifier: rfcVerifier(t), nonce: "impostor"}
			x.verifier.ServerKey[0] ^= 1
			if _, err := server.Write(appendAuthSASL(nil, scramMechanism)); err != nil {
				return err
			}
			_, body, err := ReadFrame(server, MaxSASLLen)
			if err != nil {
				return err
			}
			first, _, err := parseSASLInitial(body, false)
			if err != nil {
				return err
			}
			reply, err := x.first(first)
			if err != nil {
				return err
			}
			if _, err := server.Write(appendAuth(nil, authSASLContinue, []byte(reply))); err != nil {
				return err
			}
			if _, body, err = ReadFrame(server, MaxSASLLen); err != nil {
				return err
			}
			if reply, _, err = x.final(string(body)); err != nil {
				return err
			}
			_, err = server.Write(appendAuth(nil, authSASLFinal, []byte(reply)))
			return err
		}()
	}()
	_, err := ConnectServer(t.Context(), client, ServerLogin{User: "u", Secret: PlainSecret("pencil")})
	if !errors.Is(err, ErrScramMessage) || !strings.Contains(err.Error(), "does not know the password") {
		t.Errorf("got %v", err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestConnectServerContext: a server that says nothing is given up.
func TestConnectServerContext(t *testing.T) {
	for name, call := range map[string]func(context.Context, net.Conn) error{
		"login": func(ctx context.Context, c net.Conn) error {
			_, err := ConnectServer(ctx, c, ServerLogin{User: "u"})
			return err
		},
		"cancel": func(ctx context.Context, c net.Conn) error {
			return RequestCancel(ctx, c, CancelKey{1, "abcd"})
		},
	} {
		t.Run(name, func(t *testing.T) {
			client, server := net.Pipe()
			defer client.Close()
			defer server.Close()
			why := errors.New("nobody waits any more")
			ctx, cancel := context.WithCancelCause(t.Context())
			done := make(chan error, 1)
			go func() { done <- call(ctx, client) }()
			if _, err := ReadStartup(server, 0); err != nil { // it has written and now waits
				t.Fatal(err)
			}
			cancel(why)
			select {
			case err := <-done:
				if !errors.Is(err, why) {
					t.Errorf("got %v", err)
				}
			case <-time.After(limit):
				t.Fatal("still waiting")
			}
		})
	}
}

func TestRequestCancel(t *testing.T) {
	key := CancelKey{7, strings.Repeat("s", 32)}
	for name, answer := range map[string]string{"closes": "", "answers": "E"} {
		t.Run(name, func(t *testing.T) {
			client, server := net.Pipe()
			defer client.Close()
			got := make(chan Startup, 1)
			go func() {
				defer server.Close()
				s, err := ReadStartup(server, 0)
				if err != nil {
					t.Error(err)
				}
				got <- s
				if answer != "" {
					if _, err := io.WriteString(server, answer); err != nil {
						t.Error(err)
					}
				}
			}()
			err := RequestCancel(t.Context(), client, key)
			if s := <-got; s.Kind != KindCancel || s.Key != key {
				t.Errorf("server got %+v", s)
			}
			if (err != nil) != (answer != "") {
				t.Error(err)
			}
		})
	}
}
