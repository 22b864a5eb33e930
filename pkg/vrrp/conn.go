package vrrp

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxPacket holds the longest message (255 IPv6 addresses) and its header.
	maxPacket = headerLen6 + headerLen + 255*16
	// maxQueue is how many packets may wait for the router, 3 s worth of an
	// active peer at the shortest interval.
	maxQueue = 300
	// protocolTOS is Internetwork Control, what keepalived sends with; it is
	// the traffic class of IPv6 too.
	protocolTOS = 0xc0
	// priorityControl is TC_PRIO_CONTROL of linux/pkt_sched.h: the first band of
	// the default queueing discipline.
	priorityControl = 7
)

// conn is a raw socket for VRRP on one interface. Its receiving half is made so
// that the router can look at everything that has arrived before it acts on a
// timer: the kernel's buffer is read by whoever asks first, under one lock.
type conn struct {
	file  *os.File
	raw   syscall.RawConn
	index int           // of the interface
	ipv6  bool          // the family
	wake  chan struct{} // has a token when the queue may hold something

	mu       sync.Mutex
	queue    [][]byte
	overflow int // packets dropped because the queue was full
	buf      [maxPacket]byte
}

// listen opens the socket, of the source address's family. With unicast it is
// bound to that address, and so hears nothing else; without it joins the group
// on the interface.
func listen(device string, index int, source netip.Addr, unicast bool) (*conn, error) {
	family, configure := unix.AF_INET, configure4
	if source.Is6() {
		family, configure = unix.AF_INET6, configure6
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, protocolNumber)
	if err != nil {
		return nil, fmt.Errorf("opening a raw socket (it needs CAP_NET_RAW): %w", err)
	}
	file := os.NewFile(uintptr(fd), "vrrp")
	if err := configure(fd, device, index, source, unicast); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("preparing the socket: %w", err), file.Close())
	}
	return &conn{file: file, raw: raw, index: index, ipv6: source.Is6(), wake: make(chan struct{}, 1)}, nil
}

// option is a socket option whose value is a number.
type option struct{ level, name, value int }

func setOptions(fd int, options []option) error {
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return fmt.Errorf("setting socket option %d: %w", o.name, err)
		}
	}
	return nil
}

func configure4(fd int, device string, index int, source netip.Addr, unicast bool) error {
	if err := unix.BindToDevice(fd, device); err != nil {
		return fmt.Errorf("binding the socket to %s: %w", device, err)
	}
	options := []option{
		{unix.IPPROTO_IP, unix.IP_TTL, protocolTTL},
		{unix.IPPROTO_IP, unix.IP_TOS, protocolTOS},
		{unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT}, // no DF, as keepalived
		{unix.SOL_SOCKET, unix.SO_PRIORITY, priorityControl},
	}
	if !unicast {
		options = append(options,
			option{unix.IPPROTO_IP, unix.IP_MULTICAST_TTL, protocolTTL},
			option{unix.IPPROTO_IP, unix.IP_MULTICAST_LOOP, 0},
		)
	}
	if err := setOptions(fd, options); err != nil {
		return err
	}
	if unicast {
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: source.As4()}); err != nil {
			return fmt.Errorf("binding the socket to %v: %w", source, err)
		}
		return nil
	}
	mreq := unix.IPMreqn{Multiaddr: groupV4.As4(), Address: source.As4(), Ifindex: int32(index)}
	if err := unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, &mreq); err != nil {
		return fmt.Errorf("choosing %s for multicast: %w", device, err)
	}
	if err := unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, &mreq); err != nil {
		return fmt.Errorf("joining %v on %s: %w", groupV4, device, err)
	}
	return nil
}

// send hands one message to the kernel. It never waits: a full send buffer is
// an error.
func (c *conn) send(payload []byte, dst netip.Addr) error {
	var to unix.Sockaddr
	if c.ipv6 {
		to = &unix.SockaddrInet6{Addr: dst.As16(), ZoneId: uint32(c.index)}
	} else {
		to = &unix.SockaddrInet4{Addr: dst.As4()}
	}
	var err error
	ctlErr := c.raw.Control(func(fd uintptr) {
		err = unix.Sendto(int(fd), payload, unix.MSG_DONTWAIT, to)
	})
	if err = errors.Join(ctlErr, err); err != nil {
		return fmt.Errorf("sending to %v: %w", dst, err)
	}
	return nil
}

// ready has a token when take is worth calling.
func (c *conn) ready() <-chan struct{} { return c.wake }

// take returns every packet that has arrived by now, and how many had to be
// dropped since the last call.
func (c *conn) take() (packets [][]byte, dropped int, err error) {
	var readErr error
	ctlErr := c.raw.Control(func(fd uintptr) {
		c.mu.Lock()
		defer c.mu.Unlock()
		for readErr == nil {
			readErr = c.readLocked(int(fd))
		}
		packets, dropped = c.queue, c.overflow
		c.queue, c.overflow = nil, 0
	})
	if errors.Is(readErr, unix.EAGAIN) {
		readErr = nil
	}
	return packets, dropped, errors.Join(ctlErr, readErr)
}

// readLocked moves one packet from the kernel to the queue.
func (c *conn) readLocked(fd int) error {
	receive := receive4
	if c.ipv6 {
		receive = receive6
	}
	n, err := receive(fd, c.buf[:])
	if err != nil {
		if errors.Is(err, unix.EINTR) {
			return nil
		}
		return err
	}
	if len(c.queue) == maxQueue {
		c.overflow++
		return nil
	}
	c.queue = append(c.queue, append([]byte(nil), c.buf[:n]...))
	return nil
}

// receive4 reads one packet, header and all, into b and returns its length.
func receive4(fd int, b []byte) (int, error) {
	n, _, err := unix.Recvfrom(fd, b, unix.MSG_DONTWAIT)
	return n, err
}

// serve reads until ctx is cancelled, and returns nil then.
func (c *conn) serve(ctx context.Context) error {
	// A deadline in the past is what makes a waiting read return.
	stop := context.AfterFunc(ctx, func() {
		// The only possible error is a closed file, which ends the read too.
		_ = c.file.SetReadDeadline(time.Unix(1, 0))
	})
	defer stop()
	for {
		var readErr error
		err := c.raw.Read(func(fd uintptr) bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			readErr = c.readLocked(int(fd))
			return !errors.Is(readErr, unix.EAGAIN)
		})
		if ctx.Err() != nil {
			return nil
		}
		if err = errors.Join(err, readErr); err != nil {
			return fmt.Errorf("receiving advertisements: %w", err)
		}
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
}

func (c *conn) close() error { return c.file.Close() }
