package pooler

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls below are RawSyscalls on sockets that never block: the runtime need
// not be told, which would cost more than it could gain. A raw call that could
// block would hold up the whole process (a stop of the world waits for it).

// receive reads what a socket has. It returns 0 and no error at the end of the
// stream.
func receive(fd int, b []byte) (int, syscall.Errno) {
	for {
		n, _, errno := syscall.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)),
			unix.MSG_DONTWAIT, 0, 0)
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}

// maxIovecs is how many pieces one sendmsg takes; the kernel allows 1024
// (IOV_MAX). More are sent by several calls.
const maxIovecs = 64

// sender sends vectors. Its buffers are reused, so that sending does not
// allocate.
type sender struct {
	iov [maxIovecs]unix.Iovec
	msg unix.Msghdr
}

// send sends segs in order as far as the socket takes them.
func (s *sender) send(fd int, segs [][]byte) (sent int, err error) {
	for len(segs) > 0 {
		batch := segs[:min(len(segs), maxIovecs)]
		segs = segs[len(batch):]
		want := 0
		for _, b := range batch {
			want += len(b)
		}
		n, errno := s.sendBatch(fd, batch)
		switch errno {
		case 0:
			sent += n
			if n < want {
				return sent, nil
			}
		case unix.EAGAIN:
			return sent, nil
		default:
			return sent, errno
		}
	}
	return sent, nil
}

const sendFlags = unix.MSG_DONTWAIT | unix.MSG_NOSIGNAL

func (s *sender) sendBatch(fd int, batch [][]byte) (int, syscall.Errno) {
	for {
		var n uintptr
		var errno syscall.Errno
		if len(batch) == 1 {
			b := batch[0]
			n, _, errno = syscall.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)),
				sendFlags, 0, 0)
		} else {
			for i, b := range batch {
				s.iov[i].Base = &b[0]
				s.iov[i].SetLen(len(b))
			}
			s.msg.Iov = &s.iov[0]
			s.msg.SetIovlen(len(batch))
			n, _, errno = syscall.RawSyscall6(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&s.msg)), sendFlags, 0, 0, 0)
			clear(s.iov[:len(batch)]) // keep nothing alive
		}
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}

// pollNow returns the events that are there, without waiting.
func pollNow(epfd int, events []unix.EpollEvent) (int, error) {
	n, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epfd), uintptr(unsafe.Pointer(&events[0])),
		uintptr(len(events)), 0, 0, 0)
	if errno == unix.EINTR {
		return 0, nil
	}
	if errno != 0 {
		return 0, os.NewSyscallError("epoll_pwait", errno)
	}
	return int(n), nil
}

// setSaveSYN has the kernel keep the headers of each SYN that makes a connection.
func setSaveSYN(_, _ string, rc syscall.RawConn) error {
	var serr error
	err := rc.Control(func(fd uintptr) {
		serr = os.NewSyscallError("setsockopt TCP_SAVE_SYN", unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_SAVE_SYN, 1))
	})
	return errors.Join(err, serr)
}

// savedSYN reads the headers of the SYN that made a connection into buf: the
// network and the TCP header with their options. There is nothing the second
// time, and when the SYN was answered with a cookie: it is not remembered then.
func savedSYN(conn net.Conn, buf []byte) ([]byte, error) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return nil, errors.New("connection has no descriptor")
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return nil, err
	}
	n := uint32(len(buf))
	var errno syscall.Errno
	err = rc.Control(func(fd uintptr) {
		_, _, errno = syscall.RawSyscall6(unix.SYS_GETSOCKOPT, fd, unix.IPPROTO_TCP, unix.TCP_SAVED_SYN,
			uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&n)), 0)
	})
	if err == nil && errno != 0 {
		err = os.NewSyscallError("getsockopt TCP_SAVED_SYN", errno)
	}
	if err != nil {
		return nil, err
	}
	return buf[:n], nil
}

// takeFD takes a connection's descriptor out of Go's hands: the connection is
// closed, the descriptor returned is a duplicate, non-blocking as before.
func takeFD(conn net.Conn) (int, error) {
	defer conn.Close()
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return -1, errors.New("connection has no descriptor")
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return -1, fmt.Errorf("taking descriptor: %w", err)
	}
	dup := -1
	var derr error
	err = rc.Control(func(fd uintptr) {
		dup, derr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
	})
	if err := errors.Join(err, derr); err != nil {
		return -1, fmt.Errorf("taking descriptor: %w", err)
	}
	return dup, nil
}
