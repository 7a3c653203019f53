/* SPDX-License-Identifier: Apache-2.0
 *
 * Locks on image files, as QEMU takes them (block/file-posix.c,
 * raw_apply_lock_bytes and raw_check_lock_bytes), so that QEMU's tools, virtual
 * machines and Stillpoint keep out of each other's images. They are locks of the
 * open file (F_OFD_SETLK): closing its last descriptor releases them.
 *
 * Byte 100+P is locked while permission P is used, byte 200+P while others must
 * not use it. All are read locks, so that any number of holders can say the same;
 * who wants P looks for a lock by others at 200+P, who does not share P looks at
 * 100+P. Both lock first and look then: of two that collide at least one sees the
 * other.
 */
#ifndef BLOCK_LOCK_H
#define BLOCK_LOCK_H

#include "base/err.h"

/* Their places, by bit number, are QEMU's (enum BLK_PERM_*). */
enum image_perm {
    IMAGE_CONSISTENT_READ = 1,
    IMAGE_WRITE = 2,
    IMAGE_WRITE_UNCHANGED = 4,
    IMAGE_RESIZE = 8,
    IMAGE_ALL = 15,
};

/* Make the locks of @fd (open for reading) those of using @perms and letting
 * others use @shared, whatever they were before. @path is for messages. On
 * failure @fd has no locks: -EAGAIN when others are in the way ('Failed to get
 * "write" lock: ...'), or what fcntl says. Any thread; may block on a network file
 * system. Nodes with force_share do not call it. */
MUST_CHECK bool image_lock(int fd, const char *path, unsigned perms, unsigned shared,
                           struct err *err);

/* The same with what the driver of a file asks for: to read, and unless
 * @read_only to write and resize, next to others who read. */
MUST_CHECK bool image_lock_file(int fd, const char *path, bool read_only, struct err *err);

/* Let go of what @fd has locked, before it is closed: the kernel may hold the open
 * file a moment longer than its last descriptor (a thread of io_uring does, that
 * has just done something with it), and with it the locks. */
void image_unlock(int fd);

#endif
