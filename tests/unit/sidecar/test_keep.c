/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: bitmaps come back as they were, in good order or not, or say why they are of no
 * use; and no failure of the file reaches the guest.
 * Method: one disk in memory, opened again and again. A crash is a copy of the sidecar
 * file, taken at any moment and put back after the node is closed.
 */
#include "sidecar_test.h"
#include "base/limits.h"
#include "base/mem.h"
#include "sidecar/format.h"
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define SIZE (256 * MiB)
#define GRAIN (64u * 1024)

static char buf[4096];

static void co_write(struct node *n, uint64_t off)
{
    assert_int_equal(co_node_pwrite(n, off, sizeof(buf), buf, 0), 0);
}

static struct storage_identity then;

/* The process is killed now. */
static void keep_copy(void)
{
    CLEANUP(free) char *command = xasprintf("cp --sparse=always %s %s.killed",
                                            sidecar_test_path(), sidecar_test_path());

    assert_int_equal(system(command), 0);
    then = image.id;
}

static void put_copy_back(void)
{
    CLEANUP(free) char *killed = xasprintf("%s.killed", sidecar_test_path());

    assert_int_equal(rename(killed, sidecar_test_path()), 0);
    image.id = then;
}

static void start(void)
{
    unlink(sidecar_test_path());
    image_touch();
}

static bool there_is_a_file(void)
{
    return access(sidecar_test_path(), F_OK) == 0;
}

/* ---- good order ------------------------------------------------------------------- */

static void closed_and_opened_body(void)
{
    struct node *n = co_open_image(false);
    struct err err;

    co_add_persistent(n, "a", GRAIN);
    struct dirty_bitmap *b = co_add_persistent(n, "b", 512);

    co_write(n, 10 * GRAIN);
    dirty_bitmap_disable(b);
    assert_true(co_dirty_settle(n, &err));
    co_write(n, SIZE - sizeof(buf));
    co_node_unref(n);
    assert_true(there_is_a_file());

    n = co_open_image(true);             /* looking changes nothing */
    assert_int_equal(dirty_bitmap_count(find_bitmap(n, "a")), 2 * GRAIN);
    co_node_unref(n);

    n = co_open_image(false);
    b = find_bitmap(n, "b");
    assert_null(dirty_bitmap_inconsistent(b));
    assert_false(dirty_bitmap_enabled(b));
    assert_true(dirty_bitmap_persistent(b));
    assert_int_equal(dirty_bitmap_count(b), sizeof(buf));
    assert_int_equal(dirty_bitmap_count(find_bitmap(n, "a")), 2 * GRAIN);
    dirty_bitmap_remove(b);
    assert_true(co_dirty_settle(n, &err));
    co_node_unref(n);

    n = co_open_image(false);
    assert_null(dirty_bitmap_find(n, "b", NULL));
    dirty_bitmap_remove(find_bitmap(n, "a"));
    co_node_unref(n);
    assert_false(there_is_a_file());
}

static void closed_and_opened(void **state)
{
    start();
    in_loop(closed_and_opened_body);
}

/* A backup's clear is kept, and what it does not vouch for, too. */
static void cleared_body(void)
{
    struct node *n = co_open_image(false);
    struct dirty_bitmap *a = co_add_persistent(n, "a", GRAIN);
    struct err err;

    co_write(n, 0);
    co_write(n, 5 * GRAIN);
    dirty_bitmap_freeze(a, dirty_bitmap_new_row(a, NULL));
    co_write(n, 7 * GRAIN);
    assert_true(co_dirty_settle(n, &err));
    keep_copy();                         /* the backup runs: all of it is dirty */

    struct bitmap *still = bitmap_new(SIZE / GRAIN);

    bitmap_set_bit(still, 5);
    dirty_bitmap_thaw(a, still);
    bitmap_free(still);
    co_node_unref(n);

    n = co_open_image(false);
    assert_int_equal(dirty_bitmap_count(find_bitmap(n, "a")), 2 * GRAIN);
    co_node_unref(n);

    put_copy_back();
    n = co_open_image(false);
    assert_null(dirty_bitmap_inconsistent(find_bitmap(n, "a")));
    assert_int_equal(dirty_bitmap_count(find_bitmap(n, "a")), 3 * GRAIN);
    co_node_unref(n);
}

static void cleared(void **state)
{
    start();
    in_loop(cleared_body);
}

