/* SPDX-License-Identifier: Apache-2.0
 *
 * Views, one behaviour at a time: what is captured and what is not, what a
 * reader sees, what happens when old content cannot be kept. The disk is in
 * memory and its manners are set by the test. test_view_random.c runs everything
 * at once.
 */
#include "co_test.h"
#include "memdrv.h"
#include "cbw/view.h"
#include "block/disk.h"
#include <string.h>

#define G VIEW_GRANULE
#define ALL (EDGE_READ | EDGE_WRITE | EDGE_RESIZE)

static uint8_t buf[16 * MiB], want[16 * MiB];

/* A disk with a guest on it, and mostly a view of it. */
struct scene {
    struct node *n;
    struct mem *mem;
    struct disk_user *guest;
    struct view *v;
    struct view_opts opts;
};

static void co_scene(struct scene *s, uint64_t size)
{
    struct err err = ERR_INIT;

    *s = (struct scene){ .opts = VIEW_OPTS_DEFAULT };
    s->n = co_test_open("{'driver':'test-mem','size':%ju,'discard':'unmap'}", (uintmax_t)size);
    s->mem = mem_of(s->n);
    s->guest = disk_open(s->n, "guest", EDGE_READ | EDGE_WRITE, ALL, &err);
    assert_non_null(s->guest);
}

static void co_open_view(struct scene *s)
{
    struct err err = ERR_INIT;

    s->v = co_view_open(s->n, &s->opts, "test", &err);
    if (!s->v)
        fail_msg("%s", err.text);
    mem_clear_log(s->mem);
}

static void co_strike(struct scene *s)
{
    view_close(s->v);
    disk_close(s->guest);
    co_node_unref(s->n);
}

static int co_guest_write(struct scene *s, uint64_t off, uint64_t len, int byte)
{
    struct iovec iov = { buf, len };

    memset(buf, byte, len);
    return co_disk_pwritev(s->guest, off, len, &iov, 1, 0);
}

static void co_write_ok(struct scene *s, uint64_t off, uint64_t len, int byte)
{
    assert_int_equal(co_guest_write(s, off, len, byte), 0);
}

static void co_expect(struct scene *s, uint64_t off, uint64_t len, int byte)
{
    memset(want, byte, len);
    assert_int_equal(co_view_read(s->v, off, len, buf, 0), 0);
    assert_memory_equal(buf, want, len);
}

static void expect_captured(struct scene *s, uint64_t from, uint64_t off, uint64_t len)
{
    uint64_t o, l;

    assert_true(view_next_captured(s->v, from, &o, &l));
    assert_int_equal(o, off);
    assert_int_equal(l, len);
}

static void expect_nothing_captured(struct scene *s, uint64_t from)
{
    uint64_t o, l;

    assert_false(view_next_captured(s->v, from, &o, &l));
}

/* ---- capturing --------------------------------------------------------------------- */

static void overwrite_body(void)
{
    struct scene s;

    co_scene(&s, 64 * G);
    co_write_ok(&s, 0, 64 * G, 1);
    co_open_view(&s);
    co_write_ok(&s, 2 * G, G, 2);
    assert_int_equal(mem_count(s.mem, MEM_READ), 1);
    assert_int_equal(mem_nth(s.mem, MEM_READ, 0)->off, 2 * G);
    assert_int_equal(mem_nth(s.mem, MEM_READ, 0)->len, G);
    co_write_ok(&s, 2 * G, G, 3);
    assert_int_equal(mem_count(s.mem, MEM_READ), 1);
    expect_captured(&s, 0, 2 * G, G);
    co_expect(&s, 0, 64 * G, 1);
    co_expect(&s, 2 * G + 10, 20, 1);
    assert_int_equal(s.mem->data[2 * G], 3);
    co_strike(&s);
}

static void a_view_keeps_what_is_overwritten_and_reads_only_that(void **state)
{
    in_loop(overwrite_body);
}

