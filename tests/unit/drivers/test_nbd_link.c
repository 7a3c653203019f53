/* SPDX-License-Identifier: Apache-2.0
 *
 * Driver nbd when the server is killed, hangs, or comes back; and when the node
 * moves to another loop.
 */
#include "nbd_servers.h"
#include <signal.h>
#include <unistd.h>

#define SIZE (4 * MiB)

/* Requests that are under way together. */
struct flight {
    struct node *n;
    struct crew crew;
    int results[16];
    unsigned started, ended;
};

static void co_fly(void *arg)
{
    struct flight *f = arg;
    unsigned me = f->started++;
    CLEANUP(free) void *buf = xzalloc(4096);

    if (me % 2)
        f->results[me] = co_node_pread(f->n, me * 4096, 4096, buf, 0);
    else
        f->results[me] = co_node_pwrite(f->n, me * 4096, 4096, buf, 0);
    f->ended++;
}

static void start_flight(struct flight *f, struct node *n)
{
    *f = (struct flight){ .n = n };
    for (size_t i = 0; i < ARRAY_SIZE(f->results); i++)
        crew_start(&f->crew, co_fly, f);
    while (f->started < ARRAY_SIZE(f->results))
        co_yield();
}

static void co_expect_flight(struct flight *f, int result)
{
    co_crew_wait(&f->crew);
    for (size_t i = 0; i < ARRAY_SIZE(f->results); i++)
        assert_int_equal(f->results[i], result);
}

static struct server start_file_server(const char *socket)
{
    return start_nbdkit(socket, ARGS("file", test_path("disk")));
}

CO_TEST(requests_fail_when_the_server_is_killed)
{
    struct server s = start_nbdkit(test_path("a"), ARGS("memory", "4M"));
    struct node *n = co_open_nbd(&s, "");
    unsigned char byte;
    struct flight f;

    hang_server(&s);
    start_flight(&f, n);
    assert_int_equal(f.ended, 0);
    kill_server(&s);
    co_expect_flight(&f, -EIO);
    assert_int_equal(co_node_pread(n, 0, 1, &byte, 0), -EIO);
    co_node_unref(n);
}

CO_TEST(a_hung_server_is_given_up_by_cancelling)
{
    struct server s = start_nbdkit(test_path("b"), ARGS("memory", "4M"));
    struct node *n = co_open_nbd(&s, ", 'reconnect-delay': 1000");
    unsigned char byte;
    struct flight f;
    uint64_t before;

    hang_server(&s);
    start_flight(&f, n);
    before = loop_now();
    node_cancel_in_flight(n);
    co_expect_flight(&f, -ECANCELED);
    assert_int_equal(co_node_pread(n, 0, 1, &byte, 0), -EIO);
    co_node_unref(n);
    assert_true(loop_now() - before < 2 * NSEC_PER_SEC);
    kill_server(&s);
}

CO_TEST(closing_does_not_wait_for_a_negotiation_that_hangs)
{
    struct server s = start_nbdkit(test_path("n"), ARGS("memory", "4M"));
    struct node *n = co_open_nbd(&s, "");
    uint64_t before;

    hang_server(&s);
    node_cancel_in_flight(n);
    co_sleep(300 * NSEC_PER_MSEC);       /* it has connected again by then */
    before = loop_now();
    co_node_unref(n);
    assert_true(loop_now() - before < 2 * NSEC_PER_SEC);
    kill_server(&s);
}

/* Large writes fill the socket, so that the client is in the middle of sending. */
static void co_fly_large(void *arg)
{
    struct flight *f = arg;
    CLEANUP(free) void *buf = xzalloc(SIZE);
    unsigned me = f->started++;

    f->results[me] = co_node_pwrite(f->n, 0, SIZE, buf, 0);
}

CO_TEST(cancelling_works_in_the_middle_of_a_request)
{
    struct server s = start_nbdkit(test_path("c"), ARGS("memory", "4M"));
    struct node *n = co_open_nbd(&s, "");
    struct flight f = { .n = n };

    hang_server(&s);
    for (int i = 0; i < 3; i++)
        crew_start(&f.crew, co_fly_large, &f);
    while (f.started < 3)
        co_yield();
    co_sleep(10 * NSEC_PER_MSEC);        /* it has sent what goes into the socket by then */
    node_cancel_in_flight(n);
    co_crew_wait(&f.crew);
    for (int i = 0; i < 3; i++)
        assert_int_equal(f.results[i], -ECANCELED);
    co_node_unref(n);
    kill_server(&s);
}

