package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// minOpenFiles is the limit of open files that processes of the lab get when
// the machine's own is lower: 4000 clients, 70 servers and some to spare.
const minOpenFiles = 16384

// identity names a process for good: a pid alone may be another's tomorrow.
type identity struct {
	PID int `json:"pid"`
	// StartTime is in clock ticks since the boot, field 22 of /proc/PID/stat.
	StartTime uint64 `json:"start_time"`
}

// procStat is what the lab reads of /proc/PID/stat (proc(5)).
type procStat struct {
	state     byte // R, S, D, T (stopped), Z (dead, not yet waited for) …
	ppid      int
	startTime uint64
}

func readStat(pid int) (procStat, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return procStat{}, fmt.Errorf("reading a process's state: %w", err)
	}
	// The command, in parentheses, may itself hold spaces and parentheses:
	// the fields begin after the last one.
	i := bytes.LastIndexByte(b, ')')
	f := strings.Fields(string(b[i+1:]))
	if i < 0 || len(f) < 20 {
		return procStat{}, fmt.Errorf("reading a process's state: /proc/%d/stat has %d fields", pid, len(f))
	}
	ppid, err := strconv.Atoi(f[1])
	if err != nil {
		return procStat{}, fmt.Errorf("reading a process's parent: %w", err)
	}
	start, err := strconv.ParseUint(f[19], 10, 64)
	if err != nil {
		return procStat{}, fmt.Errorf("reading a process's start time: %w", err)
	}
	return procStat{state: f[0][0], ppid: ppid, startTime: start}, nil
}

// identify returns the identity of a process that is alive.
func identify(pid int) (identity, error) {
	st, err := readStat(pid)
	if err != nil {
		return identity{}, err
	}
	return identity{PID: pid, StartTime: st.startTime}, nil
}

// state returns the process's state letter and whether it is still this
// process and not dead.
func (id identity) state() (byte, bool) {
	if id.PID <= 0 {
		return 0, false
	}
	st, err := readStat(id.PID)
	if err != nil || st.startTime != id.StartTime || st.state == 'Z' || st.state == 'X' {
		return 0, false
	}
	return st.state, true
}

func (id identity) alive() bool {
	_, ok := id.state()
	return ok
}

// open returns a pidfd on the process, which cannot come to mean another
// process. It returns nil when the process is gone.
func (id identity) open() (*os.File, error) {
	if id.PID <= 0 {
		return nil, nil
	}
	fd, err := unix.PidfdOpen(id.PID, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("opening process %d: %w", id.PID, err)
	}
	f := os.NewFile(uintptr(fd), fmt.Sprintf("pidfd of %d", id.PID))
	// Only now that the descriptor is held does the comparison last.
	if st, err := readStat(id.PID); err != nil || st.startTime != id.StartTime {
		f.Close()
		return nil, nil
	}
	return f, nil
}

// signal sends sig to the process. It is no error when the process is gone.
func (id identity) signal(sig syscall.Signal) error {
	f, err := id.open()
	if f == nil {
		return err
	}
	defer f.Close()
	err = unix.PidfdSendSignal(int(f.Fd()), sig, nil, 0)
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("sending %v to process %d: %w", sig, id.PID, err)
	}
	return nil
}

// wait returns when the process has ended, or with ctx's error. It leaves the
// exit status to whoever started the process.
func (id identity) wait(ctx context.Context) error {
	f, err := id.open()
	if err != nil {
		return err
	}
	if f == nil {
		return nil
	}
	defer f.Close()
	stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	rc, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("waiting for process %d: %w", id.PID, err)
	}
	// A pidfd becomes readable when its process ends (pidfd_open(2)).
	err = rc.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, perr := unix.Poll(p, 0)
		return perr == nil && n > 0
	})
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("waiting for process %d: %w", id.PID, err)
	}
	return nil
}

// reap takes the exit status of a process of the lab that has ended, so that
// no zombie stays if this program started it. If another did, that one or init
// has taken it.
func (id identity) reap() {
	var status unix.WaitStatus
	_, _ = unix.Wait4(id.PID, &status, unix.WNOHANG, nil)
}

// descendants returns the processes that id has started, theirs, and so on.
func (id identity) descendants() ([]identity, error) {
	pids, err := allPIDs()
	if err != nil {
		return nil, err
	}
	children := map[int][]identity{}
	for _, pid := range pids {
		st, err := readStat(pid)
		if err != nil {
			continue // ended meanwhile
		}
		children[st.ppid] = append(children[st.ppid], identity{PID: pid, StartTime: st.startTime})
	}
	var found []identity
	for queue := []int{id.PID}; len(queue) > 0; queue = queue[1:] {
		for _, c := range children[queue[0]] {
			found = append(found, c)
			queue = append(queue, c.PID)
		}
	}
	return found, nil
}

