/* SPDX-License-Identifier: Apache-2.0
 *
 * For a check: the refcounts on disk. Read through a small cache where they are
 * asked for here and there, a block at a time where all of them are compared with
 * what was counted.
 */
#include "base/limits.h"
#include "base/mem.h"
#include "drivers/qcow2/check_int.h"
#include <inttypes.h>

#define PAGE QCOW2_COUNTS_PAGE

/* ---- one ----------------------------------------------------------------- */

enum check_block check_block_at(const struct check *c, uint64_t i, uint64_t *ret_off)
{
    uint64_t off = i < c->n_reftable ? c->reftable[i] & ~511ULL : 0;

    *ret_off = off;
    if (!off)
        return CHECK_BLOCK_NONE;
    return is_aligned(off, c->cluster_size) && off <= INT64_MAX ? CHECK_BLOCK_THERE
                                                                : CHECK_BLOCK_BAD;
}

void check_forget_slices(struct check *c)
{
    for (size_t i = 0; c->slices && i < c->n_slices; i++)
        c->slices[i].off = 0;
}

int co_check_refcount(struct check *c, uint64_t cluster, uint64_t *ret)
{
    unsigned order = c->geo.refcount_order;
    uint64_t in_block = cluster & ((1ULL << c->block_bits) - 1), block, off, bytes;
    struct check_slice *slice;

    *ret = 0;
    switch (check_block_at(c, cluster >> c->block_bits, &block)) {
    case CHECK_BLOCK_NONE:
        return 0;
    case CHECK_BLOCK_BAD:
        return -EUCLEAN;
    case CHECK_BLOCK_THERE:
        break;
    }
    bytes = MIN(c->cluster_size, (uint64_t)CHECK_SLICE_BYTES);
    off = block + align_down((in_block << order) / 8, bytes);
    slice = &c->slices[off / bytes % c->n_slices];
    if (slice->off != off) {
        int r;

        slice->off = 0;
        r = co_check_read(c, off, bytes, slice->bytes);
        if (r < 0)
            return r;
        slice->off = off;
    }
    *ret = qcow2_refcount_get(slice->bytes, order, in_block & ((bytes * 8 >> order) - 1));
    return 0;
}

/* ---- the blocks themselves ----------------------------------------------- */

static void bad_block(struct check *c, uint64_t i, const char *what)
{
    c->rebuild = true;
    if (c->judging)
        check_corrupt(c, 1, "ERROR refcount block %" PRIu64 " %s", i, what);
}

int co_check_blocks(struct check *c)
{
    int r = 0;

    for (uint64_t i = 0; r == 0 && i < c->n_reftable; i++) {
        uint64_t off = c->reftable[i] & ~511ULL, cluster = off >> c->geo.cluster_bits;

        if (!c->reftable[i])
            continue;
        r = co_check_breathe(c, 1);
        if (r < 0)
            break;
        if (c->reftable[i] & 511) {
            bad_block(c, i, "has reserved bits set in its refcount table entry");
            continue;
        }
        if (!is_aligned(off, c->cluster_size)) {
            bad_block(c, i, "is not cluster aligned; refcount table entry corrupted");
            continue;
        }
        if (cluster >= c->clusters) {
            bad_block(c, i, "is outside image");
            continue;
        }
        r = check_add(c, off, c->cluster_size, 1);
        if (r < 0)
            return r;
        if (cluster >= qcow2_counts_end(c->counts) || !qcow2_counts_get(c->counts, cluster))
            continue;            /* of another window */
        if (check_counted(c, cluster) != 1) {
            c->rebuild = true;
            check_corrupt(c, 1, "ERROR refcount block %" PRIu64 " refcount=%" PRIu64, i,
                          check_counted(c, cluster));
        }
    }
    return r;
}

/* ---- comparing ----------------------------------------------------------- */

/* A run through the clusters of a window, block by block. */
struct compare {
    bool correct;                /* else only tell */
    bool there;                  /* the block that is looked at exists */
    uint64_t from, end;          /* clusters of the window that there are */
    uint64_t *pages;             /* counted ones, ascending */
    size_t n_pages, page;        /* the first that is not done */
};

