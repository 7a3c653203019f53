/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: request memory is bounded for a connection and for a loop, small
 * requests never wait for other connections, and one that sits on shared memory
 * without moving is shut when others need it.
 * Method: holders without connections; a stall is a date in the past.
 */
#include "co_test.h"
#include "export/nbd/buffers.h"
#include "base/limits.h"
#include "base/mem.h"

static struct nbd_buffers *buffers;
static unsigned evicted;
static struct nbd_holder *evicted_holder;

static void on_evict(struct nbd_holder *h)
{
    evicted++;
    evicted_holder = h;
}

static void begin(struct nbd_holder *h, unsigned n)
{
    buffers = nbd_buffers_new();
    evicted = 0;
    for (unsigned i = 0; i < n; i++)
        nbd_holder_init(&h[i], buffers, on_evict);
}

static void end(struct nbd_holder *h, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        nbd_holder_done(&h[i]);
    nbd_buffers_free(buffers);
}

static struct nbd_buffer co_get(struct nbd_holder *h, uint32_t len)
{
    struct nbd_buffer b;

    assert_int_equal(co_nbd_buffer_get(h, len, &b), 0);
    assert_true(b.cap >= len && is_aligned((uintptr_t)b.p, 4096));
    memset(b.p, 0xee, MIN(len, 4096U));
    return b;
}

static void reuse_body(void)
{
    struct nbd_holder h[2];
    struct nbd_buffer a, b;

    begin(h, 2);
    for (uint32_t len = 1; len <= LIMIT_NBD_REQUEST_BYTES; len = len * 3 + 1) {
        a = co_get(&h[0], len);
        nbd_buffer_put(&h[0], &a);
        assert_null(a.p);
        nbd_buffer_put(&h[0], &a);   /* none: harmless */
        assert_int_equal(h[0].own + h[0].shared, 0);
    }
    /* What one connection gave back the next one gets, still warm. */
    a = co_get(&h[0], 4096);
    void *p = a.p;

    nbd_buffer_put(&h[0], &a);
    b = co_get(&h[1], 1000);
    assert_ptr_equal(b.p, p);
    nbd_buffer_put(&h[1], &b);
    end(h, 2);
}

static void buffers_are_used_again(void **state)
{
    in_loop(reuse_body);
}

struct taker {
    struct nbd_holder *h;
    uint32_t len;
    struct nbd_buffer b;
    bool has;
};

static void co_take(void *arg)
{
    struct taker *t = arg;

    t->b = co_get(t->h, t->len);
    t->has = true;
}

static void own_limit_body(void)
{
    struct nbd_holder h;
    struct nbd_buffer b[2];
    struct crew crew = { 0 };
    struct taker t = { &h, 1, .has = false };

    begin(&h, 1);
    b[0] = co_get(&h, LIMIT_NBD_REQUEST_BYTES);
    b[1] = co_get(&h, LIMIT_NBD_REQUEST_BYTES);
    assert_int_equal(h.shared, LIMIT_NBD_CONN_BYTES);
    crew_start(&crew, co_take, &t);
    co_yield_times(5);
    assert_false(t.has);
    nbd_buffer_put(&h, &b[0]);
    co_crew_wait(&crew);
    assert_true(t.has);
    nbd_buffer_put(&h, &b[1]);
    nbd_buffer_put(&h, &t.b);
    end(&h, 1);
}

static void a_connection_has_a_limit_of_its_own(void **state)
{
    in_loop(own_limit_body);
}

#define N (LIMIT_NBD_LOOP_BYTES / LIMIT_NBD_CONN_BYTES)

/* All shared memory in the hands of N connections. */
static void co_fill(struct nbd_holder *h, struct nbd_buffer *b)
{
    for (unsigned i = 0; i < N; i++) {
        b[2 * i] = co_get(&h[i], LIMIT_NBD_REQUEST_BYTES);
        b[2 * i + 1] = co_get(&h[i], LIMIT_NBD_REQUEST_BYTES);
    }
}

static void shared_limit_body(void)
{
    struct nbd_holder h[N + 1];
    struct nbd_buffer b[2 * N], small[16];
    struct crew crew = { 0 };
    struct taker t = { &h[N], LIMIT_NBD_REQUEST_BYTES, .has = false };

    begin(h, N + 1);
    co_fill(h, b);
    /* Requests of common sizes need nothing of what others hold. */
    for (unsigned i = 0; i < ARRAY_SIZE(small); i++)
        small[i] = co_get(&h[N], 65536);
    crew_start(&crew, co_take, &t);
    co_yield_times(5);
    assert_false(t.has);
    nbd_buffer_put(&h[3], &b[6]);
    co_crew_wait(&crew);
    assert_true(t.has);
    assert_int_equal(evicted, 0);

    nbd_buffer_put(&h[N], &t.b);
    for (unsigned i = 0; i < ARRAY_SIZE(small); i++)
        nbd_buffer_put(&h[N], &small[i]);
    for (unsigned i = 0; i < 2 * N; i++)
        nbd_buffer_put(&h[i / 2], &b[i]);
    end(h, N + 1);
}

static void small_requests_need_no_shared_memory(void **state)
{
    in_loop(shared_limit_body);
}

static void stall_body(void)
{
    struct nbd_holder h[N + 1];
    struct nbd_buffer b[2 * N];
    struct crew crew = { 0 };
    struct taker t = { &h[N], LIMIT_NBD_REQUEST_BYTES, .has = false };
    uint64_t long_ago = loop_now() - (LIMIT_NBD_STALL_SECONDS + 1) * NSEC_PER_SEC;

    begin(h, N + 1);
    co_fill(h, b);
    for (unsigned i = 0; i < N; i++)
        nbd_holder_waits(&h[i], i % 2 ? NBD_WAIT_SEND : NBD_WAIT_TAKE);   /* just now */
    h[2].waits_since[NBD_WAIT_SEND] = long_ago;
    nbd_holder_waits(&h[N], NBD_WAIT_TAKE);
    h[N].waits_since[NBD_WAIT_TAKE] = long_ago;    /* holds nothing of others' */
    crew_start(&crew, co_take, &t);
    while (!evicted)
        co_sleep(NSEC_PER_MSEC);
    assert_ptr_equal(evicted_holder, &h[2]);
    assert_int_equal(evicted, 1);
    nbd_buffer_put(&h[2], &b[4]);
    co_crew_wait(&crew);
    assert_true(t.has);

    nbd_buffer_put(&h[N], &t.b);
    for (unsigned i = 0; i < 2 * N; i++)
        nbd_buffer_put(&h[i / 2], &b[i]);
    end(h, N + 1);
}

static void who_sits_on_memory_and_stalls_is_shut(void **state)
{
    in_loop(stall_body);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(buffers_are_used_again),
        cmocka_unit_test(a_connection_has_a_limit_of_its_own),
        cmocka_unit_test(small_requests_need_no_shared_memory),
        cmocka_unit_test(who_sits_on_memory_and_stalls_is_shut),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
