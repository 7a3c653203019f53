/* SPDX-License-Identifier: Apache-2.0
 *
 * Names of backups and converted images: checks before, rename(2) after.
 */
#include "app/target_name.h"
#include "app/image_name.h"
#include "base/mem.h"
#include "block/lock.h"
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#define PARTIAL_PREFIX "."
#define PARTIAL_SUFFIX ".stillpoint-partial"

/* Whether some process has @path open as an image. What cannot be looked into is
 * left for the job to find out. */
static bool in_use(const char *path)
{
    __attribute__((cleanup(cleanup_close))) int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct err err = ERR_INIT;

    return fd >= 0 && !image_lock(fd, path, 0, 0, &err) && err.code == -EAGAIN;
}

bool target_name_remove_unused(const char *path)
{
    return !in_use(path) && (unlink(path) == 0 || errno == ENOENT);
}

/* Takes over @path: with links followed where it leads somewhere, so that a
 * replaced target is replaced where it lies. */
static char *follow_links(char *path)
{
    char *real = realpath(path, NULL);

    if (!real)
        return path;
    free(path);
    return real;
}

static bool check_directory(const struct target_name *t, struct err *err)
{
    CLEANUP(free) char *dir = xstrdup(t->path);
    struct stat st;

    *(strrchr(dir, '/') + 1) = '\0';
    if (stat(dir, &st) < 0 && errno == ENOENT)
        return err_set(err, -ENOENT, "There is no directory '%s' to put '%s' into: make it first",
                       dir, t->name);
    if (access(dir, W_OK) < 0)
        return err_errno(err, -errno, "Nothing can be written into '%s'", dir);
    return true;
}

static bool check_existing(struct target_name *t, const struct stat *st, struct err *err)
{
    if (S_ISBLK(st->st_mode)) {
        t->device = true;
        return image_device_is_free(t->path, err);
    }
    if (S_ISDIR(st->st_mode))
        return err_set(err, -EISDIR, "'%s' is a directory: say which file in it", t->name);
    if (!S_ISREG(st->st_mode))
        return err_set(err, -EINVAL, "'%s' is neither a file nor a block device", t->name);
    if (in_use(t->path))
        return err_set(err, -EBUSY, "'%s' is open in some process, perhaps as the disk itself: "
                       "choose another target", t->name);
    if (!t->force)
        return err_set(err, -EEXIST, "'%s' exists: choose another name, or replace it with "
                       "--force", t->name);
    return true;
}

static bool choose_partial(struct target_name *t, struct err *err)
{
    const char *slash = strrchr(t->path, '/');

    t->partial = xasprintf("%.*s/" PARTIAL_PREFIX "%s" PARTIAL_SUFFIX, (int)(slash - t->path),
                           t->path, slash + 1);
    if (strlen(slash + 1) > NAME_MAX - strlen(PARTIAL_PREFIX PARTIAL_SUFFIX))
        return err_set(err, -ENAMETOOLONG, "The name '%s' is too long: until it is whole it gets "
                       "'" PARTIAL_SUFFIX "' added", t->name);
    if (in_use(t->partial))
        return err_set(err, -EBUSY, "'%s' is being written already: another backup or "
                       "convert is under way", t->name);
    if (unlink(t->partial) < 0 && errno != ENOENT)
        return err_errno(err, -errno, "'%s', left by an earlier backup or convert, cannot be "
                         "removed", t->partial);
    return true;
}

bool target_name_init(struct target_name *t, const struct target_name_opts *o,
                        struct err *err)
{
    struct stat st;

