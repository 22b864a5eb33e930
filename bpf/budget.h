/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * budget.h: how much is too much.
 *
 *   bucket_take()    one token, if there is one
 *   source_known()   a source has completed a handshake: it is not spoofed
 *   syn_budget()     whether a SYN may open a flow
 *
 * A table of the sources themselves would be one more thing to flood. Sources
 * share buckets by a hash with a secret seed: a flood from everywhere has each
 * of the 65,536 buckets at a rate that none of them notices, and is stopped by
 * the total, to which sources that are known are not held.
 */
#ifndef PGSTEER_BUDGET_H
#define PGSTEER_BUDGET_H

#define SECOND 1000000000ULL

/* Of the hash; made up when the program is loaded. */
const volatile __u32 seed = 0;

static __always_inline int bucket_take(struct bucket *bucket, __u64 now,
				       __u32 rate, __u32 burst)
{
	__u64 last, elapsed, earned;

	if (!bucket)
		return 0;
	last = bucket->refilled;
	if (now > last) {
		elapsed = (now - last) * jiffy;
		if (elapsed > SECOND || now - last > SECOND / jiffy)
			elapsed = SECOND;
		earned = elapsed * rate / SECOND;
		/*
		 * Paid in before the clock moves on: another CPU must not find
		 * the one done and the other not, and drop what it has. That
		 * two pay in now and then is no harm.
		 */
		if (earned) {
			__s64 tokens = bucket->tokens + (__s64)earned;

			bucket->tokens = tokens > burst ? burst : tokens;
			barrier();
			bucket->refilled = now;
		}
	}
	if (bucket->tokens <= 0)
		return 0;
	__sync_fetch_and_add(&bucket->tokens, -1);
	return 1;
}

static __always_inline struct source *source_of(const struct addr *addr)
{
	/* Of IPv6 the half that names the network: hosts have as many as they like. */
	__u64 hash = addr->word[0] ^ seed;
	__u32 index;

#ifdef PGSTEER_IPV6
	hash = hash * 0x9e3779b97f4a7c15ULL ^ addr->word[1];
#endif
	hash *= 0x9e3779b97f4a7c15ULL;
	index = hash >> 48;
	return bpf_map_lookup_elem(&sources, &index);
}

static __always_inline void source_known(const struct addr *addr, __u64 now)
{
	struct source *source = source_of(addr);

	if (source)
		source->known_until = now + SOURCE_KNOWN_TIME / jiffy;
}

/* TX_NEW, or why the SYN is dropped. */
__noinline int syn_budget(const struct addr *addr, __u64 now)
{
	__u32 index = BUCKET_SYN;
	struct bucket *total = bpf_map_lookup_elem(&buckets, &index);
	struct source *source;

	if (!addr || !total)
		return DROP_RACE;
	source = source_of(addr);
	if (!source)
		return DROP_RACE;
	if (syn_source_rate && !bucket_take(&source->bucket, now,
					    syn_source_rate, syn_source_rate))
		return DROP_SYN_SOURCE;
	if (syn_total_rate && now >= source->known_until &&
	    !bucket_take(total, now, syn_total_rate, syn_total_burst))
		return DROP_SYN_TOTAL;
	return TX_NEW;
}

#endif
