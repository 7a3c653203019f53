/* SPDX-License-Identifier: Apache-2.0
 *
 * Files: reads, writes, flushes and allocation through coroutines.
 */
#include "loop_test.h"
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static const unsigned all_hints[] = { IO_DEFAULT, IO_INLINE, IO_ASYNC, IO_DSYNC,
                                      IO_INLINE | IO_DSYNC };

static void fill(char *buf, size_t len, unsigned seed)
{
    for (size_t i = 0; i < len; i++)
        buf[i] = (char)(seed + i * 7 + i / 251);
}

static void what_is_written_is_read_body(void)
{
    static char out[3 * 4096], in[3 * 4096];
    int fd = test_tmpfile();

    for (size_t i = 0; i < ARRAY_SIZE(all_hints); i++) {
        struct iovec w[2] = { { out, 5000 }, { out + 5000, sizeof(out) - 5000 } };
        struct iovec r[3] = { { in, 1 }, { in + 1, 8191 }, { in + 8192, 4096 } };
        struct iovec flat = { in, sizeof(in) };
        uint64_t off = i * 100000 + 13;

        fill(out, sizeof(out), (unsigned)i);
        assert_int_equal(co_pwritev(fd, w, 2, off, all_hints[i]), sizeof(out));
        memset(in, 0, sizeof(in));
        assert_int_equal(co_preadv(fd, r, 3, off, all_hints[i] & ~(unsigned)IO_DSYNC),
                         sizeof(in));
        assert_memory_equal(in, out, sizeof(in));
        memset(in, 0, sizeof(in));
        assert_int_equal(co_preadv(fd, &flat, 1, off, all_hints[i] & ~(unsigned)IO_DSYNC),
                         sizeof(in));
        assert_memory_equal(in, out, sizeof(in));
    }
    assert_int_equal(co_fdatasync(fd), 0);
    close(fd);
}

static void what_is_written_is_read(void **state)
{
    in_loop(what_is_written_is_read_body);
}

static void end_of_file_is_a_short_read_body(void)
{
    char buf[100] = "0123456789";
    struct iovec iov = { buf, 10 };
    int fd = test_tmpfile();

    assert_int_equal(co_pwritev(fd, &iov, 1, 0, IO_DEFAULT), 10);
    iov.iov_len = sizeof(buf);
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(co_preadv(fd, &iov, 1, 4, all_hints[i]), 6);
        assert_int_equal(co_preadv(fd, &iov, 1, 10, all_hints[i]), 0);
        assert_int_equal(co_preadv(fd, &iov, 1, 1 << 20, all_hints[i]), 0);
    }
    close(fd);
}

static void end_of_file_is_a_short_read(void **state)
{
    in_loop(end_of_file_is_a_short_read_body);
}

static void errors_come_back_as_numbers_body(void)
{
    char c = 0;
    struct iovec iov = { &c, 1 };
    int fd = test_tmpfile(), ro = open("/dev/null", O_RDONLY | O_CLOEXEC);

    for (size_t i = 0; i < ARRAY_SIZE(all_hints); i++) {
        assert_int_equal(co_preadv(-1, &iov, 1, 0, all_hints[i]), -EBADF);
        assert_int_equal(co_pwritev(-1, &iov, 1, 0, all_hints[i]), -EBADF);
        assert_int_equal(co_pwritev(ro, &iov, 1, 0, all_hints[i]), -EBADF);
        assert_int_equal(co_preadv(fd, &iov, 1, UINT64_MAX, all_hints[i]), -EINVAL);
        assert_int_equal(co_pwritev(fd, &iov, 1, UINT64_MAX, all_hints[i]), -EINVAL);
    }
    assert_int_equal(co_fdatasync(-1), -EBADF);
    assert_int_equal(co_fallocate(-1, 0, 0, 1, IO_DEFAULT), -EBADF);
    assert_int_equal(co_fallocate(fd, 0, UINT64_MAX, 1, IO_DEFAULT), -EFBIG);
    close(ro);
    close(fd);
}

