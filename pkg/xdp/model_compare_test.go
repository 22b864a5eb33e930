package xdp

import (
	"net/netip"
	"slices"
	"strings"
)

// compareCounts compares what is counted.
func (r *modelRun) compareCounts() {
	var row loadRow
	r.must(r.tables.loads.Lookup(uint32(0), &row))
	if int(row.Rotor) != r.m.rotor {
		r.failf("rotor %d, want %d", row.Rotor, r.m.rotor)
	}
	for slot := range r.m.counts {
		got := modelCounts{
			active: row.Active[slot], credit: row.Credit[slot], total: row.Total[slot], refused: row.Refused[slot],
			redispatched: row.Redispatched[slot], resets: row.Resets[slot], gone: row.Evicted[slot], suspect: row.Suspect[slot] != 0,
		}
		if want := r.m.counts[slot]; got != want {
			r.failf("backend %d: counts\n%+v, want\n%+v", slot, got, want)
		}
	}
	for _, v := range r.verdictCounts() {
		if got := v.Count - r.base[v.Name]; got != r.m.verdicts[v.Name] {
			r.failf("%s: %d packets, want %d", v.Name, got, r.m.verdicts[v.Name])
		}
	}
}

// compareFlows compares the whole table: which flows there are, where they go
// and what state they are in.
func (r *modelRun) compareFlows() {
	family, err := r.tables.of(r.m.vip.Addr())
	r.must(err)
	halves, flows := 0, 0
	numbers := make(map[netip.AddrPort]int)
	for n := range modelClients {
		numbers[r.m.number(n)] = n
	}
	active := make([]int64, len(r.m.counts))
	r.must(family.eachHalf(func(h *half) bool {
		halves++
		if !h.has(balancerFlowFlagFLOW_FORWARD) {
			return true
		}
		flows++
		fl := r.m.flows[numbers[h.from]]
		if fl == nil {
			r.failf("a flow of %s that the model has not", h.from)
		}
		if at := (tuple{r.m.slot(h.newTo), h.newFrom.Port()}); at != fl.at || flowState(h.flags) != fl.state() {
			r.failf("the flow of %s goes to %+v and is %s; want %+v, %s", h.from, at, flowState(h.flags), fl.at, fl.state())
		}
		if !h.has(balancerFlowFlagFLOW_CLOSED) {
			active[fl.at.slot]++
		}
		return true
	}))
	if flows != len(r.m.flows) || halves != 2*flows || len(r.m.taken) != flows {
		r.failf("%d flows in %d halves, the model has %d", flows, halves, len(r.m.flows))
	}
	for slot, c := range r.m.counts {
		if c.active != active[slot] {
			r.failf("backend %d: %d active, %d in the table", slot, c.active, active[slot])
		}
	}
	for range 2 { // drift is what lasts
		r.sweepSome()
	}
	if a := r.audit.Load(); a.Drift != 0 || a.Orphans != 0 {
		r.failf("the audit finds %+v", a.Audit)
	}
	// What was opened is closed or active.
	s, err := r.Stats()
	r.must(err)
	for _, b := range s.Services[0].Backends {
		if b.Total != b.Closed+uint64(b.Active) {
			r.failf("%s: %d in all, %d closed, %d active", b.Name, b.Total, b.Closed, b.Active)
		}
	}
}

func (r *modelRun) opened() (n uint64) {
	for name, count := range r.m.verdicts {
		if name == "tx_new" || strings.HasPrefix(name, "tx_redispatch") {
			n += count
		}
	}
	return n
}

// wantVariety makes sure that the test is one.
func (r *modelRun) wantVariety() {
	for _, name := range []string{
		"tx_new", "tx_forward", "tx_reverse", "tx_redispatch_refused", "tx_redispatch_silent", "tx_rst_client", "tx_rst_backend",
		"tx_rst_no_backend", "tx_rst_full", "tx_rst_no_port", "drop_full", "drop_stray_rst", "pass_port",
	} {
		if r.m.verdicts[name] == 0 {
			r.t.Errorf("no packet was %s", name)
		}
	}
	if !slices.ContainsFunc(r.m.counts, func(c modelCounts) bool { return c.gone > 0 }) {
		r.t.Error("no half-open flow gave way")
	}
}
