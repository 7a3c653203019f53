/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: a dirty bitmap says exactly what it is to say, whatever was done to it and however its
 * disk was closed.
 * Method: a life of a disk, made from a seed: raw, or qcow2, which stores bitmaps itself. Random
 * writes; bitmaps are added, removed, cleared, merged, enabled and disabled, set aside for a backup
 * that ends in some way, resized; the disk is closed and opened, or killed: its sidecar file
 * (and for qcow2 nothing else, which then is closed in good order) is as it was at some moment.
 * Beside each bitmap a shadow has a byte a granule. They are compared after every step.
 *
 * model_bitmaps [--seeds A..B] [--verbose]
 */
#include "base/mem.h"
#include "block/dirty.h"
#include "block/graph.h"
#include "block/keeper.h"
#include "co_test.h"
#include "drivers/drivers.h"
#include "drivers/qcow2/create.h"
#include "loop/co.h"
#include "loop/loop.h"
#include "sidecar/sidecar.h"
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#define SIZE_MAX_UNITS 8192u          /* of 512 bytes */
#define BITMAPS 6
#define STEPS 120
#define WRITE_MAX (200 * KiB)

/* What one bitmap has to say. */
struct shadow {
    bool used;
    char name[16];
    uint32_t granularity;
    bool enabled, persistent, frozen;
    uint8_t live[SIZE_MAX_UNITS + 1], aside[SIZE_MAX_UNITS + 1];   /* a granule each */
};

struct life {
    uint64_t first_seed, seed;
    bool verbose, qcow2;
    char image[128], sidecar[160];
    uint64_t size;
    struct node *n;
    struct shadow bitmaps[BITMAPS];
    unsigned named;                    /* ever, so that names are not used twice */
    unsigned step;
};

static uint8_t data[WRITE_MAX];

static uint64_t below(struct life *l, uint64_t n)
{
    return test_random(&l->seed, n);
}

static void PRINTF_LIKE(2, 3) tell(const struct life *l, const char *fmt, ...)
{
    va_list ap;

    if (!l->verbose)
        return;
    printf("%3u ", l->step);
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    putchar('\n');
    fflush(stdout);
}

static uint64_t granules(const struct life *l, const struct shadow *b)
{
    return div_round_up(l->size, b->granularity);
}

static struct dirty_bitmap *find(const struct life *l, const struct shadow *b)
{
    return dirty_bitmap_find(l->n, b->name, NULL);
}

/* One that is used and, with @idle, that no backup has; NULL: the choice fell on none. */
static struct shadow *any(struct life *l, bool idle)
{
    struct shadow *b = &l->bitmaps[below(l, BITMAPS)];

    return b->used && !(idle && b->frozen) ? b : NULL;
}

/* ---- comparing ------------------------------------------------------------------------ */

static void wrong(const struct life *l, const struct shadow *b, const char *what, uint64_t granule)
{
    fprintf(stderr, "seed %ju, step %u, %s disk: bitmap '%s' (granularity %u): %s, granule %ju\n",
            (uintmax_t)l->first_seed, l->step, l->qcow2 ? "qcow2" : "raw", b->name, b->granularity,
            what, (uintmax_t)granule);
    abort();
}

static void compare_one(const struct life *l, const struct shadow *b)
{
    const struct dirty_bitmap *bm = find(l, b);
    uint64_t count = 0;

    if (!bm || dirty_bitmap_inconsistent(bm))
        wrong(l, b, bm ? dirty_bitmap_inconsistent(bm) : "is gone", 0);
    if (dirty_bitmap_granularity(bm) != b->granularity ||
        dirty_bitmap_enabled(bm) != b->enabled || dirty_bitmap_persistent(bm) != b->persistent ||
        dirty_bitmap_busy(bm) != b->frozen)
        wrong(l, b, "is another kind of bitmap", 0);
    for (uint64_t g = 0; g < granules(l, b); g++) {
        bool said = b->frozen ? b->aside[g] : b->live[g];

        if (bitmap_test(dirty_bitmap_bits(bm), g) != said)
            wrong(l, b, said ? "is not dirty" : "is dirty", g);
        if (dirty_bitmap_must_keep(bm, g) != (b->live[g] || b->aside[g]))
            wrong(l, b, "what is kept is not right", g);
        count += said;
    }
    if (dirty_bitmap_count(bm) != count * b->granularity)
        wrong(l, b, "counts wrongly", dirty_bitmap_count(bm));
}

