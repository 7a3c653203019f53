/* SPDX-License-Identifier: Apache-2.0
 *
 * Which points the rules keep, for catalogues that are made in memory.
 */
#include "base/mem.h"
#include "co_test.h"
#include "set/prune.h"
#include <time.h>

#define DAY (24 * 60 * 60 * 1000LL)
#define MONDAY 1767571200000LL           /* 2026-01-05 00:00 UTC */

struct scene {
    struct set_catalog c;
    struct set_point points[64];
    struct set_disk disks[64][2];
};

static void add(struct scene *s, int64_t instant, const char *disk, const char *other)
{
    size_t i = s->c.n_points++;
    struct set_point *p = &s->points[i];

    p->m.instant = instant;
    p->m.disks.items = s->disks[i];
    p->m.disks.n = other ? 2 : 1;
    s->disks[i][0].name = (char *)disk;
    s->disks[i][1].name = (char *)other;
    s->c.points = s->points;
}

/* "1" for each point that is kept, "0" for one that goes, "b" for a broken one. */
static void expect(const struct scene *s, const struct set_prune *rules, const char *fates)
{
    CLEANUP(free) unsigned *masks = set_prune_choose(&s->c, rules);
    char got[65] = "";

    for (size_t i = 0; i < s->c.n_points; i++)
        got[i] = masks[i] & SET_KEPT_BROKEN ? 'b' : masks[i] ? '1' : '0';
    assert_string_equal(got, fates);
}

static void the_last_ones_stay(void **state)
{
    struct scene s = { 0 };

    for (int i = 0; i < 5; i++)
        add(&s, MONDAY + i, "d", NULL);
    expect(&s, &(struct set_prune){ { [SET_KEEP_LAST] = 2 } }, "00011");
    expect(&s, &(struct set_prune){ { [SET_KEEP_LAST] = 9 } }, "11111");
    expect(&s, &(struct set_prune){ { 0 } }, "00000");
}

static void of_a_period_its_last_point_stays(void **state)
{
    struct scene s = { 0 };

    /* Two each day of three weeks, from a Monday on. */
    for (int i = 0; i < 42; i++)
        add(&s, MONDAY + i * DAY / 2 + DAY / 4, "d", NULL);
    expect(&s, &(struct set_prune){ { [SET_KEEP_DAILY] = 3 } },
           "000000000000000000000000000000000000010101");
    expect(&s, &(struct set_prune){ { [SET_KEEP_WEEKLY] = 2 } },
           "000000000000000000000000000100000000000001");
    expect(&s, &(struct set_prune){ { [SET_KEEP_LAST] = 2, [SET_KEEP_WEEKLY] = 5 } },
           "000000000000010000000000000100000000000011");
    expect(&s, &(struct set_prune){ { [SET_KEEP_MONTHLY] = 5 } },
           "000000000000000000000000000000000000000001");
}

static void days_without_points_do_not_count(void **state)
{
    struct scene s = { 0 };

    add(&s, MONDAY, "d", NULL);
    add(&s, MONDAY + 40 * DAY, "d", NULL);
    add(&s, MONDAY + 80 * DAY, "d", NULL);
    expect(&s, &(struct set_prune){ { [SET_KEEP_DAILY] = 2 } }, "011");
    expect(&s, &(struct set_prune){ { [SET_KEEP_MONTHLY] = 2 } }, "011");
}

static void each_disk_has_its_own_last_points(void **state)
{
    struct scene s = { 0 };

    add(&s, MONDAY, "a", NULL);
    add(&s, MONDAY + 1, "b", NULL);
    add(&s, MONDAY + 2, "a", "c");
    add(&s, MONDAY + 3, "a", NULL);
    expect(&s, &(struct set_prune){ { [SET_KEEP_LAST] = 1 } }, "0111");
}

static void a_broken_point_takes_no_place(void **state)
{
    struct scene s = { 0 };

    for (int i = 0; i < 4; i++)
        add(&s, MONDAY + i * DAY, "d", NULL);
    s.points[3].broken = true;
    expect(&s, &(struct set_prune){ { [SET_KEEP_LAST] = 1 } }, "001b");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_last_ones_stay),
        cmocka_unit_test(of_a_period_its_last_point_stays),
        cmocka_unit_test(days_without_points_do_not_count),
        cmocka_unit_test(each_disk_has_its_own_last_points),
        cmocka_unit_test(a_broken_point_takes_no_place),
    };

    setenv("TZ", "UTC", 1);
    tzset();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
