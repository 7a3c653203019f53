/* SPDX-License-Identifier: Apache-2.0
 *
 * Clusters before they are written: a run of host clusters is taken, made to hold
 * what is asked for, and linked to the guest clusters that are still without. As for
 * zero writes nothing suspends between the last look at the claims and the change of
 * a slice; what was taken too much is given back.
 */
#include "base/mem.h"
#include "drivers/qcow2/create.h"
#include "drivers/qcow2/qcow2.h"

#define ZEROS_BYTES (2 * MiB)

struct prealloc {
    struct qcow2 *s;
    enum qcow2_prealloc mode;
    void *zeros;                 /* ZEROS_BYTES, with FULL, and with a data file */
};

/* Whether the cluster can get a host cluster without the guest's seeing it. */
static bool wants_cluster(const struct qcow2 *s, uint64_t cluster, const struct qcow2_l2_entry *e)
{
    if (e->placed || e->kind == QCOW2_COMPRESSED_KIND)
        return false;
    return s->geo.extended || e->kind == QCOW2_ZERO_PLAIN ||
           qcow2_unallocated_is_zero(s, cluster << s->geo.cluster_bits);
}

/* The entry for @host; @zero: its content does not count. */
static void set_entry(struct qcow2 *s, void *slice, uint32_t i, uint64_t cluster,
                      const struct qcow2_l2_entry *e, uint64_t host, bool zero)
{
    uint64_t v = host | QCOW2_COPIED;
    bool all_zero = e->kind == QCOW2_ZERO_PLAIN ||
                    qcow2_unallocated_is_zero(s, cluster << s->geo.cluster_bits);

    if (!s->geo.extended)
        qcow2_l2_entry_set(&s->geo, slice, i, zero ? v | QCOW2_ZERO : v, 0, 0);
    else if (all_zero)
        qcow2_l2_entry_set(&s->geo, slice, i, v, zero ? 0 : UINT32_MAX, zero ? UINT32_MAX : 0);
    else
        qcow2_l2_entry_set(&s->geo, slice, i, v, e->alloc, e->zero);
}

/* How many of the @n clusters from @first on want one, and how many there are before
 * the first of them; they lie in one slice. */
static int co_count(struct qcow2 *s, uint64_t first, uint32_t n, uint32_t *ret, uint32_t *ret_skip)
{
    struct qcow2_l2_place place;
    const void *slice;
    struct qcow2_l2_entry e;
    int r = co_qcow2_l2_get(s, first << s->geo.cluster_bits, &slice, &place);

    *ret = *ret_skip = 0;
    for (uint32_t i = 0; r == 0 && i < n; i++) {
        e = (struct qcow2_l2_entry){ .kind = QCOW2_UNALLOCATED };
        if (slice && !qcow2_l2_entry_get(&s->geo, slice, place.index + i, &e))
            r = -EIO;
        *ret += r == 0 && wants_cluster(s, first + i, &e);
        *ret_skip += !*ret;
    }
    return r;
}

/* Make the new clusters what the mode says; whether their entries have to say zero. */
static int co_fill(const struct prealloc *p, const struct qcow2_space *space, bool *ret_zero)
{
    struct qcow2 *s = p->s;
    uint64_t bytes = space->n * s->cluster_size;
    int r = 0;

    *ret_zero = p->mode == QCOW2_PREALLOC_METADATA && !space->fresh && s->geo.version >= 3;
    if (p->mode == QCOW2_PREALLOC_FULL) {
        for (uint64_t done = 0, part; r == 0 && done < bytes; done += part) {
            part = MIN(bytes - done, (uint64_t)ZEROS_BYTES);
            r = co_node_pwrite(s->file, space->host + done, part, p->zeros, REQ_BULK);
        }
    } else if (p->mode == QCOW2_PREALLOC_FALLOC || (!space->fresh && !*ret_zero)) {
        r = co_node_write_zeroes(s->file, space->host, bytes, REQ_BULK);
    }
    return r;
}

/* Link the clusters of @space to those of the @n that want one: *ret_used of them. */
static int co_link(struct qcow2 *s, uint64_t first, uint32_t n, const struct qcow2_space *space,
                   bool zero, uint32_t *ret_used)
{
    struct qcow2_l2_place place;
    uint32_t count, used = 0;
    void *slice;
    int r;

    *ret_used = 0;
    do {
        count = n;
        r = co_qcow2_l2_get_writable(s, first << s->geo.cluster_bits, &place);
        if (r < 0)
            return r;
    } while (co_qcow2_wait_claim(s, first, &count));
    r = qcow2_cache_modify(s->l2, place.slice, &slice);
    for (uint32_t i = 0; r == 0 && i < count && used < space->n; i++) {
        struct qcow2_l2_entry e;

        if (!qcow2_l2_entry_get(&s->geo, slice, place.index + i, &e))
            r = -EIO;
        else if (wants_cluster(s, first + i, &e)) {
            uint64_t host = s->geo.data_file ? (first + i) << s->geo.cluster_bits
                                             : space->host + used * s->cluster_size;

            set_entry(s, slice, place.index + i, first + i, &e, host, zero);
            used++;
        }
    }
    *ret_used = used;
    return r;
}

