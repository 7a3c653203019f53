/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: a view that keeps old data in a node of the user's choice, an overlay of the
 * disk, lets both the view and the overlay read as the instant, whatever is
 * under way in the overlay.
 * Method: disk and overlay are in memory, and what waits there is set by the test.
 */
#include "co_test.h"
#include "memdrv.h"
#include "block/disk.h"
#include "cbw/view.h"
#include <string.h>

#define G VIEW_GRANULE
#define ALL (EDGE_READ | EDGE_WRITE | EDGE_RESIZE)

static uint8_t buf[64 * G], want[64 * G];

static struct node *disk, *overlay;
static struct view *view;
static struct disk_user *guest;

static void co_begin(uint64_t size)
{
    struct view_opts opts = VIEW_OPTS_DEFAULT;
    struct err err = ERR_INIT;

    disk = co_test_open("{'driver':'test-mem','node-name':'disk','size':%ju,'discard':'unmap'}",
                        (uintmax_t)size);
    mem_fill(mem_of(disk), 0, size, MEM_IS_DATA, 1);
    overlay = co_test_open("{'driver':'test-mem','size':%ju,'discard':'unmap','backing':'disk',"
                           "'live':true}",
                           (uintmax_t)size);
    mem_fill(mem_of(overlay), 0, size, MEM_IS_ABSENT, 0);
    guest = disk_open(disk, "guest", EDGE_READ | EDGE_WRITE, ALL, &err);
    assert_non_null(guest);
    opts.target = overlay;
    view = co_view_open(disk, &opts, "test", &err);
    if (!view)
        fail_msg("%s", err.text);
}

static void co_end(void)
{
    view_close(view);
    disk_close(guest);
    co_node_unref(overlay);
    co_node_unref(disk);
}

static void co_guest_write(void *arg)
{
    static uint8_t data[64 * G];
    struct iovec iov = { data, G };

    memset(data, 2, sizeof(data));
    assert_int_equal(co_disk_pwritev(guest, 2 * G, G, &iov, 1, 0), 0);
    *(bool *)arg = true;
}

static void co_expect_old(uint64_t off, uint64_t len, int byte)
{
    memset(want, byte, len);
    assert_int_equal(co_view_read(view, off, len, buf, 0), 0);
    assert_memory_equal(buf, want, len);
    assert_int_equal(co_node_pread(overlay, off, len, buf, 0), 0);
    assert_memory_equal(buf, want, len);
}

static void kept_body(void)
{
    struct mem *over;
    bool done = false;

    co_begin(15 * G + 100);
    over = mem_of(overlay);
    mem_fill(mem_of(disk), 5 * G, G, MEM_IS_ZERO, 0);
    co_guest_write(&done);
    /* Nothing but the granule, at its own place. */
    assert_int_equal(mem_count(over, MEM_WRITE), 1);
    assert_int_equal(mem_nth(over, MEM_WRITE, 0)->off, 2 * G);
    assert_int_equal(mem_nth(over, MEM_WRITE, 0)->len, G);
    /* Zeros, and the end of the disk, too. */
    memset(buf, 3, sizeof(buf));
    assert_int_equal(co_node_pwrite(disk, 5 * G, G, buf, 0), 0);
    assert_int_equal(co_node_pwrite(disk, 15 * G, 100, buf, 0), 0);
    assert_true(mem_count(over, MEM_ZERO) >= 1);
    co_expect_old(0, 5 * G, 1);
    co_expect_old(5 * G, G, 0);
    co_expect_old(6 * G, 9 * G + 100, 1);
    assert_int_equal(mem_of(disk)->data[15 * G], 3);
    co_end();
}

static void an_overlay_as_target_reads_as_the_instant(void **state)
{
    in_loop(kept_body);
}

static uint8_t read_buf[4 * G];

static void co_reader(void *arg)
{
    assert_int_equal(co_node_pread(overlay, 0, 4 * G, read_buf, 0), 0);
    *(bool *)arg = true;
}

/* A read of the overlay has found nothing there, and is reading below. */
static void slow_reader_body(void)
{
    bool read = false, written = false;

    co_begin(16 * G);
    mem_of(overlay)->held[MEM_READ] = true;
    co_start(co_reader, &read);
    co_yield_times(5);
    co_start(co_guest_write, &written);
    co_yield_times(50);
    assert_false(read || written);
    assert_int_equal(mem_of(disk)->data[2 * G], 1);
    mem_release(mem_of(overlay), MEM_READ);
    while (!read || !written)
        co_yield();
    memset(want, 1, 4 * G);
    assert_memory_equal(read_buf, want, 4 * G);
    assert_int_equal(mem_of(disk)->data[2 * G], 2);

    /* One elsewhere is not waited for. */
    mem_of(overlay)->held[MEM_READ] = true;
    read = false;
    co_start(co_reader, &read);
    co_yield_times(5);
    memset(buf, 3, G);
    assert_int_equal(co_node_pwrite(disk, 8 * G, G, buf, 0), 0);
    assert_false(read);
    mem_release(mem_of(overlay), MEM_READ);
    while (!read)
        co_yield();
    co_end();
}

static void a_write_waits_for_who_reads_the_overlay(void **state)
{
    in_loop(slow_reader_body);
}

static void released_body(void)
{
    bool done = false;

    co_begin(16 * G);
    co_guest_write(&done);
    assert_true(view_has(view, 0, 16 * G));
    view_release(view, 2 * G, 2 * G);
    assert_true(view_has(view, 0, 2 * G) && view_has(view, 4 * G, 12 * G));
    assert_false(view_has(view, 0, 16 * G) || view_has(view, 2 * G, 1) ||
                 view_has(view, 4 * G - 1, 1));
    while (!mem_count(mem_of(overlay), MEM_DISCARD))
        co_yield();
    assert_int_equal(mem_nth(mem_of(overlay), MEM_DISCARD, 0)->off, 2 * G);
    assert_int_equal(mem_nth(mem_of(overlay), MEM_DISCARD, 0)->len, G);
    co_end();
}

static void what_is_released_is_discarded_there(void **state)
{
    in_loop(released_body);
}

static void failing_body(void)
{
    struct err err = ERR_INIT;
    bool done = false;

    co_begin(16 * G);
    mem_of(overlay)->fails[MEM_WRITE] = -ENOSPC;
    co_guest_write(&done);
    assert_int_equal(view_error(view, &err), -ENOSPC);
    assert_non_null(strstr(err.text, "keep the old data in scratch"));
    co_end();
}

static void a_target_that_fails_breaks_the_view(void **state)
{
    in_loop(failing_body);
}

static int setup(void **state)
{
    memdrv_register();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_overlay_as_target_reads_as_the_instant),
        cmocka_unit_test(a_write_waits_for_who_reads_the_overlay),
        cmocka_unit_test(what_is_released_is_discarded_there),
        cmocka_unit_test(a_target_that_fails_breaks_the_view),
    };

    return cmocka_run_group_tests(tests, setup, NULL);
}
