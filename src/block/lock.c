/* SPDX-License-Identifier: Apache-2.0
 *
 * QEMU's image locks, on one descriptor. See lock.h.
 */
#include "block/lock.h"
#include <fcntl.h>

#define PERMS 4
#define USED_BASE 100
#define UNSHARED_BASE 200

static const char *const perm_names[PERMS] = {
    "consistent read", "write", "write unchanged", "resize",
};

static int lock_byte(int fd, int cmd, short type, off_t byte, struct flock *ret)
{
    struct flock fl = { .l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1 };

    int r = fcntl(fd, cmd, &fl) < 0 ? -errno : 0;

    if (ret)
        *ret = fl;
    return r;
}

/* Read-lock the bytes of @bits above @base and unlock the others, if @unlock. */
static bool apply(int fd, off_t base, unsigned bits, bool unlock, struct err *err)
{
    for (int i = 0; i < PERMS; i++) {
        bool wanted = bits & (1U << i);

        if (!wanted && !unlock)
            continue;

        int r = lock_byte(fd, F_OFD_SETLK, wanted ? F_RDLCK : F_UNLCK, base + i, NULL);

        if (r < 0 && wanted)
            return err_errno(err, r, "Failed to lock byte %d", (int)base + i);
    }
    return true;
}

/* Whether nobody else has a lock on a byte of @bits above @base. */
static bool check(int fd, const char *path, off_t base, unsigned bits, const char *words,
                  struct err *err)
{
    struct flock fl;

    for (int i = 0; i < PERMS; i++) {
        if (!(bits & (1U << i)))
            continue;

        int r = lock_byte(fd, F_OFD_GETLK, F_WRLCK, base + i, &fl);

        if (r < 0)
            return err_errno(err, r, "Failed to look for locks on '%s'", path);
        if (fl.l_type != F_UNLCK)
            return err_set(err, -EAGAIN, "Failed to get %s\"%s\" lock: Is another process using "
                           "the image [%s]?", words, perm_names[i], path);
    }
    return true;
}

void image_unlock(int fd)
{
    (void)apply(fd, USED_BASE, 0, true, NULL);
    (void)apply(fd, UNSHARED_BASE, 0, true, NULL);
}

bool image_lock(int fd, const char *path, unsigned perms, unsigned shared, struct err *err)
{
    unsigned unshared = IMAGE_ALL & ~shared;

    if (apply(fd, USED_BASE, perms, false, err) &&
        apply(fd, UNSHARED_BASE, unshared, false, err) &&
        check(fd, path, UNSHARED_BASE, perms, "", err) &&
        check(fd, path, USED_BASE, unshared, "shared ", err)) {
        /* Letting go cannot fail in a way that anybody could help. */
        (void)apply(fd, USED_BASE, perms, true, NULL);
        (void)apply(fd, UNSHARED_BASE, unshared, true, NULL);
        return true;
    }
    image_unlock(fd);
    return false;
}

bool image_lock_file(int fd, const char *path, bool read_only, struct err *err)
{
    unsigned writing = read_only ? 0 : IMAGE_WRITE | IMAGE_RESIZE;

    return image_lock(fd, path, IMAGE_CONSISTENT_READ | writing,
                      IMAGE_CONSISTENT_READ | IMAGE_WRITE_UNCHANGED, err);
}
