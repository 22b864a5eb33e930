package xdp

import (
	"net/netip"
	"testing"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// Flows of both directions are put together again, whatever falls on the edges
// of what is read and looked up at a time.
func TestFlowsOfALargeTable(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.FlowTableSize = 1 << 15 })
	const flows = 10000
	fill(t, f, flows)
	seen := make(map[lb.Flow]bool)
	f.must(f.Flows(func(fl lb.Flow) bool {
		if fl.PacketsIn != uint64(fl.SNAT.Port()) || fl.PacketsOut != uint64(fl.SNAT.Port())+1 {
			t.Fatalf("halves of different flows: %+v", fl)
		}
		fl.Age, fl.Idle = 0, 0
		seen[fl] = true
		return true
	}))
	if len(seen) != flows {
		t.Errorf("%d flows, want %d", len(seen), flows)
	}
	n := 0
	f.must(f.FlowsWhere(func(fl lb.Flow) bool {
		if fl.PacketsOut != 0 {
			t.Fatalf("the other direction was looked at: %+v", fl)
		}
		return fl.SNAT.Port()%2 == 0
	}, func(fl lb.Flow) bool {
		if fl.SNAT.Port()%2 != 0 || fl.PacketsOut == 0 {
			t.Fatalf("%+v", fl)
		}
		n++
		return n < 4000
	}))
	if n != 4000 {
		t.Errorf("went on to %d", n)
	}
}

// fill puts established flows into the table behind the program's back, and
// their number into the active counts. A flow's packets are its SNAT port, and
// one more in the reverse direction.
func fill(t *testing.T, f *fixture, flows int) {
	t.Helper()
	clock, err := f.tables.clock()
	f.must(err)
	now := clock.before(0)
	four := &f.tables.four
	var keys []flowKey[addr4]
	var rows []flowRow[addr4]
	var load loadRow
	f.must(f.tables.loads.Lookup(uint32(0), &load))
	for n := range flows {
		port := uint16(10240 + n%50000)
		backend := threePoolers().Backends[n/50000%3]
		forward := flowRow[addr4]{
			Rewritten: four.keyOf(addrPort(vip.Addr(), port), backend.Addr),
			ClientMAC: clientMAC, Backend: uint16(n / 50000 % 3), Created: now, Seen: now, Ack: 1, Packets: uint64(port), Bytes: 1,
			Flags: uint32(balancerFlowFlagFLOW_FORWARD | balancerFlowFlagFLOW_SYN_ACK | balancerFlowFlagFLOW_ESTABLISHED),
		}
		key := four.keyOf(clientNumber(n), vip)
		reverse := forward
		reverse.Flags, reverse.Packets = 0, uint64(port)+1
		reverse.Rewritten = four.keyOf(vip, clientNumber(n))
		load.Active[forward.Backend]++
		load.Total[forward.Backend]++
		keys, rows = append(keys, key, forward.peerKey()), append(rows, forward, reverse)
	}
	_, err = four.flows.BatchUpdate(keys, rows, nil)
	f.must(err)
	f.must(f.tables.loads.Put(uint32(0), load))
}

func addrPort(addr netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(addr, port) }
