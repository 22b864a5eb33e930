// Command pgsteer shows what a balancer node does, and changes it, in
// bpftool's manner:
//
//	pgsteer [OPTIONS] OBJECT { COMMAND | help }
//
// What it shows it reads from the maps that the XDP program works on, which
// stay pinned while pgsteerd is down. What it changes it asks pgsteerd to.
//
// The exit status is 0 when all went well, 1 when it did not, 2 when the
// command line makes no sense, 3 when pgsteer doctor has warnings and no errors.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/pgsteer/pgsteer/pkg/admin"
	"github.com/pgsteer/pgsteer/pkg/doctor"
	"github.com/pgsteer/pgsteer/pkg/lb"
	"github.com/pgsteer/pgsteer/pkg/xdp"
)

// The exit statuses.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
	exitWarning = 3
)

const (
	// defaultPinPath is pgsteerd's default for xdp.pin_path.
	defaultPinPath = "/sys/fs/bpf/pgsteer"
	// defaultSocket is pgsteerd's default for admin.socket.
	defaultSocket = admin.DefaultSocket
)

// A reader reads a node's pinned maps.
type reader interface {
	Stats() (lb.DatapathStats, error)
	Flows(func(lb.Flow) bool) error
	Audit() (lb.AuditReport, error)
	Close() error
}

// A tool is this command's environment, replaced in tests.
type tool struct {
	stdout, stderr io.Writer
	getenv         func(string) string
	open           func(pinPath string) (reader, error)
	dial           func(socket string) daemon
	examine        func(context.Context, doctor.Node, doctor.Options) []doctor.Finding
}

// A session is what a command has to work with.
type session struct {
	tool
	ctx     context.Context // ends when the user wants it to
	out     *output
	pinPath string
	socket  string
	tables  reader // nil until needed
}

func main() {
	// A second signal ends the program at once.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
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
		dial:    dialDaemon,
		examine: doctor.Examine,
	}
	os.Exit(t.run(ctx, os.Args[1:]))
}

func (t tool) run(ctx context.Context, args []string) int {
	inv, err := parse(args, t.getenv)
	if err == nil && inv.help != "" {
		_, err = io.WriteString(t.stdout, inv.help)
	} else if err == nil {
		err = t.perform(ctx, inv)
	}
	if err == nil {
		return exitOK
	}
	t.report(inv.json, err)
	var usage *usageError
	var unwell *unwellError
	switch {
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &unwell) && unwell.errors == 0:
		return exitWarning
	}
	return exitFailure
}

// perform runs the command of a parsed command line.
func (t tool) perform(ctx context.Context, inv invocation) error {
	buf := bufio.NewWriterSize(t.stdout, 64<<10)
	s := &session{
		tool: t, ctx: ctx, pinPath: inv.pinPath, socket: inv.socket,
		out: &output{w: buf, json: inv.json, pretty: inv.pretty},
	}
	run := inv.action
	if inv.version {
		run = showVersion
	}
	errs := []error{run(s), flush(buf)}
	if s.tables != nil {
		// A failed close of descriptors that were only read loses nothing, but
		// it is told all the same.
		errs = append(errs, s.tables.Close())
	}
	return errors.Join(errs...)
}

// reader opens the pinned maps.
func (s *session) reader() (reader, error) {
	if s.tables != nil {
		return s.tables, nil
	}
	r, err := s.open(s.pinPath)
	if err != nil {
		return nil, explain(s.pinPath, err)
	}
	s.tables = r
	return r, nil
}

// stats reads what the datapath counted.
func (s *session) stats() (lb.DatapathStats, error) {
	r, err := s.reader()
	if err != nil {
		return lb.DatapathStats{}, err
	}
	d, err := r.Stats()
	if err != nil {
		return d, fmt.Errorf("reading the pinned maps: %w", err)
	}
	return d, nil
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
		return &noPinsError{pinPath}
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("no permission to read the pinned maps in %s: run as root or with CAP_BPF and CAP_DAC_READ_SEARCH", pinPath)
	}
	return fmt.Errorf("opening the pinned maps in %s: %w", pinPath, err)
}

// A noPinsError says that there are no pinned maps. It matches xdp.ErrNoPins.
type noPinsError struct{ pinPath string }

func (e *noPinsError) Error() string {
	return fmt.Sprintf("no pinned maps in %s: either pgsteerd has never run on this node, or its xdp.pin_path is another (use --pin-path)", e.pinPath)
}

func (e *noPinsError) Unwrap() error { return xdp.ErrNoPins }

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

func showVersion(s *session) error {
	if !s.out.json {
		_, err := fmt.Fprintf(s.out.w, "pgsteer %s\n", version())
		return err
	}
	return s.out.value(map[string]string{"version": version()})
}
