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
#define NAME_LEN 32

/* Entries of the flow table when the daemon sets no other size: two a flow. */
#define FLOW_TABLE_SIZE 524288

/*
 * Random probes for a free SNAT port. At 90 % occupancy 32 probes fail once in
 * a thousand flows, 16 ten times as often; the cost is the same until then.
 */
#define SNAT_PROBES 32

/* Backends tried in turn when the first choice has no free SNAT port. */
#define BACKEND_TRIES 3

/* Bytes of options that a TCP header can have (RFC 9293, 3.1). */
#define MAX_TCP_OPTIONS 40

/*
 * Half-open flows whose SYN is remembered. The least recent ones are forgotten:
 * they lose no more than the offer to another backend.
 */
#define HANDSHAKES 65536

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

/* The interface's own MAC address: what is not addressed to it is not ours. */
const volatile __u8 own_mac[6] = {};

/* SNAT ports, host order: low, low + count - 1. */
const volatile __u32 snat_low = 10240;
const volatile __u32 snat_count = 55296;

/*
 * Send by bpf_redirect() to the interface the packet came from instead of
 * XDP_TX: some virtual peers take one but not the other.
 */
const volatile bool tx_redirect = false;

/* Resets sent for unknown flows: per second and CPU, and as a burst. */
const volatile __u32 rst_rate = 10000;
const volatile __u32 rst_burst = 2000;

#endif
