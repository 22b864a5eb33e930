package stats

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pgsteer/pgsteer/pkg/health"
	"github.com/pgsteer/pgsteer/pkg/lb"
)

// classicColumns are those of HAProxy 2.6, in its order, which never changes; "-"
// ends them, and what follows is ours.
var classicColumns = strings.Split("pxname,svname,qcur,qmax,scur,smax,slim,stot,bin,bout,dreq,dresp,ereq,econ,eresp,wretr,wredis,"+
	"status,weight,act,bck,chkfail,chkdown,lastchg,downtime,qlimit,pid,iid,sid,throttle,lbtot,tracked,type,rate,rate_lim,rate_max,"+
	"check_status,check_code,check_duration,hrsp_1xx,hrsp_2xx,hrsp_3xx,hrsp_4xx,hrsp_5xx,hrsp_other,hanafail,req_rate,req_rate_max,"+
	"req_tot,cli_abrt,srv_abrt,comp_in,comp_out,comp_byp,comp_rsp,lastsess,last_chk,last_agt,qtime,ctime,rtime,ttime,agent_status,"+
	"agent_code,agent_duration,check_desc,agent_desc,check_rise,check_fall,check_health,agent_rise,agent_fall,agent_health,addr,"+
	"cookie,mode,algo,conn_rate,conn_rate_max,conn_tot,intercepted,dcon,dses,wrew,connect,reuse,cache_lookups,cache_hits,srv_icur,"+
	"src_ilim,qtime_max,ctime_max,rtime_max,ttime_max,eint,idle_conn_cur,safe_conn_cur,used_conn_cur,need_conn_est,uweight,"+
	"agg_server_status,agg_server_check_status,agg_check_status,-,closed,resets,evicted,reachable", ",")

// The types of rows, as HAProxy numbers them.
const (
	frontendRow  = 0
	backendTotal = 1
	serverRow    = 2
)

// A classicRow is a row of HAProxy's statistics. What has no meaning here, or is not
// known, has no value: a 0 would be a lie.
type classicRow struct {
	Proxy, Name string
	Type        int
	values      map[string]string
	// Status is that of the row, Class its colour on HAProxy's page.
	Status, Class string
}

func newClassicRow(proxy, name string, typ, iid, sid int) *classicRow {
	r := &classicRow{Proxy: proxy, Name: name, Type: typ, values: make(map[string]string)}
	r.text("pxname", proxy)
	r.text("svname", name)
	r.num("type", typ)
	r.num("pid", 1) // the number of the process, of one
	r.num("iid", iid)
	r.num("sid", sid)
	r.text("mode", "tcp")
	return r
}

func (r *classicRow) text(column, v string) { r.values[column] = v }

func (r *classicRow) num(column string, v any) { r.values[column] = fmt.Sprint(v) }

// Get returns a value by HAProxy's name of its column, "" if there is none.
func (r *classicRow) Get(column string) string { return r.values[column] }

// seconds is a time as HAProxy writes it.
func seconds(d time.Duration) int64 { return int64(max(0, d) / time.Second) }

// classicRows are the rows of all services: a FRONTEND, the servers, a BACKEND.
func classicRows(s *Snapshot) (rows []*classicRow) {
	checks := make(map[[2]string]*health.TargetStatus)
	for i := range s.Checks {
		checks[[2]string{s.Checks[i].Service, s.Checks[i].Backend}] = &s.Checks[i]
	}
	status := make(map[[2]string]*lb.BackendStatus)
	for i := range s.Backends {
		status[[2]string{s.Backends[i].Service, s.Backends[i].Name}] = &s.Backends[i]
	}
	for i := range s.Datapath.Services {
		svc := &s.Datapath.Services[i]
		front := newClassicRow(svc.Name, "FRONTEND", frontendRow, i+1, 0)
		front.Status, front.Class = "OPEN", "frontend"
		front.text("status", front.Status)
		back := newBackend(s, svc, i+1)
		rows = append(rows, front)
		for j := range svc.Backends {
			b := &svc.Backends[j]
			key := [2]string{svc.Name, b.Name}
			rows = append(rows, newServer(s, svc, b, status[key], checks[key], i+1, j+1))
		}
		for _, r := range []*classicRow{front, back} {
			var active int64
			var total, in, out uint64
			for _, b := range svc.Backends {
				active, total, in, out = active+b.Active, total+b.Total, in+b.BytesIn, out+b.BytesOut
			}
			r.num("scur", active)
			r.num("stot", total)
			r.num("bin", in)
			r.num("bout", out)
		}
		front.num("conn_tot", front.Get("stot"))
		back.num("lbtot", back.Get("stot"))
		rows = append(rows, back)
	}
	return rows
}

