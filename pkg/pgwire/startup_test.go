package pgwire

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgproto3/v2"
)

// packet frames a startup packet by hand, independent of our encoder.
func packet(code uint32, rest string) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(8+len(rest)))
	return append(binary.BigEndian.AppendUint32(b, code), rest...)
}

const (
	v30 = 3 << 16
	v32 = 3<<16 | 2
)

func TestReadStartup(t *testing.T) {
	long := strings.Repeat("n", 100)
	for _, tt := range []struct {
		name string
		in   []byte
		want Startup
	}{
		{"minimal", packet(v30, "user\x00u\x00\x00"),
			Startup{Asked: v30, Protocol: v30, User: "u", Database: "u"}},
		{"database", packet(v30, "user\x00u\x00database\x00d\x00\x00"),
			Startup{Asked: v30, Protocol: v30, User: "u", Database: "d"}},
		{"empty database", packet(v30, "database\x00\x00user\x00u\x00\x00"),
			Startup{Asked: v30, Protocol: v30, User: "u", Database: "u"}},
		{"params", packet(v30, "user\x00u\x00application_name\x00\x00DateStyle\x00ISO\x00options\x00-c a=b\x00\x00"),
			Startup{Asked: v30, Protocol: v30, User: "u", Database: "u",
				Params: []Param{{"application_name", ""}, {"DateStyle", "ISO"}, {"options", "-c a=b"}}}},
		{"last one wins", packet(v30, "user\x00a\x00timezone\x00x\x00user\x00u\x00b\x001\x00TimeZone\x00y\x00\x00"),
			Startup{Asked: v30, Protocol: v30, User: "u", Database: "u",
				Params: []Param{{"timezone", "y"}, {"b", "1"}}}},
		{"protocol's own names are exact", packet(v30, "user\x00u\x00Options\x00x\x00options\x00y\x00\x00"),
			Startup{Asked: v30, Protocol: v30, User: "u", Database: "u",
				Params: []Param{{"Options", "x"}, {"options", "y"}}}},
		{"long names", packet(v30, "user\x00"+long+"\x00\x00"),
			Startup{Asked: v30, Protocol: v30, User: long[:63], Database: long[:63]}},
		{"3.2", packet(v32, "user\x00u\x00\x00"),
			Startup{Asked: v32, Protocol: v32, User: "u", Database: "u"}},
		{"3.1 was never given out", packet(3<<16|1, "user\x00u\x00\x00"),
			Startup{Asked: 3<<16 | 1, Protocol: v30, User: "u", Database: "u"}},
		{"grease of libpq 19", packet(3<<16|9999, "user\x00u\x00_pq_.test_protocol_negotiation\x00\x00\x00"),
			Startup{Asked: 3<<16 | 9999, Protocol: v32, User: "u", Database: "u",
				Options: []string{"_pq_.test_protocol_negotiation"}}},
		{"SSL", packet(80877103, ""), Startup{Kind: KindSSL}},
		{"GSSENC", packet(80877104, ""), Startup{Kind: KindGSSENC}},
		{"cancel", packet(80877102, "\x00\x00\x00\x07abcd"),
			Startup{Kind: KindCancel, Key: CancelKey{7, "abcd"}}},
		{"long cancel", packet(80877102, "\x00\x00\x00\x07"+strings.Repeat("k", 256)),
			Startup{Kind: KindCancel, Key: CancelKey{7, strings.Repeat("k", 256)}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := bytes.NewReader(append(tt.in, "next"...))
			got, err := ReadStartup(iotest.OneByteReader(r), 0)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if rest, _ := io.ReadAll(r); string(rest) != "next" {
				t.Errorf("%q is left of the bytes behind", rest)
			}
		})
	}
}

