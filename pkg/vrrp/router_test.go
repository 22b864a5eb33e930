package vrrp

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// elapse lets time pass in the bubble, and what is due happen.
func elapse(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestRouterElectionAndResignation(t *testing.T) {
	for _, multicast := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			var lan fakeLAN
			change := func(c *Config) {
				if multicast {
					c.Peers = nil
				}
			}
			a := newNode(t, &lan, node1, 101, change).run()
			elapse(50 * ms)
			b := newNode(t, &lan, node2, 100, change).run()
			elapse(time.Second)
			if !a.owns() || b.owns() {
				t.Fatal("the first and better node is not the active one")
			}
			if s := a.router.Snapshot(); s.GratuitousARP != 8 || s.BecameActive != 1 || s.Lease <= 0 || s.Sent < 5 {
				t.Errorf("snapshot of the active node: %+v", s)
			}
			s := b.router.Snapshot()
			if s.Peer.Address != node1 || s.Peer.Priority != 101 || s.Peer.Checksum != ChecksumMessage ||
				s.Peer.AdvertInterval != 100*ms || s.Peer.Ago > 100*ms || s.Received < 5 || s.Lease != 0 {
				t.Errorf("snapshot of the backup: %+v", s)
			}
			began := time.Now()
			a.stop()
			if len(a.addresses()) != 0 || a.fence.holds() {
				t.Errorf("after Run: addresses %v, lease %v", a.addresses(), a.fence.holds())
			}
			if s := a.router.Snapshot(); s.State != Init || s.SentResign != 1 {
				t.Errorf("snapshot after Run: %+v", s)
			}
			for !b.owns() && time.Since(began) < time.Second {
				elapse(ms)
			}
			// The skew of priority 100 is 60.9 ms.
			if took := time.Since(began); took > 63*ms {
				t.Errorf("take-over %v after the resignation", took)
			}
			b.stop()
		})
	}
}

func TestRouterIPv6(t *testing.T) {
	for _, multicast := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			var lan fakeLAN
			change := func(c *Config) {
				if multicast {
					c.Peers = nil
				}
			}
			// The priorities are equal: the greater address wins.
			a := newNode(t, &lan, local1, 100, change).run()
			b := newNode(t, &lan, local2, 100, change).run()
			elapse(2 * time.Second)
			if a.owns() || !b.owns() {
				t.Fatal("the node with the greater address is not the active one")
			}
			if s := b.router.Snapshot(); s.UnsolicitedNA == 0 || s.GratuitousARP != 0 {
				t.Errorf("announcements of an IPv6 router: %d unsolicited NA, %d gratuitous ARP", s.UnsolicitedNA, s.GratuitousARP)
			}
			if s := a.router.Snapshot(); s.Peer.Address != local2 || s.Peer.Checksum != ChecksumPseudo || s.AddressMismatches != 0 {
				t.Errorf("snapshot of the backup: %+v", s)
			}
			b.stop()
			elapse(100 * ms)
			if !a.owns() {
				t.Error("no take-over after the resignation")
			}
			a.kernel.set(func(k *fakeKernel) { k.announce = errTest })
			elapse(time.Second)
			if s := a.router.Snapshot(); s.UnsolicitedNAErrors == 0 || s.GratuitousErrors != 0 {
				t.Errorf("failed announcements of an IPv6 router: %d of NA, %d of ARP", s.UnsolicitedNAErrors, s.GratuitousErrors)
			}
			a.stop()
			for _, n := range []*node{a, b} {
				for _, r := range n.router.Snapshot().Refused {
					if r.Count != 0 {
						t.Errorf("%d packets refused: %s", r.Count, r.Reason)
					}
				}
			}
		})
	}
}

func TestRouterTellsTransitions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lan fakeLAN
		a := newNode(t, &lan, node1, 101, nil).run()
		elapse(time.Second)
		a.stop()
		var got []string
		for _, tr := range a.transitions {
			got = append(got, tr.From.String()+" "+tr.To.String()+" "+tr.Reason)
			if tr.Router != "main" || tr.Priority != 101 || tr.At.IsZero() {
				t.Errorf("transition %+v", tr)
			}
		}
		want := []string{
			"init backup started", "backup active no active router heard since the start", "active init shutting down",
		}
		if !slices.Equal(got, want) {
			t.Errorf("transitions %q, want %q", got, want)
		}
	})
}

func TestRouterRestoresAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lan fakeLAN
		a := newNode(t, &lan, node1, 101, nil).run()
		elapse(10 * time.Second)
		before := a.router.Snapshot().GratuitousARP

		a.kernel.set(func(k *fakeKernel) { k.have = nil })
		a.router.owner.changed <- struct{}{} // as the kernel tells
		synctest.Wait()
		if !a.owns() {
			t.Error("not restored although the kernel told of the change")
		}
		a.kernel.set(func(k *fakeKernel) { k.have = nil })
		elapse(auditInterval)
		if !a.owns() {
			t.Error("not restored by the audit")
		}
		s := a.router.Snapshot()
		if s.Restored != 2 || s.GratuitousARP < before+4 {
			t.Errorf("restored %d, gratuitous ARP %d then %d", s.Restored, before, s.GratuitousARP)
		}
		if !strings.Contains(a.log.String(), "removed by somebody else") {
			t.Errorf("log says nothing of it:\n%s", a.log)
		}
		// A list that fails once is no reason to give the role up.
		a.kernel.set(func(k *fakeKernel) { k.listErr = errTest })
		elapse(2 * auditInterval)
		if s := a.router.Snapshot(); s.State != Active || s.Restored != 2 {
			t.Errorf("after a failed look: %v, restored %d", s.State, s.Restored)
		}
		a.stop()
		if n := len(a.addresses()); n != 0 {
			t.Errorf("%d addresses left behind", n)
		}
	})
}

func TestRouterResignsWithoutAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lan fakeLAN
		a := newNode(t, &lan, node1, 101, nil)
		a.kernel.addErr = errTest
		a.run()
		elapse(50 * ms)
		b := newNode(t, &lan, node2, 100, nil).run()
		elapse(2 * time.Second)
		if a.owns() || !b.owns() {
			t.Error("a node that cannot add the address must leave it to its peer")
		}
		if s := a.router.Snapshot(); !strings.Contains(s.Reason, errTest.Error()) {
			t.Errorf("the reason %q does not say why", s.Reason)
		}
		a.stop()
		b.stop()
	})
}

func TestRouterAloneTriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lan fakeLAN
		a := newNode(t, &lan, node1, 101, nil)
		a.kernel.addErr = errTest
		a.run()
		elapse(10 * time.Second)
		if n := a.router.Snapshot().BecameActive; n < 5 || n > 10 {
			t.Errorf("%d attempts in 10 s, want about one a second", n)
		}
		a.kernel.set(func(k *fakeKernel) { k.addErr = nil })
		elapse(2 * time.Second)
		if !a.owns() {
			t.Error("not active although the address can be added again")
		}
		a.stop()
	})
}

func TestRouterFenceFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lan fakeLAN
		a := newNode(t, &lan, node1, 101, nil)
		a.fence.fail, a.fence.revoke = errTest, errTest
		a.run()
		elapse(50 * ms)
		b := newNode(t, &lan, node2, 100, nil).run()
		elapse(2 * time.Second)
		if a.owns() || !b.owns() {
			t.Error("a node that cannot renew its lease must leave the addresses to its peer")
		}
		if !strings.Contains(a.log.String(), "failed to revoke the lease") || !strings.Contains(a.log.String(), "failed to renew the lease") {
			t.Errorf("log:\n%s", a.log)
		}
		a.stop()
		b.stop()
	})
}

func TestRouterCannotSend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lan fakeLAN
		a := newNode(t, &lan, node1, 101, nil).run()
		elapse(time.Second)
		a.port.failSends(errTest)
		elapse(300 * ms)
		if a.owns() {
			t.Error("active without a lease")
		}
		elapse(10 * time.Second)
		s := a.router.Snapshot()
		if s.BecameActive != 1 || s.SendErrors < 20 {
			t.Errorf("became active %d times, %d send errors", s.BecameActive, s.SendErrors)
		}
		if n := strings.Count(a.log.String(), "failed to send an advertisement"); n != 2 {
			t.Errorf("%d log lines about sending in 10.3 s, want 2", n)
		}
		a.port.failSends(nil)
		elapse(time.Second)
		if !a.owns() {
			t.Error("not active although sending works again")
		}
		a.stop()
	})
}

// TestRouterSlowKernel holds that an address that takes long to add delays no
// advertisement.
func TestRouterSlowKernel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lan fakeLAN
		a := newNode(t, &lan, node1, 101, nil)
		release := make(chan struct{})
		a.kernel.hold = release
		a.run()
		elapse(3 * time.Second)
		if s := a.router.Snapshot(); s.State != Active || s.BecameActive != 1 || s.Sent < 25 || s.GratuitousARP != 0 {
			t.Errorf("while the kernel is slow: %+v", s)
		}
		close(release)
		synctest.Wait()
		if !a.owns() || a.router.Snapshot().GratuitousARP != 2 {
			t.Errorf("addresses %v, gratuitous ARP %d", a.addresses(), a.router.Snapshot().GratuitousARP)
		}
		a.stop()
	})
}

func TestRouterRefusesAndLogsWithinBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lan fakeLAN
		a := newNode(t, &lan, node1, 101, nil).run()
		elapse(time.Second)
		takeover := Advertisement{51, 255, 100 * ms, []netip.Addr{vip}}
		msg := takeover.Append(nil, ChecksumMessage, node2, node1)
		damaged := slices.Clone(msg)
		damaged[9]++
		for range 1000 {
			a.port.inject(
				packetOf(node2, node1, 254, msg),
				packetOf(netip.MustParseAddr("192.168.1.66"), node1, 255, msg),
				packetOf(node2, node1, 255, damaged),
				nil,
			)
			elapse(ms)
		}
		if !a.owns() {
			t.Error("bad packets took the role away")
		}
		want := map[string]uint64{"ttl": 1000, "peer": 1000, "checksum": 1000, "packet": 1000}
		for _, c := range a.router.Snapshot().Refused {
			if c.Count != want[c.Reason] {
				t.Errorf("%s: %d refused, want %d", c.Reason, c.Count, want[c.Reason])
			}
		}
		if n := strings.Count(a.log.String(), "refused an advertisement"); n != len(want) {
			t.Errorf("%d log lines for 4000 packets, want %d", n, len(want))
		}
		lan.mu.Lock()
		a.port.dropped = 7
		lan.mu.Unlock()
		a.port.inject()
		synctest.Wait()
		if got := a.router.Snapshot().Refused[RefusedOverflow].Count; got != 7 {
			t.Errorf("overflow counted %d, want 7", got)
		}
		a.stop()
	})
}

func TestRouterContention(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lan fakeLAN
		a := newNode(t, &lan, node1, 101, func(c *Config) { c.Checksum = ChecksumMessage }).run()
		elapse(20 * time.Second)
		before := a.router.Snapshot()
		worse := Advertisement{51, 100, time.Second, []netip.Addr{vip, netip.MustParseAddr("192.168.1.101")}}
		a.port.inject(packetOf(node2, node1, 255, worse.Append(nil, ChecksumPseudo, node2, node1)))
		synctest.Wait()
		after := a.router.Snapshot()
		if after.Sent != before.Sent+1 || after.GratuitousARP != before.GratuitousARP+2 {
			t.Errorf("a worse active node was met with %d advertisements and %d frames, want 1 and 2",
				after.Sent-before.Sent, after.GratuitousARP-before.GratuitousARP)
		}
		if after.IntervalMismatches != 1 || after.AddressMismatches != 1 || after.Peer.Checksum != ChecksumPseudo {
			t.Errorf("snapshot %+v", after)
		}
		for _, text := range []string{"another interval than ours", "other addresses than ours", "another form of checksum than ours"} {
			if !strings.Contains(a.log.String(), text) {
				t.Errorf("log does not mention %q", text)
			}
		}
		a.stop()
	})
}

func TestRouterAnnounceFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lan fakeLAN
		a := newNode(t, &lan, node1, 101, nil)
		a.kernel.announce = errTest
		a.run()
		elapse(2 * time.Second)
		if s := a.router.Snapshot(); !a.owns() || s.GratuitousErrors == 0 || s.GratuitousARP != 0 {
			t.Errorf("snapshot %+v", s)
		}
		if n := strings.Count(a.log.String(), "gratuitous ARP failed"); n != 1 {
			t.Errorf("%d log lines, want 1", n)
		}
		a.stop()
	})
}

func TestRouterRemovalFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lan fakeLAN
		a := newNode(t, &lan, node1, 100, nil).run()
		elapse(time.Second)
		a.kernel.set(func(k *fakeKernel) { k.delErr = errTest })
		b := newNode(t, &lan, node2, 101, func(c *Config) { c.Preempt = true }).run()
		elapse(time.Second)
		if len(a.addresses()) != 1 || a.fence.holds() || !b.owns() {
			t.Error("the lease must be gone although the address could not be removed")
		}
		a.kernel.set(func(k *fakeKernel) { k.delErr = nil })
		elapse(auditInterval)
		if len(a.addresses()) != 0 {
			t.Error("the removal was not tried again")
		}
		a.stop()
		b.stop()
	})
}

func TestRouterStopsWhenItCannotReceive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lan fakeLAN
		a := newNode(t, &lan, node1, 101, nil).run()
		elapse(time.Second)
		a.port.broken <- errTest
		if err := <-a.done; err == nil || !strings.Contains(err.Error(), errTest.Error()) {
			t.Errorf("Run: %v", err)
		}
		if len(a.addresses()) != 0 || a.fence.holds() || a.router.Snapshot().SentResign != 1 {
			t.Errorf("not resigned: %+v", a.router.Snapshot())
		}
	})
}