/* ---- in a data file ------------------------------------------------------ */

static int co_reads_as_zero(struct node *n, uint64_t off, uint64_t len, bool *ret)
{
    struct block_status st = { .len = 0 };

    *ret = true;
    for (int r; *ret && len; off += st.len, len -= st.len) {
        r = co_node_status(n, off, len, &st);
        if (r < 0)
            return r;
        *ret = st.flags & STATUS_ZERO;
    }
    return 0;
}

/* Of the @n clusters from @first on, of which the first wants one. They have their
 * places, which may be written to by a guest at any moment: so all that is done here
 * is to say that they are used, where they read as zero. Else zeros are written
 * as guests would, under a claim, to one cluster. */
static int co_step_in_data_file(const struct prealloc *p, uint64_t first, uint32_t n)
{
    struct qcow2 *s = p->s;
    uint64_t off = first << s->geo.cluster_bits, len;
    struct qcow2_space space = { .host = off, .n = n };
    uint32_t used;
    bool zero = false;
    int r = co_qcow2_data_grow(s, s->node->size);

    len = MIN(n * s->cluster_size, s->node->size - off);
    if (r == 0 && p->mode == QCOW2_PREALLOC_METADATA)
        r = co_reads_as_zero(s->data, off, len, &zero);
    if (r < 0)
        return r;
    if (zero)
        return co_link(s, first, n, &space, false, &used);

    struct iovec iov = { p->zeros, MIN(len, s->cluster_size) };

    return co_qcow2_write_run(s, off, iov.iov_len, &iov, 1, REQ_BULK);
}

/* ---- all of it ----------------------------------------------------------- */

/* One run of clusters for some of the @n guest clusters from @first on; *ret_missing:
 * how many wanted one. */
static int co_step(const struct prealloc *p, uint64_t first, uint32_t n, uint32_t *ret_missing)
{
    struct qcow2 *s = p->s;
    struct qcow2_space space;
    uint32_t used = 0, skip;
    bool zero;
    int r = co_count(s, first, n, ret_missing, &skip);

    if (r < 0 || !*ret_missing)
        return r;
    if (s->geo.data_file)
        return co_step_in_data_file(p, first + skip, n - skip);
    r = co_qcow2_alloc(s, *ret_missing, &space);
    if (r < 0)
        return r;
    r = co_fill(p, &space, &zero);
    if (r == 0)
        r = co_link(s, first, n, &space, zero, &used);
    if (used < space.n && s->write_ready) {
        int ignored = co_qcow2_unref(s, (space.host >> s->geo.cluster_bits) + used,
                                     space.n - used);

        (void)ignored;           /* at worst they leak */
    }
    qcow2_sync_soon(s);
    return r;
}

static int co_run(const struct prealloc *p, uint64_t first, uint64_t end)
{
    struct qcow2 *s = p->s;
    uint32_t in_slice = 1U << s->l2_slice_bits, missing;
    int r = 0;

    while (r == 0 && first < end) {
        uint32_t n = (uint32_t)MIN(end - first, in_slice - (first & (in_slice - 1)));
        unsigned entered = qcow2_enter(s);

        r = co_step(p, first, n, &missing);
        qcow2_leave(s, entered);
        if (!missing)
            first += n;
        co_yield();
    }
    return r;
}

bool co_qcow2_preallocate(struct node *n, uint64_t off, uint64_t len, enum qcow2_prealloc mode,
                          struct err *err)
{
    struct qcow2 *s = n->state;
    bool writes = mode == QCOW2_PREALLOC_FULL || s->geo.data_file;
    CLEANUP(free) void *zeros = writes ? try_alloc_aligned(ZEROS_BYTES) : NULL;
    struct prealloc p = { .s = s, .mode = mode, .zeros = zeros };
    int r;

    assert(strcmp(n->drv->name, "qcow2") == 0);
    if (len > n->size || off > n->size - len)
        return err_set(err, -EINVAL, "What is to get its space lies outside of the disk");
    if (mode == QCOW2_PREALLOC_OFF || !len)
        return true;
    if (n->read_only)
        return err_set(err, -EPERM, "Node '%s' is read-only", n->name);
    if (writes && !zeros)
        return err_set(err, -ENOMEM, "Out of memory");
    if (zeros)
        memset(zeros, 0, ZEROS_BYTES);
    r = co_qcow2_begin_write(s);
    if (r == 0)
        r = co_run(&p, off >> s->geo.cluster_bits,
                   ((off + len - 1) >> s->geo.cluster_bits) + 1);
    if (r == 0)
        r = co_qcow2_sync(s);
    return r == 0 || err_errno(err, r, "Could not give the image its space");
}