static void resized_body(void)
{
    struct node *n = co_open_image(false);
    struct dirty_bitmap *a = co_add_persistent(n, "a", GRAIN);
    struct err err = ERR_INIT;

    co_write(n, 3 * GRAIN);
    assert_true(co_node_resize(n, SIZE / 2, &err));
    co_write(n, 4 * GRAIN);
    keep_copy();
    assert_true(co_node_resize(n, SIZE, &err));
    assert_int_equal(dirty_bitmap_count(a), 2 * GRAIN + SIZE / 2);
    co_node_unref(n);

    n = co_open_image(false);
    assert_null(dirty_bitmap_inconsistent(find_bitmap(n, "a")));
    assert_int_equal(dirty_bitmap_count(find_bitmap(n, "a")), 2 * GRAIN + SIZE / 2);
    co_node_unref(n);

    put_copy_back();                     /* of another size */
    n = co_open_image(false);
    assert_non_null(strstr(dirty_bitmap_inconsistent(find_bitmap(n, "a")), "the disk has"));
    co_node_unref(n);
}

static void resized(void **state)
{
    start();
    in_loop(resized_body);
}

/* As many bits as before, but the last granule is dirty. */
static void resized_a_little_body(void)
{
    struct node *n = co_open_image(false);
    struct err err = ERR_INIT;

    assert_true(co_node_resize(n, SIZE - GRAIN + 512, &err));
    struct dirty_bitmap *a = co_add_persistent(n, "a", GRAIN);

    assert_true(co_node_resize(n, SIZE - GRAIN + 1024, &err));
    assert_true(co_dirty_settle(n, &err));
    assert_int_equal(dirty_bitmap_count(a), GRAIN);
    keep_copy();
    co_node_unref(n);

    put_copy_back();
    image.size = SIZE - GRAIN + 1024;
    n = co_open_image(false);
    image.size = SIZE;
    assert_null(dirty_bitmap_inconsistent(find_bitmap(n, "a")));
    assert_int_equal(dirty_bitmap_count(find_bitmap(n, "a")), GRAIN);
    co_node_unref(n);
}

static void resized_a_little(void **state)
{
    start();
    in_loop(resized_a_little_body);
}

/* ---- crashes ------------------------------------------------------------------------- */

static void killed_body(void)
{
    struct node *n = co_open_image(false);

    co_add_persistent(n, "a", GRAIN);
    co_write(n, 3 * GRAIN);
    co_write(n, SIZE - 1 - sizeof(buf));
    keep_copy();
    co_write(n, 9 * GRAIN);
    co_node_unref(n);

    put_copy_back();
    n = co_open_image(false);
    assert_null(dirty_bitmap_inconsistent(find_bitmap(n, "a")));
    assert_int_equal(dirty_bitmap_count(find_bitmap(n, "a")), 2 * GRAIN);
    keep_copy();                         /* and once more, before any write */
    co_node_unref(n);
    put_copy_back();
    n = co_open_image(false);
    assert_int_equal(dirty_bitmap_count(find_bitmap(n, "a")), 2 * GRAIN);
    co_node_unref(n);
}

static void killed(void **state)
{
    start();
    in_loop(killed_body);
}

/* Another boot: the regions that were written to count whole, here one of 64 MiB. */
static void power_lost_body(void)
{
    uint8_t boot_a[16] = "boot a", boot_b[16] = "boot b";
    struct node *n;

    sidecar_fake_boot(boot_a);
    n = co_open_image(false);
    co_add_persistent(n, "a", GRAIN);
    co_write(n, 70 * MiB);
    keep_copy();
    co_node_unref(n);

    put_copy_back();
    sidecar_fake_boot(boot_b);
    n = co_open_image(false);
    assert_null(dirty_bitmap_inconsistent(find_bitmap(n, "a")));
    assert_int_equal(dirty_bitmap_count(find_bitmap(n, "a")), 64 * MiB);
    struct dirty_bitmap *a = find_bitmap(n, "a");
    struct bitmap *still = bitmap_new(SIZE / GRAIN);

    assert_true(bitmap_test(dirty_bitmap_bits(a), 70 * MiB / GRAIN));
    assert_int_equal(dirty_bitmap_over_reported(a), 64 * MiB - GRAIN);
    dirty_bitmap_freeze(a, dirty_bitmap_new_row(a, NULL));
    co_write(n, 0);
    assert_int_equal(dirty_bitmap_over_reported(a), 64 * MiB - GRAIN);
    dirty_bitmap_thaw(a, dirty_bitmap_bits(a));          /* the backup failed */
    assert_int_equal(dirty_bitmap_over_reported(a), 64 * MiB - GRAIN);
    co_node_unref(n);
    n = co_open_image(false);
    a = find_bitmap(n, "a");
    assert_int_equal(dirty_bitmap_count(a), 64 * MiB + GRAIN);
    dirty_bitmap_set_over_reported(a, 64 * MiB);
    dirty_bitmap_freeze(a, dirty_bitmap_new_row(a, NULL));
    bitmap_set_bit(still, 5);
    dirty_bitmap_thaw(a, still);
    bitmap_free(still);
    assert_int_equal(dirty_bitmap_over_reported(a), GRAIN);
    bitmap_free(dirty_bitmap_clear(a, dirty_bitmap_new_row(a, NULL)));
    assert_int_equal(dirty_bitmap_over_reported(a), 0);
    co_node_unref(n);
    sidecar_fake_boot(NULL);
}

