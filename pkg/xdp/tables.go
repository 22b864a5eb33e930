package xdp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// tables reads what the program and the daemon keep in the maps; both the
// daemon and, through pins, the tools do.
type tables struct {
	backends, flows, loads, schedules, services, traffics, verdicts, vips *ebpf.Map
}

// services4 returns the services by address.
func (t *tables) services4() (map[netip.AddrPort]balancerService, error) {
	all := make(map[netip.AddrPort]balancerService)
	var key balancerServiceKey
	var row balancerService
	it := t.services.Iterate()
	for it.Next(&key, &row) {
		all[addrPortOf(key.Addr, key.Port)] = row
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("listing services: %w", err)
	}
	return all, nil
}

// stats reads everything but the audit, interface and mode.
func (t *tables) stats() (lb.DatapathStats, error) {
	var s lb.DatapathStats
	var err error
	if s.Services, err = t.serviceStats(); err != nil {
		return s, err
	}
	if s.VIPs, err = t.vipStats(); err != nil {
		return s, err
	}
	s.Verdicts, err = t.verdictCounts()
	return s, err
}

func (t *tables) serviceStats() ([]lb.ServiceStats, error) {
	services, err := t.services4()
	if err != nil {
		return nil, err
	}
	var all []lb.ServiceStats
	for addr, row := range services {
		s := lb.ServiceStats{Name: nameOf(row.Name), Addr: addr}
		if err := t.backendStats(row.Id, &s); err != nil {
			return nil, fmt.Errorf("service %s: %w", s.Name, err)
		}
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b lb.ServiceStats) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

func (t *tables) backendStats(id uint32, s *lb.ServiceStats) error {
	var schedule balancerSchedule
	var load balancerLoad
	if err := errors.Join(t.schedules.Lookup(id, &schedule), t.loads.Lookup(id, &load)); err != nil {
		return err
	}
	s.Scheduler = lb.Scheduler(schedule.Scheduler)
	for i, slot := range schedule.Slots {
		if slot.Weight == 0 {
			continue
		}
		var row balancerBackend
		var perCPU []balancerTraffic
		index := id*lb.MaxBackends + uint32(i)
		if err := errors.Join(t.backends.Lookup(index, &row), t.traffics.Lookup(index, &perCPU)); err != nil {
			return err
		}
		b := lb.BackendStats{
			Name:      nameOf(row.Name),
			Addr:      addrPortOf(row.Addr, row.Port),
			State:     lb.State(slot.State),
			Weight:    slot.Weight,
			Reachable: slot.Reachable != 0,
			Active:    load.Active[i],
			Total:     load.Total[i],
			Refused:   load.Refused[i],
		}
		if row.Mac != (macAddr{}) {
			b.MAC = net.HardwareAddr(row.Mac[:]).String()
		}
		for _, c := range perCPU {
			b.PacketsIn += c.PacketsIn
			b.BytesIn += c.BytesIn
			b.PacketsOut += c.PacketsOut
			b.BytesOut += c.BytesOut
		}
		s.Backends = append(s.Backends, b)
	}
	return nil
}

func (t *tables) vipStats() ([]lb.VIPStats, error) {
	now := monotonic()
	var all []lb.VIPStats
	var key uint32
	var row balancerVip
	it := t.vips.Iterate()
	for it.Next(&key, &row) {
		v := lb.VIPStats{
			Addr:     addrOf(key),
			Router:   nameOf(row.Router),
			VRID:     row.Vrid,
			Priority: row.Priority,
			State:    "unknown",
			Since:    age(now, row.Since),
		}
		if int(row.State) < len(vipStates) {
			v.State = vipStates[row.State]
		}
		v.Lease = age(row.LeaseUntil, now)
		all = append(all, v)
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("listing virtual addresses: %w", err)
	}
	slices.SortFunc(all, func(a, b lb.VIPStats) int { return a.Addr.Compare(b.Addr) })
	return all, nil
}

func (t *tables) verdictCounts() ([]lb.VerdictCount, error) {
	names, err := verdictNames()
	if err != nil {
		return nil, err
	}
	all := make([]lb.VerdictCount, 0, len(names))
	for i, name := range names {
		var perCPU []uint64
		if err := t.verdicts.Lookup(uint32(i), &perCPU); err != nil {
			return nil, fmt.Errorf("reading verdict %s: %w", name, err)
		}
		action, _, _ := strings.Cut(name, "_")
		v := lb.VerdictCount{Name: name, Action: action}
		for _, c := range perCPU {
			v.Count += c
		}
		all = append(all, v)
	}
	return all, nil
}

// verdictNames takes the names from the program's own type information, so
// that there is no second list to keep. "tx_forward": the action is the first
// word.
var verdictNames = sync.OnceValues(func() ([]string, error) {
	spec, err := loadBalancer()
	if err != nil {
		return nil, err
	}
	var enum *btf.Enum
	if err := spec.Types.TypeByName("verdict", &enum); err != nil {
		return nil, fmt.Errorf("finding the verdicts' names: %w", err)
	}
	names := make([]string, balancerVerdictVERDICTS)
	for _, v := range enum.Values {
		if v.Value < uint64(len(names)) {
			names[v.Value] = strings.ToLower(v.Name)
		}
	}
	return names, nil
})

// eachFlow calls fn for every flow until it returns false.
func (t *tables) eachFlow(fn func(lb.Flow) bool) error {
	now := monotonic()
	services, err := t.services4()
	if err != nil {
		return err
	}
	byID := make(map[uint32]netip.AddrPort)
	for addr, s := range services {
		byID[s.Id] = addr
	}
	var batch flowBatch
	return batch.each(t.flows, func(key *balancerFlowKey, f *balancerFlow) bool {
		if balancerFlowFlag(f.Flags)&balancerFlowFlagFLOW_FORWARD == 0 {
			return true
		}
		seen := f.Seen
		flow := lb.Flow{
			Client:    addrPortOf(key.Saddr, key.Sport),
			Service:   addrPortOf(key.Daddr, key.Dport),
			SNAT:      addrPortOf(f.Rewritten.Saddr, f.Rewritten.Sport),
			Backend:   addrPortOf(f.Rewritten.Daddr, f.Rewritten.Dport),
			State:     flowState(balancerFlowFlag(f.Flags)),
			Age:       age(now, f.Created),
			PacketsIn: f.Packets,
			BytesIn:   f.Bytes,
		}
		var reverse balancerFlow
		// Gone between the two reads: the flow was removed, show what was.
		if t.flows.Lookup(peerKey(f), &reverse) == nil {
			seen = max(seen, reverse.Seen)
			flow.PacketsOut, flow.BytesOut = reverse.Packets, reverse.Bytes
		}
		flow.Idle = age(now, seen)
		return fn(flow)
	})
}

// flowState names the state as lb.Flow documents.
func flowState(flags balancerFlowFlag) string {
	has := func(f balancerFlowFlag) bool { return flags&f != 0 }
	switch {
	case has(balancerFlowFlagFLOW_RESET):
		return "reset"
	case has(balancerFlowFlagFLOW_CLOSED):
		return "time_wait"
	case has(balancerFlowFlagFLOW_FIN_CLIENT):
		return "fin_client"
	case has(balancerFlowFlagFLOW_FIN_BACKEND):
		return "fin_backend"
	case has(balancerFlowFlagFLOW_ESTABLISHED):
		return "established"
	case has(balancerFlowFlagFLOW_SYN_ACK):
		return "syn_received"
	default:
		return "syn_sent"
	}
}
