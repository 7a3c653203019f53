/* SPDX-License-Identifier: Apache-2.0
 *
 * Driver file: what it reads, writes, frees and refuses, on a file system on disk
 * and on one in memory, with and without the page cache.
 */
#include "drivers_test.h"
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#define SIZE (8 * MiB)

struct place {
    const char *path;
    const char *more;        /* options */
};

/* The same test wherever files can be. */
static void co_everywhere(void (*fn)(struct node *n, const char *path))
{
    struct place places[] = {
        { test_path("disk"), "" },
        { test_path("direct"), ", 'cache': {'direct': true}" },
        { test_text("%s/memory", test_memory_dir()), "" },
        { test_text("%s/direct", test_memory_dir()), ", 'cache': {'direct': true}" },
    };

    for (size_t i = 0; i < ARRAY_SIZE(places); i++) {
        make_file(places[i].path, SIZE);

        struct node *n = co_test_open("{'driver': 'file', 'filename': '%s', 'discard': 'unmap'%s}",
                                 places[i].path, places[i].more);

        fn(n, places[i].path);
        co_node_unref(n);
    }
}

static void co_random_model(struct node *n, const char *path)
{
    CLEANUP(free) unsigned char *model = xzalloc(SIZE);
    CLEANUP(free) unsigned char *buf = xmalloc(SIZE);
    uint64_t rnd = 7;

    for (int i = 0; i < 300; i++) {
        uint64_t off = test_random(&rnd, SIZE - 1);
        uint64_t len = 1 + test_random(&rnd, MIN(SIZE - off, 300 * KiB));
        unsigned flags = test_random(&rnd, 8) ? 0 : REQ_FUA;

        if (test_random(&rnd, 2))
            flags |= REQ_BULK;
        switch (test_random(&rnd, 4)) {
        case 0:
            flags |= test_random(&rnd, 2) ? REQ_MAY_UNMAP : 0;
            assert_int_equal(co_node_write_zeroes(n, off, len, flags), 0);
            memset(model + off, 0, len);
            break;
        case 1:
            assert_int_equal(co_node_pread(n, off, len, buf, flags & REQ_BULK), 0);
            assert_memory_equal(buf, model + off, len);
            break;
        default:
            memset(model + off, 1 + (i % 255), len);
            assert_int_equal(co_node_pwrite(n, off, len, model + off, flags), 0);
            break;
        }
    }
    assert_int_equal(co_node_flush(n), 0);
    file_read(path, 0, buf, SIZE);
    assert_memory_equal(buf, model, SIZE);
}

CO_TEST(reads_give_what_was_written)
{
    co_everywhere(co_random_model);
}

/* More pieces than one system call takes, of odd sizes, some of them empty. */
static void co_many_pieces(struct node *n, const char *path)
{
    enum { PIECES = 2500 };
    CLEANUP(free) struct iovec *iov = xcalloc(PIECES, sizeof(*iov));
    CLEANUP(free) unsigned char *buf = xmalloc(MiB), *back = xzalloc(MiB);
    uint64_t len = 0;

    for (size_t i = 0; i < MiB; i++)
        buf[i] = (unsigned char)(i * 31 / 7);
    for (int i = 0; i < PIECES; i++) {
        iov[i] = (struct iovec){ buf + len, (size_t)i % 300 };
        len += iov[i].iov_len;
    }
    assert_int_equal(co_node_pwritev(n, 12345, len, iov, PIECES, 0), 0);
    for (int i = 0; i < PIECES; i++)
        iov[i].iov_base = back + ((unsigned char *)iov[i].iov_base - buf);
    assert_int_equal(co_node_preadv(n, 12345, len, iov, PIECES, 0), 0);
    assert_memory_equal(buf, back, len);
}

CO_TEST(any_number_of_pieces)
{
    co_everywhere(co_many_pieces);
}

