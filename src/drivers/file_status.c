/* SPDX-License-Identifier: Apache-2.0
 *
 * Where a file has data and where holes, by SEEK_DATA and SEEK_HOLE. Seeking may
 * read metadata from the disk, so it happens in a worker; one trip there looks at
 * several extents, so that going through a fragmented file is not a trip each.
 */
#include "drivers/file.h"
#include <unistd.h>

/* How far beyond the asked range one trip looks. */
#define LOOK_AHEAD (64 * MiB)

#define FLAGS_DATA (STATUS_DATA | STATUS_ALLOCATED | STATUS_OFFSET)
#define FLAGS_HOLE (STATUS_ZERO | STATUS_ALLOCATED | STATUS_OFFSET)

struct seeking {
    int fd;
    uint64_t until;         /* stop once this far */
    struct extent_fill fill;
};

/* Add what is at the fill's end: a hole up to the next data, or data up to the next
 * hole. Returns 0, 1 when there is no room for more, or -errno. */
static int look_at_one(struct seeking *j)
{
    uint64_t pos = j->fill.pos, size = j->fill.size;
    off_t next = lseek(j->fd, (off_t)pos, SEEK_DATA);
    unsigned flags = STATUS_ZERO;

    if (next < 0 && errno == ENXIO)
        next = (off_t)size;             /* a hole to the end */
    else if (next < 0)
        return -errno;
    if ((uint64_t)next == pos) {
        flags = STATUS_DATA;
        next = lseek(j->fd, (off_t)pos, SEEK_HOLE);
        if (next < 0)
            return -errno;
    }
    /* A file that became shorter meanwhile: say data, and reading will tell. */
    if ((uint64_t)next <= pos) {
        flags = STATUS_DATA;
        next = (off_t)size;
    }
    return extent_fill_add(&j->fill, (uint64_t)next - pos, flags) ? 0 : 1;
}

static int seek_extents(void *arg)
{
    struct seeking *j = arg;
    int r = 0;

    while (r == 0 && j->fill.pos < j->until)
        r = look_at_one(j);
    return r;
}

static void whole(uint64_t len, uint64_t *ret_len, unsigned *ret_flags)
{
    *ret_len = len;
    *ret_flags = STATUS_DATA;
}

static void co_look_up(struct node *n, uint64_t off, uint64_t len, uint64_t *ret_len,
                       unsigned *ret_flags)
{
    struct file_state *s = n->state;
    struct seeking j = {
        .fd = s->fd,
        .until = MIN(n->size, off + len + LOOK_AHEAD),
    };

    extent_fill_begin(&s->extents, &j.fill, off, n->limits.request_align, n->size);

    int r = co_offload(seek_extents, &j);

    if (r == -EINVAL)
        s->no_seek = true;
    if (j.fill.n) {
        *ret_len = j.fill.extents[0].end - off;
        *ret_flags = j.fill.extents[0].flags;
    } else {
        whole(len, ret_len, ret_flags);
    }
    extent_fill_end(&s->extents, &j.fill);
}

int co_file_status(struct node *n, uint64_t off, uint64_t len, struct block_status *ret)
{
    struct file_state *s = n->state;
    uint64_t known;
    unsigned flags;

    if (s->device || s->no_seek)
        whole(len, &known, &flags);
    else if (!extent_cache_find(&s->extents, off, &known, &flags))
        co_look_up(n, off, len, &known, &flags);

    /* The part of the last block that is beyond the end belongs to what is before it. */
    if (off + known >= n->size)
        known = len;
    *ret = (struct block_status){
        .flags = flags == STATUS_ZERO ? FLAGS_HOLE : FLAGS_DATA,
        .len = MIN(known, len),
        .host_off = off,
        .file = n,
    };
    return 0;
}
