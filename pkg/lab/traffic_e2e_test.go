package lab_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgsteer/pgsteer/pkg/lab"
	"github.com/pgsteer/pgsteer/pkg/lab/load"
	"github.com/pgsteer/pgsteer/pkg/lb"
)

// TestLab is the whole way on one lab: the subtests run in order and each
// leaves it as it was.
func TestLab(t *testing.T) {
	l := raise(t, quickOptions(""))
	for _, step := range []struct {
		name string
		run  func(*testing.T, *lab.Lab)
	}{
		{"psql", testPsql},
		{"IPv6 LAN", testLAN6},
		{"exec", testExec},
		{"pgsteer", testInspect},
		{"pgbench", testPgbench},
		{"300 at once", testThreeHundred},
		{"bad packets", testBadPackets},
		{"bad clients", testBadClients},
		{"pooler killed", testPoolerKilled},
		{"pooler frozen", testPoolerFrozen},
		{"database killed", testDatabaseKilled},
		{"active killed", testActiveKilled},
		{"active resigns", testActiveResigns},
		{"active frozen", testActiveFrozen},
		{"active cut off", testActiveCutOff},
		{"up again", testUpAgain},
		{"another lab", testAnotherLab},
	} {
		ok := t.Run(step.name, func(t *testing.T) { step.run(t, l) })
		if !ok {
			showLogs(t, l)
		}
		// The next step needs everything in place, whatever happened here.
		o := quickOptions("")
		if _, err := lab.Up(t.Context(), o); err != nil {
			t.Fatalf("bringing the lab back after %q: %v", step.name, err)
		}
	}
}

// command runs a program on a host and fails the test when it fails.
func command(t *testing.T, l *lab.Lab, host string, argv ...string) string {
	t.Helper()
	cmd, err := l.Command(within(t, time.Minute), host, argv...)
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return string(out)
}

// connector returns a function that connects a client to the VIP.
func connector(t *testing.T, l *lab.Lab) func(context.Context) (*pgx.Conn, error) {
	t.Helper()
	cfg, err := l.ClientConfig()
	if err != nil {
		t.Fatal(err)
	}
	return func(ctx context.Context) (*pgx.Conn, error) { return pgx.ConnectConfig(ctx, cfg) }
}

