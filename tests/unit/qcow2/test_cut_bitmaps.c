/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: whenever the power goes or the process is killed, an image and the file with its
 * bitmaps, each as it is on the disk at that moment, tell together of every change since the
 * last backup (docs/dirty-bitmaps.md): also of one that the backup has and the disk lost.
 * Method: random lives of real files, raw and qcow2: writes, zeroes, discards and flushes,
 * some at a time, backups, bitmaps that are cleared, resizes, closing. Driver `fault` records
 * the image, an observer the other file, and how far the image's record was then. Both
 * are cut at one moment: of what no flush covered each keeps a random part. What is left is
 * opened, and a sector that is not as at the last backup has to be dirty. The last cut
 * lives on.
 *
 * STILLPOINT_SEED repeats a run; with STILLPOINT_ROUNDS set lives are cut in more places, one
 * in eight everywhere.
 */
#include "base/log.h"
#include "record.h"
#include "sidecar/impl.h"
#include "windows.h"
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#define GRAIN (64u * 1024)
#define GRAIN_B 4096u
#define SECTORS ((SIDECAR_AREAS_AT + 512 * KiB) / SIDECAR_SECTOR)
#define EVENTS_MAX 30000u
#define BASES_MAX 64u

#define LIVES 3u
#define CUTS 24u
#define OPENING 40u              /* events, about, of opening what was cut */
#define CUTS_MORE 120u

static const char *const names[] = { "a", "b" };
static const uint32_t grains[] = { GRAIN, GRAIN_B };
#define BITMAPS ARRAY_SIZE(names)

static struct node *disk;
static const char *format;

/* ---- the record -------------------------------------------------------------------- */

enum what {
    SIDE_WRITE, SIDE_PUNCH, SIDE_RESIZE, SIDE_SYNC, SIDE_CREATE, SIDE_PUBLISH, SIDE_UNLINK,
    NEW_BASE,                    /* of bitmap @off: a backup of it has ended, or it was cleared */
    DISK_RESIZE, DISK_RESIZED,   /* it has begun; it is on the disk in both files */
};

struct event {
    enum what what;
    bool end;
    uint64_t off, len;
    uint8_t *data;
    size_t ended;                /* of a begin: the event that is its end; 0: none */
    uint64_t image_bytes;        /* the image's record was so long */
    size_t image;                /* so many records, that is */
    struct windows *base;
};

static struct event events[EVENTS_MAX];
static size_t n_events;
static bool recording;
static uint64_t seed, first_seed;
static unsigned life;

static uint64_t below(uint64_t n)
{
    return test_random(&seed, n);
}

static uint64_t length_of_record(void)
{
    struct stat st;

    return stat(work_path("record"), &st) < 0 ? 0 : (uint64_t)st.st_size;
}

static struct event *note(enum what what, bool end, uint64_t off, uint64_t len, const void *data)
{
    struct event *e = &events[n_events];

    assert_true(n_events < EVENTS_MAX);
    *e = (struct event){ .what = what, .end = end, .off = off, .len = len,
                         .image_bytes = length_of_record() };
    if (data && !end)
        e->data = xmemdup(data, len);
    for (size_t i = n_events; end && i-- > 0;) {
        struct event *b = &events[i];

        if (!b->end && !b->ended && b->what == what && b->off == off && b->len == len) {
            b->ended = n_events;
            break;
        }
    }
    n_events++;
    return e;
}

static void saw_side(void *arg, bool end, enum sidecar_op op, uint64_t off, uint64_t len,
                     const void *data)
{
    static const enum what whats[] = {
        [SIDECAR_OP_WRITE] = SIDE_WRITE, [SIDECAR_OP_PUNCH] = SIDE_PUNCH,
        [SIDECAR_OP_RESIZE] = SIDE_RESIZE, [SIDECAR_OP_SYNC] = SIDE_SYNC,
        [SIDECAR_OP_CREATE] = SIDE_CREATE, [SIDECAR_OP_PUBLISH] = SIDE_PUBLISH,
        [SIDECAR_OP_UNLINK] = SIDE_UNLINK,
    };

    if (recording)
        note(whats[op], end, off, len, data);
}

static void forget_events(void)
{
    for (size_t i = 0; i < n_events; i++) {
        free(events[i].data);
        free(events[i].base);
    }
    n_events = 0;
}

