/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * scheduler.h: which backend takes a new flow.
 *
 * pick() chooses and counts in one critical section, so that no two CPUs
 * see the same least loaded backend and a burst spreads exactly. A choice that
 * comes to nothing is given back with load_cancel() (flow.h).
 *
 * Written for the verifier as much as for the reader. A global function is
 * walked once and not along every path that leads to it, and an index that is
 * masked, never compared, keeps the walk from splitting at each slot: hence
 * the ring of a power of two slots, in which free ones are passed over.
 */
#ifndef PGSTEER_SCHEDULER_H
#define PGSTEER_SCHEDULER_H

#define PICK_NONE (-1) /* no backend takes flows */
#define PICK_FULL (-2) /* those that do have all that they may have */

/*
 * What a slot has going against it, as one number: the smallest wins. Each
 * question less in a loop is a path less for the verifier, so this is reckoned
 * more than asked. Full ones come last, then backups, then those that refused
 * a connection a moment ago; below that is the load, (active + 1) / weight.
 */
#define KEY_FULL (1ULL << 63)
#define RANK_SUSPECT 1
#define RANK_BACKUP 2
#define RANK_SHIFT 56
#define KEY_LOAD ((1ULL << RANK_SHIFT) - 1)

/*
 * Have the verifier know nothing of x, given some number that it does not know
 * either. What it knows differs from path to path, and it follows all of them
 * through all turns of a loop unless each turn begins alike.
 */
#define forget(x, unknown) \
	asm volatile("%0 ^= %1\n\t%0 ^= %1" : "+r"(x) : "r"(unknown))

static __always_inline bool slot_takes_flows(const struct slot *slot)
{
	return slot->state == BACKEND_UP && slot->flags & SLOT_REACHABLE &&
	       slot->weight;
}

/* What it would come to with one flow more. */
static __always_inline __u64 slot_load(const struct slot *slot, __s64 active)
{
	return (active + 1) * slot->cost & KEY_LOAD;
}

static __always_inline __u64 slot_rank(const struct slot *slot, __s64 active,
				       __u64 suspect, __u64 now)
{
	__u64 full = (__u64)((__s64)slot->limit - 1 - active) >> 63;
	__u64 rank = ((now - suspect) >> 63) * RANK_SUSPECT;

	_Static_assert(SLOT_BACKUP == RANK_BACKUP, "the flag is the rank");
	rank += slot->flags & SLOT_BACKUP;
	return full << 63 | rank << RANK_SHIFT;
}

/* The lock is held. Atomic all the same: flow_close() counts down unlocked. */
static __always_inline void load_take(struct load *load, __u64 index)
{
	index &= MAX_BACKENDS - 1;
	__sync_fetch_and_add(&load->active[index], 1);
	__sync_fetch_and_add(&load->total[index], 1);
	load->rotor = index + 1;
}

/*
 * Least connections. Equal ones are taken in turn, beginning after the last
 * choice. Slots whose bit is set in excluded are left out. Returns the slot or
 * PICK_xxx.
 */
__noinline int pick_least(__u32 service, __u64 excluded, __u64 now)
{
	struct schedule *schedule = bpf_map_lookup_elem(&schedules, &service);
	struct load *load = bpf_map_lookup_elem(&loads, &service);
	__u64 best_key = ~0ULL;
	__u64 best = 0;
	__u32 mask;

	if (!schedule || !load)
		return PICK_NONE;
	mask = schedule->mask & (MAX_BACKENDS - 1);
	forget(best_key, now);
	forget(best, now);
	bpf_spin_lock(&load->lock);
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < MAX_BACKENDS; i++) {
		__u64 index = (load->rotor + i) & mask;
		const struct slot *slot = &schedule->slots[index];
		__s64 active;
		__u64 key;

		if (i > mask)
			break;
		if (!slot_takes_flows(slot) || excluded >> index & 1)
			continue;
		active = load->active[index];
		key = slot_rank(slot, active, load->suspect[index], now) |
		      slot_load(slot, active);
		if (key >= best_key)
			continue;
		best_key = key;
		best = index;
		forget(best_key, now);
		forget(best, now);
	}
	if (best_key < KEY_FULL)
		load_take(load, best);
	bpf_spin_unlock(&load->lock);
	if (best_key < KEY_FULL)
		return best & (MAX_BACKENDS - 1);
	return ~best_key ? PICK_FULL : PICK_NONE;
}

/*
 * Round robin: each round everybody earns its weight, and who has most pays
 * all that was earned. That gives each its share, spread evenly: weights 5, 1
 * and 1 are served as a a b a c a a. The round is of the best rank only, which
 * has to be found first.
 */
