package stats

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"strconv"
	"time"

	"github.com/pgsteer/pgsteer/pkg/health"
	"github.com/pgsteer/pgsteer/pkg/lb"
	"github.com/pgsteer/pgsteer/pkg/stats/latency"
)

// refreshSeconds is how often the page loads itself again.
const refreshSeconds = 5

//go:embed page.html
var pageText string

var pageTemplate = template.Must(template.New("stats").Parse(pageText))

// A page is what the template shows: a snapshot in words and formatted numbers.
type page struct {
	Node, Version string
	PID           int
	Refresh       int // seconds; 0 is never
	Taken         string
	Troubles      []string
	Process       []fact
	Routers       []routerRow
	Moves         []moveRow
	Sync          *syncPart
	Services      []serviceTable
	Verdicts      []countTable
}

// A fact is one named value.
type fact struct{ Name, Value, Title string }

type serviceTable struct {
	Name, Address, Scheduler string
	Backends                 []backendRow
	Sum                      backendRow
}

type backendRow struct {
	Class                 string // of the table row: its colour
	Name, Address         string
	Active                string
	Limit, LimitTitle     string
	Total                 string
	Closed                string // shown when pointed at
	Refused, Redispatched string
	Resets, Evicted       string
	ConnectP50            string
	ConnectP99            string
	BytesIn, BytesOut     size
	PacketsIn, PacketsOut string // shown when pointed at
	Status, StatusTitle   string
	Check, CheckTitle     string
	Weight, WeightTitle   string
	Backup                bool
	Checks                string // shown when pointed at
	Failures              string
	Downs, Downtime       string
	NextHop               string
}

// A countTable has counts by name.
type countTable struct {
	Title, Unit string
	Rows        []countRow
}

type countRow struct{ Name, Count string }

// writePage renders the stats page of s.
func writePage(w io.Writer, s *Snapshot, noRefresh bool) error {
	p := newPage(s)
	if !noRefresh {
		p.Refresh = refreshSeconds
	}
	return pageTemplate.Execute(w, p)
}

func newPage(s *Snapshot) page {
	p := page{
		Node:     s.Node,
		Version:  s.Version,
		PID:      s.PID,
		Taken:    s.Now.Format(time.RFC3339),
		Troubles: troubles(s),
		Process:  process(s),
		Routers:  routerRows(s),
		Moves:    moveRows(s),
		Sync:     newSyncPart(s),
		Services: serviceTables(s),
	}
	if s.DatapathErr == nil {
		p.Verdicts = verdictTables(s.Datapath.Verdicts)
	}
	return p
}

// troubles is what an operator must see first.
func troubles(s *Snapshot) []string {
	t := append(routerTroubles(s.Routers), syncTroubles(s.Sync)...)
	if err := s.DatapathErr; err != nil {
		t = append(t, "The tables of the XDP program cannot be read: "+err.Error())
		return t
	}
	d := &s.Datapath
	if d.Audit.Drift != 0 {
		t = append(t, fmt.Sprintf("Active counts disagree with the flow table by %d.", d.Audit.Drift))
	}
	for _, svc := range d.Services {
		up := 0
		for _, b := range svc.Backends {
			if b.State == lb.Up {
				up++
			}
		}
		if up == 0 {
			t = append(t, fmt.Sprintf("Service %s has no backend that is up: new connections are refused.", svc.Name))
		}
	}
	return t
}

func process(s *Snapshot) []fact {
	facts := []fact{
		{"Uptime", brief(s.Uptime()), "since " + s.Started.Format(time.RFC3339)},
		{"Interface", s.Interface, ""},
	}
	if s.DatapathErr != nil {
		return facts
	}
	d, a := &s.Datapath, &s.Datapath.Audit
	var active int64
	for _, svc := range d.Services {
		for _, b := range svc.Backends {
			active += b.Active
		}
	}
	return append(facts,
		fact{"XDP mode", d.Mode, ""},
		fact{"Active connections", grouped(active), ""},
		fact{"Flow table", fmt.Sprintf("%s of %s flows", grouped(a.Flows), grouped(a.Capacity/2)), "closed flows that still rest there included"},
		fact{"Table memory", size(a.Memory).String(), "all tables of the XDP program together"},
		fact{"Count drift", grouped(a.Drift), "active counts against a recount of the flow table; 0 is right"},
		fact{"Last audit", brief(time.Duration(a.SweptAgo)) + " ago", ""},
	)
}

// backendKey names a backend across the parts of a snapshot.
type backendKey struct{ service, backend string }

