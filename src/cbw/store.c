/* SPDX-License-Identifier: Apache-2.0
 *
 * The scratch store. Released file space is punched by one coroutine that works
 * off a bitmap, so that any number of releases costs one hole each time round;
 * bytes of the file count as used until the hole is there, because until then
 * they are. Memory that fills up is moved to the file by another (spill.c).
 */
#include "cbw/store_impl.h"
#include "base/iov.h"
#include "base/mem.h"
#include "loop/co_io.h"
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#define INLINE_CLOSE_BYTES (1 * MiB)   /* more than this is freed in a worker */
#define INLINE_COPY_BYTES (64 * KiB)   /* more than this is copied in a worker */

/* ---- opening ------------------------------------------------------------- */

struct open_file {
    struct parts *file;
    const char *dir;
    uint64_t size;
};

static int open_file_work(void *arg)
{
    struct open_file *o = arg;

    return parts_open(o->file, o->dir, o->size);
}

static bool open_memory(struct store *s, struct err *err)
{
    s->memory_fd = memfd_create("stillpoint-scratch", MFD_CLOEXEC);
    if (s->memory_fd < 0)
        return err_errno(err, -errno, "Cannot create scratch memory");
    if (ftruncate(s->memory_fd, s->size) < 0)
        return err_errno(err, -errno, "Cannot size scratch memory for a disk of %llu bytes",
                         (unsigned long long)s->size);
    return true;
}

static bool has_file(const struct store *s)
{
    return s->file.n || s->target;
}

static bool co_open_tiers(struct store *s, const char *dir, struct err *err)
{
    if (s->memory_max && !open_memory(s, err))
        return false;
    if (dir) {
        struct open_file o = { .file = &s->file, .dir = dir, .size = s->size };
        int r = co_offload(open_file_work, &o);

        if (r < 0)
            return err_errno(err, r, "Cannot create a scratch file in '%s'", dir);
        s->file_hints = IO_INLINE | (io_is_in_memory(s->file.fd[0]) ? IO_MEMORY : 0);
    }
    if (s->memory_fd < 0 && !s->file.n)
        return err_set(err, -EINVAL, "A view needs scratch memory or a scratch directory");
    return true;
}

/* Without tiers. */
static struct store *store_new(uint64_t size, uint64_t memory, uint64_t limit, struct err *err)
{
    struct store *s = xnew(struct store);
    uint64_t bits = div_round_up(size, GRANULE);

    *s = (struct store){
        .size = bits * GRANULE,
        .memory_max = align_down(memory, GRANULE),
        .memory_fd = -1,
        .limit = limit ? MAX(align_down(limit, GRANULE), GRANULE) : UINT64_MAX,
        .stored = bitmap_new(bits),
        .in_file = bitmap_new(bits),
        .punch = bitmap_new(bits),
    };
    waitq_init(&s->space);
    waitq_init(&s->moved);
    if (s->stored && s->in_file && s->punch)
        return s;
    err_set(err, -ENOMEM, "Not enough memory for the bitmaps of a disk of %llu bytes",
            (unsigned long long)size);
    store_free(s);
    return NULL;
}

struct store *co_store_new(uint64_t size, const char *dir, uint64_t memory, uint64_t limit,
                           struct err *err)
{
    struct store *s = store_new(size, memory, limit, err);

    if (!s)
        return NULL;
    if (!dir)
        s->limit = MIN(s->limit, s->memory_max);
    if (co_open_tiers(s, dir, err))
        return s;
    store_free(s);
    return NULL;
}

struct store *store_new_in_node(uint64_t size, struct node *target, struct err *err)
{
    struct store *s = store_new(size, 0, 0, err);

    if (!s)
        return NULL;
    assert(node_loop(target) == loop_current() && node_size(target) >= size);
    s->target = node_ref(target);
    s->target_size = size;
    node_watch_reads(target);
    return s;
}

/* ---- closing --------------------------------------------------------------- */

static int close_work(void *arg)
{
    close((intptr_t)arg);
    return 0;
}

static void co_close(void *arg)
{
    co_offload(close_work, arg);
}

/* The last close of a file without a name frees its bytes, which takes a while. */
static void close_tier(int fd, uint64_t used)
{
    if (fd < 0)
        return;
    if (used > INLINE_CLOSE_BYTES)
        co_start(co_close, (void *)(intptr_t)fd);
    else
        close(fd);
}

