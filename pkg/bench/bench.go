// Package bench is the frame of the benchmarks: what a result is, how it is
// written, and how suites are found by name. The suites are in the packages
// below it.
//
// A value alone says little on a machine that is shared. Every benchmark
// therefore measures a peer in the same rounds, alternating with it, and the
// ratio of the two is its result.
package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
)

// Result is one row, and one line of the output.
type Result struct {
	Name      string  `json:"name"`
	Value     float64 `json:"value"` // median over the runs
	Unit      string  `json:"unit"`
	Peer      string  `json:"peer"` // what it is compared with
	PeerValue float64 `json:"peer_value"`
	Ratio     float64 `json:"ratio"` // median of value to peer's value, run by run
	Runs      int     `json:"runs"`
	// Spread is that of the ratio.
	Spread Spread `json:"spread"`
	// Extra are figures that explain the row, by name; docs/performance.md
	// says what each is.
	Extra map[string]float64 `json:"extra,omitempty"`
	// Zero says that nought is a result of this row and not a want of one.
	Zero bool `json:"-"`
}

// Spread says how far runs lie apart.
type Spread struct {
	Min float64 `json:"min"`
	P25 float64 `json:"p25"`
	P75 float64 `json:"p75"`
	Max float64 `json:"max"`
}

// Suite is a set of rows that are measured together, in the same rounds.
type Suite struct {
	Names []string // of its rows, in the order of the output
	// Run measures the rows named, which are some of Names, and calls emit
	// for each. It returns ctx's error when ctx ends.
	Run func(ctx context.Context, names []string, log Log, emit func(Result)) error
}

// Log takes a line about what goes on, as fmt.Sprintf has it.
type Log func(format string, args ...any)

// ErrNoSuchBench means that no row's name begins with what was asked for.
var ErrNoSuchBench = errors.New("there is no benchmark of that name")

// Run runs the suites that have a row whose name begins with the prefix, and
// writes a line of JSON for each of these rows to out.
func Run(ctx context.Context, suites []Suite, prefix string, out io.Writer, log Log) error {
	found := false
	for _, s := range suites {
		names := match(s.Names, prefix)
		if len(names) == 0 {
			continue
		}
		found = true
		var results []Result
		if err := s.Run(ctx, names, log, func(r Result) { results = append(results, r) }); err != nil {
			return err
		}
		if err := write(out, names, results); err != nil {
			return err
		}
	}
	if !found {
		return fmt.Errorf("%w: %q; there are %s", ErrNoSuchBench, prefix, strings.Join(Names(suites), ", "))
	}
	return nil
}

// Names returns the names of all rows.
func Names(suites []Suite) (names []string) {
	for _, s := range suites {
		names = append(names, s.Names...)
	}
	return names
}

func match(names []string, prefix string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool { return !strings.HasPrefix(n, prefix) })
}

// write writes the results in the order of names. A row that is missing, or
// that no number came out of, is an error: an empty table must not pass for a
// good one.
func write(out io.Writer, names []string, results []Result) error {
	enc := json.NewEncoder(out)
	for _, name := range names {
		i := slices.IndexFunc(results, func(r Result) bool { return r.Name == name })
		if i < 0 {
			return fmt.Errorf("%s: not measured", name)
		}
		if r := results[i]; r.Runs == 0 || !(r.Ratio > 0 || r.Zero && r.Ratio == 0) || math.IsInf(r.Ratio, 0) {
			return fmt.Errorf("%s: no result: ratio %v of %d runs", name, r.Ratio, r.Runs)
		}
		for key, v := range results[i].Extra {
			results[i].Extra[key] = round(v)
		}
		if err := enc.Encode(results[i]); err != nil {
			return fmt.Errorf("writing the result of %s: %w", name, err)
		}
	}
	return nil
}

// Compare fills in the figures of a row from its values and its peer's, run by
// run. There is at least one run, and as many values of the one as of the
// other.
func Compare(r Result, values, peer []float64) Result {
	ratios := make([]float64, len(values))
	for i := range values {
		ratios[i] = values[i] / peer[i]
	}
	r.Value, r.PeerValue, r.Ratio = round(Quantile(values, 0.5)), round(Quantile(peer, 0.5)), round(Quantile(ratios, 0.5))
	r.Runs = len(values)
	r.Spread = Spread{round(slices.Min(ratios)), round(Quantile(ratios, 0.25)), round(Quantile(ratios, 0.75)), round(slices.Max(ratios))}
	return r
}

// Quantile returns the q-quantile, 0 to 1, interpolated between the two values
// next to it. There is at least one value.
func Quantile(values []float64, q float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	at := q * float64(len(sorted)-1)
	low := int(at)
	high := min(low+1, len(sorted)-1)
	return sorted[low] + (sorted[high]-sorted[low])*(at-float64(low))
}

// round keeps three decimals: more would only pretend.
func round(v float64) float64 { return math.Round(v*1000) / 1000 }