// newServer is the row of a backend of ours, a server in HAProxy's words.
func newServer(s *Snapshot, svc *lb.ServiceStats, b *lb.BackendStats, status *lb.BackendStatus, check *health.TargetStatus, iid, sid int) *classicRow {
	r := newClassicRow(svc.Name, b.Name, serverRow, iid, sid)
	r.Status, r.Class = serverStatus(b, check)
	r.text("status", r.Status)
	r.num("qcur", 0) // nobody waits in a balancer of packets
	r.num("qmax", 0)
	r.num("scur", b.Active)
	if b.Limit > 0 {
		r.num("slim", b.Limit)
	}
	r.num("stot", b.Total)
	r.num("lbtot", b.Total)
	r.num("bin", b.BytesIn)
	r.num("bout", b.BytesOut)
	r.num("econ", b.Refused)
	r.num("wredis", b.Redispatched)
	r.num("weight", b.Weight)
	r.num("uweight", b.Weight)
	r.num("act", oneIf(!b.Backup))
	r.num("bck", oneIf(b.Backup))
	r.text("addr", b.Addr.String())
	if status != nil {
		r.num("chkdown", status.Transitions)
		r.num("lastchg", seconds(s.Now.Sub(status.Since)))
		r.num("downtime", seconds(status.Downtime))
	}
	if check != nil {
		r.check(check)
	}
	r.num("closed", b.Closed)
	r.num("resets", b.Resets)
	r.num("evicted", b.Evicted)
	r.num("reachable", oneIf(b.Reachable))
	return r
}

// serverStatus is a state in HAProxy's words, with the colour of its page.
func serverStatus(b *lb.BackendStats, check *health.TargetStatus) (status, class string) {
	kind := "active"
	if b.Backup {
		kind = "backup"
	}
	switch b.State {
	case lb.Maintenance:
		return "MAINT", "maintain"
	case lb.Draining:
		return "DRAIN", kind + "_draining"
	case lb.Up:
		if check != nil && check.Known && check.Consecutive > 0 && check.Up {
			return fmt.Sprintf("UP %d/%d", check.Fall-check.Consecutive, check.Fall), kind + "_going_down"
		}
		return "UP", kind + "_up"
	}
	if check != nil && check.Known && check.Consecutive > 0 && !check.Up {
		return fmt.Sprintf("DOWN %d/%d", check.Consecutive, check.Rise), kind + "_going_up"
	}
	return "DOWN", kind + "_down"
}

// check fills in what the last health check said.
func (r *classicRow) check(c *health.TargetStatus) {
	r.num("check_rise", c.Rise)
	r.num("check_fall", c.Fall)
	r.num("chkfail", c.Failures)
	status, about := checkStatus(c)
	r.text("check_status", status)
	r.text("check_desc", about)
	if !c.Known {
		r.num("check_health", 0)
		return
	}
	r.num("check_duration", c.LastDuration.Milliseconds())
	if c.LastResult != "ok" {
		r.text("last_chk", c.LastResult)
	}
	up := c.Consecutive
	if c.Up {
		up = c.Rise + c.Fall - 1 - c.Consecutive
	}
	r.num("check_health", up)
}

