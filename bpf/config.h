/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * config.h: the fixed sizes of the datapath and the knobs that the daemon sets
 * before the program is loaded.
 *
 * Knobs are read-only data: the verifier sees them as constants and removes
 * the branches that they switch off, so a feature that is off costs nothing.
 */
#ifndef PGSTEER_CONFIG_H
#define PGSTEER_CONFIG_H

/* Limits; pkg/lb has the same numbers. */
#define MAX_SERVICES 256
#define MAX_BACKENDS 64
#define MAX_NAT_ADDRS 8 /* the VIP and MAX_NAT_ADDRS - 1 others */
#define CONNECT_TIME_BUCKETS 24
#define NAME_LEN 32

/* Virtual addresses of one family. */
#define MAX_VIPS 256

/* Entries of the flow table when the daemon sets no other size: two a flow. */
#define FLOW_TABLE_SIZE 524288

/*
 * Half-open flows; a power of two. One more and the oldest gives way, so that
 * a flood of SYNs can neither fill the flow table nor use up the SNAT ports.
 */
#define HALF_OPEN_FLOWS 32768
const volatile __u32 half_open_mask = HALF_OPEN_FLOWS - 1;

/* Networks of clients, over all services. */
#define MAX_ALLOWED 16384

/*
 * Random probes for a free SNAT port. At 90 % occupancy 32 probes fail once in
 * a thousand flows, 16 ten times as often; the cost is the same until then.
 */
#define SNAT_PROBES 32

/* Backends tried in turn when the first choice has no free SNAT port. */
#define BACKEND_TRIES 3

/* Bytes of options that a TCP header can have (RFC 9293, 3.1). */
#define MAX_TCP_OPTIONS 40

/* 802.1Q and 802.1ad tags before the network header. */
#define MAX_TAGS 2

/* Nanoseconds in a jiffy, the unit in which the program reads the time. */
const volatile __u64 jiffy = 4000000;

/*
 * A backend that refused a connection is the last choice for this long, in
 * nanoseconds: one interval of the health checks, whose word then counts.
 */
const volatile __u64 suspect_time = 2000000000ULL;

/*
 * A SYN sent again sooner than this is a duplicate of the network, not a
 * client that got no answer: the first retransmission comes after 1 s
 * (RFC 6298, 2.1).
 */
#define SILENCE 500000000ULL

/*
 * How far a reset's sequence number may be ahead of what its receiver has
 * acknowledged: what can be in flight, which Linux bounds by tcp_rmem, 6 MB by
 * default. A blind reset hits once in 512, and the receiver itself takes only
 * the exact number (RFC 5961, 3.2).
 */
#define RST_WINDOW (8 << 20)

/*
 * The interface's own MAC address, as the words that it is compared in: what
 * is not addressed to it is not ours.
 */
const volatile __u32 own_mac_head = 0;
const volatile __u16 own_mac_tail = 0;

/* SNAT ports, host order: low, low + count - 1. */
const volatile __u32 snat_low = 10240;
const volatile __u32 snat_count = 55296;

/*
 * Send by bpf_redirect() to the interface the packet came from instead of
 * XDP_TX: some virtual peers take one but not the other.
 */
const volatile bool tx_redirect = false;

/* There is another node, which is told of each change of a flow. */
const volatile bool replicating = false;

/* Bytes in the ring of such changes: some 40,000. A page without another node. */
#define EVENT_RING (4 << 20)

/* Packets may come in more than one piece: jumbo frames (kernel 5.18). */
const volatile bool frags = false;

/* Resets sent for unknown flows: per second, and as a burst. */
const volatile __u32 rst_rate = 20000;
const volatile __u32 rst_burst = 4000;

/*
 * SYNs that open flows, per second; 0 is no limit. Sources are
 * IPv4 addresses and IPv6 /64s, by hash: some share a budget. One from which a
 * handshake was completed not long ago is no spoofed one, and it is not held
 * to the total.
 */
const volatile __u32 syn_source_rate = 10000;
const volatile __u32 syn_total_rate = 20000;
/* No more than half of the half-open flows, or a burst would evict itself. */
const volatile __u32 syn_total_burst = HALF_OPEN_FLOWS / 2;
#define SYN_SOURCES 65536
#define SOURCE_KNOWN_TIME 600000000000ULL

#endif
