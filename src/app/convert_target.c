/* SPDX-License-Identifier: Apache-2.0
 *
 * First the file, device or connection, then an image in it, then the node over both.
 */
#include "app/convert_target.h"
#include "app/image_name.h"
#include "app/preallocate.h"
#include "block/graph.h"
#include <fcntl.h>
#include <unistd.h>

/* The file, device or connection. */
static bool co_open_file(struct convert_target *t, struct err *err)
{
    const char *path = target_name_job_path(t->name);
    const struct open_file_opts o = {
        .filename = path, .format = protocol_for_filename(path), .unmap = true,
    };

    if (!t->existing && !t->name->device) {
        int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);

        if (fd < 0)
            return err_errno(err, -errno, "Cannot create '%s'", path);
        t->started = true;
        close(fd);
    }
    t->file = co_node_open_file(&o, err);
    if (!t->file && image_is_locked_by_others(err))
        return err_set(err, -EAGAIN, "'%s' is open in another process: end that first", path);
    if (!t->file)
        return false;
    target_name_hold(t->name);
    return true;
}

static enum image_prealloc prealloc(const struct convert_target *t)
{
    return (enum image_prealloc)t->options->preallocation;
}

static bool co_make_raw(struct convert_target *t, struct err *err)
{
    /* A device or an export is as large as it is; whether that will do the job sees. */
    if (strcmp(node_driver_name(t->file), "file") != 0)
        return true;
    t->is_zero = true;
    return co_node_resize(t->file, t->size, err) &&
           co_preallocate(t->file, 0, t->size, prealloc(t), t->watch, err);
}

static bool co_make_qcow2(struct convert_target *t, struct err *err)
{
    struct qcow2_create_opts o;

    t->started = true;
    t->is_zero = !t->options->has_backing_file;
    return image_options_for_qcow2(t->options, t->size, &o, err) &&
           co_qcow2_create(t->file, &o, err);
}

/* The image over the file. Its backing file stays closed: whole clusters are written,
 * and nothing is read. */
static bool co_open_image(struct convert_target *t, struct err *err)
{
    CLEANUP(json_decref) json_t *json =
        json_pack("{s:s,s:s,s:s}", "driver", image_formats[t->format], "file",
                  node_name(t->file), "discard", "unmap");

    if (t->format == IMAGE_QCOW2)
        json_object_set_new(json, "backing", json_null());
    else if (node_size(t->file) > t->size)
        json_object_set_new(json, "size", json_integer((json_int_t)t->size));
    t->image = co_node_open(json, false, err);
    return t->image != NULL;
}

bool co_convert_target_open(struct convert_target *t, struct err *err)
{
    if (!co_open_file(t, err))
        return false;
    if (!t->existing && !(t->format == IMAGE_QCOW2 ? co_make_qcow2 : co_make_raw)(t, err))
        return false;
    return co_open_image(t, err) &&
           (t->format != IMAGE_QCOW2 || prealloc(t) == PREALLOC_OFF ||
            co_preallocate(t->image, 0, t->size, prealloc(t), t->watch, err));
}

void co_convert_target_close(struct convert_target *t)
{
    co_node_unref(t->image);
    co_node_unref(t->file);
    t->image = t->file = NULL;
}
