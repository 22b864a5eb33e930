/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * verdict.h: packet in, reason out.
 *
 * Each packet has one verdict, which counts it and yields the XDP action; all
 * but strangers, see pass_stranger(), leave through finish(). The tools take
 * the names from the BTF of this enum, in lower case: the first word is the
 * action.
 */
#ifndef PGSTEER_VERDICT_H
#define PGSTEER_VERDICT_H

enum verdict {
	/* Not ours: to the kernel, untouched. */
	PASS_ETHERTYPE, /* neither IP nor ARP */
	PASS_ARP,
	PASS_NEIGHBOUR, /* IPv6 neighbour discovery */
	PASS_NOT_VIP, /* another destination address */
	PASS_NOT_MINE, /* broadcast, multicast or another host's MAC address */
	PASS_NOT_TCP, /* echo requests and so on, to a VIP */
	PASS_PORT, /* a port of the VIP that no service has */
	PASS_TRUNCATED, /* too short to tell whose it is */

	/* Sent on. */
	TX_NEW, /* a new flow's SYN, scheduled */
	TX_FORWARD, /* client to backend */
	TX_REVERSE, /* backend to client */
	TX_REDISPATCH_REFUSED, /* the SYN, to another backend: one refused it */
	TX_REDISPATCH_SILENT, /* the same: one did not answer it */
	TX_ICMP, /* an error about a packet that was sent on */
	TX_RST_CLIENT, /* reset: unknown flow, from a client */
	TX_RST_BACKEND, /* reset: unknown flow, from a backend */
	TX_RST_NO_BACKEND, /* reset: no backend takes new flows */
	TX_RST_FULL, /* reset: all backends have all the flows they may have */
	TX_RST_NO_PORT, /* reset: no SNAT port free */
	TX_RST_TABLE_FULL, /* reset: the flow table is full */

	/* Dropped. */
	DROP_FENCED, /* this node's lease on the VIP has run out */
	DROP_FENCED_ARP,
	DROP_FENCED_NEIGHBOUR, /* a neighbour solicitation, likewise */
	DROP_IP_HEADER, /* malformed */
	DROP_IP_OPTIONS, /* IPv4 options or IPv6 extension headers */
	DROP_FRAGMENT,
	DROP_TCP_HEADER, /* malformed or truncated */
	DROP_ICMP, /* an error not believed, or kept from the client */
	DROP_TTL,
	DROP_NOT_ALLOWED, /* a client from outside the service's networks */
	DROP_CLIENT_OPTION, /* a SYN in which the client says that it is another */
	DROP_SYN_SOURCE, /* too many SYNs from this source */
	DROP_SYN_TOTAL, /* too many SYNs from sources that are not known */
	DROP_FULL, /* all backends have all the flows they may have */
	DROP_STRAY_RST, /* reset of an unknown flow */
	DROP_RST_LIMIT, /* unknown flow, but enough resets were sent */
	DROP_RACE, /* lost to another CPU on the same flow; sent again by the peer */
	DROP_REPLY, /* a packet could not be built */
	VERDICTS,
};

/* Counts by verdict; behind them, the verdict on this CPU's last packet. */
#define LAST_VERDICT VERDICTS

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, VERDICTS + 1);
	__type(key, __u32);
	__type(value, __u64);
} verdicts SEC(".maps");

static __always_inline void count_verdict(enum verdict verdict)
{
	__u32 index = verdict;
	__u64 *count = bpf_map_lookup_elem(&verdicts, &index);

	if (count)
		(*count)++;
}

/*
 * `pgsteer capture` watches the program's exit, and finds the verdict noted.
 * A function of its own to watch would be a call for each packet.
 */
static __always_inline void note_verdict(enum verdict verdict)
{
	__u32 index = LAST_VERDICT;
	__u64 *last = bpf_map_lookup_elem(&verdicts, &index);

	if (last)
		*last = verdict;
}

static __always_inline int finish(struct xdp_md *ctx, enum verdict verdict)
{
	count_verdict(verdict);
	note_verdict(verdict);
	if (verdict < TX_NEW)
		return XDP_PASS;
	if (verdict >= DROP_FENCED)
		return XDP_DROP;
	if (tx_redirect)
		return bpf_redirect(ctx->ingress_ifindex, 0);
	return XDP_TX;
}

#endif
