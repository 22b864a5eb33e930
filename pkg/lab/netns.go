package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// netnsDir is where iproute2 keeps named namespaces, so that `ip netns` and
// `nsenter` find the lab's as well.
const netnsDir = "/run/netns"

// errEnded reports that a function given to Do ended its goroutine instead of
// returning, as testing's FailNow does.
var errEnded = errors.New("the function did not return: it ended its goroutine")

// inNamespace runs fn on an OS thread that is in the named network namespace
// and waits for it. Sockets made and processes started by fn itself (not by
// goroutines it starts) belong to that namespace.
//
// The thread goes back to where it came from afterwards; if that fails it
// stays locked, so that the runtime ends it together with its goroutine and
// no other goroutine ever runs in the wrong namespace.
func inNamespace(name string, fn func() error) error {
	target, err := netns.GetFromName(name)
	if err != nil {
		return fmt.Errorf("opening network namespace %s: %w", name, err)
	}
	defer target.Close()
	return onThread(func() error {
		if err := netns.Set(target); err != nil {
			return fmt.Errorf("entering network namespace %s: %w", name, err)
		}
		return fn()
	})
}

// onThread runs fn on a locked OS thread, which fn may move to another network
// namespace, and brings the thread back.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		err := errEnded
		defer func() { done <- err }()
		runtime.LockOSThread()
		origin, oerr := netns.Get()
		if oerr != nil {
			runtime.UnlockOSThread()
			err = fmt.Errorf("opening the thread's network namespace: %w", oerr)
			return
		}
		defer origin.Close()
		err = fn()
		if rerr := netns.Set(origin); rerr != nil {
			err = errors.Join(err, fmt.Errorf("leaving a network namespace: %w", rerr))
			return
		}
		runtime.UnlockOSThread()
	}()
	return <-done
}

// createNamespace makes a named network namespace. It fails when one of that
// name exists.
func createNamespace(name string) error {
	if err := shareNetnsDir(); err != nil {
		return err
	}
	return onThread(func() error {
		ns, err := netns.NewNamed(name)
		if err != nil {
			return fmt.Errorf("creating network namespace %s: %w", name, err)
		}
		return ns.Close()
	})
}

// shareNetnsDir makes /run/netns a shared mount point, as `ip netns add` does.
// If that were left to a later `ip netns add`, it would bind the directory
// over itself while our namespaces are mounted in it, and each of them would
// be mounted twice, once out of reach.
func shareNetnsDir() error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return fmt.Errorf("creating the directory of network namespaces: %w", err)
	}
	err := unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) { // not a mount point yet
		if err := unix.Mount(netnsDir, netnsDir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("binding %s over itself: %w", netnsDir, err)
		}
		err = unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "")
	}
	if err != nil {
		return fmt.Errorf("sharing %s between mount namespaces: %w", netnsDir, err)
	}
	return nil
}

// deleteNamespace removes a named network namespace; its interfaces go with
// the last process in it. A name that does not exist is no error.
func deleteNamespace(name string) error {
	path := filepath.Join(netnsDir, name)
	for {
		// EINVAL: not (or no longer) a mount point, as after a crash
		// between the creation of the file and the mount.
		err := unix.Unmount(path, unix.MNT_DETACH)
		if errors.Is(err, unix.EINVAL) {
			break
		}
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("unmounting network namespace %s: %w", name, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing network namespace %s: %w", name, err)
	}
	return nil
}

// namespaceExists tells whether `ip netns` would list the name.
func namespaceExists(name string) bool {
	_, err := os.Lstat(filepath.Join(netnsDir, name))
	return err == nil
}

// namespaceInode returns the number that identifies a network namespace, as
// /proc/PID/ns/net shows it. It is zero when name is not a live namespace.
func namespaceInode(name string) uint64 {
	var fs unix.Statfs_t
	path := filepath.Join(netnsDir, name)
	if unix.Statfs(path, &fs) != nil || fs.Type != unix.NSFS_MAGIC {
		return 0
	}
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return 0
	}
	return st.Ino
}
