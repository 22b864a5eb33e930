package vrrp

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// Refusal is the reason why a received packet was not acted upon. It is the
// error of [Parse], and each reason has a counter in [Snapshot].
type Refusal uint8

// The reasons, in the order in which a packet is checked.
const (
	RefusedPacket       Refusal = iota // not a complete packet of protocol 112 and the router's family
	RefusedOwnSource                   // it carries our own source address: a loop or a duplicated address
	RefusedPeer                        // unicast: the source is not a configured peer
	RefusedDestination                 // multicast: not sent to the group
	RefusedTTL                         // TTL or hop limit is not 255: it came through a router (RFC 9568 sections 5.1.1.3 and 5.1.2.3)
	RefusedLength                      // message shorter than its header, or not as long as its address count says
	RefusedVersion                     // not the router's version
	RefusedType                        // not an advertisement
	RefusedVRID                        // another virtual router's
	RefusedChecksum                    // matches no form, see ChecksumForm
	RefusedHMACMissing                 // no HMAC, but it is enforced
	RefusedHMACKey                     // HMAC by a key that we do not have
	RefusedHMAC                        // HMAC that is wrong, or of another scheme
	RefusedHMACReplayed                // HMAC of a message that was seen, or is not of our time
	RefusedAuth                        // version 2: another authentication type or password
	RefusedCount                       // no address in it
	RefusedInterval                    // advertisement interval 0, or in version 2 another than ours
	RefusedOverflow                    // came faster than the router reads
	numRefusals
)

var refusalNames = [numRefusals]string{
	"packet", "own_source", "peer", "destination", "ttl", "length", "version",
	"type", "vrid", "checksum", "hmac_missing", "hmac_key", "hmac", "hmac_replayed",
	"auth", "count", "interval", "overflow",
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

// datagram is an IP packet taken apart.
type datagram struct {
	src, dst netip.Addr // without a zone: there is one interface only
	ttl      uint8      // of IPv6: the hop limit
	payload  []byte     // aliases the packet
}

// parseDatagram splits an IPv4 packet of protocol 112, as a raw socket delivers
// it. What follows the total length (the padding of a short Ethernet frame) is
// ignored.
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

// headerLen6 is the length of an IPv6 header, RFC 8200 section 3. No extension
// header follows it here: see appendHeader6.
const headerLen6 = 40

// parseDatagram6 splits an IPv6 packet of protocol 112.
func parseDatagram6(b []byte) (datagram, error) {
	if len(b) < headerLen6 || b[0]>>4 != 6 || b[6] != protocolNumber {
		return datagram{}, RefusedPacket
	}
	total := headerLen6 + int(binary.BigEndian.Uint16(b[4:]))
	if total > len(b) {
		return datagram{}, RefusedPacket
	}
	return datagram{
		src:     netip.AddrFrom16([16]byte(b[8:])),
		dst:     netip.AddrFrom16([16]byte(b[24:])),
		ttl:     b[7],
		payload: b[headerLen6:total],
	}, nil
}

// appendHeader6 appends the IPv6 header of a packet with that much payload. The
// kernel delivers IPv6 packets on raw sockets without their headers; what it
// tells of them beside the payload is put back into one, so that a router
// checks one kind of thing in both families.
func appendHeader6(b []byte, src, dst netip.Addr, hopLimit uint8, length int) []byte {
	b = append(b, 6<<4, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(length))
	b = append(b, protocolNumber, hopLimit)
	s, d := src.As16(), dst.As16()
	return append(append(b, s[:]...), d[:]...)
}