static void errors_come_back_as_numbers(void **state)
{
    in_loop(errors_come_back_as_numbers_body);
}

static void fallocate_grows_and_punches_body(void)
{
    static char buf[65536], zeros[4096];
    struct iovec iov = { buf, sizeof(buf) };
    int fd = test_tmpfile();
    struct stat st;

    assert_int_equal(co_fallocate(fd, 0, 0, 1 << 20, IO_BULK), 0);
    assert_int_equal(fstat(fd, &st), 0);
    assert_int_equal(st.st_size, 1 << 20);
    memset(buf, 'x', sizeof(buf));
    assert_int_equal(co_pwritev(fd, &iov, 1, 0, IO_DEFAULT), sizeof(buf));
    assert_int_equal(co_fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 4096, 4096,
                                  IO_DEFAULT), 0);
    assert_int_equal(co_preadv(fd, &iov, 1, 0, IO_DEFAULT), sizeof(buf));
    assert_memory_equal(buf + 4096, zeros, 4096);
    assert_int_equal(buf[4095], 'x');
    assert_int_equal(buf[8192], 'x');
    close(fd);
}

static void fallocate_grows_and_punches(void **state)
{
    in_loop(fallocate_grows_and_punches_body);
}

static void a_list_that_is_too_long_gives_a_short_result_body(void)
{
    enum { N = 3000 };
    static char buf[N];
    static struct iovec iov[N];
    int fd = test_tmpfile();

    for (int i = 0; i < N; i++)
        iov[i] = (struct iovec){ buf + i, 1 };
    for (size_t i = 0; i < ARRAY_SIZE(all_hints); i++) {
        assert_int_equal(co_pwritev(fd, iov, N, 0, all_hints[i]), 1024);
        assert_int_equal(co_preadv(fd, iov, N, 0, all_hints[i] & ~(unsigned)IO_DSYNC), 1024);
    }
    close(fd);
}

static void a_list_that_is_too_long_gives_a_short_result(void **state)
{
    in_loop(a_list_that_is_too_long_gives_a_short_result_body);
}

/* More operations at once than the queue to the kernel holds. */
enum { READS = MANY / 2 };

static struct gate gate;
static int shared_fd;
static int good_reads;

static void read_one(void *arg)
{
    uint64_t n = (uintptr_t)arg, got = 0;
    struct iovec iov = { &got, sizeof(got) };
    ssize_t r = co_preadv(shared_fd, &iov, 1, n * sizeof(got), n % 16 ? IO_DEFAULT : IO_ASYNC);

    good_reads += r == sizeof(got) && got == n;
    gate_pass(&gate);
}

static void thousands_of_reads_at_once_body(void)
{
    static uint64_t numbers[READS];
    struct iovec iov = { numbers, sizeof(numbers) };

    for (uint64_t i = 0; i < READS; i++)
        numbers[i] = i;
    shared_fd = test_tmpfile();
    assert_int_equal(co_pwritev(shared_fd, &iov, 1, 0, IO_DEFAULT), sizeof(numbers));
    good_reads = 0;
    gate_init(&gate, READS);
    for (uintptr_t i = 0; i < READS; i++)
        co_start(read_one, (void *)i);
    co_gate_wait(&gate);
    assert_int_equal(good_reads, READS);
    close(shared_fd);
}

static void thousands_of_reads_at_once(void **state)
{
    in_loop(thousands_of_reads_at_once_body);
}

static bool keep_spinning;

static void spin(void *arg)
{
    while (keep_spinning)
        co_yield();
    gate_pass(&gate);
}

static void io_goes_on_while_the_ready_list_is_never_empty_body(void)
{
    char c = 'x';
    struct iovec iov = { &c, 1 };
    int fd = test_tmpfile();

    keep_spinning = true;
    gate_init(&gate, 1);
    co_start(spin, NULL);
    for (int i = 0; i < 20; i++) {
        assert_int_equal(co_pwritev(fd, &iov, 1, 0, IO_ASYNC), 1);
        assert_int_equal(co_preadv(fd, &iov, 1, 0, IO_ASYNC), 1);
    }
    co_sleep(NSEC_PER_MSEC);
    keep_spinning = false;
    co_gate_wait(&gate);
    close(fd);
}

