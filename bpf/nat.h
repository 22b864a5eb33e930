/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * nat.h: full NAT, both ways.
 *
 *   nat_open()     choose a backend, reserve a SNAT port, store both halves
 *   nat_rewrite()  addresses, ports, MAC addresses, TTL and both checksums
 *
 * A virtual address is the source towards the backend, so that a flow can move
 * to the other node together with it. Reserving a port is inserting the reverse
 * half under BPF_NOEXIST: atomic, and nothing to leak when the daemon dies.
 */
#ifndef PGSTEER_NAT_H
#define PGSTEER_NAT_H

/* What it takes to open a flow. */
struct opening {
	struct flow_key key;
	__u32 bytes; /* of the SYN, which is the flow's first packet */
	__u64 now;
	__u64 excluded; /* slots that are not to have it; those tried are added */
	__u32 ticket;
	__u8 client_mac[6];
	__u16 vip; /* index into leases */
};

/* Where a flow is put together: too much for the stack. */
struct scratch {
	struct opening opening;
	struct flow forward;
	struct flow_key key; /* of the reverse half */
	struct flow reverse;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct scratch);
} scratches SEC(".maps");

/*
 * Each function asks for it anew: before kernel 6.2 or so what a global
 * function gets by reference is no key for a map.
 */
static __always_inline struct scratch *scratch(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&scratches, &zero);
}

static __always_inline __u16 ip_delta(const struct flow_key *from,
				      const struct flow_key *to)
{
	/* The addresses are the first words of a key. */
	return csum_delta((__be32 *)from, (__be32 *)to, 2 * ADDR_WORDS);
}

static __always_inline __u16 tcp_delta(const struct flow_key *from,
				       const struct flow_key *to)
{
	return csum_delta((__be32 *)from, (__be32 *)to, sizeof(*from) / 4);
}

static __always_inline void half_init(struct flow *half,
				      const struct opening *o, __u32 backend)
{
	__builtin_memset(half, 0, sizeof(*half));
	mac_copy(half->client_mac, o->client_mac);
	half->backend = backend;
	half->vip = o->vip;
	half->created = age_units(o->now);
	half->seen = age_units(o->now);
}

/*
 * Reserve a port: 0, or the error of the last insertion. Errors of map helpers
 * are kept as int: before kernel 6.4 the upper half of the register is garbage.
 */
__noinline int reserve_port(const struct service *service,
			    const struct backend *backend)
{
	struct scratch *s = scratch();
	const struct opening *o;
	struct flow *forward, *reverse;
	struct flow_key *key;
	int err = -1;

	if (!s || !service || !backend)
		return -1;
	o = &s->opening;
	forward = &s->forward;
	reverse = &s->reverse;
	key = &s->key;
	key->saddr = backend->addr;
	key->sport = backend->port;
	half_init(reverse, o, forward->backend);
	reverse->rewritten.saddr = o->key.daddr;
	reverse->rewritten.daddr = o->key.saddr;
	reverse->rewritten.sport = o->key.dport;
	reverse->rewritten.dport = o->key.sport;
	for (int i = 0; i < SNAT_PROBES; i++) {
		__u32 random = bpf_get_prandom_u32();
		__u32 nat = 0;

		if (service->nat_count > 1)
			nat = (random >> 24) % service->nat_count;
		nat &= MAX_NAT_ADDRS - 1;
		key->daddr = service->nat[nat];
		key->dport =
			bpf_htons(snat_low + (random & 0xffffff) % snat_count);
		reverse->vip = service->nat_vips[nat];
		reverse->ip_delta = ip_delta(key, &reverse->rewritten);
		reverse->tcp_delta = tcp_delta(key, &reverse->rewritten);
		err = bpf_map_update_elem(&flows, key, reverse, BPF_NOEXIST);
		if (err != -EEXIST)
			break;
	}
	if (err)
		return err;
	forward->rewritten.saddr = key->daddr;
	forward->rewritten.daddr = key->saddr;
	forward->rewritten.sport = key->dport;
	forward->rewritten.dport = key->sport;
	return 0;
}

/* Why pick() found nobody. */
static __always_inline enum verdict nobody(const struct service *service,
					   int slot)
{
	if (slot != PICK_FULL)
		return TX_RST_NO_BACKEND;
	return service->flags & SERVICE_DROP_WHEN_FULL ? DROP_FULL :
							 TX_RST_FULL;
}

/*
 * Open a flow for a SYN, as scratch()->opening says. On success
 * scratch()->forward is a copy of the forward half, the slot has its bit in
 * excluded and the verdict is TX_NEW; otherwise the verdict says why not, and
 * nothing is left behind.
 */
__noinline int nat_open(const struct service *service)
{
	struct scratch *s = scratch();
	enum verdict verdict = TX_RST_NO_BACKEND;
	struct flow *forward;
	struct opening *o;
	int err;

	if (!s || !service)
		return DROP_RACE;
	o = &s->opening;
	forward = &s->forward;
	half_init(forward, o, 0);
	forward->flags = FLOW_FORWARD;
	forward->ticket = o->ticket;
	forward->packets = 1;
	forward->bytes = o->bytes;
	/* Unrolled: before kernel 6.4 there may be no calls inside a loop. */
#pragma clang loop unroll(full)
	for (int i = 0; i < BACKEND_TRIES; i++) {
		struct backend *backend;
		__u32 index;
		int slot = pick(service->id, o->excluded, o->now);

		if (slot < 0 || slot >= MAX_BACKENDS)
			return verdict == TX_RST_NO_PORT ?
				       verdict :
				       nobody(service, slot);
		o->excluded |= 1ULL << (slot & 63);
		index = service->id * MAX_BACKENDS + slot;
		forward->backend = index;
		backend = bpf_map_lookup_elem(&backends, &index);
		if (!backend) {
			load_cancel(index);
			return TX_RST_NO_BACKEND;
		}
		err = reserve_port(service, backend);
		if (!err)
			goto reserved;
		load_cancel(index);
		if (err == -E2BIG)
			return TX_RST_TABLE_FULL;
		if (err != -EEXIST)
			return DROP_RACE;
		/* Its ports are taken, by flows in TIME-WAIT perhaps: the next. */
		verdict = TX_RST_NO_PORT;
	}
	return verdict;

reserved:
	forward->ip_delta = ip_delta(&o->key, &forward->rewritten);
	forward->tcp_delta = tcp_delta(&o->key, &forward->rewritten);
	err = bpf_map_update_elem(&flows, &o->key, forward, BPF_NOEXIST);
	if (!err)
		return TX_NEW;
	bpf_map_delete_elem(&flows, &s->key);
	load_cancel(forward->backend);
	/* EEXIST: the same SYN on another CPU won; the client sends it again. */
	return err == -E2BIG ? TX_RST_TABLE_FULL : DROP_RACE;
}

/* Rewrite the packet as its half says, towards dmac. */
static __always_inline void nat_rewrite(struct packet *p,
					const struct flow *half,
					const __u8 *dmac)
{
	mac_copy(p->eth->h_source, p->eth->h_dest);
	mac_copy(p->eth->h_dest, dmac);
	ip_forward(p->ip, &half->rewritten.saddr, &half->rewritten.daddr,
		   half->ip_delta);
	p->tcp->source = half->rewritten.sport;
	p->tcp->dest = half->rewritten.dport;
	p->tcp->check = csum_update(p->tcp->check, half->tcp_delta);
}

#endif
