/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * open.h: packets that no flow has, and SYNs for flows that there are.
 *
 *   handle_miss()  to a service: open a flow, or say that there is none
 *   handle_port()  to another port of a VIP
 *   handle_syn()   a SYN again, or a new one from an old flow's port
 */
#ifndef PGSTEER_OPEN_H
#define PGSTEER_OPEN_H

static __always_inline bool is_backend(const struct packet *p)
{
	struct backend_key key;

	key.addr = p->key.saddr;
	*(word *)&key.port = p->key.sport; /* and the padding */
	return bpf_map_lookup_elem(&backend_ids, &key);
}

static __always_inline bool is_pure_syn(__u8 flags)
{
	return (flags & (TCP_SYN | TCP_ACK | TCP_FIN | TCP_RST)) == TCP_SYN;
}

static __always_inline bool is_allowed(const struct service *service,
				       const struct addr *addr)
{
	struct network network = {
		.bits = 32 + 8 * sizeof(*addr),
		.service = bpf_htonl(service->id),
		.addr = *addr,
	};

	return bpf_map_lookup_elem(&allowed, &network);
}

/* A SYN that no flow has: schedule it. */
static __noinline enum verdict open_flow(struct xdp_md *ctx, struct packet *p,
					 const struct service *service)
{
	struct scratch *s = scratch();
	struct handshake *syn;
	enum verdict verdict;
	struct opening *o;

	if (ip_hops(p->ip) <= 1)
		return DROP_TTL;
	if (service->flags & SERVICE_RESTRICTED &&
	    !is_allowed(service, &p->key.saddr))
		return DROP_NOT_ALLOWED;
	verdict = syn_budget(&p->key.saddr, p->now);
	if (verdict != TX_NEW)
		return verdict;
	syn = take_ticket();
	if (!syn || !s)
		return DROP_RACE;
	o = &s->opening;
	o->key = p->key;
	o->bytes = p->len;
	o->now = p->now;
	o->excluded = 0;
	o->ticket = syn->ticket;
	o->vip = service->nat_vips[0];
	mac_copy(o->client_mac, p->eth->h_source);
	if (!remember_syn(p, (void *)(long)ctx->data_end, syn,
			  service->flags & SERVICE_CLIENT_ADDRESS)) {
		syn->ticket = 0;
		return DROP_CLIENT_OPTION;
	}
	verdict = nat_open(service);
	if (verdict == TX_NEW) {
		syn->tried = o->excluded;
		return send_syn(ctx, p, &s->forward, syn) ? TX_NEW : DROP_REPLY;
	}
	syn->ticket = 0;
	return verdict >= DROP_FENCED ? verdict : reply_rst(ctx, p, verdict);
}

/* A segment for a service, for which there is no flow. */
static __always_inline enum verdict handle_miss(struct xdp_md *ctx,
						struct packet *p,
						const struct service *service)
{
	if (!leased(service->nat_vips[0], p->now))
		return DROP_FENCED;
	if (!is_pure_syn(tcp_flags(p->tcp)))
		return reply_rst(ctx, p, TX_RST_CLIENT);
	return open_flow(ctx, p, service);
}

/* The same for another port of a VIP. */
static __always_inline enum verdict handle_port(struct xdp_md *ctx,
						struct packet *p, __u32 vip)
{
	if (!is_backend(p))
		return PASS_PORT;
	if (!leased(vip, p->now))
		return DROP_FENCED;
	return reply_rst(ctx, p, TX_RST_BACKEND);
}

/*
 * A SYN for a flow that there is: the same SYN again, which may be offered to
 * another backend, or a new connection from an old one's port, which is
 * scheduled afresh: p->fresh says so.
 */
static __noinline enum verdict handle_syn(struct xdp_md *ctx, struct packet *p,
					  struct flow *half)
{
	struct handshake *syn = handshake_of(half);
	struct scratch *s = scratch();
	__u32 flags = half->flags;
	enum verdict verdict;

	if (!(flags & (FLOW_ESTABLISHED | FLOW_CLOSED | FLOW_FIN_CLIENT)) &&
	    syn && s && syn->seq == p->tcp->seq) {
		if (!(flags & FLOW_SYN_ACK) &&
		    bpf_ktime_get_ns() - syn->opened_ns > SILENCE) {
			s->opening.key = p->key;
			verdict = reopen(p->now, syn, half);
			if (verdict == TX_NEW)
				return send_syn(ctx, p, &s->forward, syn) ?
					       TX_REDISPATCH_SILENT :
					       DROP_REPLY;
			if (verdict >= DROP_FENCED)
				return verdict;
			if (verdict != TX_FORWARD)
				return reply_rst(ctx, p, verdict);
		}
		touch(half, p);
		return send_syn(ctx, p, half, syn) ? TX_FORWARD : DROP_REPLY;
	}
	if (flags & (FLOW_ESTABLISHED | FLOW_FIN_CLIENT) &&
	    !(flags & FLOW_CLOSED))
		return forward(p, half, TX_FORWARD); /* the backend decides */
	/*
	 * Whoever takes the entry removes it; another CPU's copy of the SYN is
	 * dropped.
	 */
	if (!flow_take(half, &p->key))
		return DROP_RACE;
	flow_remove(half, &p->key);
	p->fresh = true;
	return TX_NEW;
}

#endif
