package xdp

import (
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

// sourceRow is a struct source, which only the program itself reads.
type sourceRow struct {
	Bucket     bucketRow
	KnownUntil uint64
}

// sourceCount is SYN_SOURCES of bpf/config.h.
const sourceCount = 65536

// setSources gives each source so many SYNs, once and for all, and forgets who
// is known.
func (f *fixture) setSources(m *ebpf.Map, tokens int64) {
	f.t.Helper()
	keys, rows := make([]uint32, sourceCount), make([]sourceRow, sourceCount)
	for i := range keys {
		keys[i], rows[i].Bucket = uint32(i), bucketRow{never, tokens}
	}
	if n, err := m.BatchUpdate(keys, rows, nil); err != nil || n != sourceCount {
		f.t.Fatalf("%d sources set: %v", n, err)
	}
}

// apart finds addresses that do not share a budget, of networks by the number.
func (f *fixture) apart(c cast, m *ebpf.Map, count int, network func(n int) netip.Addr) (found []netip.Addr) {
	f.t.Helper()
	const plenty = 1 << 40
	f.setSources(m, plenty)
	f.setBucket(bucketSYN, plenty)
	touched := 0
	for n := 0; len(found) < count; n++ {
		in := c.syn(0)
		in.src = netip.AddrPortFrom(network(n), 40000)
		f.expect(in, "tx_new")
		keys, rows := make([]uint32, sourceCount), make([]sourceRow, sourceCount)
		var cursor ebpf.MapBatchCursor
		if got, err := m.BatchLookup(&cursor, keys, rows, nil); got != sourceCount {
			f.t.Fatalf("%d sources read: %v", got, err)
		}
		now := 0
		for i := range rows {
			if rows[i].Bucket.Tokens != plenty {
				now++
			}
		}
		if now == touched+1 {
			found, touched = append(found, network(n)), now
		}
	}
	_, err := f.FlushFlows(c.vip.Addr())
	f.must(err)
	return found
}

func TestSYNBudgets(t *testing.T) {
	f := newDualFixture(t, func(c *Config) { c.SYNRatePerSource, c.SYNRateTotal = 100, 200 })
	f.each(families, func(f *fixture, c cast) {
		name := "sources"
		network := func(n int) netip.Addr { return netip.AddrFrom4([4]byte{203, 0, 113, byte(n)}) }
		if c.vip.Addr().Is6() {
			name = "sources6"
			network = func(n int) netip.Addr {
				return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 0, 0, 0, byte(n), 15: 1})
			}
		}
		sources := f.pinned(name)
		defer sources.Close()
		who := f.apart(c, sources, 4, network)
		port := uint16(1000)
		from := func(addr netip.Addr) segment {
			in := c.syn(0)
			in.src = netip.AddrPortFrom(addr, port)
			port++
			return in
		}
		f.setSources(sources, 10)
		f.setBucket(bucketSYN, 15)
		known := f.establish(from(who[3]))
		for range 10 {
			f.expect(from(who[0]), "tx_new")
		}
		for range 5 {
			f.wantUnsent(from(who[0]), "drop_syn_source")
		}
		for range 4 {
			f.expect(from(who[1]), "tx_new")
		}
		f.wantUnsent(from(who[1]), "drop_syn_total")
		f.wantUnsent(from(who[2]), "drop_syn_total")
		// Who has completed a handshake is held to its own budget alone.
		for range 9 {
			f.expect(from(who[3]), "tx_new")
		}
		f.wantUnsent(from(who[3]), "drop_syn_source")
		// What there is goes on, SYNs included.
		f.clientSays(&known, ack, "select 1")
		f.backendSays(&known, ack, "1")
		again := from(who[3])
		again.src = known.c.src
		f.expect(again, "tx_forward")
		if n := f.entries(); n != 2*(1+10+4+9) {
			f.t.Errorf("%d entries", n)
		}
		if c.vip.Addr().Is6() {
			f.networkShares(c, sources, who[0])
		}
		f.refills(c, sources, from, who)
	})
}

// networkShares: of IPv6 a /64 is one source, as its hosts have as many
// addresses as they like.
func (f *fixture) networkShares(c cast, sources *ebpf.Map, addr netip.Addr) {
	f.t.Helper()
	f.setSources(sources, 3)
	f.setBucket(bucketSYN, 100)
	b := addr.As16()
	for n := range 6 {
		b[8+n]++
		in := c.syn(0)
		in.src = netip.AddrPortFrom(netip.AddrFrom16(b), 7)
		if n < 3 {
			f.expect(in, "tx_new")
		} else {
			f.wantUnsent(in, "drop_syn_source")
		}
	}
}

// refills has the clock fill the buckets: a second's worth at the most, and
// what has passed since.
func (f *fixture) refills(c cast, sources *ebpf.Map, from func(netip.Addr) segment, who []netip.Addr) {
	f.t.Helper()
	keys, rows := make([]uint32, sourceCount), make([]sourceRow, sourceCount)
	for i := range keys {
		keys[i] = uint32(i)
	}
	_, err := sources.BatchUpdate(keys, rows, nil) // empty, and never filled
	f.must(err)
	f.setBucket(bucketSYN, 1<<40)
	began := time.Now()
	opened := 0
	for n := range 1000 {
		_, _, v := f.run(from(who[n%2]).frame())
		if v == "tx_new" {
			opened++
		} else if v != "drop_syn_source" {
			f.t.Fatalf("verdict %s", v)
		}
	}
	// 100 a second for each, and as much at once.
	if most := 2 * (100 + int(100*time.Since(began).Seconds()) + 1); opened < min(200, 1000) || opened > most {
		f.t.Errorf("%d of 1000 were let through in %s, at most %d may be", opened, time.Since(began), most)
	}
}
