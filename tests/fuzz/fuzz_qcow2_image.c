/* SPDX-License-Identifier: Apache-2.0
 *
 * A whole image of rubbish, opened and used: the input is an image file and, in what
 * exceeds a multiple of 512 bytes, a script of what is done with it (none: a script
 * that does a bit of everything). Several coroutines run it at the same time, as
 * guests do. Then the image is checked, repaired, and read once more. Everything may
 * fail, nothing may crash, hang, or take much memory.
 *
 * The file is driver fuzz-mem: memory in which nothing is kept above 8 MiB. So is the
 * data file of an image that says it has one; it is empty at first.
 */
#include "base/iov.h"
#include "base/mem.h"
#include "block/graph.h"
#include "drivers/drivers.h"
#include "drivers/qcow2/check.h"
#include "drivers/qcow2/snapshot.h"
#include "drivers/qcow2/bitmaps.h"
#include "drivers/qcow2/format.h"
#include "fuzz.h"
#include "loop/co_sync.h"
#include <stdio.h>
#include <sys/resource.h>
#include <unistd.h>

#define FILE_MAX (8 * MiB)
#define REQUEST_MAX (256 * KiB)
#define WORKERS 3
#define MEMORY_MAX (512 * MiB)
#define SECONDS_MAX 60U

/* ---- the file ------------------------------------------------------------- */

struct fuzz_mem {
    unsigned char *data;
    uint64_t kept;               /* bytes of data */
    uint32_t yields;             /* a number that changes, for the order of things */
};

/* What the next node opened gets. */
static const uint8_t *initial;
static size_t initial_size;

static bool co_mem_open(struct node *n, const void *opts, struct err *err)
{
    struct fuzz_mem *f = n->state;

    f->data = xmemdup(initial, initial_size + !initial_size);
    f->kept = n->size = initial_size;
    n->limits.request_align = 1;
    n->limits.zero_flags = REQ_MAY_UNMAP | REQ_NO_FALLBACK;
    n->zero_init = true;
    return true;
}

static void co_mem_close(struct node *n)
{
    struct fuzz_mem *f = n->state;

    free(f->data);
}

/* Let others go first, now and then. */
static void co_dawdle(struct fuzz_mem *f)
{
    f->yields = f->yields * 1664525 + 1013904223;
    for (uint32_t i = f->yields >> 29; i > 5; i--)
        co_yield();
}

/* Have the bytes up to @end, as far as they are kept. */
static int keep(struct fuzz_mem *f, uint64_t end)
{
    if (end > FILE_MAX)
        return -ENOSPC;
    if (end > f->kept) {
        f->data = xrealloc(f->data, end);
        memset(f->data + f->kept, 0, end - f->kept);
        f->kept = end;
    }
    return 0;
}

static int co_mem_preadv(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov,
                         int niov, unsigned flags)
{
    struct fuzz_mem *f = n->state;
    uint64_t have;

    co_dawdle(f);
    have = off < f->kept ? MIN(len, f->kept - off) : 0;
    if (have)
        iov_from_buf(iov, niov, 0, f->data + off, have);
    if (have < len)
        iov_zero(iov, niov, have, len - have);
    return 0;
}

static int co_mem_pwritev(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov,
                          int niov, unsigned flags)
{
    struct fuzz_mem *f = n->state;
    int r;

    co_dawdle(f);
    r = keep(f, off + len);
    if (r == 0)
        iov_to_buf(f->data + off, iov, niov, 0, len);
    return r;
}

static int co_mem_write_zeroes(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
    struct fuzz_mem *f = n->state;

    co_dawdle(f);
    if (off < f->kept)
        memset(f->data + off, 0, MIN(len, f->kept - off));
    return 0;
}

static int co_mem_discard(struct node *n, uint64_t off, uint64_t len)
{
    return co_mem_write_zeroes(n, off, len, 0);
}

static int co_mem_flush(struct node *n)
{
    co_dawdle(n->state);
    return 0;
}

static int co_mem_status(struct node *n, uint64_t off, uint64_t len, struct block_status *ret)
{
    struct fuzz_mem *f = n->state;
    bool kept = off < f->kept;

    *ret = (struct block_status){
        .flags = STATUS_ALLOCATED | STATUS_OFFSET | (kept ? STATUS_DATA : STATUS_ZERO),
        .len = kept ? MIN(len, f->kept - off) : len, .host_off = off, .file = n,
    };
    return 0;
}

static bool co_mem_resize(struct node *n, uint64_t size, struct err *err)
{
    struct fuzz_mem *f = n->state;

    f->kept = MIN(f->kept, size);
    n->size = size;
    return true;
}

static const struct schema_member mem_members[] = { SCHEMA_END };

static const struct schema_type mem_options = {
    .name = "BlockdevOptionsFuzzMem", .kind = SCHEMA_STRUCT, .doc = "memory", .size = 1,
    .members = mem_members,
};

