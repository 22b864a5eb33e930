package vrrp

import (
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestNetnsNeighborConflict has another host advertise itself for the address,
// and one ask whether it may have it.
func TestNetnsNeighborConflict(t *testing.T) {
	hosts := newLAN(t, netip.MustParseAddr("fd00:1::10"), netip.MustParseAddr("fd00:1::50"))
	h, rogue := hosts[0], hosts[1]
	var log lockedBuffer
	c := h.config(101)
	c.Source = localOf(netip.MustParseAddr("fd00:1::10"))
	c.Log = slog.New(slog.NewTextHandler(&log, nil))
	r := h.route(c)
	eventually(t, 2*time.Second, "the node owns the address", h.hasVIP)
	var a *advertiser
	within(t, rogue.ns, func() {
		var err error
		a, err = openAdvertiser("eth0", localOf(netip.MustParseAddr("fd00:1::50")), c.Addresses)
		must(t, "opening an advertiser", err)
	})
	defer a.close()
	say := func(hardware net.HardwareAddr, addr netip.Addr) {
		_, err := a.announce(hardware, addr)
		must(t, "advertising", err)
	}
	before := r.Snapshot()
	say(rogue.eth0.Attrs().HardwareAddr, netip.MustParseAddr("fd00:1::50")) // its own address
	say(h.eth0.Attrs().HardwareAddr, vip6)                                  // ours, come back by a loop
	time.Sleep(2 * announceGap)
	if s := r.Snapshot(); s.Contentions != 0 {
		t.Errorf("%d contentions by advertisements that are in order:\n%s", s.Contentions, &log)
	}
	say(rogue.eth0.Attrs().HardwareAddr, vip6)
	eventually(t, time.Second, "it is noticed", func() bool { return r.Snapshot().Contentions == 1 })
	eventually(t, time.Second, "it is answered", func() bool { return r.Snapshot().UnsolicitedNA > before.UnsolicitedNA })
	if mac := rogue.mac(); !strings.Contains(log.String(), mac+" advertises itself as the neighbour "+vip6.String()) {
		t.Errorf("the log does not name %s:\n%s", mac, &log)
	}
	// Duplicate address detection (RFC 4862, section 5.4): the other host must
	// not get the address. Its kernel asks, and ours answers.
	must(t, "adding the address to the other host", rogue.nl.AddrAdd(rogue.eth0, &netlink.Addr{IPNet: toIPNet(netip.PrefixFrom(vip6, 128))}))
	eventually(t, 5*time.Second, "the other host finds that it is a duplicate", func() bool {
		addrs, err := rogue.nl.AddrList(rogue.eth0, netlink.FAMILY_V6)
		must(t, "listing addresses", err)
		return slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IP.String() == vip6.String() && a.Flags&unix.IFA_F_DADFAILED != 0 })
	})
	if s := r.Snapshot(); s.State != Active || s.Contentions != 1 {
		t.Errorf("%v with %d contentions after it", s.State, s.Contentions)
	}
}
