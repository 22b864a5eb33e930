package lb

import (
	"net/netip"
	"time"
)

// FlowState is what has been seen of a flow, as a set: pkg/xdp has the same
// in enum flow_flag, under numbers of its own.
type FlowState uint16

// The members of a FlowState. The numbers go over the wire between two nodes
// and are never given to another meaning.
const (
	FlowAccepted    FlowState = 1 << iota // the backend sent SYN-ACK
	FlowEstablished                       // the client confirmed
	FlowFinClient                         // the client sent FIN
	FlowFinBackend                        // the backend sent FIN
	FlowReset                             // one of them sent a valid RST
	FlowClosed                            // it no longer counts as active
	FlowTimeWait                          // the backend holds TIME-WAIT: its FIN came first
)

// FlowRecord is all that a node needs to go on with a flow that another node
// has served. Times are ages: the clocks of two nodes have nothing in common.
type FlowRecord struct {
	Client  netip.AddrPort
	Service netip.AddrPort
	SNAT    netip.AddrPort // source towards the backend: a virtual address and a reserved port
	Backend netip.AddrPort
	// ClientMAC is the hardware address that the client is reached through; the
	// nodes are on one LAN.
	ClientMAC [6]byte
	State     FlowState
	// ClientAck and BackendAck are the newest acknowledgement numbers seen of
	// each end; 0 is none so far.
	ClientAck, BackendAck uint32
	// FinAck is, once the client has sent FIN, the acknowledgement number that
	// says that the backend has heard it.
	FinAck uint32
	Age    time.Duration // since the SYN
	Idle   time.Duration // since the last packet of either end
	// Packets and Bytes are counted on the IP layer, in the direction named.
	PacketsIn, BytesIn   uint64
	PacketsOut, BytesOut uint64
}

// FlowID tells one flow from all others, also from a later one of the same
// client port.
type FlowID struct{ Client, Service, SNAT, Backend netip.AddrPort }

// ID returns the record's identity.
func (r *FlowRecord) ID() FlowID { return FlowID{r.Client, r.Service, r.SNAT, r.Backend} }

// FlowChange is what has become of a flow: it is as the record says now, or it
// is forgotten.
type FlowChange struct {
	Record FlowRecord
	Gone   bool
}
