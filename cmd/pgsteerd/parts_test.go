package main

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
)

// A journal is a list of words that goroutines write.
type journal struct {
	mu    sync.Mutex
	words []string
}

func (j *journal) add(word string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.words = append(j.words, word)
}

func (j *journal) part(name string, err error) part {
	return part{name, func(ctx context.Context) error {
		<-ctx.Done()
		j.add(name)
		return err
	}}
}

func TestRunPartsOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- runParts(ctx, []part{j.part("router", nil)}, []part{j.part("base", nil)})
		}()
		synctest.Wait()
		if len(j.words) > 0 {
			t.Fatalf("ended before the context: %v", j.words)
		}
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if want := []string{"router", "base"}; !slices.Equal(j.words, want) {
			t.Errorf("stopped in the order %v, want %v", j.words, want)
		}
	})
}

// TestRunPartsFailure checks that one part's failure stops all others and is
// the result, on whichever level it happens.
func TestRunPartsFailure(t *testing.T) {
	odd := errors.New("odd")
	tests := []struct {
		name string
		bad  part
		want string
	}{
		{"error", part{"bad", func(context.Context) error { return odd }}, "running bad: odd"},
		{"unexpected end", part{"bad", func(context.Context) error { return nil }}, "running bad: ended unexpectedly"},
		{"someone else's cancellation", part{"bad", func(context.Context) error { return context.Canceled }}, "running bad: context canceled"},
	}
	for _, tt := range tests {
		for _, level := range []string{"upper", "lower"} {
			t.Run(tt.name+" in "+level, func(t *testing.T) {
				var j journal
				upper, lower := []part{j.part("router", nil)}, []part{j.part("base", nil)}
				if level == "upper" {
					upper = append(upper, tt.bad)
				} else {
					lower = append(lower, tt.bad)
				}
				err := runParts(t.Context(), upper, lower)
				if err == nil || err.Error() != tt.want {
					t.Errorf("got %v, want %s", err, tt.want)
				}
				slices.Sort(j.words)
				if want := []string{"base", "router"}; !slices.Equal(j.words, want) {
					t.Errorf("stopped %v, want %v", j.words, want)
				}
			})
		}
	}
}

// TestRunPartsErrorAtStop checks that a failure to stop is not lost, while a
// part that reports the cancellation itself did nothing wrong.
func TestRunPartsErrorAtStop(t *testing.T) {
	for want, err := range map[string]error{"": context.Canceled, "running router: odd": errors.New("odd")} {
		var j journal
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		got := ""
		if err := runParts(ctx, []part{j.part("router", err)}, []part{j.part("base", nil)}); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
