package main

import (
	"fmt"
	"strconv"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lb"
	"github.com/pgsteer/pgsteer/pkg/stats/latency"
)

func count[T int | int64 | uint8 | uint16](n T) string { return strconv.FormatInt(int64(n), 10) }

func total(n uint64) string { return strconv.FormatUint(n, 10) }

// age is d without more digits than a person reads.
func age(d time.Duration) string {
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

func showServices(s *session) error {
	d, err := s.stats()
	if err != nil {
		return err
	}
	return writeList(s.out, d.Services, func(r *row, s *lb.ServiceStats) {
		var sum lb.BackendStats
		up := 0
		for _, b := range s.Backends {
			if b.State == lb.Up {
				up++
			}
			sum.Active += b.Active
			sum.Total += b.Total
			sum.PacketsIn += b.PacketsIn
			sum.BytesIn += b.BytesIn
			sum.PacketsOut += b.PacketsOut
			sum.BytesOut += b.BytesOut
		}
		r.cells(
			s.Name, s.Addr.String(), s.Scheduler.String(), fmt.Sprintf("%d/%d", up, len(s.Backends)), count(sum.Active), total(sum.Total),
			total(sum.PacketsIn), total(sum.BytesIn), total(sum.PacketsOut), total(sum.BytesOut),
		)
	},
		left("SERVICE"), left("ADDRESS"), left("SCHEDULER"), right("UP"), right("ACTIVE"), right("TOTAL"),
		right("PACKETS-IN"), right("BYTES-IN"), right("PACKETS-OUT"), right("BYTES-OUT"),
	)
}

// A backendStats is a backend with the name of its service.
type backendStats struct {
	Service string `json:"service"`
	lb.BackendStats
}

func showBackends(s *session) error {
	d, err := s.stats()
	if err != nil {
		return err
	}
	var backends []backendStats
	for _, s := range d.Services {
		for _, b := range s.Backends {
			backends = append(backends, backendStats{s.Name, b})
		}
	}
	return writeList(s.out, backends, func(r *row, b *backendStats) {
		hop := b.MAC
		if !b.Reachable {
			hop = "unknown"
		}
		backup := "no"
		if b.Backup {
			backup = "yes"
		}
		connect := latency.Histogram(b.ConnectTime)
		r.cells(
			b.Service, b.Name, b.Addr.String(), b.State.String(), backup, count(b.Weight), count(b.Active), limitOf(b.Limit),
			total(b.Total), total(b.Closed), total(b.Refused), total(b.Redispatched), total(b.Resets), total(b.Evicted),
			connect.Text(0.5), connect.Text(0.99),
			total(b.PacketsIn), total(b.BytesIn), total(b.PacketsOut), total(b.BytesOut), hop,
		)
	},
		left("SERVICE"), left("BACKEND"), left("ADDRESS"), left("STATE"), left("BACKUP"), right("WEIGHT"), right("ACTIVE"), right("LIMIT"),
		right("TOTAL"), right("CLOSED"), right("REFUSED"), right("REDISPATCHED"), right("RESETS"), right("EVICTED"),
		right("CONNECT-P50"), right("CONNECT-P99"),
		right("PACKETS-IN"), right("BYTES-IN"), right("PACKETS-OUT"), right("BYTES-OUT"), left("NEXT-HOP"),
	)
}

// limitOf is a number of connections that may be without bound.
func limitOf(n uint32) string {
	if n == 0 {
		return "none"
	}
	return total(uint64(n))
}
