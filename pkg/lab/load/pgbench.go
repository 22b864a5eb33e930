// Package load is the clients' side of a lab: pgbench, a prober that measures
// how long a service does not answer, and connections that are held to see
// which of them break.
package load

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Scripts of pgbench that the lab uses.
const (
	SelectOnly = "select-only"
	TPCB       = "tpcb-like"
)

// Protocols of pgbench.
const (
	Simple   = "simple"
	Extended = "extended"
	Prepared = "prepared"
)

// Pgbench is one run of pgbench.
type Pgbench struct {
	Script   string
	Protocol string
	Clients  int
	Duration time.Duration // whole seconds
}

// Args returns the command line. Host, user and database come from the
// environment.
func (p Pgbench) Args() []string {
	// -n: VACUUM at the start of each run would only add noise, and it is
	// not allowed for runs that are not by the tables' owner.
	return []string{
		"pgbench", "-n", "-b", p.Script, "-M", p.Protocol, "-c", strconv.Itoa(p.Clients),
		"-j", strconv.Itoa(min(2, p.Clients)), "-T", strconv.Itoa(int(p.Duration / time.Second)),
	}
}

// String names the run in a few words.
func (p Pgbench) String() string { return fmt.Sprintf("%s, %s", p.Script, p.Protocol) }

// PgbenchResult is what a run of pgbench printed at its end.
type PgbenchResult struct {
	TPS          float64       // transactions a second, without the time to connect
	Latency      time.Duration // average of a transaction
	Transactions int           // done
	Failed       int           // transactions that failed
	Aborted      int           // clients that gave up, or never began
}

var (
	tpsLine     = regexp.MustCompile(`(?m)^tps = ([0-9.]+) \(without initial connection time\)`)
	latencyLine = regexp.MustCompile(`(?m)^latency average = ([0-9.]+) ms`)
	doneLine    = regexp.MustCompile(`(?m)^number of transactions actually processed: ([0-9]+)`)
	failedLine  = regexp.MustCompile(`(?m)^number of failed transactions: ([0-9]+)`)
	errorLine   = regexp.MustCompile(`(?m)^pgbench: error: client [0-9]+ `)
)

// ParsePgbench reads the output of pgbench 15 or later, both streams together.
func ParsePgbench(out string) (PgbenchResult, error) {
	var r PgbenchResult
	var latency float64
	for _, f := range []struct {
		line *regexp.Regexp
		set  func(string) error
	}{
		{tpsLine, func(s string) (err error) { r.TPS, err = strconv.ParseFloat(s, 64); return err }},
		{latencyLine, func(s string) (err error) { latency, err = strconv.ParseFloat(s, 64); return err }},
		{doneLine, func(s string) (err error) { r.Transactions, err = strconv.Atoi(s); return err }},
		{failedLine, func(s string) (err error) { r.Failed, err = strconv.Atoi(s); return err }},
	} {
		m := f.line.FindStringSubmatch(out)
		if m == nil {
			return PgbenchResult{}, fmt.Errorf("reading pgbench's output: no line %q in:\n%s", f.line, strings.TrimSpace(out))
		}
		if err := f.set(m[1]); err != nil {
			return PgbenchResult{}, fmt.Errorf("reading pgbench's output: %w", err)
		}
	}
	r.Latency = time.Duration(latency * float64(time.Millisecond))
	r.Aborted = len(errorLine.FindAllString(out, -1))
	return r, nil
}

// TPCBSums is a query whose four columns are equal after any number of TPC-B
// transactions: the sums of the branches', tellers' and accounts' balances and
// of the history's deltas.
const TPCBSums = `select
  (select coalesce(sum(bbalance), 0) from pgbench_branches),
  (select coalesce(sum(tbalance), 0) from pgbench_tellers),
  (select coalesce(sum(abalance), 0) from pgbench_accounts),
  (select coalesce(sum(delta), 0) from pgbench_history)`