static void io_goes_on_while_the_ready_list_is_never_empty(void **state)
{
    in_loop(io_goes_on_while_the_ready_list_is_never_empty_body);
}

static unsigned turns_of_others;
static bool others_end;

static void count_turns(void *arg)
{
    while (!others_end) {
        turns_of_others++;
        co_yield();
    }
    gate_pass(&gate);
}

/* Whether a small inline write suspended: others ran meanwhile. */
static bool write_suspends(int fd)
{
    char c = 'x';
    struct iovec iov = { &c, 1 };
    unsigned before = turns_of_others;

    assert_int_equal(co_pwritev(fd, &iov, 1, 0, IO_INLINE), 1);
    return turns_of_others != before;
}

static void after_a_slow_write_the_loop_is_spared_body(void)
{
    enum { HUGE_LEN = 64 << 20 };   /* surely longer than a millisecond to copy */
    struct iovec iov = { calloc(1, HUGE_LEN), HUGE_LEN };
    int fd = test_tmpfile();

    others_end = false;
    gate_init(&gate, 1);
    co_start(count_turns, NULL);
    co_yield();
    for (int expected = 64; expected <= 256; expected *= 2) {
        assert_int_equal(co_pwritev(fd, &iov, 1, 0, IO_INLINE), HUGE_LEN);
        for (int i = 0; i < expected; i++)
            assert_true(write_suspends(fd));
        /* The next is tried inline: the large one of the next round. */
    }
    assert_int_equal(co_pwritev(fd, &iov, 1, 0, IO_DEFAULT), HUGE_LEN);
    assert_false(write_suspends(fd));
    others_end = true;
    co_gate_wait(&gate);
    free(iov.iov_base);
    close(fd);
}

static void after_a_slow_write_the_loop_is_spared(void **state)
{
    in_loop(after_a_slow_write_the_loop_is_spared_body);
}

static void a_file_in_memory_is_known_and_never_left_waiting_body(void)
{
    int fd = memfd_create("test", MFD_CLOEXEC), dir = open("/proc", O_RDONLY | O_CLOEXEC);
    char out[] = "0123456789", in[10] = "";
    struct iovec w = { out, 10 }, r = { in, 10 };
    unsigned before;

    assert_true(io_is_in_memory(fd));
    assert_false(io_is_in_memory(dir));
    assert_false(io_is_in_memory(-1));
    others_end = false;
    gate_init(&gate, 1);
    co_start(count_turns, NULL);
    co_yield();
    before = turns_of_others;
    assert_int_equal(co_pwritev(fd, &w, 1, 5, IO_INLINE | IO_MEMORY), 10);
    assert_int_equal(co_preadv(fd, &r, 1, 5, IO_INLINE | IO_MEMORY), 10);
    assert_int_equal(turns_of_others, before);
    assert_memory_equal(in, out, 10);
    assert_int_equal(co_preadv(-1, &r, 1, 5, IO_INLINE | IO_MEMORY), -EBADF);
    others_end = true;
    co_gate_wait(&gate);
    close(dir);
    close(fd);
}

static void a_file_in_memory_is_known_and_never_left_waiting(void **state)
{
    in_loop(a_file_in_memory_is_known_and_never_left_waiting_body);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(what_is_written_is_read),
    cmocka_unit_test(end_of_file_is_a_short_read),
    cmocka_unit_test(errors_come_back_as_numbers),
    cmocka_unit_test(fallocate_grows_and_punches),
    cmocka_unit_test(a_list_that_is_too_long_gives_a_short_result),
    cmocka_unit_test(thousands_of_reads_at_once),
    cmocka_unit_test(io_goes_on_while_the_ready_list_is_never_empty),
    cmocka_unit_test(after_a_slow_write_the_loop_is_spared),
    cmocka_unit_test(a_file_in_memory_is_known_and_never_left_waiting),
};

LOOP_TEST_MAIN(tests)
