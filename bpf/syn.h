/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * syn.h: half-open flows, and SYNs that are written anew.
 *
 *   take_ticket()   a place in the ring of half-open flows
 *   remember_syn()  keep what a backend has to be sent
 *   write_syn()     turn a packet, whatever it was, into that
 *
 * The client's address goes to the backend in a TCP option of the experimental
 * kind (RFC 6994), which backends that do not know it skip. It comes before the
 * client's own, because nothing is read after an end-of-list option. For IPv6
 * the address alone fits beside what Linux sends; the port is in the low 16
 * bits of the flow label of the SYN.
 */
#ifndef PGSTEER_SYN_H
#define PGSTEER_SYN_H

#define OPTION_EXPERIMENT 254 /* RFC 4727 */
#define OPTION_NOP 1
#define EXPERIMENT_ID 0x5053 /* "PS"; not registered */

#ifdef PGSTEER_IPV6
#define CLIENT_OPTION_WORDS 5
#define CLIENT_OPTION_LEN 20
#else
#define CLIENT_OPTION_WORDS 3
#define CLIENT_OPTION_LEN 10 /* and two bytes of padding */
#endif

/* The flow that had the place goes, if it is still half-open. */
__noinline int evict(const struct handshake *old)
{
	struct flow *forward;
	struct flow_key key;
	struct load *load;

	if (!old || !old->ticket)
		return 0; /* complete, or over */
	key = old->key;
	forward = bpf_map_lookup_elem(&flows, &key);
	if (!forward || forward->ticket != old->ticket ||
	    (forward->flags & (FLOW_FORWARD | FLOW_ESTABLISHED |
			       FLOW_FIN_CLIENT | FLOW_CLOSED)) != FLOW_FORWARD)
		return 0;
	if (!flow_take(forward, &key))
		return 0;
	load = load_of(forward->backend);
	if (load)
		__sync_fetch_and_add(
			&load->evicted[forward->backend % MAX_BACKENDS], 1);
	flow_remove(forward, &key);
	return 0;
}

static __noinline struct handshake *take_ticket(void)
{
	__u32 zero = 0;
	__u32 *last = bpf_map_lookup_elem(&tickets, &zero);
	struct handshake *syn;
	__u32 ticket;

	if (!last)
		return NULL;
	ticket = __sync_fetch_and_add(last, 1) + 1;
	syn = handshake_at(ticket);
	if (!syn)
		return NULL;
	evict(syn);
	syn->ticket = ticket;
	return syn;
}

/*
 * Whether options contain one in which a client calls itself another. It is
 * looked for at every byte: where options begin is a question that a stack may
 * answer otherwise. Four bytes of a timestamp are taken for one once in 2^24,
 * and other ones the second time.
 */
static __always_inline bool names_client(const __u8 *options)
{
	__u32 found = 0;

	/* Reckoned, not asked for: see scheduler.h. */
	for (int i = 0; i < MAX_TCP_OPTIONS - 3; i++) {
		__u32 other = (options[i] ^ OPTION_EXPERIMENT) |
			      (options[i + 2] ^ EXPERIMENT_ID >> 8) |
			      (options[i + 3] ^ (EXPERIMENT_ID & 0xff));

		found |= (other - 1) >> 31;
	}
	return found;
}

/*
 * Keep a SYN, with the client's address before its options if the service
 * wants that. False when the client names itself, and there is no room to
 * object: of two addresses the pooler believes none.
 */
static __noinline bool remember_syn(const struct packet *p, void *end,
				    struct handshake *syn, bool tell_client)
{
	__u32 theirs = p->tcp->doff - 5;
	__u32 *from = (void *)(p->tcp + 1);
	__u32 *to = (void *)syn->options;
	__u32 at = 0;

