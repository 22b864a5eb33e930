package health

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

var target = netip.MustParseAddrPort("192.168.1.5:6432")

// script is a check that gives these results in turn, the last one for ever.
type script struct {
	mu      sync.Mutex
	results []error
	calls   []time.Time
}

func (s *script) check(context.Context, netip.AddrPort) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, time.Now())
	r := s.results[0]
	if len(s.results) > 1 {
		s.results = s.results[1:]
	}
	return r
}

func newTarget(backend string, c Check) Target {
	return Target{
		Service: "postgres", Backend: backend, Addr: target, Check: c, CheckName: "script",
		Interval: 2 * time.Second, FastInterval: 500 * time.Millisecond, Timeout: time.Second, Fall: 3, Rise: 2,
	}
}

// run starts a checker inside the bubble and returns how to stop it.
func run(t *testing.T, targets ...Target) (*Checker, func()) {
	t.Helper()
	c := New(targets, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	return c, func() {
		t.Helper()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run returned %v", err)
		}
	}
}

// drain takes the transitions, for tests that look elsewhere.
func drain(t *testing.T, c *Checker) {
	go func() {
		for {
			select {
			case <-t.Context().Done():
				return
			case <-c.Transitions():
			}
		}
	}()
}

func TestTransitionsFollowTheResults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refused := errors.New("connection refused")
		s := &script{results: []error{nil, refused, refused, refused, nil, nil}}
		start := time.Now()
		c, stop := run(t, newTarget("pooler1", s.check))
		defer stop()
		for _, want := range []struct {
			up     bool
			reason string
			after  time.Duration
		}{{true, "ok", 0}, {false, "connection refused", 6 * time.Second}, {true, "ok", 10 * time.Second}} {
			got := <-c.Transitions()
			if got.Up != want.up || got.Reason != want.reason || got.At.Sub(start) != want.after || got.Backend != "pooler1" {
				t.Errorf("got %+v after %v, want %+v", got, got.At.Sub(start), want)
			}
		}
		synctest.Wait()
		s0 := c.Snapshot()[0]
		if !s0.Up || !s0.Known || s0.Checks != 6 || s0.Failures != 3 || s0.LastResult != "ok" {
			t.Errorf("snapshot %+v", s0)
		}
	})
}

func TestTargetsAreCheckedApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refused := errors.New("no")
		var scripts []*script
		var targets []Target
		for _, name := range []string{"a", "b", "c", "d"} {
			s := &script{results: []error{refused}}
			scripts = append(scripts, s)
			targets = append(targets, newTarget(name, s.check))
		}
		c, stop := run(t, targets...)
		drain(t, c)
		time.Sleep(7 * time.Second) // of the bubble's clock
		stop()
		seen := make(map[time.Time]bool)
		for i, s := range scripts {
			if len(s.calls) != 4 {
				t.Errorf("target %d was checked %d times", i, len(s.calls))
			}
			for _, at := range s.calls {
				if seen[at] {
					t.Errorf("two checks at %v", at)
				}
				seen[at] = true
			}
		}
	})
}

func TestHangingCheckIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := func(ctx context.Context, _ netip.AddrPort) error {
			<-ctx.Done()
			return describe(ctx, ctx.Err())
		}
		c, stop := run(t, newTarget("pooler1", hang))
		drain(t, c)
		time.Sleep(3500 * time.Millisecond)
		synctest.Wait()
		s := c.Snapshot()[0]
		if s.Checks != 2 || s.LastResult != "no answer within 1s" || s.LastDuration != time.Second {
			t.Errorf("snapshot %+v", s)
		}
		stop()
		if n := c.Snapshot()[0].Checks; n != 2 {
			t.Errorf("the check that we broke off ourselves was counted: %d", n)
		}
	})
}

func TestFirstFailureTellsWhyItIsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{results: []error{errors.New("connection refused")}}
		c, stop := run(t, newTarget("pooler1", s.check))
		defer stop()
		if got := <-c.Transitions(); got.Up || got.Reason != "connection refused" {
			t.Errorf("got %+v", got)
		}
		time.Sleep(time.Minute) // of the bubble's clock
		synctest.Wait()
		select {
		case got := <-c.Transitions():
			t.Errorf("later failures are no news: %+v", got)
		default:
		}
	})
}

// Nobody takes the transition: Run must end all the same.
func TestRunEndsWithATransitionPending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{results: []error{nil}}
		_, stop := run(t, newTarget("pooler1", s.check))
		synctest.Wait()
		stop()
	})
}

// Any answer, a refusal too, says that this host is not cut off; silence and
// errors of its own do not.
func TestHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{results: []error{errNoAnswer, unreachable{syscall.EHOSTUNREACH}, errors.New("connection refused"), errNoAnswer, nil, unreachable{syscall.ENETUNREACH}}}
		c, stop := run(t, newTarget("pooler1", s.check))
		defer stop()
		drain(t, c)
		for i, want := range []time.Duration{-1, -1, 0, 2 * time.Second, 0, 2 * time.Second} {
			synctest.Wait()
			ago, ok := c.Heard()
			if ok != (want >= 0) || ok && ago != want {
				t.Errorf("after check %d: heard %v ago, %v; want %v", i, ago, ok, want)
			}
			time.Sleep(2 * time.Second)
		}
	})
}
