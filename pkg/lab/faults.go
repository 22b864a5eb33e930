package lab

import (
	"context"
	"fmt"
	"syscall"
	"time"
)

// endTimeout bounds the wait for a process that was sent SIGKILL or SIGTERM. A
// pooler lets transactions end before it obeys the latter.
const endTimeout = 15 * time.Second

// Kill kills a process of the lab with SIGKILL and waits until it is gone.
// Target is a process name; a balancer's host name stands for its daemon.
// PostgreSQL is killed as a whole.
func (l *Lab) Kill(target string) error {
	return l.onProcess(target, func(id identity) error {
		ctx, cancel := context.WithTimeout(context.Background(), endTimeout)
		defer cancel()
		return l.endTree(ctx, id)
	})
}

// Terminate asks a process to end, with SIGTERM, and waits until it is gone.
func (l *Lab) Terminate(target string) error {
	return l.onProcess(target, func(id identity) error {
		ctx, cancel := context.WithTimeout(context.Background(), endTimeout)
		defer cancel()
		if err := id.signal(syscall.SIGTERM); err != nil {
			return err
		}
		if err := id.wait(ctx); err != nil {
			return fmt.Errorf("waiting for %s to end: %w", target, err)
		}
		id.reap()
		return nil
	})
}

// Stop freezes a process of the lab with SIGSTOP, as a hung machine would:
// its connections stay and nothing answers.
func (l *Lab) Stop(target string) error {
	return l.onProcess(target, func(id identity) error { return l.signalTree(id, syscall.SIGSTOP) })
}

// Cont lets a stopped process go on.
func (l *Lab) Cont(target string) error {
	return l.onProcess(target, func(id identity) error { return l.signalTree(id, syscall.SIGCONT) })
}

// onProcess runs fn on a process that is alive.
func (l *Lab) onProcess(target string, fn func(identity) error) error {
	return l.change(func(st *state) error {
		s, err := l.findSpec(st, target)
		if err != nil {
			return err
		}
		id := st.Processes[s.name]
		if !id.alive() {
			id.reap()
			return fmt.Errorf("%s does not run", s.name)
		}
		return fn(id)
	})
}

// Start brings a process back that was killed or has died, and waits until it
// answers. It is no error when it runs.
func (l *Lab) Start(ctx context.Context, target string) error {
	return l.change(func(st *state) error {
		s, err := l.findSpec(st, target)
		if err != nil {
			return err
		}
		if _, err := l.installPrograms(st.Options.BinDir); err != nil {
			return err
		}
		if err := l.ensureRunning(ctx, st, s); err != nil {
			return err
		}
		return l.waitReady(ctx, st, s)
	})
}

// Running tells whether a process of the lab is alive, stopped ones included.
func (l *Lab) Running(target string) (bool, error) {
	st, err := l.load()
	if err != nil {
		return false, err
	}
	s, err := l.findSpec(st, target)
	if err != nil {
		return false, err
	}
	return st.Processes[s.name].alive(), nil
}

// Cut pulls the cable of a host.
func (l *Lab) Cut(host string) error { return l.cable(host, false) }

// Heal plugs the cable of a host in again.
func (l *Lab) Heal(host string) error { return l.cable(host, true) }

func (l *Lab) cable(name string, up bool) error {
	h, err := findHost(name)
	if err != nil {
		return err
	}
	if h.name == Remote {
		return fmt.Errorf("%s is not plugged into the LAN; cut or heal %s", Remote, Gateway)
	}
	return l.change(func(*state) error { return l.setLink(h, up) })
}
