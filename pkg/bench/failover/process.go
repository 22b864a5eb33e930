package failover

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lab"
)

// endLimit bounds the wait for a process that was told to end.
const endLimit = 10 * time.Second

// process is a program on one of the lab's hosts. It is the head of a process
// group, so that a signal reaches all that it has started at the same moment.
type process struct {
	host string
	argv []string
	log  string // file with what it writes

	cmd   *lab.Cmd
	ended chan struct{}
}

// start starts it anew. It does not run.
func (p *process) start(ctx context.Context, l *lab.Lab, env ...string) error {
	log, err := os.Create(p.log)
	if err != nil {
		return fmt.Errorf("starting %s: %w", p.argv[0], err)
	}
	defer log.Close()
	// It outlives ctx: whoever has started it ends it.
	cmd, err := l.Command(context.WithoutCancel(ctx), p.host, p.argv...)
	if err != nil {
		return err
	}
	cmd.Env = append(cmd.Env, env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting %s on %s: %w", p.argv[0], p.host, err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // how it ends is of no interest: we end it
	}()
	p.cmd, p.ended = cmd, ended
	return nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// alive tells whether it runs, or hangs.
func (p *process) alive() bool {
	if p.cmd == nil {
		return false
	}
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// signal sends a signal to the whole group.
func (p *process) signal(sig syscall.Signal) error {
	if !p.alive() {
		return nil
	}
	if err := syscall.Kill(-p.pid(), sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("sending %v to %s: %w", sig, p.argv[0], err)
	}
	return nil
}

// ask sends a signal to the process alone.
func (p *process) ask(sig syscall.Signal) error {
	if !p.alive() {
		return nil
	}
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("sending %v to %s: %w", sig, p.argv[0], err)
	}
	return nil
}

// await waits for its end.
func (p *process) await(ctx context.Context) error {
	if !p.alive() {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, endLimit, fmt.Errorf("not within %v", endLimit))
	defer cancel()
	select {
	case <-p.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for the end of %s: %w", p.argv[0], context.Cause(ctx))
	}
}

// tail returns the end of what it has written.
func (p *process) tail() string {
	const most = 2000
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(bytes.TrimSpace(b[max(0, len(b)-most):]))
}