static void compare(const struct life *l)
{
    unsigned n = 0, found = 0;

    for (unsigned i = 0; i < BITMAPS; i++) {
        if (!l->bitmaps[i].used)
            continue;
        compare_one(l, &l->bitmaps[i]);
        n++;
    }
    for (struct dirty_bitmap *bm = NULL; (bm = dirty_bitmap_next(l->n, bm));)
        found++;
    assert(n == found);
}

/* ---- the disk ------------------------------------------------------------------------- */

static void co_open(struct life *l)
{
    json_t *json = json_pack("{ss s{ss ss}}", "driver", l->qcow2 ? "qcow2" : "raw", "file",
                             "driver", "file", "filename", l->image);
    struct err err = ERR_INIT;

    l->n = co_node_open(json, false, &err);
    json_decref(json);
    assert(l->n && node_size(l->n) == l->size);
}

static void co_make(struct life *l)
{
    const struct qcow2_create_opts o = {
        .size = l->size, .cluster_size = 512u << below(l, 8), .lazy_refcounts = below(l, 2),
    };
    int fd = open(l->image, O_RDWR | O_CREAT | O_EXCL, 0600);
    struct err err = ERR_INIT;

    assert(fd >= 0 && ftruncate(fd, l->qcow2 ? 0 : (off_t)l->size) == 0);
    close(fd);
    if (l->qcow2) {
        const struct open_file_opts f = { .filename = l->image };
        struct node *file = co_node_open_file(&f, &err);

        assert(file && co_qcow2_create(file, &o, &err));
        co_node_unref(file);
    }
    co_open(l);
}

static void co_end_backups(struct life *l);

/* Volatile ones end with the node. */
static void forget_volatile(struct life *l)
{
    for (unsigned i = 0; i < BITMAPS; i++)
        l->bitmaps[i].used &= l->bitmaps[i].persistent;
}

static void co_reopen(struct life *l)
{
    tell(l, "close and open");
    co_end_backups(l);
    co_node_unref(l->n);
    forget_volatile(l);
    co_open(l);
}

static void copy_sparse(const char *from, const char *to)
{
    CLEANUP(free) char *command = xasprintf("cp --sparse=always %s %s", from, to);

    assert(system(command) == 0);
}

/* After a kill: what was cleared may be dirty again (I-S9), nothing else changes. */
static void take_over_what_is_dirty(struct life *l)
{
    for (unsigned i = 0; i < BITMAPS; i++) {
        struct shadow *b = &l->bitmaps[i];
        const struct dirty_bitmap *bm = b->used ? find(l, b) : NULL;

        for (uint64_t g = 0; bm && !dirty_bitmap_inconsistent(bm) && g < granules(l, b); g++) {
            bool said = bitmap_test(dirty_bitmap_bits(bm), g);

            if (b->live[g] && !said)
                wrong(l, b, "was lost by a kill", g);
            b->live[g] = said;
        }
    }
}

/* A raw disk keeps nothing but its data: with the sidecar file of before, what follows finds what
 * kill -9 leaves. The backups that it ends have vouched for nothing. */
static void co_kill(struct life *l)
{
    CLEANUP(free) char *killed = xasprintf("%s.killed", l->sidecar);
    struct shadow were[BITMAPS];

    if (l->qcow2 || access(l->sidecar, F_OK) < 0)
        return;
    tell(l, "kill");
    copy_sparse(l->sidecar, killed);
    memcpy(were, l->bitmaps, sizeof(were));
    co_end_backups(l);
    memcpy(l->bitmaps, were, sizeof(were));
    co_node_unref(l->n);
    assert(rename(killed, l->sidecar) == 0);
    forget_volatile(l);
    for (unsigned i = 0; i < BITMAPS; i++) {
        struct shadow *b = &l->bitmaps[i];

        for (uint64_t g = 0; b->used && g < granules(l, b); g++) {
            b->live[g] |= b->aside[g];
            b->aside[g] = 0;
        }
        b->frozen = false;
    }
    co_open(l);
    take_over_what_is_dirty(l);
}

/* ---- what changes bits ---------------------------------------------------------------- */

/* Behind it a crash undoes nothing. */
static void co_settle(struct life *l)
{
    struct err err = ERR_INIT;

    assert(co_dirty_settle(l->n, &err));
}

static void mark(struct life *l, uint64_t off, uint64_t len)
{
    for (unsigned i = 0; i < BITMAPS; i++) {
        struct shadow *b = &l->bitmaps[i];

        if (!b->used || !b->enabled)
            continue;
        for (uint64_t g = off / b->granularity; g * b->granularity < off + len; g++)
            b->live[g] = 1;
    }
}

