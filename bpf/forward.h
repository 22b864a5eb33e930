/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * forward.h: packets of flows that there are, and SYNs on their way.
 *
 *   forward()   client to backend
 *   reverse()   backend to client
 *   send_syn()  a SYN, which may have to be written anew
 */
#ifndef PGSTEER_FORWARD_H
#define PGSTEER_FORWARD_H

static __always_inline void count_traffic(__u32 backend, __u32 len, bool in)
{
	struct traffic *t = bpf_map_lookup_elem(&traffics, &backend);

	if (!t)
		return;
	if (in) {
		t->packets_in++;
		t->bytes_in += len;
	} else {
		t->packets_out++;
		t->bytes_out += len;
	}
}

static __always_inline void touch(struct flow *half, const struct packet *p)
{
	half->seen = age_units(p->now);
	half->packets++;
	half->bytes += p->len;
	/* Late segments must not turn it back. */
	if (tcp_flags(p->tcp) & TCP_ACK) {
		__u32 ack = bpf_ntohl(p->tcp->ack_seq);

		if (!half->ack || (__s32)(ack - half->ack) > 0)
			half->ack = ack;
	}
}

/* The client moved to another router: replies must follow. */
static __noinline void follow_client(struct flow *forward,
				     const struct packet *p)
{
	struct flow_key key = flow_peer_key(forward);
	struct flow *reverse = bpf_map_lookup_elem(&flows, &key);

	if (!reverse)
		return;
	mac_copy(reverse->client_mac, p->eth->h_source);
	mac_copy(forward->client_mac, p->eth->h_source);
}

static __always_inline enum verdict forward(struct packet *p, struct flow *half,
					    enum verdict verdict)
{
	__u32 index = half->backend;
	struct backend *backend = bpf_map_lookup_elem(&backends, &index);

	if (!backend)
		return DROP_RACE;
	touch(half, p);
	count_traffic(index, p->len, true);
	if (!mac_equal(half->client_mac, p->eth->h_source))
		follow_client(half, p);
	if (!(half->flags & FLOW_ESTABLISHED) ||
	    tcp_flags(p->tcp) & (TCP_FIN | TCP_RST))
		flow_track_client(half, p);
	nat_rewrite(p, half, backend->mac);
	return verdict;
}

/* A SYN, which may have to be written anew; false when it is lost. */
static __noinline bool send_syn(struct xdp_md *ctx, struct packet *p,
				const struct flow *half,
				const struct handshake *syn)
{
	__u32 index = half->backend;
	struct backend *backend = bpf_map_lookup_elem(&backends, &index);

	if (!backend)
		return false;
	count_traffic(index, p->len, true);
	if (syn->anew)
		return write_syn(ctx, &p->l2, half, syn);
	nat_rewrite(p, half, backend->mac);
	return true;
}

static __always_inline enum verdict reverse(struct xdp_md *ctx,
					    struct packet *p, struct flow *half)
{
	__u8 flags = tcp_flags(p->tcp);

	touch(half, p);
	count_traffic(half->backend, p->len, false);
	if (flags & TCP_RST) {
		enum verdict verdict = redispatch_refused(ctx, p, half);

		if (verdict != TX_REVERSE)
			return verdict;
	}
	if (flags & (TCP_SYN | TCP_FIN | TCP_RST))
		flow_track_backend(half, p);
	nat_rewrite(p, half, half->client_mac);
	return TX_REVERSE;
}

#endif
