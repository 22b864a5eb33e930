package bench

import (
	"bytes"
	"context"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCompare(t *testing.T) {
	got := Compare(Result{Name: "a", Unit: "ns", Peer: "b"}, []float64{40, 20, 90}, []float64{20, 20, 30})
	want := Result{
		Name: "a", Unit: "ns", Peer: "b", Value: 40, PeerValue: 20, Ratio: 2, Runs: 3,
		Spread: Spread{Min: 1, P25: 1.5, P75: 2.5, Max: 3},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestQuantile(t *testing.T) {
	for _, tt := range []struct {
		values []float64
		q      float64
		want   float64
	}{
		{[]float64{7}, 0.5, 7},
		{[]float64{3, 1}, 0.5, 2},
		{[]float64{3, 1}, 1, 3},
		{[]float64{5, 1, 3}, 0.5, 3},
		{[]float64{5, 1, 3}, 0, 1},
	} {
		if got := Quantile(tt.values, tt.q); got != tt.want {
			t.Errorf("Quantile(%v, %v) = %v, want %v", tt.values, tt.q, got, tt.want)
		}
	}
}

// suite returns rows that each give the ratio that goes with their name.
func suite(ratios map[string]float64, names ...string) Suite {
	return Suite{Names: names, Run: func(_ context.Context, names []string, _ Log, emit func(Result)) error {
		for _, name := range names {
			if ratio, ok := ratios[name]; ok {
				emit(Result{Name: name, Ratio: ratio, Runs: 1})
			}
		}
		return nil
	}}
}

func TestRunSelects(t *testing.T) {
	suites := []Suite{
		suite(map[string]float64{"x.a": 1, "x.b": 2}, "x.a", "x.b"),
		suite(map[string]float64{"y.a": 3}, "y.a"),
	}
	for prefix, want := range map[string][]string{
		"": {"x.a", "x.b", "y.a"}, "x": {"x.a", "x.b"}, "x.b": {"x.b"}, "y.": {"y.a"},
	} {
		var out bytes.Buffer
		if err := Run(t.Context(), suites, prefix, &out, t.Logf); err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		if len(lines) != len(want) {
			t.Errorf("%q: %d lines, want %d", prefix, len(lines), len(want))
			continue
		}
		for i, name := range want {
			if !strings.HasPrefix(lines[i], `{"name":"`+name+`",`) {
				t.Errorf("%q: line %d is %s", prefix, i, lines[i])
			}
		}
	}
	if err := Run(t.Context(), suites, "z", &bytes.Buffer{}, t.Logf); !errors.Is(err, ErrNoSuchBench) {
		t.Errorf("an unknown name: %v", err)
	}
}

func TestRunTakesZero(t *testing.T) {
	for ratio, ok := range map[float64]bool{0: true, 2: true, -1: false, math.NaN(): false, math.Inf(1): false} {
		s := Suite{Names: []string{"x"}, Run: func(_ context.Context, _ []string, _ Log, emit func(Result)) error {
			emit(Result{Name: "x", Ratio: ratio, Runs: 1, Zero: true})
			return nil
		}}
		var out bytes.Buffer
		if err := Run(t.Context(), []Suite{s}, "x", &out, t.Logf); (err == nil) != ok || (out.Len() > 0) != ok {
			t.Errorf("%v: error %v, output %q", ratio, err, out.String())
		}
	}
}

func TestRunRefusesHoles(t *testing.T) {
	for name, s := range map[string]Suite{
		"missing":      suite(nil, "x"),
		"zero":         suite(map[string]float64{"x": 0}, "x"),
		"not a number": suite(map[string]float64{"x": math.NaN()}, "x"),
		"infinite":     suite(map[string]float64{"x": math.Inf(1)}, "x"),
	} {
		var out bytes.Buffer
		if err := Run(t.Context(), []Suite{s}, "x", &out, t.Logf); err == nil || out.Len() > 0 {
			t.Errorf("%s: error %v, output %q", name, err, out.String())
		}
	}
}
