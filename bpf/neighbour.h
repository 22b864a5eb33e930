/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * neighbour.h: without a lease this node must not be found under an address.
 *
 * Requests for it, by ARP or by neighbour discovery, are dropped, so that the
 * kernel does not answer. Gratuitous ones pass: they ask nothing, and the
 * daemon wants to see them.
 */
#ifndef PGSTEER_NEIGHBOUR_H
#define PGSTEER_NEIGHBOUR_H

/* Whether the address is a VIP that this node has no lease for. */
static __always_inline bool is_fenced(const struct addr *addr)
{
	struct vip *vip = bpf_map_lookup_elem(&vips, addr);

	return vip && !leased(vip->index, bpf_jiffies64());
}

#ifdef PGSTEER_IPV6

#define NEIGHBOUR_SOLICITATION 135 /* RFC 4861, 4.3 */

struct neighbour_solicitation {
	__u8 type;
	__u8 code;
	__be16 check;
	__be32 reserved;
	struct addr target;
};

/* PASS_ETHERTYPE, which IPv6 has no use for, when it is none. */
static __always_inline enum verdict handle_neighbour(struct cursor c)
{
	struct neighbour_solicitation *ns = c.pos;
	struct addr target;

	if ((void *)(ns + 1) > c.end || ns->type != NEIGHBOUR_SOLICITATION)
		return PASS_ETHERTYPE;
	target = ns->target;
	return is_fenced(&target) ? DROP_FENCED_NEIGHBOUR : PASS_NEIGHBOUR;
}

#else

#define ARP_REQUEST 1

static __always_inline enum verdict handle_arp(struct cursor *c)
{
	struct arp_ipv4 *arp = parse_arp(c);
	struct addr sender, target;

	if (!arp)
		return PASS_TRUNCATED;
	__builtin_memcpy(&sender, arp->sender_ip, 4);
	__builtin_memcpy(&target, arp->target_ip, 4);
	if (arp->operation != bpf_htons(ARP_REQUEST) ||
	    sender.word[0] == target.word[0])
		return PASS_ARP;
	return is_fenced(&target) ? DROP_FENCED_ARP : PASS_ARP;
}

#endif

#endif
