package lab_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lab"
	"github.com/pgsteer/pgsteer/pkg/lab/load"
)

// testCrowd: as many clients as the poolers take together, half of them of each
// family, are spread exactly, and cost those who work nothing but time.
func testCrowd(t *testing.T, l *lab.Lab) {
	crowd, duration := 3000, 20*time.Second
	if long {
		crowd, duration = 12_000, time.Minute
	}
	owner := active(t, l)
	quietBoth(t, l, owner)
	bench := load.Pgbench{Script: load.TPCB, Protocol: load.Prepared, Clients: 30, Duration: duration}
	working := background(t, l, bench)
	connected(t, l, owner, lab.ServiceName, bench.Clients)

	cfg, err := l.ClientConfig()
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	each := int64(crowd / len(services) / lab.PoolerCount)
	var crowds []*load.Crowd
	for i, address := range []string{lab.Service, lab.Service6} {
		c := &load.Crowd{
			Dial: l.DialContext(lab.Client), Address: address,
			User: cfg.User, Database: cfg.Database, Password: cfg.Password,
		}
		defer c.Close()
		crowds = append(crowds, c)
		if err := c.Gather(within(t, 3*time.Minute), crowd/len(services)); err != nil {
			t.Fatal(err)
		}
		want := []int64{each, each, each}
		if i == 0 {
			for j := range want {
				want[j] += int64(bench.Clients / lab.PoolerCount)
			}
		}
		n, err := spread(l, owner, services[i])
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(n, want) {
			t.Errorf("%d connections of %s are spread as %v, want %v", c.Len(), services[i], n, want)
		}
	}
	t.Logf("%d connections opened in %v", crowds[0].Len()+crowds[1].Len(), time.Since(begin))
	select {
	case <-working.done:
		t.Errorf("pgbench ended before all connections were open: nothing is proved")
	default:
	}
	working.faultless()
	begin = time.Now()
	for i, c := range crowds {
		if err := c.Ask(); err != nil {
			t.Errorf("%s: %v", services[i], err)
		}
	}
	t.Logf("all of them answered in %v", time.Since(begin))
	audited(t, l, owner)
	for _, c := range crowds {
		c.Close()
	}
	eventually(t, 20*time.Second, func() error {
		for _, service := range services {
			n, err := spread(l, owner, service)
			if err != nil {
				return err
			}
			if slices.Max(n) != 0 || slices.Min(n) != 0 {
				return fmt.Errorf("%s counts %v connections of %s", owner, n, service)
			}
		}
		return nil
	})
	quietBoth(t, l, owner)
}
