package stats

import (
	_ "embed"
	"html/template"
	"io"
	"strconv"
	"strings"
	"time"
)

//go:embed classic.html
var classicText string

var classicTemplate = template.Must(template.New("classic").Parse(classicText))

// A classicPage is what HAProxy's page shows.
type classicPage struct {
	Node, Version, Uptime, Routers string
	PID, Refresh                   int
	Conns                          int64
	Troubles                       []string
	Proxies                        []classicProxy
}

type classicProxy struct {
	Name string
	Rows []classicLine
}

// A classicLine is a row in words.
type classicLine struct {
	*classicRow
	Title             string
	Numbers           []string // the columns before the status
	Age               string
	Bad               bool
	Check, CheckTitle string
	Weight, Act, Bck  string
	Tail              []string // failed checks, times that it went down, downtime, throttle
}

// classicNumbers are the columns from Queue to Warnings, as HAProxy's page has them.
var classicNumbers = strings.Split("qcur,qmax,qlimit,rate,rate_max,rate_lim,scur,smax,slim,stot,lbtot,lastsess,bin,bout,dreq,dresp,ereq,econ,eresp,wretr,wredis", ",")

// writeClassic renders the page that who knows HAProxy's is used to.
func writeClassic(w io.Writer, s *Snapshot, rows []*classicRow, noRefresh bool) error {
	p := classicPage{
		Node: s.Node, Version: s.Version, PID: s.PID, Uptime: largest(s.Uptime()), Troubles: troubles(s), Refresh: refreshSeconds,
	}
	if noRefresh {
		p.Refresh = 0
	}
	var routers []string
	for _, r := range s.Routers {
		routers = append(routers, r.Name+" "+r.State.String())
	}
	p.Routers = strings.Join(routers, ", ")
	for _, svc := range s.Datapath.Services {
		for _, b := range svc.Backends {
			p.Conns += b.Active
		}
	}
	for _, r := range rows {
		if n := len(p.Proxies); n == 0 || p.Proxies[n-1].Name != r.Proxy {
			p.Proxies = append(p.Proxies, classicProxy{Name: r.Proxy})
		}
		last := &p.Proxies[len(p.Proxies)-1]
		last.Rows = append(last.Rows, newClassicLine(r))
	}
	return classicTemplate.Execute(w, p)
}

func newClassicLine(r *classicRow) classicLine {
	l := classicLine{classicRow: r, Title: r.Name, Weight: r.Get("weight"), Bad: r.Type == backendTotal && r.Status == "DOWN"}
	for _, c := range classicNumbers {
		l.Numbers = append(l.Numbers, r.Get(c))
	}
	l.Age = age(r.Get("lastchg"))
	if l.Age != "" {
		l.Age += " "
	}
	l.Tail = []string{r.Get("chkfail"), r.Get("chkdown"), age(r.Get("downtime")), ""}
	switch r.Type {
	case frontendRow:
		l.Title = "Frontend"
	case backendTotal:
		l.Title, l.Act, l.Bck = "Backend", r.Get("act"), r.Get("bck")
	case serverRow:
		if l.Act, l.Bck = "Y", "-"; r.Get("bck") == "1" {
			l.Act, l.Bck = "-", "Y"
		}
		l.Check, l.CheckTitle = r.Get("check_status"), r.Get("check_desc")
		if ms := r.Get("check_duration"); ms != "" {
			l.Check += " in " + ms + "ms"
		}
		if text := r.Get("last_chk"); text != "" {
			l.CheckTitle += ": " + text
		}
	}
	return l
}

// age is a number of seconds as HAProxy's page shows it: 5s, 3m2s, 2h5m, 4d3h.
func age(secs string) string {
	n, err := strconv.Atoi(secs)
	if err != nil {
		return ""
	}
	return largest(time.Duration(n) * time.Second)
}

// largest is a time in its two largest units.
func largest(d time.Duration) string {
	n := int(d / time.Second)
	switch {
	case n < 60:
		return strconv.Itoa(n) + "s"
	case n < 3600:
		return strconv.Itoa(n/60) + "m" + strconv.Itoa(n%60) + "s"
	case n < 86400:
		return strconv.Itoa(n/3600) + "h" + strconv.Itoa(n%3600/60) + "m"
	}
	return strconv.Itoa(n/86400) + "d" + strconv.Itoa(n%86400/3600) + "h"
}
