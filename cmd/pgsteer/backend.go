package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/pgsteer/pgsteer/pkg/admin"
	"github.com/pgsteer/pgsteer/pkg/flowsync"
	"github.com/pgsteer/pgsteer/pkg/lb"
	"github.com/pgsteer/pgsteer/pkg/notify"
	"github.com/pgsteer/pgsteer/pkg/xdp"
)

// A daemon is pgsteerd as its admin socket shows it.
type daemon interface {
	Backends(context.Context) ([]lb.BackendStatus, error)
	ChangeBackend(ctx context.Context, service, backend string, change admin.BackendChange) (lb.BackendStatus, error)
	Routers(context.Context) ([]admin.RouterStatus, error)
	Resign(ctx context.Context, router string, m admin.Move) (admin.RouterStatus, error)
	Takeover(ctx context.Context, router string, m admin.Move) (admin.RouterStatus, error)
	Sync(context.Context) (flowsync.Status, error)
	Notifications(context.Context) ([]notify.Status, error)
	TestNotifications(context.Context) ([]notify.Result, error)
}

func dialDaemon(socket string) daemon { return admin.NewClient(socket) }

// The operator's words for a backend, as pgsteerd knows them.
var (
	wordReady    = lb.AdminReady.String()
	wordDraining = lb.AdminDraining.String()
	wordMaint    = lb.AdminMaint.String()
)

// maxWeight is the highest weight that a backend can have.
const maxWeight = 256

func backendCommands() []command {
	const name = "SERVICE/NAME"
	return []command{
		showing("one line for each backend; CONNECT-P50 and -P99 say what the time from SYN\nto SYN-ACK of half and of 99 % of the connections stayed below", showBackends),
		{
			name: "drain", args: name + " [deadline TIME]",
			about: `gives it no new connections; those that it has live on. At the deadline
those left are reset; 0s is none, and without one its service's
drain_timeout counts.`,
			prepare: prepareDrain,
		},
		{
			name: "undrain", args: name,
			about:   "ends draining: it is in use again if its checks pass",
			prepare: prepareUndrain,
		},
		{
			name: "maint", args: name,
			about:   "takes it out of use, whatever its checks say",
			prepare: onBackend(nothingMore(admin.BackendChange{State: wordMaint})),
		},
		{
			name: "up", args: name,
			about:   "ends draining and maintenance: it is in use again if its checks pass",
			prepare: onBackend(nothingMore(admin.BackendChange{State: wordReady})),
		},
		{
			name: "weight", args: name + " N",
			about: fmt.Sprintf("gives it N shares of the new connections, 1 to %d, until told otherwise", maxWeight),
			prepare: onBackend(oneNumber(1, maxWeight, func(n uint64) admin.BackendChange {
				weight := uint16(n)
				return admin.BackendChange{Weight: &weight}
			})),
		},
		{
			name: "max", args: name + " N",
			about: "gives it no more than N connections at a time, until told otherwise; 0 is\nno limit",
			prepare: onBackend(oneNumber(0, 1<<32-1, func(n uint64) admin.BackendChange {
				limit := uint32(n)
				return admin.BackendChange{MaxConnections: &limit}
			})),
		},
	}
}

// nothingMore is the change of a command that has no further arguments.
func nothingMore(change admin.BackendChange) func([]string) (admin.BackendChange, error) {
	return func(args []string) (admin.BackendChange, error) {
		if len(args) > 0 {
			return change, usagef("nothing may follow the backend, but %q was given", args[0])
		}
		return change, nil
	}
}

// oneNumber is the change of a command that has a number.
func oneNumber(least, most uint64, change func(uint64) admin.BackendChange) func([]string) (admin.BackendChange, error) {
	return func(args []string) (admin.BackendChange, error) {
		if len(args) != 1 {
			return admin.BackendChange{}, usagef("want SERVICE/NAME and a number from %d to %d", least, most)
		}
		n, err := number(args[0], least, most)
		return change(n), err
	}
}

// A target is the backend that a command is about.
type target struct{ service, name string }

func (t target) String() string { return t.service + "/" + t.name }

func targetOf(args []string) (t target, rest []string, err error) {
	if len(args) == 0 {
		return t, nil, usagef("want SERVICE/NAME of a backend")
	}
	var ok bool
	t.service, t.name, ok = strings.Cut(args[0], "/")
	if !ok || t.service == "" || t.name == "" {
		return t, nil, usagef("%q is not SERVICE/NAME of a backend; pgsteer backend show lists them", args[0])
	}
	return t, args[1:], nil
}

// onBackend prepares a change of the backend named first.
func onBackend(changeOf func(args []string) (admin.BackendChange, error)) func([]string) (action, error) {
	return func(args []string) (action, error) {
		t, rest, err := targetOf(args)
		if err != nil {
			return nil, err
		}
		change, err := changeOf(rest)
		if err != nil {
			return nil, err
		}
		return func(s *session) error {
			if _, err := s.backend(t); err != nil {
				return err
			}
			return s.change(t, change)
		}, nil
	}
}

