/* SPDX-License-Identifier: Apache-2.0
 *
 * Reading a file of digests, which may hold anything: each run is checked as it comes.
 */
#include "base/bytes.h"
#include "base/mem.h"
#include "set/digest_impl.h"
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#define BUFFER (128 * KiB)
static_assert(BUFFER >= DIGEST_RUN_MAX * SET_DIGEST_BYTES + DIGEST_RUN, "a run fits");

struct set_digest_file {
    char *path;
    int fd;
    uint64_t bytes;                  /* of this file */
    uint64_t size, leaves;           /* of the disk */
    uint64_t chunks_at, image_bytes;

    uint64_t at;                     /* the next run */
    uint64_t next;                   /* the lowest leaf that it may begin with */
    bool over;
    uint8_t *buf;
    uint64_t buf_at;                 /* what of the file is there */
    size_t buf_len;
};

static bool damaged(const struct set_digest_file *f, uint64_t at, const char *what,
                    struct err *err)
{
    return err_set(err, -EBADMSG, "'%s' is damaged at offset %llu: %s", f->path,
                   (unsigned long long)at, what);
}

static bool read_at(const struct set_digest_file *f, uint64_t at, void *buf, size_t len,
                    struct err *err)
{
    uint8_t *p = buf;

    while (len) {
        ssize_t r = pread(f->fd, p, len, (off_t)at);

        if (r < 0 && errno == EINTR)
            continue;
        if (r < 0)
            return err_errno(err, -errno, "'%s' cannot be read at offset %llu", f->path,
                             (unsigned long long)at);
        if (r == 0)
            return damaged(f, at, "it ends there", err);
        p += r;
        at += (uint64_t)r;
        len -= (size_t)r;
    }
    return true;
}

/* ---- both ends -------------------------------------------------------------------- */

static bool is_zero_from(const uint8_t *p, size_t from, size_t to)
{
    return mem_is_zero(p + from, to - from);
}

static bool read_header(struct set_digest_file *f, struct err *err)
{
    uint8_t h[DIGEST_HEADER];

    if (!read_at(f, 0, h, sizeof(h), err))
        return false;
    if (memcmp(h + HEAD_MAGIC, DIGEST_MAGIC, 8) != 0)
        return damaged(f, 0, "it does not begin as a file of digests", err);
    if (load_be32(h + HEAD_VERSION) != DIGEST_VERSION)
        return err_set(err, -EBADMSG, "'%s' is a file of digests of version %u, or damaged at "
                       "offset %d: this program knows version %u", f->path,
                       load_be32(h + HEAD_VERSION), HEAD_VERSION, DIGEST_VERSION);
    f->size = load_be64(h + HEAD_SIZE);
    f->leaves = set_leaves(f->size);
    if (load_be32(h + HEAD_ALGORITHM) != DIGEST_SHA256 || load_be32(h + HEAD_LEAF) != SET_LEAF ||
        load_be32(h + HEAD_CHUNK) != SET_CHUNK || f->size > INT64_MAX ||
        !is_zero_from(h, HEAD_ZERO, sizeof(h)))
        return damaged(f, HEAD_ALGORITHM, "the header contradicts its version", err);
    return true;
}

static bool read_footer(struct set_digest_file *f, struct err *err)
{
    uint8_t foot[DIGEST_FOOTER];
    uint64_t at = f->bytes - sizeof(foot), chunks;

    if (!read_at(f, at, foot, sizeof(foot), err))
        return false;
    if (memcmp(foot + FOOT_MAGIC, DIGEST_END_MAGIC, 8) != 0)
        return damaged(f, at, "it does not end as a file of digests", err);
    f->chunks_at = load_be64(foot + FOOT_CHUNKS_AT);
    f->image_bytes = load_be64(foot + FOOT_IMAGE_BYTES);
    chunks = div_round_up(f->image_bytes, SET_CHUNK);
    if (f->chunks_at < DIGEST_HEADER + DIGEST_RUN || f->chunks_at > at ||
        (at - f->chunks_at) % SET_DIGEST_BYTES ||
        (at - f->chunks_at) / SET_DIGEST_BYTES != chunks ||
        !is_zero_from(foot, FOOT_ZERO, FOOT_CHECKSUM))
        return damaged(f, at, "the footer contradicts the file", err);
    return true;
}

static void rewind_runs(struct set_digest_file *f)
{
    f->at = DIGEST_HEADER;
    f->next = 0;
    f->over = false;
}

struct set_digest_file *set_digest_file_open(const char *path, struct err *err)
{
    CLEANUP(set_digest_file_free) struct set_digest_file *f = xnew(struct set_digest_file);
    struct stat st;

    f->path = xstrdup(path);
    f->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
    if (f->fd < 0 || fstat(f->fd, &st) < 0) {
        err_errno(err, -errno, "'%s'", path);
        return NULL;
    }
    f->bytes = S_ISREG(st.st_mode) ? (uint64_t)st.st_size : 0;
    if (f->bytes < DIGEST_HEADER + DIGEST_RUN + DIGEST_FOOTER) {
        err_set(err, -EBADMSG, "'%s' is no whole file of digests", path);
        return NULL;
    }
    if (!read_header(f, err) || !read_footer(f, err))
        return NULL;
    f->buf = xmalloc(BUFFER);
    rewind_runs(f);
    return MOVE(f);
}

