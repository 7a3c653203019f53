/* SPDX-License-Identifier: Apache-2.0
 *
 * The file is opened first, as a node of its own with its image lock, and the
 * image is made through that node and opened on top of it: from the first check
 * to the end of the backup nobody else can come in between.
 */
#include "qmp/backup_target.h"
#include "base/mem.h"
#include "drivers/qcow2/create.h"
#include "loop/co_io.h"
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- what shall be made ----------------------------------------------------------------- */

/* The format that an image of @n's content has when nobody says another. */
static const char *natural_format(struct node *n)
{
    n = node_skip_filters(n);
    return n->drv->is_protocol ? "raw" : node_driver_name(n);
}

/* The name by which another image, wherever it lies, can refer to @n. free() it. NULL
 * with @err: it has none, such as a part of a file. */
static char *lasting_name(struct node *n, struct err *err)
{
    CLEANUP(free) struct node_info *info = xnew(struct node_info);

    node_get_info(n, info);

    if (strncmp(info->filename, "json:", 5) == 0) {
        err_set(err, -EINVAL, "The target cannot name node '%s' as its backing file, because it is "
                "only a part of a file: make the target beforehand, and use blockdev-backup",
                node_name(n));
        return NULL;
    }

    char *path = realpath(info->filename, NULL);

    /* An nbd URI */
    return path ? path : xstrdup(info->filename);
}

/* The node that the target names as its backing file; NULL: none. */
static struct node *backing_of_target(struct node *source, enum backup_sync sync)
{
    if (sync == BACKUP_NONE)
        return source;
    return sync == BACKUP_TOP ? node_backing(node_skip_filters(source)) : NULL;
}

static bool names_backing(const struct node *source, const struct backup_target_opts *o)
{
    return o->backing_file || backing_of_target((struct node *)source, o->sync);
}

static bool check_format(const char *format, bool backing, struct err *err)
{
    bool raw = strcmp(format, "raw") == 0;

    if (!driver_find(format))
        return err_set(err, -EINVAL, "Unknown file format '%s'", format);
    if (!raw && strcmp(format, "qcow2") != 0)
        return err_set(err, -ENOTSUP, "Format driver '%s' does not support image creation",
                       format);
    if (raw && backing)
        return err_set(err, -EINVAL, "Backing file not supported for file format 'raw'");
    return true;
}

/* ---- the file -------------------------------------------------------------------------- */

/* The first look at a name may take for ever, on a file server that hangs: it is
 * taken by a worker, so that only this command waits and not the source's loop.
 * What comes of it is found out again by those who want to know. */
static int look_at(void *arg)
{
    struct stat st;

    return stat(arg, &st) < 0 ? -errno : 0;
}

/* See the name of a new file onto the disk, so that a power cut after success leaves
 * a backup and not only its bytes. */
static int sync_directory(const char *path)
{
    const char *slash = strrchr(path, '/');
    CLEANUP(free) char *dir = slash ? xasprintf("%.*s", (int)(slash - path) + 1, path)
                                    : xstrdup(".");
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC), r = 0;

    /* Not every file system does it, and not every directory can be read. */
    if (fd < 0 || (fsync(fd) < 0 && errno != EINVAL))
        r = errno == EACCES ? 0 : -errno;
    if (fd >= 0)
        close(fd);
    return r;
}

static int create_file(void *arg)
{
    int fd = open(arg, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644), r;

    if (fd < 0)
        return -errno;
    close(fd);
    r = sync_directory(arg);
    if (r < 0)
        unlink(arg);
    return r;
}

static int remove_file(void *arg)
{
    return unlink(arg) < 0 ? -errno : 0;
}

static bool co_ensure_file(const char *path, struct backup_target *t, struct err *err)
{
    int r = co_offload(create_file, (void *)path);

    if (r == 0)
        t->created = xstrdup(path);
    return r == 0 || r == -EEXIST || err_errno(err, r, "Could not create '%s'", path);
}

/* While its lock is held: what was made for nothing, and nobody else can have begun
 * to use meanwhile. */
static void co_remove_created(struct backup_target *t)
{
    if (t->created)
        (void)co_offload(remove_file, t->created);
    free(MOVE(t->created));
}

static struct node *co_open_json(json_t *json, struct err *err)
{
    struct node *n = json ? co_node_open(json, false, err) : NULL;

    json_decref(json);
    return n;
}

/* The file, device or connection below the image. */
static struct node *co_open_protocol(const char *filename, struct err *err)
{
    const char *protocol = protocol_for_filename(filename);
    struct open_file_opts o = { .filename = filename, .format = protocol, .unmap = true };

    return co_open_json(node_json_for_file(&o, err), err);
}

/* A target that is there has the format that is said, and raw else; but not when it
 * is plainly something that a raw backup would destroy. */
