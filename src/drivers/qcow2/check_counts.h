/* SPDX-License-Identifier: Apache-2.0
 *
 * How many references each host cluster has, counted by a check: a sparse array
 * within a bound of memory. Where references are alike for a page of clusters, the
 * page costs a few bytes. When the bound is met the upper half of what is there is
 * forgotten, and the window of clusters that are counted ends below it: whoever
 * counts does so again for the next window. Pure.
 */
#ifndef QCOW2_CHECK_COUNTS_H
#define QCOW2_CHECK_COUNTS_H

#include "base/base.h"

#define QCOW2_COUNTS_PAGE 256U   /* clusters */

struct qcow2_counts;

/* Counts of clusters from @from on, a multiple of QCOW2_COUNTS_PAGE, all 0, with
 * about @bytes of memory. NULL: out of memory. */
struct qcow2_counts *qcow2_counts_new(uint64_t from, size_t bytes);
void qcow2_counts_free(struct qcow2_counts *c);
DEFINE_CLEANUP(struct qcow2_counts *, qcow2_counts_free);

/* Add @times references to the clusters [first, first+n); those outside of the
 * window are not counted. Stays at UINT64_MAX. -ENOMEM. */
MUST_CHECK int qcow2_counts_add(struct qcow2_counts *c, uint64_t first, uint64_t n,
                                uint64_t times);
uint64_t qcow2_counts_get(const struct qcow2_counts *c, uint64_t cluster);

uint64_t qcow2_counts_from(const struct qcow2_counts *c);
/* The window is [from, end); UINT64_MAX: all. Gets smaller only by adding. */
uint64_t qcow2_counts_end(const struct qcow2_counts *c);

/* The pages that were touched, in ascending order: page p has the clusters from
 * p * QCOW2_COUNTS_PAGE on. free() it. -ENOMEM. */
MUST_CHECK int qcow2_counts_pages(const struct qcow2_counts *c, uint64_t **ret, size_t *ret_n);
/* Whether all clusters of the page have the same count: *ret (0 if it was not touched). */
bool qcow2_counts_is_even(const struct qcow2_counts *c, uint64_t page, uint64_t *ret);
bool qcow2_counts_has_page(const struct qcow2_counts *c, uint64_t page);

#endif
