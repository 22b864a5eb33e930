// Command pgsteer shows what a balancer node does, in bpftool's manner:
//
//	pgsteer [OPTIONS] OBJECT { COMMAND | help }
//
// It reads the maps that the XDP program works on, which stay pinned while
// pgsteerd is down. It changes nothing.
//
// The exit status is 0 when all went well, 1 when the maps could not be read,
// 2 when the command line makes no sense.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime/debug"

	"github.com/pgsteer/pgsteer/pkg/lb"
	"github.com/pgsteer/pgsteer/pkg/xdp"
)

// The exit statuses.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

// defaultPinPath is pgsteerd's default for xdp.pin_path.
const defaultPinPath = "/sys/fs/bpf/pgsteer"

// A reader reads a node's pinned maps.
type reader interface {
	Stats() (lb.DatapathStats, error)
	Flows(func(lb.Flow) bool) error
	Close() error
}

// A tool is this command's environment, replaced in tests.
type tool struct {
	stdout, stderr io.Writer
	getenv         func(string) string
	open           func(pinPath string) (reader, error)
}

func main() {
	t := tool{
		stdout: os.Stdout,
		stderr: os.Stderr,
		getenv: os.Getenv,
		open: func(pinPath string) (reader, error) {
			r, err := xdp.OpenPins(pinPath)
			if err != nil {
				return nil, err // not r: a nil *xdp.Reader is no nil reader
			}
			return r, nil
		},
	}
	os.Exit(t.run(os.Args[1:]))
}

func (t tool) run(args []string) int {
	inv, err := parse(args, t.getenv)
	if err == nil && inv.help != "" {
		_, err = io.WriteString(t.stdout, inv.help)
	} else if err == nil {
		err = t.perform(inv)
	}
	if err == nil {
		return exitOK
	}
	t.report(inv.json, err)
	var usage *usageError
	if errors.As(err, &usage) {
		return exitUsage
	}
	return exitFailure
}

// perform runs the command of a parsed command line.
func (t tool) perform(inv invocation) error {
	buf := bufio.NewWriter(t.stdout)
	out := &output{w: buf, json: inv.json, pretty: inv.pretty}
	if inv.version {
		if err := showVersion(out); err != nil {
			return err
		}
		return flush(buf)
	}
	r, err := t.open(inv.pinPath)
	if err != nil {
		return explain(inv.pinPath, err)
	}
	// A failed close of descriptors that were only read loses nothing, but it
	// is told all the same.
	return errors.Join(inv.command.run(r, out), flush(buf), r.Close())
}

func flush(w *bufio.Writer) error {
	if err := w.Flush(); err != nil {
		return fmt.Errorf("writing the result: %w", err)
	}
	return nil
}

// explain says what an operator can do about maps that cannot be opened.
func explain(pinPath string, err error) error {
	switch {
	case errors.Is(err, xdp.ErrNoPins):
		return fmt.Errorf("no pinned maps in %s: either pgsteerd has never run on this node, or its xdp.pin_path is another (use --pin-path)", pinPath)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("no permission to read the pinned maps in %s: run as root or with CAP_BPF and CAP_DAC_READ_SEARCH", pinPath)
	}
	return fmt.Errorf("opening the pinned maps in %s: %w", pinPath, err)
}

// report writes err to standard error, as JSON when that was asked for.
func (t tool) report(asJSON bool, err error) {
	if asJSON {
		enc := json.NewEncoder(t.stderr)
		enc.SetEscapeHTML(false)
		if enc.Encode(map[string]string{"error": err.Error()}) == nil {
			return
		}
	}
	fmt.Fprintf(t.stderr, "pgsteer: %v\n", err)
}

// version is that of the module, which the Go tool takes from git.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(unknown)"
}

func showVersion(out *output) error {
	if !out.json {
		_, err := fmt.Fprintf(out.w, "pgsteer %s\n", version())
		return err
	}
	return out.value(map[string]string{"version": version()})
}