static void note_base(unsigned bitmap, const struct windows *c)
{
    note(NEW_BASE, false, bitmap, 0, NULL)->base = xmemdup(c, sizeof(*c));
}

/* ---- the sidecar file that a cut leaves ----------------------------------------------- */

struct side {
    uint8_t (*sectors)[SIDECAR_SECTOR];
    bool *frozen;                /* while it is made: this sector is as it will be */
    uint64_t size;
    bool named;
};

/* Sectors that were ever written to, in any state: the others are zeros. */
static uint32_t touched[SECTORS];
static bool is_touched[SECTORS];
static size_t n_touched;

static void side_init(struct side *s)
{
    *s = (struct side){ .sectors = xcalloc(SECTORS, SIDECAR_SECTOR),
                        .frozen = xcalloc(SECTORS, sizeof(bool)) };
}

static void side_done(struct side *s)
{
    free(s->sectors);
    free(s->frozen);
}

static void side_copy(struct side *to, const struct side *from)
{
    for (size_t i = 0; i < n_touched; i++) {
        memcpy(to->sectors[touched[i]], from->sectors[touched[i]], SIDECAR_SECTOR);
        to->frozen[touched[i]] = false;
    }
    to->size = from->size;
    to->named = from->named;
}

static void side_clear(struct side *s)
{
    for (size_t i = 0; i < n_touched; i++) {
        memset(s->sectors[touched[i]], 0, SIDECAR_SECTOR);
        s->frozen[touched[i]] = false;
    }
    s->size = 0;
}

static void apply_bytes(struct side *s, const struct event *e, bool sure, bool killed)
{
    for (uint64_t at = 0; at < e->len; at += SIDECAR_SECTOR) {
        uint64_t sector = (e->off + at) / SIDECAR_SECTOR;

        assert_true(sector < SECTORS);
        if (!is_touched[sector])
            touched[n_touched++] = (uint32_t)sector;
        is_touched[sector] = true;
        if (sure)
            s->frozen[sector] = false;
        else if (!killed && !s->frozen[sector] && below(2))
            s->frozen[sector] = true;
        if (s->frozen[sector])
            continue;
        if (e->what == SIDE_PUNCH)
            memset(s->sectors[sector], 0, SIDECAR_SECTOR);
        else
            memcpy(s->sectors[sector], e->data + at, MIN(e->len - at, SIDECAR_SECTOR));
    }
}

static void apply(struct side *s, const struct event *e, bool ended, bool sure, bool killed)
{
    switch (e->what) {
    case SIDE_WRITE:
    case SIDE_PUNCH:
        apply_bytes(s, e, sure, killed);
        return;
    case SIDE_RESIZE:
        if (sure || killed || below(2))
            s->size = e->len;
        return;
    case SIDE_CREATE:
        side_clear(s);
        return;
    case SIDE_PUBLISH:
    case SIDE_UNLINK:
        if (ended || below(2))
            s->named = e->what == SIDE_PUBLISH;
        return;
    default:
        return;
    }
}

/* The last sync that began before @cut and ended before it: what had ended before it began
 * is on the disk. */
static size_t synced_before(size_t cut)
{
    for (size_t i = cut; i-- > 0;) {
        if (events[i].what == SIDE_SYNC && !events[i].end && events[i].ended &&
            events[i].ended < cut)
            return i;
    }
    return 0;
}

static void cut_side(const struct side *from, size_t cut, bool killed, struct side *ret)
{
    size_t synced = synced_before(cut);

    side_copy(ret, from);
    for (size_t i = 0; i < cut; i++) {
        const struct event *e = &events[i];
        bool ended = e->ended && e->ended < cut;

        if (!e->end && (ended || !killed || below(2)))
            apply(ret, e, ended, ended && e->ended < synced, killed);
    }
}

static int64_t timespec_ns(struct timespec t)
{
    return t.tv_sec * (int64_t)NSEC_PER_SEC + t.tv_nsec;
}

