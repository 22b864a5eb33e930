package lb

// AuditReport is one count of the flow table, made now, beside what the
// datapath believes. Both are read while packets go through, so that a
// difference which is in one report alone is no drift: only what a second
// report, a while later, has as well is.
type AuditReport struct {
	Backends []BackendAudit `json:"backends"` // ordered by service, then slot
	Orphans  int            `json:"orphans"`  // entries whose other half was missing
	Flows    int            `json:"flows"`    // flow pairs in the table, closed ones included
	Capacity int            `json:"capacity"` // entries the flow table can hold (two per flow)
	Memory   int64          `json:"memory"`   // bytes that all tables take together
}

// BackendAudit is one backend's row of an AuditReport.
type BackendAudit struct {
	Service string `json:"service"`
	Name    string `json:"name"`
	Active  int64  `json:"active"`  // the datapath's count, by which it schedules
	Counted int64  `json:"counted"` // flows in the table that should be in it: those not closed
}

// Difference is by how much the datapath's count is too high; below zero, too
// low.
func (b BackendAudit) Difference() int64 { return b.Active - b.Counted }