static void co_write(struct life *l)
{
    uint64_t off = below(l, l->size), len = 1 + below(l, 1 + below(l, WRITE_MAX));
    int r;

    len = MIN(len, l->size - off);
    tell(l, "write %ju + %ju", (uintmax_t)off, (uintmax_t)len);
    mark(l, off, len);
    if (below(l, 3))
        r = co_node_pwrite(l->n, off, len, data, 0);
    else
        r = co_node_write_zeroes(l->n, off, len, below(l, 2) ? REQ_MAY_UNMAP : 0);
    assert(r == 0);
}

static bool may_resize(const struct life *l)
{
    for (unsigned i = 0; i < BITMAPS; i++) {
        if (l->bitmaps[i].used && l->bitmaps[i].frozen)
            return false;
    }
    return true;
}

static void co_resize(struct life *l)
{
    uint64_t size = (1 + below(l, SIZE_MAX_UNITS)) * 512, was = l->size;
    struct err err = ERR_INIT;

    if (!may_resize(l))
        return;
    tell(l, "resize to %ju", (uintmax_t)size);
    assert(co_node_resize(l->n, size, &err));
    l->size = size;
    for (unsigned i = 0; i < BITMAPS; i++) {
        struct shadow *b = &l->bitmaps[i];

        for (uint64_t g = b->used ? granules(l, b) : SIZE_MAX_UNITS + 1; g <= SIZE_MAX_UNITS; g++)
            b->live[g] = 0;
    }
    if (size > was)
        mark(l, was, size - was);
    co_settle(l);
}

/* ---- commands, as cmd_bitmap.c gives them --------------------------------------------- */

static void co_outdate(struct life *l, const struct shadow *b)
{
    struct err err = ERR_INIT;

    assert(co_dirty_bitmap_outdate(find(l, b), &err));
}

static void co_add(struct life *l)
{
    struct shadow *b = &l->bitmaps[below(l, BITMAPS)];
    struct err err = ERR_INIT;

    if (b->used)
        return;
    *b = (struct shadow){
        .used = true, .granularity = 512u << below(l, 9), .enabled = below(l, 4) > 0,
        .persistent = below(l, 4) > 0,
    };
    snprintf(b->name, sizeof(b->name), "b%u", l->named++);

    struct dirty_bitmap_opts o = {
        .name = b->name, .granularity = b->granularity, .disabled = !b->enabled,
        .persistent = b->persistent,
    };

    tell(l, "add %s, %u%s%s", b->name, b->granularity, b->enabled ? "" : ", disabled",
         b->persistent ? "" : ", volatile");
    assert(!b->persistent || (co_dirty_keep(l->n, &err) && dirty_bitmap_can_keep(l->n, &o, &err)));
    assert(dirty_bitmap_add(l->n, &o, &err));
    co_settle(l);
}

static void co_remove(struct life *l)
{
    struct shadow *b = any(l, true);
    struct err err = ERR_INIT;

    if (!b)
        return;
    tell(l, "remove %s", b->name);
    co_outdate(l, b);
    dirty_bitmap_remove(find(l, b));
    assert(!b->persistent || co_dirty_bitmap_unkeep(l->n, b->name, &err));
    b->used = false;
    co_settle(l);
}

static void co_clear(struct life *l)
{
    struct shadow *b = any(l, true);
    struct err err = ERR_INIT;

    if (!b)
        return;
    tell(l, "clear %s", b->name);
    bitmap_free(dirty_bitmap_clear(find(l, b), dirty_bitmap_new_row(find(l, b), &err)));
    memset(b->live, 0, sizeof(b->live));
    co_settle(l);
}

static void co_enable(struct life *l)
{
    struct shadow *b = any(l, true);

    if (!b)
        return;
    tell(l, "%s %s", b->enabled ? "disable" : "enable", b->name);
    b->enabled = !b->enabled;
    co_outdate(l, b);
    (b->enabled ? dirty_bitmap_enable : dirty_bitmap_disable)(find(l, b));
    co_settle(l);
}

static void co_merge(struct life *l)
{
    struct shadow *to = any(l, true), *from = any(l, true);

    if (!to || !from || to == from)
        return;
    tell(l, "merge %s into %s", from->name, to->name);
    co_outdate(l, to);
    dirty_bitmap_merge(find(l, to), find(l, from));
    for (uint64_t g = 0; g < granules(l, from); g++) {
        uint64_t at = g * from->granularity;

        for (; from->live[g] && at < MIN((g + 1) * from->granularity, l->size); at += 512)
            to->live[at / to->granularity] = 1;
    }
    co_settle(l);
}