// processesIn returns the processes whose network namespace is one of those
// given by inode, except this process.
func processesIn(inodes map[uint64]bool) ([]identity, error) {
	pids, err := allPIDs()
	if err != nil {
		return nil, err
	}
	var found []identity
	for _, pid := range pids {
		if pid == os.Getpid() {
			continue
		}
		var st unix.Stat_t
		if unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &st) != nil || !inodes[st.Ino] {
			continue
		}
		if id, err := identify(pid); err == nil && id.alive() {
			found = append(found, id)
		}
	}
	return found, nil
}

func allPIDs() ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// spec says how a process of the lab is started.
type spec struct {
	name string
	host string
	argv []string
	env  []string
	nice int                 // scheduling priority, -20 (first) to 19; 0 leaves it alone
	user *syscall.Credential // nil: root
	stop syscall.Signal      // what asks it to end quickly
}

// launch starts the process in its host's namespace, detached from our
// session, writing to its log file.
func (l *Lab) launch(s spec) (identity, error) {
	if err := raiseOpenFiles(); err != nil {
		return identity{}, err
	}
	log, err := os.OpenFile(l.logFile(s.name), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return identity{}, fmt.Errorf("opening the log of %s: %w", s.name, err)
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return identity{}, fmt.Errorf("starting %s: %w", s.name, err)
	}
	defer null.Close()
	attr := &os.ProcAttr{
		Dir: "/", Env: s.env, Files: []*os.File{null, log, log},
		Sys: &syscall.SysProcAttr{Setsid: true, Credential: s.user},
	}
	var id identity
	err = inNamespace(l.namespace(s.host), func() error {
		return atPriority(s.nice, func() error {
			p, err := os.StartProcess(s.argv[0], s.argv, attr)
			if err != nil {
				return err
			}
			id, err = identify(p.Pid)
			return errors.Join(err, p.Release())
		})
	})
	if err != nil {
		return identity{}, fmt.Errorf("starting %s: %w", s.name, err)
	}
	return id, nil
}

// atPriority runs fn with the nice value of the calling thread, which must be
// locked, set to nice: a child inherits it. PRIO_PROCESS with 0 means the
// calling thread on Linux (setpriority(2), "C library/kernel differences").
func atPriority(nice int, fn func() error) error {
	if nice == 0 {
		return fn()
	}
	// The system call returns 20 minus the nice value, to stay positive.
	old, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil {
		return fmt.Errorf("reading the priority: %w", err)
	}
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, nice); err != nil {
		return fmt.Errorf("raising the priority: %w", err)
	}
	err = fn()
	if rerr := unix.Setpriority(unix.PRIO_PROCESS, 0, 20-old); rerr != nil {
		err = errors.Join(err, fmt.Errorf("restoring the priority: %w", rerr))
	}
	return err
}

// raiseOpenFiles makes sure that children may open enough files. The limit of
// this process changes with it, which harms nobody.
func raiseOpenFiles() error {
	var lim syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &lim); err != nil {
		return fmt.Errorf("reading the limit of open files: %w", err)
	}
	if lim.Max >= minOpenFiles {
		return nil
	}
	lim = syscall.Rlimit{Cur: minOpenFiles, Max: minOpenFiles}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &lim); err != nil {
		return fmt.Errorf("raising the limit of open files to %d: %w", minOpenFiles, err)
	}
	return nil
}

// logFile is where a process's output goes.
func (l *Lab) logFile(process string) string {
	return filepath.Join(l.dir, "logs", process+".log")
}

// tail returns the last lines of a process's log.
func (l *Lab) tail(process string, lines int) string {
	b, err := os.ReadFile(l.logFile(process))
	if err != nil {
		return fmt.Sprintf("(no log: %v)", err)
	}
	all := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	if len(all) > lines {
		all = all[len(all)-lines:]
	}
	return strings.Join(all, "\n")
}

// age returns how long ago the process was started, zero if that cannot be
// told. /proc counts in USER_HZ, which is 100 for every program on Linux.
func (id identity) age() time.Duration {
	var now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) != nil {
		return 0
	}
	return time.Duration(now.Nano()) - time.Duration(id.StartTime)*(time.Second/100)
}
