/* SPDX-License-Identifier: Apache-2.0
 *
 * What memdrv.h declares.
 */
#include "co_test.h"
#include "memdrv.h"
#include "base/iov.h"
#include "base/mem.h"
#include <stdatomic.h>

struct mem_options {
    uint64_t size;
    bool has_request_align;
    uint32_t request_align;
    bool has_max_transfer;
    uint32_t max_transfer;
    bool has_max_zeroes;
    uint32_t max_zeroes;
    bool has_zero_align;
    uint32_t zero_align;
    bool has_claim;
    uint64_t claim;
    bool has_fua, fua;
    bool has_storage;
    char *storage;
    bool has_forbid_write, forbid_write;
    bool has_open_yields;
    uint32_t open_yields;
    bool has_file;
    struct schema_alt file;
    bool has_backing;
    struct schema_alt backing;
    bool has_live, live;
};

static atomic_uint closed;

struct mem *mem_of(struct node *n)
{
    assert(strcmp(n->drv->name, "test-mem") == 0);
    return n->state;
}

unsigned mem_closed_count(void)
{
    return atomic_load(&closed);
}

void mem_release(struct mem *m, enum mem_op op)
{
    m->held[op] = false;
    waitq_wake_all(&m->gate);
}

void mem_clear_log(struct mem *m)
{
    m->n_log = 0;
}

unsigned mem_count(const struct mem *m, enum mem_op op)
{
    unsigned n = 0;

    for (size_t i = 0; i < m->n_log; i++)
        n += m->log[i].op == op;
    return n;
}

const struct mem_record *mem_nth(const struct mem *m, enum mem_op op, unsigned i)
{
    for (size_t k = 0; k < m->n_log; k++) {
        if (m->log[k].op == op && i-- == 0)
            return &m->log[k];
    }
    fail_msg("there is no such request");
    abort();
}

void mem_fill(struct mem *m, uint64_t off, uint64_t len, enum mem_kind kind, int byte)
{
    memset(m->data + off, kind == MEM_IS_DATA ? byte : 0, len);
    memset(m->kind + off, kind, len);
}

/* ---- opening ---------------------------------------------------------------- */

static bool co_mem_open(struct node *n, const void *opts, struct err *err)
{
    const struct mem_options *o = opts;
    struct mem *m = n->state;

    m->node = n;
    waitq_init(&m->gate);
    co_yield_times(o->open_yields);
    if (o->has_forbid_write && o->forbid_write && !n->read_only)
        return err_errno(err, -EACCES, "Could not open the memory for writing");
    n->storage_id = o->storage ? xstrdup(o->storage) : NULL;
    if (o->has_file &&
        !co_node_open_child(n, "file", &o->file, EDGE_READ | (n->read_only ? 0 : EDGE_WRITE),
                            EDGE_READ, err))
        return false;
    unsigned shared = o->live ? EDGE_READ | EDGE_WRITE : EDGE_READ;

    if (o->has_backing &&
        !co_node_open_child(n, "backing", &o->backing, EDGE_READ, shared, err))
        return false;
    n->size = o->size;
    n->limits.request_align = o->request_align;
    n->limits.max_transfer = o->max_transfer;
    n->limits.max_zeroes = o->max_zeroes;
    n->limits.zero_align = o->zero_align;
    n->limits.write_flags = o->fua ? REQ_FUA : 0;
    n->limits.zero_flags = n->limits.write_flags | REQ_MAY_UNMAP | REQ_NO_FALLBACK;

    uint64_t whole = o->size + o->request_align;

    m->data = xzalloc(whole);
    m->kind = xzalloc(whole);
    memset(m->kind, n->backing ? MEM_IS_ABSENT : MEM_IS_ZERO, whole);
    if (o->has_claim)
        n->size = o->claim + 1;
    return true;
}

static void co_mem_close(struct node *n)
{
    struct mem *m = n->state;

    assert(!m->in_flight);
    free(m->data);
    free(m->kind);
    free(m->log);
    atomic_fetch_add(&closed, 1);
}

/* ---- requests ----------------------------------------------------------------- */

/* What the funnel guarantees, checked; then the manners. */
static int co_enter(struct node *n, enum mem_op op, uint64_t off, uint64_t len, unsigned flags)
{
    struct mem *m = n->state;
    uint64_t align = n->limits.request_align;

    assert(n->loop == loop_current());
    if (op < MEM_FLUSH || op == MEM_STATUS) {
        assert(len > 0 && is_aligned(off | len, align));
        assert(off + len <= align_up(n->size, align));
    }
    if (op == MEM_READ || op == MEM_WRITE)
        assert(!n->limits.max_transfer || len <= n->limits.max_transfer);
    if (op == MEM_ZERO || op == MEM_DISCARD)
        assert(!n->limits.max_zeroes || len <= n->limits.max_zeroes);
    if (op == MEM_WRITE || op == MEM_ZERO || op == MEM_DISCARD || op == MEM_CLONE)
        assert(!n->read_only);
    m->log = xrealloc(m->log, (m->n_log + 1) * sizeof(*m->log));
    m->log[m->n_log++] = (struct mem_record){ op, off, len, flags };
    m->in_flight++;
    m->most_in_flight = MAX(m->most_in_flight, m->in_flight);
    while (m->held[op])
        co_waitq_wait(&m->gate);
    if (m->dawdle)
        co_yield_times(test_random(&m->seed, m->dawdle + 1));
    return m->fails[op];
}