/* The image's times are those of the replay: the file has to be of the same day. */
static void set_times(struct side *s)
{
    struct sidecar_header h;
    struct sidecar_beat b;
    struct stat st;
    struct err err;

    assert_int_equal(stat(work_path("disk.img"), &st), 0);
    if (sidecar_beat_decode(s->sectors[SIDECAR_BEAT_AT / SIDECAR_SECTOR], &b)) {
        b.time_ns = sidecar_now_ns();
        sidecar_beat_encode(&b, s->sectors[SIDECAR_BEAT_AT / SIDECAR_SECTOR]);
    }
    for (unsigned i = 0; i < 2; i++) {
        uint8_t *buf = s->sectors[i * SIDECAR_BLOCK / SIDECAR_SECTOR];

        if (!sidecar_header_decode(buf, &h, &err) || h.state != SIDECAR_CLEAN)
            continue;
        h.storages[0].mtime_ns = timespec_ns(st.st_mtim);
        h.storages[0].ctime_ns = timespec_ns(st.st_ctim);
        h.storages[0].size = (uint64_t)st.st_size;
        sidecar_header_encode(&h, buf);
    }
}

static void put_side(struct side *s)
{
    static const uint8_t zeros[SIDECAR_SECTOR];
    int fd;

    (void)unlink(work_path("disk.img.bitmaps"));
    if (!s->named)
        return;
    set_times(s);
    fd = open(work_path("disk.img.bitmaps"), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, (off_t)s->size), 0);
    for (size_t i = 0; i < n_touched; i++) {
        const uint8_t *sector = s->sectors[touched[i]];

        if (memcmp(sector, zeros, sizeof(zeros)) != 0)
            assert_int_equal(pwrite(fd, sector, SIDECAR_SECTOR,
                                    (off_t)touched[i] * SIDECAR_SECTOR), SIDECAR_SECTOR);
    }
    close(fd);
}

/* ---- a life ------------------------------------------------------------------------------- */

static void co_writer(void *arg)
{
    const unsigned *writer = arg;

    for (unsigned i = 0; i < 10; i++) {
        co_windows_write(disk, *writer, &seed);
        if (!below(12))
            assert_int_equal(co_node_flush(disk), 0);
        co_yield_times((unsigned)below(4));
    }
}

static void co_syncer(void *arg)
{
    struct sidecar *s = container_of(node_dirty_keeper(disk), struct sidecar, k);

    for (unsigned i = 0; i < 4; i++) {
        co_sidecar_sync_all(s);
        co_yield_times((unsigned)below(20));
    }
}

static struct windows *frozen;       /* the disk when "a" was frozen; NULL: it is not */

/* As a backup that begins, or ends. */
static void co_backup(struct dirty_bitmap *a)
{
    if (!frozen) {
        frozen = xnew(struct windows);
        co_windows_read(disk, frozen);
        dirty_bitmap_freeze(a, dirty_bitmap_new_row(a, NULL));
    } else if (below(4)) {
        note_base(0, frozen);
        dirty_bitmap_thaw(a, NULL);
        free(MOVE(frozen));
    } else {
        dirty_bitmap_thaw(a, dirty_bitmap_bits(a));
        free(MOVE(frozen));
    }
}

static void co_clear(struct dirty_bitmap *b)
{
    CLEANUP(free) struct windows *now = xnew(struct windows);
    struct err err = ERR_INIT;

    co_windows_read(disk, now);
    note_base(1, now);
    bitmap_free(dirty_bitmap_clear(b, dirty_bitmap_new_row(b, NULL)));
    if (below(2))
        assert_true(co_dirty_settle(disk, &err));
}

static void co_resize(void)
{
    static const uint64_t sizes[] = {
        WINDOWS_DISK, WINDOWS_DISK + 2 * SIDECAR_REGION_MIN, 3 * SIDECAR_REGION_MIN - 128 * KiB,
    };
    struct err err = ERR_INIT;

    note(DISK_RESIZE, false, 0, 0, NULL);
    if (!co_node_resize(disk, sizes[below(ARRAY_SIZE(sizes))], &err))
        fail_msg("%s", err.text);
    if (below(2))
        co_windows_write(disk, (unsigned)below(WRITERS), &seed);
    if (!co_dirty_settle(disk, &err))
        fail_msg("%s", err.text);
    assert_int_equal(co_node_flush(disk), 0);
    note(DISK_RESIZED, false, 0, 0, NULL);
}

/* Between two rounds of writes, so that nothing is on its way. */
static void co_command(void)
{
    struct err err = ERR_INIT;

    if (below(2))
        co_backup(dirty_bitmap_find(disk, "a", &err));
    if (!below(3))
        co_clear(dirty_bitmap_find(disk, "b", &err));
    if (!frozen && !below(4))
        co_resize();
}