    *t = (struct target_name){ .name = o->name, .force = o->force };
    t->format = o->format ? o->format : image_format_by_name(o->name);
    if (image_name_is_uri(o->name)) {
        t->device = true;
        t->path = xstrdup(o->name);
        return true;
    }
    if (!*o->name || o->name[strlen(o->name) - 1] == '/')
        return err_set(err, -EINVAL, "'%s' is not the name of a file", o->name);
    t->path = image_absolute_path(o->name, err);
    if (!t->path)
        return false;
    t->path = follow_links(t->path);
    if (stat(t->path, &st) == 0) {
        if (!check_existing(t, &st, err))
            return false;
        if (t->device)
            return true;
    } else if (errno != ENOENT) {
        return err_errno(err, -errno, "'%s'", o->name);
    } else if (lstat(t->path, &st) == 0) {
        return err_set(err, -ENOENT, "'%s' is a link to a file that is not there: say the file's "
                       "own name", o->name);
    }
    if (!check_directory(t, err))
        return false;
    return o->in_place || choose_partial(t, err);
}

void target_name_hold(struct target_name *t)
{
    struct err err = ERR_INIT;

    if (!t->partial)
        return;
    t->held_fd = open(t->partial, O_RDONLY | O_CLOEXEC);
    if (t->held_fd < 0)
        return;
    t->held = image_lock(t->held_fd, t->partial, IMAGE_CONSISTENT_READ, IMAGE_ALL, &err);
    if (!t->held)
        close(t->held_fd);
}

void target_name_done(struct target_name *t)
{
    if (t->held)
        close(t->held_fd);
    t->held = false;
    free(t->path);
    free(t->partial);
    t->path = t->partial = NULL;
}

const char *target_name_job_path(const struct target_name *t)
{
    return t->partial ? t->partial : t->path;
}

/* Give @from the name @to unless something has it. */
static int rename_to_new_name(const char *from, const char *to)
{
    if (renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) == 0)
        return 0;
    if (errno != EINVAL && errno != ENOSYS)
        return -errno;
    /* A file system without that: a second name cannot replace anything either. */
    if (link(from, to) < 0)
        return -errno;
    return unlink(from) < 0 ? -errno : 0;
}

static bool sync_path(const char *path, int flags, struct err *err)
{
    __attribute__((cleanup(cleanup_close))) int fd = open(path, flags | O_CLOEXEC);

    /* The daemon's user may not be ours; it has flushed what it wrote. */
    if (fd < 0 && errno == EACCES)
        return true;
    if (fd < 0 || fsync(fd) < 0)
        return err_errno(err, -errno, "'%s' cannot be seen onto stable storage", path);
    return true;
}

bool target_name_publish(struct target_name *t, struct err *err)
{
    CLEANUP(free) char *dir = NULL;
    int r;

    if (t->device)
        return true;
    dir = xstrdup(t->path);
    *(strrchr(dir, '/') + 1) = '\0';
    if (!t->partial)
        return sync_path(t->path, O_RDONLY, err) && sync_path(dir, O_RDONLY | O_DIRECTORY, err);
    if (!sync_path(t->partial, O_RDONLY, err))
        return false;
    if (!t->force)
        r = rename_to_new_name(t->partial, t->path);
    else if (in_use(t->path))
        r = -EBUSY;
    else
        r = rename(t->partial, t->path) < 0 ? -errno : 0;
    if (r < 0) {
        const char *why = r == -EEXIST ? "somebody has made a file of that name meanwhile"
                          : r == -EBUSY ? "that file is open in some process now"
                                        : strerror(-r);
        /* Hours of work are not thrown away for a name. */
        t->given_up = true;
        return err_set(err, r, "The copy is whole, but cannot be called '%s': %s. It is '%s'",
                       t->name, why, t->partial);
    }
    return sync_path(dir, O_RDONLY | O_DIRECTORY, err);
}

bool target_name_discard(struct target_name *t, bool started)
{
    const char *path = target_name_job_path(t);

    /* A job that was not started has not touched a file of the final name. Of the
     * partial name there may be another command's: then it is locked. */
    if (!started && (!t->partial || in_use(path)))
        return true;
    if (t->device || t->given_up)
        return false;
    return unlink(path) == 0 || errno == ENOENT;
}
