/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * events.h: the other node is told what becomes of flows.
 *
 *   tell_changed()  a flow has been accepted, confirmed, or has come nearer to
 *                   its end
 *   tell_gone()     it is about to be forgotten
 *
 * Each event has the flow as it is when its place in the ring is taken, so that
 * of two CPUs that change one flow the one that comes second tells all. Nothing
 * is told of a flow after it was told that it is gone: who takes it marks it
 * before that, and who has changed it looks for the mark once it has its place.
 * Who is not leased tells nothing: its flows are the other node's.
 */
#ifndef PGSTEER_EVENTS_H
#define PGSTEER_EVENTS_H

static __always_inline void count_lost_event(void)
{
	__u32 zero = 0;
	__u64 *lost = bpf_map_lookup_elem(&lost_events, &zero);

	if (lost)
		__sync_fetch_and_add(lost, 1);
}

/* Once a change, not once a packet: a call is no cost that counts. */
static __noinline void tell(const struct flow_key *key,
			    const struct flow *forward, __u32 reverse_ack,
			    bool gone)
{
	struct flow_event *e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);

	if (!e) {
		count_lost_event();
		return;
	}
	e->key = *key;
	e->gone = gone;
	e->forward = *forward;
	e->reverse_ack = reverse_ack;
	e->at = bpf_jiffies64();
	/*
	 * Its memory may be another's by now, see flow_take(). The copy in the
	 * ring is no key to kernels before 6.2 or so.
	 */
	if (!gone && (e->forward.flags & FLOW_TAKEN ||
		      bpf_map_lookup_elem(&flows, key) != forward)) {
		bpf_ringbuf_discard(e, 0);
		return;
	}
	bpf_ringbuf_submit(e, 0);
}

static __always_inline void tell_changed(const struct flow_key *key,
					 const struct flow *forward,
					 __u32 reverse_ack)
{
	if (replicating)
		tell(key, forward, reverse_ack, false);
}

/* Before it is, lest a new flow of the same client be told of first. */
static __always_inline void tell_gone(const struct flow_key *key,
				      const struct flow *forward)
{
	if (replicating && forward->flags & FLOW_SYN_ACK &&
	    leased(forward->vip, bpf_jiffies64()))
		tell(key, forward, 0, true);
}

#endif
