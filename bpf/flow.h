/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * flow.h: the life of a flow.
 *
 *   flow_peer_key()  the key of a half's other half
 *   flow_track_*()   a packet with SYN, FIN or RST, or the client's first ACK
 *   flow_close()     the only place where an active count goes down
 *   flow_remove()    close and delete both halves
 */
#ifndef PGSTEER_FLOW_H
#define PGSTEER_FLOW_H

static __always_inline struct flow_key flow_peer_key(const struct flow *half)
{
	struct flow_key key = {
		.saddr = half->rewritten.daddr,
		.daddr = half->rewritten.saddr,
		.sport = half->rewritten.dport,
		.dport = half->rewritten.sport,
	};

	return key;
}

/* Take one flow off its backend's active count. */
static __always_inline void load_release(__u32 backend)
{
	__u32 service = backend / MAX_BACKENDS;
	struct load *load = bpf_map_lookup_elem(&loads, &service);

	if (load)
		__sync_fetch_and_add(&load->active[backend % MAX_BACKENDS], -1);
}

/*
 * A flow stops being counted when both sides have sent FIN, at a reset, or
 * when it is reaped. FLOW_CLOSED is set by whoever comes first, so the count
 * goes down once, whichever CPUs see the last packets.
 */
static __always_inline void flow_close(struct flow *forward)
{
	__u32 old = __sync_fetch_and_or(&forward->flags, FLOW_CLOSED);

	if (!(old & FLOW_CLOSED))
		load_release(forward->backend);
}

/*
 * Whether a reset ends the flow, going by what its receiver has acknowledged.
 * One that does not is sent on all the same: the receiver decides.
 */
static __always_inline bool rst_is_valid(const struct flow *receiver,
					 const struct tcphdr *tcp)
{
	return !receiver || !receiver->ack ||
	       bpf_ntohl(tcp->seq) - receiver->ack <= RST_WINDOW;
}

static __always_inline void flow_track_client(struct flow *forward,
					      const struct tcphdr *tcp)
{
	__u32 old;

	if (tcp->rst) {
		struct flow_key key = flow_peer_key(forward);

		if (!rst_is_valid(bpf_map_lookup_elem(&flows, &key), tcp))
			return;
		__sync_fetch_and_or(&forward->flags, FLOW_RESET);
		flow_close(forward);
		return;
	}
	if (tcp->ack && (forward->flags & (FLOW_SYN_ACK | FLOW_ESTABLISHED)) ==
				FLOW_SYN_ACK)
		__sync_fetch_and_or(&forward->flags, FLOW_ESTABLISHED);
	if (tcp->fin) {
		old = __sync_fetch_and_or(&forward->flags, FLOW_FIN_CLIENT);
		if (old & FLOW_FIN_BACKEND)
			flow_close(forward);
	}
}

/* Called for SYN, FIN and RST only: data takes no second lookup. */
static __always_inline void flow_track_backend(const struct flow *reverse,
					       const struct tcphdr *tcp)
{
	struct flow_key key = flow_peer_key(reverse);
	struct flow *forward = bpf_map_lookup_elem(&flows, &key);
	__u32 old;

	if (!forward)
		return;
	if (tcp->rst) {
		if (!rst_is_valid(forward, tcp))
			return;
		__sync_fetch_and_or(&forward->flags, FLOW_RESET);
		flow_close(forward);
	} else if (tcp->syn) {
		__sync_fetch_and_or(&forward->flags, FLOW_SYN_ACK);
	} else if (tcp->fin) {
		old = __sync_fetch_and_or(&forward->flags, FLOW_FIN_BACKEND);
		if (old & FLOW_FIN_CLIENT)
			flow_close(forward);
	}
}

/* The caller has made sure that nobody else removes the same flow. */
static __always_inline void flow_remove(struct flow *forward,
					const struct flow_key *key)
{
	struct flow_key peer = flow_peer_key(forward);

	flow_close(forward);
	bpf_map_delete_elem(&flows, &peer);
	bpf_map_delete_elem(&flows, key);
}

#endif
