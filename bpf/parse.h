/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * parse.h: from bytes to headers, safely.
 *
 * A cursor walks over the packet. Each parse_xxx() checks that its header lies
 * within the packet, advances the cursor and returns the header, or NULL. The
 * headers stay in network order.
 */
#ifndef PGSTEER_PARSE_H
#define PGSTEER_PARSE_H

struct cursor {
	void *pos;
	void *end;
};

/* The flags in a TCP header's 14th byte. */
enum {
	TCP_FIN = 1 << 0,
	TCP_SYN = 1 << 1,
	TCP_RST = 1 << 2,
	TCP_ACK = 1 << 4,
};

/* What stands between the MAC addresses and the network header. */
struct l2 {
	__u32 len; /* of the whole frame header */
	__be32 tags[MAX_TAGS];
};

/* What follows struct arphdr for Ethernet and IPv4 (RFC 826). */
struct arp_ipv4 {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_len;
	__u8 protocol_len;
	__be16 operation;
	__u8 sender_mac[6];
	__u8 sender_ip[4];
	__u8 target_mac[6];
	__u8 target_ip[4];
};

/* A tag and the type of what follows it (IEEE 802.1Q, 9.3). */
struct vlan_tag {
	__be16 control;
	__be16 proto;
};

static __always_inline bool is_tag(__be16 proto)
{
	return proto == bpf_htons(ETH_P_8021Q) ||
	       proto == bpf_htons(ETH_P_8021AD);
}

static __always_inline struct ethhdr *parse_eth(struct cursor *c)
{
	struct ethhdr *eth = c->pos;

	if ((void *)(eth + 1) > c->end)
		return NULL;
	c->pos = eth + 1;
	return eth;
}

/*
 * Step over tags; *proto is what comes after them. False when the frame ends
 * too early.
 */
static __always_inline bool parse_tags(struct cursor *c, struct l2 *l2,
				       __be16 *proto)
{
	for (int i = 0; i < MAX_TAGS; i++) {
		struct vlan_tag *tag = c->pos;

		if (!is_tag(*proto))
			break;
		if ((void *)(tag + 1) > c->end)
			return false;
		/* As it stands in the frame: its own type, then the control. */
		l2->tags[i] = bpf_htonl((__u32)bpf_ntohs(*proto) << 16 |
					bpf_ntohs(tag->control));
		l2->len += sizeof(*tag);
		*proto = tag->proto;
		c->pos = tag + 1;
	}
	return true;
}

static __always_inline struct arp_ipv4 *parse_arp(struct cursor *c)
{
	struct arp_ipv4 *arp = c->pos;

	if ((void *)(arp + 1) > c->end)
		return NULL;
	c->pos = arp + 1;
	return arp;
}

/*
 * The fixed part only; whether there are options, and whether the lengths make
 * sense, is the caller's to ask.
 */
static __always_inline ip_header *parse_ip(struct cursor *c)
{
	ip_header *ip = c->pos;

	if ((void *)(ip + 1) > c->end)
		return NULL;
	c->pos = ip + 1;
	return ip;
}

/* The fixed 20 bytes of a TCP header whose data offset is plausible. */
static __always_inline struct tcphdr *parse_tcp(struct cursor *c)
{
	struct tcphdr *tcp = c->pos;

	if ((void *)(tcp + 1) > c->end || tcp->doff < 5)
		return NULL;
	c->pos = tcp + 1;
	return tcp;
}

static __always_inline __u8 tcp_flags(const struct tcphdr *tcp)
{
	return ((const __u8 *)tcp)[13];
}

/* MAC addresses are moved and compared as a word and a half. */
typedef __u32 __attribute__((may_alias)) mac_head;
typedef __u16 __attribute__((may_alias)) mac_tail;

/* A type field, in one load: struct ethhdr is packed, which makes it two. */
static __always_inline __be16 eth_proto(const struct ethhdr *eth)
{
	return *(const mac_tail *)((const void *)eth + 12);
}

static __always_inline void mac_copy(void *to, const void *from)
{
	*(mac_head *)to = *(const mac_head *)from;
	*(mac_tail *)(to + 4) = *(const mac_tail *)(from + 4);
}

static __always_inline bool mac_equal(const void *a, const void *b)
{
	return *(const mac_head *)a == *(const mac_head *)b &&
	       *(const mac_tail *)(a + 4) == *(const mac_tail *)(b + 4);
}

static __always_inline bool mac_is_own(const void *mac)
{
	return *(const mac_head *)mac == own_mac_head &&
	       *(const mac_tail *)(mac + 4) == own_mac_tail;
}

static __always_inline void mac_write_own(void *to)
{
	*(mac_head *)to = own_mac_head;
	*(mac_tail *)(to + 4) = own_mac_tail;
}

#endif
