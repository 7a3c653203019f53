/* SPDX-License-Identifier: Apache-2.0
 *
 * QEMU's turn with an image of the model: random operations by one qemu-io, which
 * the shadow follows. It leaves clusters that this driver does not make, in an order
 * that it does not have.
 */
#include "model.h"

struct turn {
    struct model *m;
    FILE *script;
};

static uint64_t below(struct turn *t, uint64_t n)
{
    return test_random(&t->m->seed, n);
}

static void follow(struct turn *t, uint64_t off, uint64_t len, int byte)
{
    memset(t->m->shadow + off, byte, len);
    memset(t->m->touched + off / 512, 1, len / 512);
}

/* A range, in units of the alignment or of clusters. */
static void pick(struct turn *t, uint64_t *off, uint64_t *len)
{
    uint64_t size = t->m->size, cluster = t->m->shape->cluster;
    uint64_t unit = below(t, 2) ? cluster : 512;

    *off = align_down(below(t, size), unit);
    *len = align_up(1 + below(t, 5 * cluster), unit);
    *len = MIN(*len, size - *off);
}

static void peer_write(struct turn *t, const char *how)
{
    unsigned byte = 1 + (unsigned)below(t, 255);
    uint64_t off, len;

    pick(t, &off, &len);
    fprintf(t->script, "write -q %s -P %u %" PRIu64 " %" PRIu64 "\n", how, byte, off, len);
    follow(t, off, len, (int)byte);
}

static void peer_zero(struct turn *t)
{
    uint64_t off, len;

    pick(t, &off, &len);
    fprintf(t->script, "write -q -z %s %" PRIu64 " %" PRIu64 "\n", below(t, 2) ? "-u" : "", off,
            len);
    follow(t, off, len, 0);
}

/* Version 2 has no way to say that a cluster is zero and not the backing file's. */
static bool can_discard(const struct turn *t)
{
    return t->m->shape->version == 3 || !t->m->shape->backing;
}

/* QEMU discards whole clusters, and the last one however long it is. */
static void peer_discard(struct turn *t)
{
    uint64_t cluster = t->m->shape->cluster, off, len, from, to;

    if (!can_discard(t))
        return;
    pick(t, &off, &len);
    from = align_up(off, cluster);
    to = off + len == t->m->size ? t->m->size : align_down(off + len, cluster);
    fprintf(t->script, "discard -q %" PRIu64 " %" PRIu64 "\n", off, len);
    memset(t->m->touched + off / 512, 1, len / 512);
    if (from < to)
        follow(t, from, to - from, 0);
}

static struct turn begin_script(struct model *m)
{
    struct turn t = { m, fopen(work_path("turn.txt"), "w") };

    assert_non_null(t.script);
    return t;
}

static void end_script(struct turn *t)
{
    fputs("quit\n", t->script);
    fclose(t->script);
}

static void run_script(struct turn *t)
{
    end_script(t);
    if (run("qemu-io -f qcow2 -d unmap %s <turn.txt", t->m->image) == 0 &&
        !strstr(run_output(), "failed"))
        return;
    print_message("qemu-io: %s\n", run_output());
    run("cat turn.txt");
    fail_msg("%s, seed %" PRIu64 ":\n%s", t->m->shape->name, t->m->first_seed, run_output());
}

static void add_work(struct turn *t, unsigned n)
{
    while (n--) {
        switch (below(t, 6)) {
        case 0: case 1: case 2:
            peer_write(t, below(t, 3) ? "" : "-f");
            break;
        case 3: case 4:
            peer_zero(t);
            break;
        default:
            peer_discard(t);
        }
    }
}

static void peer_works(struct model *model, unsigned n)
{
    struct turn t = begin_script(model);

    add_work(&t, n);
    run_script(&t);
}

void model_peer_script(struct model *model, unsigned n)
{
    struct turn t = begin_script(model);

    add_work(&t, n);
    end_script(&t);
}

/* Compressed clusters are written by a process of its own, which frees none: QEMU 7.2
 * goes on to pack them into a host cluster that was freed and given to others meanwhile.
 * It takes whole clusters, one a call, and none that it would have to overwrite. */
static void peer_compresses(struct model *model)
{
    uint64_t cluster = model->shape->cluster, clusters = model->size / cluster, first, n;
    struct turn t = begin_script(model);

    first = below(&t, clusters + 1);
    n = MIN(1 + below(&t, 12), clusters - first);
    if (n && can_discard(&t))
        fprintf(t.script, "discard -q %" PRIu64 " %" PRIu64 "\n", first * cluster, n * cluster);
    run_script(&t);
    if (!can_discard(&t))
        return;
    t = begin_script(model);
    for (uint64_t i = first; i < first + n; i++) {
        unsigned byte = 1 + (unsigned)below(&t, 255);

        fprintf(t.script, "write -q -c -P %u %" PRIu64 " %" PRIu64 "\n", byte, i * cluster,
                cluster);
        follow(&t, i * cluster, cluster, (int)byte);
    }
    run_script(&t);
}

void model_peer_turn(struct model *model, unsigned n)
{
    peer_works(model, n);
    if (!model->shape->data_file)
        peer_compresses(model);
    peer_works(model, n / 4);
    model_judge(model);
}
