/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * types.h: what is kept in the maps, shared with Go through BTF.
 *
 * Addresses and ports are in network order throughout (__be32, __be16); times
 * are CLOCK_MONOTONIC nanoseconds. Padding is explicit: the maps compare and
 * hash raw bytes.
 */
#ifndef PGSTEER_TYPES_H
#define PGSTEER_TYPES_H

/* A packet's addresses as it was received, in either direction. */
struct flow_key {
	__be32 saddr;
	__be32 daddr;
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
};

/*
 * One half of a flow; the other half is found under the key
 * {new daddr, new saddr, new dport, new sport}.
 */
struct flow {
	struct flow_key rewritten; /* the packet's addresses when it leaves */
	__u8 client_mac[6]; /* MAC address the client is reached through */
	__u16 backend; /* index into backends: service * MAX_BACKENDS + slot */
	__u32 ip_delta; /* checksum difference of the IP addresses */
	__u32 tcp_delta; /* the same with the ports */
	__u32 flags; /* enum flow_flag */
	__u64 created;
	__u64 seen; /* last packet */
	__u64 packets;
	__u64 bytes; /* IP total length */
	__u32 ack; /* newest acknowledgement seen, host order; 0: none yet */
	__u32 pad;
};

/* A virtual address and this node's right to answer for it. */
struct vip {
	__u64 lease_until; /* silent about the address from then on */
	__u64 since; /* of state */
	__u8 state; /* 0 init, 1 backup, 2 active: for the tools only */
	__u8 vrid;
	__u8 priority;
	__u8 pad[5];
	char router[NAME_LEN];
};

struct service_key {
	__be32 addr;
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

/* What the scheduler must know of a backend. */
struct slot {
	__u16 weight; /* 0: the slot is free */
	__u8 state; /* enum backend_state */
	__u8 reachable; /* the next hop's MAC address is known */
};

/* What a VIP and port lead to. */
struct service {
	__u32 id; /* index into schedules and loads, and part of a backend's */
	char name[NAME_LEN];
};

/* What the scheduler must know of a service; changed in place by the daemon. */
struct schedule {
	__u32 mask; /* slots are 0 to mask; a power of two less one */
	__u32 scheduler; /* pkg/lb.Scheduler; 0 is least connections */
	struct slot slots[MAX_BACKENDS];
};

/* What the rewrite must know of a backend. */
struct backend {
	__be32 addr;
	__be16 port;
	__u8 mac[6]; /* next hop, kept by the daemon */
	__u8 pad[4];
	char name[NAME_LEN];
};

struct backend_key {
	__be32 addr;
	__be16 port;
	__u16 pad;
};

/*
 * A service's active counts: a map value of their own, so that rewriting the
 * service never touches them. The lock makes choosing and counting one step.
 */
struct load {
	struct bpf_spin_lock lock;
	__u32 rotor; /* where the next scan begins: ties rotate */
	__s64 active[MAX_BACKENDS];
	__u64 total[MAX_BACKENDS];
	__u64 refused[MAX_BACKENDS]; /* SYNs answered by a reset */
	__u64 suspect[MAX_BACKENDS]; /* last choice until then: it refused */
};

/*
 * What it takes to offer a half-open flow to another backend: the client's SYN
 * and who has had it.
 */
struct handshake {
	__u64 tried; /* slots, as bits */
	__be32 seq;
	__be16 window;
	__u8 options_len; /* bytes, a multiple of four */
	__u8 pad;
	__u8 options[MAX_TCP_OPTIONS]; /* zero beyond options_len */
};

/* Per CPU. In: client to backend. */
struct traffic {
	__u64 packets_in;
	__u64 bytes_in;
	__u64 packets_out;
	__u64 bytes_out;
};

/* Per CPU: tokens for resets. */
struct bucket {
	__u64 refilled;
	__u64 tokens;
};

/*
 * Requests to the programs that the daemon runs by BPF_PROG_RUN. They travel
 * as the test packet: programs of type syscall, whose context this would be,
 * may not touch a map with a lock on older kernels.
 */
struct reap_request {
	struct flow_key key; /* the forward half's */
	__u32 force; /* reap whatever was seen since */
	__u64 seen; /* reap only if neither half saw a packet after this */
	__u32 reaped; /* answer: 1, or 0 when it is busy again or gone */
	__u32 pad;
};

#define REAP_BATCH 64

struct clear_request {
	__u32 service; /* id */
	__u32 slot;
	__u64 pad;
};

#endif
