/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * flow.h: the life of a flow.
 *
 *   flow_mirrored()  the key of what answers a packet with a key
 *   flow_peer_key()  the key of a half's other half
 *   flow_track_*()   a packet with SYN, FIN or RST, or the client's first ACK
 *   flow_close()     the only place where an active count goes down
 *   flow_remove()    close and delete both halves
 */
#ifndef PGSTEER_FLOW_H
#define PGSTEER_FLOW_H

/* The parts of a packet that the program works on. */
struct packet {
	struct ethhdr *eth;
	ip_header *ip;
	struct tcphdr *tcp;
	__u64 now;
	struct flow_key key;
	__u32 len; /* IP header and payload */
	struct l2 l2;
	/*
	 * It had a flow, which is gone: a new one begins. In 64 bits the verifier
	 * knows whether.
	 */
	__u64 fresh;
};

static __always_inline __u32 payload_len(const struct packet *p)
{
	return p->len - sizeof(*p->ip) - p->tcp->doff * 4;
}

typedef __u64 __attribute__((may_alias)) double_word;
typedef __u32 __attribute__((may_alias)) word;

/*
 * The addresses in as few stores as possible: the hash reads the key back at
 * once, and a load of what two stores wrote has to wait for both to leave the
 * store buffer, which is some nanoseconds of each packet.
 */
static __always_inline void key_set_addrs(struct flow_key *key,
					  const ip_header *ip)
{
	const double_word *from = (const void *)&ip->saddr;
	double_word *to = (void *)key;

	for (int i = 0; i < 2 * sizeof(struct addr) / 8; i++)
		to[i] = from[i];
}

static __always_inline void key_set_ports(struct flow_key *key,
					  const struct tcphdr *tcp)
{
	*(word *)&key->sport = *(const word *)&tcp->source;
}

/* A time as flows have it. */
static __always_inline __u32 age_units(__u64 now)
{
	return now >> AGE_SHIFT;
}

/* The key of what answers such a packet. */
static __always_inline struct flow_key flow_mirrored(const struct flow_key *key)
{
	struct flow_key mirrored = {
		.saddr = key->daddr,
		.daddr = key->saddr,
		.sport = key->dport,
		.dport = key->sport,
	};

	return mirrored;
}

static __always_inline struct flow_key flow_peer_key(const struct flow *half)
{
	return flow_mirrored(&half->rewritten);
}

static __always_inline struct load *load_of(__u32 backend)
{
	__u32 service = backend / MAX_BACKENDS;

	return bpf_map_lookup_elem(&loads, &service);
}

/* Take one flow off its backend's active count. */
static __always_inline void load_release(__u32 backend)
{
	struct load *load = load_of(backend);

	if (load)
		__sync_fetch_and_add(&load->active[backend % MAX_BACKENDS], -1);
}

/* The same for one that came to nothing: it was never there. */
static __always_inline void load_cancel(__u32 backend)
{
	struct load *load = load_of(backend);

	if (!load)
		return;
	__sync_fetch_and_add(&load->active[backend % MAX_BACKENDS], -1);
	__sync_fetch_and_add(&load->total[backend % MAX_BACKENDS], -1);
}

/*
 * A flow stops being counted when both sides have sent FIN, at a reset, or
 * when it is reaped. FLOW_CLOSED is set by whoever comes first, so the count
 * goes down once, whichever CPUs see the last packets. True for that one.
 */
static __always_inline bool flow_close(struct flow *forward)
{
	__u32 old = __sync_fetch_and_or(&forward->flags, FLOW_CLOSED);

	if (old & FLOW_CLOSED)
		return false;
	if (!(old &
	      FLOW_FORWARD)) { /* another's half by now: see flow_take() */
		__sync_fetch_and_and(&forward->flags, ~FLOW_CLOSED);
		return false;
	}
	load_release(forward->backend);
	return true;
}

static __always_inline void flow_reset(struct flow *forward)
{
	struct load *load = load_of(forward->backend);

	__sync_fetch_and_or(&forward->flags, FLOW_RESET);
	if (flow_close(forward) && load)
		__sync_fetch_and_add(
			&load->resets[forward->backend % MAX_BACKENDS], 1);
}

static __always_inline struct handshake *handshake_at(__u32 ticket)
{
	__u32 place = ticket & half_open_mask;

	return bpf_map_lookup_elem(&handshakes, &place);
}

/*
 * The handshake of a half-open flow; NULL when it has lost its place, or had it
 * on the other node.
 */
static __always_inline struct handshake *handshake_of(const struct flow *forward)
{
	struct handshake *syn = handshake_at(forward->ticket);

	return syn && syn->ticket && syn->ticket == forward->ticket ? syn :
								      NULL;
}