/* Whether [from, to), a page or less, has the same refcount everywhere: *ret. */
static bool is_even_on_disk(const struct check *c, uint64_t from, uint64_t to, uint64_t *ret)
{
    unsigned order = c->geo.refcount_order;
    uint64_t i = from & ((1ULL << c->block_bits) - 1), bits = (to - from) << order;
    const uint8_t *p = c->block + (i << order) / 8;
    size_t width = order > 3 ? 1U << (order - 3) : 1, bytes = bits / 8;

    *ret = qcow2_refcount_get(c->block, order, i);
    if ((i << order) % 8 || bits % 8 || bytes < width)
        return false;
    if (order < 3 && *p != *ret * (0xffU / ((1U << (1U << order)) - 1)))
        return false;
    return !memcmp(p, p + width, bytes - width);
}

/* Clusters that are alike are told of at once: those that are in order, and when
 * enough has been listed the others too. */
static bool compare_alike(struct check *c, const struct compare *k, uint64_t from, uint64_t to)
{
    uint64_t disk, counted, n = to - from;

    if (!qcow2_counts_is_even(c->counts, from / PAGE, &counted) ||
        counted > qcow2_refcount_max(c->geo.refcount_order) ||
        !is_even_on_disk(c, from, to, &disk))
        return false;
    if (disk != counted && (k->correct || (c->opts->tell && !c->mute &&
                                           c->lines <= LIMIT_QCOW2_CHECK_LINES)))
        return false;
    if (!k->correct && (disk || counted))
        c->highest = MAX(c->highest, to - 1);
    c->rebuild |= disk < counted && !k->there;
    c->res->corruptions += disk < counted ? n : 0;
    c->res->leaks += disk > counted ? n : 0;
    return true;
}

static bool may_set(const struct check *c, uint64_t disk, uint64_t counted)
{
    return disk > counted || c->opts->repair == QCOW2_REPAIR_ALL;
}

/* Whether the block was changed. */
static bool compare_one(struct check *c, const struct compare *k, uint64_t cluster)
{
    uint64_t all = qcow2_counts_get(c->counts, cluster), counted = check_counted(c, cluster);
    uint64_t i = cluster & ((1ULL << c->block_bits) - 1);
    uint64_t disk = qcow2_refcount_get(c->block, c->geo.refcount_order, i);

    if (k->correct) {
        if (disk == counted || !may_set(c, disk, counted))
            return false;
        qcow2_refcount_set(c->block, c->geo.refcount_order, i, counted);
        return true;
    }
    if (disk || counted)
        c->highest = MAX(c->highest, cluster);
    if (all > counted)
        check_corrupt(c, all - counted, "ERROR: overflow cluster offset=%#" PRIx64,
                      cluster << c->geo.cluster_bits);
    c->rebuild |= disk < counted && !k->there;
    if (disk < counted)
        check_corrupt(c, 1, "ERROR cluster %" PRIu64 " refcount=%" PRIu64 " reference=%" PRIu64,
                      cluster, disk, counted);
    if (disk > counted) {
        c->res->leaks++;
        check_say(c, "Leaked cluster %" PRIu64 " refcount=%" PRIu64 " reference=%" PRIu64,
                  cluster, disk, counted);
    }
    return false;
}

/* Read the block for clusters [from, to) into c->block; zeros if there is none. */
static int co_load_block(struct check *c, uint64_t from, uint64_t to, bool *ret_usable)
{
    uint64_t off;
    int r = 0;

    *ret_usable = true;
    switch (check_block_at(c, from >> c->block_bits, &off)) {
    case CHECK_BLOCK_NONE:
        memset(c->block, 0, c->cluster_size);
        break;
    case CHECK_BLOCK_BAD:
        *ret_usable = false;
        c->res->check_errors += to - from;
        check_say(c, "ERROR refcounts of clusters %" PRIu64 " to %" PRIu64 " cannot be read", from,
                  to - 1);
        break;
    case CHECK_BLOCK_THERE:
        r = co_check_read(c, off, c->cluster_size, c->block);
        break;
    }
    return r;
}

