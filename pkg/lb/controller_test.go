package lb

import (
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"time"
)

type fakeDatapath struct {
	mu       sync.Mutex // for tests in which Run is going
	services []Service
	states   map[string]State
	told     map[string]Backend
	resets   []string
	err      error
}

func (f *fakeDatapath) SetServices(s []Service) error {
	if f.err == nil {
		f.services = s
	}
	return f.err
}

func (f *fakeDatapath) SetBackend(service string, b Backend) error {
	if f.err == nil {
		f.states[service+"/"+b.Name] = b.State
		f.told[service+"/"+b.Name] = b
	}
	return f.err
}

func (f *fakeDatapath) ResetFlows(service, backend string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.resets = append(f.resets, service+"/"+backend)
	}
	return f.err
}

// fail makes every call fail with err, or none with nil.
func (f *fakeDatapath) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func service(addrs ...string) Service {
	s := Service{Name: "postgres", Addr: netip.MustParseAddrPort("192.168.1.100:5432")}
	for i, a := range addrs {
		s.Backends = append(s.Backends, Backend{Name: string(rune('a' + i)), Addr: netip.MustParseAddrPort(a), Weight: 1})
	}
	return s
}

func newController(t *testing.T) (*Controller, *fakeDatapath, *time.Time) {
	t.Helper()
	dp := &fakeDatapath{states: make(map[string]State), told: make(map[string]Backend)}
	c := NewController(dp, slog.New(slog.DiscardHandler))
	now := time.Unix(1000, 0)
	c.now = func() time.Time { return now }
	if err := c.SetServices([]Service{service("192.168.1.5:6432", "192.168.1.5:6433")}); err != nil {
		t.Fatal(err)
	}
	return c, dp, &now
}

func TestBackendsStartDown(t *testing.T) {
	c, dp, _ := newController(t)
	for _, b := range c.Snapshot() {
		if b.State != Down || b.Transitions != 0 {
			t.Errorf("%s starts %s with %d transitions", b.Name, b.State, b.Transitions)
		}
	}
	if got := dp.services[0].Backends[0].State; got != Down {
		t.Errorf("datapath was told %s", got)
	}
}

func TestHealthChangesStateOnceAndCountsDowntime(t *testing.T) {
	c, dp, now := newController(t)
	step := func(up bool, after time.Duration) {
		t.Helper()
		*now = now.Add(after)
		if err := c.SetHealth("postgres", "a", up, "test"); err != nil {
			t.Fatal(err)
		}
	}
	step(true, time.Second)    // 1 s down at start
	step(true, time.Second)    // no change
	step(false, 5*time.Second) // down again
	step(true, 3*time.Second)
	step(false, time.Minute)
	*now = now.Add(2 * time.Second)
	got := c.Snapshot()[0]
	if got.State != Down || got.Transitions != 2 || got.Downtime != 6*time.Second {
		t.Errorf("got %s, %d transitions, down for %s", got.State, got.Transitions, got.Downtime)
	}
	if dp.states["postgres/a"] != Down {
		t.Error("the datapath was not told")
	}
}

func TestFirstFailureGivesTheReason(t *testing.T) {
	c, dp, _ := newController(t)
	if err := c.SetHealth("postgres", "a", false, "connection refused"); err != nil {
		t.Fatal(err)
	}
	if got := c.Snapshot()[0]; got.Reason != "connection refused" || got.Transitions != 0 || len(dp.states) != 0 {
		t.Errorf("got %+v, datapath %v", got, dp.states)
	}
}

func TestFlowsOfADeadBackendAreResetIfWanted(t *testing.T) {
	c, dp, _ := newController(t)
	for _, reset := range []bool{false, true} {
		s := service("192.168.1.5:6432", "192.168.1.5:6433")
		s.ResetOnDown = reset
		if err := c.SetServices([]Service{s}); err != nil {
			t.Fatal(err)
		}
		for _, up := range []bool{false, true, true, false, false} {
			if err := c.SetHealth("postgres", "a", up, "test"); err != nil {
				t.Fatal(err)
			}
		}
		if want := map[bool]int{false: 0, true: 1}[reset]; len(dp.resets) != want {
			t.Errorf("with ResetOnDown %v: %q", reset, dp.resets)
		}
	}
}

func TestReconfigurationKeepsStates(t *testing.T) {
	c, dp, _ := newController(t)
	if err := c.SetHealth("postgres", "b", true, "ok"); err != nil {
		t.Fatal(err)
	}
	// a changes its address and so is a new backend; b stays.
	if err := c.SetServices([]Service{service("192.168.1.6:6432", "192.168.1.5:6433")}); err != nil {
		t.Fatal(err)
	}
	if a, b := dp.services[0].Backends[0].State, dp.services[0].Backends[1].State; a != Down || b != Up {
		t.Errorf("states after reconfiguration: a %s, b %s", a, b)
	}
}

func TestRefusalByTheDatapathChangesNothing(t *testing.T) {
	c, dp, _ := newController(t)
	dp.err = errors.New("refused")
	if err := c.SetHealth("postgres", "a", true, "ok"); !errors.Is(err, dp.err) {
		t.Fatalf("got %v", err)
	}
	if err := c.SetServices(nil); !errors.Is(err, dp.err) {
		t.Fatalf("got %v", err)
	}
	if got := c.Snapshot(); len(got) != 2 || got[0].State != Down {
		t.Errorf("state after refusals: %+v", got)
	}
	dp.err = nil
	if err := c.SetHealth("postgres", "nobody", true, ""); !errors.Is(err, ErrUnknownBackend) {
		t.Errorf("got %v", err)
	}
}