static int leave(struct mem *m, int r)
{
    m->in_flight--;
    return r;
}

/* From the backing node where nothing is here; beyond its end it is zeros. Takes
 * as much stack as a driver of a real format might. */
static int co_read_absent(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov,
                          int niov, unsigned flags)
{
    struct node *b = node_backing(n);
    uint64_t have = b && off < b->size ? MIN(len, b->size - off) : 0;
    CLEANUP(free) char *buf = xzalloc(len);
    volatile char frame[2048];

    frame[0] = 0;
    int r = have ? co_node_pread(b, off, have, buf, flags) : frame[0];

    if (r == 0)
        iov_from_buf(iov, niov, 0, buf, len);
    return r;
}

static int co_mem_preadv(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov,
                         int niov, unsigned flags)
{
    struct mem *m = n->state;
    int r = co_enter(n, MEM_READ, off, len, flags);

    assert(iov_length(iov, niov) == len);
    if (r < 0)
        return leave(m, r);
    if (memchr(m->kind + off, MEM_IS_ABSENT, len))
        r = co_read_absent(n, off, len, iov, niov, flags);
    for (uint64_t i = 0; i < len && r == 0; i++) {
        if (m->kind[off + i] != MEM_IS_ABSENT)
            iov_from_buf(iov, niov, i, m->data + off + i, 1);
    }
    return leave(m, r);
}

static int co_mem_pwritev(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov,
                          int niov, unsigned flags)
{
    struct mem *m = n->state;
    int r = co_enter(n, MEM_WRITE, off, len, flags);

    assert(iov_length(iov, niov) == len && !(flags & REQ_FUA & ~n->limits.write_flags));
    if (r < 0)
        return leave(m, r);
    iov_to_buf(m->data + off, iov, niov, 0, len);
    memset(m->kind + off, MEM_IS_DATA, len);
    return leave(m, 0);
}

static int co_mem_write_zeroes(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
    struct mem *m = n->state;
    int r = co_enter(n, MEM_ZERO, off, len, flags);

    assert(!(flags & (REQ_FUA | REQ_MAY_UNMAP | REQ_NO_FALLBACK) & ~n->limits.zero_flags));
    if (r < 0)
        return leave(m, r);
    mem_fill(m, off, len, MEM_IS_ZERO, 0);
    return leave(m, 0);
}

static int co_mem_discard(struct node *n, uint64_t off, uint64_t len)
{
    struct mem *m = n->state;
    int r = co_enter(n, MEM_DISCARD, off, len, 0);

    if (r < 0)
        return leave(m, r);
    mem_fill(m, off, len, MEM_IS_ZERO, 0);
    return leave(m, 0);
}

/* Piece by piece: what is written to the source meanwhile is in or not. */
static int co_mem_clone(struct node *n, uint64_t off, struct node *src, uint64_t src_off,
                        uint64_t len)
{
    struct mem *m = n->state, *from = src->state;
    const uint64_t piece = 4096;
    int r;

    if (!m->clones || n->backing || src->backing)
        return -ENOTSUP;
    r = co_enter(n, MEM_CLONE, off, len, 0);
    for (uint64_t at = 0; r == 0 && at < len; at += piece) {
        uint64_t part = MIN(piece, len - at);

        memcpy(m->data + off + at, from->data + src_off + at, part);
        memcpy(m->kind + off + at, from->kind + src_off + at, part);
        if (m->dawdle)
            co_yield_times(test_random(&m->seed, m->dawdle + 1));
    }
    return leave(m, r);
}

static int co_mem_flush(struct node *n)
{
    return leave(n->state, co_enter(n, MEM_FLUSH, 0, 0, 0));
}

static int co_mem_status(struct node *n, uint64_t off, uint64_t len, struct block_status *ret)
{
    static const unsigned flags[] = {
        [MEM_IS_DATA] = STATUS_DATA | STATUS_ALLOCATED | STATUS_OFFSET,
        [MEM_IS_ZERO] = STATUS_ZERO | STATUS_ALLOCATED,
        [MEM_IS_ABSENT] = 0,
    };
    struct mem *m = n->state;
    int r = co_enter(n, MEM_STATUS, off, len, 0);
    uint64_t same = 1, align = n->limits.request_align;

    if (r < 0)
        return leave(m, r);
    while (same < len && m->kind[off + same] == m->kind[off])
        same++;
    *ret = (struct block_status){
        .flags = flags[m->kind[off]],
        .len = same < len ? MAX(align_down(same, align), align) : len,
        .host_off = off,
        .file = n,
    };
    return leave(m, 0);
}

