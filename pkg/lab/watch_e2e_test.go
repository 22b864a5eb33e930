package lab_test

import (
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lab"
	"github.com/pgsteer/pgsteer/pkg/xdp"
)

// leases looks, as often as it can, which balancers answer for the VIPs.
type leases struct {
	t      *testing.T
	tables map[string]*xdp.Reader // to open them takes longer than to look
	// end ends the watch, which fails the test if both balancers ever answered
	// for the same VIP. It may be called again.
	end func()

	looks int
	both  int
	held  map[string]int // looks in which a balancer had any lease
	err   error
}

func watch(t *testing.T, l *lab.Lab) *leases {
	t.Helper()
	w := &leases{t: t, tables: map[string]*xdp.Reader{}, held: map[string]int{}}
	for _, balancer := range lab.Balancers() {
		r, err := xdp.OpenPins(l.PinPath(balancer))
		if err != nil {
			t.Fatal(err)
		}
		w.tables[balancer] = r
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(time.Millisecond) // leave the CPU to the others
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				w.look()
			}
		}
	}()
	w.end = sync.OnceFunc(func() {
		close(stop)
		<-done
		for _, r := range w.tables {
			r.Close()
		}
		w.judge()
	})
	t.Cleanup(w.end)
	return w
}

// look looks at both balancers. The two maps are not read at the same instant.
// But who holds a VIP before and after the other was seen to hold it has held it
// then, too.
func (w *leases) look() {
	w.looks++
	first, second := w.holds(lab.LB1), w.holds(lab.LB2)
	if len(first) > 0 {
		w.held[lab.LB1]++
	}
	if len(second) > 0 {
		w.held[lab.LB2]++
	}
	common := func(a, b []netip.Addr) []netip.Addr {
		return slices.DeleteFunc(a, func(addr netip.Addr) bool { return !slices.Contains(b, addr) })
	}
	if both := common(first, second); len(both) > 0 && len(common(both, w.holds(lab.LB1))) > 0 {
		w.both++
	}
}

// holds returns the VIPs that a balancer answers for.
func (w *leases) holds(balancer string) (held []netip.Addr) {
	stats, err := w.tables[balancer].Stats()
	if err != nil {
		w.err = err
	}
	for _, v := range stats.VIPs {
		if v.Lease > 0 {
			held = append(held, v.Addr)
		}
	}
	return held
}

func (w *leases) judge() {
	w.t.Helper()
	w.t.Logf("the leases were looked at %d times, of which held: %v", w.looks, w.held)
	if w.err != nil {
		w.t.Error(w.err)
	}
	if w.looks < 50 {
		w.t.Errorf("only %d looks at the leases: nothing is proved", w.looks)
	}
	if w.both > 0 {
		w.t.Errorf("both balancers answered for the same VIP in %d of %d looks", w.both, w.looks)
	}
}