// serviceTables joins the counts of the datapath with what the controller and
// the health checker know.
func serviceTables(s *Snapshot) []serviceTable {
	status := map[backendKey]lb.BackendStatus{}
	for _, b := range s.Backends {
		status[backendKey{b.Service, b.Name}] = b
	}
	checks := map[backendKey]health.TargetStatus{}
	for _, c := range s.Checks {
		checks[backendKey{c.Service, c.Backend}] = c
	}
	var tables []serviceTable
	for _, svc := range s.Datapath.Services {
		t := serviceTable{Name: svc.Name, Address: svc.Addr.String(), Scheduler: svc.Scheduler.String()}
		var sum lb.BackendStats
		var connect latency.Histogram
		var sumChecks, sumFailures, sumDowns uint64
		up, weight := 0, 0
		for _, b := range svc.Backends {
			key := backendKey{svc.Name, b.Name}
			st, known := status[key]
			if !known {
				// In the tables, but not in the configuration.
				st = lb.BackendStatus{State: b.State, Since: s.Now, Reason: "not in the configuration"}
			}
			check, checked := checks[key]
			t.Backends = append(t.Backends, newBackendRow(s.Now, b, st, check, checked))
			if b.State == lb.Up {
				up++
			}
			weight += int(b.Weight)
			sum.Active += b.Active
			sum.Total += b.Total
			sum.Closed += b.Closed
			sum.Refused += b.Refused
			sum.Redispatched += b.Redispatched
			sum.Resets += b.Resets
			sum.Evicted += b.Evicted
			connect.Add((*latency.Histogram)(&b.ConnectTime))
			sum.BytesIn += b.BytesIn
			sum.BytesOut += b.BytesOut
			sum.PacketsIn += b.PacketsIn
			sum.PacketsOut += b.PacketsOut
			sumChecks += check.Checks
			sumFailures += check.Failures
			sumDowns += st.Transitions
		}
		t.Sum = backendRow{
			Active: grouped(sum.Active), Total: grouped(sum.Total), Closed: grouped(sum.Closed),
			Refused: grouped(sum.Refused), Redispatched: grouped(sum.Redispatched), Resets: grouped(sum.Resets), Evicted: grouped(sum.Evicted),
			ConnectP50: connect.Text(0.5), ConnectP99: connect.Text(0.99),
			BytesIn: size(sum.BytesIn), BytesOut: size(sum.BytesOut),
			PacketsIn: grouped(sum.PacketsIn), PacketsOut: grouped(sum.PacketsOut),
			Status: fmt.Sprintf("%d of %d up", up, len(svc.Backends)),
			Weight: strconv.Itoa(weight),
			Checks: grouped(sumChecks), Failures: grouped(sumFailures), Downs: grouped(sumDowns),
		}
		tables = append(tables, t)
	}
	return tables
}

func newBackendRow(now time.Time, b lb.BackendStats, st lb.BackendStatus, c health.TargetStatus, checked bool) backendRow {
	connect := latency.Histogram(b.ConnectTime)
	row := backendRow{
		Class: class(st.State, c, checked), Name: b.Name, Address: b.Addr.String(),
		Active: grouped(b.Active), Limit: "-", Total: grouped(b.Total), Closed: grouped(b.Closed),
		Refused: grouped(b.Refused), Redispatched: grouped(b.Redispatched), Resets: grouped(b.Resets), Evicted: grouped(b.Evicted),
		ConnectP50: connect.Text(0.5), ConnectP99: connect.Text(0.99),
		BytesIn: size(b.BytesIn), BytesOut: size(b.BytesOut),
		PacketsIn: grouped(b.PacketsIn), PacketsOut: grouped(b.PacketsOut),
		Status:      brief(now.Sub(st.Since)) + " " + statusWord(st.State, c, checked),
		StatusTitle: "since " + st.Since.Format(time.RFC3339) + ": " + st.Reason,
		Check:       "none",
		Weight:      strconv.Itoa(int(b.Weight)), Backup: b.Backup,
		Checks: grouped(c.Checks), Failures: grouped(c.Failures),
		Downs: grouped(st.Transitions), Downtime: brief(st.Downtime),
		NextHop: "next hop " + b.MAC,
	}
	if b.Limit > 0 {
		row.Limit = grouped(int64(b.Limit))
	}
	// Marked where the operator's word differs from the configuration.
	if st.Weight != st.ConfiguredWeight {
		row.Weight += "*"
		row.WeightTitle = fmt.Sprintf("configured %d, changed by %s", st.ConfiguredWeight, st.By)
	}
	if st.MaxConnections != st.ConfiguredMaxConnections {
		row.Limit += "*"
		row.LimitTitle = fmt.Sprintf("configured %d, changed by %s", st.ConfiguredMaxConnections, st.By)
	}
	if !b.Reachable {
		row.NextHop = "next hop unknown"
		row.Status += ", no next hop"
	}
	if checked {
		row.Check, row.CheckTitle = checkText(now, c)
	}
	return row
}

// class is the colour of a backend's row, with HAProxy's distinctions.
func class(state lb.State, c health.TargetStatus, checked bool) string {
	switch {
	case state == lb.Maintenance || state == lb.Draining:
		return state.String()
	case checked && !c.Known:
		return "unchecked"
	case state == lb.Up && c.Up && c.Consecutive > 0:
		return "going-down"
	case state == lb.Down && !c.Up && c.Consecutive > 0:
		return "going-up"
	}
	return state.String()
}

func statusWord(state lb.State, c health.TargetStatus, checked bool) string {
	word := map[lb.State]string{lb.Up: "UP", lb.Down: "DOWN", lb.Draining: "DRAIN", lb.Maintenance: "MAINT"}[state]
	switch class(state, c, checked) {
	case "unchecked":
		return "not checked"
	case "going-down":
		return fmt.Sprintf("%s, failed %d of %d", word, c.Consecutive, c.Fall)
	case "going-up":
		return fmt.Sprintf("%s, passed %d of %d", word, c.Consecutive, c.Rise)
	}
	return word
}

// checkText is the last check's result in one line, and more for the tooltip.
func checkText(now time.Time, c health.TargetStatus) (text, title string) {
	if c.LastAt.IsZero() {
		return c.CheckName + ": running", ""
	}
	return fmt.Sprintf("%s: %s in %s", c.CheckName, c.LastResult, brief(c.LastDuration)),
		fmt.Sprintf("%s ago; every %s, timeout %s, fall %d, rise %d", brief(now.Sub(c.LastAt)), c.Interval, c.Timeout, c.Fall, c.Rise)
}
