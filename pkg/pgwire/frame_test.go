package pgwire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
)

func TestHeader(t *testing.T) {
	for _, tt := range []struct {
		name    string
		in      []byte
		typ     byte
		bodyLen int
		ok      bool
	}{
		{"empty", nil, 0, 0, false},
		{"four bytes", []byte{'Q', 0, 0, 0}, 0, 0, false},
		{"no body", []byte{'S', 0, 0, 0, 4}, 'S', 0, true},
		{"one byte", []byte{'Z', 0, 0, 0, 5, 'I'}, 'Z', 1, true},
		{"longest", []byte{'D', 0x7f, 0xff, 0xff, 0xff}, 'D', math.MaxInt32 - 4, true},
		{"length 0", []byte{'Q', 0, 0, 0, 0}, 'Q', -1, true},
		{"length 3", []byte{'Q', 0, 0, 0, 3}, 'Q', -1, true},
		{"2^31", []byte{'Q', 0x80, 0, 0, 0}, 'Q', -1, true},
		{"2^32-1", []byte{'Q', 0xff, 0xff, 0xff, 0xff}, 'Q', -1, true},
	} {
		typ, n, ok := Header(tt.in)
		if typ != tt.typ || n != tt.bodyLen || ok != tt.ok {
			t.Errorf("%s: got %q, %d, %v", tt.name, typ, n, ok)
		}
	}
}

func TestHeaderDoesNotAllocate(t *testing.T) {
	b := AppendReadyForQuery(nil, TxIdle)
	parse := append([]byte("name\x00"), "select 1\x00\x00\x00"...)
	if n := testing.AllocsPerRun(100, func() {
		typ, length, _ := Header(b)
		if err := CheckFrontend('S', length-1); err != nil || typ != 'Z' {
			t.Error(err)
		}
		if _, err := ParseNames(MsgParse, parse); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestCheckFrontend(t *testing.T) {
	for _, tt := range []struct {
		typ     byte
		bodyLen int
		want    error
	}{
		{'Q', 0, nil},
		{'Q', MaxLargeLen, nil},
		{'Q', MaxLargeLen + 1, ErrFrameLength},
		{'Q', -1, ErrFrameLength},
		{'P', MaxSmallLen + 1, nil},
		{'S', MaxSmallLen, nil},
		{'S', MaxSmallLen + 1, ErrFrameLength},
		{'X', -1, ErrFrameLength},
		{'p', 10, ErrFrameType}, // only while logging in
		{0, 0, ErrFrameType},
		{'G', 0, ErrFrameType}, // HTTP
	} {
		err := CheckFrontend(tt.typ, tt.bodyLen)
		if !errors.Is(err, tt.want) {
			t.Errorf("%q %d: got %v, want %v", tt.typ, tt.bodyLen, err, tt.want)
		}
		if e, ok := errors.AsType[*Error](err); tt.want != nil && (!ok || e.Code != CodeProtocolViolation || e.Severity != SeverityFatal) {
			t.Errorf("%q %d: %v is not FATAL 08P01", tt.typ, tt.bodyLen, err)
		}
	}
}

func TestReadFrame(t *testing.T) {
	long := strings.Repeat("x", 5000)
	in := AppendQuery(AppendReadyForQuery(nil, TxIdle), long)
	// A byte at a time, and as much as is there: neither may read ahead.
	for name, wrap := range map[string]func(io.Reader) io.Reader{
		"bytewise": iotest.OneByteReader,
		"at once":  func(r io.Reader) io.Reader { return r },
		"with EOF": iotest.DataErrReader,
	} {
		r := wrap(bytes.NewReader(in))
		typ, body, err := ReadFrame(r, 100)
		if typ != 'Z' || string(body) != "I" || err != nil {
			t.Fatalf("%s: got %q %q %v", name, typ, body, err)
		}
		typ, body, err = ReadFrame(r, 5001)
		if typ != 'Q' || string(body) != long+"\x00" || err != nil {
			t.Fatalf("%s: got %q of %d bytes, %v", name, typ, len(body), err)
		}
		if _, _, err = ReadFrame(r, 100); err != io.EOF {
			t.Fatalf("%s: got %v at the end", name, err)
		}
	}
}

func TestReadFrameRefuses(t *testing.T) {
	for _, tt := range []struct {
		in   []byte
		max  int
		want error
	}{
		{[]byte{'p', 0, 0, 0, 6, 1, 2}, 1, ErrFrameLength},
		{[]byte{'p', 0xff, 0xff, 0xff, 0xff}, math.MaxInt32, ErrFrameLength},
		{[]byte{'p', 0, 0, 0, 0}, 10, ErrFrameLength},
		{[]byte{'p', 0}, 10, io.ErrUnexpectedEOF},
		{[]byte{'p', 0, 0, 0, 6, 1}, 10, io.ErrUnexpectedEOF},
		{[]byte{'p', 0, 0, 0, 6}, 10, io.ErrUnexpectedEOF},
		{nil, 10, io.EOF},
	} {
		if _, body, err := ReadFrame(bytes.NewReader(tt.in), tt.max); !errors.Is(err, tt.want) || body != nil {
			t.Errorf("%v: got %v, want %v", tt.in, err, tt.want)
		}
	}
}

// TestReadFrameMemory: an announced gigabyte that does not come costs nothing.
func TestReadFrameMemory(t *testing.T) {
	head := AppendHeader(nil, 'p', MaxLargeLen)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 100 {
		_, _, err := ReadFrame(io.MultiReader(bytes.NewReader(head), strings.NewReader("x")), MaxLargeLen)
		if err != io.ErrUnexpectedEOF {
			t.Fatal(err)
		}
	}
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 1<<20 {
		t.Errorf("100 cut messages allocated %d bytes", used)
	}
}

func FuzzFrame(f *testing.F) {
	f.Add(AppendQuery(nil, "select 1"), 100)
	f.Add([]byte{'p', 0xff, 0xff, 0xff, 0xff}, 100)
	f.Add([]byte{'p', 0, 0, 0, 0}, 0)
	f.Fuzz(func(t *testing.T, in []byte, limit int) {
		limit = min(limit, MaxAuthLen)
		r := bytes.NewReader(in)
		typ, body, err := ReadFrame(r, limit)
		if err != nil {
			return
		}
		used := len(in) - r.Len()
		if len(body) > limit || used != HeaderLen+len(body) {
			t.Fatalf("read %d bytes for a body of %d, limit %d", used, len(body), limit)
		}
		again := append(AppendHeader(nil, typ, len(body)), body...)
		if !bytes.Equal(again, in[:used]) {
			t.Fatalf("%x became %x", in[:used], again)
		}
		if binary.BigEndian.Uint32(in[1:]) != uint32(len(body)+4) {
			t.Fatal("length differs")
		}
	})
}
