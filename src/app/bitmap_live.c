/* SPDX-License-Identifier: Apache-2.0
 *
 * stillpoint bitmap with a control socket: the dirty bitmaps of a disk that a daemon serves.
 * Several changes are one transaction, at one instant of the disk.
 */
#include "app/bitmap_command.h"
#include "app/served.h"

static const char *node_of(const json_t *disk)
{
    return json_string_value(json_object_get(disk, "node-name"));
}

/* Arguments that all commands for one bitmap have. */
static json_t *ref(const struct bitmap_command *c, const char *node)
{
    return json_pack("{s:s, s:o}", "node", node, "name", schema_json_str(c->name));
}

static void append(json_t *actions, const char *what, json_t *args)
{
    json_array_append_new(actions, json_pack("{s:s+, s:o}", "type", "block-dirty-bitmap-", what,
                                             "data", args));
}

static json_t *add_args(const struct bitmap_command *c, const char *node)
{
    json_t *args = ref(c, node);

    json_object_set_new(args, "persistent", json_boolean(!c->is_volatile));
    json_object_set_new(args, "disabled", json_boolean(c->disable));
    if (c->granularity)
        json_object_set_new(args, "granularity", json_integer((json_int_t)c->granularity));
    return args;
}

static json_t *merge_args(const struct bitmap_command *c, const char *node, const char *from)
{
    json_t *sources = json_array();

    for (size_t i = 0; i < c->merge.n; i++)
        json_array_append_new(sources, json_pack("{s:s, s:o}", "node", from, "name",
                                                 schema_json_str(c->merge.items[i])));
    return json_pack("{s:s, s:o, s:o}", "node", node, "target", schema_json_str(c->name),
                     "bitmaps", sources);
}

/* In the order that --help tells. @from: the node that has the bitmaps to be merged. */
static json_t *actions_for(const struct bitmap_command *c, const char *node, const char *from)
{
    json_t *actions = json_array();

    if (c->remove)
        append(actions, "remove", ref(c, node));
    if (c->add)
        append(actions, "add", add_args(c, node));
    if (c->clear)
        append(actions, "clear", ref(c, node));
    if (c->merge.n)
        append(actions, "merge", merge_args(c, node, from));
    if (c->enable)
        append(actions, "enable", ref(c, node));
    if (c->disable && !c->add)
        append(actions, "disable", ref(c, node));
    return actions;
}

static bool change(struct bitmap_command *c, struct qmp_client *client, const json_t *disk)
{
    CLEANUP(json_decref) json_t *source = NULL;
    json_t *actions;

    if (c->source && !(source = served_find(client, c->control, c->source, &c->err)))
        return false;
    actions = actions_for(c, node_of(disk), node_of(source ? source : disk));
    return qmp_client_execute(client, "transaction", json_pack("{s:o}", "actions", actions), NULL,
                              &c->err);
}

bool bitmap_live(struct bitmap_command *c)
{
    CLEANUP(qmp_client_free) struct qmp_client *client =
        qmp_client_connect(c->control, NULL, &c->err);
    CLEANUP(json_decref) json_t *disk =
        client ? served_find(client, c->control, c->disk, &c->err) : NULL;
    json_t *bitmaps;

    if (!disk)
        return false;
    if (!c->list)
        return change(c, client, disk);
    bitmaps = json_object_get(disk, "dirty-bitmaps");
    c->found = bitmaps ? json_incref(bitmaps) : json_array();
    return true;
}
