package xdp

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cilium/ebpf/btf"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

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
	var all []lb.ServiceStats
	for _, f := range t.families() {
		services, err := f.services()
		if err != nil {
			return nil, err
		}
		for addr, head := range services {
			s := lb.ServiceStats{Name: head.name, Addr: addr}
			if err := t.backendStats(f, head.id, &s); err != nil {
				return nil, fmt.Errorf("service %s: %w", s.Name, err)
			}
			all = append(all, s)
		}
	}
	slices.SortFunc(all, func(a, b lb.ServiceStats) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

func (t *tables) backendStats(f familyTables, id uint32, s *lb.ServiceStats) error {
	var schedule scheduleRow
	var load loadRow
	if err := errors.Join(t.schedules.Lookup(id, &schedule), t.loads.Lookup(id, &load)); err != nil {
		return err
	}
	s.Scheduler = lb.Scheduler(schedule.Scheduler)
	for i := range uint32(lb.MaxBackends) {
		if schedule.Slots[i].Weight == 0 {
			continue
		}
		b, err := t.oneBackend(f, index(id, i))
		if err != nil {
			return err
		}
		schedule.Slots[i].describe(&b)
		b.Active = load.Active[i]
		b.Total = load.Total[i]
		b.Closed = b.Total - min(uint64(max(b.Active, 0)), b.Total)
		b.Refused = load.Refused[i]
		b.Redispatched = load.Redispatched[i]
		b.Resets = load.Resets[i]
		b.Evicted = load.Evicted[i]
		s.Backends = append(s.Backends, b)
	}
	return nil
}

// oneBackend reads what is not by service.
func (t *tables) oneBackend(f familyTables, index uint32) (lb.BackendStats, error) {
	var perCPU []trafficRow
	var times connectTimeRow
	row, err := f.backend(index)
	if err := errors.Join(err, t.traffics.Lookup(index, &perCPU), t.connectTimes.Lookup(index, &times)); err != nil {
		return lb.BackendStats{}, err
	}
	b := lb.BackendStats{
		Name: row.name, Addr: row.addr,
		ConnectTime: times.Count, ConnectTimeSum: time.Duration(times.SumNs),
	}
	if row.mac != (macAddr{}) {
		b.MAC = net.HardwareAddr(row.mac[:]).String()
	}
	for _, c := range perCPU {
		b.PacketsIn += c.PacketsIn
		b.BytesIn += c.BytesIn
		b.PacketsOut += c.PacketsOut
		b.BytesOut += c.BytesOut
	}
	return b, nil
}

func (t *tables) vipStats() ([]lb.VIPStats, error) {
	clock, err := t.clock()
	if err != nil {
		return nil, err
	}
	var all []lb.VIPStats
	for _, f := range t.families() {
		vips, err := f.vips()
		if err != nil {
			return nil, err
		}
		for addr, row := range vips {
			until, err := f.lease(row.Index)
			if err != nil {
				return nil, err
			}
			v := lb.VIPStats{
				Addr: addr, Router: row.Router.String(), VRID: row.VRID, Priority: row.Priority, State: "unknown",
				Since: time.Duration(clock.ns - min(row.SinceNs, clock.ns)),
				Lease: max(clock.until(until), 0),
			}
			if int(row.State) < len(vipStates) {
				v.State = vipStates[row.State]
			}
			all = append(all, v)
		}
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

// eachFlow calls fn for every flow that matches, until it returns false. For
// match the flow is as its forward half has it, see Balancer.FlowsWhere.
func (t *tables) eachFlow(match, fn func(lb.Flow) bool) error {
	clock, err := t.clock()
	if err != nil {
		return err
	}
	more := true
	for _, f := range t.families() {
		err := f.eachFlow(func(h *half) bool {
			return match == nil || match(describeFlow(h, nil, clock))
		}, func(forward, reverse *half) bool {
			more = fn(describeFlow(forward, reverse, clock))
			return more
		})
		if err != nil || !more {
			return err
		}
	}
	return nil
}

// describeFlow makes do without a reverse half: one that was removed between
// the two reads.
func describeFlow(h, reverse *half, clock clock) lb.Flow {
	flow := lb.Flow{
		Client: h.from, Service: h.to, SNAT: h.newFrom, Backend: h.newTo, State: flowState(h.flags),
		Age: clock.age(h.created), Idle: clock.age(h.seen), PacketsIn: h.packets, BytesIn: h.bytes,
	}
	if reverse != nil {
		flow.Idle = min(flow.Idle, clock.age(reverse.seen))
		flow.PacketsOut, flow.BytesOut = reverse.packets, reverse.bytes
	}
	return flow
}

// flowState names the state as lb.Flow documents.
func flowState(flags balancerFlowFlag) string {
	has := func(f balancerFlowFlag) bool { return flags&f != 0 }
	switch {
	case has(balancerFlowFlagFLOW_RESET):
		return "reset"
	case has(balancerFlowFlagFLOW_CLOSED) && has(balancerFlowFlagFLOW_TIME_WAIT):
		return "time_wait"
	case has(balancerFlowFlagFLOW_CLOSED):
		return "closed"
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
