/* SPDX-License-Identifier: Apache-2.0
 *
 * Writing a file of digests, from its beginning to its end.
 */
#include "base/bytes.h"
#include "base/mem.h"
#include "set/digest_impl.h"
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

struct set_digest_writer {
    char *path;
    FILE *to;
    struct sha256_ctx sum;           /* of what was written */
    uint64_t size, written;
    int error;                       /* -errno of what failed first */
    bool over;                       /* it is whole */

    /* The run that grows. */
    uint64_t first, n;
    bool zero;
    struct set_digest_value v[DIGEST_RUN_MAX];
    uint64_t next;                   /* the lowest leaf that may come */

    bool in_chunks;
    uint64_t chunks_at, n_chunks;
};

static void put(struct set_digest_writer *w, const void *bytes, size_t len)
{
    sha256_update(&w->sum, len, bytes);
    w->written += len;
    if (!w->error && fwrite(bytes, 1, len, w->to) != len)
        w->error = errno ? -errno : -EIO;
}

struct set_digest_writer *set_digest_writer_new(const char *path, uint64_t size,
                                                struct err *err)
{
    uint8_t head[DIGEST_HEADER] = DIGEST_MAGIC;
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    struct set_digest_writer *w;

    if (fd < 0) {
        err_errno(err, -errno, "Cannot create '%s'", path);
        return NULL;
    }
    w = xnew(struct set_digest_writer);
    w->path = xstrdup(path);
    w->size = size;
    w->to = fdopen(fd, "w");
    if (!w->to)
        abort();                     /* only memory can be missing */
    sha256_init(&w->sum);
    store_be32(head + HEAD_VERSION, DIGEST_VERSION);
    store_be32(head + HEAD_ALGORITHM, DIGEST_SHA256);
    store_be64(head + HEAD_SIZE, size);
    store_be32(head + HEAD_LEAF, SET_LEAF);
    store_be32(head + HEAD_CHUNK, SET_CHUNK);
    put(w, head, sizeof(head));
    return w;
}

void set_digest_writer_free(struct set_digest_writer *w)
{
    if (!w)
        return;
    (void)fclose(w->to);             /* what was to be kept has been flushed */
    if (!w->over)
        (void)unlink(w->path);
    free(w->path);
    free(w);
}

static void put_run(struct set_digest_writer *w, uint64_t first, uint64_t n, uint32_t kind)
{
    uint8_t run[DIGEST_RUN];

    store_be64(run + RUN_FIRST, first);
    store_be32(run + RUN_N, (uint32_t)n);
    store_be32(run + RUN_KIND, kind);
    put(w, run, sizeof(run));
}

static void end_run(struct set_digest_writer *w)
{
    if (!w->n)
        return;
    put_run(w, w->first, w->n, w->zero ? KIND_ZERO : KIND_DATA);
    if (!w->zero)
        put(w, w->v, w->n * sizeof(w->v[0]));
    w->n = 0;
}

void set_digest_writer_leaf(struct set_digest_writer *w, uint64_t leaf,
                            const struct set_digest_value *d)
{
    bool zero = set_digest_is_zero(d);

    assert(!w->in_chunks && leaf >= w->next && leaf < set_leaves(w->size));
    if (w->n && (leaf != w->first + w->n || zero != w->zero ||
                 w->n == (zero ? UINT32_MAX : DIGEST_RUN_MAX)))
        end_run(w);
    if (!w->n)
        w->first = leaf;
    w->zero = zero;
    if (!zero)
        w->v[w->n] = *d;
    w->n++;
    w->next = leaf + 1;
}

static void begin_chunks(struct set_digest_writer *w)
{
    if (w->in_chunks)
        return;
    end_run(w);
    put_run(w, 0, 0, KIND_END);
    w->in_chunks = true;
    w->chunks_at = w->written;
}

void set_digest_writer_chunk(struct set_digest_writer *w, const struct set_digest_value *d)
{
    begin_chunks(w);
    put(w, d, sizeof(*d));
    w->n_chunks++;
}

bool set_digest_writer_end(struct set_digest_writer *w, uint64_t image_bytes, struct err *err)
{
    uint8_t foot[DIGEST_FOOTER] = DIGEST_END_MAGIC;

    begin_chunks(w);
    assert(w->n_chunks == div_round_up(image_bytes, SET_CHUNK));
    store_be64(foot + FOOT_CHUNKS_AT, w->chunks_at);
    store_be64(foot + FOOT_IMAGE_BYTES, image_bytes);
    put(w, foot, FOOT_CHECKSUM);
    sha256_digest(&w->sum, SET_DIGEST_BYTES, foot + FOOT_CHECKSUM);
    if (!w->error && (fwrite(foot + FOOT_CHECKSUM, SET_DIGEST_BYTES, 1, w->to) != 1 ||
                      fflush(w->to) != 0 || fsync(fileno(w->to)) < 0))
        w->error = errno ? -errno : -EIO;
    if (w->error)
        return err_errno(err, w->error, "'%s' cannot be written", w->path);
    w->over = true;
    return true;
}
