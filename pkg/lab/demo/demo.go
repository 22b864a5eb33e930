// Package demo shows what pgsteer does: it raises a lab, runs real traffic
// through it, breaks it, and prints the figures.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgsteer/pgsteer/pkg/lab"
	"github.com/pgsteer/pgsteer/pkg/lab/load"
)

// Figures of the demo: enough to see something, over in a minute.
const (
	defaultScale   = 10 // of pgbench: a million accounts, 150 MB
	defaultRunTime = 8 * time.Second

	clients     = 64
	heldConns   = 60
	loginEvery  = 20 * time.Millisecond
	probeEvery  = 10 * time.Millisecond
	settleTime  = time.Second // how long everything is watched before a fault
	faultLimit  = 30 * time.Second
	loginBudget = 3 * time.Second // what an application would wait for a connection
)

// Options say how to run the demo.
type Options struct {
	Lab        lab.Options
	Out        io.Writer     // captions and figures
	Invocation string        // how the user calls pgsteer-lab, for the closing words
	Scale      int           // of pgbench's tables, in 100,000 accounts; default 10
	RunTime    time.Duration // of each run of pgbench; default 8 s
}

// show is a demo under way.
type show struct {
	Options
	lab     *lab.Lab
	out     io.Writer
	began   time.Time
	connect func(context.Context) (*pgx.Conn, error)
	rows    []row   // of the final table
	wrong   []error // what did not work
}

// row is a line of the final table.
type row struct{ what, result string }

// Run runs the demo and leaves the lab up. It returns an error when anything
// did not work as it should, after it has shown as much as possible. When ctx
// ends, it takes the lab down unless it was up before.
func Run(ctx context.Context, o Options) error {
	if o.Scale == 0 {
		o.Scale = defaultScale
	}
	if o.RunTime == 0 {
		o.RunTime = defaultRunTime
	}
	s := &show{Options: o, out: o.Out, began: time.Now()}
	s.caption("Raising the lab: a client, two balancers, three poolers, a PostgreSQL, each in its network namespace")
	_, notUp := lab.Open(o.Lab.Name)
	o.Lab.Progress = s.say
	l, err := lab.Up(ctx, o.Lab)
	if err != nil {
		return err
	}
	s.lab = l
	err = s.perform(ctx, []func(context.Context) error{
		s.prepare, s.traffic, s.poolerDies, s.balancerDies, s.pages,
	})
	if ctx.Err() != nil {
		if notUp != nil {
			s.say("interrupted: taking the lab down")
			if err := l.Down(context.WithoutCancel(ctx), false); err != nil {
				return err
			}
		}
		return ctx.Err()
	}
	s.table()
	s.goOn(o.Invocation)
	return err
}

// perform runs the acts one after the other, whatever becomes of each, and
// returns everything that did not work.
func (s *show) perform(ctx context.Context, acts []func(context.Context) error) error {
	for _, act := range acts {
		err := act(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			s.fail(err)
		}
	}
	return errors.Join(s.wrong...)
}

// prepare loads pgbench's tables, through the VIP like everything else.
func (s *show) prepare(ctx context.Context) error {
	config, err := s.lab.ClientConfig()
	if err != nil {
		return err
	}
	s.connect = func(ctx context.Context) (*pgx.Conn, error) { return pgx.ConnectConfig(ctx, config) }
	s.caption("Loading pgbench's tables through %s: %d accounts", lab.Service, s.Scale*100_000)
	begin := time.Now()
	if _, err := s.onClient(ctx, "pgbench", "-i", "-q", "-s", fmt.Sprint(s.Scale)); err != nil {
		return fmt.Errorf("loading pgbench's tables: %w", err)
	}
	s.say(fmt.Sprintf("loaded in %.1f s", time.Since(begin).Seconds()))
	return nil
}

// onClient runs a program on the client and returns what it wrote.
func (s *show) onClient(ctx context.Context, argv ...string) (string, error) {
	cmd, err := s.lab.Command(ctx, lab.Client, argv...)
	if err != nil {
		return "", err
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w:\n%s", strings.Join(argv, " "), err, lastLines(string(out), 10))
	}
	return string(out), err
}

// pages fetches the stats page and the metrics of both balancers, from the
// client.
func (s *show) pages(ctx context.Context) error {
	s.caption("Fetching stats pages and metrics")
	for _, name := range lab.Balancers() {
		addr, err := lab.Address(name)
		if err != nil {
			return err
		}
		base := fmt.Sprintf("http://%s:%d", addr, lab.StatsPort)
		page, err := s.fetch(ctx, base+"/stats")
		if err != nil {
			return err
		}
		for _, want := range append(lab.Poolers(), lab.ServiceName) {
			if !strings.Contains(page, want) {
				return fmt.Errorf("the stats page of %s does not mention %s", name, want)
			}
		}
		metrics, err := s.fetch(ctx, base+"/metrics")
		if err != nil {
			return err
		}
		samples := 0
		for line := range strings.Lines(metrics) {
			if strings.HasPrefix(line, "pgsteer_") {
				samples++
			}
			if strings.HasPrefix(line, "pgsteer_vrrp_state{") && strings.HasSuffix(line, " 1\n") {
				s.say(name + ": " + strings.TrimSpace(line))
			}
		}
		if samples == 0 {
			return fmt.Errorf("the metrics of %s have no sample that begins with pgsteer_", name)
		}
		s.say(fmt.Sprintf("%s: %s/stats %d bytes, %s/metrics %d samples of pgsteer", name, base, len(page), base, samples))
		s.add("stats page and metrics of "+name, "%d bytes, %d samples", len(page), samples)
	}
	return nil
}

// probe measures for how long the VIP does not answer after fn has done its
// harm. It goes on until settled says so and the VIP answers.
func (s *show) probe(ctx context.Context, p *load.Prober, harm func() error, settled func(context.Context) error) (load.Outage, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, faultLimit, fmt.Errorf("not done after %v", faultLimit))
	defer cancel()
	probing, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.Run(probing)
	}()
	at, err := func() (time.Time, error) {
		if err := rest(ctx, settleTime); err != nil {
			return time.Time{}, err
		}
		at := time.Now()
		if err := harm(); err != nil {
			return at, err
		}
		if err := settled(ctx); err != nil {
			return at, err
		}
		// Long enough for attempts made meanwhile to have failed.
		if err := rest(ctx, settleTime); err != nil {
			return at, err
		}
		return at, p.AwaitSuccess(ctx, time.Now())
	}()
	stop()
	<-done
	if err != nil {
		return load.Outage{}, err
	}
	return load.OutageSince(p.Attempts(), at)
}

// rest lets time pass for whoever watches, or returns when ctx ends.
func rest(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
