/* SPDX-License-Identifier: Apache-2.0
 *
 * Everything at once: writers of all kinds hammer a small disk whose operations
 * take random time and are torn (a request moves its bytes in several steps),
 * while views are opened, read, released and closed at random. The disk takes
 * requests in blocks of a random size, smaller or larger than a granule, and may
 * turn zeros that are written into zero writes. Each view is compared with a copy
 * that was taken while the doors were shut. The run is repeated by its seed.
 */
#include "co_test.h"
#include "block/disk.h"
#include "cbw/view.h"
#include "base/iov.h"
#include "base/mem.h"
#include <stdio.h>

#define SIZE (1 * MiB - 700)
#define G VIEW_GRANULE
#define WRITERS 8
#define READERS 3
#define WRITES 400
#define MAX_ALIGN (16 * KiB)

static uint64_t seed;

static uint64_t rnd(uint64_t n)
{
    return test_random(&seed, n);
}

/* ---- a disk whose requests are slow and torn ------------------------------------- */

static uint8_t disk[SIZE + MAX_ALIGN];
static uint32_t request_align;

static void co_dawdle(void)
{
    co_yield_times(rnd(4));
}

static int co_torn_preadv(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov,
                          int niov, unsigned flags)
{
    co_dawdle();
    for (uint64_t at = 0, step; at < len; at += step) {
        step = MIN(len - at, 1 + rnd(2 * G));
        iov_from_buf(iov, niov, at, disk + off + at, step);
        co_dawdle();
    }
    return 0;
}

static int co_torn_pwritev(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov,
                           int niov, unsigned flags)
{
    co_dawdle();
    for (uint64_t at = 0, step; at < len; at += step) {
        step = MIN(len - at, 1 + rnd(2 * G));
        iov_to_buf(disk + off + at, iov, niov, at, step);
        co_dawdle();
    }
    return 0;
}

static int co_torn_zeroes(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
    co_dawdle();
    for (uint64_t at = 0, step; at < len; at += step) {
        step = MIN(len - at, 1 + rnd(8 * G));
        memset(disk + off + at, 0, step);
        co_dawdle();
    }
    return 0;
}

static int co_torn_discard(struct node *n, uint64_t off, uint64_t len)
{
    return co_torn_zeroes(n, off, len, 0);
}

static int co_torn_status(struct node *n, uint64_t off, uint64_t len, struct block_status *ret)
{
    bool zero = mem_is_zero(disk + off, request_align);
    uint64_t same = request_align;

    while (same < len && mem_is_zero(disk + off + same, request_align) == zero)
        same += request_align;
    *ret = (struct block_status){
        .flags = STATUS_ALLOCATED | (zero ? STATUS_ZERO : STATUS_DATA),
        .len = same,
    };
    co_dawdle();
    return 0;
}

struct no_options {
    char unused;
};

static bool co_torn_open(struct node *n, const void *opts, struct err *err)
{
    n->size = SIZE;
    n->limits.request_align = request_align;
    n->limits.zero_flags = REQ_MAY_UNMAP;
    return true;
}

static const struct schema_member no_members[] = { SCHEMA_END };
static const struct schema_type no_options_type = {
    "TestTornOptions", SCHEMA_STRUCT, "none", sizeof(struct no_options), .members = no_members,
};
static const struct driver torn_driver = {
    .name = "test-torn",
    .doc = "a disk whose requests are slow and torn",
    .options = &no_options_type,
    .is_protocol = true,
    .co_open = co_torn_open,
    .co_preadv = co_torn_preadv,
    .co_pwritev = co_torn_pwritev,
    .co_write_zeroes = co_torn_zeroes,
    .co_discard = co_torn_discard,
    .co_status = co_torn_status,
};

/* ---- guests ------------------------------------------------------------------------- */

struct scene {
    struct node *n;
    struct disk_user *guest;
    unsigned writers_left;
};

static void pick_range(uint64_t *off, uint64_t *len)
{
    *off = rnd(SIZE);
    *len = 1 + rnd(rnd(8) ? 3 * G : 200 * G);
    *len = MIN(*len, SIZE - *off);
    if (rnd(2)) {
        *off = align_down(*off, G);
        *len = MIN(align_up(*len, G), SIZE - *off);
    }
}

static void writer(void *arg)
{
    struct scene *s = arg;
    CLEANUP(free) uint8_t *buf = xmalloc(SIZE);

    for (int i = 0; i < WRITES; i++) {
        uint64_t off, len;
        int r;

        pick_range(&off, &len);
        switch (rnd(8)) {
        case 0:
            r = co_disk_write_zeroes(s->guest, off, len, rnd(2) ? REQ_MAY_UNMAP : 0);
            break;
        case 1:
            r = co_disk_discard(s->guest, off, len);
            break;
        default: {
            struct iovec iov = { buf, len };

            memset(buf, rnd(4) ? 1 + rnd(255) : 0, len);
            r = co_disk_pwritev(s->guest, off, len, &iov, 1, 0);
        }
        }
        assert_int_equal(r, 0);
        co_yield_times(rnd(3));
    }
    s->writers_left--;
}

/* ---- readers ------------------------------------------------------------------------- */

