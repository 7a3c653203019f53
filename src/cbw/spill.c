/* SPDX-License-Identifier: Apache-2.0
 *
 * Moving scratch from memory to the file while guests go on: a write to a sparse
 * file costs several times one to memory, and here a worker pays for it instead of
 * a guest's write. It begins when memory is half full and ends at a quarter, so
 * that captures find memory as long as they come more slowly than a worker
 * copies. When they come faster they wait for it.
 *
 * A batch of granules is copied by a worker; then the loop sets their bits, from
 * where on they are read from the file; then a worker makes holes in memory.
 * Nobody writes a granule that is stored, so what is copied cannot change; it can
 * be released meanwhile, and then the copy is dropped. A reader that read memory
 * looks at the bits again afterwards (store.c:co_run_read).
 */
#include "base/mem.h"
#include "cbw/store_impl.h"
#include "loop/co_io.h"
#include <unistd.h>

#define BATCH 256                      /* granules */
#define SPILL_MIN (16 * GRANULE)       /* a smaller memory tier is not worth it */

struct run {
    uint64_t first, n;                 /* granules */
};

struct batch {
    struct store *s;
    unsigned n_runs;
    uint64_t granules;
    struct run runs[BATCH];
    uint8_t buf[BATCH * VIEW_GRANULE];
};

/* ---- in a worker ------------------------------------------------------------ */

static int move_run(const struct batch *b, const struct run *run, uint8_t *buf)
{
    uint64_t off = run->first * GRANULE, len = run->n * GRANULE;

    for (uint64_t at = 0; at < len;) {
        ssize_t n = pread(b->s->memory_fd, buf + at, len - at, (off_t)(off + at));

        if (n <= 0 && errno != EINTR)
            return n < 0 ? -errno : -EIO;
        at += MAX(n, (ssize_t)0);
    }
    for (uint64_t at = 0; at < len;) {
        uint64_t place = off + at, row = len - at;
        int fd = parts_at(&b->s->file, &place, &row);
        ssize_t n = pwrite(fd, buf + at, row, (off_t)place);

        if (n <= 0 && errno != EINTR)
            return n < 0 ? -errno : -ENOSPC;
        at += MAX(n, (ssize_t)0);
    }
    return 0;
}

static int copy_work(void *arg)
{
    struct batch *b = arg;
    int r = 0;

    for (unsigned i = 0; i < b->n_runs && r == 0; i++)
        r = move_run(b, &b->runs[i], b->buf);
    return r;
}

static int punch_work(void *arg)
{
    struct batch *b = arg;

    for (unsigned i = 0; i < b->n_runs; i++) {
        /* Cannot fail on a memfd without seals but for EINTR. */
        while (fallocate(b->s->memory_fd, PUNCH, (off_t)(b->runs[i].first * GRANULE),
                         (off_t)(b->runs[i].n * GRANULE)) < 0 &&
               errno == EINTR)
            ;
    }
    return 0;
}

/* ---- on the loop -------------------------------------------------------------- */

/* The first granules at or after @from that are kept in memory, at most @max. */
static bool next_in_memory(struct store *s, uint64_t from, uint64_t max, struct run *ret)
{
    uint64_t first = from, n;

    while (bitmap_next_range(s->stored, first, UINT64_MAX, &first, &n)) {
        uint64_t end = first + n;
        uint64_t begin = bitmap_next_clear(s->in_file, first);

        if (begin < end) {
            end = MIN(end, bitmap_next_set(s->in_file, begin));
            *ret = (struct run){ begin, MIN(end - begin, max) };
            return true;
        }
        first = end;
        if (first >= bitmap_size(s->stored))
            break;
    }
    return false;
}

static void gather(struct batch *b, uint64_t *cursor)
{
    struct run run;

    b->n_runs = 0;
    b->granules = 0;
    while (b->n_runs < BATCH && b->granules < BATCH &&
           next_in_memory(b->s, *cursor, BATCH - b->granules, &run)) {
        b->runs[b->n_runs++] = run;
        b->granules += run.n;
        *cursor = run.first + run.n;
        if (*cursor >= bitmap_size(b->s->stored))
            break;
    }
}

/* The copies are in the file: whatever is still wanted is read from there now.
 * Gives how many granules had been released meanwhile. */
static uint64_t take_over(struct batch *b)
{
    struct store *s = b->s;
    uint64_t gone = 0;

    for (unsigned i = 0; i < b->n_runs; i++) {
        for (uint64_t g = b->runs[i].first; g < b->runs[i].first + b->runs[i].n; g++) {
            if (bitmap_test(s->stored, g)) {
                bitmap_set_bit(s->in_file, g);
            } else {
                store_punch_file(s, g, 1);
                gone++;
            }
        }
    }
    return gone;
}

static void co_move(struct batch *b)
{
    struct store *s = b->s;
    uint64_t bytes = b->granules * GRANULE;

    s->file_used += bytes;
    s->moving += bytes;
    if (co_offload(copy_work, b) < 0) {
        s->spill_failed = true;
        s->moving -= bytes;
        for (unsigned i = 0; i < b->n_runs; i++)
            store_punch_file(s, b->runs[i].first, b->runs[i].n);
        return;
    }

    /* What was released has left the memory's count already. */
    uint64_t gone = take_over(b) * GRANULE;

    s->moving -= gone;
    bytes -= gone;
    (void)co_offload(punch_work, b);
    s->memory_used -= bytes;
    s->moving -= bytes;
    waitq_wake_all(&s->moved);
}

static void co_spill(void *arg)
{
    struct store *s = arg;
    CLEANUP(free) struct batch *b = try_alloc_aligned(sizeof(*b));
    uint64_t cursor = 0;

    while (b && !s->dead && !s->spill_failed && s->memory_used > s->memory_max / 4) {
        b->s = s;
        gather(b, &cursor);
        if (b->granules)
            co_move(b);
        else if (cursor == 0)
            break;
        if (b->granules < BATCH)
            cursor = 0;
    }
    s->spilling = false;
    waitq_wake_all(&s->moved);
    if (s->dead)
        store_free(s);
}

void store_spill_if_full(struct store *s)
{
    if (s->spilling || s->spill_failed || !s->file.n || s->memory_max < SPILL_MIN ||
        s->memory_used <= s->memory_max / 2)
        return;
    s->spilling = true;
    co_start(co_spill, s);
}