static void co_live(void)
{
    static unsigned writers[WRITERS] = { 0, 1, 2 };
    struct dirty_bitmap *a = dirty_bitmap_find(disk, "a", NULL);

    for (unsigned round = 0; round < 4; round++) {
        struct crew crew = { 0 };

        for (unsigned i = 0; i < WRITERS; i++)
            crew_start(&crew, co_writer, &writers[i]);
        crew_start(&crew, co_syncer, NULL);
        co_crew_wait(&crew);
        co_command();
    }
    if (frozen) {
        dirty_bitmap_thaw(a, dirty_bitmap_bits(a));
        free(MOVE(frozen));
    }
}

static void co_open(const char *options)
{
    (void)unlink(work_path("record"));
    disk = co_test_open("{'driver': '%s', 'file': {'driver': 'fault', 'record': '%s', 'discard': "
                        "'unmap', 'file': {'driver': 'file', 'discard': 'unmap', 'filename': "
                        "'%s'}}%s}", format, work_path("record"), work_path("disk.img"), options);
}

/* ---- after a cut -------------------------------------------------------------------------- */

static size_t n_cuts, n_resizing;

/* Whether the two files may disagree about the size of the disk. */
static bool is_resizing(size_t cut)
{
    for (size_t i = cut; i-- > 0;) {
        if (events[i].what == DISK_RESIZED)
            return false;
        if (events[i].what == DISK_RESIZE)
            return true;
    }
    return false;
}

static const struct windows *base_at(unsigned bitmap, size_t cut, const struct windows *first)
{
    for (size_t i = cut; i-- > 0;) {
        if (events[i].what == NEW_BASE && events[i].off == bitmap)
            return events[i].base;
    }
    return first;
}

static void co_judge(size_t cut, const char *where, const struct windows *const first[BITMAPS])
{
    CLEANUP(free) struct windows *now = xnew(struct windows);

    co_windows_read(disk, now);
    for (unsigned j = 0; j < BITMAPS; j++) {
        struct dirty_bitmap *bm = dirty_bitmap_find(disk, names[j], NULL);
        const char *why = bm ? dirty_bitmap_inconsistent(bm) : "it is not there";
        CLEANUP(free) char *untold = NULL;

        if (why && strstr(why, "the disk has") && is_resizing(cut)) {
            n_resizing++;
            return;
        }
        if (why)
            fail_msg("%s: bitmap '%s': %s", where, names[j], why);
        untold = windows_untold(bm, base_at(j, cut, first[j]), now);
        if (untold)
            fail_msg("%s: %s", where, untold);
    }
    n_cuts++;
}

static unsigned boot;                /* in which the life is, or was, that is recorded */

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

struct cutter {
    struct side from;            /* when this life began */
    struct side to;
    struct windows *first[BITMAPS];   /* the bases then; NULL: there are no bitmaps yet */
    size_t first_cut;
    struct record image;
};

/* @keep: open it as the next life, with its record. */
static void co_cut(struct cutter *c, size_t cut, bool killed, bool keep)
{
    size_t least = cut ? events[cut - 1].image : 0;
    size_t most = cut < n_events ? events[cut].image : c->image.n;
    size_t image = least + below(MAX(most, least) - least + 1);
    CLEANUP(free) char *where = xasprintf(
        "%s, seed %" PRIu64 ", life %u, %s at %zu of %zu and %zu of %zu", format, first_seed,
        life, killed ? "killed" : "cut", cut, n_events, image, c->image.n);

    alarm(120);
    (killed ? replay_killed : replay)("before.img", "disk.img", &c->image, image, &seed);
    cut_side(&c->from, cut, killed, &c->to);
    if (keep) {
        copy_file("disk.img", "next.img");
        for (unsigned j = 0; j < BITMAPS; j++) {
            struct windows *base = xmemdup(base_at(j, cut, c->first[j]), sizeof(*base));

            free(c->first[j]);
            c->first[j] = base;
        }
        forget_events();
    }
    put_side(&c->to);
    recording = keep;
    boot_again(killed);
    if (keep)
        co_open("");
    else
        disk = co_test_open("{'driver': '%s', 'read-only': %s, 'file': {'driver': 'file', "
                            "'filename': '%s'}}", format, below(4) ? "false" : "true",
                            work_path("disk.img"));
    co_judge(keep ? 0 : cut, where, (const struct windows *const *)c->first);
    if (!keep)
        co_node_unref(disk);
}