static void unaligned_body(void)
{
    struct scene s;

    co_scene(&s, 10 * G + 100);
    co_write_ok(&s, 0, 10 * G + 100, 1);
    co_open_view(&s);
    co_write_ok(&s, 2 * G - 1, 2, 2);
    expect_captured(&s, 0, G, 2 * G);
    assert_int_equal(mem_count(s.mem, MEM_READ), 1);
    co_write_ok(&s, 10 * G + 50, 10, 2);
    expect_captured(&s, 3 * G, 10 * G, 100);
    co_write_ok(&s, 0, 4 * G, 3);
    expect_captured(&s, 0, 0, 4 * G);
    co_expect(&s, 0, 10 * G + 100, 1);
    co_expect(&s, 10 * G + 99, 1, 1);
    co_strike(&s);
}

static void granules_are_captured_whole_and_the_last_one_may_be_short(void **state)
{
    in_loop(unaligned_body);
}

static void zeroes_body(void)
{
    struct scene s;

    co_scene(&s, 64 * G);
    co_write_ok(&s, 0, 64 * G, 1);
    co_open_view(&s);
    assert_int_equal(co_disk_write_zeroes(s.guest, 0, 4 * G, 0), 0);
    assert_int_equal(co_disk_discard(s.guest, 10 * G, 4 * G), 0);
    expect_captured(&s, 0, 0, 4 * G);
    expect_captured(&s, 4 * G, 10 * G, 4 * G);
    co_expect(&s, 0, 64 * G, 1);
    co_strike(&s);
}

static void zero_writes_and_discards_are_captured(void **state)
{
    in_loop(zeroes_body);
}

static void big_body(void)
{
    struct view_stats st;
    struct scene s;

    co_scene(&s, 16 * MiB);
    co_write_ok(&s, 5 * MiB, 3 * MiB, 1);
    co_write_ok(&s, 9 * MiB + 5, 1, 1);
    co_open_view(&s);
    assert_int_equal(co_disk_discard(s.guest, 0, 16 * MiB), 0);
    for (unsigned i = 0; i < mem_count(s.mem, MEM_READ); i++)
        assert_true(mem_nth(s.mem, MEM_READ, i)->len <= 1 * MiB);
    assert_int_equal(mem_count(s.mem, MEM_READ), 4);
    expect_captured(&s, 0, 0, 16 * MiB);
    view_get_stats(s.v, &st);
    assert_int_equal(st.captured, 16 * MiB);
    assert_int_equal(st.memory, 3 * MiB + G);
    co_expect(&s, 0, 5 * MiB, 0);
    co_expect(&s, 5 * MiB, 3 * MiB, 1);
    co_expect(&s, 9 * MiB + 4, 1, 0);
    co_expect(&s, 9 * MiB + 5, 1, 1);
    co_strike(&s);
}

static void long_stretches_of_zeros_are_captured_without_being_read(void **state)
{
    in_loop(big_body);
}

static void data_body(void)
{
    struct scene s;

    co_scene(&s, 16 * MiB);
    co_write_ok(&s, 0, 8 * MiB, 1);
    co_open_view(&s);
    assert_int_equal(co_disk_discard(s.guest, 0, 16 * MiB), 0);
    assert_int_equal(mem_count(s.mem, MEM_READ), 8);
    assert_int_equal(mem_count(s.mem, MEM_STATUS), 2);   /* the data, the zeros */
    co_expect(&s, 0, 8 * MiB, 1);
    co_strike(&s);
}

static void a_long_stretch_of_data_is_asked_about_once(void **state)
{
    in_loop(data_body);
}

static void write_two(void *arg)
{
    co_write_ok(arg, 3 * G, 2 * G, 2);
}

static void write_one(void *arg)
{
    co_write_ok(arg, 4 * G, 2 * G, 3);
}

