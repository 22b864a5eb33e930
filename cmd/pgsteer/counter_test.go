package main

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// growing is a fixture whose counters go on.
type growing struct {
	fixture
	step uint64 // added to each counter by each reading; wraps around
}

func (g *growing) Stats() (lb.DatapathStats, error) {
	s, err := g.fixture.Stats()
	s.Verdicts = append([]lb.VerdictCount{}, s.Verdicts...)
	for i := range g.stats.Verdicts {
		g.stats.Verdicts[i].Count += g.step
	}
	return s, err
}

func runReader(ctx context.Context, r reader, args ...string) result {
	var stdout, stderr strings.Builder
	t := tool{
		stdout: &stdout, stderr: &stderr,
		getenv: func(string) string { return "" },
		open:   func(string) (reader, error) { return r, nil },
	}
	status := t.run(ctx, args)
	return result{status: status, stdout: stdout.String(), stderr: stderr.String()}
}

func TestCounterRates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		verdicts := []lb.VerdictCount{{Name: "tx_forward", Action: "tx", Count: 1000}, {Name: "drop_ttl", Action: "drop"}}
		start := time.Now()
		g := &growing{fixture{stats: lb.DatapathStats{Verdicts: verdicts}}, 125}
		res := runReader(t.Context(), g, "counter", "show", "interval", "250ms")
		const want = "VERDICT     ACTION  PACKETS  PER-SECOND\n" +
			"tx_forward  tx         1125       500.0\n" +
			"drop_ttl    drop        125       500.0\n"
		if res.status != exitOK || res.stdout != want || res.stderr != "" || time.Since(start) != 250*time.Millisecond {
			t.Errorf("status %d after %s, %s%s", res.status, time.Since(start), res.stdout, res.stderr)
		}
		res = runReader(t.Context(), g, "cou", "s", "i", "10s", "-j")
		var rows []struct {
			Name, Action string
			Count        uint64
			Rate         float64
		}
		if err := json.Unmarshal([]byte(res.stdout), &rows); err != nil || len(rows) != 2 || rows[0].Count != 1375 || rows[0].Rate != 12.5 {
			t.Errorf("%v: %s", err, res.stdout)
		}
		g.step = 1<<64 - 1
		if res := runReader(t.Context(), g, "counter", "show", "interval", "1s"); res.status != exitFailure ||
			res.stderr != "pgsteer: tx_forward fell from 1500 to 1499: the counters were begun anew meanwhile\n" {
			t.Errorf("falling counters: status %d, %s%s", res.status, res.stdout, res.stderr)
		}
	})
}

// TestWaitInterrupted checks that nobody need wait for an hour to end.
func TestWaitInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, args := range []string{"counter show interval 1h", "audit wait 1h"} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			f := sample()
			f.audits = []lb.AuditReport{countsOf(0, 1, 2, 0, 0)}
			start := time.Now()
			res := runReader(ctx, f, strings.Fields(args)...)
			if res.status != exitFailure || res.stdout != "" || res.stderr != "pgsteer: interrupted\n" || time.Since(start) != time.Minute || f.closed != 1 {
				t.Errorf("pgsteer %s: status %d after %s, %s%s", args, res.status, time.Since(start), res.stdout, res.stderr)
			}
		}
	})
}

func TestCounterErrors(t *testing.T) {
	for args, want := range map[string]string{
		"counter show interval":     "counter show: interval needs a value: TIME",
		"counter show interval 1ms": "counter show: interval: 1ms is out of range; want 10ms to 1h0m0s",
		"counter show every 1s":     `counter show: unknown keyword "every"; want one of interval`,
	} {
		if res := run(nil, errors.New("must not open"), "", strings.Fields(args)...); res.status != exitUsage || res.stderr != "pgsteer: "+want+"\n" {
			t.Errorf("pgsteer %s: status %d, %s", args, res.status, res.stderr)
		}
	}
	f := sample()
	f.statsErr = errors.New("odd")
	if res := run(f, nil, "", "counter", "show", "interval", "1s"); res.status != exitFailure || res.stderr != "pgsteer: reading the pinned maps: odd\n" {
		t.Errorf("status %d, %s", res.status, res.stderr)
	}
}
