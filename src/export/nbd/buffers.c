/* SPDX-License-Identifier: Apache-2.0
 *
 * Free lists by power of two, most recently used first, so that a busy
 * connection works in the same few cache-warm buffers.
 */
#include "export/nbd/buffers.h"
#include "base/limits.h"
#include "base/mem.h"

#define CLASS_BITS_MIN 12     /* 4 KiB */
#define CLASS_BITS_MAX 20     /* 1 MiB; larger ones are not kept */
#define N_CLASSES (CLASS_BITS_MAX - CLASS_BITS_MIN + 1)

/* A free buffer begins with the link to the next. */
struct free_buffer {
    struct free_buffer *next;
};

struct nbd_buffers {
    struct free_buffer *free[N_CLASSES];
    uint64_t kept;             /* bytes in the free lists */
    struct co_sem shared;
    unsigned waiting;          /* coroutines that wait for `shared` */
    struct loop_timer watch;   /* armed while somebody waits */
    struct list holders;
};

static void watch_fired(void *arg);

struct nbd_buffers *nbd_buffers_new(void)
{
    struct nbd_buffers *b = xnew(struct nbd_buffers);

    co_sem_init(&b->shared, LIMIT_NBD_LOOP_BYTES);
    loop_timer_init(&b->watch, watch_fired, b);
    list_init(&b->holders);
    return b;
}

void nbd_buffers_free(struct nbd_buffers *b)
{
    if (!b)
        return;
    assert(list_empty(&b->holders) && !b->waiting);
    for (unsigned i = 0; i < N_CLASSES; i++) {
        for (struct free_buffer *f = b->free[i], *next; f; f = next) {
            next = f->next;
            free(f);
        }
    }
    free(b);
}

/* ---- accounts ----------------------------------------------------------- */

void nbd_holder_init(struct nbd_holder *h, struct nbd_buffers *b,
                     void (*evict)(struct nbd_holder *h))
{
    *h = (struct nbd_holder){ .from = b, .evict = evict };
    waitq_init(&h->room);
    list_push_tail(&b->holders, &h->link);
}

void nbd_holder_done(struct nbd_holder *h)
{
    assert(!h->own && !h->shared);
    list_del(&h->link);
}

void nbd_holder_waits(struct nbd_holder *h, enum nbd_wait what)
{
    h->waits_since[what] = loop_now();
}

void nbd_holder_moved(struct nbd_holder *h, enum nbd_wait what)
{
    h->waits_since[what] = 0;
}

bool nbd_holder_stalls(const struct nbd_holder *h, enum nbd_wait what, unsigned seconds)
{
    uint64_t since = h->waits_since[what];

    return since && loop_now() - since >= seconds * NSEC_PER_SEC;
}

static void watch_fired(void *arg)
{
    struct nbd_buffers *b = arg;
    struct nbd_holder *h;

    if (!b->waiting)
        return;
    list_for_each(h, &b->holders, link) {
        if (h->shared && (nbd_holder_stalls(h, NBD_WAIT_SEND, LIMIT_NBD_STALL_SECONDS) ||
                          nbd_holder_stalls(h, NBD_WAIT_TAKE, LIMIT_NBD_STALL_SECONDS)))
            h->evict(h);
    }
    loop_timer_arm(&b->watch, loop_now() + NSEC_PER_SEC);
}

static void co_claim_shared(struct nbd_buffers *b, uint64_t bytes)
{
    if (LIKELY(co_sem_try_acquire(&b->shared, bytes)))
        return;
    if (b->waiting++ == 0)
        loop_timer_arm(&b->watch, loop_now() + NSEC_PER_SEC);
    co_sem_acquire(&b->shared, bytes);
    if (--b->waiting == 0)
        loop_timer_cancel(&b->watch);
}

/* ---- buffers ------------------------------------------------------------ */

/* The class that holds @len, or N_CLASSES. */
static unsigned class_of(uint32_t len)
{
    if (len <= 1U << CLASS_BITS_MIN)
        return 0;
    if (len > 1U << CLASS_BITS_MAX)
        return N_CLASSES;
    return 32 - __builtin_clz(len - 1) - CLASS_BITS_MIN;
}

static void *take(struct nbd_buffers *b, unsigned class, uint32_t cap)
{
    struct free_buffer *f = class < N_CLASSES ? b->free[class] : NULL;

    if (UNLIKELY(!f))
        return try_alloc_aligned(cap);
    b->free[class] = f->next;
    b->kept -= cap;
    return f;
}

int co_nbd_buffer_get(struct nbd_holder *h, uint32_t len, struct nbd_buffer *ret)
{
    unsigned class = class_of(len);
    struct nbd_buffer buf = {
        .cap = class < N_CLASSES ? 1U << (class + CLASS_BITS_MIN) : align_up(len, 4096),
    };

    assert(len && len <= LIMIT_NBD_REQUEST_BYTES);
    while (h->own + h->shared + buf.cap > LIMIT_NBD_CONN_BYTES)
        co_waitq_wait(&h->room);
    buf.shared = h->own + buf.cap > LIMIT_NBD_CONN_OWN_BYTES;
    if (buf.shared) {
        co_claim_shared(h->from, buf.cap);
        h->shared += buf.cap;
    } else {
        h->own += buf.cap;
    }
    buf.p = take(h->from, class, buf.cap);
    *ret = buf;
    if (UNLIKELY(!buf.p)) {
        nbd_buffer_put(h, ret);
        return -ENOMEM;
    }
    return 0;
}

void nbd_buffer_put(struct nbd_holder *h, struct nbd_buffer *buf)
{
    struct nbd_buffers *b = h->from;
    struct free_buffer *f = buf->p;
    unsigned class = class_of(buf->cap);

    if (!buf->cap)
        return;
    if (buf->shared) {
        h->shared -= buf->cap;
        co_sem_release(&b->shared, buf->cap);
    } else {
        h->own -= buf->cap;
    }
    if (f && class < N_CLASSES && b->kept + buf->cap <= LIMIT_NBD_KEPT_BYTES) {
        f->next = b->free[class];
        b->free[class] = f;
        b->kept += buf->cap;
    } else {
        free(f);
    }
    *buf = (struct nbd_buffer){ 0 };
    if (UNLIKELY(!waitq_empty(&h->room)))
        waitq_wake_all(&h->room);
}
