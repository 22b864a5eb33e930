/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * types.h: what is kept in the maps, shared with Go through BTF.
 *
 * Addresses and ports are in network order throughout (__be32, __be16). Times
 * are jiffies since boot unless a name says ns, which is CLOCK_MONOTONIC: to
 * read that takes 13 to 30 ns a packet, jiffies take nothing. Padding is
 * explicit: the maps compare and hash raw bytes.
 */
#ifndef PGSTEER_TYPES_H
#define PGSTEER_TYPES_H

/* A packet's addresses as it was received, in either direction. */
struct flow_key {
	struct addr saddr;
	struct addr daddr;
	__be16 sport;
	__be16 dport;
};

/*
 * What a flow has seen. Only the forward half's flags count; they are changed
 * by atomic or alone, and FLOW_CLOSED is what makes "decremented once" true.
 */
enum flow_flag {
	FLOW_FORWARD = 1 << 0, /* this half: client to backend */
	FLOW_SYN_ACK = 1 << 1, /* the backend accepted */
	FLOW_ESTABLISHED = 1 << 2, /* the client confirmed */
	FLOW_FIN_CLIENT = 1 << 3,
	FLOW_FIN_BACKEND = 1 << 4,
	FLOW_RESET = 1 << 5,
	FLOW_CLOSED = 1 << 6, /* no longer in its backend's active count */
	FLOW_TAKEN = 1 << 7, /* somebody is replacing this entry */
	/* The backend has to hold TIME-WAIT: its FIN came before ours was heard. */
	FLOW_TIME_WAIT = 1 << 8,
};

/* A flow's times are counted in units of 2^AGE_SHIFT jiffies: 32 bits do. */
#define AGE_SHIFT 5

/*
 * One half of a flow; the other half is found under the key
 * {new daddr, new saddr, new dport, new sport}. For IPv4 it is one cache line.
 */
struct flow {
	struct flow_key rewritten; /* the packet's addresses when it leaves */
	__u8 client_mac[6]; /* MAC address the client is reached through */
	__u16 backend; /* index into backends: service * MAX_BACKENDS + slot */
	__u32 flags; /* enum flow_flag */
	__u16 ip_delta; /* checksum difference of the IP addresses */
	__u16 tcp_delta; /* the same with the ports */
	__u16 vip; /* index into leases */
	__u16 pad;
	__u32 created; /* age units, see above */
	__u32 seen; /* last packet; age units */
	__u32 ack; /* newest acknowledgement seen, host order; 0: none yet */
	/*
	 * Of the forward half. While the flow is half-open: its ticket, see
	 * struct handshake. Once the client has sent FIN: the acknowledgement
	 * that says that the backend has heard it.
	 */
	__u32 ticket;
	__u64 packets;
	__u64 bytes; /* IP total length */
};

/* A virtual address. */
struct vip {
	__u32 index; /* into leases */
	__u32 pad;
	__u64 since_ns; /* of state */
	__u8 state; /* 0 init, 1 backup, 2 active: for the tools only */
	__u8 vrid;
	__u8 priority;
	__u8 pad2[5];
	char router[NAME_LEN];
};

/*
 * What is known of the VIPs that end in one byte. If it is one VIP with one
 * service, as it mostly is, that is here: who is to be told by a reset that it
 * is none of ours needs no more.
 */
struct vip_hint {
	__u32 count; /* how many there are */
	__u32 index; /* of the one, into leases */
	struct addr addr; /* of the one */
	__be16 port; /* of its one service; 0: there is no such one */
	__u16 pad;
};

struct service_key {
	struct addr addr;
	__be16 port;
	__u16 proto; /* IPPROTO_TCP, host order */
};

/* pkg/lb.State has the same numbers. */
enum backend_state {
	BACKEND_DOWN = 0,
	BACKEND_UP = 1,
	BACKEND_DRAINING = 2,
	BACKEND_MAINTENANCE = 3,
};

/* pkg/lb.Scheduler has the same numbers. */
enum scheduler {
	LEAST_CONNECTIONS = 0,
	ROUND_ROBIN = 1,
	RANDOM_TWO = 2,
};

enum slot_flag {
	SLOT_REACHABLE = 1 << 0, /* the next hop's MAC address is known */
	SLOT_BACKUP = 1 << 1,
};

/*
 * What the scheduler must know of a backend. During slow start the daemon
 * raises the weight step by step.
 */
struct slot {
	__u32 weight; /* times WEIGHT_UNIT; 0: the slot is free */
	__u32 limit; /* active flows */
	__u64 cost; /* COST_UNIT / weight */
	__u8 state; /* enum backend_state */
	__u8 flags; /* enum slot_flag */
	__u16 nominal; /* the weight as it was configured: for the tools only */
	__u8 pad[4];
};

#define WEIGHT_UNIT 256

/*
 * A load is active flows by cost, in 56 bits. Two loads of different ratio
 * differ in it as long as weights are at most 256 and flows fewer than 2^20,
 * or 2^16 while slow start has a weight at a sixteenth.
 */
#define COST_UNIT (1ULL << 44)

enum service_flag {
	SERVICE_RESTRICTED =
		1 << 0, /* clients only from the networks in allowed */
	SERVICE_DROP_WHEN_FULL = 1 << 1, /* else a reset */
	SERVICE_CLIENT_ADDRESS = 1 << 2, /* tell the backend, see syn.h */
};

