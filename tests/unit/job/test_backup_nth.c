/* SPDX-License-Identifier: Apache-2.0
 *
 * A backup by a bitmap, with each of its operations failing once, on either side and in
 * every mode. Whatever happened, the next one by the same bitmap to the same target makes it
 * the disk at its instant: nothing that the target lacks was forgotten.
 */
#include "co_test.h"
#include "memdrv.h"
#include "nth_failure.h"
#include "base/mem.h"
#include "block/disk.h"
#include "drivers/drivers.h"
#include "job/backup.h"

#define SIZE (1 * MiB)
#define GRAN (16 * KiB)

struct scenario {
    enum backup_sync sync;
    enum backup_bitmap_mode mode;
    bool target_fails;
};

struct disks {
    struct node *source, *target;
    struct disk_user *guest;
};

static struct node *co_open(const char *name)
{
    return co_test_open("{'driver':'fault','node-name':'%s','discard':'unmap','file':"
                        "{'driver':'test-mem','size':%ju,'discard':'unmap'}}", name,
                        (uintmax_t)SIZE);
}

static struct mem *mem_below(struct node *fault)
{
    return mem_of(edge_node(fault->file));
}

/* What fails here is the storage that is made to fail. */
static void co_guest_write(struct disks *d, uint64_t off, uint64_t len, int byte)
{
    CLEANUP(free) uint8_t *buf = xmalloc(len);
    struct iovec iov = { buf, len };
    int r;

    memset(buf, byte, len);
    r = byte ? co_disk_pwritev(d->guest, off, len, &iov, 1, 0)
             : co_disk_write_zeroes(d->guest, off, len, REQ_MAY_UNMAP);
    assert_true(r == 0 || r == -EIO);
}

static void co_open_disks(struct disks *d)
{
    const struct dirty_bitmap_opts o = { .name = "b", .granularity = GRAN };

    d->source = co_open("src");
    d->target = co_open("dst");
    d->guest = disk_open(d->source, "guest", EDGE_READ | EDGE_WRITE, EDGE_READ | EDGE_WRITE, NULL);
    assert_non_null(d->guest);
    mem_fill(mem_below(d->source), 0, SIZE / 2, MEM_IS_DATA, 1);
    memcpy(mem_below(d->target)->data, mem_below(d->source)->data, SIZE);
    memcpy(mem_below(d->target)->kind, mem_below(d->source)->kind, SIZE);
    assert_non_null(dirty_bitmap_add(d->source, &o, NULL));
    co_guest_write(d, 0, 6 * GRAN, 2);
    co_guest_write(d, 10 * GRAN, 20 * GRAN, 0);          /* a long stretch of zeros */
    co_guest_write(d, 40 * GRAN + 5, 1, 3);
}

/* 0 or -errno. */
static int co_back_up(struct disks *d, enum backup_sync sync, enum backup_bitmap_mode mode)
{
    struct backup_opts o = BACKUP_OPTS_DEFAULT;
    struct job *job;
    struct job_info info;
    struct err err = ERR_INIT;

    o.source = d->source;
    o.target = d->target;
    o.sync = sync;
    o.bitmap = "b";
    o.has_bitmap_mode = true;
    o.bitmap_mode = mode;
    o.max_chunk = 64 * KiB;
    o.max_workers = 2;
    o.auto_dismiss = false;
    o.reflink = false;
    job = co_backup_start(&o, &err);
    if (!job)
        return err.code;
    co_guest_write(d, 2 * GRAN, 2 * GRAN, 4);
    co_guest_write(d, 11 * GRAN, 1, 5);
    co_guest_write(d, 50 * GRAN, GRAN, 6);
    assert_true(co_job_wait_concluded(job, DEADLINE_NEVER));
    job_query(job, &info);
    assert_true(job_dismiss(job, NULL));
    job_unref(job);
    return info.ret;
}

static void co_expect_completed(struct disks *d)
{
    assert_false(dirty_bitmap_busy(dirty_bitmap_find(d->source, "b", NULL)));
    CLEANUP(free) uint8_t *want = xmemdup(mem_below(d->source)->data, SIZE);

    assert_int_equal(co_back_up(d, BACKUP_BITMAP, BACKUP_BITMAP_ON_SUCCESS), 0);
    for (uint64_t i = 0; i < SIZE; i++) {
        if (mem_below(d->target)->data[i] != want[i])
            fail_msg("byte %ju is %d instead of %d", (uintmax_t)i,
                     mem_below(d->target)->data[i], want[i]);
    }
}

static int co_scenario(struct nth_failure *nf, void *arg)
{
    const struct scenario *s = arg;
    struct disks d;
    int r;

    co_open_disks(&d);
    if (s->sync == BACKUP_FULL && s->mode == BACKUP_BITMAP_ALWAYS)
        mem_fill(mem_below(d.target), 0, SIZE, MEM_IS_DATA, 0xee);
    struct node *fault = s->target_fails ? d.target : d.source;

    nth_failure_arm(nf, fault);
    r = co_back_up(&d, s->sync, s->mode);
    nth_failure_disarm(nf, fault);
    co_expect_completed(&d);
    disk_close(d.guest);
    co_node_unref(d.target);
    co_node_unref(d.source);
    return r;
}

static void every_failure_body(void)
{
    static const struct scenario scenarios[] = {
        { BACKUP_BITMAP, BACKUP_BITMAP_ON_SUCCESS }, { BACKUP_BITMAP, BACKUP_BITMAP_NEVER },
        { BACKUP_BITMAP, BACKUP_BITMAP_ALWAYS },     { BACKUP_FULL, BACKUP_BITMAP_ON_SUCCESS },
        { BACKUP_FULL, BACKUP_BITMAP_ALWAYS },
    };

    for (unsigned i = 0; i < 2 * ARRAY_SIZE(scenarios); i++) {
        struct scenario s = scenarios[i / 2];

        s.target_fails = i % 2;
        /* What the source cannot tell is found out by reading, and the guest may be the one
         * whose operation fails. */
        struct nth_failure nf = { .co_scenario = co_scenario, .arg = &s,
                                  .op = FAULT_ANY, .tolerates = !s.target_fails };

        uint64_t n = co_nth_failure_run(&nf);

        print_message("sync %d, mode %d, %s: %ju failures\n", s.sync, s.mode,
                      s.target_fails ? "target" : "source", (uintmax_t)n);
        assert_true(n >= 3);
    }
}

static void whatever_fails_the_next_backup_completes_the_target(void **state)
{
    in_loop(every_failure_body);
}

static int setup(void **state)
{
    memdrv_register();
    driver_register(&fault_driver);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whatever_fails_the_next_backup_completes_the_target),
    };

    return cmocka_run_group_tests(tests, setup, NULL);
}
