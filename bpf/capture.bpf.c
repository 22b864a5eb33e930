// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Packets before and after the balancer, each pair with its verdict.
 *
 * Two tracing programs, at the entry and at the exit of the XDP program, which
 * notes its verdict in a table of its own. They are attached to the running
 * program while somebody captures; without them not an instruction of theirs is
 * in a packet's way. A packet is copied when it comes, for only its end tells
 * whether it is wanted.
 */
#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

/* Tags of a frame that are stepped over; bpf/config.h has the same number. */
#define MAX_TAGS 2

/*
 * Bytes that are kept of a packet at the most: a page, which is more than a
 * driver gives to a program that takes no fragments.
 */
#define SNAPLEN_MAX 4096

#define IP_OFFSET 0x1fff /* of a fragment */

/* Bytes in the ring: some ten thousand packets that nobody has read yet. */
#define RING_SIZE (8 << 20)

/* More verdicts than there are; a power of two. */
#define VERDICTS_MAX 256

/* Bytes kept of a packet as it came and as it left. */
const volatile __u32 snaplen_in = SNAPLEN_MAX;
const volatile __u32 snaplen_out = SNAPLEN_MAX;

/* By enum verdict: whether such packets are wanted. */
const volatile bool wanted[VERDICTS_MAX] = {};

/* The enum verdict of a packet that leaves without one being noted. */
const volatile __u32 unnoted = 0;

/* Where the XDP program's table of verdicts has the last one. */
const volatile __u32 last_verdict = 0;

/*
 * Only packets from or to these addresses, before or after they were rewritten;
 * IPv4 addresses stand in their IPv6 form ::ffff:a.b.c.d. A mask of zero wants
 * all of them.
 */
const volatile __be32 host[4] = {};
const volatile __be32 host_mask[4] = {};

/* Only packets from or to this TCP or UDP port; 0 wants all of them. */
const volatile __be16 port = 0;

/* What the kernel has behind struct xdp_md. */
struct xdp_buff {
	void *data;
	void *data_end;
} __attribute__((preserve_access_index));

/* One side of a packet. */
struct extent {
	__u32 len; /* bytes on the wire; 0: nothing was sent */
	__u32 captured; /* bytes that follow */
};

/* What goes through the ring; the captured bytes, in before out, follow. */
struct event {
	__u64 received; /* CLOCK_MONOTONIC, nanoseconds */
	__u64 left;
	__u32 verdict; /* enum verdict of the program that was watched */
	__u32 action; /* enum xdp_action */
	struct extent in;
	struct extent out;
};

/* The packet that this CPU has at hand. */
struct scratch {
	__u64 packet; /* address of its xdp_buff; 0: none */
	__u64 matches; /* host and port, as it came */
	struct event event;
	__u8 data[2 * SNAPLEN_MAX];
};

struct tally {
	__u64 seen; /* packets that entered the XDP program */
	__u64 accepted; /* of these, by host, port and verdict */
	__u64 lost; /* of these, because the ring was full */
};