static void power_lost(void **state)
{
    start();
    in_loop(power_lost_body);
}

static void expect_useless(const char *words)
{
    struct node *n = co_open_image(false);
    const char *why = dirty_bitmap_inconsistent(find_bitmap(n, "a"));

    assert_non_null(why);
    if (!strstr(why, words))
        fail_msg("'%s' does not say '%s'", why, words);
    co_write(n, 0);
    co_node_unref(n);

    n = co_open_image(false);            /* that it is of no use, and why, is kept */
    why = dirty_bitmap_inconsistent(find_bitmap(n, "a"));
    assert_non_null(why);
    assert_non_null(strstr(why, words));
    co_node_unref(n);
}

static void written_by_others_body(void)
{
    struct node *n = co_open_image(false);
    struct storage_identity id;

    co_add_persistent(n, "a", GRAIN);
    keep_copy();
    co_node_unref(n);

    id = image.id;
    image.id.mtime_ns++;
    expect_useless("was changed by another program after");
    put_copy_back();
    image.id.ctime_ns += 2 * (int64_t)NSEC_PER_SEC;
    expect_useless("had ended without closing it");

    start();
    n = co_open_image(false);
    co_add_persistent(n, "a", GRAIN);
    co_node_unref(n);
    image.id.ino++;
    expect_useless("is another file");
    image.id = id;
}

static void written_by_others(void **state)
{
    start();
    in_loop(written_by_others_body);
}

/* Another program has written, and this process is killed at any moment of opening the disk. */
static unsigned copies;

static void copy_now(void *arg, bool end, enum sidecar_op op, uint64_t off, uint64_t len,
                     const void *data)
{
    CLEANUP(free) char *command = xasprintf("cp --sparse=always %s %s.%u", sidecar_test_path(),
                                            sidecar_test_path(), copies);

    if (end) {
        assert_int_equal(system(command), 0);
        copies++;
    }
}

static void useless_and_killed_body(void)
{
    const struct sidecar_observer copying = { .saw = copy_now };
    struct node *n = co_open_image(false);

    co_add_persistent(n, "a", GRAIN);
    keep_copy();
    co_node_unref(n);
    put_copy_back();
    image.id.mtime_ns += 2 * (int64_t)NSEC_PER_SEC;
    copies = 0;
    co_sleep(2100 * NSEC_PER_MSEC);      /* so that a beat of now is younger */
    sidecar_observe(&copying);
    n = co_open_image(false);
    sidecar_observe(NULL);
    co_node_unref(n);
    assert_true(copies > 3);
    for (unsigned i = 0; i < copies; i++) {
        CLEANUP(free) char *copy = xasprintf("%s.%u", sidecar_test_path(), i);

        assert_int_equal(rename(copy, sidecar_test_path()), 0);
        n = co_open_image(true);
        assert_non_null(dirty_bitmap_inconsistent(find_bitmap(n, "a")));
        co_node_unref(n);
    }
}

static void useless_and_killed(void **state)
{
    start();
    in_loop(useless_and_killed_body);
}

/* The log of the old size is not written over before the bits that it stands for are on the
 * disk: the old header may be what a power cut leaves. */
static bool synced;

static void log_after_sync(void *arg, bool end, enum sidecar_op op, uint64_t off, uint64_t len,
                           const void *data)
{
    synced |= end && op == SIDECAR_OP_SYNC;
    assert_true(synced || op != SIDECAR_OP_WRITE || off != SIDECAR_LOG_AT);
}