static void together_body(void)
{
    struct crew crew = { 0 };
    struct scene s;

    co_scene(&s, 64 * G);
    co_write_ok(&s, 0, 64 * G, 1);
    co_open_view(&s);
    s.mem->held[MEM_READ] = true;
    crew_start(&crew, write_two, &s);
    crew_start(&crew, write_one, &s);
    co_yield_times(10);
    assert_int_equal(mem_count(s.mem, MEM_WRITE), 0);
    assert_int_equal(mem_count(s.mem, MEM_READ), 1);
    mem_release(s.mem, MEM_READ);
    co_crew_wait(&crew);
    assert_int_equal(mem_count(s.mem, MEM_READ), 2);   /* [3,5) and then [5,6) */
    assert_int_equal(mem_nth(s.mem, MEM_READ, 1)->off, 5 * G);
    co_expect(&s, 0, 64 * G, 1);
    co_strike(&s);
}

static void requests_that_meet_in_a_granule_capture_it_once(void **state)
{
    in_loop(together_body);
}

static void two_views_body(void)
{
    struct view *first;
    struct scene s;

    co_scene(&s, 64 * G);
    co_write_ok(&s, 0, 64 * G, 1);
    co_open_view(&s);
    first = s.v;
    co_write_ok(&s, 0, 8 * G, 2);
    co_open_view(&s);
    co_write_ok(&s, 4 * G, 8 * G, 3);
    co_expect(&s, 0, 8 * G, 2);
    co_expect(&s, 8 * G, 56 * G, 1);
    view_close(s.v);
    s.v = first;
    co_expect(&s, 0, 64 * G, 1);
    co_strike(&s);
}

static void each_view_has_its_own_instant(void **state)
{
    in_loop(two_views_body);
}

/* ---- the instant --------------------------------------------------------------------- */

static void write_all(void *arg)
{
    struct scene *s = arg;
    struct iovec iov = { want, 4 * G };

    memset(want, 7, 4 * G);
    assert_int_equal(co_disk_pwritev(s->guest, 0, 4 * G, &iov, 1, 0), 0);
}

static void open_it(void *arg)
{
    co_open_view(arg);
}

static void instant_body(void)
{
    struct crew crew = { 0 };
    struct scene s;

    co_scene(&s, 64 * G);
    s.mem->held[MEM_WRITE] = true;
    crew_start(&crew, write_all, &s);
    co_yield_times(3);
    crew_start(&crew, open_it, &s);
    co_yield_times(20);
    assert_null(s.v);
    mem_release(s.mem, MEM_WRITE);
    co_crew_wait(&crew);
    co_write_ok(&s, 0, G, 9);
    co_expect(&s, 0, 4 * G, 7);
    co_strike(&s);
}

static void a_write_in_flight_is_waited_for_and_is_in(void **state)
{
    in_loop(instant_body);
}

/* ---- releasing ------------------------------------------------------------------------- */

static void release_body(void)
{
    struct view_stats st;
    struct scene s;

    co_scene(&s, 64 * G + 1);
    co_write_ok(&s, 0, 64 * G + 1, 1);
    co_open_view(&s);
    co_write_ok(&s, 0, 4 * G, 2);
    view_release(s.v, G, 10 * G);
    expect_captured(&s, 0, 0, G);
    expect_nothing_captured(&s, G);
    mem_clear_log(s.mem);
    co_write_ok(&s, G, 10 * G, 3);
    assert_int_equal(mem_count(s.mem, MEM_READ), 0);
    view_release(s.v, 0, 64 * G + 1);
    view_get_stats(s.v, &st);
    assert_int_equal(st.memory + st.file + st.held, 0);
    assert_int_equal(st.captured, 4 * G);
    co_write_ok(&s, 0, 64 * G + 1, 3);
    assert_int_equal(mem_count(s.mem, MEM_READ), 0);
    co_strike(&s);
}

static void what_is_released_is_not_captured_any_more(void **state)
{
    in_loop(release_body);
}

