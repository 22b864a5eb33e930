package notify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
	"unicode"
)

// program is a sink: it gets the message on its standard input, and the worst of
// it in its environment, for scripts that do not read JSON.
type program Exec

// killDelay is how long its pipes may stay open after its end: a child of it may
// have them.
const killDelay = time.Second

func (p *program) deliver(ctx context.Context, m *Message) error {
	body, err := payload(m)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, p.Timeout)
	defer cancel()
	var said opening
	cmd := exec.CommandContext(ctx, p.Command[0], p.Command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(append(body, '\n')), &said, &said
	cmd.Dir = "/"
	first := m.Items[0]
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "PGSTEER_ID=" + m.ID, "PGSTEER_NODE=" + m.Node, "PGSTEER_SEVERITY=" + string(m.Severity),
		"PGSTEER_KIND=" + first.Kind, "PGSTEER_KEY=" + first.Key, "PGSTEER_VALUE=" + first.Value,
		"PGSTEER_TITLE=" + oneLine(first.Title), "PGSTEER_REASON=" + oneLine(first.Reason),
		fmt.Sprintf("PGSTEER_ITEMS=%d", len(m.Items)),
	}
	// A group of its own: its children end with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = killDelay
	err = cmd.Run()
	switch {
	case err == nil:
		return nil
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("%s did not end within %v", p.Command[0], p.Timeout)
	}
	if text := said.text(); text != "" {
		return fmt.Errorf("%s: %w: %s", p.Command[0], err, text)
	}
	return fmt.Errorf("%s: %w", p.Command[0], err)
}

// opening keeps the beginning of what a program says.
type opening struct{ b []byte }

// Write implements io.Writer; it never fails.
func (t *opening) Write(p []byte) (int, error) {
	const limit = 200
	t.b = append(t.b, p[:min(len(p), limit-len(t.b))]...)
	return len(p), nil
}

func (t *opening) text() string { return oneLine(string(t.b)) }

// oneLine has no control characters.
func oneLine(s string) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?")))
}
