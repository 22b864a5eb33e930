package vrrp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/mdlayher/ndp"
	"golang.org/x/sys/unix"
)

// allNodes is who hears an unsolicited advertisement, RFC 4861 section 7.2.6.
var allNodes = netip.AddrFrom16([16]byte{0: 0xff, 1: 0x02, 15: 0x01})

// advertiser sends unsolicited Neighbor Advertisements on one interface. Its
// socket is not ndp's, which looks the interface up by name whenever it sends:
// in whatever network namespace the thread then is.
type advertiser struct {
	fd        int
	to        unix.SockaddrInet6
	addresses []netip.Prefix
	ear       *eavesdropper // for others who speak as one of them
}

// openAdvertiser opens the socket, which sends from the router's own source:
// the virtual address is not there yet.
func openAdvertiser(device string, source netip.Addr, addresses []netip.Prefix) (*advertiser, error) {
	ifi, err := ethernetInterface(device)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
	if err != nil {
		return nil, fmt.Errorf("opening an ICMPv6 socket (it needs CAP_NET_RAW): %w", err)
	}
	a := &advertiser{fd: fd, to: unix.SockaddrInet6{Addr: allNodes.As16(), ZoneId: uint32(ifi.Index)}, addresses: addresses}
	err = a.configure(ifi, source)
	if err == nil {
		a.ear, err = openEavesdropper(device)
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return a, nil
}

func (a *advertiser) configure(ifi *net.Interface, source netip.Addr) error {
	// Nobody reads the socket, so nothing shall be queued on it: a set bit
	// blocks a type of message.
	var nothing unix.ICMPv6Filter
	for i := range nothing.Data {
		nothing.Data[i] = ^uint32(0)
	}
	if err := unix.SetsockoptICMPv6Filter(a.fd, unix.IPPROTO_ICMPV6, unix.ICMPV6_FILTER, &nothing); err != nil {
		return fmt.Errorf("silencing the ICMPv6 socket: %w", err)
	}
	if err := unix.BindToDevice(a.fd, ifi.Name); err != nil {
		return fmt.Errorf("binding the ICMPv6 socket to %s: %w", ifi.Name, err)
	}
	// A neighbour heeds only what no router can have forwarded, RFC 4861
	// section 7.1.2. The kernel fills the checksum in.
	err := setOptions(a.fd, []option{
		{unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255},
		{unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, ifi.Index},
		{unix.SOL_SOCKET, unix.SO_PRIORITY, priorityControl},
	})
	if err != nil {
		return err
	}
	if err := unix.Bind(a.fd, &unix.SockaddrInet6{Addr: source.As16(), ZoneId: uint32(ifi.Index)}); err != nil {
		return fmt.Errorf("binding the ICMPv6 socket to %v: %w", source, err)
	}
	return nil
}

func (a *advertiser) close() error { return errors.Join(unix.Close(a.fd), a.ear.close()) }

func (a *advertiser) name() string { return "unsolicited neighbor advertisement" }

// announce sends one unsolicited Neighbor Advertisement for an address and
// returns how many went out.
func (a *advertiser) announce(hardware net.HardwareAddr, addr netip.Addr) (sent int, err error) {
	message, err := ndp.MarshalMessage(unsolicited(hardware, addr))
	if err != nil {
		return 0, fmt.Errorf("building a neighbor advertisement for %v: %w", addr, err)
	}
	if err := unix.Sendto(a.fd, message, 0, &a.to); err != nil {
		return 0, fmt.Errorf("announcing %v: %w", addr, err)
	}
	return 1, nil
}

// unsolicited builds the Neighbor Advertisement of RFC 9568 section 6.4.1: with
// the router flag, not solicited, overriding what a neighbour has cached. There
// is no second form to send as with ARP: Linux heeds this one however young its
// entry is.
func unsolicited(hardware net.HardwareAddr, addr netip.Addr) *ndp.NeighborAdvertisement {
	return &ndp.NeighborAdvertisement{
		Router: true, Override: true, TargetAddress: addr,
		Options: []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Target, Addr: hardware}},
	}
}