static bool co_mem_resize(struct node *n, uint64_t size, struct err *err)
{
    struct mem *m = n->state;
    uint64_t whole = align_up(size, n->limits.request_align);

    m->data = xrealloc(m->data, MAX(whole, 1ULL));
    m->kind = xrealloc(m->kind, MAX(whole, 1ULL));
    if (size > n->size)
        mem_fill(m, n->size, whole - n->size, MEM_IS_ZERO, 0);
    n->size = size;
    return true;
}

static void co_mem_detach(struct node *n)
{
    (void)leave(n->state, co_enter(n, MEM_DETACH, 0, 0, 0));
}

static void co_mem_attach(struct node *n)
{
    (void)leave(n->state, co_enter(n, MEM_ATTACH, 0, 0, 0));
}

static const struct schema_member mem_members[] = {
    SCHEMA_REQUIRED(struct mem_options, size, "size", &schema_size, "bytes"),
    SCHEMA_OPTIONAL(struct mem_options, request_align, "request-align", &schema_uint32, "bytes"),
    SCHEMA_OPTIONAL(struct mem_options, max_transfer, "max-transfer", &schema_uint32, "bytes"),
    SCHEMA_OPTIONAL(struct mem_options, max_zeroes, "max-zeroes", &schema_uint32, "bytes"),
    SCHEMA_OPTIONAL(struct mem_options, zero_align, "zero-align", &schema_uint32, "bytes"),
    SCHEMA_OPTIONAL(struct mem_options, claim, "claim", &schema_size,
                    "one less than the size that it says it has"),
    SCHEMA_OPTIONAL(struct mem_options, fua, "fua", &schema_bool, "knows REQ_FUA"),
    SCHEMA_OPTIONAL(struct mem_options, storage, "storage", &schema_str, "storage_id"),
    SCHEMA_OPTIONAL(struct mem_options, forbid_write, "forbid-write", &schema_bool,
                    "opening for writing fails with -EACCES"),
    SCHEMA_OPTIONAL(struct mem_options, open_yields, "open-yields", &schema_uint32,
                    "how often others run while it opens"),
    SCHEMA_OPTIONAL(struct mem_options, file, "file", &blockdev_ref_type, "a child to hold"),
    SCHEMA_OPTIONAL(struct mem_options, backing, "backing", &blockdev_ref_or_null_type,
                    "where bytes come from that are not here"),
    SCHEMA_OPTIONAL(struct mem_options, live, "live", &schema_bool,
                    "lets others write to the backing node, as qcow2 does"),
    SCHEMA_END,
};

static const struct schema_type mem_options_type = {
    "TestMemOptions", SCHEMA_STRUCT, "a disk in memory", sizeof(struct mem_options),
    .members = mem_members,
};

static const struct driver mem_driver = {
    .name = "test-mem",
    .doc = "a disk in memory",
    .state_size = sizeof(struct mem),
    .options = &mem_options_type,
    .is_protocol = true,
    .co_open = co_mem_open,
    .co_close = co_mem_close,
    .co_preadv = co_mem_preadv,
    .co_pwritev = co_mem_pwritev,
    .co_write_zeroes = co_mem_write_zeroes,
    .co_discard = co_mem_discard,
    .co_flush = co_mem_flush,
    .co_clone = co_mem_clone,
    .co_status = co_mem_status,
    .co_resize = co_mem_resize,
    .co_detach = co_mem_detach,
    .co_attach = co_mem_attach,
};

/* ---- test-filter ----------------------------------------------------------------- */

struct filter_options {
    struct schema_alt file;
};

static bool co_filter_open(struct node *n, const void *opts, struct err *err)
{
    const struct filter_options *o = opts;

    if (!co_node_open_child(n, "file", &o->file, EDGE_READ | (n->read_only ? 0 : EDGE_WRITE),
                            EDGE_READ, err))
        return false;
    n->size = edge_node(n->file)->size;
    n->limits.write_flags = REQ_FUA;
    return true;
}

static int co_filter_preadv(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov,
                            int niov, unsigned flags)
{
    return co_node_preadv(edge_node(n->file), off, len, iov, niov, flags);
}

static int co_filter_pwritev(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov,
                             int niov, unsigned flags)
{
    return co_node_pwritev(edge_node(n->file), off, len, iov, niov, flags);
}

static const struct schema_member filter_members[] = {
    SCHEMA_REQUIRED(struct filter_options, file, "file", &blockdev_ref_type, "what it filters"),
    SCHEMA_END,
};

static const struct schema_type filter_options_type = {
    "TestFilterOptions", SCHEMA_STRUCT, "a filter", sizeof(struct filter_options),
    .members = filter_members,
};

static const struct driver filter_driver = {
    .name = "test-filter",
    .doc = "a filter",
    .options = &filter_options_type,
    .is_filter = true,
    .co_open = co_filter_open,
    .co_preadv = co_filter_preadv,
    .co_pwritev = co_filter_pwritev,
};

void memdrv_register(void)
{
    driver_register(&mem_driver);
    driver_register(&filter_driver);
}
