// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The harness: times a program that changes its packet.
 *
 * BPF_PROG_RUN with a repeat count runs the program on one and the same
 * packet, so that what a NAT program gets the second time is its own output.
 * The harness stands in front of it: it puts the packet back as it was, with
 * the addresses of another flow if it has several, and goes on to the program
 * by a tail call. What the harness itself costs is measured by letting it go
 * on to the empty program instead.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

/* Headers that are restored: Ethernet, IPv4, TCP without and with 20 bytes. */
#define PLAIN 54
#define WITH_OPTIONS 74

/* Flows that the addresses are taken from; a power of two. */
#define MAX_TUPLES (1 << 17)

/* What differs between the packets of two flows, in network order. */
struct tuple {
	__be32 saddr;
	__be32 daddr;
	__be16 sport;
	__be16 dport;
	__be16 ip_check;
	__be16 tcp_check;
};

/* Set before loading. */
const volatile __u32 frame_len = PLAIN; /* bytes of the whole frame */
const volatile bool options = false; /* restore WITH_OPTIONS bytes */
const volatile bool varying = false; /* take tuples in turn */

/* Set before a batch. */
__u8 header[80] = {}; /* what is restored */
__u32 tuple_count = 1;
__u32 next_tuple = 0;
struct tuple tuples[MAX_TUPLES] = {};

/* Written by settle(). */
__u64 settled = 0;

/* Where to go on. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} target SEC(".maps");

#define COPY(type, at) \
	(*(volatile type *)(data + (at)) = *(const type *)(header + (at)))

static __always_inline void restore(void *data)
{
	COPY(__u32, 0);
	COPY(__u16, 4);
	COPY(__u64, 6); /* source MAC address, type */
	COPY(__u64, 14);
	COPY(__u64, 22); /* up to the source address */
	COPY(__u64, 30); /* destination address, ports */
	COPY(__u64, 38); /* both sequence numbers */
	COPY(__u64, 46);
	if (!options)
		return;
	COPY(__u64, 54);
	COPY(__u64, 62);
	COPY(__u32, 70);
}

static __always_inline void readdress(void *data)
{
	__u32 i = next_tuple & (MAX_TUPLES - 1);
	const struct tuple *t = &tuples[i];

	next_tuple = i + 1 < tuple_count ? i + 1 : 0;
	*(volatile __be16 *)(data + 24) = t->ip_check;
	*(volatile __be32 *)(data + 26) = t->saddr;
	*(volatile __be32 *)(data + 30) = t->daddr;
	*(volatile __be16 *)(data + 34) = t->sport;
	*(volatile __be16 *)(data + 36) = t->dport;
	*(volatile __be16 *)(data + 50) = t->tcp_check;
}

/*
 * A packet comes from memory. What was just written is still in the store
 * buffer, from where a field that lies in two of the pieces cannot be forwarded
 * to its reader: the program would seem slower than it is. A locked instruction
 * waits until the buffer is empty; what that takes is the harness's.
 */
static __always_inline void settle(void)
{
	__sync_fetch_and_add(&settled, 1);
}

/*
 * The program may have moved the frame's front to make room, or cut its end
 * off. One that did both is not put back; none does.
 */
static __always_inline long resize(struct xdp_md *ctx, long surplus)
{
	if (surplus > 0)
		return bpf_xdp_adjust_head(ctx, surplus);
	return bpf_xdp_adjust_tail(ctx, -surplus);
}

SEC("xdp")
int harness(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	long surplus = (long)end - (long)data;

	/* Without this the compiler subtracts in 32 bits: not for pointers. */
	asm volatile("" : "+r"(surplus));
	surplus -= frame_len;
	if (surplus) {
		if (resize(ctx, surplus))
			return XDP_ABORTED;
		data = (void *)(long)ctx->data;
		end = (void *)(long)ctx->data_end;
	}
	if (data + (options ? WITH_OPTIONS : PLAIN) > end)
		return XDP_ABORTED;
	restore(data);
	if (varying)
		readdress(data);
	settle();
	bpf_tail_call(ctx, &target, 0);
	return XDP_ABORTED;
}

/* What everything is a multiple of. */
SEC("xdp")
int empty(struct xdp_md *ctx)
{
	return XDP_TX;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
