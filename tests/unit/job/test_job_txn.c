/* SPDX-License-Identifier: Apache-2.0
 *
 * Jobs that end together, without work: what each is told, in what order, when all
 * end well, one fails, one is cancelled in whichever state, or is waited for; and
 * that it is the same when every job lives on a loop of its own.
 */
#include "co_test.h"
#include "base/strbuf.h"
#include "job/job_txn.h"

#define N 3

/* What was heard of all, on one loop: "a:running ...". */
static struct strbuf heard;

struct work {
    const char *id;
    struct job *job;
    struct loop *loop;
    struct strbuf *heard;          /* the common one, or .own */
    struct strbuf own;
    bool waits;                    /* auto-finalize=off */
    int ret;                       /* what it ends with once .end is set */
    bool end;
};

static void hear(void *arg, const char *what)
{
    struct work *w = arg;

    strbuf_addf(w->heard, "%s:%s ", w->id, what);
}

static void on_status(void *arg, struct job *job, enum job_status status)
{
    hear(arg, job_status_name(status));
}

static void on_pending(void *arg, struct job *job)
{
    hear(arg, "PENDING");
}

static void on_completed(void *arg, struct job *job)
{
    struct job_info info;

    job_query(job, &info);
    hear(arg, info.ret < 0 ? "FAILED" : "COMPLETED");
}

static void on_cancelled(void *arg, struct job *job)
{
    hear(arg, "CANCELLED");
}

static const struct job_events events = {
    .status_change = on_status,
    .pending = on_pending,
    .completed = on_completed,
    .cancelled = on_cancelled,
};

static int co_work(struct job *job, void *state, struct err *err)
{
    struct work *w = state;

    for (;;) {
        co_job_pause_point(job);
        if (job_is_cancelled(job))
            return -ECANCELED;
        if (w->end)
            return w->ret;
        co_job_wait(job, DEADLINE_NEVER);
    }
}

static const struct job_ops ops = { .type = "backup", .co_run = co_work };

/* ---- the group ------------------------------------------------------------------------- */

struct group {
    struct job_txn *txn;
    struct work w[N];
};

struct call {
    struct group *g;
    struct work *w;
};

static int make(void *arg)
{
    struct call *c = arg;

    c->w->job = job_new(&(struct job_opts){
        .id = c->w->id, .ops = &ops, .state = c->w, .auto_finalize = !c->w->waits,
        .auto_dismiss = true, .txn = c->g->txn, .events = &events, .events_arg = c->w,
    }, NULL);
    return 0;
}

static int start(void *arg)
{
    job_start(((struct call *)arg)->w->job);
    return 0;
}

static int end(void *arg)
{
    struct work *w = arg;

    w->end = true;
    job_kick(w->job);
    return 0;
}

static int wait_concluded(void *arg)
{
    return co_job_wait_concluded(((struct work *)arg)->job, DEADLINE_NEVER) ? 0 : -ETIMEDOUT;
}

static void on_each(struct group *g, int (*fn)(void *arg))
{
    for (int i = 0; i < N; i++) {
        struct call c = { g, &g->w[i] };

        assert_int_equal(co_loop_call(g->w[i].loop, fn, &c), 0);
    }
}

/* The jobs "a", "b", "c", those named in @waits with auto-finalize=off, all running. */
static void begin(struct group *g, const char *waits, struct loop *const loops[])
{
    static const char *const ids[N] = { "a", "b", "c" };

    *g = (struct group){ .txn = job_txn_new() };
    for (int i = 0; i < N; i++) {
        g->w[i] = (struct work){
            .id = ids[i], .loop = loops ? loops[i] : loop_current(),
            .heard = loops ? &g->w[i].own : &heard, .waits = strchr(waits, *ids[i]) != NULL,
        };
    }
    on_each(g, make);
    for (int i = 0; i < N; i++)
        job_txn_add(g->txn, g->w[i].job);
    job_txn_start(g->txn);
    on_each(g, start);
}

