// Command pgsteerd is the balancer daemon: it owns the XDP program, watches
// the backends, takes part in the election of the active node, and shows what
// it does.
//
//	pgsteerd -config FILE [-check | -detach]
//
// SIGTERM and SIGINT give the virtual addresses up at once and end the daemon;
// the XDP program stays attached, silent, with its flows. SIGHUP is logged and
// ignored: the configuration is read once.
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
	"syscall"

	"github.com/pgsteer/pgsteer/pkg/config"
	"github.com/pgsteer/pgsteer/pkg/doctor"
	"github.com/pgsteer/pgsteer/pkg/xdp"
)

// The exit statuses.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

// options is the command line.
type options struct {
	config                 string
	check, detach, version bool
}

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	opts, err := parseFlags(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usageText)
		return exitOK
	case err != nil:
		fmt.Fprintf(stderr, "pgsteerd: %v\n", err)
		return exitUsage
	case opts.version:
		fmt.Fprintf(stdout, "pgsteerd %s\n", version())
		return exitOK
	}
	cfg, err := config.Load(opts.config)
	if err != nil {
		fmt.Fprintf(stderr, "pgsteerd: %v\n", err)
		return exitUsage
	}
	if opts.check {
		fmt.Fprintf(stdout, "%s: configuration is valid\n", opts.config)
		return exitOK
	}
	log := newLogger(cfg.Log, stderr)
	if opts.detach {
		err = detach(cfg, log)
	} else {
		err = serve(cfg, log)
	}
	if err != nil {
		log.Error(err.Error())
		return exitFailure
	}
	return exitOK
}

const usageText = `Usage: pgsteerd -config FILE [-check | -detach]
       pgsteerd -version

  -config FILE  the configuration, YAML
  -check        read the configuration, say what is wrong with it, and end
  -detach       remove the XDP program and its pinned tables, which ends all
                connections through this node; pgsteerd must not be running
  -version      print the version
`

func parseFlags(args []string) (options, error) {
	var o options
	fs := flag.NewFlagSet("pgsteerd", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // run prints the error, on one line
	fs.StringVar(&o.config, "config", "", "")
	fs.BoolVar(&o.check, "check", false, "")
	fs.BoolVar(&o.detach, "detach", false, "")
	fs.BoolVar(&o.version, "version", false, "")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	switch {
	case fs.NArg() > 0:
		return o, fmt.Errorf("unexpected argument %q; see pgsteerd -help", fs.Arg(0))
	case o.version:
		return o, nil
	case o.config == "":
		return o, errors.New("no configuration given; see pgsteerd -help")
	case o.check && o.detach:
		return o, errors.New("-check and -detach exclude each other")
	}
	return o, nil
}

// newLogger writes to w in the form that was asked for. There are no colours:
// standard error is read by journald.
func newLogger(c config.Log, w io.Writer) *slog.Logger {
	level := map[string]slog.Level{
		"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
	}[c.Level]
	opts := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// version is that of the module, which the Go tool takes from git.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(unknown)"
}

// serve is the daemon's life.
func serve(cfg *config.Config, log *slog.Logger) error {
	if err := preflight(cfg); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	// A second signal ends the process on the spot.
	context.AfterFunc(ctx, stop)

	d, err := open(cfg, log)
	if err != nil {
		return err
	}
	log.Info("started", "version", version(), "node", cfg.Node, "interface", cfg.Interface, "xdp", d.balancer.Mode(),
		"stats", d.stats.Addr().String(), "services", len(cfg.Services), "virtual_routers", len(cfg.VirtualRouters))
	if err = d.logTables(); err == nil {
		err = d.run(ctx)
	}
	err = errors.Join(err, d.close())
	if err == nil {
		log.Info("stopped; the XDP program stays attached and is silent until the next start")
	}
	return err
}

// detach removes what earlier lives of the daemon left in the kernel.
func detach(cfg *config.Config, log *slog.Logger) error {
	if err := doctor.Capabilities(); err != nil {
		return err
	}
	lock, err := lockPins(cfg.XDP.PinPath)
	if err != nil {
		return fmt.Errorf("%w: stop it first", err)
	}
	if lock == nil {
		log.Info("nothing to detach", "pin_path", cfg.XDP.PinPath)
		return nil
	}
	err = xdp.Detach(cfg.XDP.PinPath)
	if err := errors.Join(err, lock.Close()); err != nil {
		return fmt.Errorf("detaching: %w", err)
	}
	log.Info("detached", "pin_path", cfg.XDP.PinPath)
	return nil
}
