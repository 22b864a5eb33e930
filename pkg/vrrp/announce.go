package vrrp

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/ethernet"
	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// closableHerald is a herald that holds sockets, and hears by them who else
// speaks as one of the addresses.
type closableHerald interface {
	herald
	conflicts(ctx context.Context, own func() (net.HardwareAddr, error), tell func(what string)) error
	close() error
}

// openHerald opens what announces the addresses of the router's family.
func openHerald(c Config) (closableHerald, error) {
	if c.ipv6() {
		return openAdvertiser(c.Interface, c.Source, c.Addresses)
	}
	return openAnnouncer(c.Interface, c.Addresses)
}

// announcer sends gratuitous ARP on one interface, and hears who else speaks as
// one of the addresses.
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

func openAnnouncer(device string, addresses []netip.Prefix) (*announcer, error) {
	ifi, err := ethernetInterface(device)
	if err != nil {
		return nil, err
	}
	only, err := spokenAs(addresses)
	if err != nil {
		return nil, err
	}
	// The filter is there from the start: without it every ARP packet of the LAN
	// would wake us. What this host sends does not come back here.
	socket, err := packet.Listen(ifi, packet.Raw, unix.ETH_P_ARP, &packet.Config{Filter: only})
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

// spokenAs is a filter that lets through the ARP packets whose sender claims to
// have one of the addresses.
func spokenAs(addresses []netip.Prefix) ([]bpf.RawInstruction, error) {
	const senderIP = 14 + 14 // behind the Ethernet header: ARP's sender protocol address
	program := []bpf.Instruction{bpf.LoadAbsolute{Off: senderIP, Size: 4}}
	for _, p := range addresses {
		a := p.Addr().As4()
		program = append(program,
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: binary.BigEndian.Uint32(a[:]), SkipFalse: 1},
			bpf.RetConstant{Val: 1 << 16},
		)
	}
	raw, err := bpf.Assemble(append(program, bpf.RetConstant{}))
	if err != nil {
		return nil, fmt.Errorf("assembling a filter for ARP: %w", err)
	}
	return raw, nil
}

// conflicts calls tell for each ARP packet in which another host speaks as one
// of the addresses, until ctx is cancelled. own returns our hardware address.
func (a *announcer) conflicts(
	ctx context.Context, own func() (net.HardwareAddr, error), tell func(what string),
) error {
	stop := context.AfterFunc(ctx, func() {
		// The only possible error is a closed socket, which ends the read too.
		_ = a.client.SetReadDeadline(time.Unix(1, 0))
	})
	defer stop()
	var last time.Time
	for {
		p, _, err := a.client.Read()
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, unix.ENETDOWN) {
			continue // told once each time that the interface goes down
		}
		if err != nil {
			return fmt.Errorf("listening to ARP: %w", err)
		}
		// A flood of them is one conflict: no more than can be answered counts.
		if time.Since(last) < announceGap {
			continue
		}
		last = time.Now()
		hardware, err := own()
		if err != nil || bytes.Equal(p.SenderHardwareAddr, hardware) {
			continue // our own, come back by a loop in the LAN
		}
		tell(fmt.Sprintf("%v answers ARP for %v", p.SenderHardwareAddr, p.SenderIP))
	}
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