void set_digest_file_free(struct set_digest_file *f)
{
    if (!f)
        return;
    if (f->fd >= 0)
        close(f->fd);
    free(f->buf);
    free(f->path);
    free(f);
}

const char *set_digest_file_path(const struct set_digest_file *f)
{
    return f->path;
}

uint64_t set_digest_file_size(const struct set_digest_file *f)
{
    return f->size;
}

uint64_t set_digest_file_image_bytes(const struct set_digest_file *f)
{
    return f->image_bytes;
}

/* ---- runs --------------------------------------------------------------------------- */

/* @len bytes at @at, all before the chunks; NULL with @err. */
static const uint8_t *have(struct set_digest_file *f, uint64_t at, size_t len, struct err *err)
{
    if (len > f->chunks_at - at) {
        damaged(f, at, "a run goes on behind the place of the runs", err);
        return NULL;
    }
    if (at < f->buf_at || at + len > f->buf_at + f->buf_len) {
        f->buf_len = 0;
        if (!read_at(f, at, f->buf, MIN((uint64_t)BUFFER, f->chunks_at - at), err))
            return NULL;
        f->buf_at = at;
        f->buf_len = MIN((uint64_t)BUFFER, f->chunks_at - at);
    }
    return f->buf + (at - f->buf_at);
}

static bool end_of_runs(struct set_digest_file *f, const uint8_t *p, struct err *err)
{
    if (load_be64(p + RUN_FIRST) || load_be32(p + RUN_N) || f->at + DIGEST_RUN != f->chunks_at)
        return damaged(f, f->at, "the runs end there, but not their place", err);
    f->over = true;
    return true;
}

bool set_digest_file_next(struct set_digest_file *f, struct set_digest_run *ret, struct err *err)
{
    struct set_digest_run run = { 0 };
    const uint8_t *p;
    uint32_t kind;

    *ret = run;
    if (f->over)
        return true;
    p = have(f, f->at, DIGEST_RUN, err);
    if (!p)
        return false;
    kind = load_be32(p + RUN_KIND);
    if (kind == KIND_END)
        return end_of_runs(f, p, err);
    run.first = load_be64(p + RUN_FIRST);
    run.n = load_be32(p + RUN_N);
    if ((kind != KIND_DATA && kind != KIND_ZERO) || !run.n ||
        (kind == KIND_DATA && run.n > DIGEST_RUN_MAX) || run.first < f->next ||
        run.first >= f->leaves || run.n > f->leaves - run.first)
        return damaged(f, f->at, "no run can be so", err);
    if (kind == KIND_DATA) {
        p = have(f, f->at + DIGEST_RUN, run.n * SET_DIGEST_BYTES, err);
        if (!p)
            return false;
        run.v = (const struct set_digest_value *)p;
        f->at += run.n * SET_DIGEST_BYTES;
    }
    f->at += DIGEST_RUN;
    f->next = run.first + run.n;
    *ret = run;
    return true;
}

/* ---- the rest ------------------------------------------------------------------------- */

static bool check_sum(struct set_digest_file *f, struct err *err)
{
    uint64_t end = f->bytes - SET_DIGEST_BYTES;
    uint8_t found[SET_DIGEST_BYTES], want[SET_DIGEST_BYTES];
    struct sha256_ctx ctx;

    sha256_init(&ctx);
    f->buf_len = 0;                  /* it is used for this */
    for (uint64_t at = 0, n; at < end; at += n) {
        n = MIN((uint64_t)BUFFER, end - at);
        if (!read_at(f, at, f->buf, n, err))
            return false;
        sha256_update(&ctx, n, f->buf);
    }
    sha256_digest(&ctx, sizeof(found), found);
    if (!read_at(f, end, want, sizeof(want), err))
        return false;
    return memcmp(found, want, sizeof(want)) == 0 ||
           err_set(err, -EBADMSG, "'%s' is damaged: its checksum does not match", f->path);
}

bool set_digest_file_check(struct set_digest_file *f, struct err *err)
{
    struct set_digest_run run;

    if (!check_sum(f, err))
        return false;
    rewind_runs(f);
    do {
        if (!set_digest_file_next(f, &run, err))
            return false;
    } while (run.n);
    rewind_runs(f);
    return true;
}

bool set_digest_file_chunks(const struct set_digest_file *f, uint64_t first, size_t n,
                            struct set_digest_value *ret, struct err *err)
{
    uint64_t have_chunks = div_round_up(f->image_bytes, SET_CHUNK);

    assert(first <= have_chunks && n <= have_chunks - first);
    return read_at(f, f->chunks_at + first * SET_DIGEST_BYTES, ret, n * sizeof(*ret), err);
}
