/* SPDX-License-Identifier: Apache-2.0
 *
 * Opening the backing file that an image names in its header. The name and the
 * format come from whoever made the image, so both are judged: the name by
 * image_dirs.h (as that of a data file is), the format by a list, and no format is
 * ever guessed.
 */
#include "base/mem.h"
#include "block/graph.h"
#include "drivers/image_dirs.h"
#include "drivers/qcow2/qcow2.h"
#include "loop/co_io.h"

static bool has_prefix(const char *s, const char *prefix)
{
    return strncmp(s, prefix, strlen(prefix)) == 0;
}

/* As QEMU judges names (block.c, path_has_protocol): a colon before any slash. */
static bool has_protocol(const char *name)
{
    return name[strcspn(name, ":/")] == ':';
}

static bool check_format(const struct qcow2_header *h, struct err *err)
{
    if (!h->backing_format[0])
        return err_set(err, -EINVAL, "the image names the backing file '%s' but not its format, "
                       "which is not guessed: write it into the image with 'qemu-img rebase -u "
                       "-b NAME -F FORMAT IMAGE', or say the option 'backing'", h->backing_file);
    if (strcmp(h->backing_format, "raw") != 0 && strcmp(h->backing_format, "qcow2") != 0)
        return err_set(err, -ENOTSUP, "the format '%s' of the backing file '%s' is not supported",
                       h->backing_format, h->backing_file);
    return true;
}

/* ---- resolving: in a worker ---------------------------------------------- */

struct resolving {
    const char *image, *name, *what;
    bool from_here;
    char *path;
    struct err *err;
};

/* QEMU counts names of data files from its working directory: so what is not there
 * beside the image is looked for in ours. The rules are the same. */
static char *resolve_from_here(const struct resolving *job)
{
    CLEANUP(free) char *path = *job->name != '/' ? realpath(job->name, NULL) : NULL;
    struct err ignored = ERR_INIT;

    return path ? image_dirs_resolve(job->image, path, job->what, &ignored) : NULL;
}

static int resolve(void *arg)
{
    struct resolving *job = arg;

    job->path = image_dirs_resolve(job->image, job->name, job->what, job->err);
    if (!job->path && job->from_here && job->err && job->err->code == -ENOENT) {
        job->path = resolve_from_here(job);
        if (job->path)
            *job->err = (struct err)ERR_INIT;
    }
    return 0;
}

/* The path of the image itself; NULL if it is not a file. */
static const char *image_path(const struct node_info *info)
{
    return info->filename[0] && !has_protocol(info->filename) ? info->filename : NULL;
}

char *co_qcow2_resolve_name(struct qcow2 *s, const char *name, const char *what,
                            const char *option, struct err *err)
{
    CLEANUP(free) struct node_info *info = xnew(struct node_info);
    struct resolving job = { .err = err };

    if (has_prefix(name, "nbd://") || has_prefix(name, "nbd+unix://")) {
        if (image_dirs_nbd_allowed())
            return xstrdup(name);
        err_set(err, -EPERM, "the image names '%s' as its %s, and images may not name servers "
                "here: say the option '%s'", name, what, option);
        return NULL;
    }
    if (has_prefix(name, "file:") && !has_prefix(name, "file://"))
        name += strlen("file:");
    if (has_protocol(name)) {
        err_set(err, -EPERM, "the image names '%s' as its %s; an image may name files only: say "
                "the option '%s'", name, what, option);
        return NULL;
    }
    node_get_info(s->file, info);
    job.image = image_path(info);
    job.name = name;
    job.what = what;
    job.from_here = strcmp(option, "data-file") == 0;
    if (!job.image) {
        err_set(err, -EINVAL, "the image names '%s' as its %s, but is not in a directory itself: "
                "say the option '%s'", name, what, option);
        return NULL;
    }

    int r = co_offload(resolve, &job);

    (void)r;        /* always 0: the path tells */
    return job.path;
}

/* ---- opening ------------------------------------------------------------- */

static bool co_open_path(struct qcow2 *s, const char *path, struct err *err)
{
    struct open_file_opts o = { .filename = path, .format = s->header.backing_format,
                                .read_only = true };
    json_t *json = node_json_for_file(&o, err);
    struct schema_alt ref;
    bool ok;

    if (!json)
        return false;
    ok = schema_decode(&blockdev_ref_or_null_type, json, false, &ref, err);
    json_decref(json);
    if (!ok)
        return false;
    ok = co_node_open_child(s->node, "backing", &ref, EDGE_READ, EDGE_READ, err);
    schema_clear(&blockdev_ref_or_null_type, &ref);
    return ok;
}

bool co_qcow2_open_named_backing(struct qcow2 *s, struct err *err)
{
    CLEANUP(free) char *path = NULL;

    if (!check_format(&s->header, err))
        return false;
    path = co_qcow2_resolve_name(s, s->header.backing_file, "backing file", "backing", err);
    if (!path)
        return false;
    if (*path == '/' && !node_check_no_loop(s->node, path, err))
        return false;
    return co_open_path(s, path, err);
}
