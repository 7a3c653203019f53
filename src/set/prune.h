/* SPDX-License-Identifier: Apache-2.0
 *
 * Which points of a set are kept. Each rule is for each disk by itself: of the last N periods
 * that have points of the disk, the last point of each; a point is kept if some rule keeps it
 * for some of its disks. Pure but for the local time zone.
 */
#ifndef SET_PRUNE_H
#define SET_PRUNE_H

#include "set/catalog.h"

enum set_rule { SET_KEEP_LAST, SET_KEEP_DAILY, SET_KEEP_WEEKLY, SET_KEEP_MONTHLY, SET_KEEP_RULES };

/* "last", "daily", ... */
extern const char *const set_rule_names[];

struct set_prune {
    uint64_t keep[SET_KEEP_RULES];
};

/* For each point of @c a mask of the rules that keep it (1 << SET_KEEP_LAST, ...); 0: it is to
 * go. A broken point counts for no rule; it gets SET_KEPT_BROKEN, for only a person can say
 * whether what is left of it is of use. free() it. */
#define SET_KEPT_BROKEN (1U << SET_KEEP_RULES)
unsigned *set_prune_choose(const struct set_catalog *c, const struct set_prune *p);

#endif
