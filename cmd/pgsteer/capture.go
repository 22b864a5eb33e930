package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pgsteer/pgsteer/pkg/capture"
)

const captureArgs = `[-w FILE] [-c COUNT] [-d DURATION] [-s SNAPLEN] [--side in|out|both]
           [--verdict PATTERN[,PATTERN...] | --all] [--host ADDRESS|PREFIX] [--port PORT] [--pin-path DIR]`

const captureAbout = `writes packets as they came to the XDP program and as it sent them, with its verdict:
a line for each, or with -w a file that Wireshark and tcpdump read. Without --verdict
and --all it leaves out those that went on to the kernel: tcpdump sees them anyway.

  -w FILE             write pcapng to FILE; - is the standard output
  -c COUNT            end after COUNT packets; before and after count as one
  -d DURATION         end after that long: 10s, 5m
  -s SNAPLEN          bytes to keep of each packet, 1 to 4096; 256 without it.
                      Packets hold queries and rows; 54 end before any of that
  --side SIDE         in: as they came; out: as they were sent; both without it
  --verdict PATTERN   as pgsteer counter show names them, with * and ?
  --all               every verdict
  --host ADDRESS      from or to it, before or after the rewriting; or a prefix
  --port PORT         from or to this TCP or UDP port, likewise
  --pin-path DIR      directory of the pinned program; the same as before capture`

// captureCommands is what can be done with object capture: it is its own command.
func captureCommands() []command {
	return []command{{args: captureArgs, about: captureAbout, prepare: prepareCapture}}
}

// captureRequest is a parsed command line of pgsteer capture.
type captureRequest struct {
	config   capture.Config
	file     string        // "": lines of text; "-": the standard output
	duration time.Duration // 0: without an end
}

func prepareCapture(args []string) (action, error) {
	r, err := parseCapture(args)
	if err != nil {
		return nil, err
	}
	return r.run, nil
}

func parseCapture(args []string) (*captureRequest, error) {
	r := &captureRequest{config: capture.Config{SnapLen: capture.DefaultSnapLen}}
	c := &r.config
	set := flag.NewFlagSet("capture", flag.ContinueOnError)
	set.SetOutput(io.Discard) // the caller says what is wrong
	set.Func("w", "", func(s string) error { return nonEmpty(s, &r.file) })
	set.Func("c", "", func(s string) (err error) {
		c.Count, err = positive(s, 64)
		return err
	})
	set.Func("d", "", func(s string) (err error) {
		if r.duration, err = time.ParseDuration(s); err == nil && r.duration <= 0 {
			err = errors.New("it is not positive")
		}
		return err
	})
	set.Func("s", "", func(s string) error {
		n, err := positive(s, 31)
		if err == nil && n > capture.MaxSnapLen {
			err = fmt.Errorf("%d bytes are the most", capture.MaxSnapLen)
		}
		c.SnapLen = int(n)
		return err
	})
	set.Func("side", "", func(s string) (err error) {
		c.Side, err = capture.ParseSide(s)
		return err
	})
	set.Func("verdict", "", func(s string) error {
		c.Verdicts = append(c.Verdicts, strings.Split(s, ",")...)
		return nil
	})
	set.BoolVar(&c.All, "all", false, "")
	set.Func("host", "", func(s string) (err error) {
		c.Host, err = parseHost(s)
		return err
	})
	set.Func("port", "", func(s string) error {
		n, err := positive(s, 16)
		c.Port = uint16(n)
		return err
	})
	set.Func("pin-path", "", func(s string) error { return nonEmpty(s, &c.PinPath) })
	if err := set.Parse(args); err != nil {
		return nil, err
	}
	if set.NArg() > 0 {
		return nil, fmt.Errorf("what is %q? Filters are options: --host, --port, --verdict", set.Arg(0))
	}
	return r, c.Check()
}