func TestReadStartupRefuses(t *testing.T) {
	many := "user\x00u\x00" + strings.Repeat("a\x00\x00", 3000) + "\x00"
	for _, tt := range []struct {
		name  string
		in    []byte
		limit int
		code  string
		cause error
	}{
		{"length 0", []byte{0, 0, 0, 0, 0, 3, 0, 0}, 0, "08P01", ErrStartup},
		{"length 7", []byte{0, 0, 0, 7, 0, 3, 0}, 0, "08P01", ErrStartup},
		{"length 10001", []byte{0, 0, 0x27, 0x11}, 0, "08P01", ErrStartup},
		{"length 2^31-1", []byte{0x7f, 0xff, 0xff, 0xff}, 0, "08P01", ErrStartup},
		{"length 2^32-1", []byte{0xff, 0xff, 0xff, 0xff}, 0, "08P01", ErrStartup},
		{"above the limit given", packet(v30, many), 1000, "08P01", ErrStartup},
		{"limit beyond the maximum", []byte{0, 0, 0x27, 0x11}, 1 << 30, "08P01", ErrStartup},
		{"HTTP", []byte("GET / HTTP/1.1\r\n\r\n"), 0, "08P01", ErrStartup},
		{"ssh", []byte("SSH-2.0-OpenSSH_9.2p1\r\n"), 0, "08P01", ErrStartup},
		{"ClientHello", []byte{0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc}, 0, "08P01", ErrDirectTLS},
		{"no final terminator", packet(v30, "user\x00u\x00"), 0, "08P01", ErrStartup},
		{"value cut", packet(v30, "user\x00u"), 0, "08P01", ErrStartup},
		{"name cut", packet(v30, "user"), 0, "08P01", ErrStartup},
		{"bytes behind the terminator", packet(v30, "user\x00u\x00\x00x"), 0, "08P01", ErrStartup},
		{"nothing at all", packet(v30, ""), 0, "08P01", ErrStartup},
		{"no user", packet(v30, "database\x00d\x00\x00"), 0, "28000", ErrStartup},
		{"empty user", packet(v30, "user\x00\x00\x00"), 0, "28000", ErrStartup},
		{"protocol 2", packet(2<<16, "user\x00u\x00\x00"), 0, "0A000", ErrStartup},
		{"protocol 4", packet(4<<16, "user\x00u\x00\x00"), 0, "0A000", ErrStartup},
		{"protocol 0", packet(0, ""), 0, "0A000", ErrStartup},
		{"SSL with a body", packet(80877103, "x"), 0, "08P01", ErrStartup},
		{"GSSENC with a body", packet(80877104, "\x00\x00"), 0, "08P01", ErrStartup},
		{"cancel without key", packet(80877102, ""), 0, "08P01", ErrStartup},
		{"cancel with a short secret", packet(80877102, "\x00\x00\x00\x07abc"), 0, "08P01", ErrStartup},
		{"cancel with a long secret", packet(80877102, "\x00\x00\x00\x07"+strings.Repeat("k", 257)), 0, "08P01", ErrStartup},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ReadStartup(bytes.NewReader(tt.in), tt.limit)
			e, ok := errors.AsType[*Error](err)
			if !ok || e.Code != tt.code || e.Severity != SeverityFatal || !errors.Is(err, tt.cause) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestReadStartupLeaves: a client that goes away is not a client in error.
func TestReadStartupLeaves(t *testing.T) {
	full := packet(v30, "user\x00u\x00\x00")
	for n := range full {
		want := io.ErrUnexpectedEOF
		if n == 0 {
			want = io.EOF
		}
		if _, err := ReadStartup(bytes.NewReader(full[:n]), 0); err != want {
			t.Errorf("cut at %d: got %v, want %v", n, err, want)
		}
	}
}

// duplex joins what a client sends to a place for what it gets.
type duplex struct {
	io.Reader
	bytes.Buffer
}

func (d *duplex) Read(b []byte) (int, error) { return d.Reader.Read(b) }

func TestAcceptStartup(t *testing.T) {
	ssl, gss := packet(80877103, ""), packet(80877104, "")
	login := packet(v30, "user\x00u\x00\x00")
	join := func(p ...[]byte) []byte { return bytes.Join(p, nil) }
	for _, tt := range []struct {
		name  string
		in    []byte
		sent  string
		kind  StartupKind
		cause error
	}{
		{"plain", login, "", KindStartup, nil},
		{"SSL", join(ssl, login), "N", KindStartup, nil},
		{"GSS", join(gss, login), "N", KindStartup, nil},
		{"GSS then SSL", join(gss, ssl, login), "NN", KindStartup, nil},
		{"SSL then GSS", join(ssl, gss, login), "NN", KindStartup, nil},
		{"SSL then cancel", join(ssl, packet(80877102, "\x00\x00\x00\x07abcd")), "N", KindCancel, nil},
		{"SSL twice", join(ssl, ssl, login), "N", 0, ErrStartup},
		{"GSS twice", join(gss, gss, login), "N", 0, ErrStartup},
		{"SSL, GSS, SSL", join(ssl, gss, ssl), "NN", 0, ErrStartup},
		{"SSL for ever", bytes.Repeat(ssl, 1000), "N", 0, ErrStartup},
		{"SSL and gone", ssl, "N", 0, io.EOF},
		{"TLS in spite of the answer", join(ssl, []byte{0x16, 3, 1, 0, 5}), "N", 0, ErrDirectTLS},
		{"negotiated", packet(3<<16|5, "user\x00u\x00_pq_.a\x00\x00_pq_.b\x001\x00\x00"),
			"v\x00\x00\x00\x1a\x00\x03\x00\x02\x00\x00\x00\x02_pq_.a\x00_pq_.b\x00", KindStartup, nil},
		{"3.2 needs no negotiation", packet(v32, "user\x00u\x00\x00"), "", KindStartup, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := &duplex{Reader: bytes.NewReader(tt.in)}
			s, err := AcceptStartup(d, 0)
			if !errors.Is(err, tt.cause) || s.Kind != tt.kind {
				t.Errorf("got %+v, %v", s, err)
			}
			if got := d.Buffer.String(); got != tt.sent {
				t.Errorf("sent %q, want %q", got, tt.sent)
			}
		})
	}
}

// TestAcceptStartupInjected: a reader with a buffer reveals bytes that were
// sent before the answer.
func TestAcceptStartupInjected(t *testing.T) {
	in := append(packet(80877103, ""), packet(v30, "user\x00evil\x00\x00")...)
	var out bytes.Buffer
	rw := struct {
		*bufio.Reader
		io.Writer
	}{bufio.NewReader(bytes.NewReader(in)), &out}
	_, err := AcceptStartup(rw, 0)
	if !errors.Is(err, ErrUnencryptedData) || out.Len() != 0 {
		t.Errorf("got %v, sent %q", err, out.Bytes())
	}
}

type brokenWriter struct{ io.Reader }

func (brokenWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestAcceptStartupBrokenPipe(t *testing.T) {
	for _, in := range [][]byte{packet(80877103, ""), packet(v30, "user\x00u\x00_pq_.x\x00\x00\x00")} {
		if _, err := AcceptStartup(brokenWriter{bytes.NewReader(in)}, 0); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("got %v", err)
		}
	}
}

func TestStartupGet(t *testing.T) {
	s := Startup{Params: []Param{{"TimeZone", "UTC"}, {"options", "o"}}}
	for name, want := range map[string]string{"timezone": "UTC", "TIMEZONE": "UTC", "options": "o", "Options": "", "x": ""} {
		if got, ok := s.Get(name); got != want || ok != (want != "") {
			t.Errorf("%s: got %q, %v", name, got, ok)
		}
	}
}

// TestAppendStartup: another implementation understands ours.
func TestAppendStartup(t *testing.T) {
	b := AppendStartup([]byte("front"), Protocol30, "u", "d", []Param{{"a", "1"}, {"b", ""}})
	b = b[len("front"):]
	var m pgproto3.StartupMessage
	if err := m.Decode(b[4:]); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"user": "u", "database": "d", "a": "1", "b": ""}
	if diff := cmp.Diff(want, m.Parameters); diff != "" || int(binary.BigEndian.Uint32(b)) != len(b) {
		t.Errorf("length %x (-want +got):\n%s", b[:4], diff)
	}
}

