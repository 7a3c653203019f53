/* SPDX-License-Identifier: Apache-2.0
 *
 * A whole image of rubbish, checked and repaired. The input is an image file, with a
 * byte behind the last 512 bytes that says what to repair (none: everything). What
 * a repair says that it left is what the next check finds; nothing crashes, hangs
 * or takes much memory.
 *
 * The file is memory in which nothing is kept above 16 MiB.
 */
#include "base/iov.h"
#include "base/mem.h"
#include "block/graph.h"
#include "drivers/qcow2/check.h"
#include "fuzz.h"
#include <sys/resource.h>
#include <unistd.h>

#define FILE_MAX (16 * MiB)
#define MEMORY_MAX (512 * MiB)
#define SECONDS_MAX 60U

static uint8_t *file_data;
static uint64_t file_kept;       /* bytes of file_data */
static struct loop *loop;

/* ---- the file ------------------------------------------------------------- */

static int co_preadv(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov, int niov,
                     unsigned flags)
{
    uint64_t have = off < file_kept ? MIN(len, file_kept - off) : 0;

    if (have)
        iov_from_buf(iov, niov, 0, file_data + off, have);
    iov_zero(iov, niov, have, len - have);
    return 0;
}

static int co_pwritev(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov,
                      int niov, unsigned flags)
{
    if (off + len > FILE_MAX)
        return -ENOSPC;
    if (off + len > file_kept) {
        file_data = xrealloc(file_data, off + len);
        memset(file_data + file_kept, 0, off + len - file_kept);
        file_kept = off + len;
    }
    iov_to_buf(file_data + off, iov, niov, 0, len);
    return 0;
}

static int co_write_zeroes(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
    if (off < file_kept)
        memset(file_data + off, 0, MIN(len, file_kept - off));
    return 0;
}

static int co_flush(struct node *n)
{
    co_yield();
    return 0;
}

static int co_status(struct node *n, uint64_t off, uint64_t len, struct block_status *ret)
{
    bool kept = off < file_kept;

    *ret = (struct block_status){
        .flags = STATUS_ALLOCATED | (kept ? STATUS_DATA : STATUS_ZERO),
        .len = kept ? MIN(len, file_kept - off) : len,
    };
    return 0;
}

static bool co_resize(struct node *n, uint64_t size, struct err *err)
{
    file_kept = MIN(file_kept, size);
    n->size = size;
    return true;
}

static bool co_open(struct node *n, const void *opts, struct err *err)
{
    n->size = file_kept;
    n->limits.request_align = 1;
    n->limits.zero_flags = REQ_MAY_UNMAP | REQ_NO_FALLBACK;
    n->zero_init = true;
    return true;
}

static void co_close(struct node *n)
{
}

static const struct schema_member members[] = { SCHEMA_END };
static const struct schema_type options = {
    .name = "BlockdevOptionsFuzzMem", .kind = SCHEMA_STRUCT, .doc = "memory", .size = 1,
    .members = members,
};
static const struct driver mem_driver = {
    .name = "fuzz-mem", .doc = "memory", .state_size = 1, .options = &options,
    .is_protocol = true, .co_open = co_open, .co_close = co_close, .co_preadv = co_preadv,
    .co_pwritev = co_pwritev, .co_write_zeroes = co_write_zeroes, .co_flush = co_flush,
    .co_status = co_status, .co_resize = co_resize,
};

/* ---- a run ---------------------------------------------------------------- */

static void tell(void *ctx, const char *line)
{
    *(size_t *)ctx += strlen(line);
}

static bool co_check(struct node *n, enum qcow2_repair repair, struct qcow2_check_result *ret)
{
    struct err err = ERR_INIT;
    size_t told = 0;
    const struct qcow2_check_opts o = { .repair = repair, .tell = tell, .ctx = &told };

    return co_qcow2_check(n, &o, ret, &err);
}

static void co_run(void *arg)
{
    enum qcow2_repair repair = *(const uint8_t *)arg % 2 ? QCOW2_REPAIR_LEAKS : QCOW2_REPAIR_ALL;
    struct qcow2_check_result before, left, after;
    json_t *json = json_pack("{s:s}", "driver", "fuzz-mem");
    struct node *n = co_node_open(json, false, NULL);

    assert(n);
    json_decref(json);
    if (co_check(n, QCOW2_REPAIR_NONE, &before) && co_check(n, repair, &left)) {
        assert(co_check(n, QCOW2_REPAIR_NONE, &after));
        assert(after.corruptions == left.corruptions && after.leaks == left.leaks &&
               after.check_errors == left.check_errors);
        assert(before.corruptions || before.leaks || before.check_errors ||
               (!left.corruptions && !left.leaks));
    }
    co_node_unref(n);
    loop_stop(loop);
}

static void start(void *arg)
{
    co_start(co_run, arg);
}

static void tear_down(void)
{
    loop_free(loop);
    free(file_data);
}

static void set_up(void)
{
    if (loop)
        return;
    driver_register(&mem_driver);
    loop = loop_new(LOOP_ENGINE_POOL, "fuzz", NULL);
    assert(loop);
    atexit(tear_down);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t repair = size % 512 ? data[align_down(size, 512)] : 0;
    struct rusage usage;

    set_up();
    free(file_data);
    file_kept = align_down(size, 512);
    file_data = xmemdup(data, file_kept + !file_kept);
    alarm(SECONDS_MAX);
    loop_post(loop, start, &repair);
    loop_run(loop);
    alarm(0);
    getrusage(RUSAGE_SELF, &usage);
    assert((uint64_t)usage.ru_maxrss * KiB < MEMORY_MAX);
    return 0;
}
