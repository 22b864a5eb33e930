package pooler

import (
	"fmt"
	"time"
)

// counters are the statistics of a pool that the console shows, in its order;
// times are in microseconds.
type counters [numCounters]uint64

const (
	countAssignments = iota
	countTransactions
	countQueries
	countReceived
	countSent
	timeTransactions
	timeQueries
	timeWaits
	countClientParses
	countServerParses
	countBinds
	countLogins
	numCounters
)

func (s *PoolStats) counters() counters {
	us := func(d time.Duration) uint64 { return uint64(d.Microseconds()) }
	return counters{
		s.Assignments, s.Transactions, s.Queries, s.BytesReceived, s.BytesSent,
		us(s.TransactionTime), us(s.QueryTime), us(s.WaitTime), s.ClientParses, s.ServerParses, s.Binds, s.Logins,
	}
}

func (c counters) plus(more counters) counters {
	for i := range c {
		c[i] += more[i]
	}
	return c
}

func (c counters) minus(old counters) counters {
	for i := range c {
		c[i] -= old[i]
	}
	return c
}

// averages returns what the counters, grown over a time, come to: a second's
// share of counts and bytes, and the mean of times.
func (c counters) averages(over time.Duration) (a counters) {
	if over <= 0 {
		return a
	}
	for i, n := range c {
		a[i] = uint64(float64(n) / over.Seconds())
	}
	for sum, number := range map[int]int{
		timeTransactions: countTransactions, timeQueries: countQueries, timeWaits: countAssignments,
	} {
		a[sum] = c[sum] / max(c[number], 1)
	}
	return a
}

// statsPeriod keeps a pool's counters of the ends of the last two periods, for
// averages over the time since the older one: between one and two periods, as
// in PgBouncer (refresh_stats in its stats.c).
type statsPeriod struct{ newer, older counters }

// periodTimes are when those were.
type periodTimes struct{ newerAt, olderAt time.Duration }

// tickPeriod begins a new period when it is time.
func (m *machine) tickPeriod() {
	if m.now-m.period.newerAt < m.limits.statsPeriod {
		return
	}
	m.period.olderAt, m.period.newerAt = m.period.newerAt, m.now
	var last counters
	for _, p := range m.pools {
		p.period.older, p.period.newer = p.period.newer, p.stats.counters()
		last = last.plus(p.period.newer.minus(p.period.older))
	}
	if m.limits.logStats {
		m.log.Info(last.averages(m.period.newerAt - m.period.olderAt).line())
	}
}

// line is PgBouncer's line of the log about averages.
func (c counters) line() string {
	return fmt.Sprintf("stats: %d xacts/s, %d queries/s, %d client parses/s, %d server parses/s, %d binds/s, %d client logins/s, "+
		"in %d B/s, out %d B/s, xact %d us, query %d us, wait %d us",
		c[countTransactions], c[countQueries], c[countClientParses], c[countServerParses], c[countBinds], c[countLogins],
		c[countReceived], c[countSent], c[timeTransactions], c[timeQueries], c[timeWaits])
}
