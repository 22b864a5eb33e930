// Pgsteer-lab raises the whole picture of pgsteer on one machine, in network
// namespaces, for trying it out, for tests and for breaking it on purpose.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/pgsteer/pgsteer/pkg/lab"
)

// Exit statuses. A command run by exec has its own.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

// command is one row of the table that drives both parsing and help.
type command struct {
	name string
	args string
	help string
	run  func(ctx context.Context, name string, args []string) error
}

// commands is a function because help, which the commands call, lists them.
func commands() []command {
	return []command{
		{"up", "[-wait=false]", "raise the lab, or bring it back to the full picture", up},
		{"down", "[-keep-logs]", "remove the lab and everything it has made", down},
		{"status", "[-j]", "show hosts, processes, and what the balancers think", status},
		{"exec", "HOST -- COMMAND...", "run a command on a host", execute},
		{"kill", "PROCESS", "kill a process with SIGKILL", kill},
		{"term", "PROCESS", "ask a process to end, with SIGTERM", term},
		{"stop", "PROCESS", "freeze a process with SIGSTOP", stop},
		{"cont", "PROCESS", "let a stopped process go on", cont},
		{"start", "PROCESS", "bring a dead process back", start},
		{"cut", "HOST", "pull a host's cable", cut},
		{"heal", "HOST", "plug a host's cable in again", heal},
		{"logs", "[-n LINES] [PROCESS]", "show the end of one log, or of all", logs},
		{"demo", "", "raise the lab, run real traffic through it, break it, show the figures", runDemo},
	}
}

// usageError is a mistake on the command line.
type usageError struct{ message string }

func (e usageError) Error() string { return e.message }

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("pgsteer-lab", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	name := flags.String("name", lab.DefaultName, "name of the lab")
	version := flags.Bool("version", false, "print the version")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		usage(stdout)
		return exitOK
	case err != nil:
		return fail(stderr, usageError{err.Error()})
	case *version:
		fmt.Fprintln(stdout, "pgsteer-lab", buildVersion())
		return exitOK
	case flags.NArg() == 0:
		usage(stderr)
		return exitUsage
	case flags.Arg(0) == "help":
		usage(stdout)
		return exitOK
	}
	for _, c := range commands() {
		if c.name == flags.Arg(0) {
			ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
			defer cancel()
			// A second signal ends the program at once; the next up cleans.
			context.AfterFunc(ctx, cancel)
			return fail(stderr, c.run(ctx, *name, flags.Args()[1:]))
		}
	}
	return fail(stderr, usageError{fmt.Sprintf("there is no command %q; see pgsteer-lab help", flags.Arg(0))})
}

// fail reports an error, if there is one, and returns the exit status.
func fail(stderr io.Writer, err error) int {
	var u usageError
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err == context.Canceled: // and nothing went wrong
		fmt.Fprintln(stderr, "pgsteer-lab: interrupted")
		return exitFailure
	case errors.As(err, &u):
		fmt.Fprintln(stderr, "pgsteer-lab:", err)
		return exitUsage
	default:
		fmt.Fprintln(stderr, "pgsteer-lab:", err)
		return exitFailure
	}
}

func usage(w io.Writer) {
	fmt.Fprintf(w, "Usage: pgsteer-lab [-name NAME] COMMAND\n\nCommands:\n")
	for _, c := range commands() {
		fmt.Fprintf(w, "  %-28s %s\n", strings.TrimSpace(c.name+" "+c.args), c.help)
	}
	fmt.Fprintf(w, "\nHosts: %s\n", strings.Join(lab.Hosts(), ", "))
	fmt.Fprintf(w, "Processes: %s, %s, %s (or lb1), %s (or lb2)\n", lab.Postgres,
		strings.Join(lab.Poolers(), ", "), lab.Daemon(lab.LB1), lab.Daemon(lab.LB2))
	fmt.Fprintf(w, "\nExamples:\n"+
		"  pgsteer-lab up\n"+
		"  pgsteer-lab exec client -- psql\n"+
		"  pgsteer-lab exec lb1 -- pgsteer backend show\n"+
		"  pgsteer-lab kill pooler2; pgsteer-lab start pooler2\n"+
		"  pgsteer-lab down\n")
}

// buildVersion is what the Go tool has written into the program.
func buildVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(unknown)"
	}
	return info.Main.Version
}