void store_free(struct store *s)
{
    if (!s)
        return;
    s->dead = true;
    if (s->punching || s->spilling)
        return;    /* whoever ends last comes here again */
    close_tier(s->memory_fd, s->memory_used);
    for (unsigned i = 0; i < s->file.n; i++)
        close_tier(s->file.fd[i], s->file_used);
    if (s->target)
        node_unwatch_reads(s->target);
    node_unref(s->target);
    bitmap_free(s->stored);
    bitmap_free(s->in_file);
    bitmap_free(s->punch);
    free(s);
}

/* ---- room -------------------------------------------------------------------- */

uint64_t store_reserve(struct store *s, uint64_t want)
{
    /* What is being moved counts in both tiers, and is there once. */
    uint64_t taken = s->memory_used + s->file_used - s->moving + s->reserved;
    uint64_t room = taken < s->limit ? s->limit - taken : 0;

    assert(is_aligned(want, GRANULE));
    want = MIN(want, align_down(room, GRANULE));
    s->reserved += want;
    return want;
}

void store_unreserve(struct store *s, uint64_t bytes)
{
    assert(bytes <= s->reserved);
    s->reserved -= bytes;
    if (bytes)
        waitq_wake_all(&s->space);
}

struct waitq *store_space(struct store *s)
{
    return &s->space;
}

/* ---- writing ------------------------------------------------------------------ */

/* Memory is a plain call, unless it is so much that others on the loop would wait
 * for the copying. */
static unsigned hints(const struct store *s, bool in_file, uint64_t len)
{
    if (len > INLINE_COPY_BYTES)
        return IO_ASYNC;
    return in_file ? s->file_hints : IO_INLINE | IO_MEMORY;
}

/* Where *@off of the disk is kept in a tier; *@len no more than lies there in a row. */
static int tier_at(const struct store *s, bool in_file, uint64_t *off, uint64_t *len)
{
    return in_file ? parts_at(&s->file, off, len) : s->memory_fd;
}

static int co_tier_write(struct store *s, bool in_file, uint64_t off, uint64_t len,
                         const uint8_t *buf)
{
    if (s->target)
        return co_node_pwrite(s->target, off, MIN(len, s->target_size - off), buf, 0);

    for (uint64_t at = 0; at < len;) {
        uint64_t place = off + at, row = len - at;
        int fd = tier_at(s, in_file, &place, &row);
        struct iovec iov = { (void *)(uintptr_t)(buf + at), row };
        ssize_t n = co_pwritev(fd, &iov, 1, place, hints(s, in_file, row));

        if (n <= 0)
            return n < 0 ? n : -ENOSPC;
        at += n;
    }
    return 0;
}

static int co_punch_parts(struct store *s, uint64_t off, uint64_t len, unsigned how)
{
    int r = 0;

    for (uint64_t at = 0; at < len && r == 0;) {
        uint64_t place = off + at, row = len - at;
        int fd = tier_at(s, true, &place, &row);

        r = co_fallocate(fd, PUNCH, place, row, how);
        at += row;
    }
    return r;
}

static void memory_punch(struct store *s, uint64_t off, uint64_t len, uint64_t used)
{
    /* Cannot fail on a memfd without seals but for EINTR. */
    while (fallocate(s->memory_fd, PUNCH, off, len) < 0 && errno == EINTR)
        ;
    s->memory_used -= used;
}

/* Bytes free in memory. When it is full and just being moved to the file, that is
 * waited for: a batch is there sooner than a write of our own to the same file. */
static uint64_t co_memory_room(struct store *s)
{
    while (s->memory_used >= s->memory_max && s->spilling)
        co_waitq_wait(&s->moved);
    return s->memory_used < s->memory_max ? s->memory_max - s->memory_used : 0;
}

/* Store one run without zeros, or the beginning of it: as much as one tier takes.
 * The bytes are counted before they are written so that calls that overlap in
 * time do not promise the same memory. */
