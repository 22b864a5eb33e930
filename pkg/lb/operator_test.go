package lb

import (
	"errors"
	"net/netip"
	"testing"
	"time"
)

func ptr[T any](v T) *T { return &v }

// set changes the admin state of backend a and fails the test if it cannot.
func set(t *testing.T, c *Controller, change Change) BackendStatus {
	t.Helper()
	s, err := c.Change("postgres", "a", change, "uid 7, pid 8")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func healthy(t *testing.T, c *Controller, backend string, up bool, reason string) {
	t.Helper()
	if err := c.SetHealth("postgres", backend, up, reason); err != nil {
		t.Fatal(err)
	}
}

// TestEffectiveState goes through all that an operator and the checks can say,
// in both orders, and looks at what the datapath was told last.
func TestEffectiveState(t *testing.T) {
	for _, tt := range []struct {
		admin AdminState
		up    bool
		want  State
	}{
		{AdminReady, true, Up}, {AdminReady, false, Down},
		{AdminDraining, true, Draining}, {AdminDraining, false, Down},
		{AdminMaint, true, Maintenance}, {AdminMaint, false, Maintenance},
	} {
		for _, operatorFirst := range []bool{true, false} {
			c, dp, _ := newController(t)
			healthy(t, c, "a", !tt.up, "before")
			if operatorFirst {
				set(t, c, Change{Admin: &tt.admin})
			}
			healthy(t, c, "a", tt.up, "after")
			if !operatorFirst {
				set(t, c, Change{Admin: &tt.admin})
			}
			told, ok := dp.states["postgres/a"]
			if got := c.Snapshot()[0]; got.State != tt.want || ok && told != tt.want || got.Healthy != tt.up || got.HealthReason != "after" {
				t.Errorf("%s, healthy %v, operator first %v: %s, the datapath was told %s, status %+v",
					tt.admin, tt.up, operatorFirst, got.State, told, got)
			}
		}
	}
}

func TestStatusTellsWhoAndWhy(t *testing.T) {
	c, _, now := newController(t)
	healthy(t, c, "a", true, "ok")
	*now = now.Add(time.Minute)
	got := set(t, c, Change{Admin: ptr(AdminMaint)})
	if got.Reason != "set maint by uid 7, pid 8" || got.By != "uid 7, pid 8" || !got.At.Equal(*now) || !got.Since.Equal(*now) {
		t.Errorf("in maintenance: %+v", got)
	}
	healthy(t, c, "a", false, "connection refused")
	if got := c.Snapshot()[0]; got.Reason != "set maint by uid 7, pid 8" || got.HealthReason != "connection refused" || got.Transitions != 0 {
		t.Errorf("stopped while in maintenance: %+v", got)
	}
	if got := set(t, c, Change{Admin: ptr(AdminReady)}); got.State != Down || got.Reason != "connection refused" || got.Transitions != 0 {
		t.Errorf("ready again: %+v", got)
	}
}

func TestMaintenanceIsNoDowntime(t *testing.T) {
	c, _, now := newController(t)
	healthy(t, c, "a", true, "ok")
	set(t, c, Change{Admin: ptr(AdminDraining)})
	*now = now.Add(time.Second)
	healthy(t, c, "a", false, "gone") // a fall while it drains is one
	*now = now.Add(2 * time.Second)
	set(t, c, Change{Admin: ptr(AdminMaint)})
	*now = now.Add(time.Hour)
	if got := c.Snapshot()[0]; got.Transitions != 1 || got.Downtime != 2*time.Second {
		t.Errorf("%d transitions, down for %s", got.Transitions, got.Downtime)
	}
}

// TestNumbers overrides weight and limit, through a reconfiguration and back.
func TestNumbers(t *testing.T) {
	c, dp, _ := newController(t)
	if got := set(t, c, Change{Weight: ptr(uint16(5)), MaxConnections: ptr(uint32(100))}); got.Weight != 5 || got.ConfiguredWeight != 1 ||
		got.MaxConnections != 100 || got.ConfiguredMaxConnections != 0 || got.State != Down {
		t.Errorf("after the change: %+v", got)
	}
	if told := dp.told["postgres/a"]; told.Weight != 5 || told.MaxConnections != 100 {
		t.Errorf("the datapath was told %+v", told)
	}
	s := service("192.168.1.5:6432", "192.168.1.5:6433")
	s.Backends[0].Weight, s.Backends[0].MaxConnections = 3, 70
	if err := c.SetServices([]Service{s}); err != nil {
		t.Fatal(err)
	}
	if b := dp.services[0].Backends[0]; b.Weight != 5 || b.MaxConnections != 100 {
		t.Errorf("reconfigured to %+v", b)
	}
	// What is configured ends the override, and zero is a limit like any other.
	got := set(t, c, Change{Weight: ptr(uint16(3)), MaxConnections: ptr(uint32(0))})
	if got.Weight != 3 || got.MaxConnections != 0 || got.ConfiguredMaxConnections != 70 {
		t.Errorf("after the second change: %+v", got)
	}
	s.Backends[0].Weight = 9
	if err := c.SetServices([]Service{s}); err != nil {
		t.Fatal(err)
	}
	if b := dp.services[0].Backends[0]; b.Weight != 9 || b.MaxConnections != 0 {
		t.Errorf("reconfigured to %+v", b)
	}
}

func TestRefusedChanges(t *testing.T) {
	for _, tt := range []struct {
		name    string
		backend string
		change  Change
		is      error
		want    string
	}{
		{"unknown", "nobody", Change{Weight: ptr(uint16(1))}, ErrUnknownBackend, "unknown backend: postgres/nobody"},
		{"nothing", "a", Change{}, ErrBadChange, "bad change: it changes nothing"},
		{"weight 0", "a", Change{Weight: ptr(uint16(0))}, ErrBadChange, "bad change: weight 0 is out of range; want 1 to 256, and draining for no new connections"},
		{"weight 257", "a", Change{Weight: ptr(uint16(257))}, ErrBadChange, "bad change: weight 257 is out of range; want 1 to 256, and draining for no new connections"},
		{"past", "a", Change{Admin: ptr(AdminDraining), Deadline: ptr(-time.Second)}, ErrBadChange, "bad change: the deadline -1s is in the past"},
		{"deadline of maint", "a", Change{Admin: ptr(AdminMaint), Deadline: ptr(time.Second)}, ErrBadChange, "bad change: only draining has a deadline, not maint"},
		{"deadline of ready", "a", Change{Deadline: ptr(time.Second)}, ErrNotPossible, "not possible: it has no deadline, because it is not draining"},
	} {
		c, dp, _ := newController(t)
		saves := 0
		c.Restore(nil, func([]Order) error { saves++; return nil })
		before := c.Snapshot()[0]
		_, err := c.Change("postgres", tt.backend, tt.change, "me")
		if !errors.Is(err, tt.is) || err.Error() != tt.want {
			t.Errorf("%s: %v", tt.name, err)
		}
		if got := c.Snapshot()[0]; got != before || len(dp.states) > 0 || saves > 0 {
			t.Errorf("%s: changed %+v, told %v, saved %d times", tt.name, got, dp.states, saves)
		}
	}
}

func TestTheDatapathRefusesTheOperator(t *testing.T) {
	c, dp, _ := newController(t)
	healthy(t, c, "a", true, "ok")
	dp.err = errors.New("refused")
	before := c.Snapshot()[0]
	if _, err := c.Change("postgres", "a", Change{Admin: ptr(AdminDraining)}, "me"); !errors.Is(err, dp.err) {
		t.Errorf("got %v", err)
	}
	if got := c.Snapshot()[0]; got != before {
		t.Errorf("changed to %+v", got)
	}
}

// TestMaintenanceResetsFlows holds for a backend that serves, if the service
// wants that of one that goes.
func TestMaintenanceResetsFlows(t *testing.T) {
	for _, tt := range []struct {
		reset bool
		from  AdminState
		up    bool
		want  int
	}{{true, AdminReady, true, 1}, {true, AdminDraining, true, 1}, {true, AdminReady, false, 0}, {false, AdminReady, true, 0}} {
		c, dp, _ := newController(t)
		s := service("192.168.1.5:6432")
		s.ResetOnDown = tt.reset
		if err := c.SetServices([]Service{s}); err != nil {
			t.Fatal(err)
		}
		healthy(t, c, "a", tt.up, "test")
		set(t, c, Change{Admin: &tt.from})
		set(t, c, Change{Admin: ptr(AdminMaint)})
		if len(dp.resets) != tt.want {
			t.Errorf("%+v: %v", tt, dp.resets)
		}
	}
}

func TestOrderCheck(t *testing.T) {
	good := Order{Service: "postgres", Backend: "a", Addr: netip.MustParseAddrPort("[fd00::5]:6432"), Admin: AdminDraining, Deadline: ptr(time.Now())}
	if err := good.Check(); err != nil {
		t.Error(err)
	}
	for want, change := range map[string]func(*Order){
		"service, backend or address is missing":     func(o *Order) { o.Addr = netip.AddrPort{} },
		"ready has a deadline":                       func(o *Order) { o.Admin = AdminReady },
		"weight 0 is out of range; want 1 to 256":    func(o *Order) { o.Weight = ptr(uint16(0)) },
		"weight 1000 is out of range; want 1 to 256": func(o *Order) { o.Weight = ptr(uint16(1000)) },
	} {
		o := good
		change(&o)
		if err := o.Check(); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

// TestWordsRoundTrip holds the names that go over the admin socket.
func TestWordsRoundTrip(t *testing.T) {
	for s := Down; s <= Maintenance; s++ {
		text, _ := s.MarshalText()
		var back State
		if err := back.UnmarshalText(text); err != nil || back != s {
			t.Errorf("%s became %s, %v", s, back, err)
		}
	}
	for s := AdminReady; s <= AdminMaint; s++ {
		text, _ := s.MarshalText()
		var back AdminState
		if err := back.UnmarshalText(text); err != nil || back != s {
			t.Errorf("%s became %s, %v", s, back, err)
		}
	}
	var s State
	if err := s.UnmarshalText([]byte("gone")); err == nil || err.Error() != `"gone" is not one of down, up, draining, maint` {
		t.Error(err)
	}
	var a AdminState
	if err := a.UnmarshalText([]byte("gone")); err == nil || err.Error() != `"gone" is not one of ready, draining, maint` {
		t.Error(err)
	}
}
