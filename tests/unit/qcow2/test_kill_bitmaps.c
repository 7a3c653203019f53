/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: kill -9 at any moment loses no dirty bit, of raw and of qcow2 (docs/dirty-bitmaps.md,
 * I-S1, I-S5, I-S6): also while the image is opened, while what was lost is put right,
 * and while it is closed.
 * Method: a process of its own, without a server, opens the image, looks whether its
 * bitmaps tell of all that is not as at the last backup, and goes on with writes, backups and
 * commands until it is killed at a random moment, or closes the image in good order. Then the
 * next one comes. What a backup has is in memory that all of them share.
 *
 * STILLPOINT_SEED repeats choices, not moments; STILLPOINT_ROUNDS is how often is killed.
 */
#include "base/log.h"
#include "sidecar/impl.h"
#include "windows.h"
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define BITMAPS 2u
static const char *const names[BITMAPS] = { "a", "b" };
static const uint32_t grains[BITMAPS] = { 64u * 1024, 4096 };

/* What must outlive who is killed. */
struct shared {
    bool ready;                  /* the bitmaps were added, and that answered */
    unsigned current[BITMAPS];   /* which of the two contents is the last backup's */
    struct windows base[BITMAPS][2];
    atomic_bool working;         /* it is open, and was judged */
    unsigned long judged;
    char untold[500];            /* the test has failed */
    char useless[500];           /* a bitmap is inconsistent, and why */
};
static struct shared *shared;
static sigset_t child_ends;      /* SIGCHLD, which is blocked */

static struct node *disk;
static const char *format;
static uint64_t seed;

static uint64_t below(uint64_t n)
{
    return test_random(&seed, n);
}

/* ---- one process -------------------------------------------------------------------- */

/* The kernel may still do something for the last one, and keep its locks. */
static void co_open(void)
{
    uint64_t deadline = loop_now() + 30 * NSEC_PER_SEC;
    json_t *options = test_json("{'driver': '%s', 'discard': 'unmap', 'file': {'driver': 'file', "
                                "'filename': '%s'}}", format, work_path("disk.img"));
    struct err err = ERR_INIT;

    while (!(disk = co_node_open(options, false, &err))) {
        if (!strstr(err.text, "lock") || loop_now() > deadline)
            fail_msg("%s", err.text);
        co_sleep(NSEC_PER_MSEC);
    }
    json_decref(options);
}

static struct windows *next_base(unsigned bitmap)
{
    return &shared->base[bitmap][!shared->current[bitmap]];
}

/* From here on the next one counts: whatever is cleared is cleared afterwards. */
static void take_base(unsigned bitmap)
{
    __atomic_store_n(&shared->current[bitmap], !shared->current[bitmap], __ATOMIC_SEQ_CST);
}

static void co_judge(void)
{
    CLEANUP(free) struct windows *now = xnew(struct windows);

    co_windows_read(disk, now);
    for (unsigned i = 0; i < BITMAPS; i++) {
        struct dirty_bitmap *bm = dirty_bitmap_find(disk, names[i], NULL);
        const char *why = bm ? dirty_bitmap_inconsistent(bm) : "it is not there";
        CLEANUP(free) char *untold = NULL;

        if (why) {
            snprintf(shared->useless, sizeof(shared->useless), "bitmap '%s': %s", names[i], why);
            _exit(0);
        }
        untold = windows_untold(bm, &shared->base[i][shared->current[i]], now);
        if (untold) {
            snprintf(shared->untold, sizeof(shared->untold), "%s", untold);
            _exit(0);
        }
    }
    shared->judged++;
    shared->working = true;
}

static void co_add_bitmaps(void)
{
    struct err err = ERR_INIT;

    for (unsigned i = 0; i < BITMAPS; i++) {
        struct dirty_bitmap *bm = dirty_bitmap_find(disk, names[i], NULL);

        /* Of one who was killed before he heard that it is there. */
        if (bm)
            dirty_bitmap_remove(bm);
        co_windows_read(disk, next_base(i));
        take_base(i);
        if (!co_dirty_keep(disk, &err) ||
            !dirty_bitmap_add(disk, &(struct dirty_bitmap_opts){
                .name = names[i], .granularity = grains[i], .persistent = true }, &err) ||
            !co_dirty_settle(disk, &err))
            fail_msg("%s", err.text);
    }
    shared->ready = shared->working = true;
}

static void co_writer(void *arg)
{
    const unsigned *writer = arg;

    for (unsigned i = 0; i < 10; i++) {
        co_windows_write(disk, *writer, &seed);
        if (!below(20))
            assert_int_equal(co_node_flush(disk), 0);
    }
}

static void co_syncer(void *arg)
{
    struct sidecar *s = container_of(node_dirty_keeper(disk), struct sidecar, k);

    for (unsigned i = 0; i < 3; i++) {
        co_sidecar_sync_all(s);
        co_yield_times((unsigned)below(20));
    }
}

