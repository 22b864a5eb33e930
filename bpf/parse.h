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

static __always_inline struct ethhdr *parse_eth(struct cursor *c)
{
	struct ethhdr *eth = c->pos;

	if ((void *)(eth + 1) > c->end)
		return NULL;
	c->pos = eth + 1;
	return eth;
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
 * The fixed 20 bytes only; whether there are options, and whether the lengths
 * make sense, is the caller's to ask.
 */
static __always_inline struct iphdr *parse_ip(struct cursor *c)
{
	struct iphdr *ip = c->pos;

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

#endif
