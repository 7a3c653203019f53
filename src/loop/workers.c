/* SPDX-License-Identifier: Apache-2.0
 *
 * The worker pool; its behaviour is described in workers.h. One lock guards one
 * queue; results go back through the loop's inbox.
 */
#include "loop/workers.h"
#include "base/mem.h"
#include <signal.h>
#include <unistd.h>

#define IDLE_NS (10 * NSEC_PER_SEC)

struct workers {
    struct loop *loop;
    unsigned base_threads;

    /* The loop's thread only. */
    struct loop_timer watch;      /* runs while jobs wait */
    uint64_t watched_progress;    /* what progress was when it was armed */

    pthread_mutex_t lock;         /* guards the rest */
    pthread_cond_t work;          /* there is a job, or stopping */
    pthread_cond_t gone;          /* n_threads became 0 */
    struct list queue, bulk;      /* of struct worker_job */
    unsigned n_queued, n_bulk;    /* their lengths */
    unsigned bulk_running;
    unsigned n_threads, n_idle;
    uint64_t progress;            /* how many jobs have begun or ended */
    bool stopping;
};

static struct timespec to_timespec(uint64_t ns)
{
    return (struct timespec){ .tv_sec = (time_t)(ns / NSEC_PER_SEC),
                              .tv_nsec = (long)(ns % NSEC_PER_SEC) };
}

static void job_done(struct loop_msg *msg)
{
    struct worker_job *job = container_of(msg, struct worker_job, msg);

    job->done(job);
}

/* How many of the jobs that wait may begin. */
static unsigned n_ready(const struct workers *w)
{
    unsigned most = MAX(w->base_threads, w->n_threads) / 2;

    return w->n_queued + MIN(w->n_bulk, most > w->bulk_running ? most - w->bulk_running : 0);
}

static struct worker_job *take_job(struct workers *w)
{
    struct worker_job *job = list_pop_head(&w->queue, struct worker_job, link);

    if (job) {
        w->n_queued--;
        return job;
    }
    w->n_bulk--;
    w->bulk_running++;
    return list_pop_head(&w->bulk, struct worker_job, link);
}

/* The next job, waiting for one; NULL when the thread should end. */
static struct worker_job *next_job(struct workers *w)
{
    struct timespec until = to_timespec(loop_now() + IDLE_NS);
    bool timed_out = false;

    while (!n_ready(w)) {
        if (w->stopping || timed_out)
            return NULL;
        w->n_idle++;
        timed_out = pthread_cond_timedwait(&w->work, &w->lock, &until) == ETIMEDOUT;
        w->n_idle--;
    }

    struct worker_job *job = take_job(w);

    /* One that had to wait for another's end was not told of. */
    if (n_ready(w) && w->n_idle)
        pthread_cond_signal(&w->work);
    return job;
}

static void *worker_main(void *arg)
{
    struct workers *w = arg;
    struct worker_job *job;

    pthread_mutex_lock(&w->lock);
    while ((job = next_job(w))) {
        bool bulk = job->bulk;

        w->progress++;
        pthread_mutex_unlock(&w->lock);
        job->run(job);
        /* From here on the job may be gone. */
        loop_post_msg(w->loop, &job->msg);
        pthread_mutex_lock(&w->lock);
        w->progress++;
        w->bulk_running -= bulk;
    }
    if (--w->n_threads == 0)
        pthread_cond_broadcast(&w->gone);
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

/* With the lock held. False when the system gives no thread. */
static bool start_thread(struct workers *w)
{
    pthread_attr_t attr;
    sigset_t all, old;
    pthread_t thread;

    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    /* Signals are for the main thread. */
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &old);
    int r = pthread_create(&thread, &attr, worker_main, w);
    if (r == 0) {
        w->n_threads++;
        pthread_setname_np(thread, "worker");
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    return r == 0;
}

/* The watch: jobs waited for 100 ms; did anything move meanwhile? */
static void watch_fired(void *arg)
{
    struct workers *w = arg;

    pthread_mutex_lock(&w->lock);
    unsigned more = 0;
    if (w->progress == w->watched_progress)
        more = MIN(w->n_queued + w->n_bulk, w->n_threads);
    more = MIN(more, WORKERS_MAX - w->n_threads);
    while (more-- && start_thread(w))
        ;
    if (w->n_queued + w->n_bulk) {
        w->watched_progress = w->progress;
        loop_timer_arm(&w->watch, loop_now() + WORKERS_STUCK_NS);
    }
    pthread_mutex_unlock(&w->lock);
}

struct workers *workers_new(struct loop *loop)
{
    struct workers *w = xnew(struct workers);
    long wish = 2 * sysconf(_SC_NPROCESSORS_ONLN);
    pthread_condattr_t attr;

    w->loop = loop;
    w->base_threads = wish < 4 ? 4 : wish > 16 ? 16 : (unsigned)wish;
    loop_timer_init(&w->watch, watch_fired, w);
    pthread_mutex_init(&w->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&w->work, &attr);
    pthread_cond_init(&w->gone, &attr);
    pthread_condattr_destroy(&attr);
    list_init(&w->queue);
    list_init(&w->bulk);
    return w;
}

void workers_submit(struct workers *w, struct worker_job *job)
{
    job->pool = w;
    job->msg.fn = job_done;
    pthread_mutex_lock(&w->lock);
    list_push_tail(job->bulk ? &w->bulk : &w->queue, &job->link);
    *(job->bulk ? &w->n_bulk : &w->n_queued) += 1;
    /* Threads that were signalled count as idle until they have woken: so compare. */
    if (n_ready(w) > w->n_idle && w->n_threads < w->base_threads)
        start_thread(w);
    bool alone = w->n_threads == 0;
    if (alone) {
        list_del(&job->link);
        *(job->bulk ? &w->n_bulk : &w->n_queued) -= 1;
    }
    bool waits = w->n_queued + w->n_bulk > w->n_idle;
    uint64_t progress = w->progress;
    if (w->n_idle)
        pthread_cond_signal(&w->work);
    pthread_mutex_unlock(&w->lock);

    if (alone) {
        /* Not one thread to be had: better slow than stuck. */
        job->run(job);
        loop_post_msg(w->loop, &job->msg);
    } else if (waits && !w->watch.slot) {
        w->watched_progress = progress;
        loop_timer_arm(&w->watch, loop_now() + WORKERS_STUCK_NS);
    }
}

bool workers_stop(struct workers *w, uint64_t deadline)
{
    struct timespec until = to_timespec(deadline);
    int r = 0;

    pthread_mutex_lock(&w->lock);
    w->stopping = true;
    list_init(&w->queue);
    list_init(&w->bulk);
    w->n_queued = w->n_bulk = 0;
    pthread_cond_broadcast(&w->work);
    while (w->n_threads && r != ETIMEDOUT)
        r = pthread_cond_timedwait(&w->gone, &w->lock, &until);
    bool all_ended = w->n_threads == 0;
    pthread_mutex_unlock(&w->lock);
    return all_ended;
}

void workers_free(struct workers *w)
{
    if (!w)
        return;
    assert(w->n_threads == 0);
    pthread_mutex_destroy(&w->lock);
    pthread_cond_destroy(&w->work);
    pthread_cond_destroy(&w->gone);
    free(w);
}