/* Cut the life that is recorded at many places; the last one is where the next begins. */
static void co_cut_life(struct cutter *c, unsigned cuts)
{
    size_t all = n_events, step = 1;

    c->image = load_record();
    for (size_t i = 0; i < n_events; i++)
        events[i].image = record_at(&c->image, events[i].image_bytes);
    if (cuts)
        step = MAX((all - c->first_cut) / cuts, (size_t)1);
    for (size_t cut = c->first_cut + below(step); cut <= all; cut += step)
        co_cut(c, cut, !below(3), false);
    /* Killed while what a power cut left is put right (I-S7). */
    for (size_t cut = 1; life && cut <= MIN(all, (size_t)OPENING); cut++)
        co_cut(c, cut, true, false);
    /* Not while the disk is resized, which may end the bitmaps. */
    size_t last = c->first_cut + below(all - c->first_cut + 1);
    while (is_resizing(last))
        last++;
    co_cut(c, last, !below(3), true);
    record_done(&c->image);
    must_run("mv next.img before.img");
    side_copy(&c->from, &c->to);
    c->first_cut = 1;
}

/* ---- a run -------------------------------------------------------------------------------- */

static void co_first_life(struct cutter *c)
{
    struct err err = ERR_INIT;

    must_run("rm -f disk.img* before.img record; qemu-img create -q -f %s disk.img %ju; "
             "cp --sparse=always disk.img before.img", format, (uintmax_t)WINDOWS_DISK);
    recording = true;
    boot_again(false);
    co_open("");
    /* What was written and not flushed before is as it is from now on, too. */
    for (unsigned i = 0; i < 10; i++)
        co_windows_write(disk, (unsigned)below(WRITERS), &seed);
    for (unsigned j = 0; j < BITMAPS; j++) {
        c->first[j] = xnew(struct windows);
        co_windows_read(disk, c->first[j]);
        if (!co_dirty_keep(disk, &err) ||
            !dirty_bitmap_add(disk, &(struct dirty_bitmap_opts){
                .name = names[j], .granularity = grains[j], .persistent = true }, &err) ||
            !co_dirty_settle(disk, &err))
            fail_msg("%s", err.text);
    }
    c->first_cut = n_events;
}

static void co_run(bool more)
{
    struct cutter c = { 0 };

    side_init(&c.from);
    side_init(&c.to);
    co_first_life(&c);
    for (life = 0; life < LIVES; life++) {
        unsigned cuts = !more ? CUTS : below(8) ? CUTS_MORE : 0;
        struct node *open = disk;

        co_live();
        co_node_unref(open);
        recording = false;
        co_cut_life(&c, cuts);
    }
    recording = false;
    co_node_unref(disk);
    forget_events();
    for (unsigned j = 0; j < BITMAPS; j++)
        free(c.first[j]);
    side_done(&c.from);
    side_done(&c.to);
}

static void run_seeds(const char *what)
{
    const char *rounds = getenv("STILLPOINT_ROUNDS");
    long n = rounds ? atol(rounds) : 2;

    format = what;
    first_seed = test_seed(20261205);
    for (long i = 0; i < n; i++, first_seed++) {
        n_cuts = n_resizing = 0;
        seed = first_seed;
        printf("seed %" PRIu64 "\n", first_seed);
        fflush(stdout);
        co_run(rounds != NULL);
        test_tally(n_cuts, "cuts of an image and its file of bitmaps");
        test_tally(n_resizing, "cuts of both while the disk is resized");
    }
}

CO_TEST(raw_and_bitmaps_stop_at_one_moment)
{
    run_seeds("raw");
}

CO_TEST(qcow2_and_bitmaps_stop_at_one_moment)
{
    run_seeds("qcow2");
}

int main(int argc, char **argv)
{
    static const struct sidecar_observer observer = { .saw = saw_side };
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(raw_and_bitmaps_stop_at_one_moment),
        cmocka_unit_test(qcow2_and_bitmaps_stop_at_one_moment),
    };

    log_set_level(LOG_LEVEL_ERROR);
    work_in_memory(true);
    sidecar_register();
    sidecar_observe(&observer);
    return drivers_test_main(argc, argv, "power cuts of images with bitmaps", tests,
                             ARRAY_SIZE(tests));
}
