package vrrp

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"
)

// Defaults of a Config.
const (
	// DefaultPriority is that of RFC 9568 section 5.2.4.
	DefaultPriority = 100
	// DefaultAdvertInterval makes a take-over last 0.36 s (measured: 0.35 to
	// 0.39 s); the protocol's own default of one second makes it 3.6 s.
	DefaultAdvertInterval = 100 * time.Millisecond
	// DefaultWitnessTimeout outlasts two lost answers to probes a second apart.
	DefaultWitnessTimeout = 3 * time.Second
)

// Config describes one virtual router on one interface of this node.
type Config struct {
	Name      string // for logs and snapshots
	Interface string // must exist when Open is called
	VRID      uint8  // 1 to 255, the same on all nodes
	// Version of the protocol, the same on all nodes: 3 (RFC 9568), also when it
	// is 0, or 2 (RFC 3768), which is for IPv4 only and has whole seconds. A
	// node that speaks another version is not listened to, and becomes active
	// beside us.
	Version uint8
	// Priority is 1 to 254, higher is better; 255 is for the node whose own
	// address is the virtual one. 0 means DefaultPriority.
	Priority uint8
	// AdvertInterval is 10 ms to 40.95 s in steps of 10 ms. 0 means
	// DefaultAdvertInterval. Of version 2 it is 1 s to 255 s in steps of 1 s, 0
	// means 1 s, and it must be the same on all nodes.
	AdvertInterval time.Duration
	// Preempt has a better node take the role from a worse active one.
	Preempt bool
	// PreemptDelay is how long a worse active router is followed before it is
	// preempted. It counts from when this node first hears it.
	PreemptDelay time.Duration
	// SyncGate has this node stand back until SetSynced says that it has a copy
	// of what the active one knows.
	SyncGate bool
	// Lone says that there is no other node, and there are no Peers. Nobody can
	// take over then, so the lease is of a hundred years: a freeze or a crash of
	// this process stops nothing.
	Lone bool
	// Witness tells how long ago there was a sign from outside that this node is
	// not cut off: a peer's acknowledgement by another path, the gateway, a
	// pooler. ok is false when there never was one. While the last one is older
	// than WitnessTimeout (0 means DefaultWitnessTimeout) an active router steps
	// down, and a backup does not become active. nil: none is needed. It is
	// called on the goroutine that sends the advertisements, with each event,
	// and must not wait.
	Witness        func() (ago time.Duration, ok bool)
	WitnessTimeout time.Duration
	// PeerActive reports that another path says right now that the other node
	// holds these addresses with a lease that runs. A backup that hears nobody
	// does not become active then, for it is the path of the advertisements that
	// is cut. May be nil; called like Witness.
	PeerActive func() bool
	// Addresses are the virtual addresses, 1 to 255 of them, all IPv4 or all
	// IPv6: a virtual router has one family. They are put on the interface with
	// this prefix length, but never bring a route. RFC 9568 section 5.2.9 wants
	// the first one of IPv6 to be link-local; like keepalived (2.2.7, measured)
	// we do without as well.
	Addresses []netip.Prefix
	// Source is this node's own address on the interface, of the same family,
	// without a zone. With IPv6 multicast it must be link-local (RFC 9568
	// section 5.1.2.1). The zero value means the first address of the interface
	// that is not virtual; of IPv6 a link-local one, unless the first of Peers
	// is not link-local either.
	Source netip.Addr
	// Peers are the other nodes' sources, of the same family, without zones;
	// others are not listened to. Without any the advertisements are multicast
	// to 224.0.0.18 or ff02::12. keepalived as a peer over IPv6 needs
	// unicast_ttl 255: 2.2.7 sends with hop limit 64 otherwise (measured), and
	// what a router may have forwarded is refused.
	Peers []netip.Addr
	// Checksum is the form of checksum that version 3 over IPv4 is sent with; all
	// are accepted. ChecksumAuto, the default, answers each peer in the form that
	// it was last heard with, and begins with ChecksumMessage. keepalived as a
	// peer wants ChecksumPseudo: 2.2.7 refuses the other (measured), so that with
	// ChecksumAuto it becomes active beside us for a moment when it has never
	// been heard before. IPv6 has ChecksumPseudo always, version 2 never.
	Checksum ChecksumForm
	// ChecksumPseudoHeader is the same as Checksum: ChecksumPseudo.
	ChecksumPseudoHeader bool
	// Auth is the simple password of version 2 (RFC 2338), of which eight bytes
	// count. Empty: no authentication.
	Auth Secret
	// HMAC authenticates the advertisements. nil: they are not.
	HMAC *HMAC
	// Log is where the router logs to. Required.
	Log *slog.Logger
	// Fence is told about the lease. nil: there is no fence.
	Fence Fence
	// OnTransition is called after each change of state, in order, on the
	// goroutine that sends the advertisements: it must return in far less than
	// an advertisement interval. May be nil.
	OnTransition func(Transition)
}

// Fence keeps this node silent about the virtual addresses, in the kernel and
// without this process's help, whenever it holds no lease.
//
// Both methods are called on the goroutine that sends the advertisements and
// must not wait. Renewals of a lease that has run out begin it again.
type Fence interface {
	// Renew makes the lease end d after now, whatever it was before: three
	// advertisement intervals at most, or a hundred years of a lone node. An
	// error makes the router resign: it would be active without being heard.
	Renew(d time.Duration) error
	// Revoke ends the lease at once.
	Revoke() error
}

// Transition is a change of state.
type Transition struct {
	Router   string    `json:"router"`
	From     State     `json:"from"`
	To       State     `json:"to"`
	Reason   string    `json:"reason"` // one line
	At       time.Time `json:"at"`
	Priority uint8     `json:"priority"` // this node's
}

