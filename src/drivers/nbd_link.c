/* SPDX-License-Identifier: Apache-2.0
 *
 * The life of a connection: the keeper polls it for libnbd, notices that it is
 * lost, fails what was in flight, and makes another. The states are in nbd.h.
 */
#include "drivers/nbd.h"
#include "base/limits.h"
#include <poll.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* After a connection or an attempt at one has failed: doubling from the one to the
 * other as long as none lasts. */
#define RETRY_PAUSE_FIRST (100 * NSEC_PER_MSEC)
#define RETRY_PAUSE_MAX (5 * NSEC_PER_SEC)

/* Replies read in a row before others on the loop get their turn. */
#define REPLIES_A_TURN 64

#define GOODBYE_TIME NSEC_PER_SEC

void nbd_link_wake(struct nbd_state *s)
{
    co_poll_wake(&s->poll);
    waitq_wake_all(&s->nap);
}

/* NBD_UP to NBD_LOST. The keeper, awake soon, closes the handle. */
static void link_lost(struct nbd_state *s)
{
    if (s->link == NBD_LOST)
        return;
    s->link = NBD_LOST;
    s->give_up_at = s->cut ? 0 : loop_now() + s->reconnect_delay;
    nbd_link_wake(s);
}

/* NBD_LOST to NBD_UP. */
static void link_up(struct nbd_state *s, const struct nbd_connection *c)
{
    if (loop_now() >= s->give_up_at && s->flushed != s->writes)
        s->writes_lost = true;
    s->h = c->h;
    s->fd = c->fd;
    s->link = NBD_UP;
    /* What others did to the export meanwhile is not known. */
    extent_cache_forget(&s->extents, 0, INT64_MAX, 0);
    waitq_wake_all(&s->up);
}

/* Close the handle. Requests that libnbd has not ended end now; they may be sent
 * again on another connection. */
static void drop_connection(struct nbd_state *s)
{
    struct nbd_request *rq;

    link_lost(s);
    nbd_close(s->h);
    close(s->fd);
    s->h = NULL;
    s->fd = -1;
    s->cut = false;
    while ((rq = list_first(&s->in_flight, struct nbd_request, link)))
        nbd_request_done(rq, ENOTCONN);
}

void nbd_link_check(struct nbd_state *s)
{
    if (s->link != NBD_UP)
        return;

    unsigned direction = nbd_aio_get_direction(s->h);

    if (!direction)
        link_lost(s);
    else if (s->awaited && (direction & ~s->awaited))
        co_poll_wake(&s->poll);
}

/* libnbd must not be told to read when there is nothing: it would take the call for
 * the beginning of a reply and never be ready again. */
static bool can_read(const struct nbd_state *s)
{
    int bytes = 0;

    return (nbd_aio_get_direction(s->h) & LIBNBD_AIO_DIRECTION_READ) &&
           ioctl(s->fd, FIONREAD, &bytes) == 0 && bytes > 0;
}

/* libnbd reads one reply a call; there are often many. */
static void read_replies(struct nbd_state *s, short revents)
{
    unsigned left = REPLIES_A_TURN;

    do {
        if (nbd_notify(s->h, revents) < 0)
            return;        /* dead: the direction tells */
        revents = POLLIN;
    } while (--left && s->n_in_flight && can_read(s));
}

/* Until the connection is lost or the keeper is to stop. */
static void co_serve(struct nbd_state *s)
{
    while (!s->stop && !s->cut) {
        unsigned direction = nbd_aio_get_direction(s->h);

        if (!direction)
            break;
        s->awaited = direction;
        int revents = co_poll(&s->poll, s->fd, nbd_poll_events(direction), DEADLINE_NEVER);
        s->awaited = 0;
        if (revents < 0)
            break;
        if (revents > 0 && !s->cut)
            read_replies(s, (short)revents);
    }
    if (!s->stop)
        drop_connection(s);
}

