// Package hba decides how a client has to prove who it is, by the rules of a
// file in the form of PostgreSQL's pg_hba.conf, and by which names somebody may
// go, by a file in the form of pg_ident.conf.
//
// It knows what PgBouncer's own knows (hba.c), and samehost and samenet besides.
// What it does not know is an error and not a line left out: a rule that is not
// there may have been the one that rejects.
package hba

import (
	"net/netip"
	"slices"
)

// Kind is what connections a rule is for.
type Kind uint8

// The kinds of rules.
const (
	Local     Kind = iota // Unix sockets
	Host                  // TCP
	HostSSL               // TCP with TLS
	HostNoSSL             // TCP without
)

// Method is what a rule demands.
type Method string

// The methods.
const (
	Trust    Method = "trust"
	Reject   Method = "reject"
	MD5      Method = "md5"
	SCRAM    Method = "scram-sha-256"
	Password Method = "password"
	Cert     Method = "cert"
	Peer     Method = "peer"
)

// Names are databases or users.
type Names struct {
	All   bool
	Same  bool // sameuser: the database has the user's name
	Exact []string
}

func (n *Names) match(name, pair string) bool {
	return n.All || n.Same && name == pair || slices.Contains(n.Exact, name)
}

// Mapping says that who is called System elsewhere (in a certificate, or by the
// operating system) may be User.
type Mapping struct {
	System, User string
	AnyUser      bool
}

// Rule is a line of the file.
type Rule struct {
	Kind      Kind
	Databases Names
	Users     Names

	// Whom a rule that is not Local is for.
	AnyAddress bool
	SameHost   bool // the host's own addresses
	SameNet    bool // its networks
	Network    netip.Prefix
	// Mask is used in the place of Network if it is not a prefix: 255.0.255.0.
	Base, Mask netip.Addr

	Method Method
	// Map are the mappings of map=; nil without it, and then names must be the
	// same.
	Map  []Mapping
	Line int
}

// Rules are a file.
type Rules []Rule

// Client is who asks.
type Client struct {
	Local          bool // by a Unix socket
	TLS            bool
	Addr           netip.Addr
	Database, User string
	// Own are the networks of this host, with its addresses in them. It is
	// called when a rule needs it.
	Own func() []netip.Prefix
}

// Match returns the first rule for a client, or nil.
func (r Rules) Match(c *Client) *Rule {
	for i := range r {
		if r[i].match(c) {
			return &r[i]
		}
	}
	return nil
}

func (r *Rule) match(c *Client) bool {
	switch {
	case (r.Kind == Local) != c.Local, r.Kind == HostSSL && !c.TLS, r.Kind == HostNoSSL && c.TLS:
		return false
	case !c.Local && !r.from(c):
		return false
	}
	return r.Databases.match(c.Database, c.User) && r.Users.match(c.User, c.Database)
}

// from reports whether a rule is for the client's address.
func (r *Rule) from(c *Client) bool {
	addr := c.Addr.Unmap().WithZone("")
	own := func(fits func(netip.Prefix) bool) bool { return c.Own != nil && slices.ContainsFunc(c.Own(), fits) }
	switch {
	case r.AnyAddress:
		return true
	case r.SameHost:
		return own(func(p netip.Prefix) bool { return p.Addr() == addr })
	case r.SameNet:
		return own(func(p netip.Prefix) bool { return p.Contains(addr) })
	case r.Mask.IsValid():
		return masked(addr, r.Mask) == masked(r.Base, r.Mask) && addr.BitLen() == r.Base.BitLen()
	}
	return r.Network.Contains(addr)
}

func masked(a, mask netip.Addr) netip.Addr {
	b, m := a.AsSlice(), mask.AsSlice()
	if len(b) != len(m) {
		return netip.Addr{}
	}
	for i := range b {
		b[i] &= m[i]
	}
	out, _ := netip.AddrFromSlice(b)
	return out
}

// Allows reports whether somebody who is called by one of these names elsewhere
// may be the user.
func (r *Rule) Allows(user string, called func(name string) bool) bool {
	if r == nil || r.Map == nil {
		return called(user)
	}
	return slices.ContainsFunc(r.Map, func(m Mapping) bool { return (m.AnyUser || m.User == user) && called(m.System) })
}