// withDefaults checks what can be checked without looking at the interface.
func (c Config) withDefaults() (Config, error) {
	if c.Priority == 0 {
		c.Priority = DefaultPriority
	}
	if c.Version == 0 {
		c.Version = version3
	}
	if c.AdvertInterval == 0 {
		c.AdvertInterval = DefaultAdvertInterval
		if c.Version == version2 {
			c.AdvertInterval = time.Second
		}
	}
	if c.WitnessTimeout == 0 {
		c.WitnessTimeout = DefaultWitnessTimeout
	}
	c.Addresses, c.Peers = slices.Clone(c.Addresses), slices.Clone(c.Peers)
	const centisecond = 10 * time.Millisecond
	switch {
	case c.Log == nil:
		return c, errors.New("a logger is required")
	case c.Interface == "":
		return c, errors.New("an interface is required")
	case c.PreemptDelay < 0:
		return c, fmt.Errorf("preemption delay %v is negative", c.PreemptDelay)
	case c.WitnessTimeout < 0:
		return c, fmt.Errorf("timeout %v of the witness is negative", c.WitnessTimeout)
	case c.Lone && (len(c.Peers) > 0 || c.Witness != nil || c.PeerActive != nil):
		return c, errors.New("a lone node has no peers, and needs no witness")
	case c.Checksum > ChecksumPseudo:
		return c, fmt.Errorf("%v is no form of checksum", c.Checksum)
	case c.VRID == 0:
		return c, errors.New("virtual router id 0 is reserved, use 1 to 255")
	case c.Version != version2 && c.Version != version3:
		return c, fmt.Errorf("version %d: VRRP has versions 2 and 3", c.Version)
	case c.Version == version2 && (c.AdvertInterval < time.Second || c.AdvertInterval > maxInterval2 || c.AdvertInterval%time.Second != 0):
		return c, fmt.Errorf("advertisement interval %v: version 2 has whole seconds from 1s to 255s", c.AdvertInterval)
	case c.Version == version3 && c.Auth != "":
		return c, errors.New("a password is for version 2 only, version 3 has none")
	case c.Version == version2:
	case c.AdvertInterval < centisecond || c.AdvertInterval > maxIntervalCentiseconds*centisecond || c.AdvertInterval%centisecond != 0:
		return c, fmt.Errorf("advertisement interval %v: it must be a multiple of 10ms from 10ms to 40.95s", c.AdvertInterval)
	}
	if c.HMAC != nil {
		if err := c.HMAC.validate(); err != nil {
			return c, err
		}
	}
	if len(c.Addresses) == 0 || len(c.Addresses) > 255 {
		return c, fmt.Errorf("%d virtual addresses: a virtual router has 1 to 255", len(c.Addresses))
	}
	if c.Version == version2 && c.ipv6() {
		return c, errors.New("version 2 is for IPv4 only")
	}
	usable, kind := usable4, "an IPv4 unicast address"
	if c.ipv6() {
		usable, kind = usable6, "an IPv6 unicast address without a zone"
	}
	switch {
	case c.Source.IsValid() && !usable(c.Source):
		return c, fmt.Errorf("source %v is not %s", c.Source, kind)
	case c.Source.IsValid() && c.ipv6() && len(c.Peers) == 0 && !c.Source.IsLinkLocalUnicast():
		return c, fmt.Errorf("source %v is not link-local, as IPv6 multicast needs it to be", c.Source)
	}
	for i, p := range c.Addresses {
		switch {
		case !p.IsValid() || !usable(p.Addr()):
			return c, fmt.Errorf("virtual address %v is not %s with a prefix length", p, kind)
		case p.Addr() == c.Source:
			return c, fmt.Errorf("virtual address %v is the source address too", p.Addr())
		case slices.ContainsFunc(c.Addresses[:i], func(q netip.Prefix) bool { return q.Addr() == p.Addr() }):
			return c, fmt.Errorf("virtual address %v is given twice", p.Addr())
		}
	}
	for i, p := range c.Peers {
		switch {
		case !usable(p):
			return c, fmt.Errorf("peer %v is not %s", p, kind)
		case p == c.Source:
			return c, fmt.Errorf("peer %v is this node's own source address", p)
		case c.virtual(p):
			return c, fmt.Errorf("peer %v is a virtual address", p)
		case slices.Contains(c.Peers[:i], p):
			return c, fmt.Errorf("peer %v is given twice", p)
		}
	}
	return c, nil
}

// ipv6 reports whether the virtual router's family is IPv6. There is an address.
func (c *Config) ipv6() bool { return c.Addresses[0].Addr().Is6() }

// lifetime is how long a virtual address stays on the interface without being
// renewed, seconds; 0: for ever. It outlives the lease, which ends first.
func (c *Config) lifetime() int {
	if c.Lone {
		return 0
	}
	const second = time.Second
	return int((leaseIntervals*c.AdvertInterval + addressSpare + second - 1) / second)
}

// virtual reports whether a is one of the virtual addresses.
func (c *Config) virtual(a netip.Addr) bool {
	return slices.ContainsFunc(c.Addresses, func(p netip.Prefix) bool { return p.Addr() == a })
}

// checksum returns the form that we send, ChecksumAuto if the peer decides.
func (c *Config) checksum() ChecksumForm {
	switch {
	case c.ChecksumPseudoHeader || c.ipv6():
		return ChecksumPseudo
	case c.Version == version2:
		return ChecksumMessage
	}
	return c.Checksum
}

func usable4(a netip.Addr) bool {
	return a.Is4() && !a.IsUnspecified() && !a.IsMulticast() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

func usable6(a netip.Addr) bool {
	return a.Is6() && !a.Is4In6() && a.Zone() == "" && !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback()
}