/* ---- a backup's use ------------------------------------------------------------------- */

static void begin_backup(struct life *l)
{
    struct shadow *b = any(l, true);
    struct err err = ERR_INIT;

    if (!b)
        return;
    tell(l, "freeze %s", b->name);
    dirty_bitmap_freeze(find(l, b), dirty_bitmap_new_row(find(l, b), &err));
    memcpy(b->aside, b->live, sizeof(b->aside));
    memset(b->live, 0, sizeof(b->live));
    b->frozen = true;
}

/* It has copied all, nothing, or some. */
static void co_end_backup(struct life *l, struct shadow *b)
{
    struct bitmap *still = bitmap_new(granules(l, b));
    uint64_t how = below(l, 3);

    tell(l, "thaw %s, %s", b->name, how == 0 ? "all" : how == 1 ? "nothing" : "some");
    co_outdate(l, b);
    for (uint64_t g = 0; g < granules(l, b); g++) {
        if (b->aside[g] && (how == 1 || (how == 2 && below(l, 2)))) {
            bitmap_set(still, g, 1);
            b->live[g] = 1;
        }
    }
    memset(b->aside, 0, sizeof(b->aside));
    b->frozen = false;
    dirty_bitmap_thaw(find(l, b), how == 0 ? NULL : still);
    bitmap_free(still);
    co_settle(l);
}

static void co_end_some_backup(struct life *l)
{
    struct shadow *b = any(l, false);

    if (b && b->frozen)
        co_end_backup(l, b);
}

static void co_end_backups(struct life *l)
{
    for (unsigned i = 0; i < BITMAPS; i++) {
        if (l->bitmaps[i].used && l->bitmaps[i].frozen)
            co_end_backup(l, &l->bitmaps[i]);
    }
}

/* ---- a life --------------------------------------------------------------------------- */

static void co_step(struct life *l)
{
    switch (below(l, 24)) {
    case 0:
    case 1:
    case 2:
        co_add(l);
        break;
    case 3:
        co_remove(l);
        break;
    case 4:
    case 5:
        co_clear(l);
        break;
    case 6:
        co_enable(l);
        break;
    case 7:
    case 8:
        co_merge(l);
        break;
    case 9:
    case 10:
        begin_backup(l);
        break;
    case 11:
    case 12:
        co_end_some_backup(l);
        break;
    case 13:
        co_resize(l);
        break;
    case 14:
        co_reopen(l);
        break;
    case 15:
        co_kill(l);
        break;
    default:
        co_write(l);
        break;
    }
}

static void co_live(void *arg)
{
    struct life *l = arg;

    l->qcow2 = below(l, 2);
    l->size = (1 + below(l, SIZE_MAX_UNITS)) * 512;
    co_make(l);
    for (l->step = 0; l->step < STEPS; l->step++) {
        co_step(l);
        compare(l);
    }
    co_reopen(l);
    compare(l);
    co_node_unref(l->n);
    unlink(l->image);
    unlink(l->sidecar);
    loop_stop(loop_current());
}

static void start(void *arg)
{
    co_start(co_live, arg);
}

static void run_seed(struct loop *loop, const char *dir, uint64_t seed, bool verbose)
{
    static struct life l;

    l = (struct life){ .first_seed = seed, .seed = seed, .verbose = verbose };
    snprintf(l.image, sizeof(l.image), "%s/disk", dir);
    snprintf(l.sidecar, sizeof(l.sidecar), "%s.bitmaps", l.image);
    loop_post(loop, start, &l);
    loop_run(loop);
}

int main(int argc, char **argv)
{
    unsigned long first = 1, last = 40;
    char dir[] = "/var/tmp/stillpoint-bitmaps-XXXXXX";
    bool verbose = false;
    struct err err = ERR_INIT;

    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--verbose") == 0) {
            verbose = true;
        } else if (strcmp(argv[i], "--seeds") != 0 || ++i == argc ||
                   sscanf(argv[i], "%lu..%lu", &first, &last) != 2) {
            fprintf(stderr, "usage: model_bitmaps [--seeds A..B] [--verbose]\n");
            return 2;
        }
    }
    drivers_register_all();
    sidecar_register();

    struct loop *loop = loop_new(LOOP_ENGINE_POOL, "model", &err);

    assert(loop && mkdtemp(dir));
    for (unsigned long seed = first; seed <= last; seed++)
        run_seed(loop, dir, seed, verbose);
    loop_free(loop);
    rmdir(dir);
    printf("seeds %lu..%lu: every bitmap was right after every step\n", first, last);
    return 0;
}
