package vrrp

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/ethernet"
	"github.com/mdlayher/packet"
)

// closableHerald is a herald that holds a socket.
type closableHerald interface {
	herald
	close() error
}

// openHerald opens what announces the addresses of the router's family.
func openHerald(c Config) (closableHerald, error) {
	if c.ipv6() {
		return openAdvertiser(c.Interface, c.Source)
	}
	return openAnnouncer(c.Interface)
}

// announcer sends gratuitous ARP on one interface.
type announcer struct {
	client *arp.Client
}

// ethernetInterface finds an interface whose addresses can be announced.
func ethernetInterface(device string) (*net.Interface, error) {
	ifi, err := net.InterfaceByName(device)
	if err != nil {
		return nil, fmt.Errorf("looking up interface %s: %w", device, err)
	}
	if len(ifi.HardwareAddr) != 6 {
		return nil, fmt.Errorf("interface %s has no Ethernet address, so its addresses cannot be announced", device)
	}
	return ifi, nil
}

func openAnnouncer(device string) (*announcer, error) {
	ifi, err := ethernetInterface(device)
	if err != nil {
		return nil, err
	}
	// Protocol 0 receives nothing: without it every ARP packet of the LAN would
	// be queued on a socket that nobody reads.
	socket, err := packet.Listen(ifi, packet.Raw, 0, nil)
	if err != nil {
		return nil, fmt.Errorf("opening a packet socket on %s (it needs CAP_NET_RAW): %w", device, err)
	}
	client, err := arp.New(ifi, socket)
	if err != nil {
		socket.Close()
		return nil, fmt.Errorf("preparing gratuitous ARP on %s: %w", device, err)
	}
	return &announcer{client: client}, nil
}

func (a *announcer) close() error { return a.client.Close() }

func (a *announcer) name() string { return "gratuitous ARP" }

// announce sends both forms of gratuitous ARP for one address and returns how
// many frames went out.
func (a *announcer) announce(hardware net.HardwareAddr, addr netip.Addr) (sent int, err error) {
	frames, err := gratuitous(hardware, addr)
	if err != nil {
		return 0, err
	}
	for _, frame := range frames {
		if err := a.client.WriteTo(frame, ethernet.Broadcast); err != nil {
			return sent, fmt.Errorf("announcing %v: %w", addr, err)
		}
		sent++
	}
	return sent, nil
}

// gratuitous builds a gratuitous request and a gratuitous reply, both to be
// broadcast. A receiver may heed only one of the forms. The reply's target
// hardware address is our own: Linux takes a reply for gratuitous only then,
// and otherwise ignores it for an entry younger than a second (locktime;
// measured: an entry 0.1 s old was switched in 0 of 3 trials with a broadcast
// target, in 3 of 3 with our own).
func gratuitous(hardware net.HardwareAddr, addr netip.Addr) ([]*arp.Packet, error) {
	request, err := arp.NewPacket(arp.OperationRequest, hardware, addr, ethernet.Broadcast, addr)
	if err != nil {
		return nil, fmt.Errorf("building gratuitous ARP for %v: %w", addr, err)
	}
	reply, err := arp.NewPacket(arp.OperationReply, hardware, addr, hardware, addr)
	if err != nil {
		return nil, fmt.Errorf("building gratuitous ARP for %v: %w", addr, err)
	}
	return []*arp.Packet{request, reply}, nil
}