func prepareDrain(args []string) (action, error) {
	return onBackend(func(args []string) (admin.BackendChange, error) {
		change := admin.BackendChange{State: wordDraining}
		err := keywords(args, keyword{"deadline", "TIME", func(v string) error {
			d, err := duration(v)
			text := d.String()
			change.Deadline = &text
			return err
		}})
		return change, err
	})(args)
}

// prepareUndrain differs from up in that it does not end a maintenance that
// somebody else began.
func prepareUndrain(args []string) (action, error) {
	t, rest, err := targetOf(args)
	if err != nil {
		return nil, err
	}
	change, err := nothingMore(admin.BackendChange{State: wordReady})(rest)
	if err != nil {
		return nil, err
	}
	return func(s *session) error {
		b, err := s.backend(t)
		if err != nil {
			return err
		}
		if b.Admin != lb.AdminDraining {
			return fmt.Errorf("%s is not told to drain: its state is %s", t, b.State)
		}
		return s.change(t, change)
	}, nil
}

// answerTimeout is how long the daemon may take to answer. A change waits for
// the maps and for a file to be written, which is milliseconds.
const answerTimeout = 10 * time.Second

// ask has fn ask the daemon, and explains its failure.
func (s *session) ask(fn func(context.Context, daemon) error) error {
	return s.askWithin(answerTimeout, fn)
}

// askWithin is ask for what takes another time.
func (s *session) askWithin(limit time.Duration, fn func(context.Context, daemon) error) error {
	ctx, cancel := context.WithTimeout(s.ctx, limit)
	defer cancel()
	if err := fn(ctx, s.dial(s.socket)); err != nil {
		return s.explainDaemon(err, limit)
	}
	return nil
}

// backend asks the daemon for a backend by its name.
func (s *session) backend(t target) (lb.BackendStatus, error) {
	var all []lb.BackendStatus
	err := s.ask(func(ctx context.Context, d daemon) (err error) {
		all, err = d.Backends(ctx)
		return err
	})
	if err != nil {
		return lb.BackendStatus{}, err
	}
	var names []string
	for _, b := range all {
		known := target{b.Service, b.Name}
		if known == t {
			return b, nil
		}
		names = append(names, known.String())
	}
	return lb.BackendStatus{}, unknown("backend", t.String(), names)
}

// change has the daemon change a backend, and shows what became of it.
func (s *session) change(t target, change admin.BackendChange) error {
	var b lb.BackendStatus
	err := s.ask(func(ctx context.Context, d daemon) (err error) {
		b, err = d.ChangeBackend(ctx, t.service, t.name, change)
		return err
	})
	if err != nil {
		return err
	}
	if s.out.json {
		return s.out.value(b)
	}
	fill := func(r *row, b *lb.BackendStatus) {
		deadline := "none"
		if b.Deadline != nil {
			deadline = b.Deadline.Format(time.RFC3339)
		}
		r.cells(
			b.Service, b.Name, b.Addr.String(), b.State.String(), b.Admin.String(),
			overridden(count(b.Weight), count(b.ConfiguredWeight)),
			overridden(limitOf(b.MaxConnections), limitOf(b.ConfiguredMaxConnections)), deadline, b.Reason,
		)
	}
	err = writeList(s.out, []lb.BackendStatus{b}, fill,
		left("SERVICE"), left("BACKEND"), left("ADDRESS"), left("STATE"), left("ADMIN"),
		right("WEIGHT"), right("LIMIT"), left("DEADLINE"), left("REASON"),
	)
	if err != nil || b.Unsaved == "" {
		return err
	}
	return s.out.remark("This would not outlive pgsteerd: %s\n", b.Unsaved)
}

// overridden is a value in force, with the configured one where it is another.
func overridden(now, configured string) string {
	if now == configured {
		return now
	}
	return now + " (configured " + configured + ")"
}

// explainDaemon says what an operator can do about a daemon that did not do
// what it was asked to. What it refused it has said itself.
func (s *session) explainDaemon(err error, limit time.Duration) error {
	switch {
	case s.ctx.Err() != nil:
		return errInterrupted
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("pgsteerd has taken the connection to %s, but gave no answer within %s", s.socket, limit)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("no permission to use pgsteerd's admin socket %s: be root or in the socket's group", s.socket)
	case !errors.Is(err, admin.ErrNotRunning):
		return err
	}
	down := "pgsteerd is not running, or its admin.socket is another (use --socket): nobody listens on " + s.socket
	switch _, err := s.reader(); {
	case err == nil:
		return errors.New(down + "; its tables are still there, and the XDP program goes on with them: see pgsteer backend show")
	case errors.Is(err, xdp.ErrNoPins):
		return errors.New(down + "; nor are there tables of it in " + s.pinPath)
	}
	return errors.New(down)
}
