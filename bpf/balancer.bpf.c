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
#include "flow.h"
#include "scheduler.h"
#include "nat.h"
#include "reply.h"
#include "syn.h"
#include "redispatch.h"
#include "neighbour.h"
#include "icmp.h"
#include "requests.h"

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

static __always_inline bool is_backend(const struct packet *p)
{
	struct backend_key key;

	key.addr = p->key.saddr;
	*(word *)&key.port = p->key.sport; /* and the padding */
	return bpf_map_lookup_elem(&backend_ids, &key);
}

static __always_inline bool is_pure_syn(__u8 flags)
{
	return (flags & (TCP_SYN | TCP_ACK | TCP_FIN | TCP_RST)) == TCP_SYN;
}

static __always_inline bool is_allowed(const struct service *service,
				       const struct addr *addr)
{
	struct network network = {
		.bits = 32 + 8 * sizeof(*addr),
		.service = bpf_htonl(service->id),
		.addr = *addr,
	};

	return bpf_map_lookup_elem(&allowed, &network);
}

/* A SYN that no flow has: schedule it. */
static __noinline enum verdict open_flow(struct xdp_md *ctx, struct packet *p,
					 const struct service *service)
{
	struct scratch *s = scratch();
	struct handshake *syn;
	enum verdict verdict;
	struct opening *o;

	if (ip_hops(p->ip) <= 1)
		return DROP_TTL;
	if (service->flags & SERVICE_RESTRICTED &&
	    !is_allowed(service, &p->key.saddr))
		return DROP_NOT_ALLOWED;
	verdict = syn_budget(&p->key.saddr, p->now);
	if (verdict != TX_NEW)
		return verdict;
	syn = take_ticket();
	if (!syn || !s)
		return DROP_RACE;
	o = &s->opening;
	o->key = p->key;
	o->bytes = p->len;
	o->now = p->now;
	o->excluded = 0;
	o->ticket = syn->ticket;
	o->vip = service->nat_vips[0];
	mac_copy(o->client_mac, p->eth->h_source);
	if (!remember_syn(p, (void *)(long)ctx->data_end, syn,
			  service->flags & SERVICE_CLIENT_ADDRESS)) {
		syn->ticket = 0;
		return DROP_CLIENT_OPTION;
	}
	verdict = nat_open(service);
	if (verdict == TX_NEW) {
		syn->tried = o->excluded;
		return send_syn(ctx, p, &s->forward, syn) ? TX_NEW : DROP_REPLY;
	}
	syn->ticket = 0;
	return verdict >= DROP_FENCED ? verdict : reply_rst(ctx, p, verdict);
}

/* A segment for a service, for which there is no flow. */
static __always_inline enum verdict handle_miss(struct xdp_md *ctx,
						struct packet *p,
						const struct service *service)
{
	if (!leased(service->nat_vips[0], p->now))
		return DROP_FENCED;
	if (!is_pure_syn(tcp_flags(p->tcp)))
		return reply_rst(ctx, p, TX_RST_CLIENT);
	return open_flow(ctx, p, service);
}

/* The same for another port of a VIP. */
static __always_inline enum verdict handle_port(struct xdp_md *ctx,
						struct packet *p, __u32 vip)
{
	if (!is_backend(p))
		return PASS_PORT;
	if (!leased(vip, p->now))
		return DROP_FENCED;
	return reply_rst(ctx, p, TX_RST_BACKEND);
}

/*
 * A SYN for a flow that there is: the same SYN again, which may be offered to
 * another backend, or a new connection from an old one's port, which is
 * scheduled afresh: p->fresh says so.
 */
static __noinline enum verdict handle_syn(struct xdp_md *ctx, struct packet *p,
					  struct flow *half)
{
	struct handshake *syn = handshake_of(half);
	struct scratch *s = scratch();
	__u32 flags = half->flags;
	enum verdict verdict;

	if (!(flags & (FLOW_ESTABLISHED | FLOW_CLOSED | FLOW_FIN_CLIENT)) &&
	    syn && s && syn->seq == p->tcp->seq) {
		if (!(flags & FLOW_SYN_ACK) &&
		    bpf_ktime_get_ns() - syn->opened_ns > SILENCE) {
			s->opening.key = p->key;
			verdict = reopen(p->now, syn, half);
			if (verdict == TX_NEW)
				return send_syn(ctx, p, &s->forward, syn) ?
					       TX_REDISPATCH_SILENT :
					       DROP_REPLY;
			if (verdict >= DROP_FENCED)
				return verdict;
			if (verdict != TX_FORWARD)
				return reply_rst(ctx, p, verdict);
		}
		touch(half, p);
		return send_syn(ctx, p, half, syn) ? TX_FORWARD : DROP_REPLY;
	}
	if (flags & (FLOW_ESTABLISHED | FLOW_FIN_CLIENT) &&
	    !(flags & FLOW_CLOSED))
		return forward(p, half, TX_FORWARD); /* the backend decides */
	/*
	 * Whoever takes the entry removes it; another CPU's copy of the SYN is
	 * dropped.
	 */
	if (!flow_take(half, &p->key))
		return DROP_RACE;
	flow_remove(half, &p->key);
	p->fresh = true;
	return TX_NEW;
}

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
 * What most packets are: for no VIP, which is seen at first sight. They do not
 * pay for the way through finish().
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
const struct network *unused_network __attribute__((unused));
const enum verdict *unused_verdict __attribute__((unused));
const enum flow_flag *unused_flow_flag __attribute__((unused));
const enum slot_flag *unused_slot_flag __attribute__((unused));
const enum service_flag *unused_service_flag __attribute__((unused));

char LICENSE[] SEC("license") = "Dual BSD/GPL";
