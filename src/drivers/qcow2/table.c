/* SPDX-License-Identifier: Apache-2.0
 *
 * Tables kept in memory, see table.h.
 */
#include "drivers/qcow2/table.h"
#include "base/mem.h"
#include "drivers/qcow2/format.h"

#define CHUNK_ENTRIES 512U
#define CHUNK_BYTES (CHUNK_ENTRIES * 8)

int qcow2_table_init(struct qcow2_table *t, uint64_t off, uint32_t n)
{
    *t = (struct qcow2_table){ .off = off, .n = n, .n_chunks = (n + CHUNK_ENTRIES - 1) /
                                                              CHUNK_ENTRIES };
    t->v = calloc(MAX(n, 1U), sizeof(*t->v));
    t->chunk_dirty = calloc(MAX(t->n_chunks, 1U), 1);
    if (t->v && t->chunk_dirty)
        return 0;
    qcow2_table_done(t);
    return -ENOMEM;
}

void qcow2_table_done(struct qcow2_table *t)
{
    free(MOVE(t->v));
    free(MOVE(t->chunk_dirty));
    free(MOVE(t->frozen));
    free(MOVE(t->frozen_chunks));
}

int qcow2_table_lengthen(struct qcow2_table *t, uint32_t n)
{
    struct qcow2_table longer;
    int r = qcow2_table_init(&longer, t->off, n);

    assert(!t->n_frozen && n >= t->n);
    if (r < 0)
        return r;
    memcpy(longer.v, t->v, t->n * sizeof(*t->v));
    memcpy(longer.chunk_dirty, t->chunk_dirty, t->n_chunks);
    longer.n_dirty = t->n_dirty;
    qcow2_table_done(t);
    *t = longer;
    return 0;
}

void qcow2_table_decode(struct qcow2_table *t, const void *disk)
{
    for (uint32_t i = 0; i < t->n; i++)
        t->v[i] = qcow2_entry_get(disk, i);
}

void qcow2_table_encode(const struct qcow2_table *t, void *disk)
{
    for (uint32_t i = 0; i < t->n; i++)
        qcow2_entry_set(disk, i, t->v[i]);
}

static void mark_dirty(struct qcow2_table *t, uint32_t chunk)
{
    t->n_dirty += !t->chunk_dirty[chunk];
    t->chunk_dirty[chunk] = 1;
}

void qcow2_table_set(struct qcow2_table *t, uint32_t i, uint64_t v)
{
    assert(i < t->n);
    t->v[i] = v;
    mark_dirty(t, i / CHUNK_ENTRIES);
}

int qcow2_table_freeze(struct qcow2_table *t)
{
    uint32_t n = 0;

    assert(!t->n_frozen);
    if (!t->n_dirty)
        return 0;
    t->frozen = malloc((size_t)t->n_dirty * CHUNK_BYTES);
    t->frozen_chunks = malloc(t->n_dirty * sizeof(*t->frozen_chunks));
    if (!t->frozen || !t->frozen_chunks) {
        free(MOVE(t->frozen));
        free(MOVE(t->frozen_chunks));
        return -ENOMEM;
    }
    for (uint32_t chunk = 0; chunk < t->n_chunks; chunk++) {
        if (!t->chunk_dirty[chunk])
            continue;
        t->chunk_dirty[chunk] = 0;
        for (uint32_t i = 0; i < CHUNK_ENTRIES && chunk * CHUNK_ENTRIES + i < t->n; i++)
            qcow2_entry_set(t->frozen + (size_t)n * CHUNK_BYTES, i,
                            t->v[chunk * CHUNK_ENTRIES + i]);
        t->frozen_chunks[n++] = chunk;
    }
    assert(n == t->n_dirty);
    t->n_frozen = n;
    t->n_dirty = 0;
    return 0;
}

int co_qcow2_table_write_frozen(struct qcow2_table *t,
                                int (*co_write)(void *ctx, uint64_t off, const void *buf,
                                                uint32_t bytes),
                                void *ctx)
{
    for (uint32_t i = 0; i < t->n_frozen; i++) {
        uint32_t first = t->frozen_chunks[i] * CHUNK_ENTRIES;
        uint32_t bytes = MIN(CHUNK_ENTRIES, t->n - first) * 8;
        int r = co_write(ctx, t->off + first * 8ULL, t->frozen + (size_t)i * CHUNK_BYTES, bytes);

        if (r < 0)
            return r;
    }
    return 0;
}

void qcow2_table_thaw(struct qcow2_table *t, bool written)
{
    for (uint32_t i = 0; i < t->n_frozen && !written; i++)
        mark_dirty(t, t->frozen_chunks[i]);
    t->n_frozen = 0;
    free(MOVE(t->frozen));
    free(MOVE(t->frozen_chunks));
}
