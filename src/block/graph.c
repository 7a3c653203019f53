/* SPDX-License-Identifier: Apache-2.0
 *
 * The registry of nodes by name, shared by all loops. One mutex guards the list
 * and what it says of each node; it is held for a walk of the list at most, and
 * never over a call out.
 */
#include "block/core.h"
#include "base/mem.h"
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct list nodes = LIST_INIT(nodes);
static uint64_t auto_names;

static bool is_letter(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

/* QEMU util/id.c, id_wellformed. */
static bool well_formed(const char *name)
{
    if (!is_letter(*name))
        return false;
    while (*++name) {
        if (!is_letter(*name) && !(*name >= '0' && *name <= '9') && !strchr("-._", *name))
            return false;
    }
    return true;
}

/* Under the mutex. */
static struct node_core *lookup(const char *name)
{
    struct node_core *core;

    list_for_each(core, &nodes, registered) {
        if (strcmp(core->node->name, name) == 0)
            return core;
    }
    return NULL;
}

bool graph_register(struct node *n, const char *name, struct err *err)
{
    if (name && strlen(name) >= NODE_NAME_MAX)
        return err_set(err, -EINVAL, "Node name '%.40s' is too long: at most %d characters", name,
                       NODE_NAME_MAX - 1);
    if (name && !well_formed(name))
        return err_set(err, -EINVAL, "Invalid node-name: '%s' (a letter, then letters, digits, "
                       "'-', '.' and '_')", name);

    pthread_mutex_lock(&lock);
    bool taken = name && lookup(name);

    if (!taken) {
        if (name)
            snprintf(n->name, sizeof(n->name), "%s", name);
        else
            snprintf(n->name, sizeof(n->name), "#block%03" PRIu64, auto_names++);
        list_push_tail(&nodes, &n->core->registered);
    }
    pthread_mutex_unlock(&lock);
    if (taken)
        return err_set(err, -EEXIST, "Duplicate nodes with node-name='%s'", name);
    return true;
}

void graph_publish(struct node *n)
{
    pthread_mutex_lock(&lock);
    n->core->findable = true;
    pthread_mutex_unlock(&lock);
}

void graph_unregister(struct node *n)
{
    pthread_mutex_lock(&lock);
    list_del(&n->core->registered);
    pthread_mutex_unlock(&lock);
}

struct node *node_find(const char *name, struct err *err)
{
    struct node *n = NULL;

    pthread_mutex_lock(&lock);
    struct node_core *core = lookup(name);
    bool opening = core && !core->findable;

    if (core && core->findable && node_ref_alive(core->node))
        n = core->node;
    pthread_mutex_unlock(&lock);
    if (n)
        return n;
    if (opening)
        err_set(err, -EAGAIN, "Node '%s' is still being opened and cannot be used yet", name);
    else
        err_set(err, -ENODEV, "Cannot find device='' nor node-name='%s'", name);
    return NULL;
}

void node_for_each(void (*fn)(struct node *n, void *arg), void *arg)
{
    struct node_core *core;
    size_t n = 0, cap = 0;

    /* @fn may suspend and does as it likes: it gets a list of its own to walk. */
    pthread_mutex_lock(&lock);
    list_for_each(core, &nodes, registered)
        cap++;
    CLEANUP(free) struct node **found = xcalloc(cap, sizeof(*found));

    list_for_each(core, &nodes, registered) {
        if (core->findable && node_ref_alive(core->node))
            found[n++] = core->node;
    }
    pthread_mutex_unlock(&lock);
    for (size_t i = 0; i < n; i++) {
        fn(found[i], arg);
        node_unref(found[i]);
    }
}
