/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * maps.h: the state that outlives the daemon. All are pinned by the loader.
 *
 * Those that hold addresses exist once per family: the IPv6 program has its
 * own under names that end in 6. The others are shared; service and backend
 * numbers count over both families.
 */
#ifndef PGSTEER_MAPS_H
#define PGSTEER_MAPS_H

#ifdef PGSTEER_IPV6
#define vips vips6
#define leases leases6
#define vip_hints vip_hints6
#define services services6
#define backends backends6
#define backend_ids backend_ids6
#define flows flows6
#define handshakes handshakes6
#define tickets tickets6
#define allowed allowed6
#define sources sources6
#define events events6
#define lost_events lost_events6
#endif

/* Virtual address to what is known of it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_VIPS);
	__type(key, struct addr);
	__type(value, struct vip);
} vips SEC(".maps");

/*
 * By a VIP's index: until when this node may answer for it. Apart from the
 * rest so that a renewal is one store, and a known flow's packet needs no hash
 * for it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_VIPS);
	__type(key, __u32);
	__type(value, __u64);
} leases SEC(".maps");

/* Whether this node may answer for it now. */
static __always_inline bool leased(__u32 index, __u64 now)
{
	__u64 *until = bpf_map_lookup_elem(&leases, &index);

	return until && now < *until;
}

/*
 * By the last byte of an address: the VIPs that end in it. What is not for a
 * VIP is most often told by this alone, at a tenth of a hash lookup's cost.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, struct vip_hint);
} vip_hints SEC(".maps");

/* VIP and port to service. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_SERVICES);
	__type(key, struct service_key);
	__type(value, struct service);
} services SEC(".maps");

/* Service id to its backends' states and weights. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_SERVICES);
	__type(key, __u32);
	__type(value, struct schedule);
} schedules SEC(".maps");

/* Service * MAX_BACKENDS + slot to address and next hop. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_SERVICES *MAX_BACKENDS);
	__type(key, __u32);
	__type(value, struct backend);
} backends SEC(".maps");

/* Backend address to index into backends: who may be told that a flow is gone. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_SERVICES *MAX_BACKENDS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct backend_key);
	__type(value, __u32);
} backend_ids SEC(".maps");

/* Service id to counts. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_SERVICES);
	__type(key, __u32);
	__type(value, struct load);
} loads SEC(".maps");

/*
 * Both halves of each flow. A plain hash, never LRU: an evicted entry would be
 * a broken connection and a lost decrement.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, FLOW_TABLE_SIZE);
	__type(key, struct flow_key);
	__type(value, struct flow);
} flows SEC(".maps");

/* The ring of half-open flows, by the low bits of their tickets. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, HALF_OPEN_FLOWS);
	__type(key, __u32);
	__type(value, struct handshake);
} handshakes SEC(".maps");

/* The last ticket that was given out. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} tickets SEC(".maps");

/* Networks whose clients may use a restricted service. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, MAX_ALLOWED);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct network);
	__type(value, __u32);
} allowed SEC(".maps");

/* SYN budgets, by a hash of the source. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SYN_SOURCES);
	__type(key, __u32);
	__type(value, struct source);
} sources SEC(".maps");

/* Backend index to packets and bytes. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_SERVICES *MAX_BACKENDS);
	__type(key, __u32);
	__type(value, struct traffic);
} traffics SEC(".maps");

/* Backend index to the times of its handshakes. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_SERVICES *MAX_BACKENDS);
	__type(key, __u32);
	__type(value, struct connect_time);
} connect_times SEC(".maps");

enum { BUCKET_RST, BUCKET_SYN, BUCKETS };

/* What may be sent and taken in all. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, BUCKETS);
	__type(key, __u32);
	__type(value, struct bucket);
} buckets SEC(".maps");

/* Changes of flows, for the other node: struct flow_event. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, EVENT_RING);
} events SEC(".maps");

/* How many found no room there. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} lost_events SEC(".maps");

enum { PROGRAM_IPV6, PROGRAMS };

/* Programs that the one on the interface goes on in. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, PROGRAMS);
	__type(key, __u32);
	__type(value, __u32);
} programs SEC(".maps");

#endif
