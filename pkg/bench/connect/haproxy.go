package connect

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/pgsteer/pgsteer/pkg/bench/classic"
	"github.com/pgsteer/pgsteer/pkg/lab"
	"github.com/pgsteer/pgsteer/pkg/lab/load"
)

// HAProxy runs beside the database: that host's network card is a plain one,
// while those of the balancers run XDP and have checksums made in software,
// which would be held against it.
const (
	haproxyHost = lab.DB
	haproxyPort = 7432
	statsPort   = 8404

	// readyTimeout bounds the wait for an answer through HAProxy: its first
	// health checks come within 2 s.
	readyTimeout = 30 * time.Second
)

// haproxy is the peer.
type haproxy struct {
	address netip.AddrPort
	cmd     *lab.Cmd
	output  bytes.Buffer
	ended   chan error
}

// startHAProxy starts one in front of the lab's poolers and waits until it
// lets sessions through.
func startHAProxy(ctx context.Context, l *lab.Lab, dir string) (*haproxy, error) {
	program, err := classic.Program("haproxy")
	if err != nil {
		return nil, err
	}
	host, err := lab.Address(haproxyHost)
	if err != nil {
		return nil, err
	}
	h := &haproxy{address: netip.AddrPortFrom(host, haproxyPort), ended: make(chan error, 1)}
	config, err := h.writeConfig(dir)
	if err != nil {
		return nil, err
	}
	// -db: in the foreground, one process.
	if h.cmd, err = l.Command(ctx, haproxyHost, program, "-db", "-f", config); err != nil {
		return nil, err
	}
	h.cmd.Stdout, h.cmd.Stderr = &h.output, &h.output
	if err := h.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting haproxy: %w", err)
	}
	go func() { h.ended <- h.cmd.Wait() }()
	if err := h.await(ctx, l.DialContext(lab.Client)); err != nil {
		h.stop()
		return nil, fmt.Errorf("waiting for haproxy: %w\n%s", err, bytes.TrimSpace(h.output.Bytes()))
	}
	return h, nil
}

func (h *haproxy) writeConfig(dir string) (string, error) {
	config, err := classic.HAProxyConfig(h.address, netip.AddrPortFrom(h.address.Addr(), statsPort))
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "haproxy.cfg")
	if err := os.WriteFile(path, config, 0o644); err != nil {
		return "", fmt.Errorf("writing haproxy's configuration: %w", err)
	}
	return path, nil
}

// await waits until a pooler answers through it.
func (h *haproxy) await(ctx context.Context, dial func(context.Context, string, string) (net.Conn, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyTimeout, fmt.Errorf("no answer after %v", readyTimeout))
	defer cancel()
	try := load.Answer(dial, h.address.String(), lab.Database, lab.Database)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		select {
		case ended := <-h.ended:
			h.ended <- ended
			return fmt.Errorf("it has ended: %w", ended)
		case <-ctx.Done():
			return fmt.Errorf("%w (%w)", err, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// stop ends it and waits for that.
func (h *haproxy) stop() {
	_ = h.cmd.Process.Kill() // it may have ended
	h.ended <- <-h.ended
}

func (h *haproxy) pid() int { return h.cmd.Process.Pid }

// processTime returns the CPU time that a process has taken, user's and
// system's: fields 14 and 15 of /proc/PID/stat (proc_pid_stat(5)), in units of
// 10 ms for every program on Linux.
func processTime(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("reading the CPU time of a process: %w", err)
	}
	// The name, which may have spaces, is in parentheses; field 3 follows.
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 13 {
		return 0, fmt.Errorf("reading the CPU time of process %d: %q", pid, b)
	}
	return ticks(fields[11], fields[12])
}

// machineTime returns the CPU time that the machine has spent on anything but
// idling, softirqs included: the first line of /proc/stat (proc_stat(5)).
func machineTime() (time.Duration, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, fmt.Errorf("reading the machine's CPU time: %w", err)
	}
	line, _, _ := bytes.Cut(b, []byte("\n"))
	f := bytes.Fields(line)
	if len(f) < 8 {
		return 0, fmt.Errorf("reading the machine's CPU time: %q", line)
	}
	return ticks(f[1], f[2], f[3], f[6], f[7]) // user, nice, system, irq, softirq
}

// ticks adds up fields of /proc.
func ticks(fields ...[]byte) (time.Duration, error) {
	var total time.Duration
	for _, f := range fields {
		n, err := strconv.ParseUint(string(f), 10, 63)
		if err != nil {
			return 0, fmt.Errorf("reading a CPU time: %w", err)
		}
		total += time.Duration(n) * 10 * time.Millisecond
	}
	return total, nil
}
