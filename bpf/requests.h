/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * requests.h: programs that are never attached. The daemon runs them by
 * BPF_PROG_RUN, with its request as the packet, for what must happen where the
 * packets' own work happens.
 */
#ifndef PGSTEER_REQUESTS_H
#define PGSTEER_REQUESTS_H

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
	if (!request->force &&
	    ((__s32)(forward->seen - request->seen) > 0 ||
	     (reverse && (__s32)(reverse->seen - request->seen) > 0)))
		return false;
	if (!flow_take(forward, &key))
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

#ifndef PGSTEER_IPV6

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
	load->credit[slot] = 0;
	load->total[slot] = 0;
	load->suspect[slot] = 0;
	load->refused[slot] = 0;
	load->redispatched[slot] = 0;
	load->resets[slot] = 0;
	load->evicted[slot] = 0;
	bpf_spin_unlock(&load->lock);
	return XDP_PASS;
}

/* The program's clock, which user space cannot read, beside one that it can. */
SEC("xdp")
int read_clock(struct xdp_md *ctx)
{
	struct clock_request *request = (void *)(long)ctx->data;

	if ((void *)(request + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	request->jiffies = bpf_jiffies64();
	request->ns = bpf_ktime_get_ns();
	return XDP_PASS;
}

#endif

#endif
