/* SPDX-License-Identifier: Apache-2.0
 *
 * Before-write notifiers: what they are told and when, and that they may come
 * and go at any time.
 */
#include "co_test.h"
#include "memdrv.h"

#define CALLS_MAX 16

struct watcher {
    struct node_notifier nf;
    struct node *n;
    unsigned calls;
    uint64_t off[CALLS_MAX], len[CALLS_MAX];
    unsigned writes_seen[CALLS_MAX];  /* what the driver had been told by then */
    int result;
    unsigned yields;
    void (*during)(struct watcher *w);
    struct watcher *other;
};

static int co_watch(struct node_notifier *nf, uint64_t off, uint64_t len)
{
    struct watcher *w = container_of(nf, struct watcher, nf);
    struct mem *m = mem_of(w->n);

    if (w->calls < CALLS_MAX) {
        w->off[w->calls] = off;
        w->len[w->calls] = len;
        w->writes_seen[w->calls] = mem_count(m, MEM_WRITE) + mem_count(m, MEM_ZERO) +
                                   mem_count(m, MEM_DISCARD);
    }
    w->calls++;
    if (w->during)
        w->during(w);
    co_yield_times(w->yields);
    return w->result;
}

static void watch(struct watcher *w, struct node *n)
{
    *w = (struct watcher){ .nf.co_before_write = co_watch, .n = n };
    node_add_notifier(n, &w->nf);
}

static char buf[8192];

static void check_call(const struct watcher *w, unsigned i, uint64_t off, uint64_t len)
{
    assert_true(w->calls > i);
    assert_int_equal(w->off[i], off);
    assert_int_equal(w->len[i], len);
    assert_int_equal(w->writes_seen[i], i);
}

static void told_body(void)
{
    struct node *n = co_test_open("{'driver':'test-mem','size':10000,'request-align':4096,"
                                  "'discard':'unmap'}");
    struct watcher w;

    watch(&w, n);
    assert_int_equal(co_node_pwrite(n, 4096, 4096, buf, 0), 0);
    assert_int_equal(co_node_pwrite(n, 100, 10, buf, 0), 0);
    assert_int_equal(co_node_write_zeroes(n, 4000, 200, 0), 0);
    check_call(&w, 0, 4096, 4096);
    check_call(&w, 1, 0, 4096);
    check_call(&w, 2, 0, 8192);
    mem_clear_log(mem_of(n));
    w.calls = 0;
    assert_int_equal(co_node_discard(n, 1000, 9000), 0);
    check_call(&w, 0, 4096, 10000 - 4096);
    assert_int_equal(co_node_pwrite(n, 9999, 1, buf, 0), 0);
    check_call(&w, 1, 8192, 10000 - 8192);

    assert_int_equal(co_node_pwrite(n, 0, 4096, buf, REQ_WRITE_UNCHANGED), 0);
    assert_int_equal(co_node_write_zeroes(n, 0, 4096, REQ_WRITE_UNCHANGED), 0);
    assert_int_equal(co_node_pread(n, 0, 100, buf, 0), 0);
    assert_int_equal(co_node_pwrite(n, 0, 0, buf, 0), 0);
    assert_int_equal(co_node_pwrite(n, 10000, 1, buf, 0), -ENOSPC);
    assert_int_equal(w.calls, 2);

    w.result = -EIO;
    mem_clear_log(mem_of(n));
    assert_int_equal(co_node_pwrite(n, 0, 4096, buf, 0), -EIO);
    assert_int_equal(co_node_write_zeroes(n, 0, 4096, 0), -EIO);
    assert_int_equal(co_node_discard(n, 0, 4096), -EIO);
    assert_int_equal(mem_of(n)->n_log, 0);
    node_remove_notifier(n, &w.nf);
    assert_int_equal(co_node_pwrite(n, 0, 4096, buf, 0), 0);
    co_node_unref(n);

    n = co_test_open("{'driver':'test-mem','size':10000}");
    watch(&w, n);
    assert_int_equal(co_node_discard(n, 0, 4096), 0);
    assert_int_equal(w.calls, 0);
    node_remove_notifier(n, &w.nf);
    co_node_unref(n);
}

static void a_notifier_is_told_before_the_driver_what_it_will_touch(void **state)
{
    in_loop(told_body);
}

/* ---- coming and going ----------------------------------------------------------- */

static void remove_self(struct watcher *w)
{
    node_remove_notifier(w->n, &w->nf);
}

static void remove_other(struct watcher *w)
{
    node_remove_notifier(w->n, &w->other->nf);
}

static void add_other(struct watcher *w)
{
    watch(w->other, w->n);
    w->during = NULL;
}

static void changes_body(void)
{
    struct node *n = co_test_open("{'driver':'test-mem','size':8192}");
    struct watcher a, b, c;

    watch(&a, n);
    watch(&b, n);
    watch(&c, n);
    a.during = remove_self;
    assert_int_equal(co_node_pwrite(n, 0, 512, buf, 0), 0);
    assert_int_equal(a.calls, 1);
    assert_int_equal(b.calls, 1);
    assert_int_equal(c.calls, 1);
    b.during = remove_other;
    b.other = &c;
    assert_int_equal(co_node_pwrite(n, 0, 512, buf, 0), 0);
    assert_int_equal(a.calls, 1);
    assert_int_equal(b.calls, 2);
    assert_int_equal(c.calls, 1);
    b.during = add_other;
    b.other = &a;
    assert_int_equal(co_node_pwrite(n, 0, 512, buf, 0), 0);
    assert_int_equal(b.calls, 3);
    assert_int_equal(a.calls, 1);
    node_remove_notifier(n, &b.nf);
    node_remove_notifier(n, &a.nf);
    co_node_unref(n);
}

static void notifiers_come_and_go_inside_a_call(void **state)
{
    in_loop(changes_body);
}

static struct node *shared;

static void co_write_some(void *arg)
{
    for (int i = 0; i < 3; i++)
        assert_int_equal(co_node_pwrite(shared, 512, 512, buf, 0), 0);
}

/* Many requests are in the middle of the list while it changes under them. */
static void crowd_body(void)
{
    static struct watcher w[5];
    struct crew crew = { 0 };
    uint64_t seed = test_seed(99);

    shared = co_test_open("{'driver':'test-mem','size':8192}");
    for (int round = 0; round < 50; round++) {
        bool in[5] = { false };

        for (int i = 0; i < 10; i++)
            crew_start(&crew, co_write_some, NULL);
        for (int i = 0; i < 40; i++) {
            unsigned k = (unsigned)test_random(&seed, 5);

            if (in[k])
                node_remove_notifier(shared, &w[k].nf);
            else
                watch(&w[k], shared);
            in[k] = !in[k];
            w[k].yields = (unsigned)test_random(&seed, 4);
            co_yield();
        }
        for (unsigned k = 0; k < 5; k++) {
            if (in[k])
                node_remove_notifier(shared, &w[k].nf);
        }
        co_crew_wait(&crew);
    }
    assert_int_equal(mem_count(mem_of(shared), MEM_WRITE), 50 * 10 * 3);
    co_node_unref(shared);
}

static void notifiers_come_and_go_under_requests(void **state)
{
    in_loop(crowd_body);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_notifier_is_told_before_the_driver_what_it_will_touch),
        cmocka_unit_test(notifiers_come_and_go_inside_a_call),
        cmocka_unit_test(notifiers_come_and_go_under_requests),
    };

    memdrv_register();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
