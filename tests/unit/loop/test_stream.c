/* SPDX-License-Identifier: Apache-2.0
 *
 * Streams over a socket pair: each test plays both ends, from two coroutines of
 * one loop.
 */
#include "loop_test.h"
#include "loop/stream.h"
#include <sys/socket.h>
#include <unistd.h>

static struct stream *ours;
static int theirs = -1;       /* a plain descriptor */
static struct gate gate;

static void begin(size_t buffer)
{
    int fds[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    ours = stream_new(fds[0], buffer);
    assert_int_equal(stream_fd(ours), fds[0]);
    theirs = fds[1];
    gate_init(&gate, 1);
}

static void end(void)
{
    stream_free(ours);
    if (theirs >= 0)
        close(theirs);
    theirs = -1;
}

static void they_send(const char *text)
{
    assert_int_equal(send(theirs, text, strlen(text), 0), strlen(text));
}

static void fill_peek_and_consume_body(void)
{
    size_t n;

    begin(8);
    assert_int_equal(co_stream_fill(ours, 0), 0);
    they_send("0123456789");
    assert_int_equal(co_stream_fill(ours, 3), 0);
    assert_memory_equal(stream_peek(ours, &n), "01234567", 8);
    assert_int_equal(n, 8);        /* as much as there is room for */
    stream_consume(ours, 6);
    assert_memory_equal(stream_peek(ours, &n), "67", 2);
    assert_int_equal(n, 2);
    they_send("abcdef");
    assert_int_equal(co_stream_fill(ours, 8), 0);   /* moves to the front */
    assert_memory_equal(stream_peek(ours, &n), "6789abcd", 8);
    stream_consume(ours, 8);
    assert_int_equal(co_stream_fill(ours, 2), 0);
    assert_memory_equal(stream_peek(ours, &n), "ef", 2);
    assert_int_equal(n, 2);
    end();
}

static void fill_peek_and_consume(void **state)
{
    in_loop(fill_peek_and_consume_body);
}

static void read_and_skip_body(void)
{
    char buf[64];
    size_t n;

    begin(8);
    they_send("abcdefghijklmnopqrstuvwxyz");
    assert_int_equal(co_stream_read(ours, buf, 3), 0);
    assert_memory_equal(buf, "abc", 3);
    assert_int_equal(co_stream_skip(ours, 4), 0);
    assert_int_equal(co_stream_read(ours, buf, 12), 0);   /* longer than the buffer */
    assert_memory_equal(buf, "hijklmnopqrs", 12);
    assert_int_equal(co_stream_skip(ours, 5), 0);
    assert_int_equal(co_stream_read(ours, buf, 1), 0);
    assert_int_equal(buf[0], 'y');
    assert_int_equal(co_stream_skip(ours, 0), 0);
    assert_int_equal(co_stream_read(ours, buf, 0), 0);
    assert_int_equal(co_stream_fill(ours, 1), 0);
    assert_memory_equal(stream_peek(ours, &n), "z", 1);
    end();
}

static void read_and_skip(void **state)
{
    in_loop(read_and_skip_body);
}

/* --- Large transfers --- */

enum { TOTAL = 4 << 20 };
static char *big;

static void fill_big(void)
{
    big = malloc(TOTAL);
    assert_non_null(big);
    for (size_t i = 0; i < TOTAL; i++)
        big[i] = (char)(i * 31 + i / 4096);
}

static void write_big_in_pieces(void *arg)
{
    size_t n = TOTAL / 1000 + 1;
    struct iovec *iov = calloc(n + 1, sizeof(*iov));

    /* Far more pieces than one sendmsg takes, one of them empty. */
    for (size_t i = 0, off = 0; i < n; i++, off += 1000)
        iov[i] = (struct iovec){ big + off, MIN((size_t)1000, TOTAL - off) };
    iov[n] = (struct iovec){ big, 0 };
    assert_int_equal(co_stream_writev(ours, iov, (int)n + 1), 0);
    free(iov);
    gate_pass(&gate);
}

static void everything_arrives_in_order(size_t buffer, size_t step)
{
    char *in = malloc(TOTAL);
    struct stream *peer;

    begin(buffer);
    fill_big();
    peer = stream_new(theirs, buffer);
    theirs = -1;
    co_start(write_big_in_pieces, NULL);
    for (size_t off = 0; off < TOTAL; off += MIN(step, TOTAL - off))
        assert_int_equal(co_stream_read(peer, in + off, MIN(step, TOTAL - off)), 0);
    co_gate_wait(&gate);
    assert_memory_equal(in, big, TOTAL);
    stream_free(peer);
    end();
    free(in);
    free(big);
}

static void large_transfers_arrive_whole_body(void)
{
    everything_arrives_in_order(4096, 100);      /* from the buffer */
    everything_arrives_in_order(65536, 70001);   /* past the buffer */
    everything_arrives_in_order(1000, TOTAL);    /* in one read */
}

static void large_transfers_arrive_whole(void **state)
{
    in_loop(large_transfers_arrive_whole_body);
}

static void one_reads_while_another_writes_body(void)
{
    char *in = malloc(TOTAL);

    begin(65536);
    fill_big();

    /* The peer is an echo: both directions are full at once. */
    struct stream *echo = stream_new(theirs, 65536);

    theirs = -1;
    co_start(write_big_in_pieces, NULL);
    for (size_t off = 0, n; off < TOTAL; off += n) {
        assert_int_equal(co_stream_fill(echo, 1), 0);

        struct iovec iov = { (void *)stream_peek(echo, &n), 0 };

        iov.iov_len = n;
        assert_int_equal(co_stream_writev(echo, &iov, 1), 0);
        stream_consume(echo, n);
        assert_int_equal(co_stream_read(ours, in + off, n), 0);
    }
    co_gate_wait(&gate);
    assert_memory_equal(in, big, TOTAL);
    stream_free(echo);
    end();
    free(in);
    free(big);
}

static void one_reads_while_another_writes(void **state)
{
    in_loop(one_reads_while_another_writes_body);
}

/* --- The end of a connection --- */

static void they_vanish(const char *after)
{
    they_send(after);
    close(theirs);
    theirs = -1;
}

static void a_peer_that_vanishes_is_told_apart_body(void)
{
    char buf[8];

    begin(8);
    they_vanish("");
    assert_int_equal(co_stream_fill(ours, 1), -ENODATA);
    end();

    begin(8);
    they_vanish("abc");
    assert_int_equal(co_stream_fill(ours, 4), -ECONNRESET);
    end();

    begin(8);
    they_vanish("abc");
    assert_int_equal(co_stream_fill(ours, 3), 0);
    stream_consume(ours, 3);
    assert_int_equal(co_stream_fill(ours, 1), -ENODATA);
    end();

    begin(8);
    they_vanish("abc");
    assert_int_equal(co_stream_read(ours, buf, 4), -ECONNRESET);
    end();

    begin(8);
    they_vanish("abc");
    assert_int_equal(co_stream_skip(ours, 4), -ECONNRESET);
    end();

    /* Writing to nobody: no signal, an error. */
    begin(8);
    they_vanish("");
    struct iovec iov = { buf, 1 };
    assert_int_equal(co_stream_writev(ours, &iov, 1), -EPIPE);
    end();
}

static void a_peer_that_vanishes_is_told_apart(void **state)
{
    in_loop(a_peer_that_vanishes_is_told_apart_body);
}

static int writer_result;

static void write_until_it_fails(void *arg)
{
    static char block[65536];

    do {
        struct iovec iov = { block, sizeof(block) };

        writer_result = co_stream_writev(ours, &iov, 1);
    } while (writer_result == 0);
    gate_pass(&gate);
}

static int reader_result;

static void read_until_it_fails(void *arg)
{
    reader_result = co_stream_fill(ours, 1);
    gate_pass(&gate);
}

static void shutdown_wakes_reader_and_writer_body(void)
{
    begin(64);
    gate_init(&gate, 2);
    reader_result = writer_result = 0;
    co_start(read_until_it_fails, NULL);
    co_start(write_until_it_fails, NULL);
    co_sleep(5 * NSEC_PER_MSEC);   /* until both wait: the peer reads and sends nothing */
    assert_int_equal(gate.left, 2);
    stream_shutdown(ours);
    stream_shutdown(ours);
    co_gate_wait(&gate);
    assert_true(reader_result < 0);
    assert_true(writer_result < 0);
    assert_true(co_stream_fill(ours, 1) < 0);
    end();
}

static void shutdown_wakes_reader_and_writer(void **state)
{
    in_loop(shutdown_wakes_reader_and_writer_body);
}

static void after_shutdown_buffered_input_is_not_read_body(void)
{
    char buf[4];

    begin(64);
    they_send("abcdefgh");
    stream_shutdown(ours);
    assert_true(co_stream_read(ours, buf, sizeof(buf)) < 0);
    end();
    stream_free(NULL);
}

static void after_shutdown_buffered_input_is_not_read(void **state)
{
    in_loop(after_shutdown_buffered_input_is_not_read_body);
}

static void vanish_later(void *arg)
{
    co_sleep(2 * NSEC_PER_MSEC);
    they_vanish("x");
    gate_pass(&gate);
}

static void a_peer_that_vanishes_wakes_a_long_read_body(void)
{
    static char buf[1 << 16];

    begin(64);
    co_start(vanish_later, NULL);
    assert_int_equal(co_stream_read(ours, buf, sizeof(buf)), -ECONNRESET);
    co_gate_wait(&gate);
    end();
}

static void a_peer_that_vanishes_wakes_a_long_read(void **state)
{
    in_loop(a_peer_that_vanishes_wakes_a_long_read_body);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(fill_peek_and_consume),
    cmocka_unit_test(read_and_skip),
    cmocka_unit_test(large_transfers_arrive_whole),
    cmocka_unit_test(one_reads_while_another_writes),
    cmocka_unit_test(a_peer_that_vanishes_is_told_apart),
    cmocka_unit_test(shutdown_wakes_reader_and_writer),
    cmocka_unit_test(after_shutdown_buffered_input_is_not_read),
    cmocka_unit_test(a_peer_that_vanishes_wakes_a_long_read),
};

LOOP_TEST_MAIN(tests)
