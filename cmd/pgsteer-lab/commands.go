package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lab"
	"github.com/pgsteer/pgsteer/pkg/lab/demo"
)

// parse reads a command's flags and checks how many arguments are left.
func parse(flags *flag.FlagSet, args []string, least, most int) ([]string, error) {
	flags.SetOutput(io.Discard)
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			usage(os.Stdout)
			return nil, err
		}
		return nil, usageError{fmt.Sprintf("%s: %v", flags.Name(), err)}
	}
	if n := flags.NArg(); n < least || n > most {
		all := commands()
		i := slices.IndexFunc(all, func(c command) bool { return c.name == flags.Name() })
		return nil, usageError{"usage: pgsteer-lab " + strings.TrimSpace(all[i].name+" "+all[i].args)}
	}
	return flags.Args(), nil
}

func up(ctx context.Context, name string, args []string) error {
	flags := flag.NewFlagSet("up", flag.ContinueOnError)
	wait := flags.Bool("wait", true, "wait until the service answers")
	if _, err := parse(flags, args, 0, 0); err != nil {
		return err
	}
	l, err := lab.Up(ctx, lab.Options{
		Name: name, NoWait: !*wait,
		Progress: func(step string) { fmt.Println(step) },
	})
	if err != nil {
		return err
	}
	fmt.Printf("lab %s is up: try `%s exec client -- psql`\n", l.Name(), invocation(name))
	return nil
}

func down(ctx context.Context, name string, args []string) error {
	flags := flag.NewFlagSet("down", flag.ContinueOnError)
	keep := flags.Bool("keep-logs", false, "leave the logs")
	if _, err := parse(flags, args, 0, 0); err != nil {
		return err
	}
	return lab.Down(ctx, name, *keep)
}

func status(_ context.Context, name string, args []string) error {
	flags := flag.NewFlagSet("status", flag.ContinueOnError)
	asJSON := flags.Bool("j", false, "print JSON")
	if _, err := parse(flags, args, 0, 0); err != nil {
		return err
	}
	s, err := lab.GetStatus(name)
	if err != nil {
		return err
	}
	if *asJSON {
		return json.NewEncoder(os.Stdout).Encode(s)
	}
	return writeStatus(os.Stdout, s)
}

func execute(_ context.Context, name string, args []string) error {
	usage := usageError{"usage: pgsteer-lab exec HOST -- COMMAND..."}
	if len(args) < 2 {
		return usage
	}
	host, argv := args[0], args[1:]
	if argv[0] == "--" {
		argv = argv[1:]
	}
	if len(argv) == 0 {
		return usage
	}
	l, err := lab.Open(name)
	if err != nil {
		return err
	}
	return l.Exec(host, argv)
}

// onTarget is a command with one argument, given to a method of the lab.
func onTarget(command, name string, args []string, fn func(*lab.Lab, string) error) error {
	args, err := parse(flag.NewFlagSet(command, flag.ContinueOnError), args, 1, 1)
	if err != nil {
		return err
	}
	l, err := lab.Open(name)
	if err != nil {
		return err
	}
	return fn(l, args[0])
}

func kill(_ context.Context, name string, args []string) error {
	return onTarget("kill", name, args, (*lab.Lab).Kill)
}

func term(_ context.Context, name string, args []string) error {
	return onTarget("term", name, args, (*lab.Lab).Terminate)
}

func stop(_ context.Context, name string, args []string) error {
	return onTarget("stop", name, args, (*lab.Lab).Stop)
}

func cont(_ context.Context, name string, args []string) error {
	return onTarget("cont", name, args, (*lab.Lab).Cont)
}

func cut(_ context.Context, name string, args []string) error {
	return onTarget("cut", name, args, (*lab.Lab).Cut)
}

func heal(_ context.Context, name string, args []string) error {
	return onTarget("heal", name, args, (*lab.Lab).Heal)
}

func start(ctx context.Context, name string, args []string) error {
	return onTarget("start", name, args, func(l *lab.Lab, target string) error {
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		return l.Start(ctx, target)
	})
}

func logs(_ context.Context, name string, args []string) error {
	flags := flag.NewFlagSet("logs", flag.ContinueOnError)
	lines := flags.Int("n", 20, "number of lines, 0 for all")
	args, err := parse(flags, args, 0, 1)
	if err != nil {
		return err
	}
	if *lines < 0 {
		return usageError{"logs: -n cannot be negative"}
	}
	s, err := lab.GetStatus(name)
	if err != nil {
		return err
	}
	found := false
	for _, p := range s.Processes {
		if len(args) == 1 && p.Name != args[0] && p.Name != lab.Daemon(args[0]) {
			continue
		}
		if err := printTail(os.Stdout, p.Log, *lines, found); err != nil {
			return err
		}
		found = true
	}
	if !found {
		return fmt.Errorf("there is no process %q in the lab", args[0])
	}
	return nil
}

// printTail prints the end of a file under a line with its path, as tail does
// with several files.
func printTail(w io.Writer, path string, lines int, separate bool) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("reading a log: %w", err)
	}
	all := bytes.SplitAfter(b, []byte("\n"))
	if n := len(all); n > 0 && len(all[n-1]) == 0 {
		all = all[:n-1]
	}
	if lines > 0 && len(all) > lines {
		all = all[len(all)-lines:]
	}
	if separate {
		fmt.Fprintln(w)
	}
	_, err = fmt.Fprintf(w, "==> %s <==\n%s", path, bytes.Join(all, nil))
	return err
}

func runDemo(ctx context.Context, name string, args []string) error {
	if _, err := parse(flag.NewFlagSet("demo", flag.ContinueOnError), args, 0, 0); err != nil {
		return err
	}
	return demo.Run(ctx, demo.Options{Lab: lab.Options{Name: name}, Out: os.Stdout, Invocation: invocation(name)})
}

// invocation is how the user calls this program for the lab at hand.
func invocation(name string) string {
	if name == lab.DefaultName {
		return os.Args[0]
	}
	return os.Args[0] + " -name " + name
}
