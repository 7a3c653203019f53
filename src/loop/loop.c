/* SPDX-License-Identifier: Apache-2.0
 *
 * The loop itself: one turn after another until it is told to stop.
 *
 *   turn:  inbox -> due timers -> coroutines and deferred calls -> engine
 *
 * The engine's part is where the thread sleeps, and where what the coroutines
 * have submitted goes to the kernel, all at once. The inbox is the only door
 * from other threads. docs/threading.md has the whole picture.
 */
#include "loop/loop.h"
#include "base/mem.h"
#include "loop/engine.h"
#include "loop/workers.h"
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

/* How often coroutines that wake each other may run before the loop looks at
 * its engine again. Several passes save system calls, as a request commonly hops
 * from the reader's coroutine to its own and then to the writer's; few keep I/O
 * moving however long the ready list stays full. */
#define TURN_PASSES 4

/* loop_free waits so long for what hangs; see there. */
#define QUIESCE_NS (2 * NSEC_PER_SEC)

static _Thread_local struct loop *current_loop;

struct loop *loop_current(void)
{
    return current_loop;
}

const char *loop_engine_name(const struct loop *loop)
{
    return loop->engine->ops->name;
}

uint64_t loop_now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * NSEC_PER_SEC + (uint64_t)ts.tv_nsec;
}

/* --- Making and freeing --- */

static struct engine *engine_new(struct loop *loop, enum loop_engine kind, struct err *err)
{
    if (kind == LOOP_ENGINE_POOL)
        return engine_pool_new(loop, err);

    struct engine *e = engine_uring_new(loop, err);

    if (!e && kind == LOOP_ENGINE_AUTO)
        e = engine_pool_new(loop, err);
    return e;
}

struct loop *loop_new(enum loop_engine engine, const char *name, struct err *err)
{
    struct loop *loop = xnew(struct loop);

    snprintf(loop->name, sizeof(loop->name), "%s", name);
    list_init(&loop->ready);
    list_init(&loop->yielded);
    list_init(&loop->coroutines);
    list_init(&loop->idle_stacks);
    list_init(&loop->defers);
    loop->wake_fd = eventfd(0, EFD_CLOEXEC);
    if (loop->wake_fd < 0) {
        err_errno(err, -errno, "Cannot make an eventfd for loop '%s'", name);
        free(loop);
        return NULL;
    }
    loop->engine = engine_new(loop, engine, err);
    if (!loop->engine) {
        close(loop->wake_fd);
        free(loop);
        return NULL;
    }
    loop->workers = workers_new(loop);
    return loop;
}

/* See everything to its end that the kernel or a worker does for coroutines of
 * ours. In the loop's thread, as io_uring serves no other. */
static void quiesce(struct loop *loop)
{
    uint64_t deadline = loop_now() + QUIESCE_NS;
    struct loop *outer = current_loop;

    current_loop = loop;
    assert(!loop->ran || pthread_equal(loop->thread, pthread_self()));
    bool engine = !loop->ran || loop->engine->ops->quiesce(loop->engine, deadline);
    bool workers = workers_stop(loop->workers, deadline);
    loop->end = engine && workers ? LOOP_QUIET : LOOP_STUCK;
    current_loop = outer;
}

/* A post: a message with memory of its own. */
struct post {
    struct loop_msg msg;
    void (*fn)(void *arg);
    void *arg;
};

static void post_run(struct loop_msg *msg)
{
    struct post *p = container_of(msg, struct post, msg);
    void (*fn)(void *arg) = p->fn;
    void *arg = p->arg;

    free(p);
    fn(arg);
}

void loop_free(struct loop *loop)
{
    if (!loop)
        return;
    assert(!loop->running && !loop->spawned);
    /* Somebody whose message has run already may not have left loop_post yet. */
    while (atomic_load(&loop->visitors))
        sched_yield();
    if (loop->end == LOOP_LIVE)
        quiesce(loop);
    if (loop->end == LOOP_STUCK) {
        /* A hung file system or device still has pointers into stacks of ours: what
         * it may write to is kept for ever rather than given to somebody else. */
        return;
    }
    loop->engine->ops->free(loop->engine);
    workers_free(loop->workers);
    for (struct loop_msg *msg = atomic_load(&loop->inbox), *next; msg; msg = next) {
        next = msg->next;
        if (msg->fn == post_run)
            free(container_of(msg, struct post, msg));
    }
    co_drop_all(loop);
    timers_done(&loop->timers);
    close(loop->wake_fd);
    free(loop);
}

/* --- The inbox --- */

/* End the loop's sleep, if it sleeps. The exchange makes one writer of many.
 *
 * No wake-up is lost: the poster changes the inbox and then looks at @sleeping;
 * the loop sets @sleeping and then looks at the inbox. All four are sequentially
 * consistent, so at least one of the two sees the other. */