/* Zero to the packet at hand. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct scratch);
} scratches SEC(".maps");

/* Zero to what was counted. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tally);
} tallies SEC(".maps");

/* The XDP program's own; the size is set before loading. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} verdicts SEC(".maps");

/* struct event and the bytes of the packet. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, RING_SIZE);
} events SEC(".maps");

/* ARP for Ethernet and IPv4 (RFC 826). */
struct arp_ipv4 {
	__u8 header[8];
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

static __always_inline __u32 packet_len(struct xdp_buff *xdp)
{
	return xdp->data_end - xdp->data;
}

/* Copies at most size bytes of the packet and returns how many it were. */
static __always_inline __u32 copy(void *to, __u32 size, struct xdp_buff *xdp)
{
	__u32 len = packet_len(xdp);

	if (len > size)
		len = size;
	if (bpf_probe_read_kernel(to, len, xdp->data))
		return 0;
	return len;
}

/* Copies what stands at pos; false when that lies beyond the packet's end. */
static __always_inline bool read(struct xdp_buff *xdp, __u32 pos, void *to,
				 __u32 size)
{
	return pos + size <= packet_len(xdp) &&
	       !bpf_probe_read_kernel(to, size, xdp->data + pos);
}

static __always_inline bool is_host(const __be32 *addr)
{
	for (int i = 0; i < 4; i++)
		if ((addr[i] & host_mask[i]) != host[i])
			return false;
	return true;
}

static __always_inline bool is_host4(const void *word)
{
	__be32 addr[4] = { 0, 0, bpf_htonl(0xffff) };

	__builtin_memcpy(&addr[3], word, 4);
	return is_host(addr);
}

/* Whether one of the ports of the segment or datagram at pos is wanted. */
static __always_inline bool match_ports(struct xdp_buff *xdp, __u32 pos,
					__u8 proto)
{
	__be16 ports[2];

	if (!port)
		return true;
	if (proto != IPPROTO_TCP && proto != IPPROTO_UDP)
		return false;
	return read(xdp, pos, ports, sizeof(ports)) &&
	       (ports[0] == port || ports[1] == port);
}

static __always_inline bool match_arp(struct xdp_buff *xdp, __u32 pos)
{
	struct arp_ipv4 arp;

	return !port && read(xdp, pos, &arp, sizeof(arp)) &&
	       (is_host4(arp.sender_ip) || is_host4(arp.target_ip));
}

static __always_inline bool match_ipv4(struct xdp_buff *xdp, __u32 pos)
{
	struct iphdr ip;

	if (!read(xdp, pos, &ip, sizeof(ip)) ||
	    (!is_host4(&ip.saddr) && !is_host4(&ip.daddr)))
		return false;
	if (port && ip.frag_off & bpf_htons(IP_OFFSET))
		return false;
	return match_ports(xdp, pos + ip.ihl * 4, ip.protocol);
}

static __always_inline bool match_ipv6(struct xdp_buff *xdp, __u32 pos)
{
	struct ipv6hdr ip;

	return read(xdp, pos, &ip, sizeof(ip)) &&
	       (is_host(ip.saddr.in6_u.u6_addr32) ||
		is_host(ip.daddr.in6_u.u6_addr32)) &&
	       match_ports(xdp, pos + sizeof(ip), ip.nexthdr);
}

/* Whether it is from or to the host and the port that are wanted. */
static __always_inline bool match(struct xdp_buff *xdp)
{
	__u32 pos = sizeof(struct ethhdr);
	struct ethhdr eth;
	struct vlan_tag tag;

	if (!read(xdp, 0, &eth, sizeof(eth)))
		return false;
	tag.proto = eth.h_proto;
	for (int i = 0; i < MAX_TAGS; i++) {
		if (tag.proto != bpf_htons(ETH_P_8021Q) &&
		    tag.proto != bpf_htons(ETH_P_8021AD))
			break;
		if (!read(xdp, pos, &tag, sizeof(tag)))
			return false;
		pos += sizeof(tag);
	}
	switch (tag.proto) {
	case bpf_htons(ETH_P_ARP):
		return match_arp(xdp, pos);
	case bpf_htons(ETH_P_IP):
		return match_ipv4(xdp, pos);
	case bpf_htons(ETH_P_IPV6):
		return match_ipv6(xdp, pos);
	}
	return false;
}

/* False when everything matches: known before the program runs. */
static __always_inline bool filtering(void)
{
	return port || host_mask[0] || host_mask[1] || host_mask[2] ||
	       host_mask[3];
}

/* Where this CPU's last verdict is noted; NULL never. */
static __always_inline __u64 *noted(void)
{
	__u32 index = last_verdict;

	return bpf_map_lookup_elem(&verdicts, &index);
}

SEC("fentry/balancer")
int BPF_PROG(packet_in, struct xdp_buff *xdp)
{
	__u32 zero = 0;
	struct scratch *s = bpf_map_lookup_elem(&scratches, &zero);
	struct tally *c = bpf_map_lookup_elem(&tallies, &zero);
	__u64 *verdict = noted();

	if (!s || !c || !verdict)
		return 0;
	c->seen++;
	*verdict = unnoted;
	s->packet = (__u64)xdp;
	s->event.received = bpf_ktime_get_ns();
	s->event.in.len = packet_len(xdp);
	s->event.in.captured = copy(s->data, snaplen_in, xdp);
	s->matches = !filtering() || match(xdp);
	return 0;
}

/* Puts it into the ring if it is wanted. */
static __always_inline void give(struct scratch *s, struct xdp_buff *xdp,
				 __u32 verdict, int action)
{
	bool sent = action == XDP_TX || action == XDP_REDIRECT;
	__u32 zero = 0, in, out = 0;
	struct tally *c = bpf_map_lookup_elem(&tallies, &zero);

	if (!c || !wanted[verdict & (VERDICTS_MAX - 1)])
		return;
	if (!s->matches && !(sent && match(xdp)))
		return;
	c->accepted++;
	in = s->event.in.captured;
	if (in > SNAPLEN_MAX)
		return;
	if (sent)
		out = copy(s->data + in, snaplen_out, xdp);
	s->event.left = bpf_ktime_get_ns();
	s->event.verdict = verdict;
	s->event.action = action;
	s->event.out.len = sent ? packet_len(xdp) : 0;
	s->event.out.captured = out;
	if (bpf_ringbuf_output(&events, &s->event, sizeof(s->event) + in + out,
			       0))
		c->lost++;
}

/* After a tail call, too: what was called returns to here. */
SEC("fexit/balancer")
int BPF_PROG(packet_out, struct xdp_buff *xdp, int action)
{
	__u32 zero = 0;
	struct scratch *s = bpf_map_lookup_elem(&scratches, &zero);
	__u64 *verdict = noted();

	/* It may have come before packet_in was attached. */
	if (!s || !verdict || s->packet != (__u64)xdp)
		return 0;
	s->packet = 0;
	give(s, xdp, *verdict, action);
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
