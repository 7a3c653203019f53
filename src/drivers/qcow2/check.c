/* SPDX-License-Identifier: Apache-2.0
 *
 * Checking an image, see check.h: what is read at the beginning, the going through
 * in windows, and the order of check, repair and check again. What is counted is
 * what QEMU's check counts (block/qcow2-refcount.c), so that both give the same
 * verdict on the same image.
 */
#include "base/limits.h"
#include "base/mem.h"
#include "drivers/qcow2/check_int.h"
#include "loop/co_io.h"
#include <stdio.h>

#define HEADER_READ_BYTES (2 * MiB)
#define WORK_AT_ONCE 16384U       /* entries: some hundred microseconds */
#define REPAIR_ROUNDS 3U
#define SORT_AT_ONCE 4096U        /* more elements are a worker's */

/* ---- what is told -------------------------------------------------------- */

static void PRINTF_LIKE(2, 0) say(struct check *c, const char *fmt, va_list ap)
{
    char line[512];

    if (c->mute || !c->opts->tell || c->lines > LIMIT_QCOW2_CHECK_LINES)
        return;
    if (c->lines++ == LIMIT_QCOW2_CHECK_LINES) {
        c->opts->tell(c->opts->ctx, "... and more that is not listed");
        return;
    }
    vsnprintf(line, sizeof(line), fmt, ap);
    c->opts->tell(c->opts->ctx, line);
}

void check_say(struct check *c, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    say(c, fmt, ap);
    va_end(ap);
}

void check_corrupt(struct check *c, uint64_t times, const char *fmt, ...)
{
    va_list ap;

    c->res->corruptions += times;
    va_start(ap, fmt);
    say(c, fmt, ap);
    va_end(ap);
}

void check_hide(struct check *c, const char *fmt, ...)
{
    va_list ap;

    if (c->hidden.code)
        return;
    c->hidden.code = -EUCLEAN;
    va_start(ap, fmt);
    vsnprintf(c->hidden.text, sizeof(c->hidden.text), fmt, ap);
    va_end(ap);
}

int co_check_breathe(struct check *c, uint64_t work)
{
    c->work += work;
    if (c->work >= WORK_AT_ONCE) {
        c->work = 0;
        co_yield();
    }
    return c->opts->cancelled && c->opts->cancelled(c->opts->ctx) ? -ECANCELED : 0;
}

/* ---- what takes long ----------------------------------------------------- */

struct sort_work {
    void *v;
    size_t n, size;
    int (*compare)(const void *, const void *);
};

static int sort_work(void *arg)
{
    const struct sort_work *w = arg;

    qsort(w->v, w->n, w->size, w->compare);
    return 0;
}

void co_check_sort(void *v, size_t n, size_t size, int (*compare)(const void *, const void *))
{
    struct sort_work w = { v, n, size, compare };
    int r;

    if (n < 2)
        return;
    r = n > SORT_AT_ONCE ? co_offload_bulk(sort_work, &w) : sort_work(&w);
    assert(r == 0);
}

struct pages_work {
    const struct qcow2_counts *counts;
    uint64_t **ret;
    size_t *ret_n;
};

static int pages_work(void *arg)
{
    const struct pages_work *w = arg;

    return qcow2_counts_pages(w->counts, w->ret, w->ret_n);
}

int co_check_pages(struct check *c, uint64_t **ret, size_t *ret_n)
{
    struct pages_work w = { c->counts, ret, ret_n };

    return co_offload_bulk(pages_work, &w);
}

/* ---- the file ------------------------------------------------------------ */

int co_check_read(struct check *c, uint64_t off, uint64_t len, void *buf)
{
    uint64_t size = node_size(c->file), have = off < size ? MIN(len, size - off) : 0;

    memset((uint8_t *)buf + have, 0, len - have);
    return have ? co_node_pread(c->file, off, have, buf, 0) : 0;
}

bool co_check_is_zero(struct check *c, uint64_t off, uint64_t len)
{
    uint64_t size = node_size(c->file);
    struct block_status st;

    if (off >= size || (off >= c->zero_from && off + len <= c->zero_end))
        return true;
    if (off >= c->data_from && off < c->data_end)
        return false;
    if (co_node_status(c->file, off, size - off, &st) < 0)
        return false;
    if (st.flags & STATUS_ZERO) {
        c->zero_from = off;
        c->zero_end = off + st.len == size ? UINT64_MAX : off + st.len;
        return off + len <= c->zero_end;
    }
    c->data_from = off;
    c->data_end = off + st.len;
    return false;
}

/* ---- opening ------------------------------------------------------------- */

static void set_geometry(struct check *c)
{
    const struct qcow2_header *h = &c->h;

    c->geo = qcow2_geometry_of(h);
    c->entry_bytes = 1U << qcow2_l2_entry_bits(&c->geo);
    c->cluster_size = 1ULL << h->cluster_bits;
    c->block_bits = (uint8_t)(h->cluster_bits + 3 - h->refcount_order);
    c->data_file = h->incompatible & QCOW2_INCOMPAT_DATA_FILE;
    c->file_end = align_up(node_size(c->file), 512);
    c->clusters = div_round_up(c->file_end, c->cluster_size);
}

