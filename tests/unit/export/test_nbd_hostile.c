/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: a client that sends rubbish, stalls, does not take its replies or
 * vanishes loses its own connection at most; others are served meanwhile, and
 * what it can make the server do is bounded.
 * Method: each kind of misbehaviour, with a good client beside it.
 */
#include "nbd_rig.h"
#include "base/bytes.h"
#include "base/limits.h"
#include "base/mem.h"

static struct rig rig;
static struct client good, bad;
static uint8_t buf[64 * 1024];

static void co_begin(const struct rig_opts *o)
{
    co_rig_open(&rig, o);
    good = co_client_ready(&rig);
}

static void co_expect_good(void)
{
    co_write_request(&good, 77, 0, buf, 4096);
    assert_int_equal(co_simple_reply(&good, 77), 0);
}

static void co_end(void)
{
    co_expect_good();
    client_close(&good);
    co_rig_close(&rig);
}

/* The bad client's connection ends by the server's doing. */
static void co_expect_dropped(void)
{
    co_expect_end(&bad);
    client_close(&bad);
    co_rig_wait_connections(&rig, 1);
    co_expect_good();
}

/* The bad client vanishes, and its connection is gone. */
static void co_vanish(void)
{
    client_close(&bad);
    co_rig_wait_connections(&rig, 1);
    co_expect_good();
}

/* ---- negotiation -------------------------------------------------------- */

static void rubbish_handshake_body(void)
{
    co_begin(&(struct rig_opts){ 0 });
    bad = co_client_connect(&rig);
    co_greet_with(&bad, 0x80);
    co_expect_dropped();

    bad = co_client_connect(&rig);
    co_put(&bad, "GET / HTTP/1.1\r\n\r\n", 18);
    co_expect_dropped();

    bad = co_client_connect(&rig);
    co_greet(&bad);
    co_put(&bad, "IHAVENOTOPT.....", 16);
    co_expect_dropped();
    co_end();
}

static void rubbish_in_negotiation_ends_it(void **state)
{
    in_loop(rubbish_handshake_body);
}

/* Every prefix of a good negotiation, and then nothing more. */
static void vanish_in_handshake_body(void)
{
    uint8_t wire[4 + NBD_OPTION_BYTES + 32], go[32];
    uint32_t go_len = put_go(go, "disk");

    co_begin(&(struct rig_opts){ 0 });
    store_be32(wire, 3);
    store_be64(wire + 4, NBD_OPTION_MAGIC);
    store_be32(wire + 12, NBD_OPT_GO);
    store_be32(wire + 16, go_len);
    memcpy(wire + 20, go, go_len);
    for (size_t n = 0; n <= 20 + go_len; n++) {
        bad = co_client_connect(&rig);
        if (n)
            co_put(&bad, wire, n);
        co_vanish();
    }
    co_end();
}

static void a_client_may_vanish_at_any_byte_of_the_negotiation(void **state)
{
    in_loop(vanish_in_handshake_body);
}

