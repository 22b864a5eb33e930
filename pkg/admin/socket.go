package admin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrInUse means that another process listens on the socket.
var ErrInUse = errors.New("another process listens")

const (
	// group may use the socket, beside root.
	group = "pgsteer"
	// socketMode lets owner and group connect, which takes the right to write
	// (unix(7)).
	socketMode = 0o660
)

// A socket is the listener and the name that it has in the file system.
type socket struct {
	*net.UnixListener
	path string
	dev  uint64
	ino  uint64 // with dev, the name's own file: another may stand there later

	free   chan struct{} // a token for each connection that may be open
	closed chan struct{}
	once   sync.Once // of Close
}

// A conn gives its token back when it is closed.
type conn struct {
	*net.UnixConn
	release func()
}

// Accept implements net.Listener. It lets maxConns in at a time, so that
// nobody takes the file descriptors that the virtual routers need.
func (s *socket) Accept() (net.Conn, error) {
	select {
	case <-s.closed:
		return nil, net.ErrClosed
	case <-s.free:
	}
	c, err := s.AcceptUnix()
	if err != nil {
		s.free <- struct{}{}
		return nil, err
	}
	return &conn{c, sync.OnceFunc(func() { s.free <- struct{}{} })}, nil
}

// Close implements net.Conn.
func (c *conn) Close() error {
	defer c.release()
	return c.UnixConn.Close()
}

// listen makes the socket. One that was left over is replaced, one that
// somebody listens on is not, nor is anything that is no socket.
func listen(path string, log *slog.Logger) (*socket, error) {
	if err := makeDir(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("making the directory of the admin socket: %w", err)
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	l, err := bind(path)
	if err != nil {
		return nil, fmt.Errorf("listening on the admin socket: %w", err)
	}
	s := &socket{
		UnixListener: l, path: path,
		free: make(chan struct{}, maxConns), closed: make(chan struct{}),
	}
	s.SetUnlinkOnClose(false) // Close looks whose it is first
	for range maxConns {
		s.free <- struct{}{}
	}
	if err := s.open(log); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// makeDir makes a directory that everybody can look into, unless it is there.
func makeDir(dir string) error {
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.Chmod(dir, 0o755) // whatever the process's umask is
}

// bind listens on a socket that only its owner may use, whatever the process's
// umask is: what fchmod sets before is what bind gives the name.
func bind(path string) (*net.UnixListener, error) {
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); cerr != nil {
			return cerr
		}
		return err
	}}
	l, err := config.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	return l.(*net.UnixListener), nil
}

// removeStale removes a socket that nobody listens on.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking at the admin socket: %w", err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is there and is no socket", path)
	}
	conn, err := net.Dial("unix", path)
	if err == nil {
		return errors.Join(fmt.Errorf("%w on %s", ErrInUse, path), conn.Close())
	}
	// A socket whose queue is full has somebody who listens, too.
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("%w on %s, or may: %w", ErrInUse, path, err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("removing the admin socket of an earlier life: %w", err)
	}
	return nil
}

// open notes which file the name is and lets the group in.
func (s *socket) open(log *slog.Logger) error {
	var st unix.Stat_t
	if err := unix.Lstat(s.path, &st); err != nil {
		return fmt.Errorf("looking at the admin socket: %w", err)
	}
	s.dev, s.ino = st.Dev, st.Ino
	if err := s.giveToGroup(); err != nil {
		log.Warn("only this process's own user and group can use the admin socket", "socket", s.path, "error", err)
	}
	if err := os.Chmod(s.path, socketMode); err != nil {
		return fmt.Errorf("setting the mode of the admin socket: %w", err)
	}
	return nil
}

// giveToGroup needs no capability where the process is in the group itself.
func (s *socket) giveToGroup() error {
	g, err := user.LookupGroup(group)
	if err != nil {
		return err
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		return fmt.Errorf("group %s has the id %q: %w", group, g.Gid, err)
	}
	return os.Lchown(s.path, -1, gid)
}

// Close stops listening and removes the name, if it is still ours. It is called
// by the HTTP server, and by whoever opened it.
func (s *socket) Close() error {
	var err error
	s.once.Do(func() {
		close(s.closed)
		var st unix.Stat_t
		if unix.Lstat(s.path, &st) == nil && st.Dev == s.dev && st.Ino == s.ino {
			err = os.Remove(s.path)
		}
		err = errors.Join(err, s.UnixListener.Close())
	})
	return err
}

// credentials asks the kernel who is at the other end.
func credentials(c *net.UnixConn) (peer, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return peer{}, fmt.Errorf("asking who is there: %w", err)
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil {
		err = cerr
	}
	if err != nil {
		return peer{}, fmt.Errorf("asking who is there: %w", err)
	}
	return peer{uid: cred.Uid, pid: cred.Pid}, nil
}
