/* SPDX-License-Identifier: Apache-2.0
 *
 * From the name of an image as people and image headers write it to the options
 * that open it. Nothing is ever probed: the format is what the caller says.
 */
#include "block/core.h"
#include "base/mem.h"
#include <sys/stat.h>

static bool has_prefix(const char *s, const char *prefix)
{
    return strncmp(s, prefix, strlen(prefix)) == 0;
}

/* "scheme" of "scheme://..."; NULL for a path. free() it. */
static char *uri_scheme(const char *filename)
{
    size_t n = strspn(filename, "abcdefghijklmnopqrstuvwxyz" "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                "0123456789+.-");

    return n && has_prefix(filename + n, "://") ? xstrndup(filename, n) : NULL;
}

const char *protocol_for_filename(const char *filename)
{
    struct stat st;

    if (has_prefix(filename, "nbd://") || has_prefix(filename, "nbds://") ||
        has_prefix(filename, "nbd+unix://") || has_prefix(filename, "nbds+unix://"))
        return "nbd";
    if (stat(filename, &st) == 0 && S_ISBLK(st.st_mode))
        return "host_device";
    return "file";
}

static json_t *json_for_protocol(const char *filename, struct err *err)
{
    CLEANUP(free) char *scheme = uri_scheme(filename);
    const char *protocol;
    json_t *json;

    /* QEMU writes and reads "file:" before paths that contain a colon. */
    if (has_prefix(filename, "file:") && !scheme)
        filename += strlen("file:");
    protocol = protocol_for_filename(filename);
    if (scheme && strcmp(protocol, "file") == 0) {
        err_set(err, -EINVAL, "'%s': unknown protocol '%s'", filename, scheme);
        return NULL;
    }
    if (!*filename) {
        err_set(err, -EINVAL, "The file name is empty");
        return NULL;
    }

    const struct driver *drv = driver_find(protocol);

    if (!drv) {
        err_set(err, -EINVAL, "'%s': there is no driver '%s' in this program", filename, protocol);
        return NULL;
    }
    if (drv->parse_filename) {
        json = drv->parse_filename(filename, err);
        if (!json)
            return NULL;
    } else {
        json = json_pack("{s:s}", "filename", filename);
        if (!json) {
            err_set(err, -EILSEQ, "The name of a file has bytes that are not UTF-8");
            return NULL;
        }
    }
    json_object_set_new(json, "driver", json_string(protocol));
    return json;
}

static bool takes_backing(const struct driver *drv)
{
    const struct schema_member *m;

    for (m = drv->options->members; m && m->name; m++) {
        if (strcmp(m->name, "backing") == 0)
            return true;
    }
    return false;
}

/* What to open below @format, and whether it needs @format on top at all. */
static json_t *json_for_name(const struct open_file_opts *o, bool *ret_wrap, struct err *err)
{
    if (!has_prefix(o->filename, "json:")) {
        *ret_wrap = true;
        return json_for_protocol(o->filename, err);
    }

    const char *text = o->filename + strlen("json:");
    json_t *json = schema_parse_json(text, strlen(text), err);

    if (!json)
        return NULL;

    const char *name = json_string_value(json_object_get(json, "driver"));
    const struct driver *drv = name ? driver_find(name) : NULL;

    if (!drv) {
        err_set(err, -EINVAL, "'%.200s': a 'driver' that exists is needed", o->filename);
        json_decref(json);
        return NULL;
    }
    *ret_wrap = o->format && drv->is_protocol;
    return json;
}

json_t *node_json_for_file(const struct open_file_opts *o, struct err *err)
{
    const char *format = o->format ? o->format : "raw";
    const struct driver *drv = driver_find(format);
    bool wrap;

    if (!drv) {
        err_set(err, -EINVAL, "Unknown format '%s'", format);
        return NULL;
    }

    json_t *json = json_for_name(o, &wrap, err);

    if (!json)
        return NULL;
    if (wrap && !drv->is_protocol)
        json = json_pack("{s:s, s:o}", "driver", format, "file", json);
    if (o->node_name)
        json_object_set_new(json, "node-name", schema_json_str(o->node_name));
    if (o->read_only)
        json_object_set_new(json, "read-only", json_true());
    if (o->unmap)
        json_object_set_new(json, "discard", json_string("unmap"));
    if (o->force_share)
        json_object_set_new(json, "force-share", json_true());
    if (o->direct)
        json_object_set_new(json, "cache", json_pack("{s:b}", "direct", 1));
    if (o->no_backing && takes_backing(drv))
        json_object_set_new(json, "backing", json_null());
    return json;
}

struct node *co_node_open_file(const struct open_file_opts *o, struct err *err)
{
    json_t *json = node_json_for_file(o, err);

    if (!json)
        return NULL;

    struct node *n = co_node_open(json, false, err);

    json_decref(json);
    return n;
}
