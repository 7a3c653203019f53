/* SPDX-License-Identifier: Apache-2.0
 *
 * Files without a name, as few as the file system lets us do with. parts.h says what for.
 */
#include "cbw/parts.h"
#include "base/base.h"
#include "base/mem.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define PART_ALIGN (4 * KiB)

/* A file of @size bytes: a descriptor or -errno. */
static int open_one(const char *dir, uint64_t size)
{
    int fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

    /* File systems without O_TMPFILE (open(2)): a name for a moment. */
    if (fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR)) {
        char *name = xasprintf("%s/.stillpoint-scratch-XXXXXX", dir);

        fd = mkostemp(name, O_CLOEXEC);
        int saved = errno;
        if (fd >= 0)
            unlink(name);
        free(name);
        errno = saved;
    }
    if (fd < 0)
        return -errno;
    if (ftruncate(fd, (off_t)size) < 0) {
        int r = -errno;

        close(fd);
        return r;
    }
    return fd;
}

int parts_open(struct parts *p, const char *dir, uint64_t total)
{
    uint64_t size = MAX(total, PART_ALIGN);
    uint64_t n = 1;

    p->n = 0;
    while (p->n < n) {
        uint64_t off = p->n * size;
        int fd = open_one(dir, MIN(size, MAX(total, PART_ALIGN) - off));

        if (fd >= 0) {
            p->fd[p->n++] = fd;
            continue;
        }
        /* Half of it, unless a file of this size was there a moment ago. */
        if (fd == -EFBIG && p->n == 0 && size > PART_ALIGN && n <= LIMIT_SCRATCH_PARTS / 2) {
            size = align_up(size / 2, PART_ALIGN);
            n = div_round_up(total, size);
            continue;
        }
        while (p->n)
            close(p->fd[--p->n]);
        return fd;
    }
    p->size = size;
    return 0;
}

int parts_at(const struct parts *p, uint64_t *off, uint64_t *len)
{
    uint64_t i = *off / p->size;

    assert(i < p->n);
    *off -= i * p->size;
    *len = MIN(*len, p->size - *off);
    return p->fd[i];
}
