/* SPDX-License-Identifier: Apache-2.0
 *
 * The directories that backing files may lie in, see image_dirs.h. A registry:
 * written at start, only read afterwards.
 */
#include "drivers/image_dirs.h"
#include "base/mem.h"
#include <libgen.h>

#define DIRS_MAX 256

static char *allowed[DIRS_MAX];
static unsigned n_allowed;
static bool nbd_allowed;

bool image_dirs_allow(const char *dir, struct err *err)
{
    if (n_allowed == DIRS_MAX)
        return err_set(err, -E2BIG, "more than %d image directories", DIRS_MAX);

    char *path = realpath(dir, NULL);

    if (!path)
        return err_errno(err, -errno, "image directory '%s'", dir);
    allowed[n_allowed++] = path;
    return true;
}

void image_dirs_allow_nbd(void)
{
    nbd_allowed = true;
}

bool image_dirs_nbd_allowed(void)
{
    return nbd_allowed;
}

/* Whether the resolved @path lies in or below the resolved @dir. */
static bool is_below(const char *path, const char *dir)
{
    size_t n = strlen(dir);

    return strncmp(path, dir, n) == 0 && (path[n] == '/' || dir[n - 1] == '/');
}

static bool is_allowed(const char *path)
{
    for (unsigned i = 0; i < n_allowed; i++) {
        if (is_below(path, allowed[i]))
            return true;
    }
    return false;
}

/* The directory that @image's name says; free() it. */
static char *directory_of(const char *image)
{
    CLEANUP(free) char *copy = xstrdup(image);

    return xstrdup(dirname(copy));
}

static bool is_below_directory_of(const char *path, const char *image)
{
    CLEANUP(free) char *dir = directory_of(image);
    CLEANUP(free) char *real = realpath(dir, NULL);

    return real && is_below(path, real);
}

/* The image may have been opened through a link: then the directory where it
 * really is counts too. */
static bool is_beside(const char *path, const char *image)
{
    CLEANUP(free) char *real = realpath(image, NULL);

    return is_below_directory_of(path, image) || (real && is_below_directory_of(path, real));
}

char *image_dirs_resolve(const char *image, const char *name, const char *what, struct err *err)
{
    CLEANUP(free) char *dir = directory_of(image);
    CLEANUP(free) char *joined = *name == '/' ? xstrdup(name)
                                              : xasprintf("%s/%s", dir, name);
    CLEANUP(free) char *path = realpath(joined, NULL);

    if (!path) {
        err_errno(err, -errno, "%s '%s'", what, joined);
        return NULL;
    }
    if (!is_beside(path, image) && !is_allowed(path)) {
        err_set(err, -EPERM, "the image names '%s' as its %s, which lies outside the image's "
                "directory: allow it with --image-dir, or say it with the option '%s'", path,
                what, strcmp(what, "data file") == 0 ? "data-file" : "backing");
        return NULL;
    }
    return MOVE(path);
}