static void resized_in_order_body(void)
{
    const struct sidecar_observer watching = { .saw = log_after_sync };
    struct node *n = co_open_image(false);
    struct err err = ERR_INIT;

    co_add_persistent(n, "a", GRAIN);
    co_write(n, 3 * GRAIN);
    synced = false;
    sidecar_observe(&watching);
    assert_true(co_node_resize(n, SIZE - 4096, &err));
    assert_true(co_dirty_settle(n, &err));
    sidecar_observe(NULL);
    assert_true(co_node_resize(n, SIZE, &err));
    co_node_unref(n);
}

static void resized_in_order(void **state)
{
    start();
    in_loop(resized_in_order_body);
}

/* ---- what cannot be kept --------------------------------------------------------------- */

static void too_many_body(void)
{
    struct node *n = co_open_image(false);
    struct dirty_bitmap_opts o = { .name = "a", .granularity = GRAIN, .persistent = true };
    struct err err = ERR_INIT;
    char name[16];

    o.name = name;
    assert_true(co_dirty_keep(n, &err));
    for (unsigned i = 0; i < LIMIT_SIDECAR_BITMAPS; i++) {
        snprintf(name, sizeof(name), "b%u", i);
        assert_true(dirty_bitmap_can_keep(n, &o, &err));
        assert_non_null(dirty_bitmap_add(n, &o, &err));
    }
    snprintf(name, sizeof(name), "more");
    assert_false(dirty_bitmap_can_keep(n, &o, &err));
    assert_non_null(strstr(err.text, "1024 persistent bitmaps"));
    assert_true(co_dirty_settle(n, &err));
    dirty_bitmap_remove(find_bitmap(n, "b7"));
    assert_true(dirty_bitmap_can_keep(n, &o, &err));
    co_node_unref(n);
}

static void too_many(void **state)
{
    start();
    in_loop(too_many_body);
}

/* Nothing is left of a file that could not be made. */
static void no_room_for_a_file_body(void)
{
    CLEANUP(free) char *temporary = xasprintf("%s.new", sidecar_test_path());
    struct node *n = co_open_image(false);
    struct rlimit was, small;
    struct err err = ERR_INIT;

    assert_int_equal(getrlimit(RLIMIT_FSIZE, &was), 0);
    small = (struct rlimit){ MiB, was.rlim_max };
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    signal(SIGXFSZ, SIG_IGN);
    assert_false(co_dirty_keep(n, &err));
    assert_non_null(strstr(err.text, "File too large"));
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &was), 0);
    assert_false(there_is_a_file());
    assert_int_not_equal(access(temporary, F_OK), 0);
    co_add_persistent(n, "a", GRAIN);
    co_node_unref(n);
}

static void no_room_for_a_file(void **state)
{
    start();
    in_loop(no_room_for_a_file_body);
}

/* ---- what happens to the file ----------------------------------------------------------- */

static void spoil_file(uint64_t off, const void *bytes, size_t len)
{
    int fd = open(sidecar_test_path(), O_WRONLY);

    assert_int_equal(pwrite(fd, bytes, len, (off_t)off), len);
    close(fd);
}

static void damaged_body(void)
{
    struct node *n = co_open_image(false);
    struct err err = ERR_INIT;

    co_add_persistent(n, "a", GRAIN);
    co_node_unref(n);
    spoil_file(SIDECAR_AREAS_AT, "x", 1);
    expect_useless("is damaged");

    start();
    n = co_open_image(false);
    co_add_persistent(n, "a", GRAIN);
    co_node_unref(n);
    assert_int_equal(truncate(sidecar_test_path(), SIDECAR_AREAS_AT), 0);
    expect_useless("cut short");

    assert_int_equal(truncate(sidecar_test_path(), 0), 0);
    n = co_open_image(false);
    assert_null(dirty_bitmap_next(n, NULL));
    assert_false(co_dirty_keep(n, &err));
    assert_non_null(strstr(err.text, "remove that file"));
    co_node_unref(n);
    assert_int_equal(unlink(sidecar_test_path()), 0);
    n = co_open_image(false);
    co_add_persistent(n, "a", GRAIN);
    co_node_unref(n);
}

static void damaged(void **state)
{
    start();
    in_loop(damaged_body);
}

/* While it is in use: cut to nothing, then a change of the directory. */
static void cut_meanwhile_body(void)
{
    struct node *n = co_open_image(false);
    struct dirty_bitmap *a = co_add_persistent(n, "a", GRAIN);
    struct err err = ERR_INIT;

    assert_int_equal(truncate(sidecar_test_path(), 0), 0);
    co_write(n, 0);                      /* the guest goes on */
    dirty_bitmap_disable(a);
    assert_false(co_dirty_settle(n, &err));
    assert_non_null(strstr(dirty_bitmap_inconsistent(a), "changed by another program"));
    co_write(n, GRAIN);
    co_node_unref(n);

    n = co_open_image(false);
    assert_null(dirty_bitmap_next(n, NULL));
    co_node_unref(n);
}

