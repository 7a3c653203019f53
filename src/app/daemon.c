/* SPDX-License-Identifier: Apache-2.0
 *
 * The main loop's life: come up, be set up, run until somebody wants the end,
 * end. Signals arrive through a signalfd as anything else does.
 */
#include "app/daemon.h"
#include "app/chardev.h"
#include "app/notify.h"
#include "base/log.h"
#include "base/mem.h"
#include "drivers/drivers.h"
#include "loop/co_io.h"
#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

struct daemon {
    const struct daemon_opts *opts;
    struct loop *loop;
    struct placement *placement;
    struct qmp *qmp;
    struct chardevs *chardevs;

    struct nbd_server **servers;     /* daemon_add_server */
    size_t n_servers;

    int signal_fd;                   /* -1: signals are not ours */
    struct co_poll signal_poll;

    struct waitq changed;            /* of what follows */
    bool set_up, setup_failed;
    bool ending;
    enum qmp_shutdown_cause cause;
    bool signals_closed;

    bool clean;                      /* nothing was left behind */
    struct err *err;
};

/* See daemon_left_behind. Process-wide, as the process's end is. */
static bool left_behind;

/* Connections of servers that are not QMP's. */
#define SERVER_GRACE_NS (2 * NSEC_PER_SEC)

static void end(struct daemon *d, enum qmp_shutdown_cause cause)
{
    if (!d->ending) {
        d->ending = true;
        d->cause = cause;
    }
    waitq_wake_all(&d->changed);
}

void daemon_quit(struct daemon *d)
{
    end(d, QMP_SHUTDOWN_QUIT);
}

struct qmp *daemon_qmp(struct daemon *d)
{
    return d->qmp;
}

struct chardevs *daemon_chardevs(struct daemon *d)
{
    return d->chardevs;
}

void daemon_add_server(struct daemon *d, struct nbd_server *s)
{
    d->servers = xrealloc(d->servers, (d->n_servers + 1) * sizeof(*d->servers));
    d->servers[d->n_servers++] = s;
}

static void on_quit(void *arg)
{
    daemon_quit(arg);
}

/* ---- monitors ------------------------------------------------------------------------ */

bool daemon_monitor_listen(struct daemon *d, const char *path, struct err *err)
{
    return co_chardev_listen(d->chardevs, path, err);
}

void daemon_monitor_fd(struct daemon *d, int fd, bool quit_at_end)
{
    struct qmp_monitor_opts o = {
        .fd = fd,
        .on_closed = quit_at_end ? on_quit : NULL,
        .arg = d,
    };

    qmp_monitor_start(d->qmp, &o);
}

/* ---- signals --------------------------------------------------------------------------- */

static void end_signals(sigset_t *set)
{
    sigemptyset(set);
    sigaddset(set, SIGINT);
    sigaddset(set, SIGTERM);
    sigaddset(set, SIGHUP);
}

/* Before there are other threads: they inherit the mask. */
static bool catch_signals(struct daemon *d, struct err *err)
{
    sigset_t set;

    signal(SIGPIPE, SIG_IGN);
    d->signal_fd = -1;
    if (d->opts->ignore_signals)
        return true;
    end_signals(&set);
    sigprocmask(SIG_BLOCK, &set, NULL);
    d->signal_fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    return d->signal_fd >= 0 || err_errno(err, -errno, "Cannot receive signals");
}

/* The first signal asks for the end, a second one does not wait for it. */
static void take_signal(struct daemon *d)
{
    struct signalfd_siginfo info;

    if (read(d->signal_fd, &info, sizeof(info)) != (ssize_t)sizeof(info))
        return;
    if (d->ending) {
        log_warn("%s again: ending at once", strsignal((int)info.ssi_signo));
        _exit(1);
    }
    end(d, QMP_SHUTDOWN_SIGNAL);
}

static void co_signals(void *arg)
{
    struct daemon *d = arg;

    while (co_poll(&d->signal_poll, d->signal_fd, POLLIN, DEADLINE_NEVER) > 0)
        take_signal(d);
    d->signals_closed = true;
    waitq_wake_all(&d->changed);
}

static void co_stop_signals(struct daemon *d)
{
    if (d->signal_fd < 0)
        return;
    co_poll_wake(&d->signal_poll);
    while (!d->signals_closed)
        co_waitq_wait(&d->changed);
    close(d->signal_fd);
}

/* ---- life ----------------------------------------------------------------------------- */

static void co_set_up(void *arg)
{
    struct daemon *d = arg;

    bool ok = !d->opts->co_setup || d->opts->co_setup(d, d->opts->setup_arg, d->err);

    /* What fails because the end was asked for is no failure. */
    d->setup_failed = !ok && !d->ending;
    d->set_up = true;
    if (ok && !d->opts->ignore_signals)
        notify_ready();
    waitq_wake_all(&d->changed);
}

static bool co_shut_down(struct daemon *d)
{
    chardevs_stop(d->chardevs);
    for (size_t i = 0; i < d->n_servers; i++)
        co_nbd_server_stop(d->servers[i], loop_now() + SERVER_GRACE_NS);

    bool ok = co_qmp_shutdown(d->qmp, d->cause);

    return co_chardevs_close(d->chardevs, loop_now() + SERVER_GRACE_NS) && ok;
}

static void co_main(void *arg)
{
    struct daemon *d = arg;
    struct qmp_opts o = {
        .placement = d->placement,
        .scratch_dir = d->opts->scratch_dir,
        .on_quit = on_quit,
        .arg = d,
    };

    d->qmp = qmp_new(&o);
    d->chardevs = chardevs_new(d->qmp);
    if (d->signal_fd >= 0)
        co_start(co_signals, d);
    co_start(co_set_up, d);
    while (!d->ending && !d->setup_failed)
        co_waitq_wait(&d->changed);

    if (!d->opts->ignore_signals)
        notify_stopping();

    bool ok = co_shut_down(d);

    /* What was still being set up may hold anything. */
    d->clean = ok && d->set_up;
    co_stop_signals(d);
    loop_stop(d->loop);
}

static void start_main(void *arg)
{
    co_start(co_main, arg);
}

static void free_all(struct daemon *d)
{
    chardevs_free(d->chardevs);
    qmp_free(d->qmp);
    placement_free(d->placement);
    loop_free(d->loop);
    free(d->servers);
    free(d);
}

bool daemon_run(const struct daemon_opts *o, struct err *err)
{
    struct daemon *d = xnew(struct daemon);

    d->opts = o;
    d->err = err;
    waitq_init(&d->changed);
    if (!catch_signals(d, err)) {
        free(d);
        return false;
    }
    drivers_register_all();
    d->loop = loop_new(o->engine, "main", err);
    if (!d->loop) {
        if (d->signal_fd >= 0)
            close(d->signal_fd);
        free(d);
        return false;
    }
    if (o->engine == LOOP_ENGINE_AUTO && strcmp(loop_engine_name(d->loop), "pool") == 0)
        log_info("this kernel does not let us use io_uring: using the pool engine");
    d->placement = placement_new(o->engine, o->threads ? o->threads : placement_usable_cpus());
    loop_post(d->loop, start_main, d);
    loop_run(d->loop);

    bool ok = !d->setup_failed;

    /* What hangs cannot be freed under it; the process is about to end. */
    if (d->clean)
        free_all(d);
    else
        left_behind = true;
    return ok;
}

bool daemon_left_behind(void)
{
    return left_behind;
}
