/* SPDX-License-Identifier: Apache-2.0
 *
 * What co_test.h declares.
 */
#include "co_test.h"
#include "base/mem.h"
#include <stdio.h>

static enum loop_engine engine = LOOP_ENGINE_AUTO;

bool test_use_engine(const char *name)
{
    engine = strcmp(name, "pool") == 0 ? LOOP_ENGINE_POOL : LOOP_ENGINE_URING;

    struct loop *loop = loop_new(engine, "probe", NULL);

    loop_free(loop);
    return loop != NULL;
}

static struct loop *new_loop(const char *name)
{
    struct err err = ERR_INIT;
    struct loop *loop = loop_new(engine, name, &err);

    if (!loop)
        fail_msg("%s", err.text);
    return loop;
}

static void body(void *arg)
{
    void (**fn)(void) = arg;

    (*fn)();
    loop_stop(loop_current());
}

static void start_body(void *arg)
{
    co_start(body, arg);
}

void in_loop(void (*fn)(void))
{
    struct loop *loop = new_loop("test");

    loop_post(loop, start_body, &fn);
    loop_run(loop);
    loop_free(loop);
    assert_int_equal(test_node_count(), 0);
}

struct loop *test_loop_spawn(const char *name)
{
    struct loop *loop = new_loop(name);
    struct err err = ERR_INIT;

    if (!loop_spawn(loop, &err))
        fail_msg("%s", err.text);
    return loop;
}

void test_loop_end(struct loop *loop)
{
    loop_stop(loop);
    loop_join(loop);
    loop_free(loop);
}

struct work {
    struct crew *crew;
    void (*fn)(void *arg);
    void *arg;
};

static void co_work(void *arg)
{
    struct work w = *(struct work *)arg;

    free(arg);
    w.fn(w.arg);
    if (--w.crew->working == 0 && w.crew->waiter)
        co_wake(MOVE(w.crew->waiter));
}

void crew_start(struct crew *c, void (*fn)(void *arg), void *arg)
{
    struct work *w = xnew(struct work);

    *w = (struct work){ c, fn, arg };
    c->working++;
    co_start(co_work, w);
}

void co_crew_wait(struct crew *c)
{
    if (!c->working)
        return;
    c->waiter = co_self();
    co_suspend();
}

void co_yield_times(unsigned n)
{
    while (n--)
        co_yield();
}

/* splitmix64 */
uint64_t test_random(uint64_t *seed, uint64_t n)
{
    uint64_t z = (*seed += 0x9e3779b97f4a7c15ULL);

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return (z ^ (z >> 31)) % n;
}

uint64_t test_seed(uint64_t fallback)
{
    const char *text = getenv("STILLPOINT_SEED");
    uint64_t seed = text ? strtoull(text, NULL, 0) : fallback;

    print_message("STILLPOINT_SEED=%ju\n", (uintmax_t)seed);
    return seed;
}

void test_tally(size_t n, const char *what)
{
    print_message("tally %zu %s\n", n, what);
    fflush(stdout);
}

static json_t *parse(const char *fmt, va_list ap)
{
    CLEANUP(free) char *text = xvasprintf(fmt, ap);
    struct err err = ERR_INIT;

    for (char *p = text; *p; p++) {
        if (*p == '\'')
            *p = '"';
    }
    json_t *json = schema_parse_json(text, strlen(text), &err);

    if (!json)
        fail_msg("%s: %s", text, err.text);
    return json;
}

json_t *test_json(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    json_t *json = parse(fmt, ap);
    va_end(ap);
    return json;
}

struct node *co_test_open(const char *fmt, ...)
{
    struct err err = ERR_INIT;
    va_list ap;

    va_start(ap, fmt);
    json_t *json = parse(fmt, ap);
    va_end(ap);

    struct node *n = co_node_open(json, false, &err);

    json_decref(json);
    if (!n)
        fail_msg("%s", err.text);
    return n;
}

void co_test_open_fails(struct err *err, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    json_t *json = parse(fmt, ap);
    va_end(ap);
    *err = (struct err)ERR_INIT;
    assert_null(co_node_open(json, false, err));
    assert_true(err->code < 0);
    json_decref(json);
}

static void count(struct node *n, void *arg)
{
    ++*(unsigned *)arg;
}

unsigned test_node_count(void)
{
    unsigned n = 0;

    node_for_each(count, &n);
    return n;
}
