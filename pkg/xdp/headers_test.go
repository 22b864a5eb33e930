package xdp

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// resolution is a question for the link-layer address of target: ARP, or a
// neighbour solicitation (RFC 4861, 4.3).
func (c cast) resolution(sender, target netip.Addr) []byte {
	if target.Is4() {
		b := arp(sender.String(), target.String())
		return slices.Concat(b[:12], []byte(c.tags), b[12:])
	}
	t := target.As16()
	message := make([]byte, 24, 32)
	message[0] = 135
	copy(message[8:], t[:])
	if !sender.IsUnspecified() {
		message = append(message, 1, 1) // source link-layer address
		message = append(message, clientMAC[:]...)
	}
	ip := make([]byte, 40)
	ip[0] = 0x60
	binary.BigEndian.PutUint16(ip[4:], uint16(len(message)))
	ip[6], ip[7] = unix.IPPROTO_ICMPV6, 255
	copy(ip[8:], sender.AsSlice())
	copy(ip[24:], []byte{0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, t[13], t[14], t[15]})
	pseudo := uint32(onesSum(0, ip[8:40])) + unix.IPPROTO_ICMPV6 + uint32(len(message))
	binary.BigEndian.PutUint16(message[2:], ^onesSum(pseudo, message))
	return slices.Concat([]byte{0x33, 0x33, 0xff, t[13], t[14], t[15]}, clientMAC[:], []byte(c.tags), []byte{0x86, 0xdd}, ip, message)
}

func (f *fixture) wantPassOrDrop(name string, frame []byte, want string) {
	f.t.Helper()
	action, out, verdict := f.run(frame)
	if verdict != want {
		f.t.Errorf("%s: verdict %s, want %s", name, verdict, want)
		return
	}
	if pass := strings.HasPrefix(want, "pass"); pass != (action == xdpPass) || !pass && action != xdpDrop {
		f.t.Errorf("%s: %s with action %d", name, verdict, action)
	}
	if !slices.Equal(out, frame) {
		f.t.Errorf("%s: the packet was changed", name)
	}
}

func testFenced(f *fixture, c cast) {
	k := f.establish(c.syn(1))
	elsewhere := c.sends(syn)
	elsewhere.dst = netip.AddrPortFrom(c.vip.Addr(), 8404)
	node := netip.MustParseAddr("192.168.1.10")
	pass, drop := "pass_arp", "drop_fenced_arp"
	if c.vip.Addr().Is6() {
		node = netip.MustParseAddr("fd00:1::10")
		pass, drop = "pass_neighbour", "drop_fenced_neighbour"
	}
	type row struct {
		name    string
		frame   []byte
		verdict string
	}
	always := []row{
		{"a port that no service has", elsewhere.frame(), "pass_port"},
		{"who has the node's address", c.resolution(c.client.Addr(), node), pass},
	}
	f.must(f.RevokeLease(c.vip.Addr()))
	for _, r := range append(always,
		row{"an established flow", k.c.frame(), "drop_fenced"},
		row{"its replies", k.b.frame(), "drop_fenced"},
		row{"a new flow", c.syn(2).frame(), "drop_fenced"},
		row{"an unknown segment", c.sends(ack).frame(), "drop_fenced"},
		row{"a stray reset", c.sends(rst).frame(), "drop_fenced"},
		row{"a backend's unknown segment", c.stray(ack).frame(), "drop_fenced"},
		row{"who has the VIP", c.resolution(c.client.Addr(), c.vip.Addr()), drop},
		row{"who has the NAT address, which is leased", c.resolution(c.client.Addr(), c.nat), pass},
	) {
		f.wantPassOrDrop(r.name, r.frame, r.verdict)
	}
	if c.vip.Addr().Is4() {
		f.wantPassOrDrop("the other node's announcement", c.resolution(c.vip.Addr(), c.vip.Addr()), pass)
	} else {
		f.wantPassOrDrop("is the VIP a duplicate", c.resolution(netip.IPv6Unspecified(), c.vip.Addr()), drop)
	}
	f.must(f.RenewLease(c.vip.Addr(), time.Hour))
	for _, r := range append(always, row{"who has the VIP", c.resolution(c.client.Addr(), c.vip.Addr()), pass}) {
		f.wantPassOrDrop(r.name, r.frame, r.verdict)
	}
	f.clientSays(&k, ack, "lives on")
	f.backendSays(&k, ack, "does it")
	f.wantActive(0, 0, 1)
	// One that runs out by itself.
	f.must(f.RenewLease(c.vip.Addr(), 0))
	f.wantUnsent(k.c, "drop_fenced")
	f.must(f.RenewLease(c.vip.Addr(), time.Hour))
}

