// Package flowsync replicates the flows of a balancer node to its peer, so that
// the peer can carry on established connections after a failover.
//
// Each node sends the flows that it serves itself and keeps those that the peer
// sends. With several virtual routers both nodes may serve some addresses, so
// both directions are in use at once, over one TCP connection with mutual TLS.
// The node whose address is the lower one dials, the other listens.
//
// # Changes and passes
//
// What happens to flows ([Link.Publish]) is queued, sent in order, in numbered
// batches, and acknowledged when the peer has stored it. When the connection
// begins, and when changes were lost, a full copy of the flow table is sent: a
// pass, framed by begin and end. Every few seconds a shorter pass refreshes the
// counters of flows that had packets.
//
// Changes go on during a pass, so a record that was read from the table may be
// older than a change that is already sent: a close, say, that must not be
// undone. Therefore the receiver remembers which flows changed since the
// beginning of a pass, and ignores the pass's record of these. That is enough:
// the table is read only after the beginning was put in the stream, so all
// changes before it are in what is read.
//
// At the beginning of a full copy the receiver also notes the replicas that it
// has, and at the end forgets those that were not in the copy, if they are of
// an address that the sender held the lease for before and after it read its
// table. The condition matters: a node that is about to lose its lease, or to
// take one, knows only a part of the flows, and must not make its peer forget
// the rest.
//
// The two machines, sender.go and receiver.go, know no network and have no
// clock; they are tested in a simulation. Around them stand the goroutines of a
// session (session.go), one that reads, one that writes, one that walks the
// table.
package flowsync
