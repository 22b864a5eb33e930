package demo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lab"
	"github.com/pgsteer/pgsteer/pkg/lab/load"
)

// traffic runs pgbench through the VIP, four ways.
func (s *show) traffic(ctx context.Context) error {
	s.caption("pgbench -c %d through %s, %v each; everything shares this machine's CPUs", clients, lab.Service, s.RunTime)
	for _, script := range []string{load.SelectOnly, load.TPCB} {
		for _, protocol := range []string{load.Simple, load.Prepared} {
			bench := load.Pgbench{Script: script, Protocol: protocol, Clients: clients, Duration: s.RunTime}
			if err := s.bench(ctx, bench); err != nil {
				return err
			}
		}
	}
	conn, err := s.connect(ctx)
	if err != nil {
		return fmt.Errorf("comparing TPC-B's sums: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var branches, tellers, accounts, history int64
	err = conn.QueryRow(ctx, load.TPCBSums).Scan(&branches, &tellers, &accounts, &history)
	if err != nil {
		return fmt.Errorf("comparing TPC-B's sums: %w", err)
	}
	if branches != tellers || tellers != accounts || accounts != history {
		return fmt.Errorf("TPC-B's sums differ: branches %d, tellers %d, accounts %d, history %d", branches, tellers, accounts, history)
	}
	s.say(fmt.Sprintf("TPC-B's sums agree: branches, tellers, accounts and history all %d", history))
	s.add("TPC-B's sums", "agree")
	return nil
}

// bench runs pgbench once and looks at the spread of its connections half way.
func (s *show) bench(ctx context.Context, bench load.Pgbench) error {
	type output struct {
		text string
		err  error
	}
	done := make(chan output, 1)
	go func() {
		text, err := s.onClient(ctx, bench.Args()...)
		done <- output{text, err}
	}()
	half := time.NewTimer(bench.Duration / 2)
	defer half.Stop()
	var out output
	var spread []int64
	var spreadErr error
	select {
	case <-half.C:
		spread, spreadErr = s.spread()
		out = <-done
	case out = <-done: // failed, or was interrupted
	}
	if err := errors.Join(out.err, spreadErr); err != nil {
		return err
	}
	r, err := load.ParsePgbench(out.text)
	if err != nil {
		return err
	}
	figures := fmt.Sprintf("%6.0f tps, %5.2f ms; connections on the poolers %s", r.TPS,
		float64(r.Latency)/float64(time.Millisecond), join(spread))
	s.say(fmt.Sprintf("%-22s %s", bench, figures))
	s.add("pgbench "+bench.String(), "%s", figures)
	if r.Failed > 0 || r.Aborted > 0 {
		s.fail(fmt.Errorf("pgbench %v: %d transactions failed, %d clients aborted", bench, r.Failed, r.Aborted))
	}
	if slices.Max(spread)-slices.Min(spread) > 1 {
		s.fail(fmt.Errorf("pgbench %v: the connections are spread %s over the poolers", bench, join(spread)))
	}
	return nil
}

// spread returns the open connections of each pooler, as the active balancer
// counts them.
func (s *show) spread() ([]int64, error) {
	owners, err := s.lab.Owners()
	if err != nil {
		return nil, err
	}
	if len(owners) != 1 {
		return nil, fmt.Errorf("%d balancers are active: %v", len(owners), owners)
	}
	backends, err := s.lab.Backends(owners[0])
	if err != nil {
		return nil, err
	}
	var counts []int64
	for _, b := range backends {
		counts = append(counts, b.Active)
	}
	if len(counts) == 0 {
		return nil, fmt.Errorf("%s has no backends", owners[0])
	}
	return counts, nil
}

func join(counts []int64) string {
	var parts []string
	for _, n := range counts {
		parts = append(parts, fmt.Sprint(n))
	}
	return strings.Join(parts, "/")
}
