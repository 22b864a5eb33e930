package config

import (
	"math"
	"net/netip"
	"time"
)

// VirtualRouter is one VRRP virtual router (RFC 9568), which moves its
// addresses between the balancer nodes as one. Its addresses, its source and
// its peers are of one family.
type VirtualRouter struct {
	// Name is unique among the virtual routers. Key: name. Required; letters,
	// digits, '.', '_' and '-', at most 31 bytes.
	Name string
	// VRID is the virtual router identifier, the same on all its nodes; IPv4 and
	// IPv6 have one set each. Key: vrid; 1 to 255. Required.
	VRID uint8
	// Priority elects the active node: the highest wins. Key: priority; 1 to
	// 254, or 255 for the owner of the addresses. Default: 100 (RFC 9568, 5.2.4).
	Priority uint8
	// Version of the protocol, the same on all its nodes: 3 (RFC 9568) or, for a
	// keepalived that speaks nothing else, 2 (RFC 3768), which is for IPv4.
	// Key: version. Default: 3.
	Version uint8
	// AdvertInterval is the time between two adverts; a node is taken for dead
	// after a little more than three. Key: advert_interval; 10ms to 40.95s in
	// steps of 10ms, which is what the field on the wire holds (RFC 9568,
	// 5.2.7); of version 2 1s to 255s in steps of 1s. Default: 100ms; 1s of
	// version 2.
	AdvertInterval time.Duration
	// Preempt lets a node of higher priority take the addresses from an active
	// node that works. Key: preempt. Default: false.
	Preempt bool
	// PreemptDelay is how long it waits before it does. Key: preempt_delay; up to
	// 1h. Default: 0s.
	PreemptDelay time.Duration
	// Addresses are the virtual addresses, 1 to 255 (the advert counts them in
	// one byte), unique in the file; without a prefix length, /32 or /128.
	// Key: addresses. Required.
	Addresses []netip.Prefix
	// Source is this node's own address for adverts; link-local where IPv6 is
	// multicast (RFC 9568, 5.1.2.1). Key: source. Required.
	Source netip.Addr
	// Peers are the other nodes' addresses; adverts are sent to each of them
	// and taken from no one else. Without peers, adverts are multicast to
	// 224.0.0.18 or ff02::12. Key: peers. Default: none.
	Peers []netip.Addr
	// Lone says that there is no other node: the addresses are served whatever
	// becomes of the daemon, and there are no peers. Key: lone. Default: false.
	Lone bool
	// Checksum, for version 3 and IPv4, is how the checksum of adverts is
	// computed: "message", as RFC 9568 has it; "pseudo_header", as RFC 5798 was
	// widely read, which is keepalived's default; "auto", as the peer does. All
	// are accepted. Key: checksum. Default: auto.
	Checksum string
	// Password is that of version 2, of which eight bytes count; it goes over
	// the wire as it is. Key: password; 1 to 8 bytes. Default: none.
	Password string
	// HMAC authenticates the adverts. Key: hmac. Default: nil, they are not.
	HMAC *HMAC
}

// HMAC is the authentication of adverts by HMAC-SHA-256, as keepalived 2.4 has
// it.
type HMAC struct {
	// Mode is "enforce", "permissive" (send it, and accept adverts without) or
	// "receive_only" (send none either): the way back leads through all three.
	// Key: mode. Default: enforce.
	Mode string
	// SendKey is the id of the key to send with. Key: send_key. Default: the
	// first one's.
	SendKey uint8
	// Keys are those that are accepted, by id. Key: keys, a list of id, 1 to 255,
	// and file, an absolute path; the file holds 32 to 64 bytes on one line.
	// Required.
	Keys map[uint8]string
}

// parseRouter reads one virtual router.
func parseRouter(n node) VirtualRouter {
	s := n.section("name", "vrid", "priority", "version", "advert_interval", "preempt", "preempt_delay", "addresses", "source", "peers", "lone",
		"checksum", "password", "hmac")
	r := VirtualRouter{
		Name:         need(s, "name", name),
		VRID:         need(s, "vrid", number[uint8](1, math.MaxUint8)),
		Priority:     get(s, "priority", 100, number[uint8](1, math.MaxUint8)),
		Version:      get(s, "version", 3, number[uint8](2, 3)),
		Preempt:      get(s, "preempt", false, boolean),
		PreemptDelay: get(s, "preempt_delay", 0, duration(0, time.Hour)),
		Source:       need(s, "source", addr),
		Lone:         get(s, "lone", false, boolean),
		Checksum:     get(s, "checksum", "auto", oneOf("auto", "message", "pseudo_header")),
		HMAC:         parseHMAC(s),
	}
	const maxAddresses, maxPeers, passwordLen = 255, 255, 8
	if s.has("password") {
		r.Password = get(s, "password", "", text(passwordLen))
	}
	interval, parse := 100*time.Millisecond, advertInterval
	if r.Version == 2 {
		interval, parse = time.Second, advertInterval2
	}
	r.AdvertInterval = get(s, "advert_interval", interval, parse)
	for _, n := range s.list("addresses", 1, maxAddresses) {
		r.Addresses = append(r.Addresses, scalar(n, prefix))
	}
	for _, n := range s.list("peers", 0, maxPeers) {
		r.Peers = append(r.Peers, scalar[netip.Addr](n, addr))
	}
	if r.Lone && len(r.Peers) > 0 {
		s.at("lone").fail("there are peers")
	}
	if r.Version == 3 && s.has("password") {
		s.at("password").fail("is of version 2 only; version 3 has hmac")
	}
	if r.Version == 2 && s.has("checksum") {
		s.at("checksum").fail("is of version 3 only: version 2 has one form")
	}
	return r
}

func parseHMAC(router section) *HMAC {
	if !router.has("hmac") {
		return nil
	}
	s := router.sub("hmac", "mode", "send_key", "keys")
	h := &HMAC{Mode: get(s, "mode", "enforce", oneOf("enforce", "permissive", "receive_only")), Keys: make(map[uint8]string)}
	ids := first[uint8]{}
	id := number[uint8](1, math.MaxUint8)
	for i, n := range s.list("keys", 1, math.MaxUint8) {
		k := n.section("id", "file")
		number := need(k, "id", id)
		ids.unique(number, k.at("id"), "id")
		h.Keys[number] = need(k, "file", path)
		if i == 0 {
			h.SendKey = number
		}
	}
	h.SendKey = get(s, "send_key", h.SendKey, id)
	if _, ok := h.Keys[h.SendKey]; !ok && len(h.Keys) > 0 {
		s.at("send_key").fail("there is no key %d", h.SendKey)
	}
	return h
}