// checkStatus is the result of a check in HAProxy's words. A server that says why it
// does not let anybody in is L7RSP there, with pgsql-check, and one that does not
// speak PostgreSQL's protocol L7STS.
func checkStatus(c *health.TargetStatus) (status, about string) {
	layer, of := "L4", "Layer4"
	if c.CheckName == "postgres" {
		layer, of = "L7", "Layer7"
	}
	switch text := c.LastResult; {
	case !c.Known:
		return "INI", "Initializing"
	case text == "ok":
		return layer + "OK", of + " check passed"
	case strings.HasPrefix(text, "no answer within"):
		return layer + "TOUT", of + " timeout"
	case layer == "L7" && strings.HasPrefix(text, "unexpected answer"):
		return "L7STS", "Layer7 wrong status"
	case layer == "L7" && (sqlState(text) || strings.HasPrefix(text, "connection closed")):
		return "L7RSP", "Layer7 invalid response"
	}
	return "L4CON", "Layer4 connection problem"
}

// sqlState reports whether a text begins with five characters of an error's code.
func sqlState(text string) bool {
	code, _, ok := strings.Cut(text, " ")
	return ok && len(code) == 5 && strings.Trim(code, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ") == ""
}

// newBackend is the row of all servers together. Of the backup servers those that
// are up count for nothing as long as another one is.
func newBackend(s *Snapshot, svc *lb.ServiceStats, iid int) *classicRow {
	r := newClassicRow(svc.Name, "BACKEND", backendTotal, iid, 0)
	r.num("qcur", 0)
	r.num("qmax", 0)
	var act, bck, weight, backupWeight int
	var econ, wredis, closed, resets, evicted, downs uint64
	for _, b := range svc.Backends {
		econ, wredis, closed, resets, evicted = econ+b.Refused, wredis+b.Redispatched, closed+b.Closed, resets+b.Resets, evicted+b.Evicted
		switch {
		case b.State == lb.Up && b.Backup:
			bck++
			backupWeight += int(b.Weight)
		case b.State == lb.Up:
			act++
			weight += int(b.Weight)
		}
	}
	var last time.Time
	for _, b := range s.Backends {
		if b.Service == svc.Name && b.Since.After(last) {
			last = b.Since
		}
		if b.Service == svc.Name {
			downs += b.Transitions
		}
	}
	if act == 0 {
		weight = backupWeight
	}
	if r.Status, r.Class = "UP", "backend"; act+bck == 0 {
		r.Status = "DOWN"
	}
	r.text("status", r.Status)
	r.text("algo", svc.Scheduler.String())
	r.num("weight", weight)
	r.num("uweight", weight)
	r.num("act", act)
	r.num("bck", bck)
	r.num("econ", econ)
	r.num("wredis", wredis)
	r.num("chkdown", downs)
	if !last.IsZero() {
		r.num("lastchg", seconds(s.Now.Sub(last)))
	}
	r.num("closed", closed)
	r.num("resets", resets)
	r.num("evicted", evicted)
	return r
}

// writeCSV writes rows as HAProxy does, a comma after each value.
func writeCSV(b *strings.Builder, rows []*classicRow) {
	b.WriteString("# " + strings.Join(classicColumns, ",") + ",\n")
	for _, r := range rows {
		for _, c := range classicColumns {
			v := r.values[c]
			if c == "-" {
				v = "-"
			}
			b.WriteString(csvText(v) + ",")
		}
		b.WriteString("\n")
	}
}

// csvText puts a value in quotes where it needs them (RFC 4180).
func csvText(v string) string {
	if strings.ContainsAny(v, ",\"\r\n") {
		return `"` + strings.ReplaceAll(v, `"`, `""`) + `"`
	}
	return v
}

// up is the rows without the servers that are down.
func up(rows []*classicRow) []*classicRow {
	return slices.DeleteFunc(slices.Clone(rows), func(r *classicRow) bool {
		return r.Type == serverRow && strings.HasPrefix(r.Status, "DOWN")
	})
}