static void let_end(struct group *g, int i, int ret)
{
    g->w[i].ret = ret;
    co_loop_call(g->w[i].loop, end, &g->w[i]);
}

static void finish(struct group *g)
{
    for (int i = 0; i < N; i++) {
        assert_int_equal(co_loop_call(g->w[i].loop, wait_concluded, &g->w[i]), 0);
        assert_null(job_find(g->w[i].id));
        job_unref(g->w[i].job);
    }
    job_txn_unref(g->txn);
}

static void expect_heard(const char *text)
{
    CLEANUP(free) char *got = NULL;

    co_yield_times(20);
    got = strbuf_steal(&heard);
    assert_string_equal(got, text);
}

#define ALL_RUN "a:created a:running b:created b:running c:created c:running "
/* What one is told that has ended badly or was pending. */
#define ABORTED(id) id ":aborting " id ":CANCELLED " id ":concluded " id ":null "
#define GONE(id, how) id ":" how " " id ":concluded " id ":null "

/* ---- on one loop ------------------------------------------------------------------------- */

static void all_well_body(void)
{
    struct group g;

    begin(&g, "", NULL);
    let_end(&g, 1, 0);
    expect_heard(ALL_RUN "b:waiting ");
    let_end(&g, 2, 0);
    expect_heard("c:waiting ");
    let_end(&g, 0, 0);
    expect_heard("a:waiting c:pending b:pending a:pending "
                 GONE("c", "COMPLETED") GONE("b", "COMPLETED") GONE("a", "COMPLETED"));
    finish(&g);
}

static void they_complete_when_all_are_ready(void **state)
{
    in_loop(all_well_body);
}

static void finalize_body(void)
{
    struct err err = ERR_INIT;
    struct group g;

    begin(&g, "b", NULL);
    for (int i = 0; i < N; i++)
        let_end(&g, i, 0);
    expect_heard(ALL_RUN "a:waiting b:waiting c:waiting c:pending b:pending b:PENDING a:pending ");
    assert_false(job_dismiss(g.w[0].job, &err));
    /* Any of them will do, also one that would not have asked. */
    assert_true(job_finalize(g.w[0].job, &err));
    expect_heard(GONE("c", "COMPLETED") GONE("b", "COMPLETED") GONE("a", "COMPLETED"));
    finish(&g);
}

static void one_that_waits_for_the_user_has_all_wait(void **state)
{
    in_loop(finalize_body);
}

static void failure_body(void)
{
    struct group g;

    begin(&g, "c", NULL);
    let_end(&g, 0, 0);
    expect_heard(ALL_RUN "a:waiting ");
    let_end(&g, 1, -EIO);
    expect_heard("b:aborting c:aborting " GONE("c", "CANCELLED") GONE("b", "FAILED")
                 ABORTED("a"));
    finish(&g);
}

static void one_that_fails_has_all_others_cancelled(void **state)
{
    in_loop(failure_body);
}

static void cancel_body(void)
{
    struct err err = ERR_INIT;
    struct group g;

    begin(&g, "", NULL);
    assert_true(job_user_pause(g.w[2].job, &err));
    expect_heard(ALL_RUN "c:paused ");
    assert_true(job_cancel(g.w[0].job, false, &err));
    expect_heard("a:aborting c:running c:aborting b:aborting " GONE("c", "CANCELLED")
                 GONE("b", "CANCELLED") GONE("a", "CANCELLED"));
    finish(&g);

    /* One that is done and waits for the others. */
    begin(&g, "", NULL);
    let_end(&g, 0, 0);
    expect_heard(ALL_RUN "a:waiting ");
    assert_true(job_cancel(g.w[0].job, false, &err));
    expect_heard("c:aborting b:aborting " GONE("c", "CANCELLED") GONE("b", "CANCELLED")
                 ABORTED("a"));
    finish(&g);

    /* All are done, and the user has not said yet that it is final. */
    begin(&g, "a", NULL);
    for (int i = 0; i < N; i++)
        let_end(&g, i, 0);
    expect_heard(ALL_RUN "a:waiting b:waiting c:waiting c:pending b:pending a:pending a:PENDING ");
    assert_true(job_cancel(g.w[1].job, false, &err));
    expect_heard(ABORTED("c") ABORTED("b") ABORTED("a"));
    finish(&g);
}

