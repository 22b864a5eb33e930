/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * csum.h: Internet checksums (RFC 1071) and their incremental update
 * (RFC 1624, equation 3).
 */
#ifndef PGSTEER_CSUM_H
#define PGSTEER_CSUM_H

/* Fold a 32-bit sum to the 16 bits that go into a header, complemented. */
static __always_inline __u16 csum_fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (__u16)~sum;
}

/* The checksum after the covered bytes changed by delta. */
static __always_inline __u16 csum_update(__u16 check, __u64 delta)
{
	return csum_fold((__u64)(__u16)~check + delta);
}

#endif