CO_TEST(closing_does_not_wait_for_a_hung_server)
{
    struct server s = start_nbdkit(test_path("d"), ARGS("memory", "4M"));
    struct node *n = co_open_nbd(&s, "");
    uint64_t before;

    hang_server(&s);
    before = loop_now();
    co_node_unref(n);
    assert_true(loop_now() - before < 2 * NSEC_PER_SEC);
    kill_server(&s);
}

CO_TEST(requests_wait_for_a_server_that_comes_back_in_time)
{
    struct server s;
    struct node *n;
    struct flight f;

    make_file(test_path("disk"), SIZE);
    s = start_file_server(test_path("e"));
    n = co_open_nbd(&s, ", 'reconnect-delay': 60");
    co_fill(n, 0, SIZE, 1);
    hang_server(&s);
    start_flight(&f, n);
    kill_server(&s);
    co_sleep(50 * NSEC_PER_MSEC);        /* whatever would fail at once has failed */
    assert_int_equal(f.ended, 0);
    s = start_file_server(s.socket);
    co_expect_flight(&f, 0);
    co_expect(n, 4096, 4096, 1);
    co_expect(n, 0, 4096, 0);
    /* The server is trusted to have what it acknowledged. */
    assert_int_equal(co_node_flush(n), 0);
    co_node_unref(n);
    kill_server(&s);
}

CO_TEST(waiting_for_a_server_has_an_end)
{
    struct server s = start_nbdkit(test_path("f"), ARGS("memory", "4M"));
    struct node *n = co_open_nbd(&s, ", 'reconnect-delay': 1");
    uint64_t before = loop_now();
    struct flight f;

    hang_server(&s);
    start_flight(&f, n);
    kill_server(&s);
    co_expect_flight(&f, -EIO);
    assert_true(loop_now() - before >= NSEC_PER_SEC);
    co_node_unref(n);
}

CO_TEST(waiting_for_a_server_can_be_cancelled)
{
    struct server s = start_nbdkit(test_path("g"), ARGS("memory", "4M"));
    struct node *n = co_open_nbd(&s, ", 'reconnect-delay': 1000");
    struct flight f;

    kill_server(&s);
    start_flight(&f, n);
    co_sleep(20 * NSEC_PER_MSEC);
    assert_int_equal(f.ended, 0);
    node_cancel_in_flight(n);
    co_expect_flight(&f, -ECANCELED);
    co_node_unref(n);
}

static void co_until_up(struct node *n)
{
    uint64_t deadline = loop_now() + 60 * NSEC_PER_SEC;
    unsigned char byte;

    while (co_node_pread(n, 0, 1, &byte, 0) < 0) {
        assert_true(loop_now() < deadline);
        co_sleep(10 * NSEC_PER_MSEC);
    }
}

CO_TEST(without_reconnect_delay_lost_writes_are_told_by_flush)
{
    struct server s;
    struct node *n;

    make_file(test_path("disk"), SIZE);
    s = start_file_server(test_path("h"));
    n = co_open_nbd(&s, "");
    co_fill(n, 0, 4096, 1);
    assert_int_equal(co_node_flush(n), 0);
    kill_server(&s);
    s = start_file_server(s.socket);
    co_until_up(n);                      /* it comes back by itself */
    assert_int_equal(co_node_flush(n), 0);
    co_fill(n, 0, 4096, 2);              /* acknowledged, not flushed */
    kill_server(&s);
    s = start_file_server(s.socket);
    co_until_up(n);
    assert_int_equal(co_node_flush(n), -EIO);
    assert_int_equal(co_node_flush(n), -EIO);
    co_node_unref(n);
    kill_server(&s);
}

CO_TEST(another_export_in_its_place_is_not_taken)
{
    struct server s = start_nbdkit(test_path("i"), ARGS("memory", "4M"));
    struct node *n = co_open_nbd(&s, ", 'reconnect-delay': 1");
    unsigned char byte;

    co_fill(n, 0, 4096, 1);
    kill_server(&s);
    s = start_nbdkit(s.socket, ARGS("memory", "8M"));
    assert_int_equal(co_node_pread(n, 0, 1, &byte, 0), -EIO);
    assert_int_equal(n->size, SIZE);
    co_node_unref(n);
    kill_server(&s);
}

/* ---- moving to another loop -------------------------------------------------------------- */

static int co_use_there(void *arg)
{
    struct node *n = arg;

    co_fill(n, 0, SIZE, 5);
    co_expect(n, 0, SIZE, 5);
    return 0;
}

