package xdp

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// cast is who speaks in a packet test: those of one family, under the tags of
// one network.
type cast struct {
	name   string
	vip    netip.AddrPort
	nat    netip.Addr // a further source address towards the poolers
	client netip.AddrPort
	pooler netip.AddrPort // the first one; the others have the ports after its own
	tags   string
}

var (
	cast4 = cast{
		name: "IPv4", vip: vip, nat: netip.MustParseAddr("192.168.1.101"), client: client, pooler: pooler,
	}
	cast6 = cast{
		name:   "IPv6",
		vip:    netip.MustParseAddrPort("[fd00:1::100]:5432"),
		nat:    netip.MustParseAddr("fd00:1::101"),
		client: netip.MustParseAddrPort("[fd00:1::50]:40000"),
		pooler: netip.MustParseAddrPort("[fd00:1::5]:6432"),
	}
	families = []cast{cast4, cast6}
)

const (
	vlan = "\x81\x00\x60\x05"        // 802.1Q, priority 3
	qinq = "\x88\xa8\x00\x02" + vlan // 802.1ad outside
)

// casts are both families, without tags and with one and two.
func casts() (all []cast) {
	for _, c := range families {
		all = append(all, c)
		for _, tagged := range []struct{ name, tags string }{{"802.1Q", vlan}, {"QinQ", qinq}} {
			t := c
			t.name, t.tags = c.name+" "+tagged.name, tagged.tags
			all = append(all, t)
		}
	}
	return all
}

// newDualFixture is a balancer for both families that owns the VIPs and the NAT
// addresses of the casts and has no service yet.
func newDualFixture(t *testing.T, change ...func(*Config)) *fixture {
	t.Helper()
	cfg, ns := newHost(t)
	cfg.IPv6 = true
	cfg.HalfOpenFlows = 4096
	for _, c := range change {
		c(&cfg)
	}
	inNamespace(t, ns, func() error {
		// No link-local address: nothing is sent that is not asked for.
		for _, knob := range [][2]string{{"addr_gen_mode", "1"}, {"accept_ra", "0"}, {"disable_ipv6", "0"}} {
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/lan0/"+knob[0], []byte(knob[1]), 0); err != nil {
				return err
			}
		}
		lan0, err := netlink.LinkByName("lan0")
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr("fd00:1::10/64")
		if err != nil {
			return err
		}
		addr.Flags = 0x02 // no duplicate address detection
		if err := netlink.AddrAdd(lan0, addr); err != nil {
			return fmt.Errorf("adding the IPv6 address: %w", err)
		}
		return nil
	})
	f := open(t, cfg, ns)
	var vips []lb.VIPStats
	for i, c := range families {
		f.neighbours[c.pooler.Addr()] = poolerMAC
		vips = append(vips,
			lb.VIPStats{Addr: c.vip.Addr(), Router: "main", VRID: uint8(51 + i), Priority: 101},
			lb.VIPStats{Addr: c.nat, Router: "other", VRID: uint8(61 + i), Priority: 101})
	}
	f.must(f.SetVIPs(vips))
	for _, v := range vips {
		f.must(f.RenewLease(v.Addr, time.Hour))
	}
	return f
}

// backend is the i-th pooler of a cast.
func (c cast) backend(i int) lb.Backend {
	return lb.Backend{
		Name: fmt.Sprintf("pooler%d", i+1), Addr: netip.AddrPortFrom(c.pooler.Addr(), c.pooler.Port()+uint16(i)),
		Weight: 1, State: lb.Up,
	}
}

// service has that many poolers.
func (c cast) service(poolers int) lb.Service {
	s := lb.Service{Name: "postgres", Addr: c.vip}
	for i := range poolers {
		s.Backends = append(s.Backends, c.backend(i))
	}
	return s
}

// slot is which pooler has the address, or -1.
func (c cast) slot(addr netip.AddrPort) int {
	if addr.Addr() != c.pooler.Addr() {
		return -1
	}
	return int(addr.Port()) - int(c.pooler.Port())
}

// number is the n-th of many clients.
func (c cast) number(n int) netip.AddrPort {
	if c.vip.Addr().Is4() {
		return clientNumber(n)
	}
	a := c.client.Addr().As16()
	a[7], a[13], a[14] = 1, byte(n>>14), byte(n>>6)
	return netip.AddrPortFrom(netip.AddrFrom16(a), uint16(20000+n%64))
}

// sends is a segment as a client of the VIP sends it.
func (c cast) sends(flags uint8) segment {
	return segment{srcMAC: clientMAC, dstMAC: lbMAC, tags: c.tags, src: c.client, dst: c.vip, flags: flags, seq: 1000, ack: 2000}
}

// syn is that of the n-th client.
func (c cast) syn(n int) segment {
	s := c.sends(syn)
	s.src, s.ack = c.number(n), 0
	return s
}

// stray is a segment of the first pooler's that belongs to no flow.
func (c cast) stray(flags uint8) segment {
	return segment{
		srcMAC: poolerMAC, dstMAC: lbMAC, tags: c.tags, src: c.pooler, dst: netip.AddrPortFrom(c.vip.Addr(), 10000),
		flags: flags, seq: 7, ack: 9,
	}
}