static void stall_in_handshake_body(void)
{
    uint64_t start;

    co_begin(&(struct rig_opts){ .handshake_seconds_max = 1 });
    start = loop_now();
    bad = co_client_connect(&rig);
    co_greet(&bad);
    co_put(&bad, "IHAVE", 5);
    co_expect_dropped();
    assert_in_range(loop_now() - start, 900 * NSEC_PER_MSEC, 30 * NSEC_PER_SEC);

    /* Options that go on for ever are no progress. */
    bad = co_client_connect(&rig);
    co_greet(&bad);
    struct option_reply reply;

    for (start = loop_now(); loop_now() - start < 800 * NSEC_PER_MSEC;) {
        co_option(&bad, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
        co_option_reply(&bad, NBD_OPT_STRUCTURED_REPLY, &reply);
    }
    co_expect_dropped();
    assert_in_range(loop_now() - start, 900 * NSEC_PER_MSEC, 30 * NSEC_PER_SEC);
    co_end();
}

static void negotiation_has_a_deadline(void **state)
{
    in_loop(stall_in_handshake_body);
}

static void crowd_body(void)
{
    struct client crowd[LIMIT_NBD_HANDSHAKES + 8];

    co_begin(&(struct rig_opts){ .max_connections = 1000 });
    for (size_t i = 0; i < ARRAY_SIZE(crowd); i++)
        crowd[i] = co_client_connect(&rig);
    co_rig_wait_connections(&rig, 1 + LIMIT_NBD_HANDSHAKES);
    co_yield_times(50);
    assert_int_equal(nbd_server_connections(rig.server), 1 + LIMIT_NBD_HANDSHAKES);
    co_expect_good();
    expect_silence(&crowd[LIMIT_NBD_HANDSHAKES]);
    for (size_t i = 0; i < LIMIT_NBD_HANDSHAKES; i++)
        client_close(&crowd[i]);
    for (size_t i = LIMIT_NBD_HANDSHAKES; i < ARRAY_SIZE(crowd); i++) {
        co_greet(&crowd[i]);
        client_close(&crowd[i]);
    }
    co_rig_wait_connections(&rig, 1);
    co_end();
}

static void only_so_many_negotiate_at_once(void **state)
{
    in_loop(crowd_body);
}

static void full_body(void)
{
    struct client second, third;

    co_begin(&(struct rig_opts){ .max_connections = 2 });
    second = co_client_ready(&rig);
    third = co_client_connect(&rig);
    co_yield_times(50);
    expect_silence(&third);
    assert_int_equal(nbd_server_connections(rig.server), 2);
    client_close(&second);
    co_greet(&third);
    client_close(&third);
    co_rig_wait_connections(&rig, 1);
    co_end();
}

static void connections_beyond_the_limit_wait(void **state)
{
    in_loop(full_body);
}

/* ---- transmission ------------------------------------------------------- */

static void rubbish_request_body(void)
{
    co_begin(&(struct rig_opts){ 0 });
    bad = co_client_ready(&rig);
    memset(buf, 'x', NBD_REQUEST_BYTES);
    co_put(&bad, buf, NBD_REQUEST_BYTES);
    co_expect_dropped();

    bad = co_client_ready(&rig);
    co_request(&bad, 4711, 0xffff, 1, UINT64_MAX, UINT32_MAX);
    assert_int_equal(co_simple_reply(&bad, 1), 22);
    co_request(&bad, NBD_CMD_WRITE, 0, 2, 0, LIMIT_NBD_SKIP_BYTES + 1);
    co_expect_dropped();
    co_end();
}

static void rubbish_in_transmission_ends_it(void **state)
{
    in_loop(rubbish_request_body);
}

static void vanish_in_transmission_body(void)
{
    uint8_t wire[NBD_REQUEST_BYTES + 64] = { 0x25, 0x60, 0x95, 0x13, 0, 0, 0, NBD_CMD_WRITE };

    co_begin(&(struct rig_opts){ 0 });
    store_be32(wire + 24, 64);
    for (size_t n = 0; n < sizeof(wire); n++) {
        bad = co_client_ready(&rig);
        if (n)
            co_put(&bad, wire, n);
        co_vanish();
    }
    assert_int_equal(co_rig_count(&rig, MEM_WRITE), sizeof(wire));   /* the good ones */

    /* With answers on their way. */
    for (int i = 0; i < 20; i++) {
        bad = co_client_ready(&rig);
        for (uint64_t k = 0; k < 100; k++)
            co_request(&bad, NBD_CMD_READ, 0, k, 0, 65536);
        co_vanish();
    }
    co_end();
}

static void a_client_may_vanish_at_any_byte_of_a_write(void **state)
{
    in_loop(vanish_in_transmission_body);
}

/* The disk hangs, the client is gone: its request is seen to its end. */
static void vanish_with_request_body(void)
{
    co_begin(&(struct rig_opts){ 0 });
    bad = co_client_ready(&rig);
    co_rig_hold(&rig, MEM_READ);
    co_request(&bad, NBD_CMD_READ, 0, 1, 0, 4096);
    co_rig_wait_count(&rig, MEM_READ, 1);
    client_close(&bad);
    co_expect_good();
    assert_int_equal(nbd_server_connections(rig.server), 2);
    co_rig_release(&rig, MEM_READ);
    co_rig_wait_connections(&rig, 1);
    co_end();
}

static void a_request_outlives_its_client(void **state)
{
    in_loop(vanish_with_request_body);
}

/* Sends for ever and takes nothing. */
static void co_flood(void *arg)
{
    uint8_t raw[NBD_REQUEST_BYTES] = { 0x25, 0x60, 0x95, 0x13 };
    unsigned *sent = arg;

    store_be32(raw + 24, 65536);
    for (;;) {
        struct iovec iov = { raw, sizeof(raw) };

        if (co_stream_writev(bad.stream, &iov, 1) < 0)
            return;
        ++*sent;
    }
}

static void not_taking_body(void)
{
    struct crew crew = { 0 };
    unsigned sent = 0, seen, again;

    co_begin(&(struct rig_opts){ 0 });
    bad = co_client_ready(&rig);
    crew_start(&crew, co_flood, &sent);
    /* It gets as far as the slots and the socket's buffers reach, and no farther. */
    do {
        seen = sent;
        for (int i = 0; i < 20; i++)
            co_expect_good();
    } while (sent != seen || !sent);
    again = co_rig_count(&rig, MEM_READ);
    assert_in_range(again, LIMIT_NBD_CONN_REQUESTS, LIMIT_NBD_CONN_REQUESTS + 100);
    for (int i = 0; i < 20; i++)
        co_expect_good();
    assert_int_equal(co_rig_count(&rig, MEM_READ), again);
    /* When it takes them again, it goes on. */
    for (int i = 0; i < 400; i++) {
        assert_int_equal(co_simple_reply(&bad, 0), 0);
        co_get(&bad, buf, 65536);
    }
    stream_shutdown(bad.stream);
    co_crew_wait(&crew);
    co_vanish();
    co_end();
}

static void a_client_that_takes_no_replies_stops_itself(void **state)
{
    in_loop(not_taking_body);
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(rubbish_in_negotiation_ends_it),
        cmocka_unit_test(a_client_may_vanish_at_any_byte_of_the_negotiation),
        cmocka_unit_test(negotiation_has_a_deadline),
        cmocka_unit_test(only_so_many_negotiate_at_once),
        cmocka_unit_test(connections_beyond_the_limit_wait),
        cmocka_unit_test(rubbish_in_transmission_ends_it),
        cmocka_unit_test(a_client_may_vanish_at_any_byte_of_a_write),
        cmocka_unit_test(a_request_outlives_its_client),
        cmocka_unit_test(a_client_that_takes_no_replies_stops_itself),
    };

    return nbd_rig_main(argc, argv, __FILE__, tests, ARRAY_SIZE(tests));
}
