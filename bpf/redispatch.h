/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * redispatch.h: a half-open flow moves to another backend, and the client does
 * not notice.
 *
 *   remember_syn()        keep what another backend would have to be sent
 *   redispatch_refused()  a backend answered the SYN by a reset: make the SYN
 *                         anew out of the reset, for the next backend
 *   redispatch_silent()   no answer by the client's first retransmission
 *
 * So a pooler that died costs new connections nothing, even before the health
 * check has noticed.
 */
#ifndef PGSTEER_REDISPATCH_H
#define PGSTEER_REDISPATCH_H

static __noinline void remember_syn(const struct packet *p, void *end,
				    __u64 tried)
{
	struct handshake syn = {
		.tried = tried,
		.seq = p->tcp->seq,
		.window = p->tcp->window,
	};
	__u32 *from = (void *)(p->tcp + 1);
	__u32 *to = (void *)syn.options;

	for (int i = 0; i < MAX_TCP_OPTIONS / 4; i++, from++) {
		if (i >= p->tcp->doff - 5 || (void *)(from + 1) > end)
			break;
		to[i] = *from;
		syn.options_len += 4;
	}
	bpf_map_update_elem(&handshakes, &p->key, &syn, BPF_ANY);
}

/* Turn the packet, whatever it was, into the client's SYN. */
static __noinline int write_syn(struct xdp_md *ctx, const struct flow *half,
				const struct handshake *syn)
{
	__u32 len =
		sizeof(struct iphdr) + sizeof(struct tcphdr) + syn->options_len;
	__u32 index = half->backend;
	struct backend *backend = bpf_map_lookup_elem(&backends, &index);
	void *data, *end;
	struct ethhdr *eth;
	struct iphdr *ip;
	struct tcphdr *tcp;
	const __u32 *from = (void *)syn->options;
	__u32 *to;
	struct {
		__be32 saddr, daddr;
		__u8 zero, proto;
		__be16 len;
	} pseudo = {};
	__u32 sum;

	if (!backend || resize_front(ctx, sizeof(*eth) + len))
		return -1;
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	eth = data;
	ip = data + sizeof(*eth);
	tcp = data + sizeof(*eth) + sizeof(*ip);
	to = (void *)(tcp + 1);
	if ((void *)to > end)
		return -1;
	for (int i = 0; i < 6; i++)
		eth->h_source[i] = own_mac[i];
	__builtin_memcpy(eth->h_dest, backend->mac, 6);
	eth->h_proto = bpf_htons(ETH_P_IP);
	__builtin_memset(ip, 0, sizeof(*ip));
	ip->version = 4;
	ip->ihl = 5;
	ip->tot_len = bpf_htons(len);
	ip->frag_off = bpf_htons(IP_DF);
	ip->ttl = 64;
	ip->protocol = IPPROTO_TCP;
	ip->saddr = half->rewritten.saddr;
	ip->daddr = half->rewritten.daddr;
	ip->check =
		csum_fold(bpf_csum_diff(0, 0, (__be32 *)ip, sizeof(*ip), 0));
	__builtin_memset(tcp, 0, sizeof(*tcp));
	tcp->source = half->rewritten.sport;
	tcp->dest = half->rewritten.dport;
	tcp->seq = syn->seq;
	tcp->doff = 5 + syn->options_len / 4;
	tcp->syn = 1;
	tcp->window = syn->window;
	pseudo.saddr = ip->saddr;
	pseudo.daddr = ip->daddr;
	pseudo.proto = IPPROTO_TCP;
	pseudo.len = bpf_htons(len - sizeof(*ip));
	sum = bpf_csum_diff(0, 0, (__be32 *)&pseudo, sizeof(pseudo), 0);
	sum = bpf_csum_diff(0, 0, (__be32 *)tcp, sizeof(*tcp), sum);
	/* What the options leave of the 40 bytes is zero and adds nothing. */
	sum = bpf_csum_diff(0, 0, (__be32 *)from, MAX_TCP_OPTIONS, sum);
	tcp->check = csum_fold(sum);
	for (int i = 0; i < MAX_TCP_OPTIONS / 4; i++, to++) {
		if (i >= syn->options_len / 4 || (void *)(to + 1) > end)
			break;
		*to = from[i];
	}
	return 0;
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
	struct opening o = { .key = flow_peer_key(reverse), .now = p->now };
	struct flow *forward = bpf_map_lookup_elem(&flows, &o.key);
	struct handshake *syn;
	struct flow *half = NULL;
	enum verdict verdict;

	if (!forward || forward->flags & (FLOW_SYN_ACK | FLOW_CLOSED))
		return TX_REVERSE;
	syn = bpf_map_lookup_elem(&handshakes, &o.key);
	/* A blind reset would have to guess this number (RFC 5961, 3.2). */
	if (!syn || !p->tcp->ack ||
	    bpf_ntohl(p->tcp->ack_seq) != bpf_ntohl(syn->seq) + 1)
		return TX_REVERSE;
	suspect_backend(forward->backend, p->now);
	o.service = forward->backend / MAX_BACKENDS;
	o.excluded = syn->tried;
	if (!others_take_flows(o.service, o.excluded))
		return TX_REVERSE;
	if (__sync_fetch_and_or(&forward->flags, FLOW_TAKEN) & FLOW_TAKEN)
		return DROP_RACE;
	__builtin_memcpy(o.client_mac, forward->client_mac, 6);
	flow_remove(forward, &o.key);
	verdict = nat_open(&o, &half);
	/* The client sends its SYN again, and it is told then what is wrong. */
	if (verdict != TX_NEW || !half)
		return DROP_RACE;
	syn->tried = o.excluded;
	half->packets = 1;
	half->bytes =
		sizeof(struct iphdr) + sizeof(struct tcphdr) + syn->options_len;
	return write_syn(ctx, half, syn) ? DROP_REPLY : TX_REDISPATCH_REFUSED;
}

/*
 * The client repeats its SYN, unanswered. TX_FORWARD when *half stays as it is:
 * there is nobody else to ask. Otherwise *half is the new forward half, or the
 * verdict says why there is none.
 */
static __noinline enum verdict redispatch_silent(const struct packet *p,
						 struct flow **half)
{
	struct handshake *syn = bpf_map_lookup_elem(&handshakes, &p->key);
	struct opening o = { .key = p->key, .now = p->now };
	struct flow *forward = *half;
	enum verdict verdict;

	o.service = forward->backend / MAX_BACKENDS;
	if (!syn)
		return TX_FORWARD;
	o.excluded = syn->tried;
	if (!others_take_flows(o.service, o.excluded))
		return TX_FORWARD;
	if (__sync_fetch_and_or(&forward->flags, FLOW_TAKEN) & FLOW_TAKEN)
		return DROP_RACE;
	__builtin_memcpy(o.client_mac, p->eth->h_source, 6);
	flow_remove(forward, &o.key);
	*half = NULL;
	verdict = nat_open(&o, half);
	if (verdict != TX_NEW)
		return verdict;
	syn->tried = o.excluded;
	return TX_REDISPATCH_SILENT;
}

#endif
