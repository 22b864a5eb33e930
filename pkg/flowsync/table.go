package flowsync

import "github.com/pgsteer/pgsteer/pkg/lb"

// Table is the flow table of this node. Its methods are called from several
// goroutines at once.
type Table interface {
	// Each calls fn for the flows of the node itself (own: of addresses that it
	// holds the lease for), or else for the replicas that it keeps for its peer,
	// until fn returns false. A flow that is there during all of the call is
	// seen at least once. fn does not keep the pointer.
	Each(own bool, fn func(*lb.FlowRecord) bool) error
	// Store adds or updates replicas. A record takes the place of a replica of
	// another flow at the same client and service address, or at the same source
	// address and port towards the backend. Refused is how many could not be
	// stored: unknown backend, table full, or this node serves the address
	// itself; the nodes are synced nevertheless. The slice is valid during the
	// call only.
	Store(records []lb.FlowRecord) (refused int, err error)
	// Remove forgets replicas. What is not there, another flow at the same
	// client address, and flows that this node serves are left alone. The slice
	// is valid during the call only.
	Remove(ids []lb.FlowID) error
}
