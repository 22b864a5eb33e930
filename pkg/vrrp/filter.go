package vrrp

import (
	"net/netip"
	"slices"
	"time"
)

// filter is what a router knows of the packets that it may listen to.
type filter struct {
	version  uint8 // 0 is 3
	vrid     uint8
	source   netip.Addr     // our own; its family is the router's
	peers    []netip.Addr   // empty: multicast
	auth     Secret         // version 2 only
	interval time.Duration  // ours; version 2 only
	hmac     *authenticator // nil: there are no trailers
}

// accept checks one packet in full. The error is a [Refusal].
func (f *filter) accept(packet []byte) (Advertisement, datagram, ChecksumForm, error) {
	parse := parseDatagram
	if f.source.Is6() {
		parse = parseDatagram6
	}
	d, err := parse(packet)
	if err != nil {
		return Advertisement{}, d, ChecksumUnknown, err
	}
	version := f.version
	if version == 0 {
		version = version3
	}
	switch {
	case d.src == f.source:
		err = RefusedOwnSource
	case len(f.peers) > 0 && !slices.Contains(f.peers, d.src):
		err = RefusedPeer
	case len(f.peers) == 0 && d.dst != groupOf(f.source):
		err = RefusedDestination
	case d.ttl != protocolTTL:
		err = RefusedTTL
	case len(d.payload) < headerLen:
		err = RefusedLength
	case d.payload[0]>>4 != version:
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
	a, form, err := f.decode(d)
	return a, d, form, err
}

// decode takes the message of a packet apart, and its trailer if it may have one.
func (f *filter) decode(d datagram) (a Advertisement, form ChecksumForm, err error) {
	size := headerLen + d.src.BitLen()/8*int(d.payload[3])
	if f.version == version2 {
		size += auth2Len
	}
	trailer := 0
	if f.hmac != nil && len(d.payload) == size+trailerLen {
		trailer = trailerLen
	}
	message := d.payload[:len(d.payload)-trailer]
	if f.version == version2 {
		a, err = Parse2(message, f.auth)
	} else {
		a, form, err = parse3(d.payload, trailer, d.src, d.dst)
	}
	switch {
	case err != nil:
		return Advertisement{}, form, err
	case f.version == version2 && a.Interval != f.interval:
		return Advertisement{}, form, RefusedInterval
	case f.hmac != nil:
		// Last, so that only what counts moves the mark against replay.
		if err := f.hmac.verify(message, d.payload[len(message):], d.src); err != nil {
			return Advertisement{}, form, err
		}
	}
	return a, form, nil
}