static void co_round(void)
{
    static unsigned writers[WRITERS] = { 0, 1, 2 };
    struct crew crew = { 0 };

    for (unsigned i = 0; i < WRITERS; i++)
        crew_start(&crew, co_writer, &writers[i]);
    if (!below(3))
        crew_start(&crew, co_syncer, NULL);
    co_crew_wait(&crew);
}

/* A backup over some rounds, which ends well or not. */
static void co_backup(void)
{
    struct dirty_bitmap *a = dirty_bitmap_find(disk, names[0], NULL);

    co_windows_read(disk, next_base(0));
    dirty_bitmap_freeze(a, dirty_bitmap_new_row(a, NULL));
    for (uint64_t n = below(3); n; n--)
        co_round();
    if (below(4)) {
        take_base(0);
        dirty_bitmap_thaw(a, NULL);
    } else {
        dirty_bitmap_thaw(a, dirty_bitmap_bits(a));
    }
}

static void co_clear(void)
{
    struct dirty_bitmap *b = dirty_bitmap_find(disk, names[1], NULL);
    struct err err = ERR_INIT;

    co_windows_read(disk, next_base(1));
    take_base(1);
    bitmap_free(dirty_bitmap_clear(b, dirty_bitmap_new_row(b, NULL)));
    assert_true(below(2) || co_dirty_settle(disk, &err));
}

static void life(void)
{
    co_open();
    if (shared->ready)
        co_judge();
    else
        co_add_bitmaps();
    for (uint64_t n = 1 + below(60); n; n--) {
        co_round();
        if (!below(3))
            co_backup();
        if (!below(4))
            co_clear();
    }
    co_node_unref(disk);
}

/* ---- many ------------------------------------------------------------------------------ */

static void begin_anew(void)
{
    must_run("rm -f disk.img*; qemu-img create -q -f %s disk.img %ju", format,
             (uintmax_t)WINDOWS_DISK);
    shared->ready = false;
    shared->useless[0] = 0;
}

/* False: a process has ended meanwhile, or before. */
static bool let_live(uint64_t us)
{
    struct timespec t = { (time_t)(us / 1000000), (long)(us % 1000000) * 1000 };

    return sigtimedwait(&child_ends, NULL, &t) < 0;
}

/* Until it is killed; true: it was faster. */
static bool run_life(void)
{
    uint64_t moment = below(100U << below(9));
    bool open = below(2), alive = true;      /* first, or while that goes on */
    uint64_t its_seed = below(UINT64_MAX);
    pid_t pid;
    int status;

    fflush(stdout);
    shared->working = false;
    while (!let_live(0))                     /* of those before */
        ;
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        alarm(120);
        seed = its_seed;
        in_loop(life);
        _exit(0);
    }
    while (open && !shared->working && alive)
        alive = let_live(50);
    if (alive)
        (void)let_live(moment);
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return true;
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
        fail_msg("a life ended with status 0x%x", (unsigned)status);
    return false;
}

static void kill_many(const char *what, bool memory)
{
    const char *rounds = getenv("STILLPOINT_ROUNDS");
    long n = rounds ? atol(rounds) : 40;
    unsigned useless = 0, ends = 0;

    format = what;
    work_in_memory(memory);
    seed = test_seed(20261206);
    begin_anew();
    shared->judged = 0;
    for (long kills = 0; kills < n;) {
        bool ended = run_life();

        kills += !ended;
        ends += ended;
        if (shared->untold[0])
            fail_msg("%s, after %ld kills: %s", format, kills, shared->untold);
        if (shared->useless[0]) {
            print_message("%s, after %ld kills: %s\n", format, kills, shared->useless);
            useless++;
            begin_anew();
        }
        if (!ended && kills % 20 == 0)
            test_tally(20, "kills of a process with a bitmap");
    }
    test_tally((size_t)(n % 20), "kills of a process with a bitmap");
    print_message("%s: judged %lu times; %u times of no use; closed in good order %u times\n",
                  format, shared->judged, useless, ends);
    /* After a pause of the machine nothing tells whose a late write was. */
    assert_true(useless <= n / 20 + 1);
}

static void kill_raw(void **state)
{
    kill_many("raw", true);
}

static void kill_raw_on_disk(void **state)
{
    kill_many("raw", false);
}

static void kill_qcow2(void **state)
{
    kill_many("qcow2", true);
}

static void kill_qcow2_on_disk(void **state)
{
    kill_many("qcow2", false);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kill_raw),
        cmocka_unit_test(kill_raw_on_disk),
        cmocka_unit_test(kill_qcow2),
        cmocka_unit_test(kill_qcow2_on_disk),
    };

    log_set_level(LOG_LEVEL_ERROR);
    sidecar_register();
    sigemptyset(&child_ends);
    sigaddset(&child_ends, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child_ends, NULL);
    shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(shared != MAP_FAILED);
    return drivers_test_main(argc, argv, "kills of processes with bitmaps", tests,
                             ARRAY_SIZE(tests));
}