static uint64_t allocated(const char *path)
{
    struct stat st;

    assert_int_equal(stat(path, &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

static void co_unmap(struct node *n, const char *path)
{
    struct node_info info;

    co_fill(n, 0, SIZE, 0xaa);
    assert_int_equal(co_node_flush(n), 0);
    assert_true(allocated(path) >= SIZE);
    assert_int_equal(co_node_write_zeroes(n, 0, SIZE / 2, REQ_MAY_UNMAP | REQ_NO_FALLBACK), 0);
    assert_true(allocated(path) < SIZE);
    node_get_info(n, &info);
    assert_int_equal(info.allocated, allocated(path));
    assert_string_equal(info.filename, path);
    assert_true(info.can_unmap);
    assert_int_equal(co_node_discard(n, SIZE / 2, SIZE / 4), 0);
    assert_true(allocated(path) <= SIZE / 4 + 64 * KiB);
    co_expect(n, 0, SIZE / 4 * 3, 0);
    co_expect(n, SIZE / 4 * 3, SIZE / 4, 0xaa);
}

CO_TEST(zeroing_and_discarding_free_space)
{
    co_everywhere(co_unmap);
}

CO_TEST(zeroing_without_unmap_keeps_space)
{
    const char *path = test_path("kept");
    struct node *n;

    make_file(path, SIZE);
    n = co_test_open("{'driver': 'file', 'filename': '%s', 'discard': 'unmap'}", path);
    co_fill(n, 0, SIZE, 0xaa);
    assert_int_equal(co_node_write_zeroes(n, 0, SIZE, 0), 0);
    co_expect(n, 0, SIZE, 0);
    assert_int_equal(co_node_flush(n), 0);
    assert_true(allocated(path) >= SIZE);
    co_node_unref(n);
}

/* tmpfs has no FALLOC_FL_ZERO_RANGE. */
CO_TEST(a_fast_zero_that_cannot_be_done_is_refused_and_the_slow_one_works)
{
    const char *path = test_text("%s/slow", test_memory_dir());
    struct node *n;

    make_file(path, SIZE);
    n = co_test_open("{'driver': 'file', 'filename': '%s', 'discard': 'unmap'}", path);
    co_fill(n, 0, SIZE, 0xaa);
    assert_int_equal(co_node_write_zeroes(n, 0, MiB, REQ_NO_FALLBACK), -ENOTSUP);
    assert_int_equal(co_node_write_zeroes(n, 0, MiB, 0), 0);
    co_expect(n, 0, MiB, 0);
    co_expect(n, MiB, MiB, 0xaa);
    co_node_unref(n);
}

/* Pairs of (data, hole) pieces of random numbers of 64 KiB units. */
CO_TEST(status_tells_data_from_holes)
{
    const char *path = test_path("sparse");
    enum { UNIT = 64 * 1024, UNITS = 1024 };
    CLEANUP(free) unsigned char *data = xmalloc(UNIT);
    bool is_data[UNITS];
    uint64_t rnd = 11;
    struct node *n;

    memset(data, 0x55, UNIT);
    make_file(path, UNITS * UNIT);
    for (int i = 0; i < UNITS; i++) {
        is_data[i] = test_random(&rnd, 2);
        if (is_data[i])
            file_write(path, (uint64_t)i * UNIT, data, UNIT);
    }
    n = co_test_open("{'driver': 'file', 'filename': '%s'}", path);
    for (uint64_t off = 0; off < n->size;) {
        struct block_status st = co_status(n, off, n->size - off);
        unsigned flags = is_data[off / UNIT] ? STATUS_DATA : STATUS_ZERO;

        assert_int_equal(st.flags, flags | STATUS_ALLOCATED | STATUS_OFFSET);
        assert_ptr_equal(st.file, n);
        assert_int_equal(st.host_off, off);
        assert_true(is_aligned(st.len, UNIT));
        for (uint64_t i = off / UNIT; i < (off + st.len) / UNIT; i++)
            assert_int_equal(is_data[i], is_data[off / UNIT]);
        off += st.len;
    }
    co_node_unref(n);
}

static void co_follow_changes(struct node *n, const char *path)
{
    uint64_t align = 64 * KiB;

    assert_true(co_status(n, 0, SIZE).flags & STATUS_ZERO);
    assert_int_equal(co_status(n, 0, SIZE).len, SIZE);
    co_fill(n, MiB, align, 1);
    assert_int_equal(co_status(n, 0, SIZE).len, MiB);
    assert_true(co_status(n, MiB, align).flags & STATUS_DATA);
    assert_int_equal(co_status(n, MiB, SIZE - MiB).len, align);
    assert_true(co_status(n, MiB + align, align).flags & STATUS_ZERO);
    assert_int_equal(co_node_write_zeroes(n, MiB, align, REQ_MAY_UNMAP), 0);
    assert_true(co_status(n, MiB, align).flags & STATUS_ZERO);
    co_fill(n, MiB, align, 1);
    assert_true(co_status(n, MiB, align).flags & STATUS_DATA);
    assert_int_equal(co_node_discard(n, MiB, align), 0);
    assert_true(co_status(n, MiB, align).flags & STATUS_ZERO);
}

CO_TEST(status_follows_what_the_node_itself_does)
{
    co_everywhere(co_follow_changes);
}

/* Writers write units of their own, and zero and discard them, in the background, where a
 * change takes a while like a look-up. Whatever look-ups are on their way in a worker: a unit
 * that has been written all the time is never said to be a hole. */
enum { RACE_UNIT = 4096, RACE_UNITS = SIZE / RACE_UNIT, RACE_WRITERS = 4 };

struct race {
    struct node *n;
    unsigned written[RACE_UNITS];    /* by which of the writes; 0: not, or being changed */
    unsigned started, writers, writes;
    uint64_t rnd;
    uint64_t asked, kept;
};

static void co_race_change(struct race *r, unsigned writer)
{
    static const unsigned char data[RACE_UNIT] = { 1 };

    for (int i = 0; i < 200; i++) {
        uint64_t unit = align_down(test_random(&r->rnd, RACE_UNITS), RACE_WRITERS) + writer;
        uint64_t off = unit * RACE_UNIT, what = test_random(&r->rnd, 8);
        int res;

        r->written[unit] = 0;
        if (what < 5)
            res = co_node_pwrite(r->n, off, RACE_UNIT, data, what < 4 ? REQ_BULK : 0);
        else if (what < 6)
            res = co_node_discard(r->n, off, RACE_UNIT);
        else
            res = co_node_write_zeroes(r->n, off, RACE_UNIT, what < 7 ? 0 : REQ_MAY_UNMAP);
        assert_int_equal(res, 0);
        r->written[unit] = what < 5 ? ++r->writes : 0;
    }
    r->writers--;
}

static void co_race_ask(struct race *r)
{
    unsigned *before = xcalloc(RACE_UNITS, sizeof(*before));

    for (uint64_t off = 0; r->writers; off = off >= SIZE ? 0 : off) {
        memcpy(before, r->written, sizeof(r->written));

        struct block_status st = co_status(r->n, off, SIZE - off);

        for (uint64_t i = off / RACE_UNIT; i < (off + st.len) / RACE_UNIT; i++) {
            if (!before[i] || before[i] != r->written[i])
                continue;
            if (!(st.flags & STATUS_DATA))
                fail_msg("unit %" PRIu64 " was written and is said to be a hole", i);
            r->kept++;
        }
        off += st.len;
        r->asked++;
        co_yield();
    }
    free(before);
}

static void co_racer(void *arg)
{
    struct race *r = arg;
    unsigned i = r->started++;

    if (i < RACE_WRITERS)
        co_race_change(r, i);
    else
        co_race_ask(r);
}

static void co_race(struct node *n, const char *path)
{
    struct race *r = xzalloc(sizeof(*r));

    r->n = n;
    r->rnd = test_seed(3);
    r->writers = RACE_WRITERS;
    co_together(2 * RACE_WRITERS, co_racer, r);
    assert_true(r->asked > 0 && r->kept > 0);
    free(r);
}

CO_TEST(status_never_calls_a_hole_what_a_finished_write_has_filled)
{
    co_everywhere(co_race);
}

CO_TEST(resizing_grows_and_shrinks)
{
    const char *path = test_path("resized");
    struct err err = ERR_INIT;
    struct stat st;
    struct node *n;

    make_file(path, MiB);
    n = co_test_open("{'driver': 'file', 'filename': '%s'}", path);
    co_fill(n, 0, MiB, 1);
    assert_true(co_node_resize(n, 3 * MiB, &err));
    assert_int_equal(n->size, 3 * MiB);
    co_expect(n, MiB, 2 * MiB, 0);
    co_fill(n, 2 * MiB, MiB, 2);
    assert_true(co_node_resize(n, MiB / 2, &err));
    assert_int_equal(co_node_pwrite(n, MiB / 2, 1, "x", 0), -ENOSPC);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_size, MiB / 2);
    assert_true(co_node_resize(n, MiB, &err));
    co_expect(n, MiB / 2, MiB / 2, 0);
    assert_int_equal(co_status(n, MiB / 2, MiB / 2).flags & STATUS_ZERO, STATUS_ZERO);
    co_node_unref(n);
}

CO_TEST(a_file_that_others_made_shorter_gives_eio)
{
    const char *path = test_path("shrunk");
    char buf[512];
    struct node *n;

    make_file(path, MiB);
    n = co_test_open("{'driver': 'file', 'filename': '%s'}", path);
    assert_int_equal(truncate(path, 4096 + 100), 0);
    assert_int_equal(co_node_pread(n, 4096, 512, buf, 0), -EIO);
    assert_int_equal(co_node_pread(n, 8192, 512, buf, 0), -EIO);
    assert_int_equal(co_node_pread(n, 0, 512, buf, 0), 0);
    co_node_unref(n);
}

/* The last block reaches beyond the end. */
CO_TEST(direct_io_on_a_file_of_any_length_keeps_its_length)
{
    const char *path = test_path("odd");
    const uint64_t size = 1 * MiB + 777;
    CLEANUP(free) unsigned char *buf = xmalloc(MiB);
    struct block_status st;
    struct stat inode;
    struct node *n;

    make_file(path, size);
    n = co_test_open("{'driver': 'file', 'filename': '%s', 'discard': 'unmap',"
                " 'cache': {'direct': true}}", path);
    assert_true(n->limits.request_align >= 512);
    assert_int_equal(n->size, size);
    co_fill(n, MiB - 5000, 5000 + 777, 0x11);
    co_expect(n, MiB - 5000, 5000 + 777, 0x11);
    co_fill(n, MiB + 700, 77, 0x22);
    co_expect(n, MiB, 700, 0x11);
    co_expect(n, MiB + 700, 77, 0x22);
    file_read(path, MiB + 700, buf, 77);
    assert_int_equal(buf[0], 0x22);
    assert_int_equal(co_node_write_zeroes(n, MiB, 777, REQ_MAY_UNMAP), 0);
    co_expect(n, MiB, 777, 0);
    st = co_status(n, 0, size);
    assert_true(st.flags & STATUS_ZERO);
    assert_int_equal(co_node_pwrite(n, size - 10, 10, "0123456789", REQ_FUA), 0);
    assert_int_equal(stat(path, &inode), 0);
    assert_int_equal(inode.st_size, size);
    co_node_unref(n);
}

/* Buffers that O_DIRECT cannot use. */
CO_TEST(direct_io_takes_buffers_of_any_alignment)
{
    const char *path = test_path("buffers");
    CLEANUP(free) unsigned char *buf = xmalloc(2 * MiB);
    struct iovec iov[2];
    struct node *n;

    make_file(path, MiB);
    n = co_test_open("{'driver': 'file', 'filename': '%s', 'cache': {'direct': true}}", path);
    memset(buf, 0x33, MiB + 1);
    iov[0] = (struct iovec){ buf + 1, 1000 };
    iov[1] = (struct iovec){ buf + 3001, 64 * KiB - 1000 };
    assert_int_equal(co_node_pwritev(n, 0, 64 * KiB, iov, 2, 0), 0);
    memset(buf, 0, MiB);
    assert_int_equal(co_node_preadv(n, 0, 64 * KiB, iov, 2, 0), 0);
    assert_int_equal(buf[0], 0);
    assert_int_equal(buf[1], 0x33);
    assert_int_equal(buf[1001], 0);
    assert_int_equal(buf[3000 + 64 * KiB - 1000], 0x33);
    assert_int_equal(buf[3000 + 64 * KiB - 999], 0);
    co_node_unref(n);
}

CO_TEST(a_file_in_use_is_refused_unless_locking_is_off_or_it_is_shared)
{
    const char *path = test_path("locked");
    struct node *n, *other;

    make_file(path, MiB);
    n = co_test_open("{'driver': 'file', 'filename': '%s'}", path);
    co_open_refused("lock", "{'driver': 'file', 'filename': '%s'}", path);
    co_open_refused("lock", "{'driver': 'file', 'filename': '%s', 'read-only': true}", path);
    other = co_test_open("{'driver': 'file', 'filename': '%s', 'locking': 'off'}", path);
    assert_true(node_shares_storage(n, other));
    co_node_unref(other);
    other = co_test_open("{'driver': 'file', 'filename': '%s', 'read-only': true,"
                    " 'force-share': true}", path);
    co_node_unref(other);
    co_node_unref(n);
    n = co_test_open("{'driver': 'file', 'filename': '%s', 'read-only': true}", path);
    other = co_test_open("{'driver': 'file', 'filename': '%s', 'read-only': true}", path);
    co_node_unref(other);
    co_node_unref(n);
}

/* The kernel may hold an open file a moment longer than we do: after a flush above
 * all, which is how every backup ends. */
CO_TEST(what_is_closed_is_free_at_once)
{
    const char *path = test_path("again");

    make_file(path, MiB);
    for (int i = 0; i < 2000; i++) {
        struct node *n = co_test_open("{'driver': 'file', 'filename': '%s'}", path);

        assert_int_equal(co_node_flush(n), 0);
        co_node_unref(n);
    }
}

CO_TEST(what_is_not_a_regular_file_is_refused)
{
    const char *fifo = test_path("fifo");

    assert_int_equal(mkfifo(fifo, 0600), 0);
    co_open_refused("No such file", "{'driver': 'file', 'filename': '%s'}", test_path("absent"));
    co_open_refused("requires a file name", "{'driver': 'file', 'filename': ''}");
    co_open_refused("regular file", "{'driver': 'file', 'filename': '%s'}", fifo);
    co_open_refused("regular file", "{'driver': 'file', 'filename': '%s', 'read-only': true}",
                    test_dir());
    co_open_refused("Is a directory", "{'driver': 'file', 'filename': '%s'}", test_dir());
    co_open_refused("regular file", "{'driver': 'file', 'filename': '/dev/zero'}");
    make_file(test_path("plain"), MiB);
    co_open_refused("use driver 'file'", "{'driver': 'host_device', 'filename': '%s'}",
                    test_path("plain"));
}

CO_TEST(options_are_checked_and_those_without_effect_accepted)
{
    const char *path = test_path("options");
    struct node *n;

    make_file(path, MiB);
    co_open_refused("cache.direct=on", "{'driver': 'file', 'filename': '%s', 'aio': 'native'}",
                    path);
    co_open_refused("does not accept value", "{'driver': 'file', 'filename': '%s', 'aio': 'x'}",
                    path);
    co_open_refused("unexpected", "{'driver': 'file', 'filename': '%s', 'pr-manager': 'x'}", path);
    n = co_test_open("{'driver': 'file', 'filename': '%s', 'aio': 'io_uring', 'aio-max-batch': 32,"
                " 'drop-cache': false, 'x-check-cache-dropped': true, 'locking': 'auto'}", path);
    co_node_unref(n);
}

static void co_overlapping(void *arg)
{
    struct node *n = arg;

    for (int i = 0; i < 50; i++) {
        co_fill(n, 0, 256 * KiB, 7);
        co_expect(n, 4096, 64 * KiB, 7);
    }
}

static void co_busy(struct node *n, const char *path)
{
    co_together(16, co_overlapping, n);
    co_expect(n, 0, 256 * KiB, 7);
}

CO_TEST(many_requests_at_once)
{
    co_everywhere(co_busy);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(reads_give_what_was_written),
    cmocka_unit_test(any_number_of_pieces),
    cmocka_unit_test(zeroing_and_discarding_free_space),
    cmocka_unit_test(zeroing_without_unmap_keeps_space),
    cmocka_unit_test(a_fast_zero_that_cannot_be_done_is_refused_and_the_slow_one_works),
    cmocka_unit_test(status_tells_data_from_holes),
    cmocka_unit_test(status_follows_what_the_node_itself_does),
    cmocka_unit_test(status_never_calls_a_hole_what_a_finished_write_has_filled),
    cmocka_unit_test(resizing_grows_and_shrinks),
    cmocka_unit_test(a_file_that_others_made_shorter_gives_eio),
    cmocka_unit_test(direct_io_on_a_file_of_any_length_keeps_its_length),
    cmocka_unit_test(direct_io_takes_buffers_of_any_alignment),
    cmocka_unit_test(a_file_in_use_is_refused_unless_locking_is_off_or_it_is_shared),
    cmocka_unit_test(what_is_closed_is_free_at_once),
    cmocka_unit_test(what_is_not_a_regular_file_is_refused),
    cmocka_unit_test(options_are_checked_and_those_without_effect_accepted),
    cmocka_unit_test(many_requests_at_once),
};

DRIVERS_TEST_MAIN(tests)
