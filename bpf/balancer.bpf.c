// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The balancer: parse, flow or service, schedule, rewrite, send, count.
 *
 * Attached to the LAN interface of each node. Packets that are not for a
 * service of a VIP go to the kernel untouched. Packets that are never do: while
 * the VIP is a local address the kernel would answer them with a reset.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/errno.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "config.h"
#include "csum.h"
#include "family.h"
#include "types.h"
#include "verdict.h"
#include "maps.h"
#include "parse.h"
#include "budget.h"
#include "events.h"
#include "flow.h"
#include "scheduler.h"
#include "nat.h"
#include "reply.h"
#include "syn.h"
#include "redispatch.h"
#include "neighbour.h"
#include "forward.h"
#include "open.h"
#include "icmp.h"
#include "requests.h"
#include "replica.h"

static __always_inline enum verdict handle_flow(struct xdp_md *ctx,
						struct packet *p,
						struct flow *half)
{
	__u32 vip = half->vip;
	__u64 *until = bpf_map_lookup_elem(&leases, &vip);

	if (!until || p->now >= *until)
		return DROP_FENCED;
	if (ip_hops(p->ip) <= 1)
		return DROP_TTL;
	if (!(half->flags & FLOW_FORWARD))
		return reverse(ctx, p, half);
	if (is_pure_syn(tcp_flags(p->tcp)))
		return handle_syn(ctx, p, half);
	return forward(p, half, TX_FORWARD);
}

/* What is wrong with the headers; TX_FORWARD when nothing is. */
static __always_inline enum verdict check_headers(struct xdp_md *ctx,
						  struct cursor *c,
						  struct packet *p)
{
	ip_header *ip = p->ip;

	p->len = ip_len(ip);
#ifdef PGSTEER_IPV6
	if (ip->version != 6)
		return DROP_IP_HEADER;
#else
	if (ip->version != 4 || ip->ihl < 5 || p->len < ip->ihl * 4)
		return DROP_IP_HEADER;
#endif
	if (frags ? p->l2.len + p->len > bpf_xdp_get_buff_len(ctx) :
		    (void *)ip + p->len > c->end)
		return DROP_IP_HEADER;
#ifdef PGSTEER_IPV6
	switch (ip->nexthdr) {
	case IPPROTO_FRAGMENT:
		return DROP_FRAGMENT;
	case IPPROTO_HOPOPTS:
	case IPPROTO_ROUTING:
	case IPPROTO_DSTOPTS:
		return DROP_IP_OPTIONS;
	}
#endif
	if (ip_protocol(ip) != IPPROTO_TCP)
		return PASS_NOT_TCP;
#ifndef PGSTEER_IPV6
	if (ip->frag_off & bpf_htons(IP_FRAGMENT))
		return DROP_FRAGMENT;
	if (ip->ihl != 5)
		return DROP_IP_OPTIONS;
#endif
	p->tcp = parse_tcp(c);
	if (!p->tcp || p->len < sizeof(*ip) + p->tcp->doff * 4)
		return DROP_TCP_HEADER;
	return TX_FORWARD;
}

/* Whether the packet is for the one service that the hint is about. */
static __always_inline bool is_hinted(const struct vip_hint *hint,
				      const struct packet *p)
{
	if (hint->port != p->key.dport)
		return false;
	for (int i = 0; i < ADDR_WORDS; i++)
		if (hint->addr.word[i] != p->key.daddr.word[i])
			return false;
	return true;
}

static __always_inline enum verdict handle_ip(struct xdp_md *ctx,
					      struct cursor *c,
					      struct ethhdr *eth, ip_header *ip,
					      const struct l2 *l2,
					      const struct vip_hint *hint)
{
	struct packet p = { .eth = eth, .ip = ip, .l2 = *l2 };
	struct service *service;
	enum verdict verdict;
	struct flow *half;
	struct vip *vip;

	if (!mac_is_own(eth->h_dest))
		return PASS_NOT_MINE;
	key_set_addrs(&p.key, p.ip);
	p.now = bpf_jiffies64();
	verdict = check_headers(ctx, c, &p);
	if (verdict == TX_FORWARD) {
		key_set_ports(&p.key, p.tcp);
		half = bpf_map_lookup_elem(&flows, &p.key);
		if (half) {
			verdict = handle_flow(ctx, &p, half);
			if (!p.fresh)
				return verdict;
			verdict = TX_FORWARD;
		}
		if (is_hinted(hint, &p) && !is_pure_syn(tcp_flags(p.tcp)))
			return leased(hint->index, p.now) ?
				       reply_rst(ctx, &p, TX_RST_CLIENT) :
				       DROP_FENCED;
		service = service_at(&p.key.daddr, p.key.dport);
		if (service)
			return handle_miss(ctx, &p, service);
	}
	vip = bpf_map_lookup_elem(&vips, &p.key.daddr);
	if (!vip)
		return PASS_NOT_VIP;
	if (verdict == PASS_NOT_TCP && ip_protocol(p.ip) == IPPROTO_ICMP_FAMILY)
		return handle_icmp(ctx, &p);
	if (verdict != TX_FORWARD)
		return verdict;
	return handle_port(ctx, &p, vip->index);
}