func FuzzStartup(f *testing.F) {
	f.Add(packet(v30, "user\x00u\x00database\x00d\x00options\x00-c x=y\x00\x00"))
	f.Add(packet(3<<16|9999, "user\x00u\x00_pq_.x\x00\x00\x00"))
	f.Add(append(packet(80877103, ""), packet(v32, "user\x00u\x00\x00")...))
	f.Add(packet(80877102, "\x00\x00\x00\x07abcd"))
	f.Add([]byte{0x16, 3, 1, 2, 0})
	f.Add([]byte("GET / HTTP/1.1\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		d := &duplex{Reader: bytes.NewReader(in)}
		s, err := AcceptStartup(d, 0)
		if err != nil {
			if _, ours := errors.AsType[*Error](err); !ours && err != io.EOF && err != io.ErrUnexpectedEOF {
				t.Fatalf("strange error: %v", err)
			}
			return
		}
		switch s.Kind {
		case KindCancel:
			var m pgproto3.CancelRequest
			b := AppendCancelRequest(nil, s.Key)
			if len(s.Key.Secret) == 4 && m.Decode(b[4:]) != nil {
				t.Fatalf("%x is no cancel request", b)
			}
			return
		case KindStartup:
		default:
			t.Fatalf("accepted %+v", s)
		}
		if s.User == "" || s.Database == "" || len(s.User) > 63 || len(s.Database) > 63 {
			t.Fatalf("accepted %+v", s)
		}
		// What was understood can be said, and is understood the same.
		again, err := ReadStartup(bytes.NewReader(AppendStartup(nil, s.Protocol, s.User, s.Database, s.Params)), 0)
		if err != nil && len(in) < 9900 {
			t.Fatal(err)
		}
		s.Asked, s.Options = s.Protocol, nil
		if diff := cmp.Diff(s, again); err == nil && diff != "" {
			t.Fatalf("(-first +again):\n%s", diff)
		}
	})
}
