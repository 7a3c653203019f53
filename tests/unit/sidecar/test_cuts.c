/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: whenever the power goes, or the process is killed, every granule is dirty that may
 * differ from the last backup (I-S1, I-S2, I-S3, I-S7).
 * Method: random lives of a disk: writes, some at a time, backups that freeze and thaw,
 * merges, syncs that let regions out of the log, more bitmaps. All that is done to the
 * sidecar file, and every write to the image, goes into one record. It is cut at random
 * places: of what a sync did not cover each sector of the file is as it was at some moment
 * since; after kill -9, all that ended is there. A write counts as soon as it has begun.
 * Each cut is opened and looked at, and one of them lives on.
 */
#include "sidecar_test.h"
#include "base/log.h"
#include "base/mem.h"
#include "sidecar/impl.h"
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#define SIZE (1 * GiB)
#define GRAIN (64u * 1024)
#define GRAINS (SIZE / GRAIN)
#define SECTORS ((SIDECAR_AREAS_AT + 512 * KiB) / SIDECAR_SECTOR)
#define OPS_MAX 20000

/* ---- the record -------------------------------------------------------------------- */

enum what { SIDE_WRITE, SIDE_PUNCH, SIDE_RESIZE, SIDE_SYNC, DISK_WRITE, FREEZE, THAW };

struct entry {
    enum what what;
    bool end;
    uint64_t off, len;           /* of a thaw: len, granules [0, len) stay dirty */
    uint8_t *data;
    uint64_t ended;              /* of a begin: the entry that is its end; 0: none */
    struct storage_identity id;  /* the image's, then */
};

static struct entry record[OPS_MAX];
static uint64_t n_record;
static bool recording;
static uint64_t seed;

static void note(enum what what, bool end, uint64_t off, uint64_t len, const void *data)
{
    struct entry *e = &record[n_record];

    if (!recording)
        return;
    assert_true(n_record < OPS_MAX);
    *e = (struct entry){ .what = what, .end = end, .off = off, .len = len, .id = image.id };
    if (data && !end)
        e->data = xmemdup(data, len);
    for (uint64_t i = n_record; end && i-- > 0;) {
        struct entry *b = &record[i];

        if (!b->end && !b->ended && b->what == what && b->off == off && b->len == len) {
            b->ended = n_record;
            break;
        }
    }
    n_record++;
}

static void saw_side(void *arg, bool end, enum sidecar_op op, uint64_t off, uint64_t len,
                     const void *data)
{
    static const enum what whats[] = { SIDE_WRITE, SIDE_PUNCH, SIDE_RESIZE, SIDE_SYNC };

    if (op < ARRAY_SIZE(whats))          /* the file keeps its name here */
        note(whats[op], end, off, len, data);
}

static void saw_disk(bool end, uint64_t off, uint64_t len, const void *data)
{
    note(DISK_WRITE, end, off, len, NULL);
}

static void forget_record(void)
{
    for (uint64_t i = 0; i < n_record; i++)
        free(record[i].data);
    n_record = 0;
}

/* ---- what a cut leaves ------------------------------------------------------------------ */

struct state {
    uint8_t (*sectors)[SIDECAR_SECTOR];
    bool *frozen;                /* while it is made: this sector is as it will be */
    uint64_t size;
    bool need[GRAINS];           /* has to be dirty */
    bool was_frozen[GRAINS];     /* is in the work of the backup that runs */
};

static struct state *state_new(void)
{
    struct state *st = xnew(struct state);

    st->sectors = xcalloc(SECTORS, SIDECAR_SECTOR);
    st->frozen = xcalloc(SECTORS, sizeof(bool));
    return st;
}

static void state_free(struct state *st)
{
    free(st->sectors);
    free(st->frozen);
    free(st);
}

static void apply_bytes(struct state *st, const struct entry *e, bool sure, bool killed)
{
    for (uint64_t at = 0; at < e->len; at += SIDECAR_SECTOR) {
        uint64_t sector = (e->off + at) / SIDECAR_SECTOR;

        assert_true(sector < SECTORS);
        if (sure)
            st->frozen[sector] = false;
        else if (!killed && !st->frozen[sector] && test_random(&seed, 2))
            st->frozen[sector] = true;
        if (st->frozen[sector])
            continue;
        if (e->what == SIDE_PUNCH)
            memset(st->sectors[sector], 0, SIDECAR_SECTOR);
        else
            memcpy(st->sectors[sector], e->data + at, MIN(e->len - at, SIDECAR_SECTOR));
    }
}

