package main

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// countsOf is an audit of backends a and b.
func countsOf(orphans int, a, countedA, b, countedB int64) lb.AuditReport {
	return lb.AuditReport{
		Backends: []lb.BackendAudit{
			{Service: "s", Name: "a", Active: a, Counted: countedA},
			{Service: "s", Name: "b", Active: b, Counted: countedB},
		},
		Orphans: orphans, Flows: int(countedA + countedB), Capacity: 64,
	}
}

func TestAudit(t *testing.T) {
	const drifted = "active counts drifted from the flow table: "
	tests := []struct {
		name   string
		args   string
		counts []lb.AuditReport
		drift  [2]int64
		sum    int64
		looks  int
		waited time.Duration
		stderr string
	}{
		{"right at once", "", []lb.AuditReport{countsOf(0, 5, 5, 0, 0)}, [2]int64{}, 0, 1, 0, ""},
		{"gone at the second count", "", []lb.AuditReport{countsOf(0, 5, 6, 0, 0), countsOf(0, 6, 6, 0, 0)}, [2]int64{}, 0, 2, 2 * time.Second, ""},
		{"another way round", "wait 10s", []lb.AuditReport{countsOf(0, 5, 6, 0, 0), countsOf(0, 7, 6, 0, 0)}, [2]int64{}, 0, 2, 10 * time.Second, ""},
		{"another backend", "", []lb.AuditReport{countsOf(0, 5, 6, 3, 3), countsOf(0, 6, 6, 4, 3)}, [2]int64{}, 0, 2, 2 * time.Second, ""},
		{
			"too many", "", []lb.AuditReport{countsOf(0, 9, 6, 3, 3), countsOf(0, 8, 6, 3, 3)},
			[2]int64{2, 0}, 2, 2, 2 * time.Second, drifted + "s/a by 2 too many, in both of two counts 2s apart",
		},
		{
			"too few, and too many", "wait 20ms", []lb.AuditReport{countsOf(0, 1, 6, 4, 3), countsOf(0, 2, 6, 9, 3)},
			[2]int64{-4, 1}, 5, 2, 20 * time.Millisecond, drifted + "s/a by 4 too few, s/b by 1 too many, in both of two counts 20ms apart",
		},
		{"orphans, for a moment", "", []lb.AuditReport{countsOf(3, 5, 5, 0, 0), countsOf(0, 5, 5, 0, 0)}, [2]int64{}, 0, 2, 2 * time.Second, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fixture{audits: tt.counts}
				start := time.Now()
				res := run(f, nil, "", strings.Fields("audit -j "+tt.args)...)
				if waited := time.Since(start); waited != tt.waited || f.audited != tt.looks || f.closed != 1 {
					t.Errorf("waited %s, %d counts, closed %d times", waited, f.audited, f.closed)
				}
				var report driftReport
				if err := json.Unmarshal([]byte(res.stdout), &report); err != nil {
					t.Fatalf("%v: %s", err, res.stdout)
				}
				if got := [2]int64{report.Backends[0].Drift, report.Backends[1].Drift}; got != tt.drift || report.Drift != tt.sum || report.Counts != tt.looks {
					t.Errorf("drift %v, sum %d, %d counts", got, report.Drift, report.Counts)
				}
				last := tt.counts[len(tt.counts)-1]
				if report.Flows != last.Flows || report.Capacity != 32 || report.Orphans != 0 {
					t.Errorf("flows %d, capacity %d, orphans %d", report.Flows, report.Capacity, report.Orphans)
				}
				if report.Backends[0].BackendAudit != last.Backends[0] {
					t.Errorf("the row is %+v, the last count %+v", report.Backends[0], last.Backends[0])
				}
				want, status := "", exitOK
				if tt.stderr != "" {
					want, status = `{"error":"`+tt.stderr+"\"}\n", exitFailure
				}
				if res.status != status || res.stderr != want {
					t.Errorf("status %d, stderr %s", res.status, res.stderr)
				}
			})
		})
	}
}

func TestAuditOrphans(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fixture{audits: []lb.AuditReport{countsOf(3, 0, 0, 0, 0), countsOf(2, 0, 0, 0, 0)}}
		if res := run(f, nil, "", "audit"); res.status != exitOK || !strings.Contains(res.stdout, "\nOrphans   2\n") {
			t.Errorf("status %d, %s%s", res.status, res.stdout, res.stderr)
		}
	})
}

func TestAuditErrors(t *testing.T) {
	for args, want := range map[string]string{
		"audit wait 0s":   "audit: wait: 0s is out of range; want 10ms to 1h0m0s",
		"audit wait 2h":   "audit: wait: 2h0m0s is out of range; want 10ms to 1h0m0s",
		"audit wait soon": `audit: wait: "soon" is no length of time; want one like 90s, 5m or 24h`,
		"audit show":      `audit: unknown keyword "show"; want one of wait`,
	} {
		if res := run(nil, errors.New("must not open"), "", strings.Fields(args)...); res.status != exitUsage || res.stderr != "pgsteer: "+want+"\n" {
			t.Errorf("pgsteer %s: status %d, %s", args, res.status, res.stderr)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		odd := errors.New("odd")
		if res := run(&fixture{auditErr: odd}, nil, "", "audit"); res.status != exitFailure || res.stderr != "pgsteer: counting the flow table: odd\n" || res.stdout != "" {
			t.Errorf("first count: status %d, %s%s", res.status, res.stdout, res.stderr)
		}
		f := &fixture{auditErr: odd, audits: []lb.AuditReport{countsOf(0, 1, 2, 0, 0)}}
		if res := run(f, nil, "", "audit"); res.status != exitFailure || res.stderr != "pgsteer: counting the flow table again: odd\n" || res.stdout != "" {
			t.Errorf("second count: status %d, %s%s", res.status, res.stdout, res.stderr)
		}
	})
}
