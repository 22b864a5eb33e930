/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * scheduler.h: which backend takes a new flow.
 *
 * pick() chooses and counts in one critical section, so that no two CPUs
 * see the same least loaded backend and a burst spreads exactly. A choice that
 * comes to nothing is given back with load_release() (flow.h).
 */
#ifndef PGSTEER_SCHEDULER_H
#define PGSTEER_SCHEDULER_H

static __always_inline bool slot_takes_flows(const struct slot *slot)
{
	return slot->state == BACKEND_UP && slot->reachable && slot->weight;
}

/*
 * Least connections: the smallest (active + 1) / weight, compared by cross
 * multiplication. Equal ones are taken in turn, beginning after the last
 * choice. Slots whose bit is set in excluded are left out; those that refused a
 * connection a moment ago are taken when there is no other. Returns the slot,
 * or -1 when none takes flows.
 *
 * Written for the verifier as much as for the reader. A global function is
 * walked once and not along every path that leads to it, and an index that is
 * masked, never compared, keeps the walk from splitting at each slot: hence
 * the ring of a power of two slots, in which free ones are passed over.
 */
__noinline int pick(__u32 service, __u64 excluded, __u64 now)
{
	struct schedule *schedule = bpf_map_lookup_elem(&schedules, &service);
	struct load *load = bpf_map_lookup_elem(&loads, &service);
	__s64 best_weight = 0;
	__s64 best_score = 0;
	__u64 best_rank = 0;
	__u32 best = 0;
	__u32 mask;

	if (!schedule || !load)
		return -1;
	mask = schedule->mask & (MAX_BACKENDS - 1);
	bpf_spin_lock(&load->lock);
	for (__u32 i = 0; i < MAX_BACKENDS; i++) {
		__u32 index = (load->rotor + i) & mask;
		const struct slot *slot = &schedule->slots[index];
		__s64 score, weight;
		__u64 rank;

		if (i > mask)
			break;
		if (!slot_takes_flows(slot) || excluded >> index & 1)
			continue;
		rank = load->suspect[index] > now;
		score = load->active[index] + 1;
		weight = slot->weight;
		if (best_weight &&
		    (rank > best_rank ||
		     (rank == best_rank &&
		      score * best_weight >= best_score * weight)))
			continue;
		best = index;
		best_rank = rank;
		best_score = score;
		best_weight = weight;
	}
	if (best_weight) {
		/* Atomic all the same: flow_close() counts down unlocked. */
		__sync_fetch_and_add(&load->active[best], 1);
		load->total[best]++;
		load->rotor = best + 1;
	}
	bpf_spin_unlock(&load->lock);
	return best_weight ? best : -1;
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
	__u32 service = backend / MAX_BACKENDS;
	struct load *load = bpf_map_lookup_elem(&loads, &service);

	if (!load)
		return;
	__sync_fetch_and_add(&load->refused[backend % MAX_BACKENDS], 1);
	load->suspect[backend % MAX_BACKENDS] = now + suspect_time;
}

#endif