static void cut_meanwhile(void **state)
{
    start();
    in_loop(cut_meanwhile_body);
}

static void removed_meanwhile_body(void)
{
    struct node *n = co_open_image(false);

    co_add_persistent(n, "a", GRAIN);
    assert_int_equal(unlink(sidecar_test_path()), 0);
    co_write(n, 0);
    co_node_unref(n);
    assert_false(there_is_a_file());
}

static void removed_meanwhile(void **state)
{
    start();
    in_loop(removed_meanwhile_body);
}

#define WRITERS 200u
static struct node *shared;
static unsigned unkept;

static void expect_spoiled(bool end, uint64_t off, uint64_t len, const void *data)
{
    if (!end && !dirty_bitmap_inconsistent(find_bitmap(shared, "a")))
        unkept++;
}

static void co_write_later(void *arg)
{
    unsigned i = (unsigned)(uintptr_t)arg;

    co_yield_times(i);
    co_write(shared, i * (uint64_t)GRAIN);
}

/* Writes that come while the failure is being written down wait for that. It is found when
 * the directory is written again. */
static void failing_meanwhile_body(void)
{
    struct crew crew = { 0 };

    shared = co_open_image(false);
    co_add_persistent(shared, "a", GRAIN);
    assert_int_equal(truncate(sidecar_test_path(), 0), 0);
    unkept = 0;
    image.saw = expect_spoiled;
    assert_non_null(dirty_bitmap_add(shared, &(struct dirty_bitmap_opts){
        .name = "b", .granularity = GRAIN, .persistent = true }, NULL));
    for (unsigned i = 0; i < WRITERS; i++)
        crew_start(&crew, co_write_later, (void *)(uintptr_t)i);
    co_crew_wait(&crew);
    image.saw = NULL;
    assert_int_equal(unkept, 0);
    co_node_unref(shared);
}

static void failing_meanwhile(void **state)
{
    start();
    in_loop(failing_meanwhile_body);
}

static void second_node_body(void)
{
    struct node *n = co_open_image(false), *second;
    struct err err = ERR_INIT;

    co_add_persistent(n, "a", GRAIN);
    second = co_open_image(false);
    assert_null(dirty_bitmap_next(second, NULL));
    assert_false(co_dirty_keep(second, &err));
    assert_non_null(strstr(err.text, "is in use"));
    co_node_unref(second);
    co_node_unref(n);
}

static void second_node(void **state)
{
    start();
    in_loop(second_node_body);
}

static void co_let_go(void *arg)
{
    co_sleep(20 * NSEC_PER_MSEC);
    close(*(int *)arg);
}

/* What the kernel still does for a process that was killed keeps its locks for a moment. */
static void lock_of_the_last_body(void)
{
    struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
    struct node *n = co_open_image(false);
    struct crew crew = { 0 };
    int fd;

    co_add_persistent(n, "a", GRAIN);
    co_node_unref(n);
    fd = open(sidecar_test_path(), O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(fcntl(fd, F_OFD_SETLK, &lock), 0);
    crew_start(&crew, co_let_go, &fd);
    n = co_open_image(false);
    assert_null(dirty_bitmap_inconsistent(find_bitmap(n, "a")));
    co_crew_wait(&crew);
    co_node_unref(n);
}

static void lock_of_the_last(void **state)
{
    start();
    in_loop(lock_of_the_last_body);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lock_of_the_last),
        cmocka_unit_test(closed_and_opened),
        cmocka_unit_test(cleared),
        cmocka_unit_test(resized),
        cmocka_unit_test(resized_a_little),
        cmocka_unit_test(killed),
        cmocka_unit_test(power_lost),
        cmocka_unit_test(written_by_others),
        cmocka_unit_test(useless_and_killed),
        cmocka_unit_test(resized_in_order),
        cmocka_unit_test(too_many),
        cmocka_unit_test(no_room_for_a_file),
        cmocka_unit_test(damaged),
        cmocka_unit_test(cut_meanwhile),
        cmocka_unit_test(removed_meanwhile),
        cmocka_unit_test(failing_meanwhile),
        cmocka_unit_test(second_node),
    };

    sidecar_test_begin(SIZE, true);

    int failures = cmocka_run_group_tests(tests, NULL, NULL);

    sidecar_test_end();
    return failures;
}
