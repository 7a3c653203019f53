/* SPDX-License-Identifier: Apache-2.0
 *
 * The process that holds a guest still. A guest that stays frozen is worse than a backup
 * without a freeze, so whatever happens here leads to the thaw; it is tried again for a
 * while, and the last word of it goes to standard error, where somebody may act on it.
 */
#include "quiesce/keeper.h"
#include "loop/loop.h"
#include "quiesce/agent.h"
#include "quiesce/hook.h"
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

/* That a thaw is tried, and one try. */
#define THAW_NS (60 * NSEC_PER_SEC)
#define THAW_TRY_NS (10 * NSEC_PER_SEC)
#define THAW_PAUSE_MSEC 250

struct keeper {
    const struct quiesce_opts *o;
    int fd;
    struct agent *agent;
    bool freezing;             /* it has been asked for: the guest may be frozen */
    uint64_t since;            /* then, loop_now time */
    struct quiesce_result r;
};

static void tell(struct keeper *k, bool over)
{
    struct keeper_message m;

    /* The padding too: it goes out of the process. */
    memset(&m, 0, sizeof(m));
    m.over = over;
    m.result = k->r;
    /* Whoever asked may be gone. */
    (void)send(k->fd, &m, sizeof(m), MSG_NOSIGNAL);
}

static bool freeze(struct keeper *k)
{
    k->agent = agent_connect(k->o->agent, loop_now() + k->o->limit_ns, &k->r.err);
    if (!k->agent)
        return false;
    k->freezing = true;
    k->since = loop_now();
    if (!agent_freeze(k->agent, k->since + k->o->limit_ns, &k->r.file_systems, &k->r.err))
        return false;
    /* Success is what the user will rely on. */
    if (k->r.file_systems == 0)
        return err_set(&k->r.err, -ENOENT, "The guest agent found no file system to freeze");
    return true;
}

static bool hold(struct keeper *k)
{
    if (k->o->pre_cut &&
        !hook_run("pre-cut", k->o->pre_cut, loop_now() + k->o->limit_ns, &k->r.err))
        return false;
    return !k->o->agent || freeze(k);
}

/* Until the cut is taken. False: it took too long. */
static bool wait_for_cut(struct keeper *k)
{
    uint64_t deadline = (k->freezing ? k->since : loop_now()) + k->o->limit_ns;

    for (;;) {
        struct pollfd p = { .fd = k->fd, .events = POLLIN };
        uint64_t now = loop_now();

        if (now >= deadline)
            return err_set(&k->r.err, -ETIMEDOUT, "The cut was not taken within %.3g s, and the "
                           "guest was let go", (double)k->o->limit_ns / NSEC_PER_SEC);
        if (poll(&p, 1, (int)MIN(div_round_up(deadline - now, NSEC_PER_MSEC), 60000ULL)) > 0)
            return true;
    }
}

static bool try_thaw(struct keeper *k, unsigned *ret_n, struct err *err)
{
    uint64_t deadline = loop_now() + THAW_TRY_NS;

    /* A channel that once failed may hold answers to what was asked before. */
    if (!k->agent)
        k->agent = agent_connect(k->o->agent, deadline, err);
    if (k->agent && agent_thaw(k->agent, deadline, ret_n, err))
        return true;
    agent_free(MOVE(k->agent));
    return false;
}

/* @known: it is frozen for sure. */
static void thaw(struct keeper *k, bool known)
{
    uint64_t end = loop_now() + THAW_NS;
    struct err why = ERR_INIT;
    unsigned n = 0;

    if (!known)
        agent_free(MOVE(k->agent));
    while (!try_thaw(k, &n, &why)) {
        if (loop_now() >= end) {
            fprintf(stderr, "stillpoint: the guest behind '%s' may still be frozen: %s. "
                    "Thaw it: {\"execute\": \"guest-fsfreeze-thaw\"}\n", k->o->agent, why.text);
            k->r.held = false;
            err_set(&k->r.err, why.code, "The guest could not be thawed, and may still be "
                    "frozen: %s", why.text);
            return;
        }
        poll(NULL, 0, THAW_PAUSE_MSEC);
    }
    k->r.frozen_ns = loop_now() - k->since;
    if (k->r.held && n == 0) {
        k->r.held = false;
        err_set(&k->r.err, -ESTALE, "The guest's file systems were thawed by somebody else before "
                "the cut");
    }
}

static void let_go(struct keeper *k, bool known)
{
    struct err err = ERR_INIT;

    if (k->freezing)
        thaw(k, known);
    if (k->o->post_cut &&
        !hook_run("post-cut", k->o->post_cut, loop_now() + k->o->limit_ns, &err) &&
        !k->r.err.code)
        k->r.err = err;
}

void keeper_run(int fd, const struct quiesce_opts *o)
{
    struct keeper k = { .o = o, .fd = fd };
    bool held;

    /* Ctrl-C is for the one who asked: its end is what ends this. */
    setsid();
    /* What else is open here, others wait for the end of. */
    if (fd > STDERR_FILENO + 1)
        close_range(STDERR_FILENO + 1, (unsigned)fd - 1, 0);
    close_range((unsigned)fd + 1, ~0U, 0);
    signal(SIGINT, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGCHLD, SIG_DFL);
    held = hold(&k);
    if (held) {
        tell(&k, false);
        k.r.held = wait_for_cut(&k);
    }
    let_go(&k, held);
    tell(&k, true);
    agent_free(k.agent);
    _exit(0);
}
