package pgwire

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgproto3/v2"
)

// TestAppend holds the encoders against those of another implementation. Each
// appends behind other bytes, as the relay does.
func TestAppend(t *testing.T) {
	key := CancelKey{0x01020304, "\x05\x06\x07\x08"}
	for _, tt := range []struct {
		got  []byte
		want pgproto3.Message
	}{
		{AppendAuthenticationOk([]byte("x")), &pgproto3.AuthenticationOk{}},
		{appendAuth([]byte("x"), authMD5, []byte("salt")), &pgproto3.AuthenticationMD5Password{Salt: [4]byte([]byte("salt"))}},
		{appendAuthSASL([]byte("x"), "A", "B"), &pgproto3.AuthenticationSASL{AuthMechanisms: []string{"A", "B"}}},
		{appendAuth([]byte("x"), authSASLContinue, []byte("c")), &pgproto3.AuthenticationSASLContinue{Data: []byte("c")}},
		{appendAuth([]byte("x"), authSASLFinal, []byte("f")), &pgproto3.AuthenticationSASLFinal{Data: []byte("f")}},
		{appendSASLInitial([]byte("x"), scramMechanism, "n,,n=,r=abc"), &pgproto3.SASLInitialResponse{AuthMechanism: "SCRAM-SHA-256", Data: []byte("n,,n=,r=abc")}},
		{appendPassword([]byte("x"), []byte("resp")), &pgproto3.SASLResponse{Data: []byte("resp")}},
		{AppendParameterStatus([]byte("x"), "a", "b"), &pgproto3.ParameterStatus{Name: "a", Value: "b"}},
		{AppendBackendKeyData([]byte("x"), key), &pgproto3.BackendKeyData{ProcessID: 0x01020304, SecretKey: 0x05060708}},
		{AppendReadyForQuery([]byte("x"), TxFailed), &pgproto3.ReadyForQuery{TxStatus: 'E'}},
		{AppendParseComplete([]byte("x")), &pgproto3.ParseComplete{}},
		{AppendBindComplete([]byte("x")), &pgproto3.BindComplete{}},
		{AppendCloseComplete([]byte("x")), &pgproto3.CloseComplete{}},
		{AppendEmptyQueryResponse([]byte("x")), &pgproto3.EmptyQueryResponse{}},
		{AppendCommandComplete([]byte("x"), "SELECT 1"), &pgproto3.CommandComplete{CommandTag: []byte("SELECT 1")}},
		{AppendQuery([]byte("x"), "select 1"), &pgproto3.Query{String: "select 1"}},
		{AppendParse([]byte("x"), "s", []byte("select $1\x00\x00\x01\x00\x00\x00\x17")), &pgproto3.Parse{Name: "s", Query: "select $1", ParameterOIDs: []uint32{23}}},
		{AppendClose([]byte("x"), 'S', "s"), &pgproto3.Close{ObjectType: 'S', Name: "s"}},
		{AppendDescribe([]byte("x"), 'P', ""), &pgproto3.Describe{ObjectType: 'P'}},
		{AppendSync([]byte("x")), &pgproto3.Sync{}},
		{AppendFlush([]byte("x")), &pgproto3.Flush{}},
		{AppendTerminate([]byte("x")), &pgproto3.Terminate{}},
		{AppendCopyFail([]byte("x"), "why"), &pgproto3.CopyFail{Message: "why"}},
		{AppendCancelRequest([]byte("x"), key), &pgproto3.CancelRequest{ProcessID: 0x01020304, SecretKey: 0x05060708}},
		{NewError("ERROR", "42P05", "m").Append([]byte("x")), &pgproto3.ErrorResponse{Severity: "ERROR", SeverityUnlocalized: "ERROR", Code: "42P05", Message: "m"}},
		{AppendError([]byte("x"), "FATAL", "08P01", "m"), &pgproto3.ErrorResponse{Severity: "FATAL", SeverityUnlocalized: "FATAL", Code: "08P01", Message: "m"}},
		{(&Error{Severity: "NOTICE", Code: "00000", Message: "m", Detail: "d", Hint: "h"}).AppendNotice([]byte("x")),
			&pgproto3.NoticeResponse{Severity: "NOTICE", SeverityUnlocalized: "NOTICE", Code: "00000", Message: "m", Detail: "d", Hint: "h"}},
	} {
		want, err := tt.want.(interface {
			Encode([]byte) ([]byte, error)
		}).Encode([]byte("x"))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(tt.got, want) {
			t.Errorf("%T: got %q, want %q", tt.want, tt.got, want)
		}
	}
}