static bool same_export(const struct nbd_facts *a, const struct nbd_facts *b)
{
    return a->size == b->size && a->block_min == b->block_min && a->block_max == b->block_max &&
           a->read_only == b->read_only && a->can_flush == b->can_flush &&
           a->can_fua == b->can_fua && a->can_trim == b->can_trim && a->can_zero == b->can_zero &&
           a->can_fast_zero == b->can_fast_zero && a->has_status == b->has_status;
}

static bool co_connect_again(struct nbd_state *s)
{
    struct nbd_connection c;

    if (!co_nbd_connect(s, loop_now() + LIMIT_NBD_CONNECT_NS, &c, NULL))
        return false;
    if (s->stop || !same_export(&c.facts, &s->facts)) {
        nbd_connection_close(&c);
        return false;
    }
    link_up(s, &c);
    return true;
}

static void co_nap(struct nbd_state *s, uint64_t ns)
{
    uint64_t until = loop_now() + ns;

    while (!s->stop && co_waitq_wait_until(&s->nap, until))
        ;
}

static void co_keep(void *arg)
{
    struct nbd_state *s = arg;
    uint64_t pause = RETRY_PAUSE_FIRST;

    while (!s->stop) {
        uint64_t since = loop_now();

        if (s->h || co_connect_again(s))
            co_serve(s);
        if (loop_now() - since > RETRY_PAUSE_MAX)
            pause = RETRY_PAUSE_FIRST;
        co_nap(s, pause);
        pause = MIN(2 * pause, RETRY_PAUSE_MAX);
    }
    s->keeping = false;
    waitq_wake_all(&s->keeper_gone);
}

void nbd_link_resume(struct nbd_state *s)
{
    s->stop = false;
    s->keeping = true;
    co_start(co_keep, s);
}

void nbd_link_start(struct nbd_state *s, const struct nbd_connection *c)
{
    s->facts = c->facts;
    s->link = NBD_LOST;
    link_up(s, c);
    nbd_link_resume(s);
}

void co_nbd_link_pause(struct nbd_state *s)
{
    s->stop = true;
    nbd_link_wake(s);
    while (s->keeping)
        co_waitq_wait(&s->keeper_gone);
}

/* NBD_CMD_DISC has no answer: once it is in the socket the server has had its
 * warning. A server that reads nothing is not waited for. */
static void co_say_goodbye(struct nbd_state *s)
{
    uint64_t deadline = loop_now() + GOODBYE_TIME;

    if (nbd_aio_disconnect(s->h, 0) < 0)
        return;
    while ((nbd_aio_get_direction(s->h) & LIBNBD_AIO_DIRECTION_WRITE) && loop_now() < deadline) {
        int revents = co_poll(&s->poll, s->fd, POLLOUT, deadline);

        if (revents < 0 || nbd_notify(s->h, (short)revents) < 0)
            return;
    }
}

void co_nbd_link_close(struct nbd_state *s)
{
    assert(list_empty(&s->in_flight));
    if (!s->h)
        return;
    if (s->link == NBD_UP)
        co_say_goodbye(s);
    s->link = NBD_LOST;
    nbd_close(s->h);
    close(s->fd);
    s->h = NULL;
}

void nbd_link_cancel(struct nbd_state *s)
{
    s->cancels++;
    s->give_up_at = 0;
    if (s->link == NBD_UP) {
        s->cut = true;
        link_lost(s);
    }
    waitq_wake_all(&s->up);
}

int co_nbd_link_wait(struct nbd_state *s, uint64_t cancels)
{
    while (s->link == NBD_LOST && s->cancels == cancels) {
        if (loop_now() >= s->give_up_at)
            return -EIO;
        if (!co_waitq_wait_until(&s->up, s->give_up_at))
            continue;      /* look once more: it may have come up in this turn */
    }
    return s->cancels == cancels ? 0 : -ECANCELED;
}
