package main

import (
	"fmt"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

func counterCommands() []command {
	return []command{{
		name: "show", alias: "list", args: "[interval TIME]",
		about:   "one line for each verdict; with an interval, which is waited for, also the\npackets a second in it",
		prepare: prepareCounters,
	}}
}

func prepareCounters(args []string) (action, error) {
	var interval time.Duration
	err := keywords(args, keyword{"interval", "TIME", func(v string) (err error) {
		interval, err = intervalOf(v)
		return err
	}})
	if err != nil {
		return nil, err
	}
	if interval == 0 {
		return showCounters, nil
	}
	return func(s *session) error { return showRates(s, interval) }, nil
}

func showCounters(s *session) error {
	d, err := s.stats()
	if err != nil {
		return err
	}
	return writeList(s.out, d.Verdicts, func(r *row, v *lb.VerdictCount) {
		r.cells(v.Name, v.Action, total(v.Count))
	}, left("VERDICT"), left("ACTION"), right("PACKETS"))
}

// A verdictRate is a verdict with what was counted for it a second.
type verdictRate struct {
	lb.VerdictCount
	Rate float64 `json:"rate"` // packets a second
}

func showRates(s *session, interval time.Duration) error {
	start := time.Now()
	before, err := s.stats()
	if err != nil {
		return err
	}
	if err := s.wait(interval); err != nil {
		return err
	}
	elapsed := time.Since(start) // from the one reading's start to the other's
	after, err := s.stats()
	if err != nil {
		return err
	}
	rates, err := ratesOf(before.Verdicts, after.Verdicts, elapsed)
	if err != nil {
		return err
	}
	return writeList(s.out, rates, func(r *row, v *verdictRate) {
		r.cells(v.Name, v.Action, total(v.Count), fmt.Sprintf("%.1f", v.Rate))
	}, left("VERDICT"), left("ACTION"), right("PACKETS"), right("PER-SECOND"))
}

// ratesOf compares two readings of the verdicts that lie so far apart.
func ratesOf(before, after []lb.VerdictCount, elapsed time.Duration) ([]verdictRate, error) {
	counts := make(map[string]uint64, len(before))
	for _, v := range before {
		counts[v.Name] = v.Count
	}
	var rates []verdictRate
	for _, v := range after {
		if v.Count < counts[v.Name] {
			return nil, fmt.Errorf("%s fell from %d to %d: the counters were begun anew meanwhile", v.Name, counts[v.Name], v.Count)
		}
		rates = append(rates, verdictRate{v, float64(v.Count-counts[v.Name]) / elapsed.Seconds()})
	}
	return rates, nil
}
