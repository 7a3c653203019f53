/* SPDX-License-Identifier: Apache-2.0
 *
 * The set of metadata clusters, see metaset.h.
 */
#include "drivers/qcow2/metaset.h"

int qcow2_metaset_init(struct qcow2_metaset *m, size_t n)
{
    m->n = 0;
    for (m->n_slots = 16; m->n_slots < n * 2; m->n_slots *= 2)
        ;
    m->slots = calloc(m->n_slots, sizeof(*m->slots));
    return m->slots ? 0 : -ENOMEM;
}

void qcow2_metaset_done(struct qcow2_metaset *m)
{
    free(MOVE(m->slots));
}

static size_t find_slot(const struct qcow2_metaset *m, uint64_t cluster)
{
    size_t i = qcow2_metaset_home(m, cluster);

    while (m->slots[i] && m->slots[i] != cluster)
        i = (i + 1) & (m->n_slots - 1);
    return i;
}

static int grow(struct qcow2_metaset *m)
{
    struct qcow2_metaset bigger;
    int r = qcow2_metaset_init(&bigger, m->n_slots);

    if (r < 0)
        return r;
    for (size_t i = 0; i < m->n_slots; i++) {
        if (m->slots[i])
            bigger.slots[find_slot(&bigger, m->slots[i])] = m->slots[i];
    }
    bigger.n = m->n;
    qcow2_metaset_done(m);
    *m = bigger;
    return 0;
}

int qcow2_metaset_add(struct qcow2_metaset *m, uint64_t cluster)
{
    size_t i = find_slot(m, cluster);

    assert(cluster);
    if (m->slots[i])
        return 0;
    if ((m->n + 1) * 2 > m->n_slots) {
        int r = grow(m);

        if (r < 0)
            return r;
        i = find_slot(m, cluster);
    }
    m->slots[i] = cluster;
    m->n++;
    return 0;
}

/* Close the gap: an entry further on that could not be found past it moves in. */
void qcow2_metaset_remove(struct qcow2_metaset *m, uint64_t cluster)
{
    size_t mask = m->n_slots - 1, gap = find_slot(m, cluster);

    if (!m->slots[gap])
        return;
    m->n--;
    m->slots[gap] = 0;
    for (size_t i = (gap + 1) & mask; m->slots[i]; i = (i + 1) & mask) {
        size_t home = qcow2_metaset_home(m, m->slots[i]);

        if (((i - home) & mask) >= ((i - gap) & mask)) {
            m->slots[gap] = m->slots[i];
            m->slots[i] = 0;
            gap = i;
        }
    }
}