static int co_write_run(struct store *s, uint64_t off, uint64_t *len, const uint8_t *buf)
{
    uint64_t room = co_memory_room(s);
    int r;

    if (room) {
        uint64_t n = MIN(*len, room);

        s->memory_used += n;
        r = co_tier_write(s, false, off, n, buf);
        if (r == 0) {
            bitmap_set(s->stored, off / GRANULE, n / GRANULE);
            *len = n;
            store_spill_if_full(s);
            return 0;
        }
        memory_punch(s, off, n, n);
        if (!has_file(s))
            return r;
        s->memory_max = s->memory_used;
    }
    if (!has_file(s))
        return -ENOSPC;
    s->file_used += *len;
    r = co_tier_write(s, true, off, *len, buf);
    bitmap_set(s->stored, off / GRANULE, *len / GRANULE);   /* also on failure: to be undone */
    bitmap_set(s->in_file, off / GRANULE, *len / GRANULE);
    return r;
}

/* Forget the bits of a range; how many of them were in the file. */
static uint64_t forget(struct store *s, uint64_t first, uint64_t n, uint64_t *ret_in_memory)
{
    uint64_t stored = bitmap_count(s->stored), in_file = bitmap_count(s->in_file);

    bitmap_clear(s->stored, first, n);
    bitmap_clear(s->in_file, first, n);
    in_file -= bitmap_count(s->in_file);
    *ret_in_memory = stored - bitmap_count(s->stored) - in_file;
    return in_file;
}

/* A write that failed in the middle may be tried again, so everything must be over
 * before this returns that would hit the new bytes: copies and holes of a move that
 * has what was written before the failure, and holes of our own. */
static void co_undo_write(struct store *s, uint64_t off, uint64_t len)
{
    uint64_t in_memory, in_file;

    while (s->spilling || s->punching)
        co_waitq_wait(&s->moved);
    in_file = forget(s, off / GRANULE, len / GRANULE, &in_memory);
    if (in_memory)
        memory_punch(s, off, len, in_memory * GRANULE);
    if (in_file) {
        /* If it fails the bytes stay until they are written over. */
        int r = s->target ? 0 : co_punch_parts(s, off, len, IO_DEFAULT);

        (void)r;
        s->file_used -= in_file * GRANULE;
    }
}

static bool granule_is_zero(const uint8_t *buf, uint64_t at)
{
    return mem_is_zero(buf + at, GRANULE);
}

/* Who looks at the target itself finds zeros there, and not what is below it. */
static int co_write_zeros(struct store *s, uint64_t off, uint64_t len)
{
    if (!s->target)
        return 0;
    return co_node_write_zeroes(s->target, off, MIN(len, s->target_size - off), REQ_MAY_UNMAP);
}

int co_store_write_zeros(struct store *s, uint64_t off, uint64_t len)
{
    int r = co_write_zeros(s, off, len);

    if (r == 0 && s->target)
        co_node_wait_reads(s->target, off, len);
    return r;
}

int co_store_write(struct store *s, uint64_t off, uint64_t len, const uint8_t *buf)
{
    int r = 0;

    assert(is_aligned(off | len, GRANULE) && off + len <= s->size);
    for (uint64_t at = 0; at < len && r == 0;) {
        bool zero = granule_is_zero(buf, at);
        uint64_t n = GRANULE;

        while (at + n < len && granule_is_zero(buf, at + n) == zero)
            n += GRANULE;
        r = zero ? co_write_zeros(s, off + at, n) : co_write_run(s, off + at, &n, buf + at);
        at += n;
    }
    if (r == 0 && s->target)
        co_node_wait_reads(s->target, off, len);
    if (r < 0)
        co_undo_write(s, off, len);
    store_unreserve(s, len);
    return r;
}

/* ---- reading -------------------------------------------------------------------- */

bool store_has(const struct store *s, uint64_t off, uint64_t len, uint64_t *ret_len)
{
    uint64_t bit = off / GRANULE;
    bool has = bitmap_test(s->stored, bit);
    uint64_t end = has ? bitmap_next_clear(s->stored, bit) : bitmap_next_set(s->stored, bit);

    *ret_len = MIN(len, end * GRANULE - off);
    return has;
}

#define INLINE_IOV 16

