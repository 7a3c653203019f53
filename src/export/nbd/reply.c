/* SPDX-License-Identifier: Apache-2.0
 *
 * Replies: putting one together, and the writer that sends all that are ready
 * with one call.
 */
#include "base/limits.h"
#include "base/mem.h"
#include "export/nbd/serve.h"

/* Bytes handed to the socket at a time: enough that a system call more does not
 * matter, few enough that a slow client can be told from one that stalls. */
#define SEND_STEP_BYTES (2 * MiB)

/* Entries of a batch: two a reply. */
#define BATCH_IOV (2 * LIMIT_NBD_CONN_REQUESTS)

/* ---- putting together --------------------------------------------------- */

static void put_error(struct nbd_slot *s, int error)
{
    uint32_t number = nbd_error_of(error);

    if (!s->tx->session.structured) {
        s->head_len = nbd_put_simple_reply(s->head, s->rq.cookie, number);
        return;
    }
    s->body = s->why ? s->why : strerrordesc_np(-error);
    s->body_len = s->body ? strlen(s->body) : 0;
    s->head_len = nbd_put_error_chunk(s->head, s->rq.cookie, number, s->body_len);
}

static void put_data(struct nbd_slot *s)
{
    if (!s->tx->session.structured) {
        s->head_len = nbd_put_simple_reply(s->head, s->rq.cookie, 0);
    } else if (!s->rq.length) {
        /* A data chunk must not be empty. */
        s->head_len = nbd_put_none_chunk(s->head, s->rq.cookie);
    } else {
        s->head_len = nbd_put_data_chunk(s->head, s->rq.cookie, s->rq.offset, s->rq.length);
    }
    s->body = s->buf.p;
    s->body_len = s->rq.length;
}

static void put_status(struct nbd_slot *s)
{
    /* The chunks of all contexts, one after the other. */
    s->head_len = 0;
    s->body = s->buf.p;
    s->body_len = s->status_len;
}

void nbd_reply(struct nbd_slot *s, int result)
{
    struct nbd_tx *tx = s->tx;

    s->body = NULL;
    s->body_len = 0;
    if (UNLIKELY(result < 0))
        put_error(s, result);
    else if (s->rq.type == NBD_CMD_READ)
        put_data(s);
    else if (s->rq.type == NBD_CMD_BLOCK_STATUS)
        put_status(s);
    else   /* allowed for structured sessions too, and shorter */
        s->head_len = nbd_put_simple_reply(s->head, s->rq.cookie, 0);
    list_push_tail(&tx->replies, &s->link);
    if (!waitq_empty(&tx->replies_ready))
        waitq_wake_one(&tx->replies_ready);
}

/* ---- sending ------------------------------------------------------------ */

/* Move replies to @batch as far as @iov reaches; the number of entries used. */
static int gather(struct nbd_tx *tx, struct list *batch)
{
    struct nbd_slot *s;
    uint64_t bytes = 0;
    int n = 0;

    while (n + 2 <= BATCH_IOV && bytes < SEND_STEP_BYTES &&
           (s = list_pop_head(&tx->replies, struct nbd_slot, link))) {
        if (s->head_len)
            tx->iov[n++] = (struct iovec){ s->head, s->head_len };
        if (s->body_len)
            tx->iov[n++] = (struct iovec){ (void *)s->body, s->body_len };
        bytes += s->head_len + s->body_len;
        list_push_tail(batch, &s->link);
    }
    return n;
}

/* How many entries of @iov come to at most a step; 0 if the first is larger. */
static int entries_in_step(const struct iovec *iov, int niov)
{
    uint64_t bytes = 0;
    int n = 0;

    while (n < niov && bytes + iov[n].iov_len <= SEND_STEP_BYTES)
        bytes += iov[n++].iov_len;
    return n;
}

static int co_send(struct nbd_tx *tx, struct iovec *iov, int niov)
{
    int r = 0;

    while (niov && r == 0) {
        int n = entries_in_step(iov, niov);

        nbd_holder_waits(&tx->holder, NBD_WAIT_TAKE);
        if (n) {
            r = co_stream_writev(tx->stream, iov, n);
            iov += n;
            niov -= n;
        } else {
            struct iovec piece = { iov->iov_base, SEND_STEP_BYTES };

            r = co_stream_writev(tx->stream, &piece, 1);
            iov->iov_base = (char *)iov->iov_base + SEND_STEP_BYTES;
            iov->iov_len -= SEND_STEP_BYTES;
        }
        nbd_holder_moved(&tx->holder, NBD_WAIT_TAKE);
    }
    return r;
}

static void co_send_batch(struct nbd_tx *tx)
{
    struct list batch = LIST_INIT(batch);
    struct nbd_slot *s;
    int n = gather(tx, &batch);

    if (!tx->broken && co_send(tx, tx->iov, n) < 0) {
        /* Half a reply may be out: nothing can follow. The reader ends too. */
        tx->broken = true;
        stream_shutdown(tx->stream);
    }
    while ((s = list_pop_head(&batch, struct nbd_slot, link)))
        nbd_slot_free(s);
}

void co_nbd_writer(void *arg)
{
    struct nbd_tx *tx = arg;

    tx->iov = xcalloc(BATCH_IOV, sizeof(*tx->iov));
    while (!tx->drained || !list_empty(&tx->replies)) {
        if (list_empty(&tx->replies))
            co_waitq_wait(&tx->replies_ready);
        else
            co_send_batch(tx);
    }
    free(MOVE(tx->iov));
    tx->writer_running = false;
    waitq_wake_all(&tx->writer_gone);
}