static const struct driver mem_driver = {
    .name = "fuzz-mem",
    .doc = "memory",
    .state_size = sizeof(struct fuzz_mem),
    .options = &mem_options,
    .is_protocol = true,
    .co_open = co_mem_open,
    .co_close = co_mem_close,
    .co_preadv = co_mem_preadv,
    .co_pwritev = co_mem_pwritev,
    .co_write_zeroes = co_mem_write_zeroes,
    .co_discard = co_mem_discard,
    .co_flush = co_mem_flush,
    .co_status = co_mem_status,
    .co_resize = co_mem_resize,
};

/* ---- the script ----------------------------------------------------------- */

/* Operations of four bytes: what, where (two bytes), how much. */
#define OP_BYTES 4

static const uint8_t bit_of_everything[] = {
    0, 0, 0, 200,    1, 0, 1, 9,      5, 0, 0, 255,    3, 0, 3, 30,     2, 0, 0, 4,
    4, 0, 0, 0,      0, 0, 9, 255,    1, 0, 40, 255,   0x43, 0, 4, 90,  0x81, 0, 0, 3,
    0x42, 0, 20, 9,  6, 0, 7, 1,      0x80, 0, 0, 99,  0xc1, 0x80, 0, 8, 1, 0, 3, 2,
    4, 0, 0, 0,      2, 0, 0, 255,    0, 0, 0, 255,
};

struct script {
    struct node *node;
    const uint8_t *at, *end;
    unsigned workers;
    struct waitq done;
};

/* Where an operation is: from the beginning, or the end, or anywhere. */
static bool place(const struct script *s, const uint8_t op[OP_BYTES], uint64_t *off, uint64_t *len)
{
    uint64_t size = node_size(s->node), n = (uint64_t)op[1] << 8 | op[2];

    *len = MIN((uint64_t)op[3] * op[3] * 4 + 1, REQUEST_MAX);
    if (op[0] & 0x40)
        *off = n * (size / 65536);
    else
        *off = op[0] & 0x80 ? size - MIN(size, n * 256) : n * 256;
    if (!(op[0] & 0x10)) {
        *off = align_down(*off, 512);
        *len = align_up(*len, 512);
    }
    if (*off >= size)
        return false;
    *len = MIN(*len, size - *off);
    return true;
}

static void co_operation(struct script *s, const uint8_t op[OP_BYTES])
{
    struct block_status st;
    struct err err = ERR_INIT;
    uint64_t off, len;
    unsigned char *buf;

    if (!place(s, op, &off, &len))
        return;
    buf = memset(xmalloc(len), op[3], len);
    switch (op[0] & 15) {
    case 0: case 8:
        (void)!co_node_pread(s->node, off, len, buf, 0);
        break;
    case 1: case 9:
        (void)!co_node_pwrite(s->node, off, len, buf, op[0] & 8 ? REQ_FUA : 0);
        break;
    case 2: case 10:
        (void)!co_node_discard(s->node, off, len);
        break;
    case 3:
        (void)!co_node_write_zeroes(s->node, off, len, 0);
        break;
    case 11:
        (void)!co_node_write_zeroes(s->node, off, len, REQ_MAY_UNMAP);
        break;
    case 4:
        (void)!co_node_flush(s->node);
        break;
    case 5:
        (void)!co_node_status_above(s->node, NULL, off, len, &st, NULL);
        break;
    case 6:
        (void)!co_node_resize(s->node, node_size(s->node) + len, &err);
        break;
    default:
        break;
    }
    free(buf);
}

static void co_worker(void *arg)
{
    struct script *s = arg;
    const uint8_t *op;

    while ((op = s->at) + OP_BYTES <= s->end) {
        s->at += OP_BYTES;
        co_operation(s, op);
    }
    s->workers--;
    waitq_wake_all(&s->done);
}

static void co_run_script(struct node *n, const uint8_t *script, size_t size)
{
    struct script s = { .node = n, .at = script, .end = script + size, .workers = WORKERS };

    waitq_init(&s.done);
    for (unsigned i = 0; i < WORKERS; i++)
        co_start(co_worker, &s);
    while (s.workers)
        co_waitq_wait(&s.done);
}

/* ---- snapshots and bitmaps ------------------------------------------------ */

/* Bits that are loaded: more are only a question of memory. */
#define BITS_MAX (1ULL << 28)

static void co_use_bitmaps(struct node *n, bool writable)
{
    struct bitmap *bm = NULL;
    bool ok = true;

    for (uint32_t i = 0; i < qcow2_bitmaps_count(n) && i < 8; i++) {
        struct qcow2_bitmap_info info;

        qcow2_bitmaps_get(n, i, &info);
        bitmap_free(MOVE(bm));
        if (!info.granularity || node_size(n) / info.granularity > BITS_MAX)
            continue;
        ok = co_qcow2_bitmap_load(n, info.name, &bm, NULL);
        if (ok && writable) {
            struct qcow2_bitmap_put put = { info.name, info.granularity, info.enabled, bm };
            char *name = xstrdup(info.name);

            put.name = name;
            ok = co_qcow2_bitmaps_store(n, &put, 1, NULL);
            free(name);
        }
    }
    bitmap_free(bm);
    if (writable && qcow2_bitmaps_count(n)) {
        struct qcow2_bitmap_info info;
        char *name;

        qcow2_bitmaps_get(n, 0, &info);
        name = xstrdup(info.name);
        ok = co_qcow2_bitmap_remove(n, name, NULL);
        free(name);
    }
    (void)ok;
}

