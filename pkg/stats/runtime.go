package stats

import (
	"fmt"
	"strings"

	"github.com/pgsteer/pgsteer/pkg/health"
	"github.com/pgsteer/pgsteer/pkg/lb"
)

// Runtime is what HAProxy's runtime socket shows, in its words.
type Runtime struct{ Snapshot func() Snapshot }

// Stat is the answer to "show stat": the CSV.
func (r Runtime) Stat() (string, error) {
	s := r.Snapshot()
	if s.DatapathErr != nil {
		return "", fmt.Errorf("reading the datapath: %w", s.DatapathErr)
	}
	var b strings.Builder
	writeCSV(&b, classicRows(&s))
	return b.String(), nil
}

// Info is the answer to "show info": of HAProxy's lines those that mean something.
func (r Runtime) Info() (string, error) {
	s := r.Snapshot()
	if s.DatapathErr != nil {
		return "", fmt.Errorf("reading the datapath: %w", s.DatapathErr)
	}
	var active int64
	var total uint64
	for _, svc := range s.Datapath.Services {
		for _, b := range svc.Backends {
			active, total = active+b.Active, total+b.Total
		}
	}
	up := seconds(s.Uptime())
	var b strings.Builder
	for _, line := range []struct {
		name  string
		value any
	}{
		{"Name", "pgsteer"}, {"Version", s.Version}, {"Nbproc", 1}, {"Process_num", 1}, {"Pid", s.PID},
		{"Uptime", fmt.Sprintf("%dd %dh%02dm%02ds", up/86400, up%86400/3600, up%3600/60, up%60)}, {"Uptime_sec", up},
		{"Maxconn", s.Datapath.Audit.Capacity / 2}, // a flow has two entries
		{"CurrConns", active}, {"CumConns", total}, {"node", s.Node}, {"Start_time_sec", s.Started.Unix()},
	} {
		fmt.Fprintf(&b, "%s: %v\n", line.name, line.value)
	}
	return b.String(), nil
}

// serversStateHeader is that of HAProxy 2.6, whose file has version 1.
const serversStateHeader = "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight " +
	"srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state bk_f_forced_id " +
	"srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr srv_agent_addr srv_agent_port\n"

// checkNumbers are HAProxy 2.6's for the results of checks.
var checkNumbers = map[string]int{
	"INI": 1, "L4OK": 6, "L4TOUT": 7, "L4CON": 8, "L7TOUT": 12, "L7RSP": 13, "L7OK": 15, "L7STS": 17,
}

// ServersState is the answer to "show servers state", of one backend or of all; ok
// is false if there is no such one.
func (r Runtime) ServersState(backend string) (text string, ok bool) {
	s := r.Snapshot()
	var b strings.Builder
	b.WriteString(serversStateHeader)
	checks := make(map[[2]string]*health.TargetStatus)
	for i := range s.Checks {
		checks[[2]string{s.Checks[i].Service, s.Checks[i].Backend}] = &s.Checks[i]
	}
	service, be, srv := "", 0, 0
	for i := range s.Backends {
		st := &s.Backends[i]
		if st.Service != service {
			service, be, srv = st.Service, be+1, 0
		}
		srv++
		if backend != "" && backend != service {
			continue
		}
		ok = true
		check, result, healthLeft := 1, 0, 0
		if c := checks[[2]string{service, st.Name}]; c != nil && c.Known {
			name, _ := checkStatus(c)
			check = checkNumbers[name]
			result = 2 // failed
			if c.LastResult == "ok" {
				result = 3
			}
			healthLeft = c.Consecutive
			if c.Up {
				healthLeft = c.Rise + c.Fall - 1 - c.Consecutive
			}
		}
		op := 0 // stopped
		if st.State == lb.Up || st.State == lb.Draining {
			op = 2 // running
		}
		fmt.Fprintf(&b, "%d %s %d %s %s %d %d %d %d %d %d %d %d 6 0 0 0 - %d - 0 0 - - 0\n",
			be, service, srv, st.Name, st.Addr.Addr(), op, adminNumbers[st.Admin], st.Weight, st.ConfiguredWeight,
			seconds(s.Now.Sub(st.Since)), check, result, healthLeft, st.Addr.Port())
	}
	return b.String(), ok || backend == ""
}

// adminNumbers are the bits of HAProxy's srv_admin_state: a forced maintenance, a
// forced drain.
var adminNumbers = map[lb.AdminState]int{lb.AdminReady: 0, lb.AdminMaint: 1, lb.AdminDraining: 8}
