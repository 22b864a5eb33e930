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
