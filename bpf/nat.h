/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * nat.h: full NAT, both ways.
 *
 *   nat_open()     choose a backend, reserve a SNAT port, store both halves
 *   nat_rewrite()  addresses, ports, MAC addresses, TTL and both checksums
 *
 * The VIP is the source towards the backend, so that a flow can move to the
 * other node together with the VIP. Reserving a port is inserting the reverse
 * half under BPF_NOEXIST: atomic, and nothing to leak when the daemon dies.
 */
#ifndef PGSTEER_NAT_H
#define PGSTEER_NAT_H

/* The parts of a packet that the program works on. */
struct packet {
	struct ethhdr *eth;
	struct iphdr *ip;
	struct tcphdr *tcp;
	struct flow_key key;
	__u64 now;
	__u16 len; /* IP total length */
};

/* What it takes to open a flow. */
struct opening {
	struct flow_key key;
	__u8 client_mac[6];
	__u8 pad[2];
	__u32 service; /* id */
	__u64 now;
	__u64 excluded; /* slots that are not to have it; those tried are added */
};

static __always_inline __u32 ip_delta(const struct flow_key *from,
				      const struct flow_key *to)
{
	/* saddr and daddr are the first eight bytes of the key. */
	return bpf_csum_diff((__be32 *)from, 8, (__be32 *)to, 8, 0);
}

static __always_inline __u32 tcp_delta(const struct flow_key *from,
				       const struct flow_key *to)
{
	return bpf_csum_diff((__be32 *)from, sizeof(*from), (__be32 *)to,
			     sizeof(*to), 0);
}

/*
 * Reserve a port: 0, or the error of the last insertion. Errors of map helpers
 * are kept as int: before kernel 6.4 the upper half of the register is garbage.
 */
static __noinline int reserve_port(const struct opening *o,
				   const struct backend *backend,
				   struct flow *forward)
{
	struct flow reverse = {
		.rewritten = {
			.saddr = o->key.daddr,
			.daddr = o->key.saddr,
			.sport = o->key.dport,
			.dport = o->key.sport,
		},
		.backend = forward->backend,
		.created = o->now,
		.seen = o->now,
	};
	struct flow_key key = {
		.saddr = backend->addr,
		.daddr = o->key.daddr,
		.sport = backend->port,
	};
	int err = -1;

	__builtin_memcpy(reverse.client_mac, o->client_mac, 6);
	reverse.ip_delta = ip_delta(&key, &reverse.rewritten);
	for (int i = 0; i < SNAT_PROBES; i++) {
		__u32 port = snat_low + bpf_get_prandom_u32() % snat_count;

		key.dport = bpf_htons(port);
		reverse.tcp_delta = tcp_delta(&key, &reverse.rewritten);
		err = bpf_map_update_elem(&flows, &key, &reverse, BPF_NOEXIST);
		if (err != -EEXIST)
			break;
	}
	if (err)
		return err;
	forward->rewritten.saddr = key.daddr;
	forward->rewritten.daddr = key.saddr;
	forward->rewritten.sport = key.dport;
	forward->rewritten.dport = key.sport;
	return 0;
}

/*
 * Open a flow for a SYN. On success *half is the forward half, the slot has
 * its bit in o->excluded and the verdict is TX_NEW; otherwise the verdict says
 * why not, and nothing is left behind.
 */
static __noinline enum verdict nat_open(struct opening *o, struct flow **half)
{
	struct flow forward = {
		.flags = FLOW_FORWARD,
		.created = o->now,
		.seen = o->now,
	};
	enum verdict verdict = TX_RST_NO_BACKEND;
	struct flow_key reverse_key;
	int err;

	__builtin_memcpy(forward.client_mac, o->client_mac, 6);
	for (int i = 0; i < BACKEND_TRIES; i++) {
		struct backend *backend;
		__u32 index;
		int slot = pick(o->service, o->excluded, o->now);

		if (slot < 0 || slot >= MAX_BACKENDS)
			return verdict;
		o->excluded |= 1ULL << (slot & 63);
		index = o->service * MAX_BACKENDS + slot;
		forward.backend = index;
		backend = bpf_map_lookup_elem(&backends, &index);
		if (!backend) {
			load_release(index);
			return TX_RST_NO_BACKEND;
		}
		err = reserve_port(o, backend, &forward);
		if (!err)
			goto reserved;
		load_release(index);
		if (err == -E2BIG)
			return TX_RST_TABLE_FULL;
		if (err != -EEXIST)
			return DROP_RACE;
		/* Its ports are taken, by flows in TIME-WAIT perhaps: the next. */
		verdict = TX_RST_NO_PORT;
	}
	return verdict;

reserved:
	forward.ip_delta = ip_delta(&o->key, &forward.rewritten);
	forward.tcp_delta = tcp_delta(&o->key, &forward.rewritten);
	err = bpf_map_update_elem(&flows, &o->key, &forward, BPF_NOEXIST);
	if (!err) {
		*half = bpf_map_lookup_elem(&flows, &o->key);
		return *half ? TX_NEW : DROP_RACE;
	}
	reverse_key = flow_peer_key(&forward);
	bpf_map_delete_elem(&flows, &reverse_key);
	load_release(forward.backend);
	/* EEXIST: the same SYN on another CPU won; the client sends it again. */
	return err == -E2BIG ? TX_RST_TABLE_FULL : DROP_RACE;
}

/* Rewrite the packet as its half says, towards dmac. */
static __always_inline void nat_rewrite(struct packet *p,
					const struct flow *half,
					const __u8 *dmac)
{
	/* The TTL is the low byte of its 16-bit word: -1 is + ~1. */
	const __u64 ttl_delta = bpf_htons(0xfeff);

	__builtin_memcpy(p->eth->h_source, p->eth->h_dest, 6);
	__builtin_memcpy(p->eth->h_dest, dmac, 6);
	p->ip->ttl--;
	p->ip->saddr = half->rewritten.saddr;
	p->ip->daddr = half->rewritten.daddr;
	p->ip->check =
		csum_update(p->ip->check, (__u64)half->ip_delta + ttl_delta);
	p->tcp->source = half->rewritten.sport;
	p->tcp->dest = half->rewritten.dport;
	p->tcp->check = csum_update(p->tcp->check, half->tcp_delta);
}

#endif
