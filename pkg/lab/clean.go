package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// grace is how long processes get to end by themselves when a lab is taken
// down, before they are killed.
const grace = 5 * time.Second

func (l *Lab) bpfDir() string { return filepath.Join(l.dir, "bpf") }

// makeDirs creates the lab's directories. Everybody may pass through them: the
// database and the poolers run as other users.
func (l *Lab) makeDirs() error {
	for _, dir := range []string{"", "conf", "logs", "bpf"} {
		if err := os.MkdirAll(filepath.Join(l.dir, dir), 0o755); err != nil {
			return fmt.Errorf("creating the lab's directory: %w", err)
		}
	}
	if err := os.MkdirAll(l.data, 0o755); err != nil {
		return fmt.Errorf("creating the lab's data directory: %w", err)
	}
	return nil
}

// mountBPF mounts a BPF file system of the lab's own: whatever is pinned in it
// goes with it.
func (l *Lab) mountBPF() error {
	if err := unix.Mount("bpf", l.bpfDir(), "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return fmt.Errorf("mounting a BPF file system at %s: %w", l.bpfDir(), err)
	}
	return nil
}

func (l *Lab) unmountBPF() error {
	for {
		err := unix.Unmount(l.bpfDir(), unix.MNT_DETACH)
		switch {
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
			return nil // not, or no longer, a mount point
		case err != nil:
			return fmt.Errorf("unmounting %s: %w", l.bpfDir(), err)
		}
	}
}

// namespaces returns the names of the namespaces of a lab with these options.
func (l *Lab) namespaces(o Options) []string {
	names := []string{l.namespace(lanHost)}
	for _, h := range o.hosts() {
		names = append(names, l.namespace(h.name))
	}
	if o.Routed {
		names = append(names, l.namespace(Remote))
	}
	return names
}

// allNamespaces returns the names of all namespaces that the lab may have had.
func (l *Lab) allNamespaces() []string { return l.namespaces(everything) }

// networkExists tells whether all namespaces are there.
func (l *Lab) networkExists(o Options) bool {
	for _, name := range l.namespaces(o) {
		if namespaceInode(name) == 0 {
			return false
		}
	}
	return true
}

// refuseStrangers keeps the lab's hands off namespaces that it has not made.
// A lab's state is written before its first namespace is made and removed
// after the last is gone, so a namespace without it is somebody else's.
func (l *Lab) refuseStrangers() error {
	if _, err := os.Stat(l.stateFile()); err == nil {
		return nil
	}
	for _, name := range l.allNamespaces() {
		if namespaceExists(name) {
			return fmt.Errorf("network namespace %s exists but no pgsteer-lab made it; remove it with `ip netns del %s`, or choose another name for the lab", name, name)
		}
	}
	return nil
}

// clean removes everything that a lab of this name has made, complete or not.
// It goes on after an error and returns all of them.
func (l *Lab) clean(ctx context.Context, keepLogs bool) error {
	errs := l.endProcesses(ctx)
	if err := l.unmountBPF(); err != nil {
		errs = errors.Join(errs, err)
	}
	for _, name := range l.allNamespaces() {
		if err := deleteNamespace(name); err != nil {
			errs = errors.Join(errs, err)
		}
	}
	if errs != nil {
		return errs // the directory stays, so that the next try knows what is ours
	}
	if err := os.RemoveAll(l.data); err != nil {
		return fmt.Errorf("removing the lab's data directory: %w", err)
	}
	if err := l.removeDir(keepLogs); err != nil {
		return fmt.Errorf("removing the lab's directory: %w", err)
	}
	return nil
}

func (l *Lab) removeDir(keepLogs bool) error {
	if !keepLogs {
		return os.RemoveAll(l.dir)
	}
	entries, err := os.ReadDir(l.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != "logs" {
			err = errors.Join(err, os.RemoveAll(filepath.Join(l.dir, e.Name())))
		}
	}
	return err
}

// endProcesses ends every process in the lab's namespaces, known or not: what
// the lab started, and what people started with `exec`. The daemons are asked
// first and get some time.
func (l *Lab) endProcesses(ctx context.Context) error {
	inodes := map[uint64]bool{}
	for _, name := range l.allNamespaces() {
		if ino := namespaceInode(name); ino != 0 {
			inodes[ino] = true
		}
	}
	known := map[identity]bool{}
	if st, err := l.load(); err == nil {
		for _, id := range st.Processes {
			known[id] = true
		}
		ask, cancel := context.WithTimeout(ctx, grace)
		err := l.askToEnd(ask, st)
		cancel()
		if err != nil {
			return err
		}
	}
	if len(inodes) == 0 {
		return nil
	}
	var self unix.Stat_t
	if err := unix.Stat("/proc/self/ns/net", &self); err == nil && inodes[self.Ino] {
		return errors.New("this program runs inside the lab, on one of its hosts, so it cannot take the lab down; run it outside")
	}
	// A process may start another between the listing and its end.
	for {
		found, err := processesIn(inodes)
		if err != nil {
			return err
		}
		if len(found) == 0 {
			return nil
		}
		if err := signalAll(found, syscall.SIGKILL); err != nil {
			return err
		}
		for _, id := range found {
			if err := id.wait(ctx); err != nil {
				return fmt.Errorf("waiting for process %d to end: %w", id.PID, err)
			}
			if known[id] {
				id.reap()
			}
		}
	}
}

// askToEnd sends each known process the signal that ends it, balancers first,
// and waits for all of them as long as ctx allows. Who does not obey is left to
// be killed.
func (l *Lab) askToEnd(ctx context.Context, st *state) error {
	specs, err := l.specs(st)
	if err != nil {
		return err
	}
	var asked []identity
	for i := len(specs) - 1; i >= 0; i-- { // started first, ended last
		s := specs[i]
		id := st.Processes[s.name]
		letter, alive := id.state()
		if !alive {
			id.reap()
			continue
		}
		if letter == 'T' {
			continue // stopped: it would not hear us
		}
		if err := id.signal(s.stop); err != nil {
			return err
		}
		asked = append(asked, id)
	}
	for _, id := range asked {
		if err := id.wait(ctx); err != nil && ctx.Err() == nil {
			return err
		}
		id.reap()
	}
	return nil
}

func signalAll(ids []identity, sig syscall.Signal) error {
	for _, id := range ids {
		if err := id.signal(sig); err != nil {
			return err
		}
	}
	return nil
}