/* Of an idle node. */
static void co_use_snapshots(struct node *n)
{
    json_t *list = qcow2_snapshot_list(n);
    const char *id = json_string_value(json_object_get(json_array_get(list, 0), "id"));
    bool ok = co_qcow2_snapshot_create(n, "fuzz", NULL);

    if (id)
        ok = co_qcow2_snapshot_apply(n, id, NULL);
    ok = co_qcow2_snapshot_delete(n, "snapshot.name=fuzz", NULL);
    if (id)
        ok = co_qcow2_snapshot_delete(n, id, NULL);
    (void)ok;
    json_decref(list);
}

/* ---- a run ---------------------------------------------------------------- */

struct run {
    const uint8_t *data;
    size_t size;
};

static struct loop *loop;

static struct node *co_open(const char *options)
{
    struct err err = ERR_INIT;
    json_t *json = json_loads(options, 0, NULL);
    struct node *n;

    assert(json);
    n = co_node_open(json, false, &err);
    json_decref(json);
    return n;
}

/* Whether the header says that the guest's data is in another file. */
static bool has_data_file(const struct run *r)
{
    return r->size >= QCOW2_FIELD_INCOMPATIBLE + 8 && load_be32(r->data + 4) >= 3 &&
           (load_be64(r->data + QCOW2_FIELD_INCOMPATIBLE) & QCOW2_INCOMPAT_DATA_FILE);
}

/* The image in node "mem". What cannot be opened for writing may still be read. */
static struct node *co_open_image(const struct run *r, const char *more, bool writable)
{
    char *text = xasprintf("{\"driver\": \"qcow2\", \"file\": \"mem\", \"read-only\": %s%s%s}",
                           writable ? "false" : "true", more,
                           has_data_file(r) ? ", \"data-file\": \"data\"" : "");
    struct node *n = co_open(text);

    free(text);
    if (n) {
        struct node_info info;

        node_get_info(n, &info);
        json_decref(node_format_info(n));
    }
    return n || !writable ? n : co_open_image(r, more, false);
}

static void co_check_and_repair(struct node *mem)
{
    for (enum qcow2_repair r = QCOW2_REPAIR_NONE; r <= QCOW2_REPAIR_ALL; r++) {
        struct qcow2_check_opts o = { .repair = r };
        struct qcow2_check_result found;
        struct err err = ERR_INIT;

        (void)!co_qcow2_check(mem, &o, &found, &err);
    }
}

static void co_run(void *arg)
{
    static const char *const options[] = {
        ", \"discard\": \"unmap\", \"backing\": null",
        (", \"discard\": \"unmap\", \"backing\": null, \"l2-cache-size\": 4096, "
         "\"refcount-cache-size\": 4096, \"l2-cache-entry-size\": 512"),
        ", \"backing\": {\"driver\": \"null-co\", \"size\": 100000, \"read-zeroes\": true}",
    };
    struct run *r = arg;
    const uint8_t *script = r->data + align_down(r->size, 512);
    size_t length = r->size % 512;
    unsigned kind = 1;

    if (length) {
        kind = *script++;
        length--;
    } else {
        script = bit_of_everything;
        length = sizeof(bit_of_everything);
    }
    initial = r->data;
    initial_size = align_down(r->size, 512);

    struct node *mem = co_open("{\"driver\": \"fuzz-mem\", \"node-name\": \"mem\"}");

    initial_size = 0;

    struct node *data = co_open("{\"driver\": \"fuzz-mem\", \"node-name\": \"data\"}");
    struct node *n = co_open_image(r, options[kind % ARRAY_SIZE(options)], !(kind & 0x80));

    assert(mem && data);
    if (n) {
        co_run_script(n, script, length);
        co_use_bitmaps(n, !node_read_only(n));
        if (!node_read_only(n))
            co_use_snapshots(n);
        co_run_script(n, script, length);
        co_node_unref(n);
    }
    co_check_and_repair(mem);
    n = co_open_image(r, options[kind % ARRAY_SIZE(options)], false);
    if (n) {
        co_run_script(n, bit_of_everything, 6 * OP_BYTES);
        co_node_unref(n);
    }
    co_node_unref(mem);
    co_node_unref(data);
    loop_stop(loop);
}

static void start(void *arg)
{
    co_start(co_run, arg);
}

static void tear_down(void)
{
    loop_free(loop);
}

static void set_up(void)
{
    if (loop)
        return;
    drivers_register_all();
    driver_register(&mem_driver);
    loop = loop_new(LOOP_ENGINE_POOL, "fuzz", NULL);
    assert(loop);
    atexit(tear_down);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct run r = { .data = data, .size = size };
    struct rusage usage;

    set_up();
    alarm(SECONDS_MAX);
    loop_post(loop, start, &r);
    loop_run(loop);
    alarm(0);
    getrusage(RUSAGE_SELF, &usage);
    assert((uint64_t)usage.ru_maxrss * KiB < MEMORY_MAX);
    return 0;
}