CO_TEST(a_connection_moves_to_another_loop)
{
    struct server s = start_nbdkit(test_path("j"), ARGS("memory", "4M"));
    struct node *n = co_open_nbd(&s, "");
    struct loop *here = loop_current(), *there = test_loop_spawn("there");
    struct err err = ERR_INIT;

    co_fill(n, 0, 4096, 1);
    for (int i = 0; i < 3; i++) {
        assert_true(co_node_move(n, there, &err));
        assert_int_equal(co_node_call(n, co_use_there, n), 0);
        assert_true(co_node_move(n, here, &err));
        co_use_there(n);
    }
    co_node_unref(n);
    kill_server(&s);
    test_loop_end(there);
}

CO_TEST(a_lost_connection_moves_to_another_loop_and_comes_back_there)
{
    struct server s;
    struct node *n;
    struct loop *there = test_loop_spawn("there");
    struct err err = ERR_INIT;

    make_file(test_path("disk"), SIZE);
    s = start_file_server(test_path("k"));
    n = co_open_nbd(&s, ", 'reconnect-delay': 60");
    kill_server(&s);
    assert_true(co_node_move(n, there, &err));
    s = start_file_server(s.socket);
    assert_int_equal(co_node_call(n, co_use_there, n), 0);
    co_node_unref(n);
    kill_server(&s);
    test_loop_end(there);
}

/* A server that is killed again and again under load: every request ends, those that
 * succeed are true. */
struct storm {
    struct node *n;
    unsigned next, left;
    uint64_t failed, done;
};

static void co_storm_client(void *arg)
{
    struct storm *st = arg;
    unsigned me = st->next++;
    uint64_t off = me * 64 * KiB;
    CLEANUP(free) unsigned char *buf = xmalloc(64 * KiB);

    for (unsigned i = 1; st->left; i++) {
        memset(buf, (int)i, 64 * KiB);
        if (co_node_pwrite(st->n, off, 64 * KiB, buf, 0) < 0 ||
            co_node_pread(st->n, off, 64 * KiB, buf, 0) < 0) {
            st->failed++;
            co_sleep(NSEC_PER_MSEC);
            continue;
        }
        assert_int_equal(buf[0], (unsigned char)i);
        assert_int_equal(buf[64 * KiB - 1], (unsigned char)i);
        st->done++;
    }
}

static void co_storm(const char *more, bool may_fail)
{
    struct storm st = { .left = 4 };
    struct crew crew = { 0 };
    struct server s;

    make_file(test_path("disk"), SIZE);
    s = start_file_server(test_path("storm"));
    st.n = co_open_nbd(&s, more);
    for (int i = 0; i < 16; i++)
        crew_start(&crew, co_storm_client, &st);
    for (; st.left; st.left--) {
        uint64_t before = st.done;

        while (st.done < before + 50)
            co_sleep(NSEC_PER_MSEC);
        kill_server(&s);
        s = start_file_server(s.socket);
    }
    co_crew_wait(&crew);
    if (!may_fail)
        assert_int_equal(st.failed, 0);
    co_node_unref(st.n);
    kill_server(&s);
}

CO_TEST(a_server_that_dies_under_load_loses_no_request)
{
    co_storm(", 'reconnect-delay': 60", false);
}

CO_TEST(a_server_that_dies_under_load_fails_requests_cleanly)
{
    co_storm("", true);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(requests_fail_when_the_server_is_killed),
    cmocka_unit_test(a_hung_server_is_given_up_by_cancelling),
    cmocka_unit_test(closing_does_not_wait_for_a_negotiation_that_hangs),
    cmocka_unit_test(cancelling_works_in_the_middle_of_a_request),
    cmocka_unit_test(closing_does_not_wait_for_a_hung_server),
    cmocka_unit_test(requests_wait_for_a_server_that_comes_back_in_time),
    cmocka_unit_test(waiting_for_a_server_has_an_end),
    cmocka_unit_test(waiting_for_a_server_can_be_cancelled),
    cmocka_unit_test(without_reconnect_delay_lost_writes_are_told_by_flush),
    cmocka_unit_test(another_export_in_its_place_is_not_taken),
    cmocka_unit_test(a_connection_moves_to_another_loop),
    cmocka_unit_test(a_lost_connection_moves_to_another_loop_and_comes_back_there),
    cmocka_unit_test(a_server_that_dies_under_load_loses_no_request),
    cmocka_unit_test(a_server_that_dies_under_load_fails_requests_cleanly),
};

DRIVERS_TEST_MAIN(tests)
