/* SPDX-License-Identifier: Apache-2.0
 *
 * What record.h declares.
 */
#include "record.h"
#include "base/bytes.h"
#include <fcntl.h>
#include <sys/sendfile.h>
#include <unistd.h>

#define HEADER_BYTES 32
#define RECORD_BYTES 48

static struct op *find_op(struct record *r, uint64_t id)
{
    for (size_t i = r->n_ops; i-- > 0;) {
        if (r->ops[i].id == id)
            return &r->ops[i];
    }
    fail_msg("an end without a begin");
    return NULL;
}

unsigned char *load_file(const char *name, size_t *ret_len)
{
    int fd = open(work_path(name), O_RDONLY | O_CLOEXEC);
    off_t len = lseek(fd, 0, SEEK_END);
    unsigned char *bytes = xmalloc((size_t)len + 1);

    assert_true(fd >= 0);
    assert_int_equal(pread(fd, bytes, (size_t)len, 0), len);
    close(fd);
    *ret_len = (size_t)len;
    return bytes;
}

/* False: an entry that was begun before others is not in the file yet. */
static bool try_load_record(const char *name, struct record *ret)
{
    struct record r = { 0 };

    r.bytes = load_file(name, &r.n_bytes);
    r.ops = xcalloc(r.n_bytes / RECORD_BYTES + 1, sizeof(*r.ops));
    for (size_t at = HEADER_BYTES; at + RECORD_BYTES <= r.n_bytes;) {
        const unsigned char *p = r.bytes + at;

        if (load_be32(p) == 0) {
            record_done(&r);
            return false;
        }
        assert_int_equal(load_be32(p), 0x46524543);
        r.n++;
        if (p[4] == 1)
            r.ops[r.n_ops++] = (struct op){
                .what = p[5], .id = load_be64(p + 8), .off = load_be64(p + 16),
                .len = load_be64(p + 24), .data = p + RECORD_BYTES, .begin = r.n,
            };
        else {
            struct op *op = find_op(&r, load_be64(p + 8));

            if (op) {
                op->end = r.n;
                op->result = (int)load_be32(p + 36);
            }
        }
        at += RECORD_BYTES + load_be64(p + 40);
    }
    *ret = r;
    return true;
}

struct record load_record_of(const char *name)
{
    struct record r;

    assert_true(try_load_record(name, &r));
    return r;
}

struct record load_record(void)
{
    return load_record_of("record");
}

size_t record_at(const struct record *r, uint64_t bytes)
{
    size_t n = 0;

    for (uint64_t at = HEADER_BYTES; at + RECORD_BYTES <= MIN(bytes, (uint64_t)r->n_bytes); n++) {
        at += RECORD_BYTES + load_be64(r->bytes + at + 40);
        if (at > bytes)
            break;
    }
    return n;
}

void record_done(struct record *r)
{
    free(r->bytes);
    free(r->ops);
}

size_t co_count_records(void)
{
    uint64_t deadline = loop_now() + 30 * NSEC_PER_SEC;
    struct record r;

    while (!try_load_record("record", &r)) {
        assert_true(loop_now() < deadline);
        co_sleep(NSEC_PER_MSEC);
    }
    record_done(&r);
    return r.n;
}

/* ---- a replay ------------------------------------------------------------ */

/* Whether the disk must have it when the power goes after record @cut. */
static bool must_be_there(const struct record *r, const struct op *op, size_t cut)
{
    if (!op->end || op->end > cut || op->result < 0)
        return false;
    for (size_t i = 0; i < r->n_ops; i++) {
        const struct op *f = &r->ops[i];

        if (f->what == FAULT_FLUSH && f->begin > op->end && f->end && f->end <= cut &&
            f->result == 0)
            return true;
    }
    return false;
}

static void apply(int fd, const struct op *op, uint64_t off, uint64_t len)
{
    CLEANUP(free) unsigned char *zeros = NULL;

    switch (op->what) {
    case FAULT_WRITE:
        assert_int_equal(pwrite(fd, op->data + (off - op->off), len, (off_t)off), len);
        return;
    case FAULT_WRITE_ZEROES:
    case FAULT_DISCARD:
        zeros = xzalloc(len);
        assert_int_equal(pwrite(fd, zeros, len, (off_t)off), len);
        return;
    case FAULT_RESIZE:
        assert_int_equal(ftruncate(fd, (off_t)(op->off + op->len)), 0);
        return;
    default:
        return;
    }
}

/* Some of its sectors. */
static void apply_torn(int fd, const struct op *op, uint64_t *seed)
{
    for (uint64_t at = op->off, n; at < op->off + op->len; at += n) {
        n = MIN(align_down(at, 512) + 512 - at, op->off + op->len - at);
        if (test_random(seed, 2))
            apply(fd, op, at, n);
    }
}

size_t pick_cut(const struct record *r, uint64_t *seed)
{
    size_t cut = test_random(seed, r->n + 1);

    if (test_random(seed, 2))
        return cut;
    for (size_t i = test_random(seed, r->n_ops); i < r->n_ops; i++) {
        if (r->ops[i].what == FAULT_FLUSH && r->ops[i].end)
            return r->ops[i].end - 1;
    }
    return cut;
}

/* Without a shell: there are thousands. What is a hole stays one. */
static int open_copy(const char *from, const char *to)
{
    int in = open(work_path(from), O_RDONLY | O_CLOEXEC);
    int out = open(work_path(to), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    off_t size = lseek(in, 0, SEEK_END);

    assert_true(in >= 0 && out >= 0);
    assert_int_equal(ftruncate(out, size), 0);
    for (off_t at = 0; (at = lseek(in, at, SEEK_DATA)) >= 0;) {
        off_t end = lseek(in, at, SEEK_HOLE);

        assert_int_equal(lseek(in, at, SEEK_SET), at);
        assert_int_equal(lseek(out, at, SEEK_SET), at);
        while (at < end) {
            ssize_t n = sendfile(out, in, NULL, (size_t)(end - at));

            assert_true(n > 0);
            at += n;
        }
    }
    close(in);
    return out;
}

void copy_file(const char *from, const char *to)
{
    close(open_copy(from, to));
}

void replay(const char *before, const char *after, const struct record *r, size_t cut,
            uint64_t *seed)
{
    uint64_t kept = 1 + test_random(seed, 7);      /* eighths of what may be lost */
    int fd = open_copy(before, after);

    for (size_t i = 0; i < r->n_ops && r->ops[i].begin <= cut; i++) {
        const struct op *op = &r->ops[i];
        bool torn = op->what != FAULT_RESIZE && !test_random(seed, 12);

        if (must_be_there(r, op, cut) || (!torn && test_random(seed, 8) < kept))
            apply(fd, op, op->off, op->len);
        else if (torn)
            apply_torn(fd, op, seed);
    }
    close(fd);
}

void replay_killed(const char *before, const char *after, const struct record *r, size_t cut,
                   uint64_t *seed)
{
    int fd = open_copy(before, after);

    for (size_t i = 0; i < r->n_ops && r->ops[i].begin <= cut; i++) {
        const struct op *op = &r->ops[i];

        if ((op->end && op->end <= cut && op->result == 0) || test_random(seed, 2))
            apply(fd, op, op->off, op->len);
    }
    close(fd);
}
