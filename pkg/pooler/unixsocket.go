package pooler

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// UnixSocket is where a Pooler listens besides its TCP addresses.
type UnixSocket struct {
	// Dir is the directory, or @ and an abstract name. Empty: nowhere.
	Dir   string
	Port  uint16 // for the socket's name, as libpq makes it
	Mode  fs.FileMode
	Group string // whose the socket is; empty: the process's
	// Optional has a failure logged, and no more.
	Optional bool
}

// Path returns where the socket is.
func (u *UnixSocket) Path() string {
	return filepath.Join(u.Dir, ".s.PGSQL."+strconv.Itoa(int(u.Port)))
}

// localListener is the listener of a Unix socket.
type localListener struct {
	*net.UnixListener
	path string
	made os.FileInfo // what stood there when it was made; nil: abstract
	once sync.Once
}

// listenLocal opens a Unix socket. One that stands there is replaced, unless it
// is alive and nothing else says that we may be here (alone): with a TCP port of
// its own a pooler has its name to itself, so whoever is alive there is our
// predecessor in a takeover.
func listenLocal(u *UnixSocket, backlog int, alone bool) (_ *localListener, err error) {
	path := u.Path()
	if strings.HasPrefix(path, "@") {
		ln, err := net.Listen("unix", path)
		if err != nil {
			return nil, err
		}
		return &localListener{UnixListener: ln.(*net.UnixListener), path: path}, nil
	}
	if alone {
		if conn, err := net.Dial("unix", path); err == nil {
			conn.Close()
			return nil, fmt.Errorf("unix socket %s is in use", path)
		}
	}
	// Made under another name, so that at no moment there is none, or one with
	// other rights.
	temp := fmt.Sprintf("%s.%d", path, os.Getpid())
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: temp, Net: "unix"})
	if err != nil {
		return nil, err
	}
	ln.SetUnlinkOnClose(false)
	defer func() {
		if err != nil {
			err = errors.Join(err, ln.Close(), os.Remove(temp))
		}
	}()
	if u.Group != "" {
		g, err := user.LookupGroup(u.Group)
		if err != nil {
			return nil, err
		}
		gid, err := strconv.Atoi(g.Gid)
		if err != nil {
			return nil, err
		}
		if err := os.Chown(temp, -1, gid); err != nil {
			return nil, err
		}
	}
	if err := os.Chmod(temp, u.Mode); err != nil {
		return nil, err
	}
	if err := setLocalBacklog(ln, backlog); err != nil {
		return nil, err
	}
	made, err := os.Lstat(temp)
	if err != nil {
		return nil, err
	}
	if old, err := os.Lstat(path); err == nil && old.Mode()&fs.ModeSocket == 0 {
		return nil, fmt.Errorf("%s exists and is no socket", path)
	}
	if err := os.Rename(temp, path); err != nil {
		return nil, err
	}
	return &localListener{UnixListener: ln, path: path, made: made}, nil
}

func setLocalBacklog(ln *net.UnixListener, n int) error {
	if n <= 0 {
		return nil
	}
	rc, err := ln.SyscallConn()
	if err != nil {
		return err
	}
	var lerr error
	err = rc.Control(func(fd uintptr) { lerr = unix.Listen(int(fd), n) })
	return errors.Join(err, lerr)
}

// Close closes the socket and removes its name, unless a successor has taken it.
func (l *localListener) Close() error {
	l.once.Do(func() {
		if l.made == nil {
			return
		}
		if now, err := os.Lstat(l.path); err == nil && os.SameFile(now, l.made) {
			_ = os.Remove(l.path) // whoever comes replaces it
		}
	})
	return l.UnixListener.Close()
}

// openLocal opens the Unix socket of the configuration, if there is one.
func (p *Pooler) openLocal() error {
	u := &p.conf().UnixSocket
	if u.Dir == "" {
		return nil
	}
	ln, err := listenLocal(u, p.conf().Backlog, len(p.listeners) == 0)
	if err != nil && u.Optional {
		p.log.Warn("failed to open unix socket", "path", u.Path(), "error", err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("opening unix socket: %w", err)
	}
	p.local = ln
	return nil
}

// localEnd stands for either end of a connection by a Unix socket: it has no
// address, and the port is in the socket's name.
func (p *Pooler) localEnd() netip.AddrPort {
	return netip.AddrPortFrom(netip.Addr{}, p.conf().UnixSocket.Port)
}

// isLocal reports whether a connection came by a Unix socket.
func isLocal(conn net.Conn) bool {
	_, ok := conn.(*net.UnixConn)
	return ok
}

// ownUser reports whether the process at the other end of a Unix socket is our
// own user's: then it may be the console's user without a password
// (admin_pre_login in PgBouncer's admin.c).
func ownUser(conn net.Conn) bool {
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return false
	}
	rc, err := c.SyscallConn()
	if err != nil {
		return false
	}
	own := false
	err = rc.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
		own = err == nil && int(cred.Uid) == os.Getuid()
	})
	return own && err == nil
}
