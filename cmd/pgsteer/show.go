package main

import (
	"fmt"
	"strconv"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lb"
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

// list writes all elements: as a JSON array, or as a table of their rows.
func list[T any](out *output, elements []T, columns []column, row func(T) []string) error {
	if out.json {
		a := array{out: out}
		for _, e := range elements {
			if err := a.add(e); err != nil {
				return err
			}
		}
		return a.end()
	}
	var rows [][]string
	for _, e := range elements {
		rows = append(rows, row(e))
	}
	return writeTable(out.w, columns, rows)
}

func stats(r reader) (lb.DatapathStats, error) {
	s, err := r.Stats()
	if err != nil {
		return s, fmt.Errorf("reading the pinned maps: %w", err)
	}
	return s, nil
}

func showServices(r reader, out *output) error {
	s, err := stats(r)
	if err != nil {
		return err
	}
	columns := []column{
		left("SERVICE"), left("ADDRESS"), left("SCHEDULER"), right("UP"), right("ACTIVE"), right("TOTAL"),
		right("PACKETS-IN"), right("BYTES-IN"), right("PACKETS-OUT"), right("BYTES-OUT"),
	}
	return list(out, s.Services, columns, func(s lb.ServiceStats) []string {
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
		return []string{
			s.Name, s.Addr.String(), s.Scheduler.String(), fmt.Sprintf("%d/%d", up, len(s.Backends)), count(sum.Active), total(sum.Total),
			total(sum.PacketsIn), total(sum.BytesIn), total(sum.PacketsOut), total(sum.BytesOut),
		}
	})
}

// A backendRow is a backend with the name of its service.
type backendRow struct {
	Service string `json:"service"`
	lb.BackendStats
}

func showBackends(r reader, out *output) error {
	s, err := stats(r)
	if err != nil {
		return err
	}
	var backends []backendRow
	for _, s := range s.Services {
		for _, b := range s.Backends {
			backends = append(backends, backendRow{s.Name, b})
		}
	}
	columns := []column{
		left("SERVICE"), left("BACKEND"), left("ADDRESS"), left("STATE"), right("WEIGHT"), right("ACTIVE"), right("TOTAL"),
		right("REFUSED"), right("PACKETS-IN"), right("BYTES-IN"), right("PACKETS-OUT"), right("BYTES-OUT"), left("NEXT-HOP"),
	}
	return list(out, backends, columns, func(b backendRow) []string {
		hop := b.MAC
		if !b.Reachable {
			hop = "unknown"
		}
		return []string{
			b.Service, b.Name, b.Addr.String(), b.State.String(), count(b.Weight), count(b.Active), total(b.Total),
			total(b.Refused), total(b.PacketsIn), total(b.BytesIn), total(b.PacketsOut), total(b.BytesOut), hop,
		}
	})
}

func showVIPs(r reader, out *output) error {
	s, err := stats(r)
	if err != nil {
		return err
	}
	columns := []column{
		left("ADDRESS"), left("ROUTER"), right("VRID"), right("PRIORITY"), left("STATE"), right("SINCE"), right("LEASE"),
	}
	return list(out, s.VIPs, columns, func(v lb.VIPStats) []string {
		lease := "silent"
		if v.Lease > 0 {
			lease = age(v.Lease)
		}
		return []string{v.Addr.String(), v.Router, count(v.VRID), count(v.Priority), v.State, age(v.Since), lease}
	})
}

func showCounters(r reader, out *output) error {
	s, err := stats(r)
	if err != nil {
		return err
	}
	return list(out, s.Verdicts, []column{left("VERDICT"), left("ACTION"), right("PACKETS")}, func(v lb.VerdictCount) []string {
		return []string{v.Name, v.Action, total(v.Count)}
	})
}

// flowLine has columns of fixed width, because flows are written as they are
// read; 21 bytes hold the longest IPv4 address with its port.
const flowLine = "%-21s  %-21s  %-21s  %-21s  %-12s  %9s  %9s  %11s  %13s  %11s  %13s\n"

func showFlows(r reader, out *output) error {
	var failed error
	elements, n := array{out: out}, 0
	if !out.json {
		_, failed = fmt.Fprintf(out.w, flowLine, "CLIENT", "SERVICE", "SNAT", "BACKEND", "STATE", "AGE", "IDLE",
			"PACKETS-IN", "BYTES-IN", "PACKETS-OUT", "BYTES-OUT")
	}
	if failed != nil {
		return fmt.Errorf("writing the result: %w", failed)
	}
	err := r.Flows(func(f lb.Flow) bool {
		n++
		if out.json {
			failed = elements.add(f)
		} else {
			_, failed = fmt.Fprintf(out.w, flowLine, f.Client, f.Service, f.SNAT, f.Backend, f.State, age(f.Age), age(f.Idle),
				total(f.PacketsIn), total(f.BytesIn), total(f.PacketsOut), total(f.BytesOut))
		}
		return failed == nil
	})
	if failed != nil {
		return fmt.Errorf("writing the result: %w", failed)
	}
	if err != nil {
		return fmt.Errorf("reading the flow table: %w", err)
	}
	if out.json {
		return elements.end()
	}
	noun := "flows"
	if n == 1 {
		noun = "flow"
	}
	_, err = fmt.Fprintf(out.w, "Found %d %s\n", n, noun)
	return err
}
