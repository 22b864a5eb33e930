package vrrp

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
)

// Refusal is the reason why a received packet was not acted upon. It is the
// error of [Parse], and each reason has a counter in [Snapshot].
type Refusal uint8

// The reasons, in the order in which a packet is checked.
const (
	RefusedPacket      Refusal = iota // not a complete IPv4 packet of protocol 112
	RefusedOwnSource                  // it carries our own source address: a loop or a duplicated address
	RefusedPeer                       // unicast: the source is not a configured peer
	RefusedDestination                // multicast: not sent to the group
	RefusedTTL                        // TTL is not 255: it came through a router (RFC 9568 section 5.1.1.3)
	RefusedLength                     // message shorter than its header, or not as long as its address count says
	RefusedVersion                    // not version 3
	RefusedType                       // not an advertisement
	RefusedVRID                       // another virtual router's
	RefusedChecksum                   // matches neither form, see ChecksumForm
	RefusedCount                      // no address in it
	RefusedInterval                   // advertisement interval 0
	RefusedOverflow                   // came faster than the router reads
	numRefusals
)

var refusalNames = [numRefusals]string{
	"packet", "own_source", "peer", "destination", "ttl", "length", "version",
	"type", "vrid", "checksum", "count", "interval", "overflow",
}

// String returns the reason as used in metrics: one word, stable.
func (r Refusal) String() string {
	if r < numRefusals {
		return refusalNames[r]
	}
	return fmt.Sprintf("refusal(%d)", uint8(r))
}

// Error implements error.
func (r Refusal) Error() string { return "advertisement refused: " + r.String() }

// datagram is an IPv4 packet as a raw socket delivers it.
type datagram struct {
	src, dst netip.Addr
	ttl      uint8
	payload  []byte // aliases the packet
}

// parseDatagram splits an IPv4 packet of protocol 112. What follows the total
// length (the padding of a short Ethernet frame) is ignored.
func parseDatagram(b []byte) (datagram, error) {
	if len(b) < 20 || b[0]>>4 != 4 || b[9] != protocolNumber {
		return datagram{}, RefusedPacket
	}
	header, total := int(b[0]&0x0f)*4, int(binary.BigEndian.Uint16(b[2:]))
	if header < 20 || total < header || total > len(b) {
		return datagram{}, RefusedPacket
	}
	return datagram{
		src:     netip.AddrFrom4([4]byte(b[12:])),
		dst:     netip.AddrFrom4([4]byte(b[16:])),
		ttl:     b[8],
		payload: b[header:total],
	}, nil
}

// filter is what a router knows of the packets that it may listen to.
type filter struct {
	vrid   uint8
	source netip.Addr   // our own
	peers  []netip.Addr // empty: multicast
}

// accept checks one packet in full. The error is a [Refusal].
func (f *filter) accept(packet []byte) (Advertisement, datagram, ChecksumForm, error) {
	d, err := parseDatagram(packet)
	if err != nil {
		return Advertisement{}, d, ChecksumUnknown, err
	}
	switch {
	case d.src == f.source:
		err = RefusedOwnSource
	case len(f.peers) > 0 && !slices.Contains(f.peers, d.src):
		err = RefusedPeer
	case len(f.peers) == 0 && d.dst != groupV4:
		err = RefusedDestination
	case d.ttl != protocolTTL:
		err = RefusedTTL
	case len(d.payload) < headerLen:
		err = RefusedLength
	case d.payload[0]>>4 != version3:
		err = RefusedVersion
	case d.payload[0]&0x0f != typeAdvert:
		err = RefusedType
	case d.payload[1] != f.vrid:
		// Before the checksum: neighbours' virtual routers are a matter of
		// course on a shared LAN and are no sign of damage.
		err = RefusedVRID
	}
	if err != nil {
		return Advertisement{}, d, ChecksumUnknown, err
	}
	a, form, err := Parse(d.payload, d.src, d.dst)
	return a, d, form, err
}