static void unwanted_body(void)
{
    struct bitmap *wanted = bitmap_new(5);
    struct view_stats st;
    struct scene s;

    co_scene(&s, 64 * G + 1);
    co_write_ok(&s, 0, 64 * G + 1, 1);
    bitmap_set(wanted, 1, 1);
    bitmap_set(wanted, 4, 1);             /* the last byte */
    s.v = co_view_prepare(s.n, &s.opts, "test", NULL);
    assert_int_equal(co_view_read(s.v, 0, 1, &st, 0), -EAGAIN);    /* not yet */
    view_limit(s.v, wanted, 16 * G);
    view_begin(s.v);                      /* nothing is in flight */
    mem_clear_log(s.mem);
    co_write_ok(&s, 0, 16 * G, 2);
    co_write_ok(&s, 32 * G, 32 * G, 2);
    assert_int_equal(mem_count(s.mem, MEM_READ), 0);
    expect_nothing_captured(&s, 0);
    co_write_ok(&s, 14 * G, 4 * G, 3);
    co_write_ok(&s, 30 * G, 34 * G + 1, 3);
    expect_captured(&s, 0, 16 * G, 2 * G);
    expect_captured(&s, 18 * G, 30 * G, 2 * G);
    expect_captured(&s, 32 * G, 64 * G, 1);
    co_expect(&s, 16 * G, 16 * G, 1);
    co_expect(&s, 64 * G, 1, 1);
    view_get_stats(s.v, &st);
    assert_int_equal(st.held, 5 * G);
    co_strike(&s);
}

static void what_nobody_wants_is_not_captured(void **state)
{
    in_loop(unwanted_body);
}

static void release_while_capturing_body(void)
{
    struct crew crew = { 0 };
    struct view_stats st;
    struct scene s;

    co_scene(&s, 64 * G);
    co_write_ok(&s, 0, 64 * G, 1);
    co_open_view(&s);
    s.mem->held[MEM_READ] = true;
    crew_start(&crew, write_two, &s);
    co_yield_times(5);
    view_release(s.v, 3 * G, 2 * G);
    co_crew_wait(&crew);          /* the guest goes on though the read hangs */
    mem_release(s.mem, MEM_READ);
    do {
        co_yield();
        view_get_stats(s.v, &st);
    } while (st.capturing);
    assert_int_equal(st.held + st.memory + st.file, 0);
    expect_nothing_captured(&s, 0);
    co_strike(&s);
}

static void a_release_overtakes_a_capture(void **state)
{
    in_loop(release_while_capturing_body);
}

/* ---- status ------------------------------------------------------------------------------ */

static void co_expect_status(struct scene *s, uint64_t off, uint64_t len, unsigned flags,
                             uint64_t n)
{
    struct block_status st;

    assert_int_equal(co_view_status(s->v, NULL, off, len, &st), 0);
    assert_int_equal(st.flags, flags);
    assert_int_equal(st.len, n);
}

static void status_body(void)
{
    const unsigned data = STATUS_DATA | STATUS_ALLOCATED, zero = STATUS_ZERO | STATUS_ALLOCATED;
    struct scene s;

    co_scene(&s, 64 * G);
    co_write_ok(&s, 0, 8 * G, 1);
    co_open_view(&s);
    assert_int_equal(co_disk_write_zeroes(s.guest, 2 * G, 2 * G, 0), 0);
    co_write_ok(&s, 20 * G, 2 * G, 1);
    co_expect_status(&s, 0, 64 * G, data, 2 * G);
    co_expect_status(&s, 2 * G, 62 * G, data, 2 * G);
    co_expect_status(&s, 2 * G + 1, 5, data, 5);
    co_expect_status(&s, 4 * G, 60 * G, data, 4 * G);
    co_expect_status(&s, 8 * G, 56 * G, zero, 12 * G);
    co_expect_status(&s, 20 * G, 44 * G, zero, 2 * G);
    co_expect_status(&s, 22 * G, 42 * G, zero, 42 * G);
    co_strike(&s);
}

static void status_is_that_of_the_instant(void **state)
{
    in_loop(status_body);
}

/* ---- when old content cannot be kept ------------------------------------------------------- */

static int co_timed_write(struct scene *s, uint64_t off, uint64_t *ret_ns)
{
    uint64_t start = loop_now();
    int r = co_guest_write(s, off, G, 5);

    *ret_ns = loop_now() - start;
    return r;
}

