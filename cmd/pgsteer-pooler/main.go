// Command pgsteer-pooler is a transaction pooler for PostgreSQL that reads
// PgBouncer's configuration.
//
//	pgsteer-pooler [-check] [-version] [-takeover] [-d] FILE.ini
//
// The signals are PgBouncer's but for SIGTERM, which does not wait for ever:
//
// With -takeover it takes the connections of the pooler over that runs with the
// same configuration, by its control socket. That one ends when it has handed over
// all of them.
//
//	SIGHUP   reads the configuration again, as the console's RELOAD does; if it
//	         is bad, the log says why, and all stays as it was
//	SIGTERM  ends it: no more clients are taken, those without a transaction are
//	         closed with SQLSTATE 57P01, the others when they have ended theirs,
//	         which they have 30 s for
//	SIGINT   the same without the limit, as SHUTDOWN WAIT_FOR_SERVERS does
//	SIGQUIT  ends it at once, as does a second SIGTERM or SIGINT
//	SIGUSR1  pauses it, as PAUSE does
//	SIGUSR2  goes on, as RESUME does
//
// The exit status is 0 after a signal, 1 when something failed, 2 when the
// command line or the configuration makes no sense.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/pgsteer/pgsteer/pkg/config/bouncer"
	"github.com/pgsteer/pgsteer/pkg/pooler"
	"github.com/pgsteer/pgsteer/pkg/stats/poolmetrics"
)

// The exit statuses.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

const usageText = `Usage: pgsteer-pooler [-check] [-takeover] [-d] FILE.ini
       pgsteer-pooler -version

  FILE.ini       the configuration, as PgBouncer has it
  -check         read the configuration, say what is wrong with it, and end
  -takeover, -R  take over from the pooler that runs with this configuration:
                 its clients stay connected
  -d             run in the background
  -version       print the version
`

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	opts, err := parseFlags(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usageText)
		return exitOK
	case err != nil:
		fmt.Fprintf(stderr, "pgsteer-pooler: %v\n", err)
		return exitUsage
	case opts.version:
		fmt.Fprintf(stdout, "pgsteer-pooler %s\n", version())
		return exitOK
	}
	loader := bouncer.NewLoader(opts.file)
	file, warnings, err := loader.Load()
	if err != nil {
		fmt.Fprintf(stderr, "pgsteer-pooler: %v\n", err)
		return exitUsage
	}
	for _, w := range warnings {
		fmt.Fprintf(stderr, "pgsteer-pooler: %s\n", w)
	}
	config, err := poolerConfig(&file)
	if err != nil {
		fmt.Fprintf(stderr, "pgsteer-pooler: %s: %v\n", opts.file, err)
		return exitUsage
	}
	if opts.check {
		fmt.Fprintf(stdout, "%s: configuration is valid\n", opts.file)
		return exitOK
	}
	if opts.background {
		return background(args, stdout, stderr)
	}
	config.TakeOver = opts.takeOver
	out := &logs{stderr: stderr}
	log := out.logger()
	if err := start(&file, config, loader, out, log); err != nil {
		log.Error(err.Error())
		return exitFailure
	}
	return exitOK
}

// start does what the file says about the process, and serves.
func start(file *bouncer.Config, config pooler.Config, loader *bouncer.Loader, out *logs, log *slog.Logger) error {
	if err := become(file.RunUser); err != nil {
		return err
	}
	if err := out.configure(file); err != nil {
		return err
	}
	remove := func() {}
	defer func() { remove() }()
	pid := func() (err error) {
		remove, err = writePID(file.PIDFile, config.TakeOver, log)
		return err
	}
	if !config.TakeOver { // else the old process has its file until we are ready
		if err := pid(); err != nil {
			return err
		}
		pid = func() error { return nil }
	}
	return serve(config, file.MetricsListen, &reloader{loader: loader, log: log, out: out}, pid, log)
}

// serve is the pooler's life. Metrics is where Prometheus is served, "" for
// nowhere.
func serve(config pooler.Config, metrics string, r *reloader, opened func() error, log *slog.Logger) error {
	if err := setLimits(&config, log); err != nil {
		return err
	}
	config.Reread, config.Change = r.reread, r.change
	sockets, err := givenSockets(log)
	if err != nil {
		return err
	}
	config.Sockets = sockets
	p, err := pooler.Open(config, log)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	endMetrics, err := serveMetrics(ctx, metrics, p, log)
	if err != nil {
		return errors.Join(err, p.Close())
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, obeyed...)
	defer signal.Stop(signals)
	ended := make(chan struct{})
	watched := make(chan error, 1)
	go func() { watched <- obey(signals, ended, cancel, p, log) }()

	if err := opened(); err != nil {
		close(ended)
		return errors.Join(err, <-watched, p.Close(), endMetrics())
	}
	if err := sayReady(); err != nil {
		log.Warn("failed to say that the start is over", "error", err)
	}
	if !p.TakesOver() { // the service is up already, and the old process speaks for it
		notify(daemon.SdNotifyReady, log)
	}
	log.Info("started", "version", version(), "listen", fmt.Sprint(p.Addrs()), "max_clients", config.MaxClients,
		"pool_size", config.PoolSize)
	err = p.Run(ctx)
	close(ended)
	if pid := p.Successor(); pid != 0 {
		// From now on systemd watches the other one. (It accepts that of a main
		// process, so it is said by us.)
		notify(fmt.Sprintf("MAINPID=%d", pid), log)
	}
	err = errors.Join(err, <-watched, p.Close(), endMetrics())
	if err == nil {
		log.Info("stopped")
	}
	return err
}

// serveMetrics serves Prometheus until end is called.
func serveMetrics(ctx context.Context, listen string, p *pooler.Pooler, log *slog.Logger) (end func() error, err error) {
	if listen == "" {
		return func() error { return nil }, nil
	}
	s, err := poolmetrics.Open(listen, version(), p.Snapshot, log)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	log.Info("serving metrics", "address", s.Addr().String())
	return func() error {
		cancel()
		return errors.Join(<-done, s.Close())
	}, nil
}

// notify tells systemd how we are, if it started us.
func notify(state string, log *slog.Logger) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("failed to notify service manager", "error", err)
	}
}

// options is the command line.
type options struct {
	file           string
	check, version bool
	takeOver       bool
	background     bool
}

func parseFlags(args []string) (options, error) {
	var o options
	fs := flag.NewFlagSet("pgsteer-pooler", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // run prints the error, on one line
	fs.BoolVar(&o.check, "check", false, "")
	fs.BoolVar(&o.version, "version", false, "")
	for _, name := range []string{"takeover", "R", "reboot"} { // the others are PgBouncer's
		fs.BoolVar(&o.takeOver, name, false, "")
	}
	for _, name := range []string{"d", "daemon"} {
		fs.BoolVar(&o.background, name, false, "")
	}
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	if o.version {
		return o, nil
	}
	if fs.NArg() != 1 {
		return o, fmt.Errorf("want one configuration file, got %d; see pgsteer-pooler -help", fs.NArg())
	}
	o.file = fs.Arg(0)
	return o, nil
}

// version is that of the module, which the Go tool takes from git.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(unknown)"
}
