/* SPDX-License-Identifier: Apache-2.0
 *
 * Counting nodes afresh for each pick costs a walk of the registry and can never
 * be wrong, whoever opened, moved or closed what meanwhile.
 */
#include "qmp/placement.h"
#include "base/mem.h"
#include "block/graph.h"
#include <sched.h>
#include <stdio.h>
#include <unistd.h>

struct place {
    struct loop *loop;
    unsigned opening;        /* picked and not settled */
    unsigned nodes;          /* during a count */
};

struct placement {
    enum loop_engine engine;
    unsigned n, max;
    struct place *places;
};

struct placement *placement_new(enum loop_engine engine, unsigned max_loops)
{
    struct placement *p = xnew(struct placement);

    assert(max_loops >= 1);
    p->engine = engine;
    p->max = max_loops;
    p->places = xcalloc(max_loops, sizeof(*p->places));
    return p;
}

void placement_free(struct placement *p)
{
    if (!p)
        return;
    for (unsigned i = 0; i < p->n; i++)
        loop_stop(p->places[i].loop);
    for (unsigned i = 0; i < p->n; i++) {
        loop_join(p->places[i].loop);
        loop_free(p->places[i].loop);
    }
    free(p->places);
    free(p);
}

unsigned placement_usable_cpus(void)
{
    cpu_set_t set;

    if (sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) > 0)
        return (unsigned)CPU_COUNT(&set);

    /* More CPUs than the fixed set has room for. */
    long n = sysconf(_SC_NPROCESSORS_ONLN);

    return n > 0 ? (unsigned)n : 1;
}

static struct place *place_of(struct placement *p, const struct loop *loop)
{
    for (unsigned i = 0; i < p->n; i++) {
        if (p->places[i].loop == loop)
            return &p->places[i];
    }
    return NULL;
}

/* Nodes that users have named stand for disks; those that drivers opened below
 * them ('#block...') come with them. */
static void count_node(struct node *n, void *arg)
{
    struct place *place = place_of(arg, node_loop(n));

    if (place && node_name(n)[0] != '#')
        place->nodes++;
}

static struct place *least_loaded(struct placement *p)
{
    struct place *best = NULL;

    for (unsigned i = 0; i < p->n; i++)
        p->places[i].nodes = p->places[i].opening;
    node_for_each(count_node, p);
    for (unsigned i = 0; i < p->n; i++) {
        if (!best || p->places[i].nodes < best->nodes)
            best = &p->places[i];
    }
    return best;
}

static struct place *start_loop(struct placement *p, struct err *err)
{
    char name[16];

    snprintf(name, sizeof(name), "disks-%u", p->n);

    struct loop *loop = loop_new(p->engine, name, err);

    if (!loop)
        return NULL;
    if (!loop_spawn(loop, err)) {
        loop_free(loop);
        return NULL;
    }
    p->places[p->n] = (struct place){ .loop = loop };
    return &p->places[p->n++];
}

struct loop *placement_pick(struct placement *p, struct err *err)
{
    struct place *place = least_loaded(p);

    if (!place || (place->nodes && p->n < p->max))
        place = start_loop(p, err);
    if (!place)
        return NULL;
    place->opening++;
    return place->loop;
}

void placement_settled(struct placement *p, struct loop *loop)
{
    struct place *place = place_of(p, loop);

    assert(place && place->opening);
    place->opening--;
}

unsigned placement_loops(const struct placement *p)
{
    return p->n;
}
