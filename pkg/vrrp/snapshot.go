package vrrp

import (
	"net/netip"
	"slices"
	"time"
)

// Snapshot is the state of a virtual router at one moment. All counters count
// from Open.
type Snapshot struct {
	Name      string         `json:"name"`
	Interface string         `json:"interface"`
	VRID      uint8          `json:"vrid"`
	Version   uint8          `json:"version"`  // of the protocol
	HMAC      string         `json:"hmac"`     // its mode; "": none
	Priority  uint8          `json:"priority"` // ours, as configured
	Preempt   bool           `json:"preempt"`
	Source    netip.Addr     `json:"source"`
	Peers     []netip.Addr   `json:"peers"` // configured; empty: multicast
	Addresses []netip.Prefix `json:"addresses"`

	State  State     `json:"state"`
	Since  time.Time `json:"since"`  // when State began
	Reason string    `json:"reason"` // why
	// EffectivePriority is what this node would advertise now, with the weights
	// of what is tracked: 254 when it was told to take over, 1 as long as it
	// stands back.
	EffectivePriority uint8 `json:"effective_priority"`
	// Fault is why the node stays out of the election, in Init; "": it does not.
	Fault string `json:"fault"`
	// Gate is why the node stands back behind any other that is fit: it was told
	// to resign, or is not synced. "": it does not.
	Gate     string `json:"gate"`
	Synced   bool   `json:"synced"`   // as SetSynced tells; true without SyncGate
	Takeover bool   `json:"takeover"` // it was told to take over, and is active or claims
	CutOff   bool   `json:"cut_off"`  // a backup that must not claim, for want of a witness
	// Lease is what is left of the lease, nanoseconds; 0 when there is none.
	Lease time.Duration `json:"lease"`
	// AdvertInterval is ours, nanoseconds.
	AdvertInterval time.Duration `json:"advert_interval"`
	Peer           Peer          `json:"peer"`

	Sent           uint64 `json:"sent"` // advertisements, one per peer
	SentResign     uint64 `json:"sent_resign"`
	SendErrors     uint64 `json:"send_errors"`
	Received       uint64 `json:"received"` // advertisements acted upon
	ReceivedResign uint64 `json:"received_resign"`
	// Refused has every reason, in the order of the checks, also those that
	// never occurred.
	Refused []RefusalCount `json:"refused"`
	// IntervalMismatches and AddressMismatches are of advertisements that were
	// acted upon, but say that a peer is configured otherwise.
	IntervalMismatches uint64 `json:"interval_mismatches"`
	AddressMismatches  uint64 `json:"address_mismatches"`
	// Contentions counts when another node was seen to be active beside us, by
	// its advertisement or its ARP. One that preempts, or was told to take over,
	// does not count.
	Contentions uint64 `json:"contentions"`
	// Barred counts when the down timer ran out but the node must not become
	// active; once per interval while that lasts.
	Barred       uint64 `json:"barred"`
	Transitions  uint64 `json:"transitions"` // changes of state of any kind
	BecameActive uint64 `json:"became_active"`
	// GratuitousARP counts frames sent and GratuitousErrors announcements that
	// failed; they are of IPv4, and the next two are their like of IPv6.
	GratuitousARP       uint64 `json:"gratuitous_arp"`
	GratuitousErrors    uint64 `json:"gratuitous_arp_errors"`
	UnsolicitedNA       uint64 `json:"unsolicited_na"` // unsolicited Neighbor Advertisements
	UnsolicitedNAErrors uint64 `json:"unsolicited_na_errors"`
	// Restored counts addresses that somebody took away while we were active.
	Restored uint64 `json:"restored"`
	// History has the last 64 changes of state, the oldest first.
	History []Change `json:"history"`

	refused [numRefusals]uint64
}

// Peer is who was last heard, and how.
type Peer struct {
	Address        netip.Addr    `json:"address"`         // the zero value: nobody so far
	Priority       uint8         `json:"priority"`        // 0: it resigned
	AdvertInterval time.Duration `json:"advert_interval"` // nanoseconds
	Checksum       ChecksumForm  `json:"checksum"`
	// Ago is the time since its last advertisement, nanoseconds.
	Ago time.Duration `json:"ago"`
}

// RefusalCount is the number of packets refused for one reason.
type RefusalCount struct {
	Reason string `json:"reason"` // see Refusal
	Count  uint64 `json:"count"`
}

// Snapshot returns the present state. It may be called from any goroutine.
func (r *Router) Snapshot() Snapshot {
	now := r.now()
	r.mu.Lock()
	s, seen := r.state, r.seen
	s.History = slices.Clone(r.history)
	r.mu.Unlock()
	s.Addresses, s.Peers = slices.Clone(s.Addresses), slices.Clone(s.Peers)
	s.Lease = max(0, time.Duration(r.lease.Load())-now)
	if s.Peer.Address.IsValid() {
		s.Peer.Ago = max(0, now-seen)
	}
	s.Refused = make([]RefusalCount, numRefusals)
	for i, n := range s.refused {
		s.Refused[i] = RefusalCount{Reason: Refusal(i).String(), Count: n}
	}
	announced, failed := &s.GratuitousARP, &s.GratuitousErrors
	if r.config.ipv6() {
		announced, failed = &s.UnsolicitedNA, &s.UnsolicitedNAErrors
	}
	*announced, *failed = r.owner.announced.Load(), r.owner.failed.Load()
	s.Restored = r.owner.restored.Load()
	return s
}