static void co_hang(enum view_on_cbw_error policy)
{
    struct err err = ERR_INIT;
    struct view_stats st;
    struct scene s;
    uint64_t ns;

    co_scene(&s, 64 * G);
    co_write_ok(&s, 0, 64 * G, 1);
    s.opts.cbw_timeout_ns = 30 * NSEC_PER_MSEC;
    s.opts.on_cbw_error = policy;
    co_open_view(&s);
    s.mem->held[MEM_READ] = true;
    int r = co_timed_write(&s, 3 * G, &ns);

    assert_true(ns >= 30 * NSEC_PER_MSEC);
    view_get_stats(s.v, &st);
    assert_int_equal(st.capturing, 1);
    if (policy == VIEW_BREAK_SNAPSHOT) {
        assert_int_equal(r, 0);
        assert_int_equal(view_error(s.v, &err), -ETIMEDOUT);
        assert_non_null(strstr(err.text, "within cbw-timeout at offset 12288"));
        assert_int_equal(co_view_read(s.v, 0, G, buf, 0), -ETIMEDOUT);
        co_write_ok(&s, 10 * G, G, 6);   /* nothing in its way any more */
    } else {
        assert_int_equal(r, -ETIMEDOUT);
        assert_int_equal(view_error(s.v, NULL), 0);
        assert_int_equal(co_timed_write(&s, 3 * G, &ns), -ETIMEDOUT);
    }
    mem_release(s.mem, MEM_READ);
    co_yield_times(20);
    if (policy == VIEW_BREAK_GUEST_WRITE) {
        assert_int_equal(s.mem->data[3 * G], 1);
        co_write_ok(&s, 3 * G, G, 7);
        co_expect(&s, 0, 64 * G, 1);
    }
    co_strike(&s);
}

static void hang_body(void)
{
    co_hang(VIEW_BREAK_SNAPSHOT);
    co_hang(VIEW_BREAK_GUEST_WRITE);
}

static void a_source_that_hangs_costs_the_guest_the_timeout_at_most(void **state)
{
    in_loop(hang_body);
}

static void close_while_hanging_body(void)
{
    struct crew crew = { 0 };
    struct scene s;

    co_scene(&s, 64 * G);
    co_write_ok(&s, 0, 64 * G, 1);
    co_open_view(&s);
    s.mem->held[MEM_READ] = true;
    crew_start(&crew, write_two, &s);
    crew_start(&crew, write_one, &s);
    co_yield_times(5);
    view_close(MOVE(s.v));
    co_crew_wait(&crew);
    mem_release(s.mem, MEM_READ);
    co_yield_times(20);
    co_strike(&s);
}

static void closing_lets_waiting_guests_go_and_hanging_captures_end_later(void **state)
{
    in_loop(close_while_hanging_body);
}

static void settle_body(void)
{
    struct crew crew = { 0 };
    struct scene s;
    struct view *v;

    co_scene(&s, 64 * G);
    co_write_ok(&s, 0, 64 * G, 1);
    co_open_view(&s);
    s.mem->held[MEM_READ] = true;
    crew_start(&crew, write_two, &s);
    co_yield_times(5);
    v = view_ref(s.v);
    view_close(MOVE(s.v));
    co_crew_wait(&crew);
    assert_false(co_view_settle(v, loop_now() + NSEC_PER_MSEC));
    mem_release(s.mem, MEM_READ);
    assert_true(co_view_settle(v, DEADLINE_NEVER));
    view_unref(v);
    co_strike(&s);
}

static void what_is_under_way_can_be_waited_for(void **state)
{
    in_loop(settle_body);
}

static void read_error_body(void)
{
    struct err err = ERR_INIT;
    struct scene s;

    for (int policy = VIEW_BREAK_GUEST_WRITE; policy <= VIEW_BREAK_SNAPSHOT; policy++) {
        co_scene(&s, 64 * G);
        co_write_ok(&s, 0, 64 * G, 1);
        s.opts.on_cbw_error = policy;
        co_open_view(&s);
        s.mem->fails[MEM_READ] = -EIO;
        if (policy == VIEW_BREAK_GUEST_WRITE) {
            assert_int_equal(co_guest_write(&s, 0, G, 2), -EIO);
            s.mem->fails[MEM_READ] = 0;
            co_write_ok(&s, 0, G, 2);
            co_expect(&s, 0, 64 * G, 1);
        } else {
            co_write_ok(&s, 0, G, 2);
            assert_int_equal(view_error(s.v, &err), -EIO);
            assert_non_null(strstr(err.text, "Cannot read the old data at offset 0 of node"));
            expect_nothing_captured(&s, 0);
        }
        co_strike(&s);
    }
}