	syn->key = p->key;
	syn->opened_ns = bpf_ktime_get_ns();
	syn->tried = 0;
	syn->seq = p->tcp->seq;
	syn->window = p->tcp->window;
	syn->tos = ip_tos(p->ip);
	syn->tcp_flags = tcp_flags(p->tcp);
	syn->anew = tell_client;
	syn->flow_label = 0;
#ifdef PGSTEER_IPV6
	syn->flow_label = *(__be32 *)p->ip & bpf_htonl(0xfffff);
#endif
	if (tell_client &&
	    theirs <= MAX_TCP_OPTIONS / 4 - CLIENT_OPTION_WORDS) {
		to[0] = bpf_htonl(OPTION_EXPERIMENT << 24 |
				  CLIENT_OPTION_LEN << 16 | EXPERIMENT_ID);
		for (int i = 0; i < ADDR_WORDS; i++)
			to[1 + i] = p->key.saddr.word[i];
#ifdef PGSTEER_IPV6
		syn->flow_label = bpf_htonl(bpf_ntohs(p->key.sport));
#else
		to[2] = bpf_htonl((__u32)bpf_ntohs(p->key.sport) << 16 |
				  OPTION_NOP << 8 | OPTION_NOP);
#endif
		at = CLIENT_OPTION_WORDS;
		tell_client = false;
	}
	for (__u32 i = 0; i < MAX_TCP_OPTIONS / 4; i++, from++) {
		if (i >= theirs || (void *)(from + 1) > end ||
		    at >= MAX_TCP_OPTIONS / 4)
			break;
		to[at] = *from;
		at++;
	}
	syn->options_len = at * 4;
	for (__u32 i = 0; i < MAX_TCP_OPTIONS / 4; i++)
		if (i >= at)
			to[i] = 0;
	return !tell_client || !names_client(syn->options);
}

/*
 * Give the frame another length at its front, where every driver leaves room
 * for 256 bytes; a frame from a local stack has none at its end. The header
 * goes with it.
 */
static __always_inline bool resize_front(struct xdp_md *ctx,
					 const struct l2 *l2, __u32 len)
{
	struct ethhdr *eth;
	void *end;

	if (bpf_xdp_adjust_head(ctx, frame_len(ctx) - (long)len))
		return false;
	eth = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	if ((void *)(eth + 1) + MAX_TAGS * 4 > end)
		return false;
	*(__be16 *)((void *)eth + 12) = bpf_htons(ETH_P_FAMILY);
	if (l2->len >= sizeof(*eth) + 4) {
		*(__be32 *)((void *)eth + 12) = l2->tags[0];
		*(__be16 *)((void *)eth + 16) = bpf_htons(ETH_P_FAMILY);
	}
	if (l2->len >= sizeof(*eth) + 8) {
		*(__be32 *)((void *)eth + 16) = l2->tags[1];
		*(__be16 *)((void *)eth + 20) = bpf_htons(ETH_P_FAMILY);
	}
	return true;
}

/* False when it could not be done: the packet is lost then. */
__noinline int write_syn(struct xdp_md *ctx, const struct l2 *l2,
			 const struct flow *half, const struct handshake *syn)
{
	const struct flow_key *key;
	struct backend *backend;
	__u32 options_len, len, index;
	const __u32 *from;
	struct headers h;
	__u32 *to;
	__u64 sum;
	void *end;

	if (!l2 || !half || !syn)
		return false;
	key = &half->rewritten;
	from = (void *)syn->options;
	options_len = syn->options_len;
	len = sizeof(struct tcphdr) + options_len;
	index = half->backend;
	backend = bpf_map_lookup_elem(&backends, &index);
	if (!backend || !resize_front(ctx, l2, l2->len + sizeof(*h.ip) + len) ||
	    !find_headers(ctx, l2->len, &h))
		return false;
	end = (void *)(long)ctx->data_end;
	mac_write_own(h.eth->h_source);
	mac_copy(h.eth->h_dest, backend->mac);
	ip_write(h.ip, &key->saddr, &key->daddr, len, syn->tos,
		 syn->flow_label);
	sum = tcp_write(h.tcp, *(const word *)&key->sport, syn->seq, 0,
			syn->tcp_flags, syn->window, options_len);
	sum += pseudo_sum(&key->saddr, &key->daddr, len);
	/* What the options leave of the 40 bytes is zero and adds nothing. */
	sum += csum_words(from, MAX_TCP_OPTIONS / 4);
	h.tcp->check = csum_fold(sum);
	to = (void *)(h.tcp + 1);
	for (int i = 0; i < MAX_TCP_OPTIONS / 4; i++, to++) {
		if (i >= options_len / 4 || (void *)(to + 1) > end)
			break;
		*to = from[i];
	}
	return true;
}

#endif
