package lab_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lab"
	"github.com/pgsteer/pgsteer/pkg/lab/load"
)

const (
	heldConns    = 30 // of each family
	benchClients = 16 // of each family
	// benchRate is of transactions a second. As fast as it can pgbench would take
	// all of the CPU, and what was seen would be the scheduler.
	benchRate = "300"
)

// clients are at work on both services while something happens.
type clients struct {
	t       *testing.T
	lab     *lab.Lab
	held    []*load.Held
	rest    func() // ends the work on those held
	benches []*running
	spread  map[string][]int64 // over the poolers, of each service
}

// work returns when all of them are connected, through one of the balancers.
func work(t *testing.T, l *lab.Lab, owner string) *clients {
	t.Helper()
	c := &clients{t: t, lab: l, spread: map[string][]int64{}}
	ctx, cancel := context.WithCancel(t.Context())
	var working sync.WaitGroup
	c.rest = func() { cancel(); working.Wait() }
	t.Cleanup(c.rest)
	bench := load.Pgbench{Script: load.TPCB, Protocol: load.Prepared, Clients: benchClients, Duration: 2 * time.Minute}
	for i, service := range services {
		connected(t, l, owner, service, 0)
		held, err := load.Hold(within(t, time.Minute), heldConns, connectorOf(t, l, service))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(held.Close)
		c.held = append(c.held, held)
		working.Go(func() { held.Run(ctx) })
		c.benches = append(c.benches, background(t, l, bench, "-h", []string{vip, vip6}[i], "-R", benchRate))
	}
	for _, service := range services {
		connected(t, l, owner, service, heldConns+benchClients)
		n, err := spread(l, owner, service)
		if err != nil {
			t.Fatal(err)
		}
		c.spread[service] = n
	}
	return c
}

// through has new clients come while something changes, which may leave them
// without an answer for as long as gap.
func (c *clients) through(what string, gap time.Duration, change func() error, settled func()) {
	c.t.Helper()
	began := time.Now()
	for i, o := range probed(c.t, c.lab, change, settled, lab.Service, lab.Service6) {
		if o.Gap > gap {
			c.t.Errorf("at %s %s did not answer for %v", what, services[i], o.Gap)
		}
	}
	c.t.Logf("%s: watched for %v", what, time.Since(began))
}

// counted waits until a balancer has all connections where they were, and
// nothing else.
func (c *clients) counted(balancer string) {
	c.t.Helper()
	for _, service := range services {
		eventually(c.t, 10*time.Second, func() error {
			n, err := spread(c.lab, balancer, service)
			if err == nil && !slices.Equal(n, c.spread[service]) {
				err = fmt.Errorf("%s counts %v connections of %s, want %v", balancer, n, service, c.spread[service])
			}
			return err
		})
	}
	audited(c.t, c.lab, balancer)
}

// unharmed ends the work, and asks each client whether it could do it.
func (c *clients) unharmed() {
	c.t.Helper()
	c.rest()
	for i, held := range c.held {
		if lost := held.Lost(c.t.Context()); lost != 0 {
			c.t.Errorf("%d of %d connections of %s are lost", lost, held.Len(), services[i])
		}
		held.Close()
	}
	for _, b := range c.benches {
		b.end()
		b.faultless()
	}
}
