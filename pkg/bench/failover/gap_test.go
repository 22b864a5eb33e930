package failover

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pgsteer/pgsteer/pkg/bench"
	"github.com/pgsteer/pgsteer/pkg/lab/load"
)

func TestLongestGap(t *testing.T) {
	zero := time.Unix(1000, 0)
	at := func(ms int) time.Time { return zero.Add(time.Duration(ms) * time.Millisecond) }
	// attempts that took 2 ms each, by the time of their end
	answers := func(ends ...int) (all []load.Attempt) {
		for _, end := range ends {
			all = append(all, load.Attempt{Start: at(end - 2), Took: 2 * time.Millisecond})
		}
		return all
	}
	failed := func(start, end int) load.Attempt {
		return load.Attempt{Start: at(start), Took: time.Duration(end-start) * time.Millisecond, Err: errors.New("no")}
	}
	for name, tt := range map[string]struct {
		attempts []load.Attempt
		from, to int
		want     int
	}{
		"none at all":                 {nil, 0, 500, 500},
		"no fault":                    {answers(0, 10, 20, 30), 15, 35, 10},
		"one outage":                  {append(answers(0, 10, 370, 380), failed(20, 340)), 12, 385, 360},
		"from the last answer before": {answers(10, 370, 380), 200, 380, 360},
		"gaps before do not count":    {answers(0, 400, 410, 420), 405, 430, 10},
		"gaps after do not count":     {answers(0, 10, 20, 900), 5, 25, 10},
		"open at the end":             {answers(0, 10), 5, 700, 690},
		"the longest of two":          {answers(0, 10, 110, 120, 420, 430), 5, 430, 300},
		"in whatever order":           {answers(430, 10, 420, 0, 120, 110), 5, 430, 300},
	} {
		got := longestGap(tt.attempts, at(tt.from), at(tt.to))
		if want := time.Duration(tt.want) * time.Millisecond; got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
}

// An attempt that began before the fault and was answered late counts when it was
// answered.
func TestLongestGapCountsAnswers(t *testing.T) {
	zero := time.Unix(1000, 0)
	slow := load.Attempt{Start: zero, Took: 300 * time.Millisecond}
	if got := longestGap([]load.Attempt{slow}, zero.Add(100*time.Millisecond), zero.Add(310*time.Millisecond)); got != 200*time.Millisecond {
		t.Errorf("%v", got)
	}
}

func TestRows(t *testing.T) {
	outcomes := func(gaps [3]time.Duration, idle, busy int, both time.Duration) (all []outcome) {
		for _, g := range gaps {
			all = append(all, outcome{gap: g * time.Millisecond, idle: idle, busy: busy})
		}
		all[1].both = both
		return all
	}
	got := rows(fault{name: "x", reachable: true},
		outcomes([3]time.Duration{300, 100, 200}, 2, 1, 0), outcomes([3]time.Duration{3000, 2000, 2000}, 300, 64, time.Second))
	want := []bench.Result{
		{
			Name: "failover.gap_median.x", Value: 200, Unit: "ms", Peer: peer, PeerValue: 2000, Ratio: 0.1, Runs: 3,
			Spread: bench.Spread{Min: 0.05, P25: 0.075, P75: 0.1, Max: 0.1},
			Extra: map[string]float64{
				"min_ms": 100, "p25_ms": 150, "p75_ms": 250, "max_ms": 300,
				"peer_min_ms": 2000, "peer_p25_ms": 2000, "peer_p75_ms": 2500, "peer_max_ms": 3000,
			},
		},
		{
			Name: "failover.gap_worst.x", Value: 300, Unit: "ms", Peer: peer, PeerValue: 3000, Ratio: 0.1, Runs: 3,
			Spread: bench.Spread{Min: 0.1, P25: 0.1, P75: 0.1, Max: 0.1},
			Extra:  map[string]float64{"dual_active_ms": 0, "peer_dual_active_ms": 1000},
		},
		{
			Name: "failover.lost.x", Value: 3, Unit: "connections", Peer: peer, PeerValue: 364, Ratio: 0.008, Runs: 3, Zero: true,
			Spread: bench.Spread{Min: 0.008, P25: 0.008, P75: 0.008, Max: 0.008},
			Extra:  map[string]float64{"worst": 3, "peer_worst": 364, "idle": 2, "peer_idle": 300, "busy": 1, "peer_busy": 64},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// A node that is cut off the LAN may hold the address as long as it likes.
func TestRowsOfOneCutOff(t *testing.T) {
	all := []outcome{{gap: time.Second, both: time.Second}}
	if got := rows(fault{name: "x"}, all, all); got[1].Extra != nil {
		t.Errorf("%v", got[1].Extra)
	}
}

// Whatever was lost, the rows are written as numbers.
func TestRowsAreWritten(t *testing.T) {
	for _, tt := range []struct {
		ours, theirs int
		ratio        float64
	}{{0, 0, 0}, {0, 364, 0}, {364, 364, 1}, {5, 0, 5}} {
		s := bench.Suite{Names: names("x"), Run: func(_ context.Context, _ []string, _ bench.Log, emit func(bench.Result)) error {
			for _, r := range rows(fault{name: "x"},
				[]outcome{{gap: time.Millisecond, idle: tt.ours}}, []outcome{{gap: time.Second, busy: tt.theirs}}) {
				emit(r)
			}
			return nil
		}}
		var out bytes.Buffer
		if err := bench.Run(t.Context(), []bench.Suite{s}, "failover", &out, t.Logf); err != nil {
			t.Errorf("%+v: %v", tt, err)
			continue
		}
		lines := bytes.Split(bytes.TrimSpace(out.Bytes()), []byte("\n"))
		if len(lines) != 3 {
			t.Errorf("%+v: %d lines", tt, len(lines))
		}
		for _, line := range lines {
			var r map[string]any
			if err := json.Unmarshal(line, &r); err != nil {
				t.Errorf("%s: %v", line, err)
			}
			for _, key := range []string{"name", "value", "unit", "peer", "peer_value", "ratio", "runs"} {
				if _, ok := r[key]; !ok {
					t.Errorf("no %s in %s", key, line)
				}
			}
			if r["name"] == "failover.lost.x" && (r["ratio"] != tt.ratio || r["peer_value"] != float64(tt.theirs)) {
				t.Errorf("%+v: %s", tt, line)
			}
		}
	}
}

func TestLostClients(t *testing.T) {
	const out = `pgbench (15.18)
progress: 1.0 s, 640.0 tps, lat 1.2 ms stddev 0.3, 0 failed
pgbench: error: client 12 script 0 aborted in command 1 query 0: server closed the connection unexpectedly
	This probably means the server terminated abnormally
pgbench: error: client 1 aborted in command 1 (SQL) of script 0; perhaps the backend died while processing
pgbench: error: client 12 aborted: again
pgbench: error: Run was aborted; the above results are incomplete.
`
	if got := lostClients(out); got != 2 {
		t.Errorf("%d clients", got)
	}
	if got := lostClients("progress: 1.0 s"); got != 0 {
		t.Errorf("%d clients", got)
	}
}

func TestBothHold(t *testing.T) {
	broken := errors.New("broken")
	for _, tt := range []struct {
		answers []bool // to one question after the other
		err     error
		want    bool
	}{
		{[]bool{true, true, true}, nil, true},
		{[]bool{true, true, false}, nil, false}, // it was handed over meanwhile
		{[]bool{true, false}, nil, false},
		{[]bool{false}, nil, false},
		{nil, broken, false},
	} {
		asked := 0
		got, err := bothHold(func(node int) (bool, error) {
			defer func() { asked++ }()
			if node != (asked+1)%2 {
				t.Errorf("question %d is about node %d", asked, node)
			}
			if tt.err != nil {
				return false, tt.err
			}
			return tt.answers[asked], nil
		})
		if got != tt.want || !errors.Is(err, tt.err) {
			t.Errorf("%v: %v, %v", tt.answers, got, err)
		}
	}
}

// Each fault has steps that end, and rows whose names are its own.
func TestFaults(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range Suites(DefaultOptions) {
		for _, name := range s.Names {
			if seen[name] {
				t.Errorf("%s comes twice", name)
			}
			seen[name] = true
		}
	}
	for _, f := range faults {
		for i, s := range f.steps {
			if s.strike == nil || s.done == nil && s.lasts == 0 {
				t.Errorf("%s: step %d does nothing", f.name, i)
			}
		}
		for _, name := range []string{"failover.gap_median.", "failover.gap_worst.", "failover.lost."} {
			if !seen[name+f.name] {
				t.Errorf("no %s%s", name, f.name)
			}
		}
	}
	if len(seen) != 18 {
		t.Errorf("%d rows", len(seen))
	}
}

func TestOptionsCheck(t *testing.T) {
	if err := DefaultOptions.Check(); err != nil {
		t.Error(err)
	}
	if err := (Options{}).Check(); err == nil {
		t.Error("no rounds at all are right")
	}
}
