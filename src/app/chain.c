/* SPDX-License-Identifier: Apache-2.0
 *
 * Backing chains of commands that change images.
 */
#include "app/chain.h"
#include "app/image_name.h"
#include "app/offline.h"
#include "base/limits.h"
#include "base/mem.h"
#include "drivers/image_dirs.h"
#include "drivers/qcow2/snapshot.h"
#include <sys/stat.h>

static struct node *lock_words(struct node *n, const char *name, struct err *err)
{
    if (!n && image_is_locked_by_others(err))
        err_set(err, -EAGAIN, "'%s' is open in another process: end that first", name);
    return n;
}

struct node *co_open_to_change(const struct open_file_opts *o, struct err *err)
{
    return lock_words(co_node_open_file(o, err), o->filename, err);
}

struct node *co_open_json_to_change(const json_t *json, const char *name, struct err *err)
{
    return lock_words(co_node_open(json, false, err), name, err);
}

/* ---- which they are -------------------------------------------------------- */

/* Look into the header of the last layer, and add the one that it names. *ret_more
 * false: it names none. */
static bool co_add_next(struct chain *c, bool *ret_more, struct err *err)
{
    struct chain_layer *last = &c->v[c->n - 1];
    const struct offline_open o = { .name = last->name, .format = last->format,
                                    .force_share = true, .no_backing = true };
    CLEANUP(free) struct node_info *ni = xnew(struct node_info);
    struct node *n = co_offline_open(&o, err);
    char *path;

    *ret_more = false;
    if (!n)
        return false;
    node_get_info(n, ni);
    co_node_unref(n);
    if (!*ni->backing_file)
        return true;
    if (image_name_is_uri(ni->backing_file) || image_name_is_uri(last->name))
        return err_set(err, -ENOTSUP, "'%s' stands on '%s', which is no file of this host",
                       last->name, ni->backing_file);
    if (!*ni->backing_format)
        return err_set(err, -EINVAL, "'%s' does not say which format its backing file '%s' has: "
                       "write that into it with 'stillpoint rebase --unsafe'", last->name,
                       ni->backing_file);
    path = image_dirs_resolve(last->name, ni->backing_file, "backing file", err);
    if (!path) {
        err_prefix(err, "'%s': ", last->name);
        return false;
    }
    last->backing_name = xstrdup(ni->backing_file);
    c->v = xrealloc(c->v, (c->n + 1) * sizeof(*c->v));
    c->v[c->n++] = (struct chain_layer){ .name = path, .format = xstrdup(ni->backing_format) };
    *ret_more = true;
    return true;
}

bool co_chain_list(const char *name, const char *format, struct chain *ret, struct err *err)
{
    bool more = true;

    *ret = (struct chain){ 0 };
    format = image_format_to_read(name, format, err);
    if (!format)
        return false;
    ret->v = xnew(struct chain_layer);
    ret->n = 1;
    ret->v[0] = (struct chain_layer){ .name = xstrdup(name), .format = xstrdup(format) };
    while (more && co_add_next(ret, &more, err)) {
        if (ret->n > LIMIT_CHAIN_DEPTH) {
            err_set(err, -ELOOP, "'%s': more than %u images stand on each other, or one on itself",
                    name, LIMIT_CHAIN_DEPTH);
            break;
        }
    }
    if (err->code == 0)
        return true;
    chain_done(ret);
    return false;
}

void chain_done(struct chain *c)
{
    for (unsigned i = 0; i < c->n; i++) {
        free(c->v[i].name);
        free(c->v[i].format);
        free(c->v[i].backing_name);
    }
    free(c->v);
    *c = (struct chain){ 0 };
}

bool chain_same_file(const char *a, const char *b)
{
    struct stat sa, sb;

    return strcmp(a, b) == 0 || (stat(a, &sa) == 0 && stat(b, &sb) == 0 &&
                                 sa.st_dev == sb.st_dev && sa.st_ino == sb.st_ino);
}

bool chain_has_subclusters(struct node *n)
{
    CLEANUP(json_decref) json_t *specific = node_format_info(n);

    return json_is_true(json_object_get(json_object_get(specific, "data"), "extended-l2"));
}

bool chain_spare_snapshots(struct node *n, const char *name, bool allowed, struct err *err)
{
    CLEANUP(json_decref) json_t *list = NULL;

    if (allowed || strcmp(node_driver_name(n), "qcow2") != 0)
        return true;
    list = qcow2_snapshot_list(n);
    if (!json_array_size(list))
        return true;
    return err_set(err, -EBUSY, "'%s' has %zu snapshot%s inside, which would read differently "
                   "afterwards: they stand on its backing file too. Delete them ('stillpoint "
                   "snapshot delete'), or say --change-snapshots", name, json_array_size(list),
                   json_array_size(list) == 1 ? "" : "s");
}

/* ---- opening --------------------------------------------------------------- */

struct node *co_chain_open(const struct chain *c, unsigned i, bool writable, struct node *below,
                           struct err *err)
{
    const struct open_file_opts o = {
        .filename = c->v[i].name, .format = c->v[i].format, .read_only = !writable,
        .unmap = writable,
    };
    CLEANUP(json_decref) json_t *json = node_json_for_file(&o, err);

    if (!json)
        return NULL;
    if (below)
        json_object_set_new(json, "backing", json_string(node_name(below)));
    return co_open_json_to_change(json, o.filename, err);
}