static void one_that_is_cancelled_has_all_others_cancelled(void **state)
{
    in_loop(cancel_body);
}

static void late_body(void)
{
    struct err err = ERR_INIT;
    struct group g;

    begin(&g, "a", NULL);
    for (int i = 0; i < N; i++)
        let_end(&g, i, 0);
    expect_heard(ALL_RUN "a:waiting b:waiting c:waiting c:pending b:pending a:pending a:PENDING ");
    assert_true(job_finalize(g.w[2].job, &err));
    assert_true(job_finalize(g.w[1].job, &err));
    assert_true(job_cancel(g.w[0].job, true, &err));
    /* The first word of the two that contradict each other counts for all, or none. */
    co_yield_times(20);
    {
        CLEANUP(free) char *got = strbuf_steal(&heard);

        assert_true(!strstr(got, "CANCELLED") || !strstr(got, "COMPLETED"));
    }
    finish(&g);
}

static void finalize_and_cancel_at_once_do_not_split_them(void **state)
{
    in_loop(late_body);
}

static void dropped_body(void)
{
    struct group g = { .txn = job_txn_new(), .w = { { .id = "a", .heard = &heard } } };
    struct call c = { &g, &g.w[0] };

    make(&c);
    assert_non_null(job_find("a"));
    job_unref(g.w[0].job);
    job_drop(g.w[0].job);
    assert_null(job_find("a"));
    job_txn_unref(g.txn);
    expect_heard("");
}

static void a_group_that_never_starts_leaves_nothing(void **state)
{
    in_loop(dropped_body);
}

/* ---- each on a loop of its own -------------------------------------------------------------- */

static void expect_own(struct group *g, int i, const char *text)
{
    CLEANUP(free) char *got = strbuf_steal(&g->w[i].own);

    assert_string_equal(got, text);
}

static void loops_body(void)
{
    struct loop *loops[N] = { test_loop_spawn("one"), test_loop_spawn("two"),
                              test_loop_spawn("three") };
    struct group g;

    begin(&g, "", loops);
    for (int i = 0; i < N; i++)
        let_end(&g, i, 0);
    finish(&g);
    expect_own(&g, 0, "a:created a:running a:waiting a:pending " GONE("a", "COMPLETED"));
    expect_own(&g, 1, "b:created b:running b:waiting b:pending " GONE("b", "COMPLETED"));
    expect_own(&g, 2, "c:created c:running c:waiting c:pending " GONE("c", "COMPLETED"));

    begin(&g, "", loops);
    let_end(&g, 1, -EIO);
    finish(&g);
    expect_own(&g, 0, "a:created a:running " ABORTED("a"));
    expect_own(&g, 1, "b:created b:running b:aborting " GONE("b", "FAILED"));
    strbuf_done(&g.w[2].own);

    begin(&g, "abc", loops);
    let_end(&g, 0, 0);
    assert_true(co_job_cancel_all(loop_now() + 30 * NSEC_PER_SEC));
    finish(&g);
    for (int i = 0; i < N; i++) {
        assert_non_null(strstr(strbuf_text(&g.w[i].own), "CANCELLED"));
        strbuf_done(&g.w[i].own);
        test_loop_end(loops[i]);
    }
}

static void they_may_live_on_several_loops(void **state)
{
    in_loop(loops_body);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(they_complete_when_all_are_ready),
        cmocka_unit_test(one_that_waits_for_the_user_has_all_wait),
        cmocka_unit_test(one_that_fails_has_all_others_cancelled),
        cmocka_unit_test(one_that_is_cancelled_has_all_others_cancelled),
        cmocka_unit_test(finalize_and_cancel_at_once_do_not_split_them),
        cmocka_unit_test(a_group_that_never_starts_leaves_nothing),
        cmocka_unit_test(they_may_live_on_several_loops),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
