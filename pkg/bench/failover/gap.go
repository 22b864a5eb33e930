package failover

import (
	"slices"
	"time"

	"github.com/pgsteer/pgsteer/pkg/bench"
	"github.com/pgsteer/pgsteer/pkg/lab/load"
)

// longestGap returns the longest time without an answer between two moments: from
// one answer to the next, the last one before the time counted in, and from the
// last one to its end. An attempt answers when it ends.
func longestGap(attempts []load.Attempt, from, to time.Time) time.Duration {
	var ends []time.Time
	for _, a := range attempts {
		if end := a.Start.Add(a.Took); a.Err == nil && !end.After(to) {
			ends = append(ends, end)
		}
	}
	slices.SortFunc(ends, time.Time.Compare)
	last, gap := from, time.Duration(0)
	for _, end := range append(ends, to) {
		if end.After(from) {
			gap = max(gap, end.Sub(last))
		}
		last = end
	}
	return gap
}

// outcome is what a fault did to the clients of one stack.
type outcome struct {
	gap        time.Duration
	idle, busy int           // connections lost
	both       time.Duration // how long two nodes answered for the address
}

func (o outcome) lost() int { return o.idle + o.busy }

// column returns a figure of all outcomes.
func column(outcomes []outcome, figure func(outcome) float64) []float64 {
	values := make([]float64, len(outcomes))
	for i, o := range outcomes {
		values[i] = figure(o)
	}
	return values
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// Names of the rows, before the fault's.
const (
	gapMedian = "failover.gap_median."
	gapWorst  = "failover.gap_worst."
	lost      = "failover.lost."
)

func names(fault string) []string { return []string{gapMedian + fault, gapWorst + fault, lost + fault} }

const peer = "keepalived+HAProxy"

// rows makes a fault's results of the outcomes, which were measured in pairs.
func rows(f fault, ours, theirs []outcome) []bench.Result {
	gap := func(o outcome) float64 { return milliseconds(o.gap) }
	gaps, peerGaps := column(ours, gap), column(theirs, gap)
	median := bench.Compare(bench.Result{Name: gapMedian + f.name, Unit: "ms", Peer: peer}, gaps, peerGaps)
	median.Extra = map[string]float64{}
	spread(median.Extra, "", gaps)
	spread(median.Extra, "peer_", peerGaps)

	worst := bench.Compare(bench.Result{Name: gapWorst + f.name, Unit: "ms", Peer: peer},
		[]float64{slices.Max(gaps)}, []float64{slices.Max(peerGaps)})
	worst.Runs = len(ours)
	if f.reachable {
		both := func(o outcome) float64 { return milliseconds(o.both) }
		worst.Extra = map[string]float64{
			"dual_active_ms":      slices.Max(column(ours, both)),
			"peer_dual_active_ms": slices.Max(column(theirs, both)),
		}
	}
	return []bench.Result{median, worst, lostRow(f, ours, theirs)}
}

// spread notes how far values lie apart.
func spread(extra map[string]float64, prefix string, values []float64) {
	for name, q := range map[string]float64{"min": 0, "p25": 0.25, "p75": 0.75, "max": 1} {
		extra[prefix+name+"_ms"] = bench.Quantile(values, q)
	}
}

// lostRow compares the connections lost. A peer that has lost none counts as one
// that has lost one: the ratio must be a number, and 0 is for those who lose none.
func lostRow(f fault, ours, theirs []outcome) bench.Result {
	count := func(o outcome) float64 { return float64(o.lost()) }
	values, peerValues := column(ours, count), column(theirs, count)
	divisors := make([]float64, len(peerValues))
	for i, v := range peerValues {
		divisors[i] = max(v, 1)
	}
	r := bench.Compare(bench.Result{Name: lost + f.name, Unit: "connections", Peer: peer, Zero: true}, values, divisors)
	r.PeerValue = bench.Quantile(peerValues, 0.5)
	idle := func(o outcome) float64 { return float64(o.idle) }
	busy := func(o outcome) float64 { return float64(o.busy) }
	r.Extra = map[string]float64{
		"worst": slices.Max(values), "peer_worst": slices.Max(peerValues),
		"idle": bench.Quantile(column(ours, idle), 0.5), "peer_idle": bench.Quantile(column(theirs, idle), 0.5),
		"busy": bench.Quantile(column(ours, busy), 0.5), "peer_busy": bench.Quantile(column(theirs, busy), 0.5),
	}
	return r
}