// TestAppendCStringNUL: no string can smuggle a field or a message.
func TestAppendCStringNUL(t *testing.T) {
	got := AppendQuery(nil, "a\x00Q\x00\x00\x00\x05\x00")
	if want := AppendQuery(nil, "a"); !bytes.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

func TestParseParameterStatus(t *testing.T) {
	name, value, ok := ParseParameterStatus([]byte("a\x00b\x00"))
	if string(name) != "a" || string(value) != "b" || !ok {
		t.Errorf("got %q %q %v", name, value, ok)
	}
	for _, bad := range []string{"", "a", "a\x00", "a\x00b", "a\x00b\x00c"} {
		if _, _, ok := ParseParameterStatus([]byte(bad)); ok {
			t.Errorf("%q accepted", bad)
		}
	}
}

func TestCancelKey(t *testing.T) {
	seen := make(map[CancelKey]bool)
	for range 100 {
		for _, v := range []Version{Protocol30, Protocol32} {
			k := NewCancelKey(v)
			want := 4
			if v == Protocol32 {
				want = 32
			}
			if len(k.Secret) != want || k.PID == 0 || k.PID > math.MaxInt32 || seen[k] {
				t.Fatalf("%s: %d bytes, PID %d", v, len(k.Secret), k.PID)
			}
			seen[k] = true
			body := AppendBackendKeyData(nil, k)[HeaderLen:]
			if got, ok := ParseBackendKeyData(body); !ok || got != k || !got.Matches(k) {
				t.Fatalf("%v became %v", k, got)
			}
		}
	}
	k := CancelKey{1, "abcd"}
	for _, other := range []CancelKey{{2, "abcd"}, {1, "abce"}, {1, "abcde"}, {1, ""}, {}} {
		if k.Matches(other) || other.Matches(k) {
			t.Errorf("%v matches %v", k, other)
		}
	}
	for _, n := range []int{0, 4, 7, 4 + 257} {
		if _, ok := ParseBackendKeyData(make([]byte, n)); ok {
			t.Errorf("%d bytes accepted", n)
		}
	}
}

func TestParseError(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want *Error
	}{
		{"SFEHLER\x00VERROR\x00C42P01\x00Mtext\x00Dd\x00Hh\x00P15\x00Fparse.c\x00\x00",
			&Error{Severity: "ERROR", Code: "42P01", Message: "text", Detail: "d", Hint: "h"}},
		{"VERROR\x00SFEHLER\x00\x00", &Error{Severity: "ERROR"}},
		{"SFATAL\x00Mno code\x00\x00", &Error{Severity: "FATAL", Message: "no code"}},
		{"\x00", &Error{}},
		{"C\x00\x00", &Error{}},
		{"", nil},
		{"S", nil},
		{"SFATAL", nil},
		{"SFATAL\x00", nil},
		{"SFATAL\x00\x00x", nil},
	} {
		got, err := ParseError([]byte(tt.in))
		if (tt.want == nil) != errors.Is(err, ErrErrorFields) {
			t.Errorf("%q: %v", tt.in, err)
		}
		if tt.want != nil && *got != *tt.want {
			t.Errorf("%q: got %+v", tt.in, got)
		}
	}
}

func TestErrorText(t *testing.T) {
	e := NewError(SeverityFatal, CodeTooManyConnections, "full")
	if got := e.Error(); got != "FATAL: full (SQLSTATE 53300)" {
		t.Error(got)
	}
	if got := NewError("ERROR", "", "m").Error(); got != "ERROR: m" {
		t.Error(got)
	}
}

func TestSendError(t *testing.T) {
	e := NewError(SeverityFatal, CodeTooManyConnections, "full")
	var b bytes.Buffer
	if err := SendError(&b, fmt.Errorf("wrapped: %w", e)); err != nil || !bytes.Equal(b.Bytes(), e.Append(nil)) {
		t.Errorf("sent %q, %v", b.Bytes(), err)
	}
	b.Reset()
	if err := SendError(&b, errors.New("private")); err != nil || b.Len() != 0 {
		t.Errorf("sent %q, %v", b.Bytes(), err)
	}
	if err := SendError(brokenWriter{}, e); err == nil {
		t.Error("a broken pipe is no error")
	}
}

func FuzzErrorFields(f *testing.F) {
	f.Add([]byte("SFATAL\x00VFATAL\x00C28P01\x00Mm\x00Dd\x00Hh\x00\x00"))
	f.Add([]byte("SFATAL\x00\x00"))
	f.Add([]byte("\x00"))
	f.Fuzz(func(t *testing.T, body []byte) {
		e, err := ParseError(body)
		if err != nil {
			return
		}
		again, err := ParseError(e.Append(nil)[HeaderLen:])
		if err != nil || *again != *e {
			t.Fatalf("%+v became %+v, %v", e, again, err)
		}
	})
}

