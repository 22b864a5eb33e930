// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The balancer: parse, service, flow, schedule, rewrite, send, count.
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
#include <linux/ip.h>
#include <linux/tcp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define IP_DF 0x4000
#define IP_FRAGMENT 0x3fff /* more fragments, or an offset */
#define ARP_REQUEST 1

#include "config.h"
#include "types.h"
#include "verdict.h"
#include "maps.h"
#include "parse.h"
#include "csum.h"
#include "flow.h"
#include "scheduler.h"
#include "nat.h"
#include "reply.h"
#include "redispatch.h"

static __always_inline bool same_mac(const __u8 *a, const volatile __u8 *b)
{
	for (int i = 0; i < 6; i++)
		if (a[i] != b[i])
			return false;
	return true;
}

/*
 * Without a lease this node must not be found under the address. Gratuitous
 * requests pass: they ask nothing, and the daemon wants to see them.
 */
static __always_inline enum verdict handle_arp(struct cursor *c)
{
	struct arp_ipv4 *arp = parse_arp(c);
	__be32 sender, target;
	struct vip *vip;

	if (!arp)
		return PASS_TRUNCATED;
	__builtin_memcpy(&sender, arp->sender_ip, 4);
	__builtin_memcpy(&target, arp->target_ip, 4);
	if (arp->operation != bpf_htons(ARP_REQUEST) || sender == target)
		return PASS_ARP;
	vip = bpf_map_lookup_elem(&vips, &target);
	if (vip && bpf_ktime_get_coarse_ns() >= vip->lease_until)
		return DROP_FENCED_ARP;
	return PASS_ARP;
}

static __always_inline void count_traffic(__u32 backend, __u16 len, bool in)
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
	half->seen = p->now;
	half->packets++;
	half->bytes += p->len;
	/* Late segments must not turn it back. */
	if (p->tcp->ack) {
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
	__builtin_memcpy(reverse->client_mac, p->eth->h_source, 6);
	__builtin_memcpy(forward->client_mac, p->eth->h_source, 6);
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
	if (!same_mac(half->client_mac, p->eth->h_source))
		follow_client(half, p);
	if (!(half->flags & FLOW_ESTABLISHED) || p->tcp->fin || p->tcp->rst)
		flow_track_client(half, p->tcp);
	nat_rewrite(p, half, backend->mac);
	return verdict;
}

static __always_inline enum verdict reverse(struct xdp_md *ctx,
					    struct packet *p, struct flow *half)
{
	touch(half, p);
	count_traffic(half->backend, p->len, false);
	if (p->tcp->rst) {
		enum verdict verdict = redispatch_refused(ctx, p, half);

		if (verdict != TX_REVERSE)
			return verdict;
	}
	if (p->tcp->syn || p->tcp->fin || p->tcp->rst)
		flow_track_backend(half, p->tcp);
	nat_rewrite(p, half, half->client_mac);
	return TX_REVERSE;
}

static __always_inline bool is_backend(const struct packet *p)
{
	struct backend_key key = { .addr = p->key.saddr, .port = p->key.sport };

	return bpf_map_lookup_elem(&backend_ids, &key);
}

static __always_inline struct service *find_service(const struct packet *p)
{
	struct service_key key = {
		.addr = p->key.daddr,
		.port = p->key.dport,
		.proto = IPPROTO_TCP,
	};

	return bpf_map_lookup_elem(&services, &key);
}

/* A segment for which there is no flow. */
static __always_inline enum verdict handle_miss(struct xdp_md *ctx,
						struct packet *p)
{
	struct service *service = find_service(p);
	struct opening o = { .key = p->key, .now = p->now };
	enum verdict verdict;
	struct flow *half = NULL;

	if (!service)
		return is_backend(p) ? reply_rst(ctx, p, TX_RST_BACKEND) :
				       PASS_PORT;
	if (!p->tcp->syn || p->tcp->ack || p->tcp->fin || p->tcp->rst)
		return reply_rst(ctx, p, TX_RST_CLIENT);
	if (p->ip->ttl <= 1)
		return DROP_TTL;
	o.service = service->id;
	__builtin_memcpy(o.client_mac, p->eth->h_source, 6);
	verdict = nat_open(&o, &half);
	if (verdict == TX_NEW && half) {
		remember_syn(p, (void *)(long)ctx->data_end, o.excluded);
		return forward(p, half, TX_NEW);
	}
	if (verdict >= DROP_FENCED)
		return verdict;
	return reply_rst(ctx, p, verdict);
}

static __always_inline enum verdict handle_tcp(struct xdp_md *ctx,
					       struct packet *p,
					       const struct vip *vip)
{
	struct flow *half = bpf_map_lookup_elem(&flows, &p->key);
	enum verdict verdict = TX_FORWARD;

	if (p->now >= vip->lease_until)
		return half || find_service(p) || is_backend(p) ? DROP_FENCED :
								  PASS_PORT;
	if (half && p->ip->ttl <= 1)
		return DROP_TTL;
	if (!half)
		return handle_miss(ctx, p);
	if (!(half->flags & FLOW_FORWARD))
		return reverse(ctx, p, half);
	/*
	 * A new connection from an old one's port: schedule it afresh. Whoever
	 * takes the entry removes it; another CPU's copy of the SYN is dropped.
	 */
	if (half->flags & FLOW_CLOSED && p->tcp->syn && !p->tcp->ack) {
		if (__sync_fetch_and_or(&half->flags, FLOW_TAKEN) & FLOW_TAKEN)
			return DROP_RACE;
		flow_remove(half, &p->key);
		return handle_miss(ctx, p);
	}
	if (p->tcp->syn && !p->tcp->ack &&
	    !(half->flags & (FLOW_SYN_ACK | FLOW_CLOSED)) &&
	    p->now - half->created > SILENCE) {
		verdict = redispatch_silent(p, &half);
		if (verdict >= DROP_FENCED)
			return verdict;
		if (!half)
			return reply_rst(ctx, p, verdict);
	}
	return forward(p, half, verdict);
}

