/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * csum.h: Internet checksums (RFC 1071) and their incremental update
 * (RFC 1624, equation 3).
 */
#ifndef PGSTEER_CSUM_H
#define PGSTEER_CSUM_H

/*
 * Sums are of 16- or 32-bit words as they are in memory, in any mixture, and
 * there is room for some thousands. They are reckoned from values at hand: a
 * call of bpf_csum_diff() is 10 ns, and so is reading back what was just
 * written in other sizes (measured).
 */

/* Fold a sum to 16 bits. */
static __always_inline __u16 csum_reduce(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* The same as it goes into a header, complemented. */
static __always_inline __u16 csum_fold(__u64 sum)
{
	return ~csum_reduce(sum);
}

static __always_inline __u64 csum_words(const __be32 *words, int n)
{
	__u64 sum = 0;

	for (int i = 0; i < n; i++)
		sum += words[i];
	return sum;
}

/* What replacing one row of words by another does to a sum. */
static __always_inline __u16 csum_delta(const __be32 *from, const __be32 *to,
					int n)
{
	__u64 sum = 0;

	for (int i = 0; i < n; i++)
		sum += (__u64)to[i] + (__u32)~from[i];
	return csum_reduce(sum);
}

/*
 * The checksum after the covered bytes changed by delta, which is the sum of at
 * most a few 16-bit differences.
 */
static __always_inline __u16 csum_update(__u16 check, __u32 delta)
{
	__u32 sum = (__u32)(__u16)~check + delta;

	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

#endif