static void a_read_error_breaks_what_the_policy_says(void **state)
{
    in_loop(read_error_body);
}

static void release_soon(void *arg)
{
    struct scene *s = arg;

    co_sleep(5 * NSEC_PER_MSEC);
    view_release(s->v, 0, 2 * G);
}

static void limit_body(void)
{
    struct crew crew = { 0 };
    struct err err = ERR_INIT;
    struct scene s;
    uint64_t ns;

    co_scene(&s, 64 * G);
    co_write_ok(&s, 0, 64 * G, 1);
    s.opts.scratch_limit = 4 * G;
    s.opts.cbw_timeout_ns = 30 * NSEC_PER_MSEC;
    co_open_view(&s);
    co_write_ok(&s, 0, 4 * G, 2);
    crew_start(&crew, release_soon, &s);
    assert_int_equal(co_timed_write(&s, 8 * G, &ns), 0);
    assert_true(ns >= 4 * NSEC_PER_MSEC);
    assert_int_equal(view_error(s.v, NULL), 0);
    co_crew_wait(&crew);
    co_expect(&s, 2 * G, 62 * G, 1);
    co_write_ok(&s, 10 * G, 4 * G, 2);   /* one more fits; for the rest there is no room */
    assert_int_equal(view_error(s.v, &err), -ETIMEDOUT);
    assert_non_null(strstr(err.text, "scratch stayed full"));
    co_strike(&s);
}

static void at_the_limit_guests_wait_for_the_drain(void **state)
{
    in_loop(limit_body);
}

/* ---- around it ------------------------------------------------------------------------------- */

static void resize_body(void)
{
    struct err err = ERR_INIT;
    struct scene s;

    co_scene(&s, 64 * G);
    co_open_view(&s);
    assert_false(co_node_resize(s.n, 128 * G, &err));
    assert_int_equal(err.code, -EBUSY);
    view_close(MOVE(s.v));
    assert_true(co_node_resize(s.n, 128 * G, &err));
    co_strike(&s);
}

static void a_disk_with_a_view_keeps_its_size(void **state)
{
    in_loop(resize_body);
}

static void below_body(void)
{
    struct node *base = co_test_open("{'driver':'test-mem','node-name':'base','size':65536}");
    struct node *overlay = co_test_open("{'driver':'test-mem','size':65536,'backing':'base',"
                                        "'live':true}");
    struct node *top = co_test_open("{'driver':'test-filter','file':'%s'}", node_name(overlay));
    struct view_opts opts = VIEW_OPTS_DEFAULT;
    struct err err = ERR_INIT;
    struct disk_user *guest = disk_open(base, "a guest", EDGE_READ | EDGE_WRITE, ALL, &err);

    assert_non_null(guest);
    assert_null(co_view_open(top, &opts, "test", &err));
    assert_int_equal(err.code, -EBUSY);
    assert_non_null(strstr(err.text, "node 'base'"));
    assert_non_null(strstr(err.text, "a guest"));
    disk_close(guest);

    struct view *v = co_view_open(top, &opts, "test", &err);

    assert_non_null(v);
    assert_null(disk_open(base, "a guest", EDGE_READ | EDGE_WRITE, ALL, &err));
    view_ref(v);
    view_close(v);               /* somebody has it still, but it keeps nobody out */
    guest = disk_open(base, "a guest", EDGE_READ | EDGE_WRITE, ALL, &err);
    assert_non_null(guest);
    disk_close(guest);
    view_unref(v);
    co_node_unref(top);
    co_node_unref(overlay);
    co_node_unref(base);
}

static void nobody_writes_below_a_view(void **state)
{
    in_loop(below_body);
}

