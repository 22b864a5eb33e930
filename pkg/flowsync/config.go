package flowsync

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// Config says what to link with whom.
type Config struct {
	// Listen and Peer are this node's address and the other's; the other node
	// has them the other way round. The node with the lower one dials.
	Listen, Peer netip.AddrPort
	Key          *Key
	Node         string // this node's name, another than the peer's
	Services     []lb.Service
	Table        Table
	// State is asked for what to tell the peer, at each heartbeat and when a
	// full copy begins and ends. It must not block, and may be called from
	// several goroutines. Nil is a node without virtual routers: its flows are
	// sent, but the peer never forgets any at the end of a full copy.
	State func() State
	// OnSynced is called when Synced changes, from a goroutine of the link that
	// waits for it; may be nil.
	OnSynced func(bool)
	Log      *slog.Logger // nil: nowhere

	Heartbeat       time.Duration // default 100 ms
	Missed          int           // heartbeats after which the link is dead; default 3
	RefreshInterval time.Duration // of counters of busy flows; default 5 s
	QueueLimit      int           // changes that may wait; default 65,536
}

const maxNode = 64

func (c Config) withDefaults() (Config, error) {
	c.Listen = netip.AddrPortFrom(c.Listen.Addr().Unmap(), c.Listen.Port())
	c.Peer = netip.AddrPortFrom(c.Peer.Addr().Unmap(), c.Peer.Port())
	switch {
	case c.Table == nil:
		return c, errors.New("no flow table")
	case c.Key == nil:
		return c, errors.New("no key")
	case c.Node == "" || len(c.Node) > maxNode:
		return c, fmt.Errorf("the node's name has %d bytes, want 1 to %d", len(c.Node), maxNode)
	case !c.Listen.IsValid() || c.Listen.Addr().IsUnspecified() || c.Listen.Port() == 0:
		return c, fmt.Errorf("listen address %v is not one that the peer can connect to", c.Listen)
	case !c.Peer.IsValid() || c.Peer.Addr().IsUnspecified() || c.Peer.Port() == 0:
		return c, fmt.Errorf("peer address %v is not one to connect to", c.Peer)
	case c.Listen == c.Peer:
		return c, fmt.Errorf("the peer has this node's own address %v", c.Peer)
	case c.Listen.Addr().BitLen() != c.Peer.Addr().BitLen():
		return c, fmt.Errorf("%v and %v are not of one family", c.Listen, c.Peer)
	case c.Heartbeat < 0 || c.Missed < 0 || c.RefreshInterval < 0 || c.QueueLimit < 0:
		return c, errors.New("a setting is negative")
	}
	if c.State == nil {
		c.State = func() State { return State{} }
	}
	if c.OnSynced == nil {
		c.OnSynced = func(bool) {}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	setDefault(&c.Heartbeat, 100*time.Millisecond)
	setDefault(&c.Missed, 3)
	setDefault(&c.RefreshInterval, 5*time.Second)
	setDefault(&c.QueueLimit, 65536)
	if c.dead() > time.Hour {
		return c, fmt.Errorf("%d missed heartbeats of %v are more than an hour", c.Missed, c.Heartbeat)
	}
	return c, nil
}

func setDefault[T comparable](v *T, value T) {
	var zero T
	if *v == zero {
		*v = value
	}
}

// dials reports whether this node is the one that dials.
func (c *Config) dials() bool { return c.Listen.Compare(c.Peer) < 0 }

// dead is how long the peer may be silent.
func (c *Config) dead() time.Duration { return time.Duration(c.Missed) * c.Heartbeat }