static bool co_check_raw(struct node *file, const char *filename, struct err *err)
{
    char magic[4] = "";
    int r = 0;

    if (node_size(file) >= sizeof(magic))
        r = co_node_pread(file, 0, sizeof(magic), magic, 0);
    if (r < 0)
        return err_errno(err, r, "Could not read '%s'", filename);
    if (memcmp(magic, "QFI\xfb", sizeof(magic)) == 0)
        return err_set(err, -EINVAL, "'%s' holds a qcow2 image: 'format' has to say whether it "
                       "shall be written as that, or as raw over it", filename);
    return true;
}

/* ---- making the image ------------------------------------------------------------------ */

static bool co_make_raw(struct node *file, uint64_t size, bool *ret_zero, struct err *err)
{
    /* A device or an export is as large as it is; whether that will do the job sees. */
    if (strcmp(node_driver_name(file), "file") != 0)
        return true;
    *ret_zero = true;
    return co_node_resize(file, 0, err) && co_node_resize(file, size, err);
}

static bool co_make_qcow2(struct node *source, const struct backup_target_opts *o,
                          struct node *file, struct err *err)
{
    struct node *backing = backing_of_target(source, o->sync);
    CLEANUP(free) char *name = backing ? lasting_name(backing, err) : NULL;
    struct qcow2_create_opts create = {
        .size = node_size(source),
        .backing_file = backing ? name : o->backing_file,
        .backing_format = backing ? natural_format(backing) : o->backing_format,
    };

    if (backing && !name)
        return false;
    return co_qcow2_create(file, &create, err);
}

static bool co_make_image(struct node *source, const struct backup_target_opts *o,
                          const char *format, struct node *file, bool *ret_zero, struct err *err)
{
    if (strcmp(format, "raw") == 0)
        return co_make_raw(file, node_size(source), ret_zero, err);
    *ret_zero = !names_backing(source, o);
    return co_make_qcow2(source, o, file, err);
}

/* The image on top of its file, of @size if that is not UINT64_MAX. Its backing file
 * stays closed: a backup writes whole clusters and reads nothing. */
static struct node *co_open_image(const char *format, struct node *file, uint64_t size,
                                  struct err *err)
{
    json_t *json = json_pack("{s:s,s:s,s:s}", "driver", format, "file", node_name(file),
                             "discard", "unmap");

    if (strcmp(format, "qcow2") == 0)
        json_object_set_new(json, "backing", json_null());
    if (size != UINT64_MAX)
        json_object_set_new(json, "size", json_integer((json_int_t)size));
    return co_open_json(json, err);
}

/* ---- the whole ------------------------------------------------------------------------- */

static bool co_open_over(struct node *source, const struct backup_target_opts *o,
                         const char *format, struct node *file, struct backup_target *t,
                         struct err *err)
{
    uint64_t size = UINT64_MAX;

    if (node_shares_storage(source, file))
        return err_set(err, -EINVAL, "'%s' belongs to the source '%s' and cannot be the target of "
                       "its backup", o->filename, node_name(source));
    if (o->existing && !o->format && !co_check_raw(file, o->filename, err))
        return false;
    if (!o->existing && !co_make_image(source, o, format, file, &t->is_zero, err))
        return false;
    /* A device or export that is longer than the disk holds it all the same. */
    if (!o->existing && strcmp(format, "raw") == 0 && node_size(file) > node_size(source))
        size = node_size(source);
    t->node = co_open_image(format, file, size, err);
    return t->node != NULL;
}

static bool co_open_target(struct node *source, const struct backup_target_opts *o,
                           struct backup_target *t, struct err *err)
{
    const char *format = o->format ? o->format : o->existing ? "raw" : natural_format(source);

    (void)co_offload(look_at, (void *)o->filename);

    const char *protocol = protocol_for_filename(o->filename);

    if (!check_format(format, !o->existing && names_backing(source, o), err))
        return false;
    if (node_uses_file(source, o->filename))
        return err_set(err, -EINVAL, "'%s' belongs to the source '%s' and cannot be the target of "
                       "its backup", o->filename, node_name(source));
    if (!o->existing && strcmp(protocol, "file") == 0 && !co_ensure_file(o->filename, t, err))
        return false;

    struct err why = ERR_INIT;
    struct node *file = co_open_protocol(o->filename, &why);

    if (!file) {
        /* Locked already: somebody who wants it as well was quicker, and it is his. */
        if (why.code != -EAGAIN)
            co_remove_created(t);
        if (err)
            *err = why;
        return false;
    }

    bool ok = co_open_over(source, o, format, file, t, err);

    if (!ok)
        co_remove_created(t);
    co_node_unref(file);
    return ok;
}

bool co_backup_target_open(struct node *source, const struct backup_target_opts *o,
                           struct backup_target *ret, struct err *err)
{
    *ret = (struct backup_target){ 0 };
    if (co_open_target(source, o, ret, err))
        return true;
    free(MOVE(ret->created));
    return false;
}

void co_backup_target_done(struct backup_target *t, bool keep)
{
    if (!keep)
        co_remove_created(t);
    co_node_unref(t->node);
    free(t->created);
}
