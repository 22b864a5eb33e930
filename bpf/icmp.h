/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * icmp.h: errors about packets that were sent on (RFC 792, RFC 4443).
 *
 * A router on the way, or whoever was to receive it, complains to the VIP about
 * a packet, and quotes its beginning. The packet was somebody else's: its
 * sender gets the error, with the addresses that it knows, within the quote as
 * well (RFC 5508, 4.2). So path MTU discovery works through the balancer.
 *
 * What is believed: the quote must be of a flow that there is. Whether its
 * sequence number is in flight is for the sender to say, who knows (RFC 5927,
 * 4.1). Fragments and IPv4 options are refused, as they are of TCP.
 */
#ifndef PGSTEER_ICMP_H
#define PGSTEER_ICMP_H

/* The types that are errors, and what else is asked for. */
enum {
#ifdef PGSTEER_IPV6
	ICMP_UNREACHABLE = 1, /* RFC 4443, 3 */
	ICMP_TOO_BIG = 2,
	ICMP_TIME_EXCEEDED = 3,
	ICMP_PARAMETER = 4,
#else
	ICMP_UNREACHABLE = 3, /* RFC 792 */
	ICMP_TIME_EXCEEDED = 11,
	ICMP_PARAMETER = 12,
	ICMP_TOO_BIG_CODE = 4, /* of ICMP_UNREACHABLE: fragmentation needed */
#endif
};

/*
 * A smaller MTU than these is no router's. For IPv6 it is the least that a
 * link may have (RFC 8200, 5). For IPv4 it is what Linux makes of less
 * (ip_rt_min_pmtu): a sender keeps one MTU for all clients behind a VIP, for
 * ten minutes, so a forged one would slow all of them.
 */
#ifdef PGSTEER_IPV6
#define MIN_PATH_MTU 1280
#else
#define MIN_PATH_MTU 552
#endif

/* The header of an error, and as much of the packet as each one quotes. */
struct icmp_error {
	__u8 type;
	__u8 code;
	__be16 check;
	__be32 info; /* the MTU; in 16 bits for IPv4 (RFC 1191, 4) */
	ip_header ip;
	__be16 sport;
	__be16 dport;
	__be32 seq;
};

#define IP_OFFSET 0x1fff /* of a fragment; only the first has ports */

/* From there to the TCP checksum, which not each one quotes. */
#define QUOTED_CHECK_OFFSET 8

static __always_inline bool is_icmp_error(const struct icmp_error *e)
{
	switch (e->type) {
	case ICMP_UNREACHABLE:
	case ICMP_TIME_EXCEEDED:
	case ICMP_PARAMETER:
#ifdef PGSTEER_IPV6
	case ICMP_TOO_BIG:
#endif
		return true;
	}
	return false;
}

static __always_inline bool is_too_big(const struct icmp_error *e)
{
#ifdef PGSTEER_IPV6
	return e->type == ICMP_TOO_BIG;
#else
	return e->type == ICMP_UNREACHABLE && e->code == ICMP_TOO_BIG_CODE;
#endif
}

static __always_inline __u32 path_mtu(const struct icmp_error *e)
{
#ifdef PGSTEER_IPV6
	return bpf_ntohl(e->info);
#else
	return bpf_ntohl(e->info) & 0xffff;
#endif
}

/* What is quoted is the beginning of a TCP segment. */
static __always_inline bool quotes_tcp(const struct icmp_error *e)
{
#ifdef PGSTEER_IPV6
	return e->ip.version == 6 && e->ip.nexthdr == IPPROTO_TCP;
#else
	return e->ip.version == 4 && e->ip.ihl == 5 &&
	       e->ip.protocol == IPPROTO_TCP &&
	       !(e->ip.frag_off & bpf_htons(IP_OFFSET));
#endif
}

static __always_inline bool addr_equal(const struct addr *a,
				       const struct addr *b)
{
	__u32 difference = 0;

	for (int i = 0; i < ADDR_WORDS; i++)
		difference |= a->word[i] ^ b->word[i];
	return !difference;
}

/* Whether the packet that key answers could only have been one sent on. */
static __always_inline bool was_sent_on(const struct flow_key *key)
{
	struct backend_key backend = { .addr = key->saddr, .port = key->sport };

	return service_at(&key->daddr, key->dport) ||
	       bpf_map_lookup_elem(&backend_ids, &backend);
}

/*
 * Whether it is about a SYN that no backend has accepted. A client that is told
 * gives up, and there may be other backends: it is to send the SYN again, which
 * is offered to one of them. Meanwhile this one counts as having refused it.
 */