/* One view and what it has to be. */
struct picture {
    struct view *v;
    uint8_t *frozen;
    uint8_t released[SIZE / G + 1];
    uint8_t *buf;
};

/* Only some of it is wanted: the rest is as if it had been released. */
static void limit(struct picture *p)
{
    uint64_t unit = G << rnd(6), units = div_round_up(SIZE, unit);
    struct bitmap *wanted = bitmap_new(units);

    for (uint64_t i = 0; i < units; i++) {
        if (rnd(3) == 0)
            bitmap_set_bit(wanted, i);
    }
    for (uint64_t g = 0; g < ARRAY_SIZE(p->released) && g * G < SIZE; g++)
        p->released[g] = !bitmap_test(wanted, g * G / unit);
    view_limit(p->v, wanted, unit);
}

static void co_take_picture(struct scene *s, struct picture *p)
{
    struct view_opts opts = VIEW_OPTS_DEFAULT;
    struct err err = ERR_INIT;

    if (rnd(2))
        opts.scratch_memory = rnd(20) * G;
    p->v = co_view_prepare(s->n, &opts, "test", &err);
    if (!p->v)
        fail_msg("%s", err.text);
    memset(p->released, 0, sizeof(p->released));
    assert_int_equal(co_shut_doors(s->n, DEADLINE_NEVER), 0);
    if (rnd(3) == 0)
        limit(p);
    view_begin(p->v);
    p->frozen = xmemdup(disk, SIZE);
    open_doors(s->n);
    p->buf = xmalloc(SIZE);
}

/* Compare what was not released. */
static void co_check_range(struct picture *p, uint64_t off, uint64_t len)
{
    assert_int_equal(co_view_read(p->v, off, len, p->buf, 0), 0);
    for (uint64_t i = 0; i < len; i++) {
        if (p->buf[i] != p->frozen[off + i] && !p->released[(off + i) / G])
            fail_msg("byte %ju: %d instead of %d", (uintmax_t)(off + i), p->buf[i],
                     p->frozen[off + i]);
    }
}

static void co_check_status(struct picture *p, uint64_t off, uint64_t len)
{
    struct block_status st;

    assert_int_equal(co_view_status(p->v, NULL, off, len, &st), 0);
    assert_true(st.len > 0 && st.len <= len);
    for (uint64_t i = off; i < off + st.len && (st.flags & STATUS_ZERO); i++) {
        if (p->frozen[i] && !p->released[i / G])
            fail_msg("byte %ju is not zero", (uintmax_t)i);
    }
}

static void release_some(struct picture *p, uint64_t off, uint64_t len)
{
    uint64_t first = off / G, end = div_round_up(off + len, G);

    view_release(p->v, first * G, MIN(end * G, SIZE) - first * G);
    memset(p->released + first, 1, end - first);
}

static void reader(void *arg)
{
    struct scene *s = arg;

    while (s->writers_left) {
        struct picture *p = xnew(struct picture);
        unsigned steps = rnd(60);

        co_take_picture(s, p);
        while (steps--) {
            uint64_t off, len;

            pick_range(&off, &len);
            switch (rnd(6)) {
            case 0:
                release_some(p, off, len);
                break;
            case 1:
                co_check_status(p, off, len);
                break;
            default:
                co_check_range(p, off, len);
            }
        }
        co_check_range(p, 0, SIZE);
        view_close(p->v);
        free(p->buf);
        free(p->frozen);
        free(p);
    }
}

static void body(void)
{
    struct crew crew = { 0 };
    struct err err = ERR_INIT;
    struct scene s = { .writers_left = WRITERS };

    static const char *const detect[] = { "off", "on", "unmap" };

    request_align = rnd(2) ? 1 : 512U << rnd(6);
    for (uint64_t i = 0; i < SIZE; i++)
        disk[i] = rnd(4) ? 1 + i / G % 255 : 0;
    memset(disk + SIZE, 0, MAX_ALIGN);
    s.n = co_test_open("{'driver':'test-torn','discard':'unmap','detect-zeroes':'%s'}",
                       detect[rnd(3)]);
    s.guest = disk_open(s.n, "guest", EDGE_READ | EDGE_WRITE, EDGE_READ | EDGE_WRITE, &err);
    assert_non_null(s.guest);
    for (int i = 0; i < WRITERS; i++)
        crew_start(&crew, writer, &s);
    for (int i = 0; i < READERS; i++)
        crew_start(&crew, reader, &s);
    co_crew_wait(&crew);
    disk_close(s.guest);
    co_node_unref(s.n);
}

static void a_view_is_the_disk_at_its_instant_whatever_happens(void **state)
{
    uint64_t first = test_seed(1);
    unsigned rounds = getenv("STILLPOINT_SEED") ? 1 : 20;

    for (uint64_t i = 0; i < rounds; i++) {
        seed = first + i;
        print_message("seed %ju\n", (uintmax_t)seed);
        in_loop(body);
    }
}

static int setup(void **state)
{
    driver_register(&torn_driver);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_view_is_the_disk_at_its_instant_whatever_happens),
    };

    return cmocka_run_group_tests(tests, setup, NULL);
}