// serve begins anew with one service and nothing counted.
func (f *fixture) serve(s lb.Service) {
	f.t.Helper()
	f.must(f.SetServices(nil))
	if n := f.entries(); n != 0 {
		f.t.Fatalf("%d entries are left of the services before", n)
	}
	f.must(f.tables.loads.Put(uint32(0), loadRow{}))
	f.must(f.SetServices([]lb.Service{s}))
}

// sub is the same fixture for a subtest.
func (f *fixture) sub(t *testing.T) *fixture {
	sub := *f
	sub.t, sub.closed = t, true // the outer test closes it
	return &sub
}

// each runs a test for each cast, which begins with three poolers.
func (f *fixture) each(all []cast, test func(f *fixture, c cast)) {
	f.t.Helper()
	for _, c := range all {
		f.t.Run(c.name, func(t *testing.T) {
			sub := f.sub(t)
			sub.serve(c.service(3))
			test(sub, c)
			sub.wantNoDrift()
		})
	}
}

// forwardHalf is what is known of a client's flow.
func (f *fixture) forwardHalf(c cast, from netip.AddrPort) (half, bool) {
	f.t.Helper()
	family, err := f.tables.of(from.Addr())
	f.must(err)
	return family.forward(from, c.vip)
}

// wantState wants the state's name as it is shown; "" wants no flow.
func (f *fixture) wantState(c cast, from netip.AddrPort, want string) {
	f.t.Helper()
	h, ok := f.forwardHalf(c, from)
	got := ""
	if ok {
		got = flowState(h.flags)
	}
	if got != want {
		f.t.Fatalf("state %q, want %q", got, want)
	}
}

// wantUnsent sends a segment that does not leave.
func (f *fixture) wantUnsent(s segment, want string) {
	f.t.Helper()
	action, out, got := f.run(s.frame())
	if got != want {
		f.t.Fatalf("verdict %s, want %s", got, want)
	}
	if (action == xdpDrop) != (want[:4] == "drop") || (action == xdpPass) != (want[:4] == "pass") {
		f.t.Fatalf("%s: action %d", got, action)
	}
	if !slices.Equal(out, s.frame()) {
		f.t.Fatalf("%s: the packet was changed", got)
	}
}

// wantNoDrift recounts the flow tables: each entry has its other half, and the
// active counts are those of the flows that are not closed.
func (f *fixture) wantNoDrift() {
	f.t.Helper()
	count := newCount()
	for _, family := range f.tables.families() {
		f.must(family.eachHalf(func(h *half) bool { count.see(h.flags, h.backend); return true }))
	}
	if a := count.audit(); a.Orphans != 0 {
		f.t.Errorf("%d halves without their other one", a.Orphans)
	}
	active, err := f.tables.activeCounts(f.placed)
	f.must(err)
	for at, n := range active {
		if n != count.live[at] {
			f.t.Errorf("active count %d of backend %d, the table has %d", n, at, count.live[at])
		}
	}
}

// talk is a connection as both ends have it: the next segments of each.
type talk struct{ c, b segment }

// establish runs a handshake in which each end has a sequence of its own, for
// the client of the SYN given.
func (f *fixture) establish(in segment) talk {
	f.t.Helper()
	got := f.expect(in, "tx_new")
	reply := got.answer(syn | ack)
	reply.seq = 9000
	back := f.expect(reply, "tx_reverse")
	in = back.answer(ack)
	in.seq = back.ack
	in.ack = back.seq + 1
	in.srcMAC = clientMAC
	got = f.expect(in, "tx_forward")
	reply = got.answer(ack)
	reply.seq, reply.ack = 9001, in.seq
	return talk{in, reply}
}

// clientSays has the client send, and the backend acknowledge it in what it
// sends next.
func (f *fixture) clientSays(k *talk, flags uint8, payload string) segment {
	f.t.Helper()
	s := k.c
	s.flags, s.payload = flags, payload
	got := f.expect(s, "tx_forward")
	k.c.seq += uint32(len(payload)) + uint32(flags&fin)
	k.b.ack = k.c.seq
	return got
}

// backendSays is the other way round.
func (f *fixture) backendSays(k *talk, flags uint8, payload string) segment {
	f.t.Helper()
	s := k.b
	s.flags, s.payload = flags, payload
	got := f.expect(s, "tx_reverse")
	k.b.seq += uint32(len(payload)) + uint32(flags&fin)
	k.c.ack = k.b.seq
	return got
}

// bucketRow is a struct bucket, which only the program itself reads.
type bucketRow struct {
	Refilled uint64
	Tokens   int64
}

// The indexes of buckets in bpf/maps.h.
const (
	bucketRST = iota
	bucketSYN
)

// never is later than any time of the program's: a bucket that was refilled
// then is refilled no more, and a test knows what is in it.
const never = 1 << 62

// setBucket gives out so many tokens, once and for all.
func (f *fixture) setBucket(index uint32, tokens int64) {
	f.t.Helper()
	buckets := f.pinned("buckets")
	defer buckets.Close()
	f.must(buckets.Put(index, bucketRow{never, tokens}))
}

// pinned opens a map that only the program uses.
func (f *fixture) pinned(name string) *ebpf.Map {
	f.t.Helper()
	m, err := ebpf.LoadPinnedMap(filepath.Join(f.config.PinPath, name), nil)
	f.must(err)
	return m
}