static void grower_body(void)
{
    struct err err = ERR_INIT;
    struct scene s;

    co_scene(&s, 64 * G);

    /* An image on top that gets longer as its guest writes. */
    struct edge *e = edge_attach_user(s.n, "an image", ALL, ALL, &err);

    assert_non_null(e);
    assert_null(co_view_open(s.n, &s.opts, "test", &err));
    assert_non_null(strstr(err.text, "an image, which may resize it"));
    edge_detach(e);
    co_open_view(&s);
    assert_null(edge_attach_user(s.n, "an image", ALL, ALL, &err));
    co_strike(&s);
}

static void a_disk_that_others_may_resize_has_no_view(void **state)
{
    in_loop(grower_body);
}

struct ear {
    struct view_listener l;
    unsigned heard;
};

static void hear(struct view_listener *l)
{
    container_of(l, struct ear, l)->heard++;
}

static void listener_body(void)
{
    struct ear ear = { .l.changed = hear };
    struct view *v;
    struct scene s;

    co_scene(&s, 64 * G);
    view_remove_listener(&ear.l);
    co_open_view(&s);
    view_add_listener(s.v, &ear.l);
    co_write_ok(&s, 0, G, 1);
    co_write_ok(&s, 0, G, 1);
    assert_int_equal(ear.heard, 1);
    v = view_ref(s.v);
    view_close(MOVE(s.v));
    assert_int_equal(ear.heard, 2);
    assert_int_equal(view_error(v, NULL), -ESHUTDOWN);
    assert_int_equal(co_view_read(v, 0, 1, buf, 0), -ESHUTDOWN);
    view_release(v, 0, G);
    view_remove_listener(&ear.l);
    view_unref(v);
    co_strike(&s);
}

static void listeners_hear_of_captures_and_of_the_end(void **state)
{
    in_loop(listener_body);
}

static void empty_body(void)
{
    uint64_t o, l;
    struct scene s;

    co_scene(&s, 0);
    co_open_view(&s);
    assert_int_equal(co_view_read(s.v, 0, 0, buf, 0), 0);
    view_release(s.v, 0, 0);
    assert_false(view_next_captured(s.v, 0, &o, &l));
    co_strike(&s);
}

static void an_empty_disk_has_an_empty_view(void **state)
{
    in_loop(empty_body);
}

static int setup(void **state)
{
    memdrv_register();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_view_keeps_what_is_overwritten_and_reads_only_that),
        cmocka_unit_test(granules_are_captured_whole_and_the_last_one_may_be_short),
        cmocka_unit_test(zero_writes_and_discards_are_captured),
        cmocka_unit_test(long_stretches_of_zeros_are_captured_without_being_read),
        cmocka_unit_test(a_long_stretch_of_data_is_asked_about_once),
        cmocka_unit_test(requests_that_meet_in_a_granule_capture_it_once),
        cmocka_unit_test(each_view_has_its_own_instant),
        cmocka_unit_test(a_write_in_flight_is_waited_for_and_is_in),
        cmocka_unit_test(what_is_released_is_not_captured_any_more),
        cmocka_unit_test(what_nobody_wants_is_not_captured),
        cmocka_unit_test(a_release_overtakes_a_capture),
        cmocka_unit_test(status_is_that_of_the_instant),
        cmocka_unit_test(a_source_that_hangs_costs_the_guest_the_timeout_at_most),
        cmocka_unit_test(closing_lets_waiting_guests_go_and_hanging_captures_end_later),
        cmocka_unit_test(what_is_under_way_can_be_waited_for),
        cmocka_unit_test(a_read_error_breaks_what_the_policy_says),
        cmocka_unit_test(at_the_limit_guests_wait_for_the_drain),
        cmocka_unit_test(a_disk_with_a_view_keeps_its_size),
        cmocka_unit_test(a_disk_that_others_may_resize_has_no_view),
        cmocka_unit_test(nobody_writes_below_a_view),
        cmocka_unit_test(listeners_hear_of_captures_and_of_the_end),
        cmocka_unit_test(an_empty_disk_has_an_empty_view),
    };

    return cmocka_run_group_tests(tests, setup, NULL);
}
