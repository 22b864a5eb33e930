package vrrp

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// oob6 is room for what receive6 asks the kernel to tell beside a payload.
var oob6 = unix.CmsgSpace(unix.SizeofInet6Pktinfo) + unix.CmsgSpace(4)

func configure6(fd int, device string, index int, source netip.Addr, unicast bool) error {
	if err := unix.BindToDevice(fd, device); err != nil {
		return fmt.Errorf("binding the socket to %s: %w", device, err)
	}
	options := []option{
		{unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, protocolTTL},
		{unix.IPPROTO_IPV6, unix.IPV6_TCLASS, protocolTOS},
		{unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1},  // the destination
		{unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1}, // and the hop limit of what arrives
		{unix.SOL_SOCKET, unix.SO_PRIORITY, priorityControl},
	}
	if !unicast {
		options = append(options,
			option{unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, protocolTTL},
			option{unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_LOOP, 0},
			option{unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, index},
		)
	}
	if err := setOptions(fd, options); err != nil {
		return err
	}
	// With multicast too, so that the kernel does not choose another source. A
	// socket bound to an address hears the groups that it has joined as well.
	if err := unix.Bind(fd, &unix.SockaddrInet6{Addr: source.As16(), ZoneId: uint32(index)}); err != nil {
		return fmt.Errorf("binding the socket to %v: %w", source, err)
	}
	if unicast {
		return nil
	}
	mreq := unix.IPv6Mreq{Multiaddr: groupV6.As16(), Interface: uint32(index)}
	if err := unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, &mreq); err != nil {
		return fmt.Errorf("joining %v on %s: %w", groupV6, device, err)
	}
	return nil
}

// receive6 reads one packet into b, with a header made of what the kernel tells
// of it, and returns its length. What it does not tell becomes zero, and the
// packet is refused for that.
func receive6(fd int, b []byte) (int, error) {
	oob := make([]byte, oob6)
	n, oobn, _, from, err := unix.Recvmsg(fd, b[headerLen6:], oob, unix.MSG_DONTWAIT)
	if err != nil {
		return 0, err
	}
	src, dst, hopLimit := netip.IPv6Unspecified(), netip.IPv6Unspecified(), uint8(0)
	if sa, ok := from.(*unix.SockaddrInet6); ok {
		src = netip.AddrFrom16(sa.Addr)
	}
	for rest := oob[:oobn]; len(rest) > 0; {
		header, data, remainder, err := unix.ParseOneSocketControlMessage(rest)
		if err != nil {
			break
		}
		rest = remainder
		switch {
		case header.Level != unix.IPPROTO_IPV6:
		case header.Type == unix.IPV6_PKTINFO && len(data) >= 16:
			dst = netip.AddrFrom16([16]byte(data)) // struct in6_pktinfo begins with it
		case header.Type == unix.IPV6_HOPLIMIT && len(data) >= 4:
			hopLimit = uint8(binary.NativeEndian.Uint32(data))
		}
	}
	appendHeader6(b[:0], src, dst, hopLimit, n)
	return headerLen6 + n, nil
}