func TestParseNames(t *testing.T) {
	for _, tt := range []struct {
		typ  byte
		body string
		want Names
		err  error
	}{
		{'P', "s1\x00select 1\x00\x00\x00", Names{Kind: 'S', Statement: Span{0, 2}, Tail: 3}, nil},
		{'P', "\x00select 1\x00\x00\x00", Names{Kind: 'S', Tail: 1}, nil},
		{'P', "s1", Names{}, ErrNamesCut},
		{'P', "", Names{}, ErrNamesCut},
		{'B', "p\x00s1\x00\x00\x00", Names{Kind: 'S', Portal: Span{0, 1}, Statement: Span{2, 4}, Tail: 5}, nil},
		{'B', "\x00\x00\x00", Names{Kind: 'S', Statement: Span{1, 1}, Tail: 2}, nil},
		{'B', "p\x00", Names{}, ErrNamesCut},
		{'B', "p", Names{}, ErrNamesCut},
		{'E', "p\x00\x00\x00\x00\x00", Names{Kind: 'P', Portal: Span{0, 1}, Tail: 2}, nil},
		{'E', "p", Names{}, ErrNamesCut},
		{'D', "Ss1\x00", Names{Kind: 'S', Statement: Span{1, 3}, Tail: 4}, nil},
		{'D', "P\x00", Names{Kind: 'P', Portal: Span{1, 1}, Tail: 2}, nil},
		{'C', "Ss1\x00", Names{Kind: 'S', Statement: Span{1, 3}, Tail: 4}, nil},
		{'C', "Xs1\x00", Names{}, ErrNamesKind},
		{'C', "S", Names{}, ErrNamesCut},
		{'D', "", Names{}, ErrNamesCut},
		{'Q', "select 1\x00", Names{}, ErrFrameType},
	} {
		got, err := ParseNames(tt.typ, []byte(tt.body))
		if got != tt.want || !errors.Is(err, tt.err) {
			t.Errorf("%c %q: got %+v, %v", tt.typ, tt.body, got, err)
		}
	}
}

func TestAppendRenamed(t *testing.T) {
	params := strings.Repeat("v", 1000)
	body := []byte("portal\x00old\x00\x00\x00\x00\x01" + params)
	n, err := ParseNames('B', body[:30]) // the front of it is enough
	if err != nil {
		t.Fatal(err)
	}
	got, err := AppendRenamed([]byte("x"), 'B', len(body), body[:30], n, "PGSTEER_12")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, body[30:]...) // as the relay does
	want := append(AppendHeader([]byte("x"), 'B', len(body)-3+10), "portal\x00PGSTEER_12\x00\x00\x00\x00\x01"+params...)
	if !bytes.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	if _, err := AppendRenamed(nil, 'B', math.MaxInt32-4, body[:30], n, "PGSTEER_12"); !errors.Is(err, ErrFrameLength) {
		t.Errorf("overflow: %v", err)
	}
}

func FuzzParseNames(f *testing.F) {
	f.Add(byte('P'), []byte("s1\x00select 1\x00\x00\x00"), "n")
	f.Add(byte('B'), []byte("p\x00s1\x00\x00\x00\x00\x00\x00\x00"), "")
	f.Add(byte('D'), []byte("Ss1\x00"), "name")
	f.Add(byte('C'), []byte("P\x00"), "name")
	f.Add(byte('E'), []byte("p\x00\x00\x00\x00\x00"), "name")
	f.Fuzz(func(t *testing.T, typ byte, body []byte, name string) {
		n, err := ParseNames(typ, body)
		if err != nil {
			return
		}
		if n.Tail > len(body) || n.Tail < 1 || body[n.Tail-1] != 0 ||
			bytes.IndexByte(n.Statement.Of(body), 0) >= 0 || bytes.IndexByte(n.Portal.Of(body), 0) >= 0 {
			t.Fatalf("%q: %+v", body, n)
		}
		if n.Kind != 'S' || strings.IndexByte(name, 0) >= 0 {
			return
		}
		msg, err := AppendRenamed(nil, typ, len(body), body, n, name)
		if err != nil {
			t.Fatal(err)
		}
		gotTyp, length, ok := Header(msg)
		renamed := msg[HeaderLen:]
		if gotTyp != typ || !ok || length != len(renamed) {
			t.Fatalf("header %q %d %v for %d bytes", gotTyp, length, ok, len(renamed))
		}
		m, err := ParseNames(typ, renamed)
		if err != nil || string(m.Statement.Of(renamed)) != name ||
			!bytes.Equal(m.Portal.Of(renamed), n.Portal.Of(body)) || !bytes.Equal(renamed[m.Tail:], body[n.Tail:]) {
			t.Fatalf("%q became %q: %+v, %v", body, renamed, m, err)
		}
		if diff := cmp.Diff(n.Kind, m.Kind); diff != "" {
			t.Fatal(diff)
		}
	})
}
