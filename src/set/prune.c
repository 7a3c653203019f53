/* SPDX-License-Identifier: Apache-2.0
 *
 * Periods and counts.
 */
#include "set/prune.h"
#include "base/mem.h"
#include <stdio.h>
#include <time.h>

const char *const set_rule_names[] = { "last", "daily", "weekly", "monthly", NULL };

/* A number for the period that the point lies in; another for each of them. */
static int64_t period_of(const struct set_point *p, size_t i, enum set_rule rule)
{
    time_t seconds = (time_t)(p->m.instant / 1000);
    char week[16];
    struct tm tm;

    localtime_r(&seconds, &tm);
    switch (rule) {
    case SET_KEEP_DAILY:
        return tm.tm_year * 1000LL + tm.tm_yday;
    case SET_KEEP_WEEKLY:
        strftime(week, sizeof(week), "%G%V", &tm);
        return strtoll(week, NULL, 10);
    case SET_KEEP_MONTHLY:
        return tm.tm_year * 12LL + tm.tm_mon;
    default:
        return (int64_t)i;
    }
}

/* The last @n periods that have good points of the disk: the last point of each. */
static void keep_disk(const struct set_catalog *c, const char *disk, enum set_rule rule,
                      uint64_t n, unsigned *masks)
{
    int64_t last = 0;
    bool any = false;

    for (size_t i = c->n_points; n && i-- > 0;) {
        const struct set_point *p = &c->points[i];
        int64_t period;

        if (p->broken || !set_manifest_find_disk(&p->m, disk))
            continue;
        period = period_of(p, i, rule);
        if (any && period == last)
            continue;
        any = true;
        last = period;
        masks[i] |= 1U << rule;
        n--;
    }
}

/* Whether no earlier point has the disk: each is looked at once. */
static bool is_first_with(const struct set_catalog *c, size_t point, const char *disk)
{
    for (size_t i = 0; i < point; i++) {
        if (set_manifest_find_disk(&c->points[i].m, disk))
            return false;
    }
    return true;
}

unsigned *set_prune_choose(const struct set_catalog *c, const struct set_prune *p)
{
    unsigned *masks = xcalloc(c->n_points + 1, sizeof(*masks));

    for (size_t i = 0; i < c->n_points; i++) {
        const struct set_manifest *m = &c->points[i].m;

        if (c->points[i].broken)
            masks[i] |= SET_KEPT_BROKEN;
        for (size_t k = 0; k < set_manifest_n_disks(m); k++) {
            const char *disk = set_manifest_disk(m, k)->name;

            for (unsigned rule = 0; is_first_with(c, i, disk) && rule < SET_KEEP_RULES; rule++)
                keep_disk(c, disk, (enum set_rule)rule, p->keep[rule], masks);
        }
    }
    return masks;
}
