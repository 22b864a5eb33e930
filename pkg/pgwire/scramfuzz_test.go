package pgwire

import (
	"bytes"
	"strings"
	"testing"
)

func FuzzSASLServer(f *testing.F) {
	v := rfcVerifier(f)
	f.Add(rfcFirst, rfcFinal)
	f.Add("y,,n=,r=abc", "c=eSws,r=abc,p=")
	f.Add("n,,n=,r=abc,x=y", rfcFinal+",")
	f.Fuzz(func(t *testing.T, first, final string) {
		s := scramServer{verifier: v, nonce: rfcServerNonce}
		reply, err := s.first(first)
		if err != nil {
			return
		}
		if len(reply) > MaxSASLLen || strings.IndexByte(reply, 0) >= 0 {
			t.Fatalf("reply %q", reply)
		}
		if reply, _, err := s.final(final); err == nil && (first != rfcFirst || final != rfcFinal || reply != rfcServerFinal) {
			t.Fatalf("%q %q let in", first, final)
		}
	})
}

func FuzzSASLClient(f *testing.F) {
	f.Add(rfcServerFirst, rfcServerFinal)
	f.Add("r="+rfcClientNonce+"x,s=QUJD,i=1", "e=error")
	f.Fuzz(func(t *testing.T, first, final string) {
		c := scramClient{nonce: rfcClientNonce, user: "user", keys: func(salt []byte, n int) (ScramKeys, error) {
			if len(salt) == 0 || n < 1 || n > MaxScramIterations {
				t.Fatalf("asked for %d iterations over %d bytes", n, len(salt))
			}
			return deriveKeys("pencil", salt, min(n, 4096))
		}}
		if _, err := c.final(first); err != nil {
			return
		}
		if err := c.verify(final); err == nil && (first != rfcServerFirst || final != rfcServerFinal) {
			t.Fatalf("%q %q believed", first, final)
		}
	})
}

func FuzzSASLInitial(f *testing.F) {
	f.Add(appendSASLInitial(nil, scramMechanism, rfcFirst)[HeaderLen:])
	f.Add([]byte("SCRAM-SHA-256\x00\xff\xff\xff\xff"))
	f.Add([]byte("SCRAM-SHA-256-PLUS\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, body []byte) {
		first, _, err := parseSASLInitial(body, false)
		if err == nil && !bytes.Equal(appendSASLInitial(nil, scramMechanism, first)[HeaderLen:], body) {
			t.Fatalf("%q became %q", body, first)
		}
	})
}

func FuzzVerifier(f *testing.F) {
	f.Add(rfcVerifier(f).Encode())
	f.Fuzz(func(t *testing.T, text string) {
		v, err := ParseVerifier(text)
		if err != nil {
			return
		}
		again, err := ParseVerifier(v.Encode())
		if err != nil || again.StoredKey != v.StoredKey || again.ServerKey != v.ServerKey || again.Iterations != v.Iterations || !bytes.Equal(again.Salt, v.Salt) {
			t.Fatalf("%q became %q", text, v.Encode())
		}
	})
}
