// Pgsteer-bench measures pgsteer against what it replaces and prints a line of
// JSON a row. docs/performance.md says how to read it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/pgsteer/pgsteer/pkg/bench"
	"github.com/pgsteer/pgsteer/pkg/bench/connect"
	"github.com/pgsteer/pgsteer/pkg/bench/datapath"
	"github.com/pgsteer/pgsteer/pkg/bench/failover"
	"github.com/pgsteer/pgsteer/pkg/bench/pooling"
)

// Exit statuses.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

func main() {
	// The connect benchmark starts this program anew on the lab's client.
	if len(os.Args) > 1 && os.Args[1] == connect.GeneratorCommand {
		os.Exit(exitStatus(os.Stderr, connect.Generate(os.Stdin, os.Stdout)))
	}
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("pgsteer-bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprintf(stderr, "Usage: pgsteer-bench [OPTIONS] [NAME]\n\n"+
			"Runs, as root, the benchmarks whose name begins with NAME, or all. Results go to\n"+
			"standard output, a JSON object a line; progress goes to standard error.\n\nOptions:\n")
		flags.PrintDefaults()
	}
	packets, connects, fails, pools := datapath.DefaultOptions, connect.DefaultOptions, failover.DefaultOptions, pooling.DefaultOptions
	list := flags.Bool("list", false, "print the names of the benchmarks")
	flags.IntVar(&packets.Rounds, "rounds", packets.Rounds, "datapath: rounds, in which all rows take turns")
	flags.IntVar(&packets.Packets, "packets", packets.Packets, "datapath: packets a round and row")
	flags.IntVar(&packets.Flows, "flows", packets.Flows, "datapath: established flows of the 100k rows")
	flags.IntVar(&packets.SYNs, "syns", packets.SYNs, "datapath: new flows a round and row")
	flags.IntVar(&connects.Rounds, "connect-rounds", connects.Rounds, "connect_rate: rounds, in which the two balancers take turns")
	flags.DurationVar(&connects.Slice, "connect-slice", connects.Slice, "connect_rate: how long each balancer is loaded in a round")
	flags.DurationVar(&connects.Sustained, "connect-sustained", connects.Sustained, "connect_rate: how long each is loaded at the end, without a pause")
	flags.StringVar(&connects.BinDir, "bin", "", "connect_rate, failover, pooler: directory of pgsteerd and pgsteer-pooler; this program's own if empty")
	flags.IntVar(&connects.Workers, "connect-workers", connects.Workers, "connect_rate: clients at a time")
	flags.IntVar(&fails.Rounds, "failover-rounds", fails.Rounds, "failover: rounds, in each of which both stacks suffer the fault")
	flags.IntVar(&pools.Rounds, "pooler-rounds", pools.Rounds, "pooler: rounds, in which all rows take turns")
	flags.DurationVar(&pools.Slice, "pooler-slice", pools.Slice, "pooler: how long each pooler is loaded for a row in a round")
	flags.IntVar(&pools.Idle, "pooler-idle", pools.Idle, "pooler: clients of the rows with idle ones")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		return exitUsage
	case flags.NArg() > 1:
		fmt.Fprintln(stderr, "pgsteer-bench: one name at the most; a part of it from its beginning stands for several")
		return exitUsage
	}
	if err := errors.Join(packets.Check(), connects.Check(), fails.Check(), pools.Check()); err != nil {
		fmt.Fprintln(stderr, "pgsteer-bench:", err)
		return exitUsage
	}
	fails.BinDir, pools.BinDir = connects.BinDir, connects.BinDir
	// Later suites are added here.
	suites := append([]bench.Suite{
		datapath.Suite(packets),
		connect.Suite(connects),
		pooling.Suite(pools),
	}, failover.Suites(fails)...)
	if *list {
		for _, name := range bench.Names(suites) {
			fmt.Fprintln(stdout, name)
		}
		return exitOK
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(stderr, "pgsteer-bench: only root can run XDP programs and make network namespaces")
		return exitFailure
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	begin := time.Now()
	log := func(format string, args ...any) {
		fmt.Fprintf(stderr, "[%4.0f s] %s\n", time.Since(begin).Seconds(), fmt.Sprintf(format, args...))
	}
	return exitStatus(stderr, bench.Run(ctx, suites, flags.Arg(0), stdout, log))
}

func exitStatus(stderr io.Writer, err error) int {
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, bench.ErrNoSuchBench):
		fmt.Fprintln(stderr, "pgsteer-bench:", err)
		return exitUsage
	default:
		fmt.Fprintln(stderr, "pgsteer-bench:", err)
		return exitFailure
	}
}