static __noinline bool syn_failed(const struct packet *p,
				  const struct flow *half, __be32 seq)
{
	struct flow_key key = flow_peer_key(half);
	struct flow *forward;
	struct handshake *syn;

	if (half->flags & FLOW_FORWARD)
		return false;
	forward = bpf_map_lookup_elem(&flows, &key);
	if (!forward ||
	    forward->flags & (FLOW_SYN_ACK | FLOW_ESTABLISHED | FLOW_CLOSED))
		return false;
	syn = handshake_of(forward);
	/* Who is blind would have to guess this number (RFC 5927, 4.1). */
	if (syn && syn->seq == seq)
		suspect_backend(forward->backend, p->now);
	return true;
}

/*
 * The error comes from the address that the sender takes for the other side,
 * as all that it gets from here does. The router's own may be one that the
 * sender's network has no route to and would not let in.
 *
 * Of the checksums, that of the message is changed by whatever is not covered
 * by another one inside: what is, cancels out with it.
 */
static __always_inline void icmp_rewrite(struct packet *p, struct icmp_error *e,
					 const struct flow *half,
					 const __u8 *dmac, const void *end)
{
	const struct flow_key *to = &half->rewritten;
	__be16 *tcp_check = (void *)(e + 1) + QUOTED_CHECK_OFFSET;
	__u32 delta = half->tcp_delta;
	__u16 outer;

	outer = csum_reduce(bpf_csum_diff((__be32 *)ip_saddr(p->ip),
					  2 * sizeof(struct addr), (__be32 *)to,
					  2 * sizeof(struct addr), 0));
#ifdef PGSTEER_IPV6
	delta += outer; /* the pseudo header */
#else
	e->ip.check = csum_update(e->ip.check, half->ip_delta);
	delta += (__u16)~half->ip_delta;
#endif
	if ((void *)(tcp_check + 1) <= end &&
	    p->len >= sizeof(*p->ip) + sizeof(*e) + QUOTED_CHECK_OFFSET +
			      sizeof(*tcp_check)) {
		*tcp_check = csum_update(*tcp_check, half->tcp_delta);
		delta += (__u16)~half->tcp_delta;
	}
	e->check = csum_update(e->check, delta);
	*ip_saddr(&e->ip) = to->daddr;
	*ip_daddr(&e->ip) = to->saddr;
	e->sport = to->dport;
	e->dport = to->sport;
	mac_copy(p->eth->h_source, p->eth->h_dest);
	mac_copy(p->eth->h_dest, dmac);
	ip_forward(p->ip, &to->saddr, &to->daddr, outer);
}

/* ICMP to a VIP. Errors about the host's own packets, and all else, pass. */
static __noinline enum verdict handle_icmp(struct xdp_md *ctx, struct packet *p)
{
	void *end = (void *)(long)ctx->data_end;
	struct icmp_error *e = (void *)(p->ip + 1);
	struct backend *backend;
	struct flow *half;
	__u32 index;

#ifndef PGSTEER_IPV6
	if (p->ip->frag_off & bpf_htons(IP_FRAGMENT))
		return DROP_FRAGMENT;
	if (p->ip->ihl != 5)
		return DROP_IP_OPTIONS;
#endif
	if ((void *)&e->ip > end ||
	    p->len < sizeof(*p->ip) + offsetof(struct icmp_error, ip))
		return PASS_TRUNCATED;
	if (!is_icmp_error(e))
		return PASS_NOT_TCP;
	if ((void *)(e + 1) > end || p->len < sizeof(*p->ip) + sizeof(*e))
		return DROP_ICMP;
	if (!quotes_tcp(e))
		return PASS_NOT_TCP; /* nothing else is sent on */
	/* One is told of one's own packets. */
	if (!addr_equal(ip_saddr(&e->ip), &p->key.daddr))
		return DROP_ICMP;
	/* The key of what would answer the quoted packet. */
	p->key.saddr = *ip_daddr(&e->ip);
	p->key.sport = e->dport;
	p->key.dport = e->sport;
	half = bpf_map_lookup_elem(&flows, &p->key);
	if (!half)
		return was_sent_on(&p->key) ? DROP_ICMP : PASS_NOT_TCP;
	if (!leased(half->vip, p->now))
		return DROP_FENCED;
	if (is_too_big(e) ? path_mtu(e) < MIN_PATH_MTU :
			    syn_failed(p, half, e->seq))
		return DROP_ICMP;
	if (ip_hops(p->ip) <= 1)
		return DROP_TTL;
	index = half->backend;
	backend = bpf_map_lookup_elem(&backends, &index);
	if (!backend)
		return DROP_RACE;
	icmp_rewrite(p, e, half,
		     half->flags & FLOW_FORWARD ? backend->mac :
						  half->client_mac,
		     end);
	return TX_ICMP;
}

#endif
