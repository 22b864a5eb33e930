package xdp

import (
	"encoding/binary"
	"net/netip"
)

// The maps' keys and values, as bpf/types.h has them; a test holds the two
// against each other. What holds addresses exists for both families, so that
// an IPv4 key is 12 bytes long, not 36.

// address is a struct addr: the bytes in network order.
type address interface{ addr4 | addr6 }

type (
	addr4 = [4]byte
	addr6 = [16]byte
)

// bePort is a port in network order.
type bePort [2]byte

type flowKey[A address] struct {
	Saddr, Daddr A
	Sport, Dport bePort
}

type flowRow[A address] struct {
	Rewritten flowKey[A]
	ClientMAC macAddr
	Backend   uint16
	Flags     uint32
	IPDelta   uint16
	TCPDelta  uint16
	VIP       uint16
	Pad       uint16
	Created   uint32 // age units
	Seen      uint32 // age units
	Ack       uint32
	Ticket    uint32
	Packets   uint64
	Bytes     uint64
}

// peerKey is flow_peer_key() of bpf/flow.h.
func (f *flowRow[A]) peerKey() flowKey[A] {
	return flowKey[A]{
		Saddr: f.Rewritten.Daddr,
		Daddr: f.Rewritten.Saddr,
		Sport: f.Rewritten.Dport,
		Dport: f.Rewritten.Sport,
	}
}

func (f *flowRow[A]) has(flags balancerFlowFlag) bool {
	return balancerFlowFlag(f.Flags)&flags == flags
}

type vipRow struct {
	Index    uint32
	Pad      uint32
	SinceNs  uint64
	State    uint8
	VRID     uint8
	Priority uint8
	Pad2     [5]uint8
	Router   nameField
}

type hintRow[A address] struct {
	Count uint32
	Index uint32
	Addr  A
	Port  bePort
	Pad   uint16
}

type serviceKey[A address] struct {
	Addr  A
	Port  bePort
	Proto uint16
}

type serviceRow[A address] struct {
	ID       uint32
	Flags    uint16
	NATCount uint16
	NAT      [maxNATAddrs]A
	NATVIPs  [maxNATAddrs]uint16
	Name     nameField
}

// maxNATAddrs is MAX_NAT_ADDRS of bpf/config.h: the VIP and the others.
const maxNATAddrs = 8

type slotRow struct {
	Weight uint32
	Limit  uint32
	Cost   uint64
	State  uint8
	Flags  uint8
	// Nominal is the weight as it was configured.
	Nominal uint16
	Pad     [4]uint8
}

type scheduleRow struct {
	Mask      uint32
	Scheduler uint32
	Slots     [64]slotRow
}

type backendRow[A address] struct {
	Addr A
	Port bePort
	Pad  uint16
	MAC  macAddr
	Pad2 uint16
	Name nameField
}

type backendKey[A address] struct {
	Addr A
	Port bePort
	Pad  uint16
}

type loadRow struct {
	Lock         uint32
	Rotor        uint32
	Active       [64]int64
	Credit       [64]int64
	Total        [64]uint64
	Suspect      [64]uint64
	Refused      [64]uint64
	Redispatched [64]uint64
	Resets       [64]uint64
	Evicted      [64]uint64
}

type connectTimeRow struct {
	SumNs uint64
	Count [24]uint64
}

type networkKey[A address] struct {
	Bits    uint32
	Service [4]byte // network order
	Addr    A
}

type trafficRow struct {
	PacketsIn, BytesIn, PacketsOut, BytesOut uint64
}

// tokenBucket is for the daemon to empty: tokens are earned from Refilled on.
type tokenBucket struct {
	Refilled uint64 // jiffies
	Tokens   int64
}

type reapRequest[A address] struct {
	Key    flowKey[A]
	Force  uint32
	Seen   uint32
	Reaped uint32
}

type eventRow[A address] struct {
	Key        flowKey[A]
	Gone       uint32
	Forward    flowRow[A]
	ReverseAck uint32
	At         uint32 // jiffies, the low half
}

type replicaRow[A address] struct {
	Key            flowKey[A]
	Gone           uint32
	Forward        flowRow[A]
	ReverseAck     uint32
	ReverseVIP     uint16
	Pad            uint16
	ReversePackets uint64
	ReverseBytes   uint64
	Answer         uint32
	Pad2           uint32
}

type clearRequest struct {
	Service, Slot uint32
	Pad           uint64
}

type clockRequest struct {
	Jiffies, Ns uint64
}

// nameField is a name with zeros behind it.
type nameField [32]byte

func nameBytes(s string) (b nameField) {
	copy(b[:len(b)-1], s)
	return b
}

func (b nameField) String() string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b[:])
}

type macAddr = [6]uint8

func toPort(p uint16) (b bePort) {
	binary.BigEndian.PutUint16(b[:], p)
	return b
}

func (b bePort) number() uint16 { return binary.BigEndian.Uint16(b[:]) }

// toAddr wants an address of the right family.
func toAddr[A address](a netip.Addr) (out A) {
	switch p := any(&out).(type) {
	case *addr4:
		*p = a.As4()
	case *addr6:
		*p = a.As16()
	}
	return out
}

func fromAddr[A address](a A) netip.Addr {
	switch a := any(a).(type) {
	case addr4:
		return netip.AddrFrom4(a)
	case addr6:
		return netip.AddrFrom16(a)
	}
	panic("xdp: no such address family") // not possible: see address
}

func addrPortOf[A address](addr A, port bePort) netip.AddrPort {
	return netip.AddrPortFrom(fromAddr(addr), port.number())
}

func (k serviceKey[A]) addrPort() netip.AddrPort { return addrPortOf(k.Addr, k.Port) }
func (k flowKey[A]) source() netip.AddrPort      { return addrPortOf(k.Saddr, k.Sport) }
func (k flowKey[A]) target() netip.AddrPort      { return addrPortOf(k.Daddr, k.Dport) }
func (b backendRow[A]) addrPort() netip.AddrPort { return addrPortOf(b.Addr, b.Port) }
func (b backendRow[A]) free() bool               { return b.Port == bePort{} }
