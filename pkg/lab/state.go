package lab

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// runDir holds what a lab needs while it runs: state, configurations,
	// logs and its BPF file system.
	runDir = "/run/pgsteer-lab"
	// dataDir holds the databases. It is not under /run, which is a small
	// file system in memory on most machines.
	dataDir = "/var/lib/pgsteer-lab"
)

// ErrNotUp is returned for a lab that has not been raised.
var ErrNotUp = errors.New("the lab is not up")

// ErrBusy is returned while another program works on the same lab.
var ErrBusy = errors.New("another pgsteer-lab is working on this lab")

// state is what a lab remembers between programs, in state.json. It is the
// only place: the handle of a running program holds none of it.
type state struct {
	Options   Options             `json:"options"`
	BootID    string              `json:"boot_id"` // a state of an earlier boot is litter
	Since     time.Time           `json:"since"`
	Complete  bool                `json:"complete"` // false until up has succeeded
	Postgres  string              `json:"postgres"` // directory of PostgreSQL's programs
	Passwords map[string]string   `json:"passwords"`
	Processes map[string]identity `json:"processes"` // by process name; dead ones stay
}

func (l *Lab) stateFile() string { return filepath.Join(l.dir, "state.json") }

// load reads state.json. It returns ErrNotUp when there is none, or one that
// cannot be of a lab that is up now.
func (l *Lab) load() (*state, error) {
	b, err := os.ReadFile(l.stateFile())
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("lab %q: %w", l.name, ErrNotUp)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the lab's state: %w", err)
	}
	var st state
	if err := json.Unmarshal(b, &st); err != nil {
		return nil, fmt.Errorf("reading the lab's state: %s: %w", l.stateFile(), err)
	}
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	if st.BootID != boot {
		return nil, fmt.Errorf("lab %q: %w since the machine was restarted", l.name, ErrNotUp)
	}
	return &st, nil
}

// save writes state.json whole or not at all: readers take no lock.
func (l *Lab) save(st *state) error {
	b, err := json.MarshalIndent(st, "", "  ")
	if err != nil {
		return fmt.Errorf("writing the lab's state: %w", err)
	}
	tmp := l.stateFile() + ".new"
	if err := os.WriteFile(tmp, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("writing the lab's state: %w", err)
	}
	if err := os.Rename(tmp, l.stateFile()); err != nil {
		return fmt.Errorf("writing the lab's state: %w", err)
	}
	return nil
}

// bootID identifies the running kernel's boot (random(4)).
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("reading the boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// lock is held by whoever changes a lab.
type lock struct {
	file *os.File
}

func (l *Lab) lockFile() string { return filepath.Join(runDir, l.name+".lock") }

// acquire takes the lab's lock or returns ErrBusy. The kernel drops it when its
// holder dies, however that happens.
func (l *Lab) acquire() (*lock, error) {
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return nil, fmt.Errorf("locking the lab: %w", err)
	}
	for {
		f, err := os.OpenFile(l.lockFile(), os.O_RDWR|os.O_CREATE, 0o644)
		if err != nil {
			return nil, fmt.Errorf("locking the lab: %w", err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			holder, _ := io.ReadAll(io.LimitReader(f, 32))
			f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, fmt.Errorf("lab %q: %w (process %s)", l.name, ErrBusy, bytes.TrimSpace(holder))
			}
			return nil, fmt.Errorf("locking the lab: %w", err)
		}
		// The holder before us may have removed the file after we had
		// opened it; then the lock we hold is on nothing.
		if !sameFile(f, l.lockFile()) {
			f.Close()
			continue
		}
		if err := f.Truncate(0); err == nil {
			_, err = f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
			if err != nil {
				f.Close()
				return nil, fmt.Errorf("locking the lab: %w", err)
			}
		}
		return &lock{file: f}, nil
	}
}

func (k *lock) release() { k.file.Close() }

// remove deletes the lock's file together with the lock, and the directory
// of all labs when this was the last one.
func (k *lock) remove() error {
	err := os.Remove(k.file.Name())
	k.file.Close()
	for _, dir := range []string{runDir, dataDir} {
		rerr := os.Remove(dir)
		if rerr != nil && !errors.Is(rerr, unix.ENOTEMPTY) && !errors.Is(rerr, os.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	if err != nil {
		return fmt.Errorf("removing the lab's directories: %w", err)
	}
	return nil
}

func sameFile(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(path)
	return err == nil && os.SameFile(a, b)
}
