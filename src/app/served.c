/* SPDX-License-Identifier: Apache-2.0
 *
 * The disks of a daemon, asked for over its control socket.
 */
#include "app/served.h"
#include "base/strbuf.h"
#include <unistd.h>

/* "a, b and c" of the disks that the daemon serves. */
static void add_served(struct qmp_client *c, struct strbuf *sb)
{
    CLEANUP(json_decref) json_t *exports = NULL;
    json_t *export;
    size_t i, n;

    if (!qmp_client_execute(c, "query-block-exports", NULL, &exports, NULL))
        return;
    n = json_array_size(exports);
    strbuf_add(sb, n ? "; it serves " : "; it serves none");
    json_array_foreach(exports, i, export)
        strbuf_addf(sb, "%s'%s'", i == 0 ? "" : i + 1 < n ? ", " : " and ",
                    json_string_value(json_object_get(export, "id")));
}

bool served_no_such_disk(struct qmp_client *c, const char *control, const char *name,
                         struct err *err)
{
    CLEANUP_STRBUF struct strbuf sb = STRBUF_INIT;

    add_served(c, &sb);
    if (access(name, F_OK) == 0)
        strbuf_add(&sb, ". For a file that nobody has open say --control ''");
    return err_set(err, -ENODEV, "The daemon at '%s' has no disk '%s'%s", control, name,
                   strbuf_text(&sb));
}

/* The one of @list whose member @key is @value; NULL: none has it. Borrowed. */
static json_t *find(const json_t *list, const char *key, const char *value)
{
    json_t *item;
    size_t i;

    json_array_foreach(list, i, item) {
        const char *has = json_string_value(json_object_get(item, key));

        if (has && strcmp(has, value) == 0)
            return item;
    }
    return NULL;
}

json_t *served_find(struct qmp_client *c, const char *control, const char *name, struct err *err)
{
    CLEANUP(json_decref) json_t *exports = NULL;
    CLEANUP(json_decref) json_t *nodes = NULL;
    json_t *node, *export;

    if (!qmp_client_execute(c, "query-named-block-nodes", json_pack("{s:b}", "flat", 1), &nodes,
                            err) ||
        !qmp_client_execute(c, "query-block-exports", NULL, &exports, err))
        return NULL;
    node = find(nodes, "node-name", name);
    export = find(exports, "id", name);
    if (!node && export)
        node = find(nodes, "node-name", json_string_value(json_object_get(export, "node-name")));
    if (node)
        return json_incref(node);
    served_no_such_disk(c, control, name, err);
    return NULL;
}
