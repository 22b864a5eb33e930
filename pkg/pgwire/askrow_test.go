package pgwire

import (
	"bytes"
	"context"
	"errors"
	"net"
	"slices"
	"testing"
	"time"
)

// TestAskRow has a server answer a question in right and wrong ways.
func TestAskRow(t *testing.T) {
	row := func(fields ...[]byte) []byte {
		body := []byte{0, byte(len(fields))}
		for _, f := range fields {
			body = append(append(body, 0, 0, 0, byte(len(f))), f...)
		}
		return append(AppendHeader(nil, MsgDataRow, len(body)), body...)
	}
	ready := AppendReadyForQuery(nil, TxIdle)
	raw := func(body string) []byte { return append(AppendHeader(nil, MsgDataRow, len(body)), body...) }
	null := raw("\x00\x02\xff\xff\xff\xff\x00\x00\x00\x01x")
	for _, tt := range []struct {
		name   string
		answer []byte
		want   []string
		err    error // nil: want is right; errAny: any
		code   string
	}{
		{"a row", slices.Concat(row([]byte("t"), []byte("off")), AppendCommandComplete(nil, "SELECT 1"), ready), []string{"t", "off"}, nil, ""},
		{"null", slices.Concat(null, ready), []string{"", "x"}, nil, ""},
		{"no row", ready, nil, ErrServerProtocol, ""},
		{"two rows", slices.Concat(row(), row(), ready), nil, ErrServerProtocol, ""},
		{"error", slices.Concat(AppendError(nil, "ERROR", "42883", "no"), ready), nil, nil, "42883"},
		{"broken error", slices.Concat(AppendHeader(nil, MsgErrorResponse, 1), []byte("S"), ready), nil, errAny, ""},
		{"short row", slices.Concat(raw("\x00"), ready), nil, ErrServerProtocol, ""},
		{"row without a length", slices.Concat(raw("\x00\x01\x00"), ready), nil, ErrServerProtocol, ""},
		{"row cut", slices.Concat(raw("\x00\x01\x00\x00\x00\x05ab"), ready), nil, ErrServerProtocol, ""},
		{"row with a rest", slices.Concat(raw("\x00\x00x"), ready), nil, ErrServerProtocol, ""},
		{"end", nil, nil, errAny, ""},
	} {
		ours, theirs := net.Pipe()
		go func() {
			defer theirs.Close()
			typ, body, err := ReadFrame(theirs, MaxLoginLen)
			if err != nil || typ != MsgQuery || !bytes.Equal(body, []byte("select 1\x00")) {
				t.Errorf("%s: the server got %q, %v", tt.name, body, err)
			}
			theirs.Write(tt.answer) // the other end may have gone
		}()
		got, err := AskRow(t.Context(), ours, "select 1")
		e, _ := errors.AsType[*Error](err)
		switch {
		case tt.code != "":
			if e == nil || e.Code != tt.code {
				t.Errorf("%s: %v", tt.name, err)
			}
		case tt.err == errAny && err == nil, tt.err != errAny && !errors.Is(err, tt.err), err == nil && !slices.Equal(got, tt.want):
			t.Errorf("%s: %q, %v", tt.name, got, err)
		}
		ours.Close()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	ours, theirs := net.Pipe()
	defer theirs.Close()
	if _, err := AskRow(ctx, ours, "select 1"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a server that does not read: %v", err)
	}
}

var errAny = errors.New("any")
