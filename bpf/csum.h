/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * csum.h: Internet checksums (RFC 1071) and their incremental update
 * (RFC 1624, equation 3).
 */
#ifndef PGSTEER_CSUM_H
#define PGSTEER_CSUM_H

/* Fold a 32-bit sum to 16 bits. */
static __always_inline __u16 csum_reduce(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* The same as it goes into a header, complemented. */
static __always_inline __u16 csum_fold(__u32 sum)
{
	return ~csum_reduce(sum);
}

/*
 * The checksum after the covered bytes changed by delta, which is the sum of at
 * most a few 16-bit differences.
 */
static __always_inline __u16 csum_update(__u16 check, __u32 delta)
{
	return csum_fold((__u32)(__u16)~check + delta);
}

#endif