/* Compare the clusters [from, to) of one block. */
static int co_compare_block(struct check *c, struct compare *k, uint64_t from, uint64_t to)
{
    uint64_t off, first_changed = UINT64_MAX, last_changed = 0, next;
    bool there = check_block_at(c, from >> c->block_bits, &off) == CHECK_BLOCK_THERE, usable;
    int r = co_load_block(c, from, to, &usable);

    if (r < 0 || !usable)
        return r;
    k->there = there;
    for (uint64_t at = from; at < to; at = next) {
        next = MIN(to, (at / PAGE + 1) * PAGE);
        if (compare_alike(c, k, at, next))
            continue;
        r = co_check_breathe(c, next - at);
        if (r < 0)
            return r;
        c->compared += next - at;
        for (uint64_t cluster = at; cluster < next; cluster++) {
            if (compare_one(c, k, cluster)) {
                first_changed = MIN(first_changed, cluster);
                last_changed = cluster;
            }
        }
    }
    if (c->compared > LIMIT_QCOW2_CHECK_REFCOUNTS)
        return -EFBIG;
    if (!there || first_changed == UINT64_MAX)
        return 0;

    uint64_t mask = (1ULL << c->block_bits) - 1;
    uint64_t begin = align_down(((first_changed & mask) << c->geo.refcount_order) / 8, 512);
    uint64_t end = align_up(((last_changed & mask) << c->geo.refcount_order) / 8 + 1, 512);

    return co_node_pwrite(c->file, off + begin, end - begin, c->block + begin, 0);
}

/* The next block, from @block on, that is on disk or has clusters that were counted;
 * UINT64_MAX if there is none. */
static uint64_t next_block(const struct check *c, struct compare *k, uint64_t block)
{
    uint64_t first = block << c->block_bits, on_disk = block, off;

    while (k->page < k->n_pages && (k->pages[k->page] + 1) * PAGE <= first)
        k->page++;
    while (on_disk < c->n_reftable && check_block_at(c, on_disk, &off) == CHECK_BLOCK_NONE)
        on_disk++;
    if (on_disk >= c->n_reftable)
        on_disk = UINT64_MAX;
    if (k->page == k->n_pages)
        return on_disk;
    return MIN(on_disk, MAX(block, (k->pages[k->page] * PAGE) >> c->block_bits));
}

static int co_run_through(struct check *c, bool correct)
{
    struct compare k = { .correct = correct, .end = MIN(c->clusters, qcow2_counts_end(c->counts)),
                         .from = qcow2_counts_from(c->counts) };
    int r = co_check_pages(c, &k.pages, &k.n_pages);

    for (uint64_t b = k.from >> c->block_bits; r == 0; b++) {
        uint64_t from, to;

        b = next_block(c, &k, b);
        if (b == UINT64_MAX || b << c->block_bits >= k.end)
            break;
        from = MAX(b << c->block_bits, k.from);
        to = MIN((b + 1) << c->block_bits, k.end);
        r = co_compare_block(c, &k, from, to);
        if (r == 0)
            r = co_check_breathe(c, PAGE);
    }
    free(k.pages);
    return r;
}

/* Tables that are written where they are, so that a refcount above one does not
 * protect them: what else refers to them is an error, though the refcounts agree. */
static int co_judge_unshared(struct check *c)
{
    const struct check_table tables[] = {
        { 0, 1 }, { c->h.l1_off, c->h.l1_entries },
        { c->h.reftable_off, ((uint64_t)c->h.reftable_clusters << c->geo.cluster_bits) / 8 },
    };
    static const char *const names[] = { "header", "active L1 table", "refcount table" };

    for (size_t i = 0; i < ARRAY_SIZE(tables); i++) {
        uint64_t first = tables[i].off >> c->geo.cluster_bits, disk = 0;
        uint64_t n = div_round_up(tables[i].n * 8, c->cluster_size);

        for (uint64_t at = first; at < first + n; at++) {
            uint64_t counted = check_counted(c, at);
            int r = counted > 1 ? co_check_refcount(c, at, &disk) : 0;

            if (r < 0 && r != -EUCLEAN)
                return r;
            if (counted <= 1 || disk != counted)
                continue;
            c->rebuild |= i == 2;        /* it gets a place of its own */
            check_corrupt(c, 1, "ERROR cluster %" PRIu64 " of the %s has %" PRIu64
                          " references", at, names[i], counted);
        }
    }
    return 0;
}

int co_check_compare(struct check *c)
{
    int r = co_run_through(c, false);

    return r < 0 ? r : co_judge_unshared(c);
}

int co_check_correct(struct check *c)
{
    return co_run_through(c, true);
}
