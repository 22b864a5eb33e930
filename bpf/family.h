/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * family.h: what differs between IPv4 and IPv6.
 *
 * The program is built twice from the same sources, once for each family, so
 * that neither pays for the other: IPv4's flow keys stay at 12 bytes, which is
 * most of what a packet costs. The program on the interface is IPv4's; it goes
 * on in the other one by a tail call.
 */
#ifndef PGSTEER_FAMILY_H
#define PGSTEER_FAMILY_H

#ifdef PGSTEER_IPV6

#define ADDR_WORDS 4
#define ETH_P_FAMILY ETH_P_IPV6
#define IPPROTO_ICMP_FAMILY IPPROTO_ICMPV6

typedef struct ipv6hdr ip_header;

#else

#define ADDR_WORDS 1
#define ETH_P_FAMILY ETH_P_IP
#define IPPROTO_ICMP_FAMILY IPPROTO_ICMP

typedef struct iphdr ip_header;

#endif

#define IP_DF 0x4000
#define IP_FRAGMENT 0x3fff /* more fragments, or an offset */
#define HOP_LIMIT 64 /* of packets that are made here */

struct addr {
	__be32 word[ADDR_WORDS];
};

static __always_inline __u8 addr_last_byte(const struct addr *a)
{
	return bpf_ntohl(a->word[ADDR_WORDS - 1]) & 0xff;
}

static __always_inline struct addr *ip_saddr(ip_header *ip)
{
	return (struct addr *)&ip->saddr;
}

static __always_inline struct addr *ip_daddr(ip_header *ip)
{
	return (struct addr *)&ip->daddr;
}

/* The length of header and payload, as the header says. */
static __always_inline __u32 ip_len(const ip_header *ip)
{
#ifdef PGSTEER_IPV6
	return sizeof(*ip) + bpf_ntohs(ip->payload_len);
#else
	return bpf_ntohs(ip->tot_len);
#endif
}

static __always_inline __u8 ip_protocol(const ip_header *ip)
{
#ifdef PGSTEER_IPV6
	return ip->nexthdr;
#else
	return ip->protocol;
#endif
}

static __always_inline __u8 ip_hops(const ip_header *ip)
{
#ifdef PGSTEER_IPV6
	return ip->hop_limit;
#else
	return ip->ttl;
#endif
}

static __always_inline __u8 ip_tos(const ip_header *ip)
{
#ifdef PGSTEER_IPV6
	return bpf_ntohl(*(const __be32 *)ip) >> 20;
#else
	return ip->tos;
#endif
}

/* One hop further, from and to other addresses. */
static __always_inline void ip_forward(ip_header *ip, const struct addr *saddr,
				       const struct addr *daddr, __u16 delta)
{
	*ip_saddr(ip) = *saddr;
	*ip_daddr(ip) = *daddr;
#ifdef PGSTEER_IPV6
	ip->hop_limit--;
#else
	ip->ttl--;
	/* The TTL is the low byte of its 16-bit word: -1 is + ~1. */
	ip->check = csum_update(ip->check, delta + bpf_htons(0xfeff));
#endif
}

/* A whole header, for a TCP segment of len bytes. */
static __always_inline void ip_write(ip_header *ip, const struct addr *saddr,
				     const struct addr *daddr, __u32 len,
				     __u8 tos, __be32 flow_label)
{
	__be32 *word = (__be32 *)ip;
#ifdef PGSTEER_IPV6
	word[0] = bpf_htonl(6U << 28 | (__u32)tos << 20) | flow_label;
	word[1] = bpf_htonl(len << 16 | IPPROTO_TCP << 8 | HOP_LIMIT);
#else
	__be32 length =
		bpf_htonl(0x45U << 24 | (__u32)tos << 16 | (sizeof(*ip) + len));
	__be32 fragment = bpf_htonl(IP_DF);
	__be32 hops = bpf_htonl(HOP_LIMIT << 24 | IPPROTO_TCP << 16);
	__u64 sum = (__u64)length + fragment + hops + saddr->word[0] +
		    daddr->word[0];

	word[0] = length;
	word[1] = fragment;
	word[2] = hops;
	ip->check = csum_fold(sum);
#endif
	*ip_saddr(ip) = *saddr;
	*ip_daddr(ip) = *daddr;
}

/*
 * The sum over what a TCP checksum covers beside a segment of len bytes
 * (RFC 9293, 3.1; RFC 8200, 8.1).
 */
static __always_inline __u64 pseudo_sum(const struct addr *saddr,
					const struct addr *daddr, __u32 len)
{
	return csum_words(saddr->word, ADDR_WORDS) +
	       csum_words(daddr->word, ADDR_WORDS) + bpf_htonl(len) +
	       bpf_htonl(IPPROTO_TCP);
}

#endif
