/* SPDX-License-Identifier: Apache-2.0
 *
 * Guest data in a file of its own: the node's second child, "data-file". Clusters
 * lie there where the guest has them, so nothing is allocated, counted or moved in
 * it, and the image file has the tables only. Of a raw one the header promises that
 * it reads as the disk does, whatever the tables say.
 */
#include "block/graph.h"
#include "drivers/qcow2/qcow2.h"

/* Options for the file @path, without a format over it: what an image names as its
 * data file is bytes. */
static json_t *file_options(const char *path, struct err *err)
{
    struct open_file_opts o = { .filename = path };
    json_t *raw = node_json_for_file(&o, err), *file = raw ? json_object_get(raw, "file") : NULL;

    if (raw && !file)
        err_set(err, -EINVAL, "'%s' cannot be a data file", path);
    json_incref(file);
    json_decref(raw);
    return file;
}

static bool co_open_ref(struct qcow2 *s, const struct schema_alt *ref, struct err *err)
{
    unsigned perms = s->node->read_only ? EDGE_READ : EDGE_READ | EDGE_WRITE | EDGE_RESIZE;

    return co_node_open_child(s->node, "data-file", ref, perms, EDGE_READ, err);
}

static bool co_open_named(struct qcow2 *s, struct err *err)
{
    CLEANUP(free) char *path = co_qcow2_resolve_name(s, s->header.data_file, "data file",
                                                     "data-file", err);
    struct schema_alt ref;
    json_t *json;
    bool ok;

    if (!path)
        return false;
    if (*path == '/' && node_uses_file(s->node, path))
        return err_set(err, -ELOOP, "the image names itself as its data file");
    json = file_options(path, err);
    if (!json)
        return false;
    ok = schema_decode(&blockdev_ref_type, json, false, &ref, err);
    json_decref(json);
    if (!ok)
        return false;
    ok = co_open_ref(s, &ref, err);
    schema_clear(&blockdev_ref_type, &ref);
    return ok;
}

bool co_qcow2_open_data_file(struct qcow2 *s, const struct schema_alt *option, struct err *err)
{
    s->data = s->file;
    if (!s->geo.data_file) {
        if (option)
            return err_set(err, -EINVAL, "'data-file' can only be set for images with an external "
                           "data file");
        return !(s->header.autoclear & QCOW2_AUTOCLEAR_RAW_DATA) ||
               err_set(err, -EINVAL, "data-file-raw requires a data file");
    }
    if (!option && !s->header.data_file[0])
        return err_set(err, -EINVAL, "the image has its data in another file and does not name "
                       "it: say the option 'data-file'");
    if (!(option ? co_open_ref(s, option, err) : co_open_named(s, err)))
        return false;
    s->data = edge_node(s->node->data_file);
    s->raw_data = s->header.autoclear & QCOW2_AUTOCLEAR_RAW_DATA;
    return true;
}

int co_qcow2_zero_data(struct qcow2 *s, uint64_t off, uint64_t len, unsigned flags)
{
    int r = co_qcow2_data_grow(s, off + len);

    if (r < 0)
        return r;
    return co_node_write_zeroes(s->data, off, len,
                                flags & (REQ_MAY_UNMAP | REQ_NO_FALLBACK | REQ_BULK));
}
