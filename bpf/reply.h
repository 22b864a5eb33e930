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

static __always_inline long frame_len(struct xdp_md *ctx)
{
	long len = (long)ctx->data_end - (long)ctx->data;

	/* Without this the compiler subtracts in 32 bits: not for pointers. */
	asm volatile("" : "+r"(len));
	if (frags)
		len = bpf_xdp_get_buff_len(ctx);
	return len;
}

/* Give the frame another length, at its end; it may have no room to grow. */
static __always_inline long resize(struct xdp_md *ctx, __u32 len)
{
	long more = (long)len - frame_len(ctx);

	return more ? bpf_xdp_adjust_tail(ctx, more) : 0;
}

/* The headers of a frame that is written anew. */
struct headers {
	struct ethhdr *eth;
	ip_header *ip;
	struct tcphdr *tcp;
};

/* Find them again, after the frame was resized. */
static __always_inline bool find_headers(struct xdp_md *ctx, __u32 l2_len,
					 struct headers *h)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;

	if (l2_len > sizeof(*h->eth) + MAX_TAGS * 4)
		return false;
	h->eth = data;
	h->ip = data + l2_len;
	h->tcp = (void *)(h->ip + 1);
	return (void *)(h->eth + 1) <= end && (void *)(h->tcp + 1) <= end;
}

/*
 * A whole header without options, but for its checksum. Returns the sum over
 * it.
 */
static __always_inline __u64 tcp_write(struct tcphdr *tcp, __be32 ports,
				       __be32 seq, __be32 ack, __u8 flags,
				       __be16 window, __u32 options_len)
{
	__be32 *header = (__be32 *)tcp;
	__be32 last = bpf_htonl((5 + options_len / 4) << 28 | flags << 16 |
				bpf_ntohs(window));

	header[0] = ports;
	header[1] = seq;
	header[2] = ack;
	header[3] = last;
	header[4] = 0;
	return (__u64)ports + seq + ack + last;
}

static __noinline enum verdict reply_rst(struct xdp_md *ctx, struct packet *p,
					 enum verdict verdict)
{
	struct addr saddr = p->key.daddr, daddr = p->key.saddr;
	__be32 ports = *(const word *)&p->tcp->source;
	__u8 flags = tcp_flags(p->tcp);
	__u32 index = BUCKET_RST;
	struct bucket *bucket = bpf_map_lookup_elem(&buckets, &index);
	__be32 seq = 0, ack = 0;
	__u8 peer[6] __attribute__((aligned(4)));
	struct headers h;
	__u32 consumed;
	__u64 sum;

	if (flags & TCP_RST)
		return DROP_STRAY_RST;
	if (!bucket || !bucket_take(bucket, p->now, rst_rate, rst_burst))
		return DROP_RST_LIMIT;
	consumed = payload_len(p) + !!(flags & TCP_SYN) + !!(flags & TCP_FIN);
	if (flags & TCP_ACK)
		seq = p->tcp->ack_seq;
	else
		ack = bpf_htonl(bpf_ntohl(p->tcp->seq) + consumed);
	mac_copy(peer, p->eth->h_source);

	if (resize(ctx, p->l2.len + sizeof(*h.ip) + sizeof(*h.tcp)) ||
	    !find_headers(ctx, p->l2.len, &h))
		return DROP_REPLY;
	mac_write_own(h.eth->h_source);
	mac_copy(h.eth->h_dest, peer);
	ip_write(h.ip, &saddr, &daddr, sizeof(*h.tcp), 0, 0);
	sum = tcp_write(h.tcp, ports >> 16 | ports << 16, seq, ack,
			flags & TCP_ACK ? TCP_RST : TCP_RST | TCP_ACK, 0, 0);
	sum += pseudo_sum(&saddr, &daddr, sizeof(*h.tcp));
	h.tcp->check = csum_fold(sum);
	return verdict;
}

#endif
