package pgwire

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
)

// The exchange of RFC 7677, section 3: user "user", password "pencil".
const (
	rfcClientNonce = "rOprNGfwEbeRWgbNEkqO"
	rfcServerNonce = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
	rfcSalt64      = "W22ZaJ0SNY7soEsUEjb6gQ=="
	rfcFirst       = "n,,n=user,r=" + rfcClientNonce
	rfcServerFirst = "r=" + rfcClientNonce + rfcServerNonce + ",s=" + rfcSalt64 + ",i=4096"
	rfcFinal       = "c=biws,r=" + rfcClientNonce + rfcServerNonce + ",p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
	rfcServerFinal = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
)

func rfcVerifier(t testing.TB) Verifier {
	t.Helper()
	salt, err := base64.StdEncoding.DecodeString(rfcSalt64)
	if err != nil {
		t.Fatal(err)
	}
	v, err := NewVerifier("pencil", salt, 4096)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestScramServerRFC7677(t *testing.T) {
	s := scramServer{verifier: rfcVerifier(t), nonce: rfcServerNonce}
	reply, err := s.first(rfcFirst)
	if err != nil || reply != rfcServerFirst {
		t.Fatalf("server-first %q, %v", reply, err)
	}
	reply, keys, err := s.final(rfcFinal)
	if err != nil || reply != rfcServerFinal {
		t.Fatalf("server-final %q, %v", reply, err)
	}
	want, err := deriveKeys("pencil", s.verifier.Salt, 4096)
	if err != nil || keys != want {
		t.Errorf("the keys learned are not those of the password (%v)", err)
	}
}

func TestScramClientRFC7677(t *testing.T) {
	// Our client leaves the user's name out, which enters the signatures: so
	// the expected proof is computed by our server, which the RFC's vectors
	// have just checked.
	c := scramClient{nonce: rfcClientNonce, keys: func(salt []byte, n int) (ScramKeys, error) {
		return deriveKeys("pencil", salt, n)
	}}
	s := scramServer{verifier: rfcVerifier(t), nonce: rfcServerNonce}
	first, err := s.first(c.first())
	if err != nil || first != rfcServerFirst {
		t.Fatal(first, err)
	}
	final, err := c.final(first)
	if err != nil {
		t.Fatal(err)
	}
	reply, _, err := s.final(final)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.verify(reply); err != nil || !c.verified {
		t.Fatal(err)
	}
	// With the name put in its place the client gives the RFC's very proof.
	c = scramClient{nonce: rfcClientNonce, keys: c.keys, user: "user"}
	if got := c.first(); got != rfcFirst {
		t.Errorf("client-first %q", got)
	}
	if got, err := c.final(rfcServerFirst); err != nil || got != rfcFinal {
		t.Errorf("client-final %q, %v", got, err)
	}
	if err := c.verify(rfcServerFinal); err != nil {
		t.Error(err)
	}
}

func TestScramServerFirstRefuses(t *testing.T) {
	for in, code := range map[string]string{
		"":                       "08P01",
		"n":                      "08P01",
		"n,":                     "0A000",
		"x,,n=,r=abc":            "08P01",
		"p=tls-unique,,n=,r=abc": "08P01",
		"n,a=admin,n=,r=abc":     "0A000",
		"n,,m=ext,n=,r=abc":      "0A000",
		"n,,r=abc":               "08P01",
		"n,,n=user":              "08P01",
		"n,,n=user,r=":           "08P01",
		"n,,n=user,r=a b":        "08P01",
		"n,,n=user,r=\x7f":       "08P01",
		"n,,n=user,r=é":          "08P01",
		"n,,n=u\x00,r=abc":       "08P01",
		"n,,n=user,r=" + strings.Repeat("x", 513): "08P01",
	} {
		s := scramServer{verifier: rfcVerifier(t), nonce: "server"}
		_, err := s.first(in)
		if e, ok := errors.AsType[*Error](err); !ok || e.Code != code || !errors.Is(err, ErrScramMessage) {
			t.Errorf("%q: got %v, want %s", in, err, code)
		}
	}
	s := scramServer{verifier: rfcVerifier(t), nonce: "server"}
	if _, err := s.first("y,,n=user,r=abc,x=extension"); err != nil {
		t.Errorf("an optional extension is refused: %v", err)
	}
}

func TestScramServerFinalRefuses(t *testing.T) {
	nonce := "r=" + rfcClientNonce + rfcServerNonce
	proof := rfcFinal[strings.LastIndex(rfcFinal, ",p="):]
	wrong := ",p=" + strings.Repeat("A", 43) + "="
	for _, tt := range []struct {
		name, in string
		proof    bool // the message is well formed, the proof is not right
	}{
		{"empty", "", false},
		{"other binding", "c=eSws," + nonce + proof, false},
		{"no binding", nonce + proof, false},
		{"other nonce", "c=biws,r=" + rfcClientNonce + "x" + proof, false},
		{"client's nonce alone", "c=biws,r=" + rfcClientNonce + proof, false},
		{"no nonce", "c=biws" + proof, false},
		{"no proof", "c=biws," + nonce, false},
		{"empty proof", "c=biws," + nonce + ",p=", false},
		{"short proof", "c=biws," + nonce + ",p=AAAA", false},
		{"long proof", "c=biws," + nonce + ",p=" + strings.Repeat("A", 44), false},
		{"proof with a stray bit", "c=biws," + nonce + proof[:len(proof)-2] + "R=", false},
		{"bytes behind", "c=biws," + nonce + proof + ",x=y", false},
		{"line break", "c=biws," + nonce + proof + "\n", false},
		{"wrong proof", "c=biws," + nonce + wrong, true},
		{"extension changes the signature", "c=biws," + nonce + ",x=y" + proof, true},
	} {
		s := scramServer{verifier: rfcVerifier(t), nonce: rfcServerNonce}
		if _, err := s.first(rfcFirst); err != nil {
			t.Fatal(err)
		}
		reply, keys, err := s.final(tt.in)
		if _, ours := errors.AsType[*Error](err); (err == errProof) != tt.proof || ours == tt.proof || reply != "" {
			t.Errorf("%s: got %q, %v", tt.name, reply, err)
		}
		if tt.proof && keys != (ScramKeys{}) {
			t.Errorf("%s: keys leave the exchange", tt.name)
		}
	}
}

// TestScramDoomed: the right proof does not help who does not exist.
func TestScramDoomed(t *testing.T) {
	s := scramServer{verifier: rfcVerifier(t), nonce: rfcServerNonce, doomed: true}
	if _, err := s.first(rfcFirst); err != nil {
		t.Fatal(err)
	}
	if reply, keys, err := s.final(rfcFinal); err != errProof || reply != "" || keys != (ScramKeys{}) {
		t.Errorf("got %q, %v", reply, err)
	}
}

func TestScramClientRefuses(t *testing.T) {
	good := "r=abcdef,s=QUJD,i=4096"
	for _, in := range []string{
		"",
		"s=QUJD,i=4096",
		"r=abc,s=QUJD,i=4096",     // nothing added to our nonce
		"r=abd123,s=QUJD,i=4096",  // not ours
		"r=abcd\x01,s=QUJD,i=1",   // not printable
		"r=abcdef,i=4096",         // no salt
		"r=abcdef,s=,i=4096",      // empty salt
		"r=abcdef,s=Q*,i=4096",    // no base64
		"r=abcdef,s=QUJD",         // no count
		"r=abcdef,s=QUJD,i=0",     // none
		"r=abcdef,s=QUJD,i=-1",    // negative
		"r=abcdef,s=QUJD,i=+4096", // strange
		"r=abcdef,s=QUJD,i=1000001",
		"r=abcdef,s=QUJD,i=2147483648",
		"r=abcdef,s=QUJD,i=99999999999999999999",
		"m=x,r=abcdef,s=QUJD,i=4096",
		"e=other-error",
	} {
		c := scramClient{nonce: "abc", keys: func([]byte, int) (ScramKeys, error) {
			t.Errorf("%q: keys derived", in)
			return ScramKeys{}, nil
		}}
		if reply, err := c.final(in); !errors.Is(err, ErrScramMessage) {
			t.Errorf("%q: got %q, %v", in, reply, err)
		}
	}
	c := scramClient{nonce: "abc", keys: func([]byte, int) (ScramKeys, error) { return ScramKeys{}, nil }}
	if _, err := c.final(good + ",x=extension"); err != nil {
		t.Errorf("an optional extension is refused: %v", err)
	}
	for _, in := range []string{"", "v=", "v=*", "v=QUJD", "e=invalid-proof", "v=" + strings.Repeat("A", 43) + "="} {
		if err := c.verify(in); !errors.Is(err, ErrScramMessage) || c.verified {
			t.Errorf("%q: got %v", in, err)
		}
	}
}

func TestParseVerifier(t *testing.T) {
	v := rfcVerifier(t)
	text := v.Encode()
	back, err := ParseVerifier(text)
	if err != nil || back.Iterations != v.Iterations || !bytes.Equal(back.Salt, v.Salt) ||
		back.StoredKey != v.StoredKey || back.ServerKey != v.ServerKey {
		t.Fatalf("%s read back: %v", text, err)
	}
	keys := text[strings.LastIndex(text, "$"):]
	for _, bad := range []string{
		"", "pencil", "SCRAM-SHA-256", "SCRAM-SHA-256$", "SCRAM-SHA-1$4096:QUJD" + keys,
		"SCRAM-SHA-256$4096:QUJD", "SCRAM-SHA-256$4096" + keys, "SCRAM-SHA-256$:QUJD" + keys,
		"SCRAM-SHA-256$0:QUJD" + keys, "SCRAM-SHA-256$1000001:QUJD" + keys, "SCRAM-SHA-256$4096:" + keys,
		"SCRAM-SHA-256$4096:QU\nJD" + keys, "SCRAM-SHA-256$4096:*" + keys,
		text + "A", text[:len(text)-4], text + ":", "scram-sha-256$4096:QUJD" + keys,
		"SCRAM-SHA-256$4096:QUJD$" + strings.Repeat("A", 43) + "=",
	} {
		_, err := ParseVerifier(bad)
		if !errors.Is(err, ErrVerifier) {
			t.Errorf("%q: got %v", bad, err)
			continue
		}
		if len(bad) > 40 && strings.Contains(err.Error(), bad[30:]) {
			t.Errorf("the error repeats the secret: %v", err)
		}
	}
}

func TestParseSecret(t *testing.T) {
	md5 := "md5" + strings.Repeat("0a", 16)
	for in, kind := range map[string]SecretKind{
		"":                            SecretNone,
		"password":                    SecretPlain,
		"md5":                         SecretPlain,
		md5:                           SecretMD5,
		strings.ToUpper(md5):          SecretPlain,
		"md5" + md5[3:34] + "g":       SecretPlain,
		md5 + "0":                     SecretPlain,
		rfcVerifier(t).Encode():       SecretSCRAM,
		"SCRAM-SHA-256":               SecretPlain,
		" " + rfcVerifier(t).Encode(): SecretPlain,
	} {
		s, err := ParseSecret(in)
		if err != nil || s.Kind != kind {
			t.Errorf("%q: %v, %v", in, s, err)
		}
		for _, shown := range []string{fmt.Sprint(s), fmt.Sprintf("%+v", s), fmt.Sprintf("%#v", s), fmt.Sprint(&s)} {
			if !strings.HasPrefix(shown, "[") || in != "" && strings.Contains(shown, in) {
				t.Errorf("%q shows as %q", in, shown)
			}
		}
	}
	if _, err := ParseSecret("SCRAM-SHA-256$4096:QUJD$cut"); !errors.Is(err, ErrVerifier) {
		t.Errorf("a cut verifier: %v", err)
	}
}

func TestSecretsStaySecret(t *testing.T) {
	v := rfcVerifier(t)
	k := ScramKeys{ClientKey: [32]byte{200, 201, 202}}
	for _, x := range []any{v, &v, k, &k, struct{ K *ScramKeys }{&k}} {
		for _, shown := range []string{fmt.Sprintf("%v", x), fmt.Sprintf("%+v", x), fmt.Sprintf("%#v", x), fmt.Sprintf("%s", x)} {
			if strings.Contains(shown, "200") || strings.Contains(shown, "0xc8") || strings.Contains(shown, fmt.Sprint(v.StoredKey[0], " ", v.StoredKey[1])) {
				t.Errorf("%T shows as %s", x, shown)
			}
		}
	}
}

// TestMD5Response: the formula of section 53.2; TestPostgresLogin has the proof
// that a server thinks the same.
func TestMD5Response(t *testing.T) {
	plain := PlainSecret("secret")
	inner, ok := plain.md5Inner("joe")
	if !ok {
		t.Fatal("no inner hash")
	}
	stored, err := ParseSecret("md5" + inner)
	if err != nil {
		t.Fatal(err)
	}
	again, ok := stored.md5Inner("anybody")
	if !ok || again != inner || md5Response(inner, []byte("salt")) != "md5"+md5Hex(md5Hex("secret", "joe"), "salt") {
		t.Error("plain and stored secret differ")
	}
	if _, ok := (Secret{Kind: SecretSCRAM}).md5Inner("joe"); ok {
		t.Error("a verifier gives an md5 hash")
	}
}

func TestKeyCache(t *testing.T) {
	var c KeyCache
	want, err := deriveKeys("p", []byte("salt"), 10)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if got, err := c.derive("p", []byte("salt"), 10); err != nil || got != want {
				t.Error("wrong keys", err)
			}
		})
	}
	wg.Wait()
	if c.misses != 1 {
		t.Errorf("derived %d times for 8 logins", c.misses)
	}
	for _, other := range []struct {
		password, salt string
		n              int
	}{{"q", "salt", 10}, {"p", "tlas", 10}, {"p", "salt", 11}} {
		got, err := c.derive(other.password, []byte(other.salt), other.n)
		if fresh, _ := deriveKeys(other.password, []byte(other.salt), other.n); err != nil || got != fresh {
			t.Errorf("%v: stale keys, %v", other, err)
		}
	}
}
