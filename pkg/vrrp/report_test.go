package vrrp

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pgsteer/pgsteer/internal/mute"
)

// TestRouterContentions holds who wins, that it is said loudly but not often,
// and that the winner announces the addresses again and again.
func TestRouterContentions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lan fakeLAN
		a := newNode(t, &lan, node1, 101, nil).run()
		elapse(20 * time.Second)
		inject := func(priority uint8) {
			advert := Advertisement{51, priority, 100 * ms, []netip.Addr{vip}}
			a.port.inject(packetOf(node2, node1, 255, advert.Append(nil, ChecksumMessage, node2, node1)))
			synctest.Wait()
		}
		before := a.router.Snapshot().GratuitousARP
		for i, want := range []struct {
			after  time.Duration
			frames uint64
		}{{0, 2}, {time.Second, 10}, {3 * time.Second, 12}, {5 * time.Second, 14}} {
			if i == 0 {
				inject(90)
			} else {
				elapse(want.after - time.Second*time.Duration([]int{0, 0, 1, 3}[i]))
			}
			if got := a.router.Snapshot().GratuitousARP - before; got != want.frames {
				t.Errorf("%v after the contention: %d frames, want %d", want.after, got, want.frames)
			}
		}
		for range 50 {
			inject(90)
			elapse(10 * ms)
		}
		if s := a.router.Snapshot(); s.Contentions != 51 {
			t.Errorf("%d contentions, want 51", s.Contentions)
		}
		if n := strings.Count(a.log.String(), "two nodes are active"); n != 1 || !strings.Contains(a.log.String(), `winner="this node"`) {
			t.Errorf("%d lines of log:\n%s", n, a.log)
		}
		elapse(mute.Interval)
		inject(200)
		if s := a.router.Snapshot(); s.Contentions != 52 || s.State != Backup || !strings.Contains(a.log.String(), "winner=192.168.1.11") {
			t.Errorf("against a better one: %+v\n%s", s, a.log)
		}
		a.stop()
	})
}

// TestRouterHearsARPConflict has the herald's socket tell of another owner.
func TestRouterHearsARPConflict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lan fakeLAN
		a := newNode(t, &lan, node1, 101, nil)
		var tell func(string)
		a.router.sniff = func(ctx context.Context, _ func() (net.HardwareAddr, error), f func(string)) error {
			tell = f
			<-ctx.Done()
			return errTest
		}
		a.run()
		elapse(100 * ms)
		tell("02:00:00:00:00:66 answers ARP for 192.168.1.100") // the one before us
		elapse(20 * time.Second)
		before := a.router.Snapshot()
		if before.Contentions != 0 {
			t.Error("a backup minds that another answers")
		}
		tell("02:00:00:00:00:66 answers ARP for 192.168.1.100")
		synctest.Wait()
		if s := a.router.Snapshot(); s.Contentions != 1 || s.GratuitousARP != before.GratuitousARP+2 || s.Sent != before.Sent+1 {
			t.Errorf("snapshot %+v", s)
		}
		a.stop()
		if !strings.Contains(a.log.String(), "not noticed from now on") {
			t.Error("the end of the listening is not told")
		}
	})
}

func TestRouterHistory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(t, nil)
		elapse(50 * ms)
		for i := range 40 {
			b.router.Track("t", Track{Fault: true, Reason: fmt.Sprint("fault ", i)})
			b.router.Track("t", Track{})
			elapse(ms)
		}
		s := b.router.Snapshot()
		if len(s.History) != historySize || s.Transitions <= historySize {
			t.Fatalf("%d of %d transitions are remembered", len(s.History), s.Transitions)
		}
		last := s.History[historySize-2]
		if last.From != Backup || last.To != Init || last.Reason != "t: fault 39" || last.Priority != 100 ||
			last.Peer.Address != node1 || last.Peer.Priority != 101 || last.Peer.Ago <= 0 || last.At.IsZero() {
			t.Errorf("the last but one: %+v", last)
		}
		text, err := json.Marshal(last)
		if err != nil || !strings.Contains(string(text), `"from":"backup","to":"init","reason":"t: fault 39","priority":100,"peer":{"address":"192.168.1.10"`) {
			t.Errorf("as JSON: %s, %v", text, err)
		}
		a.stop()
		b.stop()
	})
}

// TestRouterLone runs a node that has nobody to fear.
func TestRouterLone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lan fakeLAN
		a := newNode(t, &lan, node1, 101, func(c *Config) { c.Peers, c.Lone = nil, true }).run()
		elapse(time.Second)
		if !a.owns() || a.router.Snapshot().Lease < 99*365*24*time.Hour {
			t.Errorf("snapshot %+v", a.router.Snapshot())
		}
		a.port.failSends(errTest) // nor does it matter whether it is heard
		elapse(10 * time.Second)
		if !a.owns() {
			t.Error("the lease of a lone node ended")
		}
		a.port.failSends(nil)
		a.stop()
		if a.fence.holds() {
			t.Error("the lease outlived the router")
		}
	})
}

// TestRouterRenewsAddresses holds that the kernel is asked once a second, and
// that a failure is no reason to panic.
func TestRouterRenewsAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lan fakeLAN
		a := newNode(t, &lan, node1, 101, nil).run()
		elapse(time.Second)
		count := func() (n int) {
			a.kernel.set(func(k *fakeKernel) { n = k.added })
			return n
		}
		before := count()
		for range 20 {
			a.router.owner.changed <- struct{}{} // a busy host is no reason to ask more often
			elapse(500 * ms)
		}
		if n := count() - before; n < 9 || n > 11 {
			t.Errorf("%d renewals in 10 s", n)
		}
		a.kernel.set(func(k *fakeKernel) { k.addErr = errTest })
		elapse(2 * time.Second)
		if !a.owns() || a.router.Snapshot().BecameActive != 1 || !strings.Contains(a.log.String(), "failed to renew a virtual address") {
			t.Errorf("after failed renewals: %+v\n%s", a.router.Snapshot(), a.log)
		}
		a.stop()
	})
}
