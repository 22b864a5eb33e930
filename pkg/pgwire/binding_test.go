package pgwire

import (
	"bytes"
	"encoding/base64"
	"errors"
	"net"
	"strings"
	"testing"
)

// loginBound logs a client in to ourselves, each with its channel binding.
func loginBound(t *testing.T, offered, has []byte, password string, method AuthMethod) error {
	t.Helper()
	client, server := net.Pipe()
	defer client.Close()
	a := NewAuthenticator(method, testUsers(t), nil)
	done := make(chan error, 1)
	go func() {
		defer server.Close()
		s, err := AcceptStartup(server, 0)
		if err == nil {
			secret, known := testUsers(t)(s.User)
			_, err = a.Authenticate(server, &s, Challenge{Method: method, Secret: secret, Known: known, Binding: offered})
		}
		if err == nil {
			_, err = server.Write(AppendReadyForQuery(AppendAuthenticationOk(nil), TxIdle))
		} else {
			_ = SendError(server, err)
		}
		done <- err
	}()
	_, cerr := ConnectServer(t.Context(), client, ServerLogin{User: "plain", Database: "d", Secret: PlainSecret(password), Binding: has, AllowCleartext: method == AuthPlain})
	client.Close()
	serr := <-done
	if (cerr == nil) != (serr == nil) {
		t.Errorf("client: %v, server: %v", cerr, serr)
	}
	return serr
}

// TestChannelBinding: each side with and without it, and with two.
func TestChannelBinding(t *testing.T) {
	one, two := []byte("hash of one certificate"), []byte("hash of another")
	password := "pencil"
	for _, tt := range []struct {
		name         string
		offered, has []byte
		want         string
	}{
		{"none", nil, nil, ""},
		{"both", one, one, ""},
		{"server only", one, nil, ""},
		{"client only", nil, one, ""},
		{"relayed by somebody with another certificate", one, two, "SCRAM channel binding check failed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := loginBound(t, tt.offered, tt.has, password, AuthSCRAM)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	if err := loginBound(t, one, one, "wrong", AuthSCRAM); !errors.Is(err, ErrWrongPassword) {
		t.Errorf("wrong password: %v", err)
	}
}

// TestPlain: the password in clear text against each kind of secret.
func TestPlain(t *testing.T) {
	if err := loginBound(t, nil, nil, "pencil", AuthPlain); err != nil {
		t.Error(err)
	}
	if err := loginBound(t, nil, nil, "wrong", AuthPlain); !errors.Is(err, ErrWrongPassword) {
		t.Errorf("wrong password: %v", err)
	}
	verifier, err := NewVerifier("pencil", []byte("salt"), 4096)
	if err != nil {
		t.Fatal(err)
	}
	for name, secret := range map[string]Secret{
		"plain": PlainSecret("pencil"), "md5": {Kind: SecretMD5, text: md5Hex("pencil", "u")}, "scram": {Kind: SecretSCRAM, verifier: verifier}, "none": {},
	} {
		for _, password := range []string{"pencil", "pencil2", ""} {
			a := NewAuthenticator(AuthPlain, nil, nil)
			d := &duplex{Reader: bytes.NewReader(appendPassword(nil, append([]byte(password), 0)))}
			_, err := a.Authenticate(d, &Startup{User: "u"}, Challenge{Method: AuthPlain, Secret: secret, Known: true})
			if good := password == "pencil" && name != "none"; good != (err == nil) {
				t.Errorf("%s, password %q: %v", name, password, err)
			}
		}
	}
}

// TestBindingDowngrade: a client that knows channel binding and was not shown
// our offer is refused, as is a PLUS that binds nothing.
func TestBindingDowngrade(t *testing.T) {
	binding := []byte("hash")
	for _, tt := range []struct{ mechanism, first, final, want string }{
		{scramMechanism, "y,,n=,r=abc", "", "negotiation error"},
		{scramMechanismPlus, "n,,n=,r=abc", "", "malformed"},
		{scramMechanismPlus, "p=tls-unique,,n=,r=abc", "", "malformed"},
		{scramMechanism, scramBindingFlag + ",n=,r=abc", "", "malformed"},
		{scramMechanismPlus, scramBindingFlag + "a=x,n=,r=abc", "", "authorization identity"},
		{scramMechanismPlus, scramBindingFlag + ",n=,r=abc", "c=" + base64.StdEncoding.EncodeToString([]byte(scramBindingFlag+",")) + ",r=abc,p=x", "binding check failed"},
	} {
		in := appendSASLInitial(nil, tt.mechanism, tt.first)
		if tt.final != "" {
			in = appendPassword(in, []byte(tt.final))
		}
		d := &duplex{Reader: bytes.NewReader(in)}
		_, err := NewAuthenticator(AuthSCRAM, nil, nil).Authenticate(d, &Startup{User: "u"}, Challenge{Secret: PlainSecret("x"), Known: true, Binding: binding})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s %q: %v, want %q", tt.mechanism, tt.first, err, tt.want)
		}
	}
}