// active returns the balancer that holds the VIP.
func active(t *testing.T, l *lab.Lab) string {
	t.Helper()
	name, err := l.WaitActive(within(t, 5*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func other(balancer string) string {
	if balancer == lab.LB1 {
		return lab.LB2
	}
	return lab.LB1
}

// counts returns the open connections of each pooler.
func counts(l *lab.Lab, balancer string) ([]int64, error) {
	backends, err := l.Backends(balancer)
	if err != nil {
		return nil, err
	}
	var n []int64
	for _, b := range backends {
		n = append(n, b.Active)
	}
	if len(n) != lab.PoolerCount {
		return n, fmt.Errorf("%s has %d backends", balancer, len(n))
	}
	return n, nil
}

// quiet waits until no connection is counted and the flow table is empty.
func quiet(t *testing.T, l *lab.Lab, balancer string) {
	t.Helper()
	eventually(t, 20*time.Second, func() error {
		n, err := counts(l, balancer)
		if err != nil {
			return err
		}
		flows := 0
		if err := l.Flows(balancer, func(lb.Flow) bool { flows++; return true }); err != nil {
			return err
		}
		if slices.Max(n) != 0 || slices.Min(n) != 0 || flows != 0 {
			return fmt.Errorf("%s counts %v connections and has %d flows", balancer, n, flows)
		}
		return nil
	})
	stats, err := l.Datapath(balancer)
	if err != nil {
		t.Fatal(err)
	}
	if stats.Audit.Drift != 0 || stats.Audit.Orphans != 0 {
		t.Errorf("the audit of %s found a drift of %d and %d orphans", balancer, stats.Audit.Drift, stats.Audit.Orphans)
	}
}

func testPsql(t *testing.T, l *lab.Lab) {
	got := command(t, l, lab.Client, "psql", "-XAtc", "select current_user || '@' || current_database()")
	if got != "bench@bench\n" {
		t.Errorf("psql printed %q", got)
	}
	// Full NAT: the database's own peer is the pooler, the pooler's the VIP.
	got = command(t, l, lab.Client, "psql", "-XAtc", "select inet_client_addr()")
	if got != "192.168.1.5\n" {
		t.Errorf("the database sees the client %q", got)
	}
	got = command(t, l, lab.DB, "psql", "-XAtc", "show max_connections")
	if got != "300\n" {
		t.Errorf("max_connections on the database is %q", got)
	}
}

// testExec calls the program as a user does.
func testExec(t *testing.T, l *lab.Lab) {
	labTool := func(args ...string) (string, int) {
		cmd := exec.CommandContext(within(t, time.Minute), binDir+"/pgsteer-lab", append([]string{"-name", l.Name()}, args...)...)
		cmd.Stdin = strings.NewReader("from stdin")
		out, err := cmd.CombinedOutput()
		if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return string(out), cmd.ProcessState.ExitCode()
	}
	for _, c := range []struct {
		args   []string
		out    string
		status int
	}{
		{[]string{"exec", "client", "--", "sh", "-c", "cat; exit 7"}, "from stdin", 7},
		{[]string{"exec", "db", "--", "sh", "-c", "echo $PGUSER at $PGHOST"}, "postgres at 192.168.1.6\n", 0},
		{[]string{"exec", "nowhere", "--", "true"}, "pgsteer-lab: there is no host \"nowhere\" in the lab, only [client lb1 lb2 pooler db]\n", 1},
		{[]string{"exec", "client", "--", "no-such-program"}, "pgsteer-lab: there is no program \"no-such-program\" in the PATH\n", 1},
		{[]string{"exec", "client"}, "pgsteer-lab: usage: pgsteer-lab exec HOST -- COMMAND...\n", 2},
		{[]string{"kill", "pooler9"}, "pgsteer-lab: there is no process \"pooler9\" in the lab, only postgres, pooler1, pooler2, pooler3, pgsteerd@lb1, pgsteerd@lb2\n", 1},
		{[]string{"dance"}, "pgsteer-lab: there is no command \"dance\"; see pgsteer-lab help\n", 2},
	} {
		out, status := labTool(c.args...)
		if out != c.out || status != c.status {
			t.Errorf("%v: got %q and status %d, want %q and %d", c.args, out, status, c.out, c.status)
		}
	}
	out, status := labTool("status", "-j")
	var s struct {
		Active    []string
		Processes []lab.ProcessStatus
	}
	if err := json.Unmarshal([]byte(out), &s); err != nil || status != 0 {
		t.Fatalf("status -j: %v, status %d:\n%s", err, status, out)
	}
	if len(s.Active) != 1 || len(s.Processes) != 6 || s.Processes[0].State != "running" {
		t.Errorf("status -j of a fresh lab: %s", out)
	}
	if out, status := labTool("logs", "-n", "1", lab.Postgres); status != 0 || strings.Count(out, "\n") != 2 {
		t.Errorf("logs -n 1: status %d, %q", status, out)
	}
}

// testInspect asks pgsteer, on a balancer, for what it reads from the maps.
func testInspect(t *testing.T, l *lab.Lab) {
	for object, want := range map[string]string{
		"service": lab.Service, "backend": "192.168.1.5:6433", "vip": "192.168.1.100", "counter": "tx_new",
	} {
		out := command(t, l, active(t, l), "pgsteer", "-j", object, "show")
		if !json.Valid([]byte(out)) || !strings.Contains(out, want) {
			t.Errorf("pgsteer -j %s show printed no JSON with %q: %s", object, want, out)
		}
	}
	conn, err := connector(t, l)(within(t, 5*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	port := conn.PgConn().Conn().LocalAddr().String()
	if out := command(t, l, active(t, l), "pgsteer", "flow", "show"); !strings.Contains(out, port) {
		t.Errorf("pgsteer flow show does not list the connection from %s:\n%s", port, out)
	}
}

func testPgbench(t *testing.T, l *lab.Lab) {
	command(t, l, lab.Client, "pgbench", "-i", "-q", "-s", "10")
	owner := active(t, l)
	for _, script := range []string{load.SelectOnly, load.TPCB} {
		for _, protocol := range []string{load.Simple, load.Prepared} {
			bench := load.Pgbench{Script: script, Protocol: protocol, Clients: 64, Duration: 20 * time.Second}
			t.Run(bench.String(), func(t *testing.T) { runPgbench(t, l, owner, bench) })
		}
	}
	conn, err := connector(t, l)(within(t, 5*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	sums := make([]int64, 4)
	err = conn.QueryRow(within(t, time.Minute), load.TPCBSums).Scan(&sums[0], &sums[1], &sums[2], &sums[3])
	if err != nil {
		t.Fatal(err)
	}
	if slices.Max(sums) != slices.Min(sums) || sums[0] == 0 {
		t.Errorf("TPC-B's sums of branches, tellers, accounts and history are %v", sums)
	}
	if err := conn.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	quiet(t, l, owner)
}

func runPgbench(t *testing.T, l *lab.Lab, owner string, bench load.Pgbench) {
	cmd, err := l.Command(within(t, bench.Duration+time.Minute), lab.Client, bench.Args()...)
	if err != nil {
		t.Fatal(err)
	}
	var spreads [][]int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		<-time.After(bench.Duration / 2)
		if n, err := counts(l, owner); err == nil {
			spreads = append(spreads, n)
		}
	}()
	out, err := cmd.CombinedOutput()
	<-done
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	r, err := load.ParsePgbench(string(out))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%.0f tps, %v; spread %v", r.TPS, r.Latency, spreads)
	if r.Failed != 0 || r.Aborted != 0 || r.Transactions == 0 {
		t.Errorf("of %d transactions %d failed, and %d clients aborted:\n%s", r.Transactions, r.Failed, r.Aborted, out)
	}
	if len(spreads) != 1 {
		t.Fatal("the connections were not counted")
	}
	for _, n := range spreads {
		if slices.Max(n)-slices.Min(n) > 1 || n[0]+n[1]+n[2] != int64(bench.Clients) {
			t.Errorf("%d connections are spread as %v", bench.Clients, n)
		}
	}
}

// testThreeHundred opens 300 connections as fast as this machine can.
func testThreeHundred(t *testing.T, l *lab.Lab) {
	owner := active(t, l)
	quiet(t, l, owner)
	begin := time.Now()
	held, err := load.Hold(within(t, time.Minute), 300, connector(t, l))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("300 connections opened in %v", time.Since(begin))
	n, err := counts(l, owner)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(n, []int64{100, 100, 100}) {
		t.Errorf("300 connections are spread as %v", n)
	}
	if lost := held.Lost(t.Context()); lost != 0 {
		t.Errorf("%d of them do not work", lost)
	}
	held.Close()
	quiet(t, l, owner)
}
