package pooler

import (
	"time"
)

var (
	statsColumns = columns("sNNNNNNNNNNNNNNNNNNNNNNNN", `database total_server_assignment_count total_xact_count
		total_query_count total_received total_sent total_xact_time total_query_time total_wait_time
		total_client_parse_count total_server_parse_count total_bind_count total_client_login_count
		avg_server_assignment_count avg_xact_count avg_query_count avg_recv avg_sent avg_xact_time avg_query_time
		avg_wait_time avg_client_parse_count avg_server_parse_count avg_bind_count avg_client_login_count`)
	statsTotalsColumns = columns("sNNNNNNNNNNNN", `database server_assignment_count xact_count query_count
		bytes_received bytes_sent xact_time query_time wait_time client_parse_count server_parse_count bind_count
		client_login_count`)
	// PgBouncer's own names: the last ones differ from the others.
	statsAveragesColumns = columns("sNNNNNNNNNNNN", `database server_assignment_count xact_count query_count
		bytes_received bytes_sent xact_time query_time wait_time avg_client_parse_count avg_server_parse_count
		avg_bind_count avg_client_login_count`)
	totalsColumns = columns("sN", "name value")
	// totalsNames are those of PgBouncer's variables.
	totalsNames = [numCounters]string{
		"server_assignment_count", "xact_count", "query_count", "client_bytes", "server_bytes", "xact_time",
		"query_time", "wait_time", "ps_client_parse_count", "ps_server_parse_count", "ps_bind_count", "client_login_count",
	}
)

// statsRow is the statistics of a database.
type statsRow struct {
	database      string
	total, recent counters
}

// statistics sums up the pools of each database.
func (p *Pooler) statistics() (rows []statsRow, recent time.Duration, err error) {
	pools, recent, err := p.pools()
	if err != nil {
		return nil, 0, err
	}
	for i := range pools {
		r := &pools[i]
		if n := len(rows); n == 0 || rows[n-1].database != r.Database {
			rows = append(rows, statsRow{database: r.Database})
		}
		last := &rows[len(rows)-1]
		last.total, last.recent = last.total.plus(r.total), last.recent.plus(r.recent)
	}
	// The console counts its commands, as PgBouncer's does.
	own := statsRow{database: consoleDatabase}
	_, own.total[countQueries] = p.openConsoles()
	own.total[countTransactions] = own.total[countQueries]
	return append(rows, own), recent, nil
}

func (s *console) counters(c counters) {
	for _, n := range c {
		s.rows.Uint(n)
	}
}

func (s *console) stats() error {
	rows, recent, err := s.p.statistics()
	if err != nil {
		return err
	}
	s.header(statsColumns)
	for i := range rows {
		s.rows.Begin()
		s.rows.Text(rows[i].database)
		s.counters(rows[i].total)
		s.counters(rows[i].recent.averages(recent))
		s.endRow()
	}
	return nil
}

func (s *console) statsTotals() error {
	rows, _, err := s.p.statistics()
	if err != nil {
		return err
	}
	s.header(statsTotalsColumns)
	for i := range rows {
		s.rows.Begin()
		s.rows.Text(rows[i].database)
		s.counters(rows[i].total)
		s.endRow()
	}
	return nil
}

func (s *console) statsAverages() error {
	rows, recent, err := s.p.statistics()
	if err != nil {
		return err
	}
	s.header(statsAveragesColumns)
	for i := range rows {
		s.rows.Begin()
		s.rows.Text(rows[i].database)
		s.counters(rows[i].recent.averages(recent))
		s.endRow()
	}
	return nil
}

func (s *console) totals() error {
	rows, recent, err := s.p.statistics()
	if err != nil {
		return err
	}
	var total, last counters
	for i := range rows {
		total, last = total.plus(rows[i].total), last.plus(rows[i].recent)
	}
	s.header(totalsColumns)
	for _, part := range []struct {
		prefix string
		values counters
	}{{"total_", total}, {"avg_", last.averages(recent)}} {
		for i, n := range part.values {
			s.rows.Begin()
			s.rows.Text(part.prefix + totalsNames[i])
			s.rows.Uint(n)
			s.endRow()
		}
	}
	return nil
}
