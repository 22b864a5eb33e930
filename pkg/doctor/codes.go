package doctor

// Code is one check.
type Code struct {
	Name string `json:"code"`
	// About is what is looked at, and why.
	About string `json:"about"`
}

// The codes, in the order in which findings are shown.
var codes = []Code{
	{"capabilities", "pgsteerd attaches an XDP program, opens raw sockets and changes addresses; its unit in deploy/systemd grants just what that takes."},
	{"kernel", "The XDP program needs Linux 5.15 or later. A tiny program is loaded and dropped again to see whether the kernel takes one."},
	{"jit", "Without the kernel's compiler each packet costs several times as much."},
	{"lockdown", "A kernel that is locked down for confidentiality lets no program read packets."},
	{"bpffs", "Program and tables are pinned in a BPF file system, so that connections outlive the daemon."},
	{"memory", "The tables take their memory at the start, not as they fill."},
	{"clock", "Only authenticated advertisements are dated: with HMAC a clock that is off makes the nodes refuse each other."},
	{"classic", "keepalived and HAProxy, which pgsteerd replaces, fight over the addresses and the port when they run on the same node."},
	{"interface", "The interface must exist, be an Ethernet one and have the addresses that advertisements are sent from: pgsteerd does not start otherwise."},
	{"carrier", "Without a carrier the node gives its addresses to the other one."},
	{"driver", "Native XDP runs in the card's driver. Where the driver has none the program runs in the network stack, several times slower."},
	{"queues", "A virtual card needs a transmit queue for each CPU beside those in use, or the CPUs wait for each other."},
	{"mtu", "A packet must fit into one page in native mode, or the kernel must be 5.18 or later."},
	{"lro", "Drivers refuse native XDP while the card glues packets together."},
	{"xdp", "Another XDP program on the interface is never overwritten: pgsteerd does not start beside it."},
	{"arp", "An interface that answers ARP for addresses of another one speaks for the virtual address past the fence."},
	{"rp_filter", "The reverse path filter concerns what the kernel receives. What XDP sends on never gets there."},
	{"vrrp", "A VRRP router that is none of ours, with our number, would be taken for a peer (in multicast) or share a virtual MAC address with us."},
	{"vip", "A host that answers ARP for a virtual address while no peer advertises it has taken the address for itself. Asked as for a duplicate (RFC 5227), so that nobody's table changes."},
	{"route", "A pooler has to be reached through the interface: what XDP rewrites leaves by the one it came in."},
	{"backend", "Each pooler is checked once, as pgsteerd will."},
	{"service", "A service with no pooler that works refuses its clients."},
	{"peer", "The other node's port for the replication has to be open from here. A connection that is refused says that the way is open and nobody listens."},
	{"key", "A key that others can read is none. pgsteerd does not start with it."},
	{"port", "The ports that pgsteerd listens at must be free."},
}

// Codes returns all codes in the order in which findings are shown.
func Codes() []Code { return codes }

// Explain tells what a code is about.
func Explain(name string) (Code, bool) {
	if i := rank(name); i >= 0 {
		return codes[i], true
	}
	return Code{}, false
}