static __always_inline enum verdict handle_ip(struct xdp_md *ctx,
					      struct cursor *c)
{
	struct ethhdr *eth = (void *)(long)ctx->data;
	struct iphdr *ip = parse_ip(c);
	struct packet p = {};
	struct vip *vip;
	__be32 daddr;

	if (!ip || (void *)(eth + 1) > c->end)
		return PASS_TRUNCATED;
	daddr = ip->daddr;
	vip = bpf_map_lookup_elem(&vips, &daddr);
	if (!vip)
		return PASS_NOT_VIP;
	if (!same_mac(eth->h_dest, own_mac))
		return PASS_NOT_MINE;
	p.len = bpf_ntohs(ip->tot_len);
	if (ip->version != 4 || ip->ihl < 5 || p.len < ip->ihl * 4 ||
	    (void *)ip + p.len > c->end)
		return DROP_IP_HEADER;
	if (ip->protocol != IPPROTO_TCP)
		return PASS_NOT_TCP;
	if (ip->frag_off & bpf_htons(IP_FRAGMENT))
		return DROP_FRAGMENT;
	if (ip->ihl != 5)
		return DROP_IP_OPTIONS;
	p.eth = eth;
	p.ip = ip;
	p.tcp = parse_tcp(c);
	if (!p.tcp || p.len < sizeof(*ip) + p.tcp->doff * 4)
		return DROP_TCP_HEADER;
	p.key.saddr = ip->saddr;
	p.key.daddr = ip->daddr;
	p.key.sport = p.tcp->source;
	p.key.dport = p.tcp->dest;
	p.now = bpf_ktime_get_coarse_ns();
	return handle_tcp(ctx, &p, vip);
}

SEC("xdp")
int balancer(struct xdp_md *ctx)
{
	struct cursor c = {
		.pos = (void *)(long)ctx->data,
		.end = (void *)(long)ctx->data_end,
	};
	struct ethhdr *eth = parse_eth(&c);

	if (!eth)
		return finish(ctx, PASS_TRUNCATED);
	if (eth->h_proto == bpf_htons(ETH_P_IP))
		return finish(ctx, handle_ip(ctx, &c));
	if (eth->h_proto == bpf_htons(ETH_P_ARP))
		return finish(ctx, handle_arp(&c));
	return finish(ctx, PASS_ETHERTYPE);
}

/* Lets everything through: for the far end of a virtual cable, see docs. */
SEC("xdp")
int pass(struct xdp_md *ctx)
{
	return XDP_PASS;
}

static __always_inline bool reap_one(const struct reap_request *request)
{
	struct flow_key key = request->key;
	struct flow *forward = bpf_map_lookup_elem(&flows, &key);
	struct flow_key peer;
	struct flow *reverse;

	if (!forward || !(forward->flags & FLOW_FORWARD))
		return false;
	peer = flow_peer_key(forward);
	reverse = bpf_map_lookup_elem(&flows, &peer);
	if (!request->force && (forward->seen > request->seen ||
				(reverse && reverse->seen > request->seen)))
		return false;
	if (__sync_fetch_and_or(&forward->flags, FLOW_TAKEN) & FLOW_TAKEN)
		return false;
	flow_remove(forward, &key);
	return true;
}

/*
 * Remove flows that the daemon found to be over: an array of requests. It is
 * done here so that counting down stays in one place, and each is judged
 * again: it may be busy by now, or replaced.
 */
SEC("xdp")
int reap(struct xdp_md *ctx)
{
	struct reap_request *request = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;

	for (int i = 0; i < REAP_BATCH; i++, request++) {
		if ((void *)(request + 1) > end)
			break;
		request->reaped = reap_one(request);
	}
	return XDP_PASS;
}

/* Forget a slot's counts, once its flows are gone and before it is reused. */
SEC("xdp")
int clear_slot(struct xdp_md *ctx)
{
	struct clear_request *request = (void *)(long)ctx->data;
	struct load *load;
	__u32 service, slot;

	if ((void *)(request + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	service = request->service;
	slot = request->slot & (MAX_BACKENDS - 1);
	load = bpf_map_lookup_elem(&loads, &service);
	if (!load)
		return XDP_ABORTED;
	bpf_spin_lock(&load->lock);
	load->active[slot] = 0;
	load->total[slot] = 0;
	bpf_spin_unlock(&load->lock);
	return XDP_PASS;
}

/* Keeps the types in the BTF, from which the Go side gets them. */
const struct reap_request *unused_reap_request __attribute__((unused));
const struct clear_request *unused_clear_request __attribute__((unused));
const enum verdict *unused_verdict __attribute__((unused));
const enum flow_flag *unused_flow_flag __attribute__((unused));

char LICENSE[] SEC("license") = "Dual BSD/GPL";
