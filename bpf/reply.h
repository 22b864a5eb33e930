/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * reply.h: a reset for a segment that belongs to no flow (RFC 9293, 3.5.2).
 *
 * It turns the packet round in place. With ACK set the reset's sequence number
 * is what the peer expects next, as RFC 5961 wants; without, it acknowledges
 * all that the segment took. A reset is never answered by a reset.
 */
#ifndef PGSTEER_REPLY_H
#define PGSTEER_REPLY_H

#define RST_LEN \
	(sizeof(struct ethhdr) + sizeof(struct iphdr) + sizeof(struct tcphdr))

static __always_inline long frame_len(struct xdp_md *ctx)
{
	long len = (long)ctx->data_end - (long)ctx->data;

	/* Without this the compiler subtracts in 32 bits: not for pointers. */
	asm volatile("" : "+r"(len));
	return len;
}

/* Give the frame another length, at its end; it may have no room to grow. */
static __always_inline long resize(struct xdp_md *ctx, __u32 len)
{
	return bpf_xdp_adjust_tail(ctx, (long)len - frame_len(ctx));
}

/*
 * The same at its front, for a frame that is written anew from its first byte:
 * there every driver leaves room for 256 bytes more.
 */
static __always_inline long resize_front(struct xdp_md *ctx, __u32 len)
{
	return bpf_xdp_adjust_head(ctx, frame_len(ctx) - (long)len);
}

/* Whether one more reset may be sent: a token bucket a CPU. */
static __always_inline bool rst_allowed(__u64 now)
{
	__u32 zero = 0;
	struct bucket *bucket = bpf_map_lookup_elem(&rst_bucket, &zero);
	__u64 elapsed, earned;

	if (!bucket)
		return false;
	elapsed = now - bucket->refilled;
	if (elapsed > 1000000000ULL)
		elapsed = 1000000000ULL;
	earned = elapsed * rst_rate / 1000000000ULL;
	if (earned) {
		bucket->refilled = now;
		bucket->tokens += earned;
		if (bucket->tokens > rst_burst)
			bucket->tokens = rst_burst;
	}
	if (!bucket->tokens)
		return false;
	bucket->tokens--;
	return true;
}

static __noinline enum verdict reply_rst(struct xdp_md *ctx, struct packet *p,
					 enum verdict verdict)
{
	struct flow_key to = {
		.saddr = p->key.daddr,
		.daddr = p->key.saddr,
		.sport = p->key.dport,
		.dport = p->key.sport,
	};
	__u32 seq = 0, ack = 0, consumed;
	__u8 src[6], dst[6];
	bool was_ack = p->tcp->ack;
	struct ethhdr *eth;
	struct iphdr *ip;
	struct tcphdr *tcp;
	void *data, *end;
	struct {
		__be32 saddr, daddr;
		__u8 zero, proto;
		__be16 len;
	} pseudo = {};

	if (p->tcp->rst)
		return DROP_STRAY_RST;
	if (!rst_allowed(p->now))
		return DROP_RST_LIMIT;
	consumed = p->len - sizeof(*ip) - p->tcp->doff * 4 + p->tcp->syn +
		   p->tcp->fin;
	if (was_ack)
		seq = p->tcp->ack_seq;
	else
		ack = bpf_htonl(bpf_ntohl(p->tcp->seq) + consumed);
	__builtin_memcpy(src, p->eth->h_dest, 6);
	__builtin_memcpy(dst, p->eth->h_source, 6);

	if (resize(ctx, RST_LEN))
		return DROP_REPLY;
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	eth = data;
	ip = data + sizeof(*eth);
	tcp = data + sizeof(*eth) + sizeof(*ip);
	if ((void *)(tcp + 1) > end)
		return DROP_REPLY;

	__builtin_memcpy(eth->h_source, src, 6);
	__builtin_memcpy(eth->h_dest, dst, 6);
	eth->h_proto = bpf_htons(ETH_P_IP);
	__builtin_memset(ip, 0, sizeof(*ip));
	ip->version = 4;
	ip->ihl = 5;
	ip->tot_len = bpf_htons(sizeof(*ip) + sizeof(*tcp));
	ip->frag_off = bpf_htons(IP_DF);
	ip->ttl = 64;
	ip->protocol = IPPROTO_TCP;
	ip->saddr = to.saddr;
	ip->daddr = to.daddr;
	ip->check =
		csum_fold(bpf_csum_diff(0, 0, (__be32 *)ip, sizeof(*ip), 0));
	__builtin_memset(tcp, 0, sizeof(*tcp));
	tcp->source = to.sport;
	tcp->dest = to.dport;
	tcp->seq = seq;
	tcp->ack_seq = ack;
	tcp->doff = 5;
	tcp->rst = 1;
	tcp->ack = !was_ack;
	pseudo.saddr = to.saddr;
	pseudo.daddr = to.daddr;
	pseudo.proto = IPPROTO_TCP;
	pseudo.len = bpf_htons(sizeof(*tcp));
	tcp->check = csum_fold(bpf_csum_diff(
		0, 0, (__be32 *)tcp, sizeof(*tcp),
		bpf_csum_diff(0, 0, (__be32 *)&pseudo, sizeof(pseudo), 0)));
	return verdict;
}

#endif