static void wake_up(struct loop *loop)
{
    uint64_t one = 1;

    if (atomic_load(&loop->sleeping) && atomic_exchange(&loop->sleeping, false)) {
        ssize_t n = write(loop->wake_fd, &one, sizeof(one));
        assert(n == sizeof(one));
    }
}

void loop_post_msg(struct loop *loop, struct loop_msg *msg)
{
    struct loop_msg *head = atomic_load_explicit(&loop->inbox, memory_order_relaxed);

    /* The message may end the loop, while we are still here. */
    atomic_fetch_add(&loop->visitors, 1);
    do {
        msg->next = head;
    } while (!atomic_compare_exchange_weak(&loop->inbox, &head, msg));
    wake_up(loop);
    atomic_fetch_sub(&loop->visitors, 1);
}

void loop_post(struct loop *loop, void (*fn)(void *arg), void *arg)
{
    struct post *p = xnew(struct post);

    *p = (struct post){ .msg.fn = post_run, .fn = fn, .arg = arg };
    loop_post_msg(loop, &p->msg);
}

static void run_inbox(struct loop *loop)
{
    if (!atomic_load_explicit(&loop->inbox, memory_order_relaxed))
        return;

    struct loop_msg *newest = atomic_exchange(&loop->inbox, NULL), *oldest = NULL;

    while (newest) {
        struct loop_msg *next = newest->next;

        newest->next = oldest;
        oldest = newest;
        newest = next;
    }
    while (oldest) {
        struct loop_msg *msg = oldest;

        oldest = msg->next;
        msg->fn(msg);
    }
}

void loop_stop(struct loop *loop)
{
    atomic_fetch_add(&loop->visitors, 1);
    atomic_store(&loop->stop, true);
    wake_up(loop);
    atomic_fetch_sub(&loop->visitors, 1);
}

/* --- Deferred calls --- */

void loop_defer_init(struct loop_defer *d, void (*fn)(void *arg), void *arg)
{
    list_init(&d->link);
    d->fn = fn;
    d->arg = arg;
}

void loop_defer(struct loop_defer *d)
{
    assert(current_loop);
    if (list_empty(&d->link))
        list_push_tail(&current_loop->defers, &d->link);
}

void loop_defer_cancel(struct loop_defer *d)
{
    list_del(&d->link);
}

static void run_defers(struct loop *loop)
{
    struct list now = LIST_INIT(now);
    struct loop_defer *d;

    /* One that is asked for again meanwhile comes after the coroutines again. */
    list_splice_tail(&now, &loop->defers);
    while ((d = list_pop_head(&now, struct loop_defer, link)))
        d->fn(d->arg);
}

/* --- Turns --- */

static void run_coroutines(struct loop *loop)
{
    list_splice_tail(&loop->ready, &loop->yielded);
    for (int pass = 0; pass < TURN_PASSES; pass++) {
        struct list now = LIST_INIT(now);
        struct co *co;

        if (list_empty(&loop->ready))
            run_defers(loop);
        if (list_empty(&loop->ready))
            return;
        list_splice_tail(&now, &loop->ready);
        while ((co = list_pop_head(&now, struct co, link)))
            co_run(loop, co);
    }
    run_defers(loop);
}

static bool anything_to_do(struct loop *loop)
{
    return !list_empty(&loop->ready) || !list_empty(&loop->yielded) ||
           !list_empty(&loop->defers) || atomic_load(&loop->inbox) || atomic_load(&loop->stop);
}

/* --- Polling before sleep ---
 *
 * A thread that sleeps is woken tens of microseconds late, most of all when its
 * CPU went idle; a guest that sends one request after another pays that for each.
 * So before it sleeps the loop looks for POLL_NS whether something comes, as long
 * as that is worth it: a wait that polling ends is a hit, one that outlasts it a
 * miss, and a miss costs as much as MISS_COST hits bring. A loop that gains
 * nothing any more goes to sleep at once for @pause waits and then tries again,
 * with longer and longer pauses. That covers the guest with few requests, and
 * the one that cannot answer because we have the CPU that it needs. */

#define POLL_NS (64 * NSEC_PER_USEC)
#define MISS_COST 4
#define SCORE_MAX 32
#define PAUSE_MIN 32U
#define PAUSE_MAX 1024U

static void learn_from_poll(struct polling *p, bool hit)
{
    p->score = hit ? MIN(p->score + 1, SCORE_MAX) : p->score - MISS_COST;
    if (p->score == SCORE_MAX)
        p->pause = 0;
    if (p->score < 0) {
        p->score = 0;
        p->pause = MIN(MAX(p->pause * 2, PAUSE_MIN), PAUSE_MAX);
        p->skip = p->pause;
    }
}