/* What is known of an address that is worth looking up; else NULL. */
static __always_inline struct vip_hint *hint_of(const struct addr *addr)
{
	__u32 last = addr_last_byte(addr);
	struct vip_hint *hint = bpf_map_lookup_elem(&vip_hints, &last);

	return hint && hint->count ? hint : NULL;
}

/*
 * What most packets are: for no VIP, which is seen at first sight. They pay for
 * nothing but their count: who captures takes an exit without a note for this.
 */
static __always_inline int pass_stranger(void)
{
	count_verdict(PASS_NOT_VIP);
	return XDP_PASS;
}

static __always_inline struct cursor cursor_of(struct xdp_md *ctx)
{
	struct cursor c = {
		.pos = (void *)(long)ctx->data,
		.end = (void *)(long)ctx->data_end,
	};

	return c;
}

/* What the frame is said to carry, behind its tags; 0 when it ends too early. */
static __always_inline __be16 parse_frame(struct cursor *c, struct ethhdr **eth,
					  struct l2 *l2)
{
	__be16 proto;

	*eth = parse_eth(c);
	if (!*eth)
		return 0;
	l2->len = sizeof(**eth);
	proto = eth_proto(*eth);
	return parse_tags(c, l2, &proto) ? proto : 0;
}

#ifdef PGSTEER_IPV6

SEC("xdp")
int balancer6(struct xdp_md *ctx)
{
	struct cursor c = cursor_of(ctx);
	enum verdict verdict;
	struct ethhdr *eth;
	struct l2 l2 = {};
	struct vip_hint *hint;
	ip_header *ip;

	if (parse_frame(&c, &eth, &l2) != bpf_htons(ETH_P_IPV6))
		return finish(ctx, PASS_ETHERTYPE);
	ip = parse_ip(&c);
	if (!ip)
		return finish(ctx, PASS_TRUNCATED);
	if (ip->nexthdr == IPPROTO_ICMPV6) {
		verdict = handle_neighbour(c);
		if (verdict != PASS_ETHERTYPE)
			return finish(ctx, verdict);
	}
	hint = hint_of(ip_daddr(ip));
	if (!hint)
		return pass_stranger();
	return finish(ctx, handle_ip(ctx, &c, eth, ip, &l2, hint));
}

#else

SEC("xdp")
int balancer(struct xdp_md *ctx)
{
	struct cursor c = cursor_of(ctx);
	enum verdict verdict = PASS_ETHERTYPE;
	struct ethhdr *eth;
	struct l2 l2 = {};
	struct vip_hint *hint;
	ip_header *ip;

	switch (parse_frame(&c, &eth, &l2)) {
	case 0:
		verdict = PASS_TRUNCATED;
		break;
	case bpf_htons(ETH_P_IP):
		ip = parse_ip(&c);
		if (!ip) {
			verdict = PASS_TRUNCATED;
			break;
		}
		hint = hint_of(ip_daddr(ip));
		if (!hint)
			return pass_stranger();
		verdict = handle_ip(ctx, &c, eth, ip, &l2, hint);
		break;
	case bpf_htons(ETH_P_IPV6):
		bpf_tail_call(ctx, &programs, PROGRAM_IPV6);
		break; /* not there: nothing of ours is IPv6 */
	case bpf_htons(ETH_P_ARP):
		verdict = handle_arp(&c);
		break;
	}
	return finish(ctx, verdict);
}

/* Lets everything through: for the far end of a virtual cable, see docs. */
SEC("xdp")
int pass(struct xdp_md *ctx)
{
	return XDP_PASS;
}

#endif

/* Keeps the types in the BTF, from which the Go side gets them. */
const struct reap_request *unused_reap_request __attribute__((unused));
const struct clear_request *unused_clear_request __attribute__((unused));
const struct clock_request *unused_clock_request __attribute__((unused));
const struct flow_event *unused_flow_event __attribute__((unused));
const struct network *unused_network __attribute__((unused));
const enum verdict *unused_verdict __attribute__((unused));
const enum flow_flag *unused_flow_flag __attribute__((unused));
const enum replica_answer *unused_replica_answer __attribute__((unused));
const enum slot_flag *unused_slot_flag __attribute__((unused));
const enum service_flag *unused_service_flag __attribute__((unused));

char LICENSE[] SEC("license") = "Dual BSD/GPL";
