package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// auditWait is the time between two counts that nobody asked otherwise for. A
// packet is counted and entered in the table within microseconds, and a million
// flows are read within a second.
const auditWait = 2 * time.Second

func auditCommands() []command {
	return []command{{
		args: "[wait TIME]",
		about: `counts the flows in the table again, for each backend, and compares with the
active counts by which new ones are scheduled. The two are read while
connections come and go, so that a difference in one count means nothing: if
there is one, a second count follows after the given time (` + auditWait.String() + `), and what
both have in common is the drift. The exit status is 1 if there is any.`,
		prepare: prepareAudit,
	}}
}

func prepareAudit(args []string) (action, error) {
	wait := auditWait
	err := keywords(args, keyword{"wait", "TIME", func(v string) (err error) {
		wait, err = intervalOf(v)
		return err
	}})
	if err != nil {
		return nil, err
	}
	return func(s *session) error { return audit(s, wait) }, nil
}

// A driftReport is an audit with what two counts agreed on.
type driftReport struct {
	Backends []backendDrift `json:"backends"`
	Drift    int64          `json:"drift"`    // sum of the sizes of the backends' drifts
	Counts   int            `json:"counts"`   // how often the table was counted
	Orphans  int            `json:"orphans"`  // in each of the counts
	Flows    int            `json:"flows"`    // flow pairs at the last count, closed ones included
	Capacity int            `json:"capacity"` // flow pairs that the table holds
	Memory   int64          `json:"memory"`   // bytes that all tables take together
}

// A backendDrift is a backend's row: the last count, and the difference that
// each count had.
type backendDrift struct {
	lb.BackendAudit
	Drift int64 `json:"drift"` // above zero when the active count is too high
}

func audit(s *session, wait time.Duration) error {
	r, err := s.reader()
	if err != nil {
		return err
	}
	first, err := r.Audit()
	if err != nil {
		return fmt.Errorf("counting the flow table: %w", err)
	}
	last, counts := first, 1
	if suspicious(first) {
		if err := s.wait(wait); err != nil {
			return err
		}
		if last, err = r.Audit(); err != nil {
			return fmt.Errorf("counting the flow table again: %w", err)
		}
		counts = 2
	}
	report := compare(first, last)
	report.Counts = counts
	if err := writeAudit(s.out, report); err != nil {
		return err
	}
	return report.err(wait)
}

// suspicious tells whether a second count is needed.
func suspicious(r lb.AuditReport) bool {
	for _, b := range r.Backends {
		if b.Difference() != 0 {
			return true
		}
	}
	return r.Orphans > 0
}

// compare makes a report of two counts, or of one, without differences, that
// is given twice.
func compare(first, last lb.AuditReport) driftReport {
	type key struct{ service, name string }
	before := make(map[key]int64)
	for _, b := range first.Backends {
		before[key{b.Service, b.Name}] = b.Difference()
	}
	report := driftReport{
		Backends: []backendDrift{},
		Orphans:  min(first.Orphans, last.Orphans),
		Flows:    last.Flows, Capacity: last.Capacity / 2, Memory: last.Memory,
	}
	for _, b := range last.Backends {
		row := backendDrift{b, common(before[key{b.Service, b.Name}], b.Difference())}
		report.Backends = append(report.Backends, row)
		report.Drift += max(row.Drift, -row.Drift)
	}
	return report
}

// common is the part that two differences have in common: the smaller of two
// of the same sign.
func common(a, b int64) int64 {
	switch {
	case a > 0 && b > 0:
		return min(a, b)
	case a < 0 && b < 0:
		return max(a, b)
	}
	return 0
}

// err is what the exit status tells.
func (r *driftReport) err(wait time.Duration) error {
	if r.Drift == 0 {
		return nil
	}
	var parts []string
	for _, b := range r.Backends {
		switch {
		case b.Drift > 0:
			parts = append(parts, fmt.Sprintf("%s/%s by %d too many", b.Service, b.Name, b.Drift))
		case b.Drift < 0:
			parts = append(parts, fmt.Sprintf("%s/%s by %d too few", b.Service, b.Name, -b.Drift))
		}
	}
	return fmt.Errorf("active counts drifted from the flow table: %s, in both of two counts %s apart", strings.Join(parts, ", "), wait)
}

func writeAudit(out *output, r driftReport) error {
	if out.json {
		return out.value(r)
	}
	err := writeList(out, r.Backends, func(r *row, b *backendDrift) {
		r.cells(b.Service, b.Name, count(b.Active), count(b.Counted), count(b.Drift))
	}, left("SERVICE"), left("BACKEND"), right("ACTIVE"), right("COUNTED"), right("DRIFT"))
	if err != nil {
		return err
	}
	const text = "\nDrift     %d\nOrphans   %d\nFlows     %d\nCapacity  %d flows\nMemory    %.1f MB\n"
	if _, err = fmt.Fprintf(out.w, text, r.Drift, r.Orphans, r.Flows, r.Capacity, float64(r.Memory)/1e6); err != nil {
		return fmt.Errorf("writing the result: %w", err)
	}
	return nil
}
