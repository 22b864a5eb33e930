/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * replica.h: a program that is never attached. The daemon runs it for each flow
 * that the other node has told of, so that these are stored, counted and
 * removed where packets do it, in one step each.
 */
#ifndef PGSTEER_REPLICA_H
#define PGSTEER_REPLICA_H

static __always_inline bool key_equal(const struct flow_key *a,
				      const struct flow_key *b)
{
	const word *left = (const void *)a, *right = (const void *)b;
	__u32 difference = 0;

	for (int i = 0; i < sizeof(*a) / sizeof(word); i++)
		difference |= left[i] ^ right[i];
	return !difference;
}

/* What packets have changed since the other node told of the flow last. */
static __always_inline void replica_update(struct flow *forward,
					   const struct replica *r)
{
	struct flow_key key = flow_peer_key(forward);
	struct flow *reverse = bpf_map_lookup_elem(&flows, &key);

	if (r->forward.flags & FLOW_FIN_CLIENT)
		forward->ticket = r->forward.ticket;
	__sync_fetch_and_and(&forward->flags, r->forward.flags | FLOW_FORWARD |
						      FLOW_CLOSED | FLOW_TAKEN);
	__sync_fetch_and_or(&forward->flags,
			    r->forward.flags & ~(FLOW_CLOSED | FLOW_TAKEN));
	if (r->forward.flags & FLOW_CLOSED)
		flow_close(forward);
	mac_copy(forward->client_mac, r->forward.client_mac);
	forward->seen = r->forward.seen;
	forward->packets = r->forward.packets;
	forward->bytes = r->forward.bytes;
	if (r->forward.ack)
		forward->ack = r->forward.ack;
	if (!reverse)
		return;
	mac_copy(reverse->client_mac, r->forward.client_mac);
	reverse->seen = r->forward.seen;
	if (r->reverse_ack)
		reverse->ack = r->reverse_ack;
	if (r->reverse_packets) {
		reverse->packets = r->reverse_packets;
		reverse->bytes = r->reverse_bytes;
	}
}

/* Both halves, in the scratch space, out of the request. */
static __always_inline void replica_halves(struct scratch *s,
					   const struct replica *r)
{
	s->opening.key = r->key;
	s->forward = r->forward;
	s->forward.flags |= FLOW_FORWARD;
	s->forward.flags &= ~FLOW_TAKEN;
	s->forward.pad = 0;
	s->forward.ip_delta = ip_delta(&s->opening.key, &s->forward.rewritten);
	s->forward.tcp_delta =
		tcp_delta(&s->opening.key, &s->forward.rewritten);
	if (!(r->forward.flags & FLOW_FIN_CLIENT))
		s->forward.ticket = 0; /* a place in the other node's ring */
	s->key = flow_peer_key(&s->forward);
	__builtin_memset(&s->reverse, 0, sizeof(s->reverse));
	s->reverse.rewritten = flow_mirrored(&s->opening.key);
	s->reverse.ip_delta = ip_delta(&s->key, &s->reverse.rewritten);
	s->reverse.tcp_delta = tcp_delta(&s->key, &s->reverse.rewritten);
	mac_copy(s->reverse.client_mac, r->forward.client_mac);
	s->reverse.backend = r->forward.backend;
	s->reverse.vip = r->reverse_vip;
	s->reverse.created = r->forward.created;
	s->reverse.seen = r->forward.seen;
	s->reverse.ack = r->reverse_ack;
	s->reverse.packets = r->reverse_packets;
	s->reverse.bytes = r->reverse_bytes;
}

/*
 * Somebody has the port: a flow that the other node must have forgotten, or it
 * would not have given the port to this one.
 */
static __always_inline void replica_evict(struct scratch *s)
{
	struct flow *reverse = bpf_map_lookup_elem(&flows, &s->key);
	struct flow *forward;
	struct flow_key key;

	if (!reverse)
		return;
	key = flow_peer_key(reverse);
	forward = bpf_map_lookup_elem(&flows, &key);
	if (!forward)
		bpf_map_delete_elem(&flows, &s->key);
	else if (flow_take(forward, &key))
		flow_remove(forward, &key);
}

static __noinline int replica_insert(bool own)
{
	struct scratch *s = scratch();
	struct load *load;
	__u32 slot;
	int err;

	if (!s)
		return REPLICA_BUSY;
	err = bpf_map_update_elem(&flows, &s->key, &s->reverse, BPF_NOEXIST);
	if (err == -EEXIST && own)
		return REPLICA_OWN;
	if (err == -EEXIST) {
		replica_evict(s);
		err = bpf_map_update_elem(&flows, &s->key, &s->reverse,
					  BPF_NOEXIST);
	}
	if (err)
		return err == -EEXIST ? REPLICA_BUSY : REPLICA_NO_ROOM;
	load = load_of(s->forward.backend);
	slot = s->forward.backend % MAX_BACKENDS;
	if (load) {
		__sync_fetch_and_add(&load->total[slot], 1);
		if (!(s->forward.flags & FLOW_CLOSED))
			__sync_fetch_and_add(&load->active[slot], 1);
	}
	err = bpf_map_update_elem(&flows, &s->opening.key, &s->forward,
				  BPF_NOEXIST);
	if (!err)
		return REPLICA_STORED;
	bpf_map_delete_elem(&flows, &s->key);
	if (load) {
		__sync_fetch_and_add(&load->total[slot], -1);
		if (!(s->forward.flags & FLOW_CLOSED))
			__sync_fetch_and_add(&load->active[slot], -1);
	}
	return err == -EEXIST ? REPLICA_BUSY : REPLICA_NO_ROOM;
}

/* Whether what is here is an earlier stage of the same flow. */
static __always_inline bool replica_is_of(const struct replica *r,
					  const struct flow *forward)
{
	/* What was closed opens no more: it is another one by the same port. */
	return key_equal(&forward->rewritten, &r->forward.rewritten) &&
	       (r->gone || r->forward.flags & FLOW_CLOSED ||
		!(forward->flags & FLOW_CLOSED));
}

static __always_inline int replicate_one(const struct replica *r)
{
	struct flow_key key = r->key;
	struct scratch *s = scratch();
	struct flow *forward;
	bool own;

	if (!s)
		return REPLICA_BUSY;
	own = leased(r->forward.vip, bpf_jiffies64());
	forward = bpf_map_lookup_elem(&flows, &key);
	/*
	 * What this node serves it knows better. But one of which it knows
	 * nothing was begun a moment before the other node gave way, and comes
	 * late.
	 */
	if (own && (forward || r->gone))
		return REPLICA_OWN;
	if (forward && !(forward->flags & FLOW_FORWARD))
		return REPLICA_BUSY; /* a client with a backend's address */
	if (forward && replica_is_of(r, forward)) {
		if (!r->gone) {
			replica_update(forward, r);
			return REPLICA_STORED;
		}
	} else if (r->gone) {
		return REPLICA_UNKNOWN;
	}
	if (forward) {
		/* Gone, or an older one from the same port. */
		if (!flow_take(forward, &key))
			return REPLICA_BUSY;
		flow_remove(forward, &key);
	}
	if (r->gone)
		return REPLICA_REMOVED;
	replica_halves(s, r);
	return replica_insert(own);
}

SEC("xdp")
int replicate(struct xdp_md *ctx)
{
	struct replica *r = (void *)(long)ctx->data;

	if ((void *)(r + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	r->answer = replicate_one(r);
	return XDP_PASS;
}

/* Keeps the type in the BTF, from which the Go side gets it. */
const struct replica *unused_replica __attribute__((unused));

#endif
