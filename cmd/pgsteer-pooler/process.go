package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"strconv"
	"strings"
	"syscall"
)

// become changes to a user, as which everything is done from here on.
func become(name string) error {
	if name == "" {
		return nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return fmt.Errorf("changing user: %w", err)
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err := errors.Join(err1, err2); err != nil {
		return fmt.Errorf("changing user: %w", err)
	}
	if uid == os.Geteuid() {
		return nil
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("cannot become user %s: only root can", name)
	}
	for _, err := range []error{syscall.Setgroups([]int{gid}), syscall.Setgid(gid), syscall.Setuid(uid)} {
		if err != nil {
			return fmt.Errorf("changing to user %s: %w", name, err)
		}
	}
	return nil
}

// writePID writes the file with our process id, which is removed by the
// function returned. One that names a living process is left alone, unless that is
// the one that we take over from.
func writePID(path string, takeOver bool, log *slog.Logger) (remove func(), err error) {
	if path == "" {
		return func() {}, nil
	}
	old, err := os.ReadFile(path)
	switch pid, perr := strconv.Atoi(strings.TrimSpace(string(old))); {
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("reading pidfile: %w", err)
	case takeOver:
	case err == nil && perr == nil && pid != os.Getpid() && pid > 0 && !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH):
		return nil, fmt.Errorf("pidfile %s exists and process %d is alive: another instance running?", path, pid)
	case err == nil:
		log.Info("stale pidfile, replacing it", "pidfile", path)
	}
	if err := os.WriteFile(path, fmt.Appendf(nil, "%d\n", os.Getpid()), 0o644); err != nil {
		return nil, fmt.Errorf("writing pidfile: %w", err)
	}
	return func() {
		if now, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(now)) != strconv.Itoa(os.Getpid()) {
			return // it is that of the process that has taken over
		}
		if err := os.Remove(path); err != nil {
			log.Warn("failed to remove pidfile", "error", err)
		}
	}, nil
}
