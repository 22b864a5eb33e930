// Package vrrp elects which node owns the virtual addresses, by the Virtual
// Router Redundancy Protocol version 3 (RFC 9568) or 2 (RFC 3768), and makes the
// network see it: the addresses are put on the interface, announced by gratuitous ARP or
// unsolicited Neighbor Advertisements, and taken off again. A virtual router is
// of one family, IPv4 or IPv6; for both a node takes part in two.
//
// The protocol itself is a pure machine (machine.go): it is given an event and
// the time, and answers with actions; it is tested in simulated time. Around it
// stand two goroutines: the router (router.go) owns the socket and the timer,
// the owner (owner.go) owns the kernel's addresses and the announcements, so
// that a slow rtnetlink never delays an advertisement.
//
// # The lease
//
// A node may serve its addresses only while it holds a lease, which lasts for
// three advertisement intervals from just before the last advertisement was
// sent, and which can be extended only while it is still held. A peer takes
// over no earlier than three intervals plus its skew after it received that
// advertisement, and no earlier than three intervals and a 24th, should its
// clock be faster. So the lease of a node that died, froze or was starved is
// over before anybody else begins. That holds for nodes that hear each other:
// each advertisement that the network loses right before a crash takes an
// interval off the margin, and a partition can make two nodes active until it
// heals, unless there is evidence of another kind (Config.Witness and
// Config.PeerActive). The lease is handed to a [Fence], which makes whatever
// forwards packets go silent on its own when it runs out. docs/failover.md has
// the whole argument.
//
// # The claim
//
// Before a node takes the addresses it advertises, waits a moment (a sixteenth
// of the advertisement interval, at most 10 ms), and goes on only when nobody
// better answered. The wait is taken out of the skew, so that a take-over is as
// fast as RFC 9568 has it, but two nodes whose timers fire together, or a node
// that missed a few advertisements of a healthy peer, settle the matter before
// and not after both own the addresses. On the wire a claim is an ordinary
// advertisement. Whoever gives way to a better one says so by priority 0, as in
// a resignation; without that word, from a frozen node or from other software,
// the better one waits until the other's lease must be over.
//
// # The standing
//
// What is known outside of the protocol decides who shall be active: faults and
// weights (Router.Track), whether this node has a copy of what the active one
// knows (Router.SetSynced), and an operator's order (Router.Takeover and
// Router.Resign). A node that shall not take the role from another stands back:
// it follows whoever is active, and claims last and with the lowest priority.
package vrrp
