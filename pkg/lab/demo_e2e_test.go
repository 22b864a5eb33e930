package lab_test

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lab"
	"github.com/pgsteer/pgsteer/pkg/lab/demo"
)

// TestDemo runs the demo with short runs of pgbench.
func TestDemo(t *testing.T) {
	needLab(t)
	o := quickOptions("demo")
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := lab.Down(ctx, o.Name, false); err != nil {
			t.Error(err)
		}
	})
	var out bytes.Buffer
	err := demo.Run(t.Context(), demo.Options{Lab: o, Out: &out, Invocation: "pgsteer-lab", Scale: 1, RunTime: 2 * time.Second})
	t.Log(out.String())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| pgbench select-only, simple ", "| pgbench tpcb-like, prepared ", "| TPC-B's sums ",
		"| pooler2 killed -9: marked down, up ", "killed -9: VIP answers again ",
		"| daemon of lb1 killed -9: held connections broken | 0 of 60 ",
		"| stats page and metrics of lb2 ", "\neverything worked", "\n  pgsteer-lab exec client -- psql ",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the demo has not printed %q", want)
		}
	}
	if s, err := lab.GetStatus(o.Name); err != nil || !s.Healthy() {
		t.Errorf("after the demo the lab is not healthy: %+v, %v", s, err)
	}
}