static bool may_poll(struct loop *loop)
{
    if (loop->polling.skip) {
        loop->polling.skip--;
        return false;
    }
    /* When the sleep is short anyway, it says nothing about polling. */
    return timers_next(&loop->timers) > loop_now() + POLL_NS;
}

/* Whether something to do came while we looked for it. */
static bool poll_for_work(struct loop *loop)
{
    struct engine *e = loop->engine;
    uint64_t end = loop_now() + POLL_NS;
    bool hit;

    do {
        cpu_relax();
        hit = e->ops->has_work(e) || anything_to_do(loop);
    } while (!hit && loop_now() < end);
    learn_from_poll(&loop->polling, hit);
    return hit;
}

/* Whether it had to wait for something to do. */
static bool run_engine(struct loop *loop)
{
    struct engine *e = loop->engine;

    if (anything_to_do(loop)) {
        e->ops->turn(e, 0);
        return false;
    }
    if (may_poll(loop)) {
        /* What was submitted is to be on its way. */
        e->ops->turn(e, 0);
        if (anything_to_do(loop))
            return false;
        if (poll_for_work(loop)) {
            e->ops->turn(e, 0);
            return true;
        }
    }
    atomic_store(&loop->sleeping, true);
    /* Looked at again: see wake_up. */
    e->ops->turn(e, anything_to_do(loop) ? 0 : MAX(timers_next(&loop->timers), (uint64_t)1));
    atomic_store_explicit(&loop->sleeping, false, memory_order_relaxed);
    return true;
}

/* --- Timing turns --- */

void loop_time_turns(bool on)
{
    struct loop *loop = current_loop;

    if (on && loop->turns_timed++ == 0) {
        loop->turn_began = loop->turn_came = loop_now();
        cpu_wait_open(loop);
    }
    if (!on && --loop->turns_timed == 0)
        cpu_wait_close(loop);
}

uint64_t loop_turn_came(void)
{
    assert(current_loop->turns_timed);
    return current_loop->turn_came;
}

/* What ends a wait has not waited itself. */
static void run_engine_timed(struct loop *loop)
{
    uint64_t busy = loop_now() - loop->turn_began;
    bool waited = run_engine(loop);

    loop->turn_began = loop_now();
    loop->turn_came = loop->turn_began - (waited ? 0 : busy / 2);
}

void loop_run(struct loop *loop)
{
    assert(!current_loop && !loop->running);
    assert(!loop->ran || pthread_equal(loop->thread, pthread_self()));
    current_loop = loop;
    loop->thread = pthread_self();
    loop->running = loop->ran = true;
    loop->engine->ops->start(loop->engine);
    for (;;) {
        /* Looked at before the inbox: what was posted before loop_stop is still done. */
        bool stop = atomic_load(&loop->stop);

        run_inbox(loop);
        timers_run(&loop->timers);
        run_coroutines(loop);
        if (stop)
            break;
        if (UNLIKELY(loop->turns_timed))
            run_engine_timed(loop);
        else
            run_engine(loop);
    }
    atomic_store(&loop->stop, false);
    loop->running = false;
    current_loop = NULL;
}

static void *loop_main(void *arg)
{
    struct loop *loop = arg;

    loop_run(loop);
    quiesce(loop);
    return NULL;
}

bool loop_spawn(struct loop *loop, struct err *err)
{
    sigset_t all, old;

    assert(!loop->spawned && !loop->ran);
    /* Signals are for the main thread. */
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &old);
    int r = pthread_create(&loop->spawned_thread, NULL, loop_main, loop);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (r)
        return err_errno(err, -r, "Cannot start a thread for loop '%s'", loop->name);
    pthread_setname_np(loop->spawned_thread, loop->name);
    loop->spawned = true;
    return true;
}

void loop_join(struct loop *loop)
{
    assert(loop->spawned);
    pthread_join(loop->spawned_thread, NULL);
    loop->spawned = false;
}

/* --- Calls across loops --- */

struct call {
    struct loop_msg msg;
    int (*fn)(void *arg);
    void *arg;
    int result;
    struct loop *from;
    struct co *caller;
};

static void call_returned(struct loop_msg *msg)
{
    co_wake(container_of(msg, struct call, msg)->caller);
}

static void co_call(void *arg)
{
    struct call *call = arg;

    call->result = call->fn(call->arg);
    call->msg.fn = call_returned;
    loop_post_msg(call->from, &call->msg);
}

static void call_arrived(struct loop_msg *msg)
{
    co_start(co_call, container_of(msg, struct call, msg));
}

int co_loop_call(struct loop *loop, int (*fn)(void *arg), void *arg)
{
    assert(co_self());
    if (loop == current_loop)
        return fn(arg);

    struct call call = {
        .msg.fn = call_arrived,
        .fn = fn,
        .arg = arg,
        .from = current_loop,
        .caller = co_self(),
    };

    loop_post_msg(loop, &call.msg);
    co_suspend();
    return call.result;
}
