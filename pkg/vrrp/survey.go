package vrrp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/ethernet"
)

// Speaker is a VRRP router that was overheard. Nothing of it was checked: it may
// be one that this node would refuse.
type Speaker struct {
	Source                  netip.Addr
	Version, VRID, Priority uint8
}

// Overhear listens for VRRP on an interface for some time, in the family of
// source, one of the interface's addresses. It hears what is sent to the group
// and to this host, also while a Router runs, and sends nothing but what it
// takes to join the group.
func Overhear(ctx context.Context, device string, source netip.Addr, wait time.Duration) ([]Speaker, error) {
	ifi, err := net.InterfaceByName(device)
	if err != nil {
		return nil, fmt.Errorf("looking up interface %s: %w", device, err)
	}
	c, err := listen(device, ifi.Index, source, false)
	if err != nil {
		return nil, err
	}
	defer c.close()
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- c.serve(ctx) }()
	var all []Speaker
	for {
		over := false
		select {
		case <-c.ready():
		case err := <-ended:
			if err != nil {
				return nil, err
			}
			over = true
		}
		packets, _, err := c.take()
		if err != nil {
			return nil, fmt.Errorf("receiving advertisements: %w", err)
		}
		for _, p := range packets {
			s, ok := overheard(p, source.Is6())
			if ok && s.Source != source && !slices.Contains(all, s) {
				all = append(all, s)
			}
		}
		if over {
			return all, nil
		}
	}
}

// overheard reads who sent a packet and as what.
func overheard(packet []byte, ipv6 bool) (Speaker, bool) {
	parse := parseDatagram
	if ipv6 {
		parse = parseDatagram6
	}
	d, err := parse(packet)
	if err != nil || len(d.payload) < headerLen {
		return Speaker{}, false
	}
	p := d.payload
	return Speaker{Source: d.src, Version: p[0] >> 4, VRID: p[1], Priority: p[2]}, true
}

// Holders asks a LAN who has an IPv4 address, for some time, and returns the
// hardware addresses of those who answer, without this host's own. It asks with
// an ARP probe, which changes nobody's table (RFC 5227, section 2.1.1).
func Holders(ctx context.Context, device string, addr netip.Addr, wait time.Duration) ([]net.HardwareAddr, error) {
	ifi, err := ethernetInterface(device)
	if err != nil {
		return nil, err
	}
	a, err := openAnnouncer(device, []netip.Prefix{netip.PrefixFrom(addr, 32)})
	if err != nil {
		return nil, err
	}
	defer a.close()
	probe, err := arp.NewPacket(arp.OperationRequest, ifi.HardwareAddr, netip.IPv4Unspecified(), make(net.HardwareAddr, 6), addr)
	if err != nil {
		return nil, fmt.Errorf("building an ARP probe for %v: %w", addr, err)
	}
	if err := a.client.WriteTo(probe, ethernet.Broadcast); err != nil {
		return nil, fmt.Errorf("asking for %v: %w", addr, err)
	}
	if err := a.client.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return nil, fmt.Errorf("asking for %v: %w", addr, err)
	}
	defer context.AfterFunc(ctx, func() { _ = a.client.SetReadDeadline(time.Unix(1, 0)) })()
	var holders []net.HardwareAddr
	for {
		p, _, err := a.client.Read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return holders, nil
		}
		if err != nil {
			return nil, fmt.Errorf("asking for %v: %w", addr, err)
		}
		known := slices.ContainsFunc(holders, func(h net.HardwareAddr) bool { return bytes.Equal(h, p.SenderHardwareAddr) })
		if !known && !bytes.Equal(p.SenderHardwareAddr, ifi.HardwareAddr) {
			holders = append(holders, p.SenderHardwareAddr)
		}
	}
}