/* Read a run that lies in one tier. */
static int co_tier_read(struct store *s, bool in_file, uint64_t off, uint64_t len,
                        const struct iovec *iov, int niov, uint64_t at)
{
    struct iovec few[INLINE_IOV];
    CLEANUP(free) struct iovec *many = niov > INLINE_IOV ? xcalloc(niov, sizeof(*many)) : NULL;
    struct iovec *part = many ? many : few;

    for (uint64_t done = 0; done < len;) {
        if (s->target) {
            int np = iov_slice(part, iov, niov, at, len);

            return co_node_preadv(s->target, off, len, part, np, 0);
        }

        uint64_t place = off + done, row = len - done;
        int fd = tier_at(s, in_file, &place, &row);
        int np = iov_slice(part, iov, niov, at + done, row);
        ssize_t n = co_preadv(fd, part, np, place, hints(s, in_file, row));

        if (n <= 0)
            return n < 0 ? n : -EIO;
        done += n;
    }
    return 0;
}

/* Read the run at the beginning of [off, off+len) that lies in one tier; gives its
 * length, or 0 to look again: while a worker read memory, the granules may have been
 * moved to the file. The bit is set before the memory is given back, so it is
 * enough to look at it after the read. */
static int co_run_read(struct store *s, uint64_t off, uint64_t *len, const struct iovec *iov,
                       int niov, uint64_t at)
{
    uint64_t bit = off / GRANULE, end = div_round_up(off + *len, GRANULE);
    bool in_file = bitmap_test(s->in_file, bit);
    int r;

    end = MIN(end, in_file ? bitmap_next_clear(s->in_file, bit)
                           : bitmap_next_set(s->in_file, bit));
    *len = MIN(*len, end * GRANULE - off);
    r = co_tier_read(s, in_file, off, *len, iov, niov, at);
    if (r == 0 && !in_file && bitmap_any_set(s->in_file, bit, end - bit))
        *len = 0;
    return r;
}

int co_store_readv(struct store *s, uint64_t off, uint64_t len, const struct iovec *iov, int niov,
                   uint64_t at)
{
    uint64_t end = off + len;

    while (off < end) {
        uint64_t n;

        if (!store_has(s, off, end - off, &n)) {
            iov_zero(iov, niov, at, n);
        } else {
            int r = co_run_read(s, off, &n, iov, niov, at);

            if (r < 0)
                return r;
        }
        off += n;
        at += n;
    }
    return 0;
}

/* ---- releasing ------------------------------------------------------------------- */

static int co_punch(struct store *s, uint64_t off, uint64_t len)
{
    if (s->target)
        return co_node_discard(s->target, off, MIN(len, s->target_size - off));
    return co_punch_parts(s, off, len, IO_BULK);
}

static void co_punch_file(void *arg)
{
    struct store *s = arg;
    uint64_t first, n;

    while (!s->dead && bitmap_next_range(s->punch, 0, UINT64_MAX, &first, &n)) {
        bitmap_clear(s->punch, first, n);
        /* A file system that cannot punch keeps the bytes, and they stay counted. */
        if (co_punch(s, first * GRANULE, n * GRANULE) == 0) {
            s->file_used -= n * GRANULE;
            waitq_wake_all(&s->space);
        }
    }
    s->punching = false;
    waitq_wake_all(&s->moved);
    if (s->dead)
        store_free(s);
}

void store_punch_file(struct store *s, uint64_t first, uint64_t n)
{
    bitmap_set(s->punch, first, n);
    if (!s->punching) {
        s->punching = true;
        co_start(co_punch_file, s);
    }
}

static void release_file(struct store *s, uint64_t first, uint64_t n)
{
    uint64_t end = first + n, run;

    while (first < end && bitmap_next_range(s->in_file, first, end - first, &first, &run) &&
           first < end) {
        store_punch_file(s, first, MIN(run, end - first));
        first += run;
    }
}

void store_release(struct store *s, uint64_t off, uint64_t len)
{
    uint64_t first = off / GRANULE, n = len / GRANULE;
    uint64_t in_memory;

    assert(is_aligned(off | len, GRANULE) && off + len <= s->size);
    if (!bitmap_any_set(s->stored, first, n))
        return;
    if (bitmap_any_set(s->in_file, first, n))
        release_file(s, first, n);
    forget(s, first, n, &in_memory);
    /* Nothing in the range is wanted any more, so one hole does for all of it. */
    if (in_memory) {
        memory_punch(s, off, len, in_memory * GRANULE);
        waitq_wake_all(&s->space);
        waitq_wake_all(&s->moved);
    }
}

void store_usage(const struct store *s, uint64_t *ret_memory, uint64_t *ret_file)
{
    *ret_memory = s->memory_used;
    *ret_file = s->file_used;
}