/* What a VIP and port lead to. */
struct service {
	__u32 id; /* index into schedules and loads, and part of a backend's */
	__u16 flags; /* enum service_flag */
	__u16 nat_count; /* addresses in nat */
	struct addr nat[MAX_NAT_ADDRS]; /* sources towards the backends */
	__u16 nat_vips[MAX_NAT_ADDRS]; /* their indexes into leases */
	char name[NAME_LEN];
};

/* What the scheduler must know of a service; changed in place by the daemon. */
struct schedule {
	__u32 mask; /* slots are 0 to mask; a power of two less one */
	__u32 scheduler; /* enum scheduler */
	struct slot slots[MAX_BACKENDS];
};

/* What the rewrite must know of a backend. */
struct backend {
	struct addr addr;
	__be16 port;
	__u16 pad;
	__u8 mac[6]; /* next hop, kept by the daemon */
	__u16 pad2;
	char name[NAME_LEN];
};

struct backend_key {
	struct addr addr;
	__be16 port;
	__u16 pad;
};

/*
 * A service's counts: a map value of their own, so that rewriting the service
 * never touches them. The lock makes choosing and counting one step.
 */
struct load {
	struct bpf_spin_lock lock;
	__u32 rotor; /* where the next scan begins: ties rotate */
	__s64 active[MAX_BACKENDS];
	__s64 credit[MAX_BACKENDS]; /* of round robin */
	__u64 total[MAX_BACKENDS];
	__u64 suspect[MAX_BACKENDS]; /* last choice until then: it refused */
	__u64 refused[MAX_BACKENDS]; /* SYNs answered by a reset or an ICMP error */
	__u64 redispatched[MAX_BACKENDS]; /* flows offered to others */
	__u64 resets[MAX_BACKENDS]; /* flows that ended by one */
	__u64 evicted[MAX_BACKENDS]; /* half-open flows that gave way */
};

/* A backend's handshakes by the time they took, SYN to SYN-ACK. */
struct connect_time {
	__u64 sum_ns;
	__u64 count[CONNECT_TIME_BUCKETS]; /* below 2^n microseconds */
};

/*
 * A half-open flow: what it takes to offer it to another backend, and to evict
 * it. They are a ring. Each SYN takes a ticket, whose low bits are a place, and
 * whoever has that place from an older ticket and is still half-open goes.
 */
struct handshake {
	struct flow_key key; /* of the forward half */
	__u32 ticket; /* the flow has the same one while this is about it */
	__u64 tried; /* slots, as bits */
	__u64 opened_ns;
	__be32 seq;
	__be16 window;
	__u8 options_len; /* bytes, a multiple of four */
	__u8 tos; /* of the IP header */
	__u8 tcp_flags; /* the byte with SYN; ECN asks by CWR and ECE */
	__u8 anew; /* it is always made from this: what the client sends may differ */
	__u8 pad[2];
	__be32 flow_label; /* IPv6: the first word of the header */
	__u8 options[MAX_TCP_OPTIONS]; /* zero beyond options_len */
};

/* Key of allowed: bits of service and network. */
struct network {
	__u32 bits; /* 32 for the service, and those of the prefix */
	__be32 service;
	struct addr addr;
};

/* Per CPU. In: client to backend. */
struct traffic {
	__u64 packets_in;
	__u64 bytes_in;
	__u64 packets_out;
	__u64 bytes_out;
};

/* A token bucket for all CPUs. */
struct bucket {
	__u64 refilled;
	__s64 tokens;
};

/* The SYN budget of those sources that have one hash. */
struct source {
	struct bucket bucket;
	__u64 known_until; /* a handshake was completed */
};

/*
 * Requests to the programs that the daemon runs by BPF_PROG_RUN. They travel
 * as the test packet: programs of type syscall, whose context this would be,
 * may not touch a map with a lock on older kernels.
 */
struct reap_request {
	struct flow_key key; /* the forward half's */
	__u32 force; /* reap whatever was seen since */
	__u32 seen; /* reap only if neither half saw a packet after this */
	__u32 reaped; /* answer: 1, or 0 when it is busy again or gone */
};

#define REAP_BATCH 64

struct clear_request {
	__u32 service; /* id */
	__u32 slot;
	__u64 pad;
};

/* A flow has changed: what the other node has to know of it. */
struct flow_event {
	struct flow_key key; /* of the forward half */
	__u32 gone; /* it is forgotten */
	struct flow forward; /* as it is now */
	__u32 reverse_ack; /* of the reverse half; 0: not at hand */
	__u32 at; /* jiffies, the low half: when it changed */
};

/* What became of a replica. */
enum replica_answer {
	REPLICA_STORED = 1,
	REPLICA_REMOVED = 2,
	REPLICA_UNKNOWN = 3, /* to be removed, but not there */
	REPLICA_OWN = 4, /* this node serves the address itself */
	REPLICA_NO_ROOM = 5,
	REPLICA_BUSY = 6, /* somebody else is replacing the entry */
};

/* A flow of the other node's, to be stored or to be removed. */
struct replica {
	struct flow_key key; /* of the forward half */
	__u32 gone; /* remove it */
	struct flow forward; /* but for the checksum differences */
	__u32 reverse_ack; /* 0: not known */
	__u16 reverse_vip; /* index into leases */
	__u16 pad;
	__u64 reverse_packets;
	__u64 reverse_bytes;
	__u32 answer; /* enum replica_answer */
	__u32 pad2;
};

/* What time it is, on both clocks. */
struct clock_request {
	__u64 jiffies;
	__u64 ns;
};

#endif
