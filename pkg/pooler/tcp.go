package pooler

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// TCPOptions are options of all TCP sockets, of clients and servers alike. 0 is
// the value in brackets.
type TCPOptions struct {
	NoKeepAlive  bool
	KeepIdle     time.Duration // without a word, before the peer is asked (60 s)
	KeepInterval time.Duration // between questions (15 s)
	KeepCount    int           // questions without answer before the connection is given up (4)
	UserTimeout  time.Duration // for what was sent to be acknowledged (the system's, about 15 minutes)
	DeferAccept  bool          // clients are accepted when they have said something
	Buffer       int           // for receiving and for sending, each, in bytes (the system's)
}

// keepAlive finds a peer that vanished without a word within two minutes.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 60 * time.Second, Interval: 15 * time.Second, Count: 4}

// keepAlive returns the options for package net.
func (o *TCPOptions) keepAlive() net.KeepAliveConfig {
	if o.NoKeepAlive {
		return net.KeepAliveConfig{}
	}
	k := keepAlive
	k.Idle = cmp.Or(o.KeepIdle, k.Idle)
	k.Interval = cmp.Or(o.KeepInterval, k.Interval)
	k.Count = cmp.Or(o.KeepCount, k.Count)
	return k
}

// deferAccept is for how long the kernel keeps a connection to itself that says
// nothing: PgBouncer's value, in seconds.
const deferAccept = 45

// option is a socket option.
type option struct{ level, name, value int }

func setOptions(rc syscall.RawConn, options []option) error {
	if len(options) == 0 {
		return nil
	}
	var serr error
	err := rc.Control(func(fd uintptr) {
		for _, x := range options {
			serr = errors.Join(serr, unix.SetsockoptInt(int(fd), x.level, x.name, x.value))
		}
	})
	return errors.Join(err, serr)
}

// buffers are the options that must be set before a connection begins, for the
// window's scale. Sockets that are accepted inherit them.
func (o *TCPOptions) buffers() (list []option) {
	if n := o.Buffer; n > 0 {
		list = []option{{unix.SOL_SOCKET, unix.SO_RCVBUF, n}, {unix.SOL_SOCKET, unix.SO_SNDBUF, n}}
	}
	return list
}

// listenControl sets the options of a listener.
func (o *TCPOptions) listenControl(_, _ string, rc syscall.RawConn) error {
	options := o.buffers()
	if o.DeferAccept {
		options = append(options, option{unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, deferAccept})
	}
	return setOptions(rc, options)
}

// dial connects to a server.
func (o *TCPOptions) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d := net.Dialer{KeepAlive: -1, KeepAliveConfig: o.keepAlive()}
	d.Control = func(network, _ string, rc syscall.RawConn) error {
		if network == "unix" {
			return nil
		}
		return setOptions(rc, append(o.buffers(), o.userTimeout()...))
	}
	return d.DialContext(ctx, network, addr)
}

func (o *TCPOptions) userTimeout() (list []option) {
	if o.UserTimeout > 0 {
		list = []option{{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(o.UserTimeout / time.Millisecond)}}
	}
	return list
}

// apply sets the options of an accepted connection.
func (o *TCPOptions) apply(conn net.Conn, log *slog.Logger) {
	c, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	var err error
	if k := o.keepAlive(); k.Enable {
		err = c.SetKeepAliveConfig(k)
	}
	if rc, rerr := c.SyscallConn(); rerr == nil {
		err = errors.Join(err, setOptions(rc, o.userTimeout()))
	}
	if err != nil {
		log.Debug("failed to set options of a client's socket", "error", err) // it is gone already
	}
}
