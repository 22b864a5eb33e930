package lb

import (
	"errors"
	"math/rand/v2"
	"testing"
	"time"
)

// TestAgainstAModel does random things, some of which the datapath refuses, and
// holds what it was told against three lines of model after each.
func TestAgainstAModel(t *testing.T) {
	type model struct {
		admin   AdminState
		healthy bool
		weight  uint16
		max     uint32
	}
	names := []string{"a", "b", "c"}
	addrs := []string{"192.168.1.5:6432", "192.168.1.5:6433", "192.168.1.5:6434"}
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 1))
		c, dp, now := newController(t)
		told := func(name string) Backend { return dp.told["postgres/"+name] }
		configure := func() error {
			err := c.SetServices([]Service{service(addrs...)})
			if err == nil {
				for _, b := range dp.services[0].Backends {
					dp.told["postgres/"+b.Name] = b
				}
			}
			return err
		}
		if err := configure(); err != nil {
			t.Fatal(err)
		}
		want := map[string]model{}
		for _, n := range names {
			want[n] = model{weight: 1}
		}
		for step := range 300 {
			*now = now.Add(time.Duration(r.IntN(5000)) * time.Millisecond)
			name := names[r.IntN(len(names))]
			next := want[name]
			dp.fail(nil)
			if r.IntN(5) == 0 {
				dp.fail(errors.New("odd"))
			}
			var err error
			switch r.IntN(4) {
			case 0:
				next.healthy = r.IntN(2) == 0
				err = c.SetHealth("postgres", name, next.healthy, "check")
			case 1:
				next.admin = AdminState(r.IntN(3))
				_, err = c.Change("postgres", name, Change{Admin: &next.admin}, "me")
			case 2:
				next.weight, next.max = uint16(1+r.IntN(3)), uint32(r.IntN(3))
				_, err = c.Change("postgres", name, Change{Weight: &next.weight, MaxConnections: &next.max}, "me")
			case 3:
				err = configure()
			}
			if err == nil {
				want[name] = next
			}
			dp.fail(nil)
			c.tick()
			for i, status := range c.Snapshot() {
				m := want[names[i]]
				got := told(names[i])
				if state := effective(m.admin, m.healthy); got.State != state || status.State != state ||
					got.Weight != m.weight || status.Weight != m.weight || got.MaxConnections != m.max || status.MaxConnections != m.max ||
					status.Admin != m.admin || status.Healthy != m.healthy || status.Downtime < 0 {
					t.Fatalf("seed %d, step %d: %s should be %+v;\nthe datapath was told %+v;\nstatus %+v", seed, step, names[i], m, got, status)
				}
			}
		}
	}
}