static void apply(struct state *st, const struct entry *e, bool sure, bool killed)
{
    switch (e->what) {
    case SIDE_WRITE:
    case SIDE_PUNCH:
        apply_bytes(st, e, sure, killed);
        break;
    case SIDE_RESIZE:
        st->size = e->len;
        break;
    case DISK_WRITE:
        for (uint64_t g = e->off / GRAIN; g <= (e->off + e->len - 1) / GRAIN; g++)
            st->need[g] = true;
        break;
    case FREEZE:
        memcpy(st->was_frozen, st->need, sizeof(st->need));
        memset(st->need, 0, sizeof(st->need));
        break;
    case THAW:
        for (uint64_t g = 0; g < e->len; g++)
            st->need[g] |= st->was_frozen[g];
        memset(st->was_frozen, 0, sizeof(st->was_frozen));
        break;
    default:
        break;
    }
}

/* The last sync that began before @cut and ended before it: what had ended before it began
 * is on the disk. */
static uint64_t synced_before(uint64_t cut)
{
    for (uint64_t i = cut; i-- > 0;) {
        const struct entry *e = &record[i];

        if (e->what == SIDE_SYNC && !e->end && e->ended && e->ended < cut)
            return i;
    }
    return 0;
}

static void cut_at(const struct state *from, uint64_t cut, bool killed, struct state *ret)
{
    uint64_t synced = synced_before(cut);

    memcpy(ret->sectors, from->sectors, SECTORS * SIDECAR_SECTOR);
    memset(ret->frozen, 0, SECTORS);
    ret->size = from->size;
    memcpy(ret->need, from->need, sizeof(ret->need));
    memset(ret->was_frozen, 0, sizeof(ret->was_frozen));
    for (uint64_t i = 0; i < cut; i++) {
        const struct entry *e = &record[i];
        bool ended = e->ended && e->ended < cut;

        if (e->end)
            continue;
        if (killed && !ended && e->what < DISK_WRITE && test_random(&seed, 2))
            continue;
        apply(ret, e, ended && e->ended < synced, killed);
    }
    /* A backup that never ended vouches for nothing. */
    for (uint64_t g = 0; g < GRAINS; g++)
        ret->need[g] |= ret->was_frozen[g];
}

static void put_file(const struct state *st)
{
    static const uint8_t zeros[SIDECAR_SECTOR];
    int fd;

    unlink(sidecar_test_path());
    fd = open(sidecar_test_path(), O_WRONLY | O_CREAT | O_EXCL, 0600);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, (off_t)st->size), 0);
    for (uint64_t i = 0; i < SECTORS; i++) {
        if (memcmp(st->sectors[i], zeros, sizeof(zeros)) != 0)
            assert_int_equal(pwrite(fd, st->sectors[i], SIDECAR_SECTOR,
                                    (off_t)(i * SIDECAR_SECTOR)), SIDECAR_SECTOR);
    }
    close(fd);
}

/* ---- a life -------------------------------------------------------------------------------- */

static struct node *disk;

static void co_writer(void *arg)
{
    static char buf[3 * GRAIN];

    for (unsigned i = 0; i < 12; i++) {
        uint64_t len = 512 * (1 + test_random(&seed, test_random(&seed, 4) ? 8 : 300));
        uint64_t region = test_random(&seed, 3) ? test_random(&seed, 3) : test_random(&seed, 16);
        uint64_t off = region * SIDECAR_REGION_MIN +
                       512 * test_random(&seed, (SIDECAR_REGION_MIN - sizeof(buf)) / 512);

        if (test_random(&seed, 2))
            off = region * SIDECAR_REGION_MIN + GRAIN * test_random(&seed, 8);
        assert_int_equal(co_node_pwrite(disk, off, len, buf, 0), 0);
        co_yield_times((unsigned)test_random(&seed, 4));
    }
}

static void co_syncer(void *arg)
{
    struct sidecar *s = container_of(node_dirty_keeper(disk), struct sidecar, k);

    for (unsigned i = 0; i < 5; i++) {
        co_sidecar_sync_all(s);
        co_yield_times((unsigned)test_random(&seed, 20));
    }
}

/* Between two rounds of writes, so that nothing is on its way. */
static void co_command(struct dirty_bitmap *a)
{
    struct err err = ERR_INIT;
    struct dirty_bitmap *more = dirty_bitmap_find(disk, "more", NULL);

    if (test_random(&seed, 3) == 0) {
        if (more)
            dirty_bitmap_remove(more);
        else
            more = co_add_persistent(disk, "more", 4 * GRAIN);
        assert_true(test_random(&seed, 2) || co_dirty_settle(disk, &err));
    } else if (more) {
        dirty_bitmap_set(more, test_random(&seed, 14) * SIDECAR_REGION_MIN, 70 * MiB);
    }
    if (dirty_bitmap_busy(a)) {
        uint64_t stay = test_random(&seed, GRAINS);
        struct bitmap *still = bitmap_new(GRAINS);

        bitmap_merge(still, dirty_bitmap_bits(a));
        bitmap_clear(still, stay, GRAINS - stay);
        dirty_bitmap_thaw(a, still);
        note(THAW, false, 0, stay, NULL);
        bitmap_free(still);
    } else if (test_random(&seed, 2)) {
        note(FREEZE, false, 0, 0, NULL);
        dirty_bitmap_freeze(a, dirty_bitmap_new_row(a, NULL));
    }
}

