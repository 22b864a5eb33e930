/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * redispatch.h: a half-open flow moves to another backend, and the client does
 * not notice.
 *
 *   redispatch_refused()  a backend answered the SYN by a reset: make the SYN
 *                         anew out of the reset, for the next backend
 *   reopen()              the same for a SYN that the client had to repeat
 *
 * So a pooler that died costs new connections nothing, even before the health
 * check has noticed.
 */
#ifndef PGSTEER_REDISPATCH_H
#define PGSTEER_REDISPATCH_H

static __always_inline struct service *service_at(const struct addr *addr,
						  __be16 port)
{
	struct service_key key;

	/* One store: see key_set_addrs(). */
	key.addr = *addr;
	*(word *)&key.port = (__u32)IPPROTO_TCP << 16 | port;
	return bpf_map_lookup_elem(&services, &key);
}

/*
 * Take the flow of scratch()->opening.key from its backend and give it to
 * another that has not had it. scratch()->forward is a copy of the new forward
 * half if TX_NEW; the flow is as it was if TX_FORWARD: there is nobody else.
 */
__noinline int reopen(__u64 now, struct handshake *syn, struct flow *forward)
{
	struct scratch *s = scratch();
	struct service *service;
	enum verdict verdict;
	struct opening *o;
	struct load *load;

	if (!s || !syn || !forward)
		return DROP_RACE;
	o = &s->opening;
	service = service_at(&o->key.daddr, o->key.dport);
	load = load_of(forward->backend);
	if (!load)
		return DROP_RACE;
	if (!service || !others_take_flows(service->id, syn->tried))
		return TX_FORWARD;
	if (!flow_take(forward, &o->key))
		return DROP_RACE;
	__sync_fetch_and_add(
		&load->redispatched[forward->backend % MAX_BACKENDS], 1);
	o->now = now;
	o->excluded = syn->tried;
	o->ticket = forward->ticket;
	o->vip = forward->vip;
	o->bytes = sizeof(ip_header) + sizeof(struct tcphdr) + syn->options_len;
	mac_copy(o->client_mac, forward->client_mac);
	flow_remove(forward, &o->key);
	verdict = nat_open(service);
	if (verdict == TX_NEW) {
		syn->ticket = o->ticket;
		syn->tried = o->excluded;
		syn->opened_ns = bpf_ktime_get_ns();
	}
	return verdict;
}

/*
 * A reset came from the backend before it had accepted. The verdict is
 * TX_REVERSE when it has to go on to the client, and the flow is as it was: it
 * is none for this SYN, the SYN is forgotten, or everybody has refused.
 */
static __noinline enum verdict redispatch_refused(struct xdp_md *ctx,
						  const struct packet *p,
						  const struct flow *reverse)
{
	struct scratch *s = scratch();
	struct handshake *syn;
	enum verdict verdict;
	struct flow *half;

	if (!s)
		return TX_REVERSE;
	s->opening.key = flow_peer_key(reverse);
	half = bpf_map_lookup_elem(&flows, &s->opening.key);
	/* After a FIN the flow has no ticket any more, but a number like one. */
	if (!half ||
	    half->flags & (FLOW_SYN_ACK | FLOW_FIN_CLIENT | FLOW_CLOSED))
		return TX_REVERSE;
	syn = handshake_of(half);
	/* A blind reset would have to guess this number (RFC 5961, 3.2). */
	if (!syn || !(tcp_flags(p->tcp) & TCP_ACK) ||
	    bpf_ntohl(p->tcp->ack_seq) != bpf_ntohl(syn->seq) + 1)
		return TX_REVERSE;
	suspect_backend(half->backend, p->now);
	verdict = reopen(p->now, syn, half);
	if (verdict == TX_FORWARD)
		return TX_REVERSE;
	/* The client sends its SYN again, and it is told then what is wrong. */
	if (verdict != TX_NEW)
		return DROP_RACE;
	return write_syn(ctx, &p->l2, &s->forward, syn) ?
		       TX_REDISPATCH_REFUSED :
		       DROP_REPLY;
}

#endif
