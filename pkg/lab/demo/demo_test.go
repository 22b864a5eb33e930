package demo

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

// An act that fails does not end the show, and is not forgotten.
func TestPerform(t *testing.T) {
	var out bytes.Buffer
	s := &show{out: &out, began: time.Now()}
	first, second := errors.New("first"), errors.New("second")
	acts := 0
	act := func(err error) func(context.Context) error {
		return func(context.Context) error { acts++; return err }
	}
	err := s.perform(t.Context(), []func(context.Context) error{act(first), act(nil), act(second)})
	if acts != 3 || !errors.Is(err, first) || !errors.Is(err, second) {
		t.Errorf("%d acts, %v", acts, err)
	}
	if !strings.Contains(out.String(), "DID NOT WORK: first") {
		t.Errorf("printed %q", &out)
	}
	ctx, cancel := context.WithCancel(t.Context())
	interrupted := func(context.Context) error { cancel(); return first }
	if err := s.perform(ctx, []func(context.Context) error{interrupted, act(nil)}); err != context.Canceled || acts != 3 {
		t.Errorf("after an interruption: %v, %d acts", err, acts)
	}
}

func TestTable(t *testing.T) {
	var out bytes.Buffer
	s := &show{out: &out, began: time.Now()}
	s.add("a", "%d ms", 395)
	s.add("longer", "agree")
	s.table()
	want := `
+--------+--------+
| a      | 395 ms |
| longer | agree  |
+--------+--------+
everything worked, 0 s in all
`
	if out.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", &out, want)
	}
	out.Reset()
	s.fail(errors.New("x"))
	s.table()
	if !strings.Contains(out.String(), "1 thing did not work") {
		t.Errorf("got:\n%s", &out)
	}
}