/* It is no longer half-open: whoever gets its place need not look for it. */
static __always_inline void handshake_end(const struct flow *forward)
{
	struct handshake *syn = handshake_of(forward);

	if (syn)
		syn->ticket = 0;
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

/* Called until the flow is established, and for FIN and RST. */
static __noinline void flow_track_client(struct flow *forward,
					 const struct packet *p)
{
	__u8 flags = tcp_flags(p->tcp);
	__u32 before = forward->flags;

	if (flags & TCP_RST) {
		struct flow_key key = flow_peer_key(forward);

		if (rst_is_valid(bpf_map_lookup_elem(&flows, &key), p->tcp))
			flow_reset(forward);
	} else if (flags & TCP_ACK &&
		   (forward->flags & (FLOW_SYN_ACK | FLOW_ESTABLISHED)) ==
			   FLOW_SYN_ACK) {
		__sync_fetch_and_or(&forward->flags, FLOW_ESTABLISHED);
		source_known(&p->key.saddr, p->now);
		if (!(forward->flags & FLOW_FIN_CLIENT)) /* else no ticket */
			handshake_end(forward);
	}
	if (flags & TCP_FIN && !(flags & TCP_RST)) {
		if (!(forward->flags & FLOW_FIN_CLIENT))
			forward->ticket =
				bpf_ntohl(p->tcp->seq) + payload_len(p) + 1;
		if (__sync_fetch_and_or(&forward->flags, FLOW_FIN_CLIENT) &
		    FLOW_FIN_BACKEND)
			flow_close(forward);
	}
	if (forward->flags != before)
		tell_changed(&p->key, forward, 0);
}

/* Count how long the backend took to accept. */
__noinline int count_connect_time(__u32 backend, __u32 ticket)
{
	struct handshake *syn = handshake_at(ticket);
	struct connect_time *times =
		bpf_map_lookup_elem(&connect_times, &backend);
	__u64 ns, us;
	__u32 bucket = 0;

	if (!syn || !times || syn->ticket != ticket)
		return 0;
	ns = bpf_ktime_get_ns() - syn->opened_ns;
	us = ns / 1000;
	for (int i = 0; i < CONNECT_TIME_BUCKETS - 1; i++)
		bucket += us >> i != 0;
	if (bucket >= CONNECT_TIME_BUCKETS)
		return 0;
	__sync_fetch_and_add(&times->sum_ns, ns);
	__sync_fetch_and_add(&times->count[bucket], 1);
	return 0;
}

/* Called for SYN, FIN and RST only: data takes no second lookup. */
static __noinline void flow_track_backend(const struct flow *reverse,
					  const struct packet *p)
{
	struct flow_key key = flow_peer_key(reverse);
	struct flow *forward = bpf_map_lookup_elem(&flows, &key);
	__u8 flags = tcp_flags(p->tcp);
	__u32 before, old;

	if (!forward)
		return;
	before = forward->flags;
	if (flags & TCP_RST) {
		if (rst_is_valid(forward, p->tcp))
			flow_reset(forward);
	} else if (flags & TCP_SYN) {
		old = __sync_fetch_and_or(&forward->flags, FLOW_SYN_ACK);
		if (!(old & (FLOW_SYN_ACK | FLOW_FIN_CLIENT)))
			count_connect_time(forward->backend, forward->ticket);
	} else if (flags & TCP_FIN) {
		old = __sync_fetch_and_or(&forward->flags, FLOW_FIN_BACKEND);
		if (old & FLOW_FIN_BACKEND)
			return;
		/*
		 * Who closes first holds TIME-WAIT (RFC 9293, 3.6), and a
		 * backend that does so may not see its port again for a while.
		 */
		if (!(old & FLOW_FIN_CLIENT) ||
		    (__s32)(bpf_ntohl(p->tcp->ack_seq) - forward->ticket) < 0)
			__sync_fetch_and_or(&forward->flags, FLOW_TIME_WAIT);
		if (old & FLOW_FIN_CLIENT)
			flow_close(forward);
	}
	if (forward->flags != before)
		tell_changed(&key, forward, reverse->ack);
}

/*
 * Whoever takes a flow removes it; nobody else does. The table gives the memory
 * of an entry that is deleted to the next one at once, and a virtual CPU can
 * stand still for milliseconds after a lookup: what was taken has to be looked
 * up again, to see that it is still what it was. Once it is taken it stays.
 */
static __always_inline bool flow_take(struct flow *forward,
				      const struct flow_key *key)
{
	struct flow *now;

	if (__sync_fetch_and_or(&forward->flags, FLOW_TAKEN) & FLOW_TAKEN)
		return false;
	now = bpf_map_lookup_elem(&flows, key);
	/* Lest the compiler go on with this one, of which less is known. */
	asm volatile("" : "+r"(now));
	if (now == forward)
		return true;
	__sync_fetch_and_and(&forward->flags, ~FLOW_TAKEN);
	/* Whose it is may have been changed meanwhile, and was not told of. */
	if (replicating)
		count_lost_event();
	return false;
}

/* The caller has taken it. */
static __always_inline void flow_remove(struct flow *forward,
					const struct flow_key *key)
{
	struct flow_key peer = flow_peer_key(forward);

	tell_gone(key, forward);
	flow_close(forward);
	if (!(forward->flags & (FLOW_ESTABLISHED | FLOW_FIN_CLIENT)))
		handshake_end(forward);
	bpf_map_delete_elem(&flows, &peer);
	bpf_map_delete_elem(&flows, key);
}

#endif
