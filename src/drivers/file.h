/* SPDX-License-Identifier: Apache-2.0
 *
 * Private to the drivers `file` and `host_device`, which are one driver over a
 * descriptor: file.c reads and writes, file_open.c opens, file_space.c zeroes,
 * frees, clones and resizes, file_status.c tells data from holes, host_device.c holds
 * what is different for block devices.
 */
#ifndef DRIVERS_FILE_H
#define DRIVERS_FILE_H

#include "block/keeper.h"
#include "drivers/drivers.h"
#include "drivers/extent_cache.h"
#include "loop/co_io.h"
#include <sys/stat.h>

struct file_options {
    char *filename;
    bool has_locking;
    int locking;
    bool has_aio;
    int aio;
    bool has_aio_max_batch;
    int64_t aio_max_batch;
    bool has_drop_cache, drop_cache;
    bool has_x_check_cache_dropped, x_check_cache_dropped;
};
extern const struct schema_type file_options_type, host_device_options_type;

struct file_state {
    int fd;
    int tail_fd;             /* O_DIRECT and a size that is not aligned: the same file buffered,
                              *   for writes to the last block; else -1. Where there is one: */
    struct file_turns {
        unsigned direct;     /* writes past the page cache under way */
        unsigned cached;     /* what is done through it: under way or waiting, and goes first */
        bool busy;           /* of these, one is under way */
        struct waitq wait;
    } turns;
    bool device;
    bool in_memory;          /* on tmpfs: no transfer waits for a disk */
    uint32_t mem_align;      /* of buffers; 1 unless O_DIRECT */

    /* What turned out not to work on this file system; not tried again. */
    bool no_punch, no_zero_range, no_seek;

    /* Linux drops the pages that a failed fdatasync could not write, and the next
     * one succeeds: from then on every flush fails. Buffered files only. */
    int flush_error;

    struct co_mutex resizing; /* of two changes of the size the later one must win */
    struct extent_cache extents;
    char *filename;
};

/* Both drivers'; which one it is n->drv tells. */
bool co_file_open(struct node *n, const void *opts, struct err *err);
void co_file_close(struct node *n);

int co_file_preadv(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov, int niov,
                   unsigned flags);
int co_file_pwritev(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov, int niov,
                    unsigned flags);
int co_file_flush(struct node *n);
int co_file_write_zeroes(struct node *n, uint64_t off, uint64_t len, unsigned flags);
int co_file_discard(struct node *n, uint64_t off, uint64_t len);
int co_file_clone(struct node *n, uint64_t off, struct node *src, uint64_t src_off, uint64_t len);
bool co_file_resize(struct node *n, uint64_t size, struct err *err);
int co_file_status(struct node *n, uint64_t off, uint64_t len, struct block_status *ret);
void file_get_info(struct node *n, struct node_info *ret);
void co_file_identify(struct node *n, struct storage_identity *ret);

/* file_space.c: where a file is written past the page cache and through it, the two take turns
 * (@cached: through it). A page that becomes dirty while a direct write of a part of it is
 * under way would bring back what was there before, and Linux lets the next fsync fail for that
 * ("Page cache invalidation failure on direct I/O"). A page may be a large folio, so it is
 * the whole file's turn. Only with a tail_fd. */
void co_file_turn_begin(struct file_state *s, bool cached);
/* For a write up to @end: whether its last block reaches beyond the end of the file, so that
 * it goes through the cache. */
bool co_file_turn_begin_write(struct node *n, uint64_t end);
void file_turn_end(struct file_state *s, bool cached);

/* host_device.c: the size and the smallest unit of a device. Blocks: for workers. */
MUST_CHECK int host_device_probe(int fd, uint64_t *ret_size, uint32_t *ret_block);
/* A write-protected device can be opened for writing all the same. */
bool host_device_writable(int fd);
/* What the kernel counts of the device. Blocks: for workers. */
void host_device_identify(int fd, struct storage_identity *ret);

#endif