__noinline int pick_turn(__u32 service, __u64 excluded, __u64 now)
{
	struct schedule *schedule = bpf_map_lookup_elem(&schedules, &service);
	struct load *load = bpf_map_lookup_elem(&loads, &service);
	__s64 most = -(1LL << 62);
	__u64 best_rank = ~0ULL;
	__s64 earned = 0;
	__u64 best = 0;
	__u64 mask;

	if (!schedule || !load)
		return PICK_NONE;
	mask = schedule->mask & (MAX_BACKENDS - 1);
	forget(most, now);
	forget(best_rank, now);
	forget(earned, now);
	forget(best, now);
	bpf_spin_lock(&load->lock);
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < MAX_BACKENDS; i++) {
		__u64 index = i & mask;
		const struct slot *slot = &schedule->slots[index];
		__u64 rank;

		if (i > mask)
			break;
		if (!slot_takes_flows(slot) || excluded >> index & 1)
			continue;
		rank = slot_rank(slot, load->active[index],
				 load->suspect[index], now);
		if (rank >= best_rank)
			continue;
		best_rank = rank;
		forget(best_rank, now);
	}
	if (best_rank >= KEY_FULL)
		goto out;
	forget(mask, now);
	mask &= MAX_BACKENDS - 1;
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < MAX_BACKENDS; i++) {
		__u64 index = i & mask;
		const struct slot *slot = &schedule->slots[index];
		__s64 credit;

		if (i > mask)
			break;
		if (!slot_takes_flows(slot) || excluded >> index & 1)
			continue;
		if (slot_rank(slot, load->active[index], load->suspect[index],
			      now) != best_rank)
			continue;
		credit = load->credit[index] + slot->weight;
		load->credit[index] = credit;
		earned += slot->weight;
		forget(earned, now);
		if (credit <= most)
			continue;
		most = credit;
		best = index;
		forget(most, now);
		forget(best, now);
	}
	best &= MAX_BACKENDS - 1;
	load->credit[best] -= earned;
	load_take(load, best);
out:
	bpf_spin_unlock(&load->lock);
	if (best_rank < KEY_FULL)
		return best & (MAX_BACKENDS - 1);
	return ~best_rank ? PICK_FULL : PICK_NONE;
}

/*
 * Random of two: two are drawn, the less loaded one is taken. Drawing is
 * giving each a random number, below its rank, and taking the two smallest.
 */
__noinline int pick_random(__u32 service, __u64 excluded, __u64 now)
{
	struct schedule *schedule = bpf_map_lookup_elem(&schedules, &service);
	struct load *load = bpf_map_lookup_elem(&loads, &service);
	__u64 draw = (__u64)bpf_get_prandom_u32() << 32 | bpf_get_prandom_u32();
	__u64 first = ~0ULL, second = ~0ULL;
	__u32 mask;

	if (!schedule || !load)
		return PICK_NONE;
	mask = schedule->mask & (MAX_BACKENDS - 1);
	forget(first, now);
	forget(second, now);
	bpf_spin_lock(&load->lock);
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < MAX_BACKENDS; i++) {
		__u64 index = i & mask;
		const struct slot *slot = &schedule->slots[index];
		__u64 key;

		if (i > mask)
			break;
		if (!slot_takes_flows(slot) || excluded >> index & 1)
			continue;
		/* Chance, and the slot in the low bits, to be found again. */
		key = (draw ^ index) * 0x9e3779b97f4a7c15ULL;
		key = (key ^ key >> 29) * 0xbf58476d1ce4e5b9ULL;
		key = slot_rank(slot, load->active[index], load->suspect[index],
				now) |
		      (key & KEY_LOAD & ~(MAX_BACKENDS - 1ULL)) | index;
		if (key >= second)
			continue;
		second = key;
		if (key < first) {
			second = first;
			first = key;
		}
		forget(first, now);
		forget(second, now);
	}
	/* Of two ranks the better one, whatever its load. */
	if (first >> RANK_SHIFT == second >> RANK_SHIFT) {
		__u64 a = first & (MAX_BACKENDS - 1);
		__u64 b = second & (MAX_BACKENDS - 1);

		if (slot_load(&schedule->slots[b], load->active[b]) <
		    slot_load(&schedule->slots[a], load->active[a]))
			first = second;
	}
	if (first < KEY_FULL)
		load_take(load, first);
	bpf_spin_unlock(&load->lock);
	if (first < KEY_FULL)
		return first & (MAX_BACKENDS - 1);
	return ~first ? PICK_FULL : PICK_NONE;
}

/* Choose by the service's scheduler, and count. The slot, or PICK_xxx. */
static __always_inline int pick(__u32 service, __u64 excluded, __u64 now)
{
	struct schedule *schedule = bpf_map_lookup_elem(&schedules, &service);

	if (!schedule)
		return PICK_NONE;
	switch (schedule->scheduler) {
	case ROUND_ROBIN:
		return pick_turn(service, excluded, now);
	case RANDOM_TWO:
		return pick_random(service, excluded, now);
	default:
		return pick_least(service, excluded, now);
	}
}

/* Whether any slot but the excluded takes flows. */
__noinline int others_take_flows(__u32 service, __u64 excluded)
{
	struct schedule *schedule = bpf_map_lookup_elem(&schedules, &service);
	int found = 0;

	if (!schedule)
		return 0;
	for (__u32 i = 0; i < MAX_BACKENDS; i++)
		found |= slot_takes_flows(&schedule->slots[i]) &&
			 !(excluded >> i & 1);
	return found;
}

/* A backend refused a connection: note it, and choose others for a while. */
static __always_inline void suspect_backend(__u32 backend, __u64 now)
{
	struct load *load = load_of(backend);

	if (!load)
		return;
	__sync_fetch_and_add(&load->refused[backend % MAX_BACKENDS], 1);
	load->suspect[backend % MAX_BACKENDS] = now + suspect_time / jiffy;
}

#endif