static void co_live(void)
{
    struct dirty_bitmap *a = find_bitmap(disk, "a");

    for (unsigned round = 0; round < 4; round++) {
        struct crew crew = { 0 };

        for (unsigned i = 0; i < 3; i++)
            crew_start(&crew, co_writer, NULL);
        crew_start(&crew, co_syncer, NULL);
        co_crew_wait(&crew);
        co_command(a);
    }
    if (dirty_bitmap_busy(a)) {
        dirty_bitmap_thaw(a, dirty_bitmap_bits(a));
        note(THAW, false, 0, GRAINS, NULL);
    }
}

static uint64_t over_report, looked_at;

static void check(const struct state *st, uint64_t cut, bool killed)
{
    const struct dirty_bitmap *a = find_bitmap(disk, "a");
    const char *why = dirty_bitmap_inconsistent(a);

    if (why)
        fail_msg("cut %" PRIu64 "%s: %s", cut, killed ? " (killed)" : "", why);
    for (uint64_t g = 0; g < GRAINS; g++) {
        bool dirty = bitmap_test(dirty_bitmap_bits(a), g);

        if (st->need[g] && !dirty)
            fail_msg("cut %" PRIu64 "%s: granule %" PRIu64 " is not dirty", cut,
                     killed ? " (killed)" : "", g);
        over_report += dirty && !st->need[g];
    }
    looked_at++;
}

static unsigned boot;            /* in which the life is, or was, that is recorded */

/* In that boot, or in one of which nobody has heard. */
static void boot_again(bool killed)
{
    static unsigned boots;
    uint8_t id[16] = { 0 };
    unsigned now = killed ? boot : ++boots;

    memcpy(id, &now, sizeof(now));
    sidecar_fake_boot(id);
    if (recording)
        boot = now;
}

static void co_open_state(const struct state *st, uint64_t cut)
{
    put_file(st);
    image.id = record[cut - 1].id;
    disk = co_open_image(false);
}

/* Cut the life that is recorded at many places; the last one is where the next begins. */
static void co_cut_life(const struct state *from, uint64_t first_cut, unsigned cuts,
                        struct state *ret)
{
    uint64_t all = n_record;

    recording = false;
    for (unsigned i = 0; i < cuts; i++) {
        uint64_t cut = first_cut + test_random(&seed, all - first_cut + 1);
        bool killed = test_random(&seed, 3) == 0;

        cut_at(from, cut, killed, ret);
        recording = i + 1 == cuts;
        boot_again(killed);
        if (recording) {
            struct storage_identity id = record[cut - 1].id;

            forget_record();
            put_file(ret);
            image.id = id;
            note(SIDE_SYNC, false, 0, 0, NULL);
            disk = co_open_image(false);
        } else {
            co_open_state(ret, cut);
        }
        check(ret, cut, killed);
        if (i + 1 < cuts)
            co_node_unref(disk);
    }
}

#define LIVES 3u
#define CUTS 14u

static void co_seed(void)
{
    struct state *from = state_new(), *to = state_new();

    unlink(sidecar_test_path());
    image_touch();
    recording = true;
    boot_again(false);
    disk = co_open_image(false);
    co_add_persistent(disk, "a", GRAIN);
    for (unsigned life = 0; life < LIVES; life++) {
        /* In the first nothing is promised before the bitmap was there. */
        uint64_t first_cut = life ? 1 : n_record;
        struct node *open = disk;
        struct state *swap = from;

        co_live();
        recording = false;
        co_node_unref(open);
        co_cut_life(from, first_cut, CUTS, to);
        from = to;
        to = swap;
    }
    recording = false;
    forget_record();
    co_node_unref(disk);
    state_free(from);
    state_free(to);
}

static void cuts_body(void)
{
    const char *rounds = getenv("STILLPOINT_ROUNDS");
    unsigned n = rounds ? (unsigned)atoi(rounds) : 6;

    for (unsigned i = 0; i < n; i++) {
        uint64_t before = looked_at;

        co_seed();
        test_tally(looked_at - before, "cuts of a file of bitmaps");
    }
    print_message("%.1f granules of %u too many dirty after each cut\n",
                  (double)over_report / (double)looked_at, (unsigned)GRAINS);
}

static void nothing_dirty_is_lost(void **state)
{
    static const struct sidecar_observer observer = { .saw = saw_side };

    seed = test_seed(1);
    sidecar_observe(&observer);
    image.saw = saw_disk;
    in_loop(cuts_body);
    sidecar_observe(NULL);
    sidecar_fake_boot(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_dirty_is_lost),
    };

    log_set_level(LOG_LEVEL_ERROR);
    sidecar_test_begin(SIZE, false);

    int failures = cmocka_run_group_tests(tests, NULL, NULL);

    sidecar_test_end();
    return failures;
}