func nonEmpty(s string, to *string) error {
	if s == "" {
		return errors.New("it is empty")
	}
	*to = s
	return nil
}

// positive reads a number from 1 to what fits into so many bits.
func positive(s string, bits int) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, bits)
	if errors.Is(err, strconv.ErrRange) {
		return 0, errors.New("it is too large")
	}
	if err != nil || n == 0 {
		return 0, errors.New("it is not a positive number")
	}
	return n, nil
}

// parseHost reads an address or a prefix.
func parseHost(s string) (netip.Prefix, error) {
	if strings.Contains(s, "/") {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return p, errors.New("it is not a prefix such as 192.168.1.0/24")
		}
		return p, nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return netip.Prefix{}, errors.New("it is not an IP address")
	}
	a = a.Unmap()
	return netip.PrefixFrom(a, a.BitLen()), nil
}

// run captures until the count, the duration or the user ends it.
func (r *captureRequest) run(s *session) (err error) {
	if s.out.json {
		return usagef("capture has no JSON; -w writes pcapng")
	}
	if r.file == "-" && isTerminal(s.stdout) {
		return usagef("capture: pcapng is not for a terminal; use -w FILE or a pipe")
	}
	if r.config.PinPath == "" {
		r.config.PinPath = s.pinPath
	}
	r.config.Notice = func(text string) { fmt.Fprintf(s.stderr, "pgsteer: %s\n", text) }
	c, err := capture.Open(r.config)
	if err != nil {
		return explainCapture(r.config.PinPath, err)
	}
	defer func() { err = errors.Join(err, c.Close()) }()

	ctx := s.ctx
	if r.duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, r.duration)
		defer cancel()
	}
	fmt.Fprintf(s.stderr, "pgsteer: capturing on %s (XDP program %d): %s; end with Ctrl-C\n", c.Interface(), c.Program(), &r.config)
	if err := r.write(ctx, s.stdout, c); err != nil {
		return fmt.Errorf("capturing: %w", err)
	}
	counts, err := c.Counts()
	if err != nil {
		return err
	}
	fmt.Fprintf(s.stderr, "pgsteer: %d packets seen, %d of them asked for, %d of these lost because they came too fast\n",
		counts.Seen, counts.Accepted, counts.Lost)
	return nil
}

// write captures into the file or, as lines, to stdout.
func (r *captureRequest) write(ctx context.Context, stdout io.Writer, c *capture.Capture) (err error) {
	if r.file == "" {
		return c.Run(ctx, c.NewText(stdout))
	}
	if r.file != "-" {
		// What is in packets is for nobody else to see.
		f, err := os.OpenFile(r.file, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			return err
		}
		return errors.Join(r.writeFile(ctx, f, c), f.Close())
	}
	return r.writeFile(ctx, stdout, c)
}

// writeFile ends the file with the counts also when the capture failed, unless
// it is the file that did.
func (r *captureRequest) writeFile(ctx context.Context, w io.Writer, c *capture.Capture) error {
	file, err := c.NewFile(w, "pgsteer "+version(), kernel())
	if err != nil {
		return err
	}
	err = c.Run(ctx, file)
	counts, countsErr := c.Counts()
	if countsErr != nil {
		return errors.Join(err, countsErr)
	}
	if finishErr := file.Finish(counts); !errors.Is(err, finishErr) {
		err = errors.Join(err, finishErr)
	}
	return err
}

// explainCapture says what an operator can do about a capture that cannot begin.
func explainCapture(pinPath string, err error) error {
	switch {
	case errors.Is(err, capture.ErrNotAttached):
		return fmt.Errorf("%w: either pgsteerd has never run on this node, or its xdp.pin_path is another (use --pin-path)", err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("no permission to capture from the program in %s: run as root; the capabilities are CAP_SYS_ADMIN and CAP_DAC_READ_SEARCH", pinPath)
	}
	return err
}

// kernel is what uname -sr prints.
func kernel() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:])
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
