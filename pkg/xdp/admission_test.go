package xdp

import (
	"net/netip"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// set changes one pooler in place.
func (f *fixture) set(c cast, i int, change func(*lb.Backend)) {
	f.t.Helper()
	b := c.backend(i)
	change(&b)
	f.must(f.SetBackend("postgres", b))
}

func withState(state lb.State) func(*lb.Backend) { return func(b *lb.Backend) { b.State = state } }

// openMany sends SYNs of the clients numbered from first on and returns which
// poolers got them.
func (f *fixture) openMany(c cast, first, count int) (slots []int) {
	f.t.Helper()
	for n := range count {
		out := f.expect(c.syn(first+n), "tx_new")
		slots = append(slots, c.slot(out.dst))
	}
	return slots
}

func tally(slots []int) (counts [3]int) {
	for _, s := range slots {
		counts[s]++
	}
	return counts
}

// wantRST sends a SYN and wants it to be refused.
func (f *fixture) wantRST(in segment, verdict string) {
	f.t.Helper()
	out := f.expect(in, verdict)
	if out.flags != rst|ack || out.seq != 0 || out.ack != in.seq+1 || out.src != in.dst || out.dst != in.src ||
		out.srcMAC != lbMAC || out.dstMAC != in.srcMAC || out.tags != in.tags || out.options != "" {
		f.t.Errorf("%s: the reset is %+v", verdict, out)
	}
}

func testStates(f *fixture, c cast) {
	k := f.establish(c.syn(0))
	at := c.slot(k.b.src)
	for i, state := range []lb.State{lb.Draining, lb.Maintenance, lb.Down} {
		f.set(c, at, withState(state))
		if got := tally(f.openMany(c, 10+10*i, 10)); got[at] != 0 {
			f.t.Errorf("%s: takes flows: %v", state, got)
		}
		f.clientSays(&k, ack, "lives on")
		f.backendSays(&k, ack, "does it")
	}
	f.set(c, (at+1)%3, withState(lb.Maintenance))
	f.set(c, (at+2)%3, withState(lb.Draining))
	f.wantRST(c.syn(100), "tx_rst_no_backend")
	if _, ok := f.forwardHalf(c, c.number(100)); ok {
		f.t.Error("a flow was left behind")
	}
	f.set(c, at, withState(lb.Up))
	if got := tally(f.openMany(c, 100, 5)); got[at] != 5 {
		f.t.Errorf("back up, it takes %v", got)
	}
	// Up, but its next hop is not known.
	f.mu.Lock()
	mac := f.neighbours[c.pooler.Addr()]
	delete(f.neighbours, c.pooler.Addr())
	err := f.refreshNextHops()
	f.mu.Unlock()
	f.must(err)
	f.wantRST(c.syn(200), "tx_rst_no_backend")
	f.clientSays(&k, ack, "still")
	f.mu.Lock()
	f.neighbours[c.pooler.Addr()] = mac
	err = f.refreshNextHops()
	f.mu.Unlock()
	f.must(err)
	f.expect(c.syn(200), "tx_new")
}

// full has two poolers with at most two flows each.
func (c cast) full(drop bool) lb.Service {
	s := c.service(2)
	s.DropWhenFull = drop
	for i := range s.Backends {
		s.Backends[i].MaxConnections = 2
	}
	return s
}

func testFull(f *fixture, c cast) {
	f.must(f.SetServices([]lb.Service{c.full(false)}))
	f.openMany(c, 0, 3)
	k := f.establish(c.syn(3))
	f.wantActive(2, 2)
	f.wantRST(c.syn(4), "tx_rst_full")
	f.must(f.SetServices([]lb.Service{c.full(true)}))
	f.wantUnsent(c.syn(4), "drop_full")
	// None that is up is another thing than none with room.
	f.set(c, 0, withState(lb.Down))
	f.set(c, 1, withState(lb.Draining))
	f.wantRST(c.syn(4), "tx_rst_no_backend")
	f.must(f.SetServices([]lb.Service{c.full(true)}))
	f.wantActive(2, 2)
	if n := f.entries(); n != 8 {
		f.t.Errorf("%d entries", n)
	}
	// Room again at the very moment that one ends.
	f.clientSays(&k, fin|ack, "")
	f.wantUnsent(c.syn(4), "drop_full")
	f.backendSays(&k, fin|ack, "")
	if out := f.expect(c.syn(4), "tx_new"); out.dst != k.b.src {
		f.t.Errorf("went to %s, the room is at %s", out.dst, k.b.src)
	}
	f.wantUnsent(c.syn(5), "drop_full")
	// A higher limit, and a lower one, which ends nothing.
	limit := func(n uint32) func(*lb.Backend) { return func(b *lb.Backend) { b.MaxConnections = n } }
	f.set(c, 0, limit(3))
	f.expect(c.syn(5), "tx_new")
	f.set(c, 0, limit(1))
	f.wantUnsent(c.syn(6), "drop_full")
	f.wantActive(2, 3)
	f.set(c, 0, limit(0))
	f.openMany(c, 10, 10)
	f.wantActive(2, 13)
}

// A pooler that is full is passed over, by every scheduler.
func testLimits(f *fixture, c cast) {
	for _, scheduler := range []lb.Scheduler{lb.LeastConn, lb.RoundRobin, lb.RandomTwo} {
		s := c.service(3)
		s.Scheduler = scheduler
		s.Backends[0].MaxConnections, s.Backends[1].MaxConnections, s.Backends[2].MaxConnections = 1, 2, 5
		f.serve(s)
		if got := tally(f.openMany(c, 0, 8)); got != [3]int{1, 2, 5} {
			f.t.Errorf("%s: %v", scheduler, got)
		}
		f.wantRST(c.syn(8), "tx_rst_full")
		f.wantNoDrift()
	}
}

func testBackup(f *fixture, c cast) {
	for _, scheduler := range []lb.Scheduler{lb.LeastConn, lb.RoundRobin, lb.RandomTwo} {
		s := c.service(3)
		s.Scheduler = scheduler
		s.Backends[0].Backup = true
		s.Backends[1].MaxConnections = 3
		s.Backends[2].MaxConnections = 4
		f.serve(s)
		down := func(i int, down bool) {
			b := s.Backends[i]
			if down {
				b.State = lb.Down
			}
			f.must(f.SetBackend("postgres", b))
		}
		if got := tally(f.openMany(c, 0, 5)); got[0] != 0 {
			f.t.Errorf("%s: the backup was used while others were up: %v", scheduler, got)
		}
		// When all others are full or down.
		down(1, true)
		f.openMany(c, 5, 7)
		if got := f.active(); got[0] < 5 || got[2] != 4 {
			f.t.Errorf("%s: active counts %v", scheduler, got)
		}
		down(1, false)
		before := f.active()
		f.openMany(c, 20, int(3-before[1]))
		if got := f.active(); got[0] != before[0] || got[1] != 3 {
			f.t.Errorf("%s: active counts %v, before %v", scheduler, got, before)
		}
		down(1, true)
		down(2, true)
		if got := tally(f.openMany(c, 30, 4)); got != [3]int{4, 0, 0} {
			f.t.Errorf("%s: with all others down: %v", scheduler, got)
		}
		down(0, true)
		f.wantRST(c.syn(40), "tx_rst_no_backend")
	}
}

func testNATAddresses(f *fixture, c cast) {
	s := c.service(3)
	s.NATAddrs = []netip.Addr{c.nat}
	f.serve(s)
	sources := make(map[netip.Addr]*talk)
	count := make(map[netip.Addr]int)
	for n := range 200 {
		k := f.establish(c.syn(n))
		source := k.b.dst.Addr()
		sources[source] = &k
		count[source]++
	}
	if len(count) != 2 || count[c.vip.Addr()] < 60 || count[c.nat] < 60 {
		f.t.Fatalf("sources %v", count)
	}
	throughVIP, throughNAT := sources[c.vip.Addr()], sources[c.nat]
	for _, k := range sources {
		f.clientSays(k, ack|psh, "select 1")
		if got := f.backendSays(k, ack|psh, "1"); got.src != c.vip {
			f.t.Errorf("the client is answered by %s", got.src)
		}
	}
	stray := c.stray(ack)
	stray.dst = netip.AddrPortFrom(c.nat, 10000)
	f.expect(stray, "tx_rst_backend")
	other := c.sends(ack)
	other.dst = netip.AddrPortFrom(c.nat, c.vip.Port())
	f.wantUnsent(other, "pass_port") // no service there

	// The backend's side is fenced by the lease of the address that it has.
	f.must(f.RevokeLease(c.nat))
	f.wantUnsent(throughNAT.b, "drop_fenced")
	f.wantUnsent(stray, "drop_fenced")
	f.backendSays(throughVIP, ack, "")
	f.clientSays(throughVIP, ack, "")
	f.must(f.RenewLease(c.nat, time.Hour))
	f.must(f.RevokeLease(c.vip.Addr()))
	f.wantUnsent(throughVIP.b, "drop_fenced")
	f.wantUnsent(throughVIP.c, "drop_fenced")
	f.wantUnsent(throughNAT.c, "drop_fenced") // the client's side is the VIP's
	f.must(f.RenewLease(c.vip.Addr(), time.Hour))
	f.backendSays(throughNAT, ack, "")

	// An address that goes keeps the flows that have it.
	s.NATAddrs = nil
	f.must(f.SetServices([]lb.Service{s}))
	f.backendSays(throughNAT, ack, "")
	for n := range 50 {
		if got := f.expect(c.syn(300+n), "tx_new"); got.src.Addr() != c.vip.Addr() {
			f.t.Fatalf("a new flow has the source %s", got.src)
		}
	}
	s.NATAddrs = []netip.Addr{c.client.Addr()}
	if err := f.SetServices([]lb.Service{s}); err == nil {
		f.t.Error("an address that is no VIP was accepted")
	}
}

func testAllowed(f *fixture, c cast) {
	s := c.service(1)
	from := func(addr string) segment {
		in := c.sends(syn)
		in.src = netip.AddrPortFrom(netip.MustParseAddr(addr), 50000)
		return in
	}
	type try struct {
		addr    string
		allowed bool
	}
	steps := []struct {
		allow []string
		tries []try
	}{
		{[]string{"10.1.0.0/16", "10.2.3.4/32", "172.16.0.0/12"}, []try{
			{"10.1.0.0", true}, {"10.1.255.255", true}, {"10.2.3.4", true}, {"172.31.255.1", true},
			{"10.0.255.255", false}, {"10.2.0.0", false}, {"10.2.3.5", false}, {"172.32.0.1", false}, {"192.168.1.50", false},
		}},
		// Replaced at run time; host bits in a network do not count.
		{[]string{"10.2.9.9/24"}, []try{{"10.1.0.0", false}, {"10.2.3.4", false}, {"10.2.9.0", true}, {"10.2.9.255", true}, {"10.2.10.0", false}}},
		{[]string{"0.0.0.0/0"}, []try{{"10.1.0.0", true}, {"203.0.113.7", true}}},
		{nil, []try{{"10.1.0.0", true}, {"203.0.113.7", true}}},
		{[]string{"10.1.0.0/16"}, []try{{"10.1.2.3", true}, {"203.0.113.7", false}}},
	}
	if c.vip.Addr().Is6() {
		steps = []struct {
			allow []string
			tries []try
		}{
			{[]string{"2001:db8:1::/48", "2001:db8:2:3::4/128", "fd00::/8"}, []try{
				{"2001:db8:1::1", true}, {"2001:db8:1:ffff::1", true}, {"2001:db8:2:3::4", true}, {"fdff::1", true},
				{"2001:db8:0:ffff::1", false}, {"2001:db8:2:3::5", false}, {"2001:db8:3::1", false}, {"fc00::1", false},
			}},
			{[]string{"2001:db8:9:9:9::9/65"}, []try{{"2001:db8:1::1", false}, {"2001:db8:9:9::1", true}, {"2001:db8:9:9:8000::", false}}},
			{[]string{"::/0"}, []try{{"2001:db8:1::1", true}, {"2600::1", true}}},
			{nil, []try{{"2001:db8:1::1", true}}},
			{[]string{"2001:db8:1::/48"}, []try{{"2001:db8:1:2::3", true}, {"2600::1", false}}},
		}
	}
	f.serve(s)
	k := f.establish(c.sends(syn))
	for i, step := range steps {
		s.Allow = nil
		for _, n := range step.allow {
			s.Allow = append(s.Allow, netip.MustParsePrefix(n))
		}
		f.must(f.SetServices([]lb.Service{s}))
		for _, try := range step.tries {
			in := from(try.addr)
			if try.allowed {
				f.expect(in, "tx_new")
				f.forget(c, in.src)
			} else {
				f.wantUnsent(in, "drop_not_allowed")
			}
			if _, ok := f.forwardHalf(c, in.src); ok {
				f.t.Errorf("step %d: %s has a flow", i, try.addr)
			}
		}
		f.clientSays(&k, ack, "connected before") // who was let in stays
	}
	// The networks are this service's alone.
	second := s
	second.Name, second.Addr, second.Allow = "second", netip.AddrPortFrom(c.vip.Addr(), 5433), nil
	f.must(f.SetServices([]lb.Service{s, second}))
	stranger := from(steps[len(steps)-1].tries[1].addr)
	f.wantUnsent(stranger, "drop_not_allowed")
	stranger.dst = second.Addr
	f.expect(stranger, "tx_new")
	s.Allow = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	if c.vip.Addr().Is4() {
		s.Allow = []netip.Prefix{netip.MustParsePrefix("fd00::/8")}
	}
	if err := f.SetServices([]lb.Service{s}); err == nil {
		f.t.Error("a network of the other family was accepted")
	}
}