// What is not TCP to a service in one piece and without frills.
func testHeaders(f *fixture, c cast) {
	for _, tags := range []string{"", vlan, qinq} {
		c.tags = tags
		testHeadersUnder(f, c)
	}
	// More tags than are looked behind.
	c.tags = qinq + vlan
	f.wantPassOrDrop("three tags", c.syn(1).frame(), "pass_ethertype")
	if n := f.entries(); n != 0 {
		f.t.Errorf("%d entries were left behind", n)
	}
}

func testHeadersUnder(f *fixture, c cast) {
	in := c.sends(syn)
	in.padding = 4
	ip := 14 + len(c.tags)
	tcp, proto, total := ip+20, ip+9, ip+2
	if c.vip.Addr().Is6() {
		tcp, proto, total = ip+40, ip+6, ip+4
	}
	edit := func(change func(b []byte)) []byte { b := in.frame(); change(b); return b }
	set := func(at int, v byte) []byte { return edit(func(b []byte) { b[at] = v }) }
	other := func(change func(*segment)) []byte { s := in; change(&s); return s.frame() }
	length := func(by int) []byte {
		return edit(func(b []byte) {
			binary.BigEndian.PutUint16(b[total:], uint16(int(binary.BigEndian.Uint16(b[total:]))+by))
		})
	}
	rows := []struct {
		name    string
		frame   []byte
		verdict string
	}{
		{"to the node itself", other(func(s *segment) { s.dst = netip.AddrPortFrom(c.client.Addr().Next(), 22) }), "pass_not_vip"},
		{"an address that ends like the VIP's", edit(func(b []byte) { b[tcp-4] ^= 1 }), "pass_not_vip"},
		{"another host's frame", set(5, 0x77), "pass_not_mine"},
		{"a broadcast", edit(func(b []byte) { copy(b, "\xff\xff\xff\xff\xff\xff") }), "pass_not_mine"},
		{"ssh", other(func(s *segment) { s.dst = netip.AddrPortFrom(c.vip.Addr(), 22) }), "pass_port"},
		{"UDP", set(proto, unix.IPPROTO_UDP), "pass_not_tcp"},
		{"cut in the IP header", in.frame()[:tcp-1], "pass_truncated"},
		{"cut before it", in.frame()[:ip], "pass_truncated"},
		{"another IP version", set(ip, 0x55), "drop_ip_header"},
		{"length beyond the frame", length(5), "drop_ip_header"},
		{"length up to its end", length(4), "tx"},
		{"length within the TCP header", length(-1), "drop_tcp_header"},
		{"TCP data offset 4", set(tcp+12, 4<<4), "drop_tcp_header"},
		{"TCP data offset beyond the packet", set(tcp+12, 15<<4), "drop_tcp_header"},
		{"TCP header cut", func() []byte { b := length(-1); return b[:tcp+19] }(), "drop_tcp_header"},
	}
	more := func(name string, frame []byte, verdict string) {
		rows = append(rows, struct {
			name    string
			frame   []byte
			verdict string
		}{name, frame, verdict})
	}
	if c.tags != "" {
		more("cut in the tag", in.frame()[:ip-1], "pass_truncated")
	}
	if c.vip.Addr().Is4() {
		more("header length 16", set(ip, 0x44), "drop_ip_header")
		more("options", other(func(s *segment) { s.ipOptions = 1 }), "drop_ip_options")
		more("all options there can be", other(func(s *segment) { s.ipOptions = 10 }), "drop_ip_options")
		more("first fragment", other(func(s *segment) { s.fragment = 0x2000 }), "drop_fragment")
		more("later fragment", other(func(s *segment) { s.fragment = 185 }), "drop_fragment")
		more("echo request", edit(func(b []byte) { b[proto] = unix.IPPROTO_ICMP; b[tcp] = 8 }), "pass_not_tcp")
	} else {
		more("hop-by-hop options", set(proto, unix.IPPROTO_HOPOPTS), "drop_ip_options")
		more("routing header", set(proto, unix.IPPROTO_ROUTING), "drop_ip_options")
		more("destination options", set(proto, unix.IPPROTO_DSTOPTS), "drop_ip_options")
		more("fragment", set(proto, unix.IPPROTO_FRAGMENT), "drop_fragment")
		more("no next header", set(proto, unix.IPPROTO_NONE), "pass_not_tcp")
		more("echo request", edit(func(b []byte) { b[proto] = unix.IPPROTO_ICMPV6; b[tcp] = 128 }), "pass_not_tcp")
	}
	for _, r := range rows {
		if r.verdict == "tx" { // padding that is taken for data: no harm
			if _, _, v := f.run(r.frame); v != "tx_new" {
				f.t.Errorf("%s: verdict %s", r.name, v)
			}
			f.forget(c, in.src)
			continue
		}
		f.wantPassOrDrop(strings.TrimSpace(c.name+" "+r.name), r.frame, r.verdict)
	}
}