static bool co_read_header(struct check *c, struct err *err)
{
    uint64_t bytes = MIN(node_size(c->file), HEADER_READ_BYTES);
    CLEANUP(free) void *buf = try_alloc_aligned(MAX(bytes, 1ULL));
    int r = buf ? 0 : -ENOMEM;

    if (r == 0 && bytes)
        r = co_node_pread(c->file, 0, bytes, buf, 0);
    if (r < 0)
        return err_errno(err, r, "Could not read the qcow2 header");
    if (!qcow2_header_parse_to_check(buf, bytes, &c->h, err))
        return false;
    set_geometry(c);
    return true;
}

int co_check_load_reftable(struct check *c)
{
    uint64_t bytes = (uint64_t)c->h.reftable_clusters << c->geo.cluster_bits;
    int r;

    free(c->reftable);
    c->n_reftable = (uint32_t)(bytes / 8);
    c->reftable = try_alloc_aligned(MAX(bytes, 8ULL));
    if (!c->reftable)
        return -ENOMEM;
    r = co_check_read(c, c->h.reftable_off, bytes, c->reftable);
    for (uint32_t i = 0; r == 0 && i < c->n_reftable; i++)
        c->reftable[i] = qcow2_entry_get(c->reftable, i);
    check_forget_slices(c);
    return r;
}

static bool co_load(struct check *c, struct err *err)
{
    int r = 0;

    if (!co_read_header(c, err))
        return false;
    c->n_slices = MIN(c->file_end / CHECK_SLICE_BYTES + 16, (uint64_t)CHECK_SLICES);
    c->slices = calloc(c->n_slices, sizeof(*c->slices));
    c->block = try_alloc_aligned(c->cluster_size);
    if (!c->slices || !c->block)
        r = -ENOMEM;
    if (r == 0)
        r = co_check_load_reftable(c);
    if (r < 0)
        return err_errno(err, r, "Could not read the refcount table");
    return true;
}

static void unload(struct check *c)
{
    free(c->slices);
    free(c->block);
    free(c->reftable);
    free(c->snapshots);
    free(c->bitmaps);
}

/* ---- one check ----------------------------------------------------------- */

int co_check_windows(struct check *c, int (*co_each)(struct check *c))
{
    uint64_t from = 0;
    int r;

    do {
        c->counts = qcow2_counts_new(from, LIMIT_QCOW2_CHECK_COUNT_BYTES);
        if (!c->counts)
            return -ENOMEM;
        r = co_check_count(c);
        if (r == 0)
            r = co_each(c);
        from = qcow2_counts_end(c->counts);
        qcow2_counts_free(MOVE(c->counts));
        c->judging = false;
    } while (r == 0 && from < c->clusters);
    return r;
}

/* Look at everything; c->res says what was found. */
static int co_check_once(struct check *c)
{
    struct qcow2_check_result *res = c->res;
    int r;

    *res = (struct qcow2_check_result){
        .total = div_round_up(c->h.size, c->cluster_size),
        .corruptions_fixed = res->corruptions_fixed,
        .leaks_fixed = res->leaks_fixed,
    };
    check_forget_slices(c);      /* a repair may have written past them */
    c->rebuild = c->bitmaps_broken = c->invalid_entries = false;
    c->hidden.code = 0;
    c->cut_end = c->copied_errors = c->highest = c->compared = 0;
    c->file_end = align_up(node_size(c->file), 512);
    c->clusters = div_round_up(c->file_end, c->cluster_size);
    c->zero_from = c->zero_end = c->data_from = c->data_end = 0;
    c->judging = true;
    r = co_check_load_snapshots(c);
    if (r == 0)
        r = co_check_load_bitmaps(c);
    if (r == 0)
        r = co_check_windows(c, co_check_compare);
    c->judging = false;
    res->image_end = (c->highest + 1) * c->cluster_size;
    res->checked = r == 0;
    return r;
}

/* Check, and as far as is asked repair and check again. */
static int co_check_and_repair(struct check *c)
{
    int r = co_check_once(c);
    struct qcow2_check_result before = *c->res;

    if (r < 0 || c->opts->repair == QCOW2_REPAIR_NONE)
        return r;
    /* What is right now may show something else: flags when the refcounts are
     * right, a leak where an entry was dropped. */
    for (unsigned round = 0; round < REPAIR_ROUNDS; round++) {
        if (r < 0 || !(c->res->corruptions || c->res->leaks || c->res->check_errors))
            break;
        r = co_check_repair(c);
        c->lines = 0;
        if (r == 0)
            r = co_check_once(c);
    }
    if (before.corruptions > c->res->corruptions)
        c->res->corruptions_fixed = before.corruptions - c->res->corruptions;
    if (before.leaks > c->res->leaks)
        c->res->leaks_fixed = before.leaks - c->res->leaks;
    if (r == 0 && !c->res->corruptions && !c->res->check_errors)
        r = co_check_mark_clean(c);
    return r;
}

bool co_qcow2_check(struct node *file, const struct qcow2_check_opts *opts,
                    struct qcow2_check_result *ret, struct err *err)
{
    struct check c = { .file = file, .opts = opts, .res = ret };
    bool ok;

    *ret = (struct qcow2_check_result){ 0 };
    ok = co_load(&c, err);
    if (ok) {
        int r = co_check_and_repair(&c);

        if (r < 0 && c.err.code)
            ok = err_set(err, r, "%s", c.err.text);
        else if (r < 0)
            ok = err_errno(err, r, opts->repair == QCOW2_REPAIR_NONE ? "Check failed"
                                                                     : "Check or repair failed");
    }
    unload(&c);
    return ok;
}
