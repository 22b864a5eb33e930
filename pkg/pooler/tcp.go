package pooler

import (
	"errors"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// TCPOptions are options of all TCP sockets, of clients and servers alike. 0 is
// the value in brackets.
type TCPOptions struct {
	NoKeepAlive   bool
	KeepIdle      time.Duration // without a word, before the peer is asked (60 s)
	KeepInterval  time.Duration // between questions (15 s)
	KeepCount     int           // questions without answer before the connection is given up (4)
	UserTimeout   time.Duration // for what was sent to be acknowledged (the system's, about 15 minutes)
	DeferAccept   bool          // clients are accepted when they have said something
	ReceiveBuffer int           // and send buffer, in bytes (the system's)
}

// keepAlive finds a peer that vanished without a word within two minutes.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 60 * time.Second, Interval: 15 * time.Second, Count: 4}

// keepAlive returns the options for package net, and what its older KeepAlive
// must be.
func (o *TCPOptions) keepAlive() (net.KeepAliveConfig, time.Duration) {
	if o.NoKeepAlive {
		return net.KeepAliveConfig{}, -1 // 0 would turn it on
	}
	k := keepAlive
	if o.KeepIdle > 0 {
		k.Idle = o.KeepIdle
	}
	if o.KeepInterval > 0 {
		k.Interval = o.KeepInterval
	}
	if o.KeepCount > 0 {
		k.Count = o.KeepCount
	}
	return k, 0
}

// deferAccept is for how long the kernel keeps a connection to itself that says
// nothing: PgBouncer's value, in seconds.
const deferAccept = 45

// control sets the options that package net does not know, before a socket
// listens or connects. Sockets that are accepted inherit them.
func (o *TCPOptions) control(listener bool) func(network, address string, rc syscall.RawConn) error {
	type option struct{ level, name, value int }
	var options []option
	if o.UserTimeout > 0 {
		options = append(options, option{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(o.UserTimeout / time.Millisecond)})
	}
	if n := o.ReceiveBuffer; n > 0 {
		options = append(options, option{unix.SOL_SOCKET, unix.SO_RCVBUF, n}, option{unix.SOL_SOCKET, unix.SO_SNDBUF, n})
	}
	if listener && o.DeferAccept {
		options = append(options, option{unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, deferAccept})
	}
	return func(network, _ string, rc syscall.RawConn) error {
		if network == "unix" {
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
}

// newDialer returns what connects to servers.
func (o *TCPOptions) newDialer() net.Dialer {
	d := net.Dialer{Control: o.control(false)}
	d.KeepAliveConfig, d.KeepAlive = o.keepAlive()
	return d
}
