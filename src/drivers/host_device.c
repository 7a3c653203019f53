/* SPDX-License-Identifier: Apache-2.0
 *
 * host_device: a block device. It is opened, read and written as a file is; its
 * size is the kernel's to say, it has no holes that can be seen, and freeing is
 * discarding.
 */
#include "drivers/file.h"
#include <inttypes.h>
#include <linux/fs.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
#include <unistd.h>

/* Since Linux 5.15. */
#ifndef BLKGETDISKSEQ
#define BLKGETDISKSEQ _IOR(0x12, 128, uint64_t)
#endif

int host_device_probe(int fd, uint64_t *ret_size, uint32_t *ret_block)
{
    int block;

    if (ioctl(fd, BLKGETSIZE64, ret_size) < 0 || ioctl(fd, BLKSSZGET, &block) < 0)
        return -errno;
    if (block < 512 || !is_power_of_2((uint64_t)block))
        return -EINVAL;
    *ret_block = (uint32_t)block;
    return 0;
}

bool host_device_writable(int fd)
{
    int read_only = 0;

    return ioctl(fd, BLKROGET, &read_only) < 0 || !read_only;
}

/* The first line of a file below /sys/dev/block/MAJOR:MINOR. */
static bool read_sys(const struct stat *st, const char *name, char *buf, int size)
{
    char path[96];

    snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/%s", major(st->st_rdev),
             minor(st->st_rdev), name);

    FILE *f = fopen(path, "re");
    bool ok = f && fgets(buf, size, f);

    if (f)
        fclose(f);
    return ok;
}

/* Sectors written and discarded (Linux Documentation/block/stat.rst); UINT64_MAX where
 * nobody counts. A partition's queue is its disk's. */
static uint64_t sectors_changed(const struct stat *st)
{
    unsigned long long written, discarded;
    char buf[512];

    if (!read_sys(st, "queue/iostats", buf, sizeof(buf)) &&
        !read_sys(st, "../queue/iostats", buf, sizeof(buf)))
        return UINT64_MAX;
    if (buf[0] != '1' || !read_sys(st, "stat", buf, sizeof(buf)) ||
        sscanf(buf, "%*u %*u %*u %*u %*u %*u %llu %*u %*u %*u %*u %*u %*u %llu", &written,
               &discarded) != 2)
        return UINT64_MAX;
    return written + discarded;
}

void host_device_identify(int fd, struct storage_identity *ret)
{
    struct stat st;
    uint32_t block;

    /* What is on its way to the device is not counted yet. */
    if (fstat(fd, &st) < 0 || fdatasync(fd) < 0)
        return;
    ret->kind = STORAGE_DEVICE;
    ret->dev = st.st_rdev;
    ret->written = sectors_changed(&st);
    if (ioctl(fd, BLKGETDISKSEQ, &ret->diskseq) < 0)
        ret->diskseq = 0;
    if (host_device_probe(fd, &ret->size, &block) < 0)
        ret->size = 0;
}

struct discarding {
    int fd;
    uint64_t range[2];      /* offset and length, as BLKDISCARD takes them */
};

static int discard(void *arg)
{
    struct discarding *j = arg;

    return ioctl(j->fd, BLKDISCARD, j->range) < 0 ? -errno : 0;
}

/* Not by fallocate: that would have to zero, which a device need not do that frees. */
static int co_host_device_discard(struct node *n, uint64_t off, uint64_t len)
{
    struct file_state *s = n->state;
    struct discarding j = { s->fd, { off, len } };
    int r = co_offload(discard, &j);

    return r == -EOPNOTSUPP ? -ENOTSUP : r;
}

struct measuring {
    int fd;
    uint64_t size;
};

static int measure(void *arg)
{
    struct measuring *j = arg;
    uint32_t block;

    return host_device_probe(j->fd, &j->size, &block);
}

/* Devices are resized by those who own them; this notices. */
static bool co_host_device_resize(struct node *n, uint64_t size, struct err *err)
{
    struct file_state *s = n->state;
    struct measuring j = { .fd = s->fd };
    int r = co_offload(measure, &j);

    if (r < 0)
        return err_errno(err, r, "Failed to get the size of '%s'", s->filename);
    if (size > j.size)
        return err_set(err, -EINVAL, "Cannot grow device files: '%s' has %" PRIu64 " bytes",
                       s->filename, j.size);
    if (size < j.size)
        return err_set(err, -ENOTSUP, "Cannot resize device files: '%s' has %" PRIu64 " bytes",
                       s->filename, j.size);
    n->size = size;
    return true;
}

const struct driver host_device_driver = {
    .name = "host_device",
    .doc = "a block device of this host",
    .state_size = sizeof(struct file_state),
    .options = &host_device_options_type,
    .is_protocol = true,
    .co_open = co_file_open,
    .co_close = co_file_close,
    .co_preadv = co_file_preadv,
    .co_pwritev = co_file_pwritev,
    .co_write_zeroes = co_file_write_zeroes,
    .co_discard = co_host_device_discard,
    .co_flush = co_file_flush,
    .co_status = co_file_status,
    .co_resize = co_host_device_resize,
    .get_info = file_get_info,
    .co_identify = co_file_identify,
};
