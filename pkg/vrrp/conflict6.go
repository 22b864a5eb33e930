package vrrp

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/mdlayher/ndp"
	"golang.org/x/sys/unix"
)

// eavesdropper hears the neighbour advertisements that reach this host.
type eavesdropper struct {
	file *os.File
	raw  syscall.RawConn
}

// neighborAdvertisement is the ICMPv6 type of RFC 4861 section 4.4.
const neighborAdvertisement = 136

func openEavesdropper(device string) (*eavesdropper, error) {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
	if err != nil {
		return nil, fmt.Errorf("opening an ICMPv6 socket (it needs CAP_NET_RAW): %w", err)
	}
	file := os.NewFile(uintptr(fd), "icmpv6")
	if err := hearAdvertisements(fd, device); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("preparing the ICMPv6 socket: %w", err), file.Close())
	}
	return &eavesdropper{file: file, raw: raw}, nil
}

func hearAdvertisements(fd int, device string) error {
	// A set bit blocks a type of message.
	var only unix.ICMPv6Filter
	for i := range only.Data {
		only.Data[i] = ^uint32(0)
	}
	only.Data[neighborAdvertisement/32] &^= 1 << (neighborAdvertisement % 32)
	if err := unix.SetsockoptICMPv6Filter(fd, unix.IPPROTO_ICMPV6, unix.ICMPV6_FILTER, &only); err != nil {
		return fmt.Errorf("choosing what the ICMPv6 socket hears: %w", err)
	}
	if err := unix.BindToDevice(fd, device); err != nil {
		return fmt.Errorf("binding the ICMPv6 socket to %s: %w", device, err)
	}
	return setOptions(fd, []option{{unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1}})
}

func (e *eavesdropper) close() error { return e.file.Close() }

// claim is who says that he has an address.
type claim struct {
	hardware net.HardwareAddr // nil: he does not say
	target   netip.Addr
}

// next waits for an advertisement that a neighbour can have sent: one that no
// router has forwarded (RFC 4861, section 7.1.2).
func (e *eavesdropper) next() (c claim, err error) {
	b, oob := make([]byte, 1500), make([]byte, unix.CmsgSpace(4))
	for {
		var n, oobn int
		var readErr error
		err := e.raw.Read(func(fd uintptr) bool {
			n, oobn, _, _, readErr = unix.Recvmsg(int(fd), b, oob, unix.MSG_DONTWAIT)
			return !errors.Is(readErr, unix.EAGAIN)
		})
		if err = errors.Join(err, readErr); err != nil {
			return c, err
		}
		if hopLimit(oob[:oobn]) != 255 {
			continue
		}
		if c, ok := parseClaim(b[:n]); ok {
			return c, nil
		}
	}
}

func hopLimit(oob []byte) int {
	for len(oob) > 0 {
		header, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			return 0
		}
		if header.Level == unix.IPPROTO_IPV6 && header.Type == unix.IPV6_HOPLIMIT && len(data) >= 4 {
			return int(binary.NativeEndian.Uint32(data))
		}
		oob = rest
	}
	return 0
}

// parseClaim reads a neighbour advertisement.
func parseClaim(b []byte) (c claim, ok bool) {
	message, err := ndp.ParseMessage(b)
	if err != nil {
		return c, false
	}
	na, ok := message.(*ndp.NeighborAdvertisement)
	if !ok {
		return c, false
	}
	c.target = na.TargetAddress.WithZone("")
	for _, o := range na.Options {
		if l, ok := o.(*ndp.LinkLayerAddress); ok && l.Direction == ndp.Target {
			c.hardware = l.Addr
		}
	}
	return c, true
}

// conflicts is announcer.conflicts for IPv6. An advertisement that does not name
// a hardware address answers a question that was asked of its sender alone, and
// claims nothing.
func (a *advertiser) conflicts(
	ctx context.Context, own func() (net.HardwareAddr, error), tell func(what string),
) error {
	stop := context.AfterFunc(ctx, func() {
		// The only possible error is a closed socket, which ends the read too.
		_ = a.ear.file.SetReadDeadline(time.Unix(1, 0))
	})
	defer stop()
	var last time.Time
	for {
		c, err := a.ear.next()
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, unix.ENETDOWN) {
			continue // told once each time that the interface goes down
		}
		if err != nil {
			return fmt.Errorf("listening to neighbour advertisements: %w", err)
		}
		if c.hardware == nil || !slices.ContainsFunc(a.addresses, func(p netip.Prefix) bool { return p.Addr() == c.target }) {
			continue
		}
		// A flood of them is one conflict: no more than can be answered counts.
		if time.Since(last) < announceGap {
			continue
		}
		hardware, err := own()
		if err != nil || bytes.Equal(c.hardware, hardware) {
			continue // our own, come back by a loop in the LAN
		}
		last = time.Now()
		tell(fmt.Sprintf("%v advertises itself as the neighbour %v", c.hardware, c.target))
	}
}
